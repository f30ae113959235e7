"""Finding posts that came before, exactly or nearly, while they pass by in order.

Nearly: the sets of words have a Jaccard similarity of at least t. Candidates share a band of their MinHash signatures
(Broder 1997; locality-sensitive hashing: Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3), and
are then compared in full: what is found is right, and of pairs at 0.8 one in 200 is missed, of more alike ones fewer.

Kept of each post are hashes, no text: 8 bytes for exact repeats; for near ones those of its words and bands, too.
"""

from __future__ import annotations

from array import array

import numpy as np

BANDS, ROWS_OF_BAND = 18, 6
"""Two posts of similarity s share a band with probability 1 - (1 - s^6)^18: 99.6 % at 0.8, 7 % at 0.4."""
SIGNATURE_HASHES = BANDS * ROWS_OF_BAND

_MULTIPLIERS = np.random.default_rng(0).integers(1, 2**63, SIGNATURE_HASHES, dtype=np.uint64) | np.uint64(1)
_ROUNDING = 1e-9


class NearRepeats:
    """The posts that were kept, by their words."""

    def __init__(self, similarity: float) -> None:
        self.similarity = similarity
        self._post_of_band: dict[int, int] = {}
        self._more_of_band: dict[int, list[int]] = {}  # few bands have more than one post
        self._words = array("q")
        self._starts = array("Q", [0])

    def comes_again(self, words: frozenset[str], bands: list[int]) -> bool:
        """Whether a post nearly like this was kept; if not, this one is kept."""
        hashes = frozenset(map(hash, words))
        found = {self._post_of_band[band] for band in bands if band in self._post_of_band}
        if found and self._more_of_band:
            found.update(post for band in bands for post in self._more_of_band.get(band, ()))
        if any(self._is_similar(hashes, post) for post in found):
            return True
        post = len(self._starts) - 1
        self._words.extend(hashes)
        self._starts.append(len(self._words))
        for band in bands:
            if self._post_of_band.setdefault(band, post) != post:
                self._more_of_band.setdefault(band, []).append(post)
        return False

    def _is_similar(self, hashes: frozenset[int], post: int) -> bool:
        start, end = self._starts[post], self._starts[post + 1]
        size, least = end - start, self.similarity - _ROUNDING
        if min(size, len(hashes)) < least * max(size, len(hashes)):
            return False
        common = len(hashes.intersection(self._words[start:end]))
        return common >= least * (len(hashes) + size - common)


def bands_of(signatures: np.ndarray) -> np.ndarray:
    """One number for each band of each signature: uint32 ``(posts, SIGNATURE_HASHES)`` to uint64 ``(posts, BANDS)``."""
    mixed = (signatures.astype(np.uint64) + np.uint64(1)) * _MULTIPLIERS
    mixed ^= mixed >> np.uint64(29)
    sums = mixed.reshape(len(signatures), BANDS, ROWS_OF_BAND).sum(axis=2, dtype=np.uint64)
    return sums * np.uint64(0x9E3779B97F4A7C15) + np.arange(BANDS, dtype=np.uint64)
