"""A shuffled order that needs no table: the place of each sample is computed from (seed, epoch) when it is asked for.

A Feistel network permutes the numbers of b bits; where it leads outside of ``range(size)``, it is applied again until
it leads back (cycle walking; Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
"""

from __future__ import annotations

import numpy as np

from pretrain.draws import mix

ROUNDS = 6


def permuted(places: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """The samples (int64) at ``places`` (in ``range(size)``) of the order that (seed, epoch) decides.

    >>> sorted(permuted(np.arange(5), 5, seed=1, epoch=0).tolist())
    [0, 1, 2, 3, 4]
    """
    if size < 2:
        return np.asarray(places, dtype=np.int64)
    bits = (size - 1).bit_length()
    low_bits, high_bits = bits // 2, bits - bits // 2
    keys = _round_keys(seed, epoch)
    samples = _feistel(np.asarray(places, dtype=np.uint64), keys, low_bits, high_bits)
    outside = np.flatnonzero(samples >= size)
    while len(outside):
        samples[outside] = _feistel(samples[outside], keys, low_bits, high_bits)
        outside = outside[samples[outside] >= size]
    return samples.astype(np.int64)


def _round_keys(seed: int, epoch: int) -> list[np.uint64]:
    key = mix(mix(np.uint64(seed % 2**64)) + np.uint64(epoch))
    keys = []
    for _ in range(ROUNDS):
        key = mix(key)
        keys.append(key)
    return keys


def _feistel(numbers: np.ndarray, keys: list[np.uint64], low_bits: int, high_bits: int) -> np.ndarray:
    """A permutation of the numbers of ``low_bits + high_bits`` bits: halves, swapped and mixed in every round."""
    low, high = numbers & _mask(low_bits), numbers >> np.uint64(low_bits)
    for key in keys:  # the halves may differ by a bit, and swap their widths with their places
        low, high = high, low ^ (mix(high + key) & _mask(low_bits))
        low_bits, high_bits = high_bits, low_bits
    return low | (high << np.uint64(low_bits))


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)
