"""The store of a crawl: no post twice, none lost, whatever happens between two writes."""

import json
import os
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep import post_store
from data_prep.layout import read_split, with_reason
from data_prep.post_store import OTHER_VERSION, STORED_BEFORE, HashSet, PostStore
from data_prep.posts import POSTS_FEATURES, WITHHELD, Post, PostImage
from launch.errors import InputError

MADE_AT = datetime(2026, 3, 1, 12, 30, tzinfo=timezone.utc)


def post(number: int | str, **fields) -> Post:
    return Post(f"{number}", **({"text": f"post {number} 😀", "source": "x", "created_at": MADE_AT} | fields))


def open_store(folder, shard_posts=10, **options) -> PostStore:
    folder.mkdir(exist_ok=True)
    return PostStore(folder, "Posts", shard_posts, **options)


def fill(folder, *posts: Post, position=None, **options) -> PostStore:
    with open_store(folder, **options) as store:
        for each in posts:
            store.add(each)
        store.commit(position)
    return store


def ids(folder) -> list[str]:
    """Ids of all shards' posts, finished or not."""
    return [i for shard in sorted((folder / "data").glob("*.parquet")) for i in pq.read_table(shard)["id"].to_pylist()]


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_posts_come_back_as_they_were(tmp_path):
    image = PostImage("https://example.org/a.jpg", alt_text="a cat")
    full = post(1, lang="en", author_id="7", images=(image,))
    fill(tmp_path / "d", full, post(2, created_at=None), post(3, problem=WITHHELD, text=""))
    assert read_split(tmp_path / "d", "train", POSTS_FEATURES).to_list() == [full.row(), post(2, created_at=None).row()]
    rejected = datasets.load_dataset(str(tmp_path / "d"), "rejected", cache_dir=str(tmp_path / "cache"))["rejected"]
    assert rejected.features == with_reason(POSTS_FEATURES)
    assert rejected.to_list() == [{**post(3, text="").row(), "reason": WITHHELD}]
    loaded = datasets.load_dataset(str(tmp_path / "d"), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.features == POSTS_FEATURES
    assert loaded.to_list() == read_split(tmp_path / "d", "train", POSTS_FEATURES).to_list()
    assert read_split(tmp_path / "d", "train", POSTS_FEATURES, ["id"]).to_list() == [{"id": "1"}, {"id": "2"}]


def test_no_post_is_stored_twice_in_one_run_or_another(tmp_path):
    gone = post(2, problem=WITHHELD)
    store = fill(tmp_path / "d", post(1), gone, post(1), gone, post(1, source="bluesky"))
    assert (store.rows.taken, store.rows.kept) == (5, 2)
    assert store.rows.rejected == {WITHHELD: 1, STORED_BEFORE: 2}
    store = fill(tmp_path / "d", post(1), post(2), post(3))
    assert ids(tmp_path / "d") == ["1", "1", "3"]
    assert (store.rows.taken, store.rows.kept) == (8, 3)
    assert store.rows.rejected == {WITHHELD: 1, STORED_BEFORE: 4}
    store.rows.check()
    assert len(read_split(tmp_path / "d", "train", POSTS_FEATURES)) == 3
    assert "| train | 3 |" in (tmp_path / "d" / "README.md").read_text()


def test_shards_are_full_but_for_the_last_and_named_by_what_they_are(tmp_path):
    with open_store(tmp_path / "d", shard_posts=4) as store:
        for number in range(10):
            store.add(post(number, problem=None if number % 2 else WITHHELD))
            store.commit({"next": number + 1})
        assert names(tmp_path / "d" / "data") == ["train-00000.parquet"]
        assert store.rows.kept == 5 and ids(tmp_path / "d") == ["1", "3", "5", "7"]
        unfinished = datasets.load_dataset(str(tmp_path / "d"), cache_dir=str(tmp_path / "cache"))
        assert len(unfinished["train"]) == 4, "what is on disk can be read while the crawl goes on"
    assert names(tmp_path / "d" / "data") == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert names(tmp_path / "d" / "rejected")[0] == "rejected-00000-of-00002.parquet"
    with open_store(tmp_path / "d", shard_posts=4) as store:
        assert names(tmp_path / "d" / "data") == ["train-00000.parquet", "train-00001.parquet"]
        assert store.position == {"next": 10}
        for number in range(11, 15):
            store.add(post(number))
    rows = [pq.read_metadata(shard).num_rows for shard in sorted((tmp_path / "d" / "data").iterdir())]
    assert rows == [4, 4, 1]
    fill(tmp_path / "d", post(15), shard_posts=3)  # shards that were larger stay as they are
    assert ids(tmp_path / "d") == ["1", "3", "5", "7", "9", "11", "12", "13", "14", "15"]


def test_time_alone_writes_a_shard_and_small_ones_are_joined(tmp_path):
    with open_store(tmp_path / "d", shard_posts=100, shard_seconds=1e-9) as store:
        for number in range(5):
            store.add(post(number))
            store.commit({"next": number + 1})
            assert ids(tmp_path / "d") == [f"{n}" for n in range(number + 1)]
            assert json.loads((tmp_path / "d" / post_store.STATE_NAME).read_text())["position"] == {"next": number + 1}
        assert names(tmp_path / "d" / "data") == ["train-00000.parquet"]


@pytest.mark.parametrize("order", [["1", "2", "3"], ["3", "1"], ["2", "3", "1"]])
def test_the_newest_version_of_an_edited_post_is_kept_of_those_not_yet_written(tmp_path, order):
    versions = {"1": ("1",), "2": ("1", "2"), "3": ("1", "2", "3")}
    store = fill(tmp_path / "d", *(post(number, versions=versions[number]) for number in order))
    assert ids(tmp_path / "d") == ["3"]
    assert store.rows.rejected == {OTHER_VERSION: len(order) - 1}
    for number, reason in (("1", OTHER_VERSION), ("2", OTHER_VERSION), ("3", STORED_BEFORE)):
        before = store.rows.rejected[reason]
        store = fill(tmp_path / "d", post(number))
        assert ids(tmp_path / "d") == ["3"] and store.rows.rejected[reason] == before + 1
    store = fill(tmp_path / "d", post("4", versions=("1", "2", "3", "4")))
    assert ids(tmp_path / "d") == ["3"], "what is on disk stays"
    store.rows.check()


def test_a_version_that_cannot_be_used_replaces_none(tmp_path):
    fill(tmp_path / "d", post("1"), post("2", versions=("1", "2"), problem=WITHHELD))
    assert ids(tmp_path / "d") == ["1"]


class Killed(BaseException):
    """Ends a run at a step as a kill would: nothing comes after it."""


@pytest.mark.parametrize("done", [False, True])
def test_a_kill_at_any_step_costs_the_unwritten_posts_and_no_more(tmp_path, monkeypatch, done):
    """Each renaming is a step, ``done`` before the kill or not: first names again, shards, state, card, last names.

    A finished data set is opened again, and killed as it grows: at step 1, in another folder at step 2, and so on.
    """
    steps, kill_at, safe = 0, 0, 0

    def step(real):
        def counted(*names):
            nonlocal steps
            steps += 1
            if steps != kill_at or done:
                real(*names)
            if steps == kill_at:
                raise Killed
            return names[1]

        return counted

    def crawl(folder, posts=16):
        nonlocal safe
        with open_store(folder, shard_posts=5, shard_seconds=1e-9) as store:
            for start in range((store.position or {"next": 0})["next"], posts, 3):
                end = min(start + 3, posts)
                for number in range(start, end):
                    store.add(post(number, problem=WITHHELD if number % 4 == 3 else None))
                store.commit({"next": end})
                safe = end
        return store

    monkeypatch.setattr(os, "replace", step(os.replace))
    monkeypatch.setattr(Path, "rename", step(Path.rename))
    for last_step in range(1, 100):
        folder = tmp_path / f"{last_step}"
        kill_at = 0
        crawl(folder, posts=9)
        steps, kill_at = 0, last_step
        try:
            crawl(folder)
            break
        except Killed:
            on_disk = ids(folder)
            assert len(set(on_disk)) == len(on_disk)
            assert {f"{n}" for n in range(safe) if n % 4 != 3} <= set(on_disk)
        store = crawl(folder)
        assert ids(folder) == [f"{n}" for n in range(16) if n % 4 != 3]
        assert (store.rows.taken, store.rows.kept) == (16, 12) and store.rows.rejected == {WITHHELD: 4}
        assert store.position == {"next": 16}
        assert names(folder / "data") == [f"train-0000{n}-of-00003.parquet" for n in range(3)]
        assert names(folder / "rejected") == ["rejected-00000-of-00001.parquet"]
    assert last_step > 20


def test_an_error_on_the_way_leaves_what_was_written(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_store(tmp_path / "d") as store:
        store.add(post(1))
        store.commit({"next": 1})
        raise KeyboardInterrupt
    assert not (tmp_path / "d" / "data").exists() and not list((tmp_path / "d").iterdir())


def test_shards_that_are_missing_and_broken_states_are_refused(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        fill(folder, *map(post, range(12)))
    (tmp_path / "a" / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(InputError, match="2 of 12 rows are missing. Start over"):
        open_store(tmp_path / "a")
    for broken in ("{", "{}", "[1]", '{"rows": 3}'):
        (tmp_path / "b" / post_store.STATE_NAME).write_text(broken)
        with pytest.raises(InputError, match="crawl_state.json: not the state of a crawl"):
            open_store(tmp_path / "b")


class Downloads:
    """Stands in for the downloader: its futures are settled when the test says so."""

    def __init__(self) -> None:
        self.submitted: list[tuple[PostImage, Future]] = []

    def submit(self, image: PostImage) -> Future:
        future = Future()
        self.submitted.append((image, future))
        return future

    def settle(self) -> None:
        for number, (image, future) in enumerate(self.submitted):
            future.set_result(replace(image, problem="404") if number % 2 else replace(image, path=f"images/{number}"))


def test_photos_are_begun_at_once_and_awaited_with_the_shard(tmp_path):
    downloads = Downloads()
    images = (PostImage("a"), PostImage("b"), PostImage("c"))
    with open_store(tmp_path / "d", photos=downloads) as store:
        store.add(post(1, images=images))
        store.add(post(2, images=images, problem=WITHHELD))
        store.add(post(1, images=images))
        assert [image.url for image, _ in downloads.submitted] == ["a", "b", "c"], "only of posts that are kept"
        downloads.settle()
    assert store.images == {"downloaded": 2, "404": 1}
    stored = read_split(tmp_path / "d", "train", POSTS_FEATURES)[0]["images"]
    assert [(image["path"], image["problem"]) for image in stored] == [
        ("images/0", None), (None, "404"), ("images/2", None),
    ]  # fmt: skip
    card = (tmp_path / "d" / "README.md").read_text()
    assert "downloaded: 2" in card and "404: 1" in card
    with open_store(tmp_path / "d", photos=downloads) as store:
        store.add(post(3, images=images[:1]))
        downloads.submitted[-1][1].set_result(replace(images[0], path="images/0"))
    assert store.images == {"downloaded": 3, "404": 1}, "counts of all runs"


def test_hashes_are_found_again_after_they_were_merged(monkeypatch):
    monkeypatch.setattr(HashSet, "LATEST", 10)
    keys = np.random.default_rng(0).integers(0, 2**64, size=105, dtype=np.uint64).tolist()
    keys[:2] = [0, 2**64 - 1]
    found = HashSet()
    for number, key in enumerate(keys):
        assert key not in found
        found.add(key)
        assert all(key in found for key in keys[: number + 1])
