"""Where a crawl keeps its posts: a `posts` data set that grows, holds no post twice, and outlives a kill at any moment."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from data_prep.growing_dataset import GrowingDatasetWriter
from data_prep.layout import REJECTED
from data_prep.posts import POSTS_FEATURES, Post, PostImage
from launch.errors import InputError
from launch.files import write_json_whole
from launch.settings import to_plain
from launch.stage import Rows

STATE_NAME = "crawl_state.json"

STORED_BEFORE = "stored before"
OTHER_VERSION = "another version of a stored post"
"""Why a post was counted, and not stored."""

DOWNLOADED = "downloaded"

ABOUT = (
    "Texts are whole and as they were posted, HTML entities decoded. The config `rejected` holds the posts that cannot be "
    "used, with the reason; posts that were stored before are only counted."
)


class Downloader(Protocol):
    """What fetches photos: :class:`data_prep.photos.PhotoDownloader`."""

    def submit(self, image: PostImage) -> Future[PostImage]:
        """The image with its file, or with a problem, some time later."""
        ...


class PostStore:
    """A growing `posts` data set in ``folder``, with `crawl_state.json`: how far the crawl came.

        with PostStore(folder, "Posts", shard_posts=10_000) as store:
            for fetched in source.fetch(store.position):
                for post in fetched.posts:
                    store.add(post)
                store.commit(fetched.position)

    Posts go to disk when :meth:`commit` finds ``shard_posts`` of them, or ``shard_seconds`` gone by, and when the context
    is left without an error. The state is written after them; what it does not know is removed when the store is opened
    again. So a kill costs at most the posts that were not on disk, and the source gives these again.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        shard_posts: int,
        shard_seconds: float | None = None,
        photos: Downloader | None = None,
    ) -> None:
        self._state_file = folder / STATE_NAME
        self._title = title
        self._shard_posts = shard_posts
        self._shard_seconds = shard_seconds
        self._photos = photos
        self._state = _State.read(self._state_file)
        self._writer = GrowingDatasetWriter(folder, POSTS_FEATURES, shard_posts, self._state.on_disk)
        self._stored = HashSet()
        for table in self._writer.read_flushed(["source", "id"]):
            for source, post_id in zip(table["source"].to_pylist(), table["id"].to_pylist(), strict=True):
                self._stored.add(_hash(source, post_id))
        self._unwritten: list[_Unwritten] = []
        self._places: dict[int, int] = {}  # in `_unwritten`, by the hashes of all ids of the posts there
        self._written_at = time.monotonic()

    def __enter__(self) -> PostStore:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        if exception_type is None:
            self._write()
            self._write_card()
        self._writer.__exit__(exception_type)

    @property
    def position(self) -> dict[str, Any] | None:
        """How the source goes on; None at the beginning."""
        return self._state.position

    @property
    def rows(self) -> Rows:
        """Posts taken, kept and rejected, those of earlier runs included."""
        return self._state.rows

    @property
    def images(self) -> Counter[str]:
        """Photos of the posts on disk, where they were wanted, by what became of them: `downloaded`, or the problem."""
        return self._state.images

    def add(self, post: Post) -> None:
        """Keep a post, or reject it for its ``problem``.

        One of the same source and id as an earlier one, of this run or another, is only counted. So is another version of
        an edited post, whereupon a newer one takes the place of a post that is not yet on disk.
        """
        hashes = [_hash(post.source, post_id) for post_id in dict.fromkeys((post.id, *post.versions))]
        place = next((self._places[key] for key in hashes if key in self._places), None)
        if place is not None or any(key in self._stored or key in self._state.other_versions for key in hashes):
            earlier = None if place is None else self._unwritten[place].post
            is_same = hashes[0] in self._stored or (earlier is not None and earlier.id == post.id)
            self.pass_over(STORED_BEFORE if is_same else OTHER_VERSION)
            if earlier is None or not _is_newer(post, earlier):
                return
            self._unwritten[place] = self._begin(hashes[0], post)
        else:
            place = len(self._unwritten)
            self._unwritten.append(self._begin(hashes[0], post))
            self.rows.taken += 1
            if post.problem is None:
                self.rows.kept += 1
            else:
                self.rows.rejected[post.problem] += 1
        self._places |= dict.fromkeys(hashes, place)

    def pass_over(self, reason: str) -> None:
        """Count a post that is not stored."""
        self.rows.taken += 1
        self.rows.rejected[reason] += 1

    def commit(self, position: dict[str, Any] | None = None) -> None:
        """Note that all posts before ``position`` were added (None: as before), and write them if it is time."""
        if position is not None:
            self._state.position = position
        is_full = len(self._unwritten) >= self._shard_posts
        if is_full or (self._shard_seconds and time.monotonic() >= self._written_at + self._shard_seconds):
            self._write()

    def _begin(self, key: int, post: Post) -> _Unwritten:
        wanted = post.images if self._photos and post.problem is None else ()
        return _Unwritten(key, post, [self._photos.submit(image) for image in wanted])

    def _write(self) -> None:
        self._written_at = time.monotonic()
        for _, post, downloads in self._unwritten:
            if downloads:
                post = dataclasses.replace(post, images=tuple(download.result() for download in downloads))
                self.images.update(image.problem or DOWNLOADED for image in post.images)
            if post.problem is None:
                self._writer.add("train", post.row())
            else:
                self._writer.reject(post.row(), post.problem)
        for key, place in self._places.items():
            if key == self._unwritten[place].key:
                self._stored.add(key)
            else:
                self._state.other_versions.add(key)
        self._writer.flush()
        self._state.on_disk = {split: self._writer.rows(split) for split in ("train", REJECTED)}
        if any(self._state.on_disk.values()):
            self._state.write(self._state_file)
        if self._unwritten:
            self._write_card()
        self._unwritten, self._places = [], {}

    def _write_card(self) -> None:
        if self.rows.kept:  # a card needs columns
            reasons = {f"rejected, {reason}": count for reason, count in self.rows.rejected.most_common()}
            photos = {f"photos, {outcome}": count for outcome, count in self.images.most_common()}
            facts = {"posts taken": self.rows.taken, "kept": self.rows.kept, **reasons, **photos}
            self._writer.write_card(self._title, facts, ABOUT)


class HashSet:
    """A set of 64-bit hashes in 8 bytes each, but for the latest ones.

    Two of n posts have the same hash, and one of them is lost, with probability n²/2⁶⁵: 3e-8 for a million posts.
    """

    LATEST = 500_000

    def __init__(self) -> None:
        self._sorted = np.empty(0, dtype=np.uint64)
        self._latest: set[int] = set()

    def __contains__(self, key: int) -> bool:
        if key in self._latest:
            return True
        place = self._sorted.searchsorted(np.uint64(key))
        return bool(place < len(self._sorted) and self._sorted[place] == key)

    def add(self, key: int) -> None:
        """Put a hash in."""
        self._latest.add(key)
        if len(self._latest) >= self.LATEST:
            latest = np.fromiter(self._latest, dtype=np.uint64, count=len(self._latest))
            self._sorted = np.concatenate([self._sorted, np.sort(latest)])
            self._sorted.sort(kind="stable")  # merges two sorted parts in one pass
            self._latest = set()


@dataclass
class _State:
    """What `crawl_state.json` holds, as of the posts that are on disk."""

    position: dict[str, Any] | None = None
    rows: Rows = field(default_factory=Rows)
    on_disk: dict[str, int] = field(default_factory=dict)
    """Rows by split."""
    images: Counter[str] = field(default_factory=Counter)
    other_versions: set[int] = field(default_factory=set)
    """Hashes of the ids of edited posts under which they are not stored."""

    @classmethod
    def read(cls, file: Path) -> _State:
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            rows = Rows(values["rows"]["taken"], values["rows"]["kept"], Counter(values["rows"]["rejected"]))
            images, other_versions = Counter(values["images"]), set(values["other_versions"])
            return cls(values["position"], rows, dict(values["on_disk"]), images, other_versions)
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError) as error:
            remedy = "Start over with --resume never --overwrite true."
            raise InputError.at(file, None, f"not the state of a crawl ({error!r})", remedy) from None

    def write(self, file: Path) -> None:
        write_json_whole(file, to_plain(self) | {"other_versions": sorted(self.other_versions)})


class _Unwritten(NamedTuple):
    """A post that is not yet on disk, and what will be its images."""

    key: int
    """The hash of its source and id."""
    post: Post
    downloads: list[Future[PostImage]]


def _is_newer(post: Post, earlier: Post) -> bool:
    """Whether a post is a later version of another one, and both can be used."""
    older = (*post.versions, post.id)[: (*post.versions, post.id).index(post.id)]
    return post.problem is None and earlier.problem is None and earlier.id in older


def _hash(source: str, post_id: str) -> int:
    return int.from_bytes(blake2b(f"{source}\0{post_id}".encode(), digest_size=8).digest(), "big")
