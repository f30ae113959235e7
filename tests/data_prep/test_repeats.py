import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import repeats
from data_prep.near_duplicates import NearDuplicates
from data_prep.repeats import BANDS, SIGNATURE_HASHES, NearRepeats, WordSets, bands_of

WORDS = st.sampled_from("a b c d e f g h i j k l".split())
TEXTS = st.lists(st.lists(WORDS, min_size=1, max_size=12), max_size=40)


def word_sets(texts):
    hashes = [zlib.crc32(word.encode()) << 20 for text in texts for word in text]
    return WordSets.from_lists(np.array(hashes, np.uint64), np.cumsum([0, *map(len, texts)]))


def signatures(texts):
    """MinHash in a line: the least of each word's draws, which the word seeds."""
    draws = {
        w: np.random.default_rng(zlib.crc32(w.encode())).integers(0, 2**32, SIGNATURE_HASHES) for t in texts for w in t
    }
    rows = [np.min([draws[word] for word in text], axis=0) for text in texts]
    return np.array(rows, np.uint32).reshape(len(texts), SIGNATURE_HASHES)


def repeated(near, texts, bands, block, asked=None):
    """Which texts nearly came before, as the stage finds it, a block at a time."""
    found = np.zeros(len(texts), bool)
    asked = np.ones(len(texts), bool) if asked is None else asked
    for start in range(0, len(texts), block):
        rows = slice(start, start + block)
        matches = near.look_up(word_sets(texts[rows]), bands[rows], asked[rows])
        came = matches.came_before.copy()
        for row in sorted(matches.earlier):
            came[row] |= any(not came[other] for other in matches.earlier[row])
        near.keep(matches, ~came & asked[rows])
        found[rows] = came
    return found


def plainly(texts, similarity, asked=None):
    index = NearDuplicates(texts, similarity)
    found = np.zeros(len(texts), bool)
    asked = np.ones(len(texts), bool) if asked is None else asked
    for row, text in enumerate(texts):
        found[row] = asked[row] and any(
            other < row and asked[other] and not found[other] for other, _ in index.find_all(text)
        )
    return found


@given(TEXTS, st.sampled_from([0.5, 0.75, 0.8, 1.0]), st.integers(1, 41), st.randoms())
@settings(deadline=None)
def test_equals_the_exact_search_where_all_are_candidates(texts, similarity, block, random):
    asked = np.array([random.random() < 0.9 for _ in texts], bool)
    bands = np.tile(np.arange(BANDS, dtype=np.uint64), (len(texts), 1))  # all in the same buckets
    found = repeated(NearRepeats(similarity), texts, bands, block, asked)
    assert found.tolist() == plainly(texts, similarity, asked).tolist()


def test_real_signatures_miss_next_to_nothing():
    random = np.random.default_rng(0)
    vocabulary = [f"w{number}" for number in range(3000)]
    texts = [list(random.choice(vocabulary, 18, replace=False)) for _ in range(1500)]
    for _ in range(1500):  # two words of 18 are others: a similarity of 0.8
        text = list(texts[random.integers(1500)])
        text[:2] = random.choice(vocabulary, 2)
        texts.append(text)
    found = repeated(NearRepeats(0.8), texts, bands_of(signatures(texts)), 256)
    exact = plainly(texts, 0.8)
    assert not (found & ~exact)[:1500].any()
    assert exact.sum() > 1400
    assert found.sum() >= 0.985 * exact.sum()


def test_buckets_hold_what_was_added_when_the_table_grows(monkeypatch):
    monkeypatch.setattr(repeats, "_FEWEST_SLOTS_BITS", 4)
    monkeypatch.setattr(repeats, "_PAIRS_AT_ONCE", 50)
    random = np.random.default_rng(1)
    buckets, added = repeats._Buckets(), np.zeros((0, BANDS), np.uint64)
    for size in (1, 0, 7, 30, 200):
        bands = random.integers(0, 40, (size, BANDS), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        buckets.add(bands)
        added = np.concatenate([added, bands])
        asked = added[random.permutation(len(added))[:20]]
        pairs = {(int(r), int(p)) for rows, posts in buckets.sharing(asked) for r, p in zip(rows, posts, strict=True)}
        shared = (asked[:, None, :, None] == added[None, :, None, :]).any(axis=(2, 3))
        assert pairs >= set(zip(*map(list, np.nonzero(shared)), strict=True))


@pytest.mark.parametrize("posts", [0, 3])
def test_a_block_without_posts_to_look_up(posts):
    near = NearRepeats(0.8)
    none = np.zeros(posts, bool)
    matches = near.look_up(word_sets([["a"]] * posts), np.zeros((posts, BANDS), np.uint64), none)
    near.keep(matches, none)
    assert not matches.came_before.any() and not matches.earlier


def test_more_posts_than_are_sorted_at_once(monkeypatch):
    texts = [["a", "b", "a"], ["c"], ["b", "a"], [], ["d", "e"]]
    whole = word_sets(texts)
    monkeypatch.setattr(repeats, "_SORTED_AT_ONCE", 2)
    parts = word_sets(texts)
    assert parts.hashes.tolist() == whole.hashes.tolist() and parts.starts.tolist() == whole.starts.tolist()
    assert whole.sizes.tolist() == [2, 1, 2, 0, 2]
    assert [bin(sketch).count("1") > 0 for sketch in whole.sketches()] == [True, True, True, False, True]
