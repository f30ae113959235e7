"""A Mastodon server's timelines, taken from both ends, so that they can be gone on with.

The server gives pages of statuses, newest first. The position is the stretch that a crawl has:

* `newest`: the `id`, at this server, of its newest status. What is newer is asked for by `min_id`, which gives the page
  that follows immediately: the stretch grows without a gap.
* `oldest`: the `id` of its oldest status. What is older is asked for by `max_id`. None: there is nothing older.

A run first goes up from `newest`, then down from `oldest`. Statuses of other servers may come late, and get the ids of the
time at which they were made. So going up begins a minute below `newest`; what comes later still is missed.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from mastodon import (
    Mastodon,
    MastodonAPIError,
    MastodonError,
    MastodonNetworkError,
    MastodonRatelimitError,
)
from mastodon.errors import MastodonWarning

from data_prep.posts import Post
from data_prep.sources.live import Fetched
from data_prep.sources.mastodon import TOKEN_VARIABLE, MastodonSettings
from data_prep.sources.mastodon_posts import post_of_status
from data_prep.sources.post_fields import id_of
from data_prep.sources.social import in_languages
from data_prep.sources.waiting import Backoff, cause_of, wait_yielding
from launch.errors import InputError
from launch.scrub import redact

PAGE_STATUSES = 40
"""The most that servers give at once."""

REQUEST_SECONDS = 30
LONGEST_WAIT_SECONDS = 3600

REWIND_MILLISECONDS = 60_000
FIRST_SNOWFLAKE = 1 << 56
"""Smaller numbers are ids of a kind that does not tell the time. Others are milliseconds since 1970, shifted by 16 bits:
https://github.com/mastodon/mastodon/blob/main/lib/mastodon/snowflake.rb."""

logger = logging.getLogger("msb_ner")


class Timeline:
    """A server's public timeline, or that of a hashtag."""

    endless = False

    def __init__(self, server: Server) -> None:
        self.passed_over = server.passed_over
        self._server = server

    def fetch(self, position: dict[str, Any] | None) -> Iterator[Fetched]:
        """What is newer than the stretch of the position, then what is older. See the module's docstring."""
        if position and position["newest"]:
            min_id = rewound(position["newest"])
            while True:
                page = yield from self._server.page(min_id=min_id)
                if page:
                    min_id = ids_of(page)[0]
                    position = {**position, "newest": min_id}
                    yield Fetched(self._server.posts(page), position)
                # At the present, full pages could be waited for without end.
                if len(page) < PAGE_STATUSES // 2:
                    break
        else:
            page = yield from self._server.page()
            newest, *_, oldest = ids_of(page) * 2 or (None, None)
            position = {"newest": newest, "oldest": oldest}
            yield Fetched(self._server.posts(page), position)
        while position["oldest"]:
            page = yield from self._server.page(max_id=position["oldest"])
            position = {**position, "oldest": ids_of(page)[-1] if page else None}
            yield Fetched(self._server.posts(page), position)


def ids_of(statuses: Iterable[object]) -> list[str]:
    """The ids that statuses have at the server."""
    ids = (id_of(status.get("id")) for status in statuses if isinstance(status, dict))
    return [status_id for status_id in ids if status_id]


def rewound(status_id: str) -> str:
    """The id of a minute earlier, if it is one that tells the time."""
    if not status_id.isdecimal() or int(status_id) < FIRST_SNOWFLAKE:
        return status_id
    return str(int(status_id) - (REWIND_MILLISECONDS << 16))


class Server:
    """A Mastodon server, asked for the timeline that the settings name."""

    def __init__(
        self,
        settings: MastodonSettings,
        token: str | None,
        wait: Callable[[float], Iterator[None]] = wait_yielding,
    ) -> None:
        self.settings = settings
        self.token = token
        self.passed_over: Counter[str] = Counter()
        self._wait = wait
        self._backoff = Backoff()
        self._was_reached = False
        self._api = Mastodon(
            api_base_url=settings.address,
            access_token=token,
            ratelimit_method="throw",  # it would sleep where the caller cannot stop it
            request_timeout=REQUEST_SECONDS,
            user_agent="msb-ner",
        )

    def page(self, **bounds: str) -> Generator[Fetched, None, list[object]]:
        """A page of the timeline, newest first: no statuses, or some of which one at least has an id.

        Limits and failures are waited out, with a sign of life a second. InputError for what waiting does not mend, and
        for a server that cannot be reached at the beginning.
        """
        name = f"tag/{self.settings.tag}" if self.settings.tag else "public"
        whose = {} if self.settings.posts_of == "all" else {self.settings.posts_of: True}
        while True:
            if self._api.ratelimit_remaining == 0:
                yield from self.pause(self._seconds_to_reset())
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", MastodonWarning)  # of what an error then says
                    page = self._api.timeline(name, limit=PAGE_STATUSES, **whose, **bounds)
                if not isinstance(page, list) or (page and not ids_of(page)):
                    raise MastodonAPIError("no list of statuses")
            except MastodonError as error:
                problem, seconds = self._problem_of(error)
            else:
                self._was_reached = True
                self._backoff.reset()
                return page
            yield from self.wait_out(problem, self._backoff.delay(seconds))

    def posts(self, statuses: Iterable[object]) -> list[Post]:
        """The posts of statuses, without those in other languages than the settings name."""
        posts = [post_of_status(status, self.settings.host) for status in statuses]
        return in_languages(posts, self.settings.languages, self.passed_over)

    def streaming_address(self) -> str:
        """Where the server streams, which may be another host: `wss://HOST`."""
        try:
            host = urlsplit(self._api.instance_v2()["configuration"]["urls"]["streaming"]).netloc
        except (MastodonError, KeyError, TypeError, ValueError, AttributeError):  # before version 4, and other software
            host = ""
        protocol = "wss" if self.settings.address.startswith("https://") else "ws"
        return f"{protocol}://{host or self.settings.host}"

    def refusal(self, reason: str) -> InputError:
        """The error of a request that the server would refuse again."""
        missing = "" if self.token else " There is none now."
        return InputError(
            f"{self.settings.host} refuses: {redact(reason)}. Check --instance and the other settings, and the access "
            f"token in {TOKEN_VARIABLE} or --token_file, which a server may want.{missing}"
        )

    def wait_out(self, problem: str, seconds: float) -> Iterator[Fetched]:
        """Say what failed, and wait until it is to be tried again."""
        logger.warning("%s; trying again in %.1f s", problem, seconds)
        yield from self.pause(seconds)

    def pause(self, seconds: float) -> Iterator[Fetched]:
        """Wait, with a sign of life a second."""
        for _ in self._wait(seconds):
            yield Fetched()

    def _problem_of(self, error: MastodonError) -> tuple[str, float]:
        """What to say of a failure that can be waited out, and the seconds that the server asks for."""
        host = self.settings.host
        if isinstance(error, MastodonRatelimitError):
            self._was_reached = True
            return f"{host}'s limit of requests is used up", self._seconds_to_reset()
        if isinstance(error, MastodonNetworkError):
            problem = f"{host} cannot be reached ({cause_of(error)})"
            if not self._was_reached:
                raise InputError(f"{problem}. Check --instance and the connection.")
            return problem, 0.0
        self._was_reached = True
        status = error.args[1] if isinstance(error, MastodonAPIError) and len(error.args) > 2 else None
        if isinstance(status, int) and 400 <= status < 500 and status != 408:
            raise self.refusal(" ".join(str(part) for part in error.args[1:] if part))
        return f"{host} answers {status or 'something else than a list of statuses'}", 0.0

    def _seconds_to_reset(self) -> float:
        return min(max(0.0, (self._api.ratelimit_reset or 0) - time.time()), LONGEST_WAIT_SECONDS)
