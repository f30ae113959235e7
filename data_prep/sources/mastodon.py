"""Posts from Mastodon: a server's public and hashtag timelines, and its stream.

    python data_prep/crawl.py mastodon --instance mastodon.social --endpoint hashtag --hashtag birds --output POSTS
    MASTODON_ACCESS_TOKEN=… python data_prep/crawl.py mastodon --instance mastodon.social --endpoint stream --output POSTS

A timeline looks back and ends; started again, it takes what is newer, then goes on looking back (`mastodon_timeline.py`).
The stream runs until it is stopped; started again, it first gets what it missed (`mastodon_stream.py`). Many servers show
their timelines without a key; streams want one. `mastodon_posts.py` says what becomes of a status.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from data_prep.sources.live import LiveSettings, LiveSource
from data_prep.sources.waiting import read_token, wait_yielding

TOKEN_VARIABLE = "MASTODON_ACCESS_TOKEN"


@dataclass(frozen=True, kw_only=True)
class MastodonSettings(LiveSettings):
    """Settings of a crawl of a Mastodon server. A key, where it wants one, is in MASTODON_ACCESS_TOKEN or `--token_file`;
    the scope `read:statuses` is enough."""

    instance: str
    """The server: `mastodon.social`, or its address."""
    endpoint: Literal["public", "hashtag", "stream"] = "public"
    """`public` is the timeline of all public posts that the server knows, `hashtag` that of a hashtag; `stream` follows
    either from now on."""
    hashtag: str | None = None
    """The hashtag, with `hashtag`, and if wanted with `stream`."""
    posts_of: Literal["all", "local", "remote"] = "all"
    """Whose posts: of all the server knows, of its own users, or of others."""
    languages: list[str] = field(default_factory=list)
    """Take posts only in these languages, as their authors' settings say: `[en]`, `[en, de]`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"(?:https?://)?[\w.-]+(?::\d+)?/?", self.instance):
            raise ValueError(f"instance is {self.instance!r}: not a server such as mastodon.social")
        if self.endpoint == "hashtag" and not self.hashtag:
            raise ValueError("hashtag is missing: the endpoint `hashtag` needs one")
        if self.endpoint == "public" and self.hashtag:
            raise ValueError("hashtag is for the endpoints `hashtag` and `stream`")
        if self.hashtag and not re.fullmatch(r"#?\w+", self.hashtag):
            raise ValueError(f"hashtag is {self.hashtag!r}: not one word")
        if self.endpoint == "stream" and self.hashtag and self.posts_of == "remote":
            raise ValueError("servers have no stream of a hashtag for posts of others' users only: leave posts_of out")

    @property
    def tag(self) -> str | None:
        """The hashtag without its `#`."""
        return self.hashtag.removeprefix("#") if self.hashtag else None

    @property
    def address(self) -> str:
        """Where the server is, with `https://` unless another protocol is named."""
        return (self.instance if "://" in self.instance else f"https://{self.instance}").rstrip("/")

    @property
    def host(self) -> str:
        """The server's name, and its port if it has one."""
        return urlsplit(self.address).netloc.lower()


def open_source(settings: MastodonSettings, wait: Callable[[float], Iterator[None]] = wait_yielding) -> LiveSource:
    """The timeline or stream that the settings ask for; InputError where its key cannot be read."""
    # Only here, since what they import is an extra that other crawls do without.
    from data_prep.sources.mastodon_stream import Stream
    from data_prep.sources.mastodon_timeline import Server, Timeline

    token = None
    if settings.token_file or os.environ.get(TOKEN_VARIABLE, "").strip():
        token = read_token(settings.token_file, TOKEN_VARIABLE, "Mastodon's access token")
    server = Server(settings, token, wait)
    return Stream(server) if settings.endpoint == "stream" else Timeline(server)
