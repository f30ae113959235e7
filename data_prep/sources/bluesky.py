"""Posts from Bluesky: Jetstream, the stream of all posts, and search.

    python data_prep/crawl.py bluesky --endpoint jetstream --languages '[en]' --limit 100000 --output POSTS
    BLUESKY_HANDLE=… BLUESKY_APP_PASSWORD=… python data_prep/crawl.py bluesky --endpoint search --query rain --output POSTS

Jetstream needs no account and runs until it is stopped; started again, it goes on where it was
(`bluesky_jetstream.py`). Search needs an account, looks back in time and ends; started again, it takes what is newer
(`bluesky_search.py`). `bluesky_posts.py` says what becomes of a record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from data_prep.sources.live import LiveSettings, LiveSource
from data_prep.sources.post_fields import moment_of
from data_prep.sources.waiting import read_token, wait_yielding
from launch.settings import NOT_IDENTITY

HANDLE_VARIABLE = "BLUESKY_HANDLE"
PASSWORD_VARIABLE = "BLUESKY_APP_PASSWORD"

JETSTREAM_ADDRESSES = [
    "wss://jetstream2.us-east.bsky.network/subscribe",
    "wss://jetstream1.us-east.bsky.network/subscribe",
    "wss://jetstream2.us-west.bsky.network/subscribe",
    "wss://jetstream1.us-west.bsky.network/subscribe",
]
"""The public ones: https://github.com/bluesky-social/jetstream#public-instances."""


@dataclass(frozen=True, kw_only=True)
class BlueskySettings(LiveSettings):
    """Settings of a crawl of Bluesky. A search's account is in BLUESKY_HANDLE and BLUESKY_APP_PASSWORD, or `--token_file`
    has the handle in its first line and the app password in its second."""

    endpoint: Literal["jetstream", "search"] = "jetstream"
    """`jetstream` follows all posts as they are made, `search` looks for those there are."""
    query: str | None = None
    """What to search for: words, "a phrase", #tag, from:handle, -without."""
    languages: list[str] = field(default_factory=list)
    """Take posts only whose first language, as their author's app says, is one of these: `[en]`, `[en, de]`."""
    since: str | None = None
    """Search for posts made at this moment or later: ISO 8601, such as `2026-11-30T12:00:00Z`."""
    before: str | None = None
    """Search for posts made before this moment only."""
    jetstream: list[str] = field(default_factory=lambda: list(JETSTREAM_ADDRESSES), metadata=NOT_IDENTITY)
    """Addresses of Jetstream. When one fails, the next one is taken."""
    service: str = field(default="https://bsky.social", metadata=NOT_IDENTITY)
    """Server of the account, for searches."""
    image_service: str = "https://cdn.bsky.app"
    """Server that the photos' addresses name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.endpoint == "search" and not (self.query and self.query.strip()):
            raise ValueError("query is empty: say what to search for")
        if self.endpoint == "jetstream" and (self.query or self.since or self.before):
            raise ValueError("query, since and before are for searches; Jetstream gives all posts from now on")
        if not self.jetstream or not all(address.startswith(("wss://", "ws://")) for address in self.jetstream):
            raise ValueError("jetstream takes addresses that begin with wss://")
        if not self.service.startswith(("https://", "http://")):
            raise ValueError(f"service is {self.service!r}: it has to begin with https://")
        for name in ("since", "before"):
            if getattr(self, name) is not None and moment_of(getattr(self, name)) is None:
                raise ValueError(f"{name} is {getattr(self, name)!r}: not a moment such as 2026-11-30T12:00:00Z")


def open_source(settings: BlueskySettings, wait: Callable[[float], Iterator[None]] = wait_yielding) -> LiveSource:
    """The stream or search that the settings ask for; InputError where the account of a search is missing."""
    # Only here, since what they import is an extra that other crawls do without.
    from data_prep.sources.bluesky_jetstream import Jetstream
    from data_prep.sources.bluesky_search import Account, Search

    if settings.endpoint == "jetstream":
        return Jetstream(settings, wait)
    handle = read_token(settings.token_file, HANDLE_VARIABLE, "The handle of a Bluesky account")
    password = read_token(settings.token_file, PASSWORD_VARIABLE, "The account's app password", line=2)
    return Search(settings, Account(settings.service, handle, password, wait))
