"""Bluesky's Jetstream: all posts as they are made, as plain JSON over a WebSocket.

The position is the time, in microseconds, that the server gave the last event (`time_us`). It holds at all servers of
Jetstream, more or less: each connection begins five seconds before it, and a post that comes again has the same id. The
servers keep events for about a day; what an older position leaves out is told in a warning.

Events that make no post are counted in `passed_over`: changes of posts, which are rare, and deletions, which are *not*
applied to what is stored; and those of accounts and handles. Jetstream does not show labels, so nothing tells here whose
author asks not to be shown to people without an account.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

from websockets.exceptions import WebSocketException

from data_prep.posts import Post
from data_prep.sources.bluesky import BlueskySettings
from data_prep.sources.bluesky_posts import COLLECTION, SOURCE, post_of_commit
from data_prep.sources.live import Fetched
from data_prep.sources.messages import message_batches, open_websocket
from data_prep.sources.social import in_languages, json_object, unreadable_post
from data_prep.sources.waiting import Backoff, cause_of, wait_yielding
from launch.errors import InputError

REWIND_US = 5_000_000
GAP_US = 60_000_000
"""Events so far apart have others between them, which the server does not have any more."""
SILENCE_SECONDS = 60.0
"""The stream has many events each second: after longer silence, the server is left for the next one."""

logger = logging.getLogger("msb_ner")


class Jetstream:
    """All posts from now on, or from a position on, in the languages that the settings name."""

    endless = True

    def __init__(
        self,
        settings: BlueskySettings,
        wait: Callable[[float], Iterator[None]] = wait_yielding,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self.passed_over: Counter[str] = Counter()
        self._settings = settings
        self._wait = wait
        self._silence_seconds = silence_seconds

    def fetch(self, position: dict[str, Any] | None) -> Iterator[Fetched]:
        """Posts as they come, without end. InputError if none of the addresses can be reached at the beginning."""
        time_us: int | None = position["time_us"] if position else None
        backoff = Backoff()
        failures: int | None = 0  # before the first success
        for address in itertools.cycle(self._settings.jetstream):
            try:
                with open_websocket(_url(address, time_us)) as connection:
                    logger.info("connected to %s", address)
                    failures = None
                    begins_at = time_us
                    for messages in message_batches(connection, self._silence_seconds):
                        events = [(message, json_object(message)) for message in messages]
                        times = [event["time_us"] for _, event in events if event and _has_time(event)]
                        if times:
                            _warn_of_gap(begins_at, times[0])
                            begins_at, time_us = None, times[-1]
                            backoff.reset()
                        posts = in_languages(self._posts(events), self._settings.languages, self.passed_over)
                        yield Fetched(posts, {"time_us": time_us} if time_us else None)
            except (OSError, WebSocketException) as error:
                problem = f"{address}: {cause_of(error)}"
            if failures is not None:
                failures += 1
                if failures == len(self._settings.jetstream):
                    raise InputError(f"Jetstream cannot be reached ({problem}). Check the connection and --jetstream.")
            seconds = backoff.delay()
            logger.warning("%s; connecting again in %.1f s", problem, seconds)
            for _ in self._wait(seconds):
                yield Fetched()

    def _posts(self, events: list[tuple[bytes, dict[str, Any] | None]]) -> list[Post]:
        posts = []
        for message, event in events:
            commit = event.get("commit") if event else None
            if event is None:
                posts.append(unreadable_post(message, SOURCE))
            elif not isinstance(commit, dict) or commit.get("collection") != COLLECTION:
                self.passed_over["not about a post"] += 1
            elif commit.get("operation") != "create":
                self.passed_over[f"{commit.get('operation')} of a post"] += 1
            else:
                posts.append(post_of_commit(event, self._settings.image_service))
        return posts


def _url(address: str, time_us: int | None) -> str:
    parameters = {"wantedCollections": COLLECTION}
    if time_us is not None:
        parameters["cursor"] = str(max(0, time_us - REWIND_US))
    return f"{address}?{urlencode(parameters)}"


def _has_time(event: dict[str, Any]) -> bool:
    return isinstance(event.get("time_us"), int)


def _warn_of_gap(begins_at: int | None, first: int) -> None:
    if begins_at is not None and first - begins_at > GAP_US:
        minutes = (first - begins_at) / 60e6
        logger.warning("Jetstream gives nothing of %.0f minutes after the last event: it does not keep them", minutes)
