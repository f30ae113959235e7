"""What a live source is: something that gives posts in batches, and can go on from where a batch ended."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from data_prep.posts import Post
from launch.dataset_stage import DatasetStageSettings
from launch.schedule import budget_in_seconds
from launch.settings import NOT_IDENTITY


@dataclass(frozen=True, kw_only=True)
class CrawlSettings(DatasetStageSettings):
    """Settings of every crawl."""

    images: bool = False
    """Download the posts' photos (no videos) into the data set's folder."""
    images_from: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Folder that images named by a `file://` address or a path may come from; without it only http(s) is followed."""
    image_workers: int = field(default=16, metadata=NOT_IDENTITY)
    """How many images are downloaded at once."""
    shard_posts: int = field(default=10_000, metadata=NOT_IDENTITY)
    """Posts after which a shard is written to disk."""

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing. A derived class that checks more calls this, too."""
        for name in ("image_workers", "shard_posts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")


@dataclass(frozen=True, kw_only=True)
class LiveSettings(CrawlSettings):
    """Settings of a crawl that asks a platform."""

    limit: int | None = field(default=None, metadata=NOT_IDENTITY)
    """Stop when the data set holds this many posts, those of earlier runs included."""
    until: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Stop at this moment, and take no post made after it: ISO 8601, such as `2026-12-01T12:00:00Z`."""
    duration: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Stop after this time: `90s`, `30m`, `2h`, `1d`."""
    token_file: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """File with the platform's key in its first line, instead of the environment variable."""
    shard_seconds: float = field(default=60.0, metadata=NOT_IDENTITY)
    """Seconds after which a shard is written even if it is not full: what a crash can cost."""

    def __post_init__(self) -> None:
        """Refuse ends that cannot be read, or that lie before the beginning."""
        super().__post_init__()
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit: {self.limit} is not positive")
        if self.shard_seconds <= 0:
            raise ValueError(f"shard_seconds: {self.shard_seconds} is not positive")
        try:
            self.until_moment  # noqa: B018 (read for its errors)
        except ValueError:
            raise ValueError(f"until: {self.until!r} is not a moment such as 2026-12-01T12:00:00Z") from None
        try:
            self.duration_seconds  # noqa: B018
        except ValueError:
            raise ValueError(f"duration: {self.duration!r} is not a time such as 90s, 30m, 2h or 1d") from None

    @property
    def until_moment(self) -> datetime | None:
        """``until``, aware; without an offset it is in UTC."""
        if self.until is None:
            return None
        moment = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", self.until.strip()))
        return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)

    @property
    def duration_seconds(self) -> float | None:
        """``duration`` in seconds."""
        return None if self.duration is None else budget_in_seconds(self.duration)


@dataclass(frozen=True)
class Fetched:
    """Some posts, in the order in which the source gave them, and how to go on after them."""

    posts: list[Post] = field(default_factory=list)
    """Unusable ones included, with their ``problem``. May be empty: a sign of life of a quiet stream."""
    position: dict[str, Any] | None = None
    """A JSON object that :meth:`LiveSource.fetch` takes to go on after these posts; None: as before."""


class LiveSource(Protocol):
    """A platform's API, asked in one way (a search, a timeline, a stream).

    What it is given and makes no posts of, such as deletions, it counts in a Counter ``passed_over``, if there is any.
    """

    endless: bool
    """Whether it is a stream, which gives posts in about the order in which they are made, and never ends by itself."""

    def fetch(self, position: dict[str, Any] | None) -> Iterator[Fetched]:
        """The posts after ``position`` (of an earlier :class:`Fetched`), or from the beginning; ends when there are no more.

        A stream never ends by itself, and yields at least once a second, posts or not, so that the caller can stop it
        by closing the iterator. Rate limits, disconnects and server errors are waited out here, also yielding once a
        second; what waiting cannot mend (a wrong key, a forbidden query) is an InputError.
        """
        ...
