"""Random numbers as a function of what they are for: no generator, no state, whole arrays at once.

SplitMix64's step (Steele et al. 2014, "Fast splittable pseudorandom number generators"), applied to each coordinate in turn.
"""

from __future__ import annotations

import numpy as np

_STREAMS = {"choose": 1, "replace": 2, "token": 3}


def uniform(seed: int, epoch: int, samples: np.ndarray, positions: np.ndarray, stream: str) -> np.ndarray:
    """Uniform numbers in [0, 1), one for each (sample, position), independent between seeds, epochs and streams."""
    state = mix(np.uint64(seed % 2**64) ^ np.uint64(_STREAMS[stream] << 56))
    state = mix(state + np.uint64(epoch))
    states = mix(state + samples.astype(np.uint64))
    states = mix(states + positions.astype(np.int64).astype(np.uint64))
    return (states >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mix(value: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    """SplitMix64's step: a permutation of the 64-bit numbers that looks random."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
