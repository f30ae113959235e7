"""Posts from X: recent search, full-archive search, and the filtered stream of its API v2.

    X_BEARER_TOKEN=… python data_prep/crawl.py x --query "(rain OR snow) lang:en -is:retweet" --output POSTS

Each takes queries of X's language (https://docs.x.com/x-api/posts/search/integrate/build-a-query). A search ends when it
has what there is; started again, it takes what is newer (`x_search.py` says how). The stream runs until it is stopped,
and gives what is posted meanwhile (`x_stream.py`). Requests, rate limits and errors are the matter of `x_api.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Literal

from data_prep.sources.live import LiveSettings, LiveSource
from data_prep.sources.post_fields import moment_of
from data_prep.sources.waiting import read_token
from launch.settings import NOT_IDENTITY

TOKEN_VARIABLE = "X_BEARER_TOKEN"

FIRST_MOMENT = datetime(2010, 11, 5, tzinfo=timezone.utc)
"""Older posts have ids that do not tell their time."""

MOST_PER_PAGE = {"recent": 100, "all": 500, "stream": 500}
"""By endpoint; the stream has no pages."""


@dataclass(frozen=True, kw_only=True)
class XSettings(LiveSettings):
    """Settings of a crawl of X. The key is the app's bearer token, in X_BEARER_TOKEN or `--token_file`."""

    query: str | list[str]
    """What to look for, in X's query language. The stream takes several rules, too: `'["cats has:images", "dogs"]'`."""
    endpoint: Literal["recent", "all", "stream"] = "recent"
    """`recent` searches the last seven days, `all` the full archive, `stream` follows what is posted from now on."""
    since: str | None = None
    """Take posts made at this moment or later: ISO 8601, such as `2026-11-30` or `2026-11-30T12:00:00Z`. Without it,
    `recent` goes back seven days and `all` thirty. Not for the stream."""
    before: str | None = None
    """Take posts made before this moment only. Not for the stream."""
    page_size: int = field(default=100, metadata=NOT_IDENTITY)
    """Posts a request: 10 to 100, for `all` to 500. X counts, and may charge, each post it gives."""
    address: str = field(default="https://api.x.com", metadata=NOT_IDENTITY)
    """Where the API is."""

    def __post_init__(self) -> None:
        """Refuse what X would, and what does not go together."""
        super().__post_init__()
        queries = [self.query] if isinstance(self.query, str) else self.query
        if not queries or not all(query.strip() for query in queries):
            raise ValueError("query is empty: say what to look for")
        if self.endpoint != "stream" and len(queries) > 1:
            raise ValueError("a search takes one query: join them by OR, or use --endpoint stream")
        if self.endpoint == "stream" and (self.since or self.before):
            raise ValueError("since and before are for searches: the stream gives what is posted from now on")
        since, before = _moment("since", self.since), _moment("before", self.before)
        if since and before and since >= before:
            raise ValueError(f"since ({self.since}) is not before `before` ({self.before})")
        if not 10 <= self.page_size <= MOST_PER_PAGE[self.endpoint]:
            raise ValueError(f"page_size is {self.page_size}: 10 to {MOST_PER_PAGE[self.endpoint]} can be asked for")
        if not self.address.startswith(("https://", "http://")):
            raise ValueError(f"address is {self.address!r}: it has to begin with https:// or http://")


def open_source(
    settings: XSettings, clock: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep
) -> LiveSource:
    """The search or stream that the settings ask for; InputError where its key is missing."""
    # Only here, since what they import is an extra that other crawls do without.
    from data_prep.sources.x_api import XApi
    from data_prep.sources.x_search import Search
    from data_prep.sources.x_stream import FilteredStream

    token = read_token(settings.token_file, TOKEN_VARIABLE, "X's bearer token")
    api = XApi(settings.address, token, clock, sleep)
    queries = [settings.query] if isinstance(settings.query, str) else settings.query
    if settings.endpoint == "stream":
        return FilteredStream(api, queries)
    since, before, until = _moment("since", settings.since), _moment("before", settings.before), settings.until_moment
    if until is not None and until.timestamp() < clock():  # ask for, and pay for, nothing that the crawl would not take
        until += timedelta(seconds=1)  # X cuts fractions of the seconds off the times it tells
        before = until if before is None else min(before, until)
    return Search(api, settings.endpoint, queries[0], since, before, settings.page_size)


def _moment(name: str, text: str | None) -> datetime | None:
    """The moment in UTC, where the text gives no other zone; ValueError if it is none or too early."""
    moment = moment_of(text)
    if text is None:
        return None
    if moment is None:
        raise ValueError(f"{name} is {text!r}: not a moment such as 2026-11-30T12:00:00Z")
    if moment < FIRST_MOMENT:
        raise ValueError(f"{name} is {text}: posts before {FIRST_MOMENT:%Y-%m-%d} have ids that do not tell their time")
    return moment
