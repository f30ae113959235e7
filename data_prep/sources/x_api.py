"""Asking the X API v2: its address and key, rate limits, what can be waited out, and what cannot.

Requests go through `tweepy`, whose clients know the endpoints and their parameters. How they are sent is our own
(:class:`_Client`), since tweepy fixes the host, waits for an answer without end, sleeps where the caller cannot stop it,
and writes the key to its debug log.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Generator
from datetime import datetime, timezone
from typing import Any

import requests
import tweepy

from data_prep.sources.bearer_token import BearerToken
from data_prep.sources.live import Fetched
from data_prep.sources.social import json_object
from data_prep.sources.waiting import Backoff, cause_of, wait_yielding
from launch.errors import InputError
from launch.scrub import redact

FIELDS = {
    "tweet_fields": [
        "attachments",
        "author_id",
        "created_at",
        "edit_history_tweet_ids",
        "lang",
        "note_tweet",
        "referenced_tweets",
        "withheld",
    ],
    "expansions": ["attachments.media_keys", "author_id", "referenced_tweets.id"],
    "media_fields": ["alt_text", "type", "url"],
    "user_fields": ["protected", "withheld"],
}
"""What is asked for with each post, under tweepy's names of the parameters."""

SOURCE = "x"
"""What the posts have as their ``source``."""

STREAM_ROUTE = "/2/tweets/search/stream"
ARCHIVE_ROUTE = "/2/tweets/search/all"

REQUEST_SECONDS = (10, 30)
"""How long a connection, and then silence on it, may take before a request has failed."""

PASSING = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)
"""What a request raises when the network or the server failed."""

LONGEST_WAIT_SECONDS = 24 * 3600
"""The longest window of X's request limits. A reset later than that is a mistake."""

_LIMITS = ("x-rate-limit", "x-app-limit-24hour", "x-user-limit-24hour")

_REMEDIES = {
    400: "Mend what it names; https://docs.x.com/x-api/posts/search/integrate/build-a-query explains queries.",
    401: "Check the bearer token in X_BEARER_TOKEN or --token_file.",
    402: "Add credits to the account in X's developer console; the same command then goes on.",
    403: "The key's app has no access to this: see its project and access level in X's developer console.",
}
_ARCHIVE_REMEDY = "The full archive needs a higher access level (X's developer console); --endpoint recent needs less."

logger = logging.getLogger("msb_ner")


class Refused(InputError):
    """X refused a request, and would again; ``status`` is the answer's HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class XApi:
    """X's API under a key. ``clock`` gives the time since the epoch, ``sleep`` waits: seconds, both.

    InputError if the key cannot be one.
    """

    def __init__(
        self,
        address: str,
        token: str,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not re.fullmatch(r"[!-~]+", token):  # HTTP would refuse it, with an error that quotes it
            raise InputError("X's bearer token has spaces or letters that no key has. Copy it from X again.")
        self.client = _Client(address, token)
        self.clock = clock
        self._sleep = sleep
        self._free_at: dict[str, float] = {}

    def ask(
        self, call: Callable[..., requests.Response], **parameters: Any
    ) -> Generator[Fetched, None, dict[str, Any]]:
        """The JSON object that ``call``, a method of :attr:`client`, gets from X; it has a `meta`.

        Rate limits, server errors and network failures are waited out, with a sign of life a second. :class:`Refused`
        for what waiting does not mend.
        """
        backoff = Backoff()
        while True:
            yield from self._wait_for_limit(call.__name__)
            try:
                response = call(**parameters)
            except PASSING as error:
                yield from self.wait(backoff.delay(), f"no answer from X ({cause_of(error)})")
                continue
            answer = json_object(response.content)
            problem = self.problem_of(response, answer)
            limit_seconds = self.seconds_to_wait(response)
            if problem is None:
                self._free_at[call.__name__] = self.clock() + limit_seconds
                return answer
            yield from self.wait(backoff.delay(limit_seconds), problem)

    def open_stream(self, silence_seconds: float) -> requests.Response:
        """The filtered stream's answer, its body unread; silence of ``silence_seconds`` on it raises one of PASSING."""
        parameters = {name.replace("_fields", ".fields"): ",".join(fields) for name, fields in FIELDS.items()}
        return self.client.send(
            "GET", STREAM_ROUTE, params=parameters, stream=True, timeout=(REQUEST_SECONDS[0], silence_seconds)
        )

    def problem_of(self, response: requests.Response, answer: dict[str, Any] | None) -> str | None:
        """Why an answer has to be waited out; None if it is as wanted. :class:`Refused` if waiting is no use."""
        if response.ok:
            # All answers have a `meta`. Without it, a cut-off one would look like a search's last page.
            return None if isinstance((answer or {}).get("meta"), dict) else "X's answer is not what it should be"
        status = response.status_code
        message = message_of(answer or {}) or response.reason
        if is_usage_cap(answer or {}):
            raise usage_cap(message)
        if status in (408, 429) or status >= 500:
            return f"X answers {status}: {redact(message)}"
        remedy = _ARCHIVE_REMEDY if status == 403 and ARCHIVE_ROUTE in response.url else _REMEDIES.get(status)
        raise Refused(
            f"X refuses the request ({status}): {redact(message).rstrip('.')}. {remedy or 'Check --address.'}", status
        )

    def seconds_to_wait(self, response: requests.Response) -> float:
        """Seconds until X takes the next request, by the answer's headers: `Retry-After`, or limits that are used up."""
        headers = response.headers
        seconds = [_number(headers.get("retry-after"))]
        for limit in _LIMITS:
            reset = _number(headers.get(f"{limit}-reset"))
            if reset and headers.get(f"{limit}-remaining", "0") == "0":
                seconds.append(reset - self.clock() + 1)  # resets are told in whole seconds
        return min(max(0.0, *seconds), LONGEST_WAIT_SECONDS)

    def wait(self, seconds: float, why: str | None = None) -> Generator[Fetched, None, None]:
        """Wait, with a sign of life a second; ``why`` is logged."""
        if why is not None:
            logger.warning("%s; trying again in %.1f s", why, seconds)
        for _ in wait_yielding(seconds, clock=self.clock, sleep=self._sleep):
            yield Fetched()

    def _wait_for_limit(self, name: str) -> Generator[Fetched, None, None]:
        seconds = self._free_at.get(name, 0.0) - self.clock()
        if seconds > 0:
            until = datetime.fromtimestamp(self._free_at[name], timezone.utc)
            logger.info("X's limit of requests is used up; waiting until %s UTC", until.strftime("%H:%M:%S"))
            yield from self.wait(seconds)


def message_of(answer: dict[str, Any]) -> str:
    """What X says of the errors in an answer or in an item of a stream; empty if it says nothing."""
    texts = []
    for problem in _problems(answer):
        details = problem.get("details")
        text = problem.get("message") or problem.get("detail") or problem.get("title")
        texts += details if isinstance(details, list) and details else [text]
    return "; ".join(" ".join(str(text).split()) for text in texts if text)


def is_usage_cap(answer: dict[str, Any]) -> bool:
    """Whether an answer or an item of a stream says that the plan's posts for the month, or day, are used up."""
    return any("usage-capped" in str(problem.get("type")) for problem in _problems(answer))


def usage_cap(message: str) -> InputError:
    """The error of a used-up plan, which may last for weeks and so is not waited out."""
    return InputError(
        f"X gives this account no more posts in this period: {redact(message).rstrip('.')}. "
        "The same command goes on when the next period begins, or after the plan is raised in X's developer console."
    )


class _Client(tweepy.Client, tweepy.StreamingClient):
    """tweepy's methods for searches and for the stream's rules, sent to an address of ours with a time limit."""

    def __init__(self, address: str, token: str) -> None:
        super().__init__(token, return_type=requests.Response)
        self._address = address.rstrip("/")
        self.session.headers["User-Agent"] = self.user_agent
        self.session.auth = BearerToken(token)

    def request(
        self,
        method: str,
        route: str,
        params: dict[str, str] | None = None,
        json: dict[str, Any] | None = None,
        user_auth: bool = False,
    ) -> requests.Response:
        """What all of tweepy's methods call; ``user_auth`` is of no use with a bearer token."""
        return self.send(method, route, params=params, json=json, timeout=REQUEST_SECONDS)

    def send(self, method: str, route: str, **options: Any) -> requests.Response:
        """One request, with the options of `requests`."""
        return self.session.request(method, self._address + route, **options)


def _problems(answer: dict[str, Any]) -> list[dict[str, Any]]:
    errors = answer.get("errors")
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) and errors else [answer]


def _number(text: str | None) -> float:
    """The number in a header; 0 if it has none."""
    return float(text) if text is not None and text.isdecimal() else 0.0
