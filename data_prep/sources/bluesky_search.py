"""Bluesky's search, walked backwards through time, so that it can be gone on with.

The server gives the newest posts first, in pages, up to some thousand posts (`cursor`). A *walk* goes from the newest post
down to a lower end, in as many such searches as it takes, each for the posts before the last one's oldest. Its position
says:

* `since`: the lower end. What is older is there from earlier walks, or was never wanted. None: as far as there is.
* `before`: where the walk has come to; None if there is no unfinished one. Only then does the other mean anything:
* `newest`: the newest post that the walk found.

A run that finds an unfinished walk finishes it first. Then, and in a run that finds none, it walks from the newest post
of all down to `since`. A finished walk's `newest` is the next one's `since`. The ends are times, by which
the server sorts: the posts' own, but never after the server's. Posts of the very millisecond of an end come twice, with
the same id, so that none is left out.

Plain `requests`, not the `atproto` package, which brings ten others for keys and binary formats: two procedures and one
query are needed.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import requests

from data_prep.posts import Post
from data_prep.sources.bearer_token import BearerToken
from data_prep.sources.bluesky import BlueskySettings
from data_prep.sources.bluesky_posts import post_of_view
from data_prep.sources.live import Fetched
from data_prep.sources.post_fields import moment_of
from data_prep.sources.social import in_languages, json_object
from data_prep.sources.waiting import Backoff, cause_of, wait_yielding
from launch.errors import InputError
from launch.scrub import redact, remember_secret

PAGE_POSTS = 100
PAGES_PER_SEARCH = 90
"""Pages after which a new search begins. The server ends one at about 10,000 posts."""

REQUEST_SECONDS = (10, 30)
"""How long a connection, and then silence on it, may take before a request has failed."""

LONGEST_WAIT_SECONDS = 24 * 3600
"""The longest window of the API's limits. A reset later than that is a mistake."""

logger = logging.getLogger("msb_ner")


class Search:
    """A search for the posts that the settings' ``query`` finds, in the languages that they name."""

    endless = False

    def __init__(self, settings: BlueskySettings, account: Account) -> None:
        self.passed_over: Counter[str] = Counter()
        self._settings = settings
        self._account = account

    def fetch(self, position: dict[str, Any] | None) -> Iterator[Fetched]:
        """The rest of an interrupted walk, if there is one, then what is newer. See the module's docstring."""
        since = _spelled(moment_of(self._settings.since))
        here = position or {"since": since, "before": None, "newest": None}
        if here["before"] is not None:
            here = yield from self._walk(here)
        yield from self._walk(here)

    def _walk(self, here: dict[str, Any]) -> Generator[Fetched, None, dict[str, Any]]:
        since, newest = here["since"], here["newest"]
        before = here["before"] or _spelled(moment_of(self._settings.before))
        goes_on = True
        while goes_on:
            search_before, cursor = before, None
            for _ in range(PAGES_PER_SEARCH):
                posts, cursor = yield from self._page(since=since, until=search_before, cursor=cursor)
                moments = [post.created_at for post in posts if post.created_at]
                if moments:
                    newest = max(newest or "", _spelled(moments[0]))
                    before = _spelled(moments[-1] + timedelta(milliseconds=1))
                posts = in_languages(posts, self._settings.languages, self.passed_over)
                yield Fetched(posts, {"since": since, "before": before, "newest": newest})
                if not cursor:
                    break
            goes_on = before is not None and (search_before is None or before < search_before)
        here = {"since": newest or since, "before": None, "newest": None}
        yield Fetched(position=here)
        return here

    def _page(self, **bounds: str | None) -> Generator[Fetched, None, tuple[list[Post], str | None]]:
        """The posts of a page, and the cursor of the next one, if there is one."""
        parameters = {"q": self._settings.query, "sort": "latest", "limit": PAGE_POSTS, **bounds}
        if len(self._settings.languages) == 1:  # the server takes no more
            parameters["lang"] = self._settings.languages[0]
        page = yield from self._account.ask("app.bsky.feed.searchPosts", parameters)
        views = page.get("posts")
        if not isinstance(views, list):
            raise InputError(f"{self._settings.service} gives no list of posts. Check --service.")
        posts = [post_of_view(view, self._settings.image_service) for view in views]
        return posts, page.get("cursor") if posts else None


class Account:
    """A Bluesky account, at the server that holds it: asks for what only accounts may ask."""

    def __init__(
        self, service: str, handle: str, password: str, wait: Callable[[float], Iterator[None]] = wait_yielding
    ) -> None:
        self._service = service.rstrip("/")
        self._login = {"identifier": handle.removeprefix("@"), "password": password}
        self._wait = wait
        self._backoff = Backoff()
        self._http = requests.Session()
        self._http.headers["User-Agent"] = "msb-ner"
        self._session: dict[str, str] | None = None
        self._was_reached = False
        self._free_at = 0.0

    def ask(self, query: str, parameters: dict[str, Any]) -> Generator[Fetched, None, dict[str, Any]]:
        """The answer to a query of the API, logging in where that is needed.

        Limits and failures are waited out, with a sign of life a second. InputError for what waiting does not mend.
        """
        while True:
            if self._session is None:
                yield from self._log_in()
            try:
                return (yield from self._call("GET", query, self._session["accessJwt"], params=parameters))
            except _Refused as refusal:
                if refusal.error != "ExpiredToken":
                    raise InputError(f"Bluesky refuses {query}: {refusal}. Check --query and the account.") from None
            yield from self._renew_session()

    def _log_in(self) -> Generator[Fetched, None, None]:
        try:
            self._session = yield from self._call("POST", "com.atproto.server.createSession", None, json=self._login)
        except _Refused as refusal:
            raise InputError(
                f"{self._service} refuses the log-in: {refusal}. Check the handle and the app password (made under "
                "Settings, Privacy and security, App passwords), and --service if the account is at another server."
            ) from None
        self._remember_session()

    def _renew_session(self) -> Generator[Fetched, None, None]:
        """A new access token for the expired one, without a log-in: the server allows few of those a day."""
        try:
            self._session = yield from self._call(
                "POST", "com.atproto.server.refreshSession", self._session["refreshJwt"]
            )
        except _Refused:
            self._session = None
        else:
            self._remember_session()

    def _remember_session(self) -> None:
        for name in ("accessJwt", "refreshJwt"):
            if not isinstance(self._session.get(name), str):
                raise InputError(f"{self._service} gives no {name}: not a Bluesky server. Check --service.")
            remember_secret(self._session[name])

    def _call(
        self, method: str, name: str, token: str | None, **options: Any
    ) -> Generator[Fetched, None, dict[str, Any]]:
        """The JSON object that a procedure or query answers; :class:`_Refused` if it would refuse again."""
        while True:
            yield from self._pause(self._free_at - time.monotonic())
            retry_after = 0.0
            try:
                # Redirects are not followed: no other server gets the password.
                response = self._http.request(
                    method,
                    f"{self._service}/xrpc/{name}",
                    auth=BearerToken(token),
                    timeout=REQUEST_SECONDS,
                    allow_redirects=False,
                    **options,
                )
            except requests.RequestException as error:
                problem = f"{self._service} cannot be reached ({cause_of(error)})"
                if not self._was_reached:
                    raise InputError(f"{problem}. Check the connection and --service.") from None
            else:
                self._was_reached = True
                answer = json_object(response.content)
                retry_after = _seconds_to_wait(response)
                if response.ok and answer is not None and not response.is_redirect:
                    self._backoff.reset()
                    self._free_at = time.monotonic() + retry_after
                    return answer
                if response.status_code != 429 and 300 <= response.status_code < 500:
                    raise _Refused(response.status_code, answer or {})
                problem = f"{self._service} answers {response.status_code} to {name}"
            seconds = self._backoff.delay(retry_after)
            logger.warning("%s; trying again in %.1f s", problem, seconds)
            yield from self._pause(seconds)

    def _pause(self, seconds: float) -> Iterator[Fetched]:
        for _ in self._wait(seconds):
            yield Fetched()


class _Refused(Exception):
    """The server refuses a call, and would again."""

    def __init__(self, status: int, answer: dict[str, Any]) -> None:
        self.error = str(answer.get("error") or "")
        said = ": ".join(str(answer[key]) for key in ("error", "message") if answer.get(key))
        super().__init__(redact(f"{status} {said}".strip()).rstrip("."))


def _seconds_to_wait(response: requests.Response) -> float:
    """Seconds until the server takes the next request: until its limit is reset, where that is used up."""
    headers = response.headers
    if response.status_code != 429 and headers.get("ratelimit-remaining") != "0":
        return 0.0
    try:
        if "retry-after" in headers:
            seconds = int(headers["retry-after"])
        else:  # a time, by the server's own clock; ours may be wrong
            now = parsedate_to_datetime(headers["date"]).timestamp() if "date" in headers else time.time()
            seconds = int(headers["ratelimit-reset"]) - now
    except (KeyError, ValueError):
        return 0.0
    return min(max(0.0, seconds), LONGEST_WAIT_SECONDS)


def _spelled(moment: datetime | None) -> str | None:
    """As the API takes moments, in milliseconds: such texts sort as the moments do."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z") if moment else None
