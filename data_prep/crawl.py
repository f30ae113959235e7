"""Collect posts from a platform, or from files, into a `posts` data set.

    python data_prep/crawl.py x --query "(rain OR snow) lang:en -is:retweet" --output data/posts
    python data_prep/crawl.py files --input data/dumps --output data/posts

A platform is asked until it has no more, until --limit, --until or --duration, or until Ctrl-C: each leaves a finished
data set, and the same command adds to it. After a crash, too, it goes on where the posts on disk end.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from data_prep.post_store import STATE_NAME, Downloader, PostStore
from data_prep.sources.files import FilesSettings, Reading, files_passed_over, post_files, read_posts
from data_prep.sources.live import CrawlSettings, LiveSettings, LiveSource
from launch.dataset_stage import run_dataset_stage
from launch.errors import InputError
from launch.stage import Rows, Stage


class Source(NamedTuple):
    """Where posts come from: a module of `data_prep/sources/` with a class of settings."""

    title: str
    settings: str
    about: str


SOURCES = {
    "x": Source("X", "XSettings", "API v2 of X: recent search, full-archive search, filtered stream"),
    "bluesky": Source("Bluesky", "BlueskySettings", "Bluesky: the stream of all public posts, or a search"),
    "mastodon": Source("Mastodon", "MastodonSettings", "a Mastodon server: public and hashtag timelines, and streams"),
    "files": Source("files", "FilesSettings", "JSON of X's API, CSV, Parquet, or text with a post a line"),
}

EXAMPLES = 5
MADE_AFTER_UNTIL = "made after --until"

QUIET_SECONDS = 30.0
"""A stream that gives no post for so long has no more of before."""


def main(argv: list[str] | None = None) -> int:
    """Run the crawl of the source that the first argument names."""
    argv = sys.argv[1:] if argv is None else argv
    name = _parse_source(argv[:1])
    source = SOURCES[name]
    try:
        with _missing_packages_named():
            module = importlib.import_module(f"data_prep.sources.{name}")
    except InputError as error:
        print(f"data_prep/crawl {name}: error: {error}", file=sys.stderr)
        return 2
    settings_class = getattr(module, source.settings)
    if name == "files":
        return run_dataset_stage(settings_class, crawl_files, _inputs_of_files, argv[1:], subcommand=name)

    def crawl(settings: LiveSettings, stage: Stage) -> None:
        crawl_live(settings, stage, source.title, module.open_source)

    return run_dataset_stage(settings_class, crawl, lambda _: {}, argv[1:], subcommand=name, grows=True)


def crawl_live(
    settings: LiveSettings, stage: Stage, platform: str, open_source: Callable[[LiveSettings], LiveSource]
) -> None:
    """Take what a platform gives until a setting, a signal or the platform ends it.

    An InputError on the way (a key that is refused) ends it, too: it is raised when all posts are safe.
    """
    refusal = None
    with (
        _first_signal() as signals,
        _downloader(settings, stage.folder) as photos,
        PostStore(
            stage.folder, f"Posts from {platform}", settings.shard_posts, settings.shard_seconds, photos
        ) as store,
    ):
        if store.rows.kept:
            stage.log(f"going on after {store.rows.kept} posts")
        try:
            ended_by = _take(settings, stage, open_source, store, signals)
        except InputError as error:
            ended_by, refusal = "refusal", error
        if store.rows.taken:
            stage.log(f"ended by {ended_by}: finishing the data set")
    stage.facts |= {"ended_by": ended_by, "position": store.position}
    _report(stage, store)
    if refusal:
        raise refusal
    if not store.rows.kept:
        raise InputError(
            f"no posts to keep (ended by {ended_by}; {store.rows.taken} were taken). Ask for others, or wait."
        )


def crawl_files(settings: FilesSettings, stage: Stage) -> None:
    """Take all posts of the files."""
    files, reading = post_files(settings.input), Reading()
    folder = settings.input if settings.input.is_dir() else None
    total = sum(file.stat().st_size for file in files)
    with (
        _downloader(settings, stage.folder) as photos,
        PostStore(stage.folder, "Posts from files", settings.shard_posts, photos=photos) as store,
        stage.progress(None, "reading", total, unit="B", unit_scale=True) as bar,
    ):
        for file in files:
            for post in read_posts(file, settings.columns, folder, reading):
                store.add(post)
                store.commit()
                bar.update(reading.bytes_read - bar.n)
    (stage.folder / STATE_NAME).unlink(missing_ok=True)  # there is nothing to go on with
    others = [*(files_passed_over(folder, files) if folder else []), *reading.passed_over]
    stage.facts |= {"files": len(files), "files_passed_over": len(others), "examples_passed_over": others[:EXAMPLES]}
    if others:
        stage.log(f"not files of posts, passed over: {len(others)}, such as {', '.join(others[:EXAMPLES])}")
    _report(stage, store)
    if not store.rows.kept:
        raise InputError.at(settings.input, None, f"no posts to keep of {store.rows.taken}", "Give other files.")


def _take(
    settings: LiveSettings,
    stage: Stage,
    open_source: Callable[[LiveSettings], LiveSource],
    store: PostStore,
    signals: list[signal.Signals],
) -> str:
    """Store what the platform gives after the store's position; returns what ended it."""
    ends = _Ends(settings, store.rows, signals)
    if ended_by := ends.reached():
        return ended_by
    with _missing_packages_named():
        source = open_source(settings)
    made_at, all_taken, last_post_at = None, True, time.monotonic()
    with (
        closing(source.fetch(store.position)) as batches,
        stage.progress(None, "crawling", total=settings.limit, unit="post", initial=store.rows.kept) as bar,
    ):
        for batch in batches:
            for post in batch.posts:
                if ends.limit_reached():
                    all_taken = False
                    break
                if ends.until and post.created_at and post.created_at > ends.until:
                    store.pass_over(MADE_AFTER_UNTIL)
                    all_taken &= post.created_at > _now()  # which cannot be: nobody will want it later
                    continue
                store.add(post)
                made_at = post.created_at or made_at
            # Where posts are left for a later run, the position stays before them.
            store.commit(batch.position if all_taken else None)
            bar.set_postfix_str(f"at {made_at}", refresh=False)
            bar.update(store.rows.kept - bar.n)
            last_post_at = time.monotonic() if batch.posts else last_post_at
            is_quiet = time.monotonic() - last_post_at > QUIET_SECONDS
            if ended_by := ends.reached(has_caught_up=source.endless and (is_quiet or not all_taken)):
                break
        else:
            ended_by = "source"
    if made_at:
        stage.facts["last_post_made_at"] = made_at.isoformat(timespec="seconds")
    if passed_over := getattr(source, "passed_over", None):
        stage.facts["passed_over_in_the_last_run"] = dict(passed_over.most_common())
    return ended_by


class _Ends:
    """What ends a crawl, but for the platform itself."""

    def __init__(self, settings: LiveSettings, rows: Rows, signals: list[signal.Signals]) -> None:
        self.until = settings.until_moment
        self._limit = settings.limit
        self._rows = rows
        self._signals = signals
        duration = settings.duration_seconds
        self._deadline = None if duration is None else time.monotonic() + duration
        self._began_late = self.until is not None and self.until <= _now()

    def limit_reached(self) -> bool:
        return self._limit is not None and self._rows.kept >= self._limit

    def reached(self, has_caught_up: bool = False) -> str | None:
        """What ends the crawl now. One that begins after ``until`` fetches what was made before, until it ``has_caught_up``."""
        if self._signals:
            return self._signals[0].name
        if self.limit_reached():
            return "limit"
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "duration"
        if self.until is not None and self.until <= _now() and (has_caught_up or not self._began_late):
            return "until"
        return None


def _report(stage: Stage, store: PostStore) -> None:
    stage.rows = rows = store.rows
    if rows.taken:
        rejected = dict(rows.rejected.most_common())
        stage.log(f"{rows.taken} posts taken, {rows.kept} kept; rejected: {rejected or 'none'}")
    if store.images:
        stage.facts["photos"] = dict(store.images.most_common())
        stage.log(f"photos: {stage.facts['photos']}")


def _downloader(settings: CrawlSettings, folder: Path) -> AbstractContextManager[Downloader | None]:
    if not settings.images:
        return nullcontext()
    from data_prep.photos import PhotoDownloader

    return PhotoDownloader(folder, settings.image_workers, settings.images_from)


@contextmanager
def _first_signal() -> Iterator[list[signal.Signals]]:
    """A list for the first SIGINT or SIGTERM that comes; a second one does what it would do without this."""
    received: list[signal.Signals] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def receive(number: int, _: object) -> None:
        received.append(signal.Signals(number))
        restore()
        os.write(2, b"\nstopping; once more interrupts at once\n")  # a log may be in the middle of a line

    for number in handlers:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        restore()


@contextmanager
def _missing_packages_named() -> Iterator[None]:
    """Make an InputError of an optional package that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"the package {error.name} is missing. Install it: pip install 'msb-ner[crawl]'") from None


def _inputs_of_files(settings: FilesSettings) -> dict[str, Path | None]:
    return {"posts": settings.input, "images": settings.images_from if settings.images else None}


def _parse_source(argv: list[str]) -> str:
    """The source's name; without one, or with another, the process ends with code 2 and the list."""
    sources = "\n".join(f"  {name:<9} {source.about}" for name, source in SOURCES.items())
    parser = argparse.ArgumentParser(
        prog="crawl.py",
        usage="crawl.py SOURCE [--help] --output POSTS ...",
        description=__doc__,
        epilog=f"sources:\n{sources}\n\n`crawl.py SOURCE --help` tells the settings of one.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", choices=SOURCES, metavar="SOURCE", help=f"one of {', '.join(SOURCES)}")
    return parser.parse_args(argv).source


def _now() -> datetime:
    return datetime.now(timezone.utc)


if __name__ == "__main__":
    raise SystemExit(main())
