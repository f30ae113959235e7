"""Finding posts that nearly say what one before them said, while they pass by in order.

Nearly: the sets of words have a Jaccard similarity of at least t. Candidates share a band of their MinHash signatures
(Broder 1997; locality-sensitive hashing: Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3), and
are then compared in full: what is found is right, and of pairs at 0.8 one in 300 is missed, of more alike ones fewer.

Work goes a block of posts at a time, in whole arrays. Kept of each post are hashes, no text: of its words and of its
bands, some 250 bytes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BANDS, ROWS_OF_BAND = 11, 4
"""Two posts of similarity s share a band with probability 1 - (1 - s^4)^11: 99.7 % at 0.8, 25 % at 0.4.

Longer bands, and more of them, give fewer candidates (18 of 6: 7 % at 0.4), but comparing costs less than computing them.
"""
SIGNATURE_HASHES = BANDS * ROWS_OF_BAND
BLOCK_POSTS = 2048
"""Posts that are looked up together: at the most 2 million pairs of them, were they all alike."""

_MULTIPLIERS = np.random.default_rng(0).integers(1, 2**63, SIGNATURE_HASHES, dtype=np.uint64) | np.uint64(1)
_ROUNDING = 1e-9
_PAIRS_AT_ONCE = 1 << 20
_SORTED_AT_ONCE = 1 << 16
"""A number below this fits above the 48 bits of a word's hash."""
_FEWEST_SLOTS_BITS = 20
_ENTRIES_OF_SLOT = 2


@dataclass(frozen=True)
class WordSets:
    """The words of posts, as hashes: those of post i, each once and sorted, at ``hashes[starts[i]:starts[i + 1]]``."""

    hashes: np.ndarray
    """uint64, below 2^48."""
    starts: np.ndarray
    """int64, one more than there are posts."""

    @classmethod
    def from_lists(cls, hashes: np.ndarray, offsets: np.ndarray) -> WordSets:
        """From a uint64 hash of each word, with those of post i at ``hashes[offsets[i]:offsets[i + 1]]``."""
        parts, sizes = [], np.zeros(len(offsets) - 1, np.int64)
        for start in range(0, len(sizes), _SORTED_AT_ONCE):
            ends = offsets[start : start + _SORTED_AT_ONCE + 1]
            keys = _numbered(hashes[ends[0] : ends[-1]] >> np.uint64(16), np.diff(ends))
            keys.sort()
            keys = keys[np.diff(keys, prepend=~np.uint64(0)) != 0]
            parts.append(keys & np.uint64(2**48 - 1))
            counts = np.bincount((keys >> np.uint64(48)).astype(np.int64), minlength=len(ends) - 1)
            sizes[start : start + len(counts)] = counts
        return cls(np.concatenate(parts) if parts else np.zeros(0, np.uint64), _starts(sizes))

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> np.ndarray:
        """How many words each post has."""
        return np.diff(self.starts)

    def sizes_of(self, posts: np.ndarray) -> np.ndarray:
        """How many words some posts have, without a look at the others."""
        return self.starts[posts + 1] - self.starts[posts]

    def sketches(self) -> np.ndarray:
        """64 bits for each post, of which each word sets one: two sets differ by as many words as bits, or more."""
        bits = np.uint64(1) << (self.hashes & np.uint64(63))
        sketches = np.zeros(len(self), np.uint64)
        filled = np.flatnonzero(self.sizes)
        if len(filled):
            sketches[filled] = np.bitwise_or.reduceat(bits, self.starts[filled])
        return sketches

    def of(self, posts: np.ndarray) -> WordSets:
        """The sets of some posts, in their order."""
        sizes = self.sizes_of(posts)
        return WordSets(self.hashes[_ranges(self.starts[posts], sizes)], _starts(sizes))


class NearRepeats:
    """The posts that were kept, by their words.

    >>> near = NearRepeats(0.8)
    >>> words = WordSets.from_lists(np.array([5, 6, 7, 5, 6, 7], np.uint64) << np.uint64(16), np.array([0, 3, 6]))
    >>> matches = near.look_up(words, np.tile(np.arange(BANDS, dtype=np.uint64), (2, 1)), np.array([True, True]))
    >>> matches.came_before, matches.earlier
    (array([False, False]), {1: {0}})
    >>> near.keep(matches, np.array([True, False]))
    """

    def __init__(self, similarity: float) -> None:
        self.similarity = similarity
        self._buckets = _Buckets()
        self._hashes, self._sketches = _Growing(np.uint64), _Growing(np.uint64)
        self._starts = _Growing(np.int64)
        self._starts.extend(np.zeros(1, np.int64))

    def look_up(self, words: WordSets, bands: np.ndarray, asked: np.ndarray) -> NearMatches:
        """What those posts of a block that are asked for (bool) are similar to. ``bands``: as `bands_of` gives them."""
        kept, sketches = WordSets(self._hashes.values, self._starts.values), words.sketches()
        asked = np.flatnonzero(asked)
        came_before = np.zeros(len(words), bool)
        for rows, posts in self._buckets.sharing(bands[asked]):
            rows, _ = self._similar(words, sketches, asked[rows], kept, self._sketches.values, posts)
            came_before[rows] = True
        asked = asked[~came_before[asked]]
        earlier: dict[int, set[int]] = defaultdict(set)
        for rows, others in _sharing_among(bands[asked]):
            for row, other in zip(
                *self._similar(words, sketches, asked[rows], words, sketches, asked[others]), strict=True
            ):
                earlier[int(row)].add(int(other))
        return NearMatches(words, bands, sketches, came_before, dict(earlier))

    def keep(self, block: NearMatches, is_kept: np.ndarray) -> None:
        """Add those posts of the block that are kept (bool)."""
        rows = np.flatnonzero(is_kept)
        words = block.words.of(rows)
        self._buckets.add(block.bands[rows])
        self._sketches.extend(block.sketches[rows])
        self._starts.extend(words.starts[1:] + len(self._hashes))
        self._hashes.extend(words.hashes)

    def _similar(
        self,
        a: WordSets,
        a_sketches: np.ndarray,
        rows: np.ndarray,
        b: WordSets,
        b_sketches: np.ndarray,
        posts: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Those of the pairs (row of a, post of b) that are similar enough, each once."""
        both = a.sizes_of(rows) + b.sizes_of(posts)
        # Jaccard similarity is at least t where the sets differ by at most (1 - t) / (1 + t) of their sizes' sum.
        differing_at_most = (1 - self.similarity) / (1 + self.similarity) * both + _ROUNDING
        close = np.bitwise_count(a_sketches[rows] ^ b_sketches[posts]) <= differing_at_most
        pairs = np.unique((rows[close].astype(np.uint64) << np.uint64(32)) | posts[close].astype(np.uint64))
        rows, posts = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
        common = _common_words(a, rows, b, posts)
        both = a.sizes_of(rows) + b.sizes_of(posts)
        similar = common >= (self.similarity - _ROUNDING) * (both - common)
        return rows[similar], posts[similar]


@dataclass(frozen=True)
class NearMatches:
    """The posts of a block, and what they are similar to."""

    words: WordSets
    bands: np.ndarray
    sketches: np.ndarray
    came_before: np.ndarray
    """bool: whether a post like it was kept."""
    earlier: dict[int, set[int]]
    """Of the other posts: those before it in the block that are like it, if any."""


def bands_of(signatures: np.ndarray) -> np.ndarray:
    """One number for each band of each signature: uint32 ``(posts, SIGNATURE_HASHES)`` to uint64 ``(posts, BANDS)``."""
    mixed = (signatures.astype(np.uint64) + np.uint64(1)) * _MULTIPLIERS
    mixed ^= mixed >> np.uint64(29)
    sums = mixed.reshape(len(signatures), BANDS, ROWS_OF_BAND).sum(axis=2, dtype=np.uint64)
    return (sums + np.arange(BANDS, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)


class _Buckets:
    """Posts by the bands of their signatures: a hash table of lists that grow, as flat arrays.

    A list lies in one piece, with room for the next power of two of its length; one that outgrows this moves to the
    end. Bands that fall into one slot share a list: candidates are compared anyway.
    """

    def __init__(self) -> None:
        self._bands = _Growing(np.uint32)  # the upper half of each, which tells its slot in a larger table
        self._posts = 0
        self._empty(_FEWEST_SLOTS_BITS)

    def add(self, bands: np.ndarray) -> None:
        """Add the next posts."""
        self._bands.extend((bands.reshape(-1) >> np.uint64(32)).astype(np.uint32))
        entries = len(self._bands)
        if entries > _ENTRIES_OF_SLOT * self._lengths.size:
            self._empty(entries.bit_length())
            for start in range(0, entries, _PAIRS_AT_ONCE):
                self._insert(np.arange(start, min(start + _PAIRS_AT_ONCE, entries)))
        else:
            self._insert(np.arange(entries - bands.size, entries))

    def sharing(self, bands: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All pairs of a row and a post that may share a band, some at a time; int64."""
        slots = self._slots((bands.reshape(-1) >> np.uint64(32)).astype(np.uint32))
        lengths = self._lengths[slots]
        found = np.flatnonzero(lengths)
        slots, lengths, rows = slots[found], lengths[found], found // bands.shape[1]
        for part in _parts(lengths):
            places = _ranges(self._places[slots[part]], lengths[part])
            yield np.repeat(rows[part], lengths[part]), self._lists.values[places].astype(np.int64)

    def _empty(self, bits: int) -> None:
        self._shift = np.uint32(32 - bits)
        self._places, self._lengths = np.zeros(1 << bits, np.int64), np.zeros(1 << bits, np.int32)
        self._lists = _Growing(np.uint32)

    def _slots(self, bands: np.ndarray) -> np.ndarray:
        return bands >> self._shift

    def _insert(self, entries: np.ndarray) -> None:
        slots = self._slots(self._bands.values[entries])
        order = np.argsort(slots)
        slots, posts = slots[order], entries[order] // BANDS
        firsts = np.flatnonzero(np.diff(slots, prepend=np.int64(-1)))
        added = np.diff(firsts, append=len(slots))
        slots = slots[firsts]
        before = self._lengths[slots]
        after = before + added
        moved = np.flatnonzero(_room(after) > _room(before))
        end = len(self._lists)
        new_places = end + _starts(_room(after[moved]))[:-1]
        self._lists.extend(np.zeros(_room(after[moved]).sum(), np.uint32))
        kept = before[moved]
        lists = self._lists.values
        lists[_ranges(new_places, kept)] = lists[_ranges(self._places[slots[moved]], kept)]
        self._places[slots[moved]] = new_places
        lists[_ranges(self._places[slots] + before, added)] = posts
        self._lengths[slots] = after


class _Growing:
    """An array that grows at its end."""

    def __init__(self, dtype: type) -> None:
        self._array = np.zeros(1024, dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def values(self) -> np.ndarray:
        return self._array[: self._length]

    def extend(self, values: np.ndarray) -> None:
        length = self._length + len(values)
        if length > len(self._array):
            grown = np.zeros(max(length, 2 * len(self._array)), self._array.dtype)
            grown[: self._length] = self.values
            self._array = grown
        self._array[self._length : length] = values
        self._length = length


def _sharing_among(bands: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of rows that share a band, some at a time: the later one and the earlier one; int64."""
    flat = bands.reshape(-1)
    order = np.argsort(flat)
    flat, rows = flat[order], order // bands.shape[1]
    firsts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])) if len(flat) else np.zeros(0, np.int64)
    place_in_group = np.arange(len(flat)) - np.repeat(firsts, np.diff(firsts, append=len(flat)))
    others = np.flatnonzero(place_in_group)
    counts = place_in_group[others]
    for part in _parts(counts):
        left = np.repeat(rows[others[part]], counts[part])
        right = rows[_ranges(others[part] - counts[part], counts[part])]
        yield np.maximum(left, right), np.minimum(left, right)


def _common_words(a: WordSets, rows: np.ndarray, b: WordSets, posts: np.ndarray) -> np.ndarray:
    """How many words the sets of each pair share."""
    common = np.zeros(len(rows), np.int64)
    for start in range(0, len(rows), _SORTED_AT_ONCE):
        part = slice(start, start + _SORTED_AT_ONCE)
        sides = [sets.of(chosen[part]) for sets, chosen in ((a, rows), (b, posts))]
        keys = np.sort(np.concatenate([_numbered(side.hashes, side.sizes) for side in sides]))
        twice = keys[1:][keys[1:] == keys[:-1]] >> np.uint64(48)
        common[part] = np.bincount(twice.astype(np.int64), minlength=len(sides[0]))
    return common


def _numbered(hashes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The hashes with their set's number above them, so that sorting keeps sets together."""
    return (np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes) << np.uint64(48)) | hashes


def _parts(counts: np.ndarray) -> Iterator[slice]:
    """Parts of the counts, in order, whose sum is bounded (but for a single count above the bound)."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        taken = ends[start - 1] if start else 0
        end = max(int(np.searchsorted(ends, taken + _PAIRS_AT_ONCE, side="right")), start + 1)
        yield slice(start, end)
        start = end


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers ``start .. start + length - 1`` of each pair, in a row."""
    lengths = lengths.astype(np.int64)
    before = _starts(lengths)[:-1]
    return np.arange(lengths.sum()) + np.repeat(starts.astype(np.int64) - before, lengths)


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _room(lengths: np.ndarray) -> np.ndarray:
    """The next power of two of each; 0 for 0."""
    mantissas, exponents = np.frexp(lengths)
    return np.left_shift(1, exponents - (mantissas == 0.5)) * (lengths > 0)
