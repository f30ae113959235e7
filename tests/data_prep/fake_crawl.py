"""`crawl.py` with one more source: a platform that numbers its posts, one made each minute since `FIRST_MADE_AT`.

    python fake_crawl.py fake --output POSTS

It prints how far it came, and `closed` when its iterator is closed.
"""

import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from data_prep import crawl
from data_prep.posts import WITHHELD, Post, PostImage
from data_prep.sources.live import Fetched, LiveSettings
from launch.errors import InputError
from launch.settings import NOT_IDENTITY

FIRST_MADE_AT = datetime(2026, 3, 1, tzinfo=timezone.utc)
BATCH = 7


@dataclass(frozen=True, kw_only=True)
class FakeSettings(LiveSettings):
    """Settings of a crawl of the fake."""

    query: str = "cats"
    """What to look for."""
    posts: int | None = field(default=None, metadata=NOT_IDENTITY)
    """How many posts there are; without end if null."""
    pause: float = field(default=0.0, metadata=NOT_IDENTITY)
    """Seconds after each batch."""
    fault: str | None = field(default=None, metadata=NOT_IDENTITY)
    """What goes wrong."""


class FakeSource:
    """Batches of seven posts, of which every tenth is withheld, between signs of life."""

    def __init__(self, settings: FakeSettings) -> None:
        self.settings = settings
        self.endless = settings.posts is None

    def fetch(self, position):
        first = position["next"] if position else 0
        end = self.settings.posts or sys.maxsize
        try:
            for number in range(first, end, BATCH):
                if self.settings.fault == "refuse" and number > first:
                    raise InputError("the key is no longer valid")
                if self.settings.fault == "deaf" and number > first + 10 * BATCH:
                    time.sleep(60)
                after = min(number + BATCH, end)
                print(after, flush=True)
                while self.settings.fault == "quiet":
                    time.sleep(0.01)
                    yield Fetched()
                yield Fetched([fake_post(n) for n in range(number, after)], {"next": after})
                time.sleep(self.settings.pause)
                yield Fetched()
        finally:
            print("closed", flush=True)


def fake_post(number: int) -> Post:
    return Post(
        id=str(number),
        text=f"post {number}",
        created_at=FIRST_MADE_AT + timedelta(minutes=number),
        source="fake",
        images=(PostImage(f"{number % 3}.png"),),
        problem=WITHHELD if number % 10 == 9 else None,
    )


def open_source(settings: FakeSettings) -> FakeSource:
    if settings.fault == "no package":
        raise ModuleNotFoundError("No module named 'fakeclient'", name="fakeclient")
    return FakeSource(settings)


def main(argv: list[str] | None = None) -> int:
    """`crawl.main`, with the source `fake`."""
    crawl.SOURCES["fake"] = crawl.Source("a fake", "FakeSettings", "for tests")
    sys.modules["data_prep.sources.fake"] = sys.modules[__name__]
    return crawl.main(argv)


if __name__ == "__main__":
    raise SystemExit(main())
