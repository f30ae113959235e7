"""X's filtered stream: what is posted from now on and matches one of our rules.

Rules belong to the app of the key, not to a connection, and stay when the crawl ends. Before it connects, a crawl adds
those of its rules that are not there, under the tag `msb-ner`, and removes others of that tag, which an earlier crawl left.
Rules of other tags are left alone. What only they match comes through the same connection and is not kept; a warning
says so, since X counts these posts, too.

tweepy's own stream is not used. It sleeps up to five minutes where nothing can stop it, tries a wrong key for ever, hides
what X says in an error, and its host is fixed. Here a thread reads the connection, since only a thread can wait for the
next line while the caller gets its sign of life a second: a read that is timed out breaks the connection. The queue
between them is bounded; if posts are not stored as fast as they come, X notices, and disconnects a slow reader.

X sends an empty line at least every 20 seconds. Lost connections are made again after the waits that X asks for:
https://docs.x.com/x-api/fundamentals/handling-disconnections. Posts of the time between are lost (X's own recovery,
`backfill_minutes`, is for few access levels): a search with `--since` gets them.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Any, Literal

import requests
from tweepy import StreamRule

from data_prep.posts import Post
from data_prep.sources.live import Fetched
from data_prep.sources.social import json_object, no_post, unreadable_post
from data_prep.sources.waiting import STEP_SECONDS, cause_of
from data_prep.sources.x_api import PASSING, SOURCE, XApi, is_usage_cap, message_of, usage_cap
from data_prep.sources.x_json import posts_of_v2
from launch.errors import InputError
from launch.scrub import redact

TAG = "msb-ner"
"""Our rules' tag."""

OTHER_RULES = "matched by rules of others only"
"""Why posts are passed over."""

SILENCE_SECONDS = 21.0
"""X sends something every 20 seconds: after longer silence, the connection is lost."""

CONFLICT = 409
TOO_MANY_REQUESTS = 429

QUEUE_LINES = 1000
READ_BYTES = 512
"""About half a post, so that none waits for the next one to fill a read."""

logger = logging.getLogger("msb_ner")


class FilteredStream:
    """The posts that match one of ``rules``, from now on."""

    endless = True

    def __init__(self, api: XApi, rules: list[str], silence_seconds: float = SILENCE_SECONDS) -> None:
        self._api = api
        self._rules = list(dict.fromkeys(rule.strip() for rule in rules))
        self._silence_seconds = silence_seconds
        self._failures = _Failures()
        self.passed_over: Counter[str] = Counter()

    def fetch(self, position: dict[str, Any] | None) -> Iterator[Fetched]:
        """Posts as they come, without end. There is no position to go on from."""
        rule_ids: set[str] = set()
        while True:
            if not rule_ids:
                rule_ids = yield from self._set_rules()
            with _Connection(lambda: self._api.open_stream(self._silence_seconds)) as connection:
                told = yield from self._follow(connection, rule_ids)
            if connection.status == CONFLICT:  # no rules: somebody removed ours
                rule_ids = set()
            yield from self._api.wait(*self._wait_after(connection, told))

    def _set_rules(self) -> Generator[Fetched, None, set[str]]:
        """Make our rules the app's; returns their ids."""
        client = self._api.client
        there = (yield from self._api.ask(client.get_rules)).get("data", [])
        stale = [rule["id"] for rule in there if rule.get("tag") == TAG and rule["value"] not in self._rules]
        if stale:
            yield from self._api.ask(client.delete_rules, ids=stale)
        others = [rule for rule in there if rule.get("tag") != TAG and rule["value"] not in self._rules]
        if others:
            logger.warning("the app has rules of others (%d): X counts their posts, which are not kept", len(others))
        ids = {rule["value"]: str(rule["id"]) for rule in there if rule["value"] in self._rules}
        missing = [StreamRule(value=rule, tag=TAG) for rule in self._rules if rule not in ids]
        if missing:
            answer = yield from self._api.ask(client.add_rules, add=missing)
            added = {rule["value"]: str(rule["id"]) for rule in answer.get("data", [])}
            if len(added) < len(missing):
                raise InputError(f"X refuses a rule: {redact(message_of(answer))}. Mend --query.")
            ids |= added
        return set(ids.values())

    def _follow(self, connection: _Connection, rule_ids: set[str]) -> Generator[Fetched, None, str | None]:
        """The posts of one connection, until it ends, or X says that it will: what X says is returned."""
        for lines in connection.batches():
            items = [(line, json_object(line)) for line in lines if line]
            errors = [item for _, item in items if _is_error(item)]
            if len(errors) < len(lines):
                self._failures.clear()
            posts = [self._posts_of(line, item, rule_ids) for line, item in items if not _is_error(item)]
            yield Fetched([post for some in posts for post in some])
            for error in errors:
                if is_usage_cap(error):
                    raise usage_cap(message_of(error))
                return f"X ends the stream: {redact(message_of(error))}"
        return None

    def _posts_of(self, line: bytes, item: dict[str, Any] | None, rule_ids: set[str]) -> list[Post]:
        """The post of a line, if a rule of ours matched it; what is no post is one with a problem."""
        if item is None:
            return [unreadable_post(line, SOURCE)]
        if "data" not in item:
            return [no_post(item, SOURCE)]
        matching = {str(rule.get("id")) for rule in item.get("matching_rules") or []}
        if matching & rule_ids:
            return posts_of_v2(item, SOURCE)
        self.passed_over[OTHER_RULES] += 1
        return []

    def _wait_after(self, connection: _Connection, told: str | None) -> tuple[float, str]:
        """Seconds until the next attempt, and why; raises what is no passing failure."""
        response = connection.response
        if response is None or response.ok or connection.problem:
            return self._failures.wait("network"), told or connection.problem or "X closed the stream"
        answer = json_object(response.content)
        if connection.status == CONFLICT:
            return self._failures.wait("http"), f"X does not stream: {redact(message_of(answer or {}))}"
        problem = self._api.problem_of(response, answer) or ""
        wait = self._failures.wait("limit" if connection.status == TOO_MANY_REQUESTS else "http")
        return max(wait, self._api.seconds_to_wait(response)), problem


class _Failures:
    """Failures in a row, of each kind, and the waits that X asks for after them."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def clear(self) -> None:
        self._counts.clear()

    def wait(self, kind: Literal["network", "http", "limit"]) -> float:
        """Count one more; returns the seconds to wait."""
        earlier = self._counts[kind]
        self._counts[kind] += 1
        if kind == "network":
            return min(0.25 * earlier, 16.0)
        return min(5.0 * 2 ** min(earlier, 6), 320.0) if kind == "http" else 60.0 * 2 ** min(earlier, 4)


class _Connection(threading.Thread):
    """One connection to the stream, read by this thread; a context manager that starts and ends it."""

    def __init__(self, connect: Callable[[], requests.Response]) -> None:
        super().__init__(name="X's stream", daemon=True)
        self.response: requests.Response | None = None
        self.problem: str | None = None
        self._connect = connect
        self._error: Exception | None = None
        self._lines: queue.Queue[bytes | None] = queue.Queue(QUEUE_LINES)
        self._stopped = threading.Event()

    def __enter__(self) -> _Connection:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self.response is not None:
            # Ends a read that waits. Errors say that there is no connection any more.
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                self.response.raw.shutdown()
        self.join(STEP_SECONDS)

    @property
    def status(self) -> int | None:
        """The HTTP status of X's answer, if there is one."""
        return None if self.response is None else self.response.status_code

    def batches(self) -> Iterator[list[bytes]]:
        """Lines as they come, the empty ones that only keep the connection alive included; at least every second.

        Ends with the connection; raises what is no failure of the network.
        """
        ended = False
        while not ended:
            batch: list[bytes | None] = []
            with contextlib.suppress(queue.Empty):
                batch.append(self._lines.get(timeout=STEP_SECONDS))
                while batch[-1] is not None and len(batch) < QUEUE_LINES:
                    batch.append(self._lines.get_nowait())
            ended = batch[-1:] == [None]
            yield [line for line in batch if line is not None]
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        """Read until the connection ends; what a cut connection leaves of a line is a line, too."""
        rest = b""
        try:
            with self._connect() as self.response:
                if not self.response.ok:
                    self.response.content  # noqa: B018  kept for the reader of `response`
                    return
                logger.info("connected to X's stream")
                for chunk in self.response.iter_content(READ_BYTES):
                    if self._stopped.is_set():  # while it connected
                        return
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        self._put(line.strip())
        except PASSING as error:
            self.problem = f"the stream broke off ({cause_of(error)})"
        except Exception as error:  # raised where somebody sees it
            self._error = error
        finally:
            if rest.strip():
                self._put(rest.strip())
            self._put(None)

    def _put(self, line: bytes | None) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                return self._lines.put(line, timeout=STEP_SECONDS)


def _is_error(item: dict[str, Any] | None) -> bool:
    return item is not None and "errors" in item and "data" not in item
