"""Dynamic masking for the masked language model, as a pure function of (seed, epoch, sample, position).

Devlin et al. 2019, section 3.1: of the tokens chosen, 80 % become ``[MASK]``, 10 % a random token, 10 % stay. A token's
draws come from a counter-based hash, so neither batch, worker nor process changes them, and whole arrays are masked at
once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

REPLACED_BY_MASK, REPLACED_AT_RANDOM = 0.8, 0.1
_STREAMS = {"choose": 1, "replace": 2, "token": 3}


@dataclass(frozen=True)
class Masking:
    """How tokens are chosen and replaced."""

    rate: float
    """Share of tokens (or whole words) to choose."""
    whole_word: bool
    """Choose all tokens of a word or none."""
    mask_token: int
    """Id of ``[MASK]``."""
    vocabulary_size: int
    """Random tokens are drawn from ``range(vocabulary_size)``."""
    seed: int

    def apply(
        self, tokens: np.ndarray, words: np.ndarray, samples: np.ndarray, positions: np.ndarray, epoch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Masked tokens, and which were chosen (bool): both of the shape of ``tokens``, any shape.

        ``words`` is the position of each token's word start (-1: special, never chosen), ``samples`` the index of its
        sample, ``positions`` its position in the sample.
        """
        place = words if self.whole_word else positions
        chosen = (words >= 0) & (uniform(self.seed, epoch, samples, place, "choose") < self.rate)
        kind = uniform(self.seed, epoch, samples, positions, "replace")
        other = (uniform(self.seed, epoch, samples, positions, "token") * self.vocabulary_size).astype(tokens.dtype)
        masked = np.where(chosen & (kind < REPLACED_BY_MASK), self.mask_token, tokens)
        at_random = chosen & (kind >= REPLACED_BY_MASK) & (kind < REPLACED_BY_MASK + REPLACED_AT_RANDOM)
        return np.where(at_random, other, masked).astype(tokens.dtype), chosen


def uniform(seed: int, epoch: int, samples: np.ndarray, positions: np.ndarray, stream: str) -> np.ndarray:
    """Uniform numbers in [0, 1), one for each (sample, position), independent between seeds, epochs and streams.

    SplitMix64's finaliser (Steele et al. 2014), applied to each coordinate in turn.
    """
    state = _mix(np.uint64(seed % 2**64) ^ np.uint64(_STREAMS[stream] << 56))
    state = _mix(state + np.uint64(epoch))
    states = _mix(state + samples.astype(np.uint64))
    states = _mix(states + positions.astype(np.int64).astype(np.uint64))
    return (states >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(value: np.ndarray | np.uint64) -> np.ndarray | np.uint64:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
