"""How sure a difference of F1 is: bootstrap intervals, paired randomization tests, and many tests at once.

All of it counts entities by tweet, for tweets are what is drawn: the entities of one tweet hang together. The runs of a
system (its seeds) are averaged within each draw, so an interval or a p-value is about the mean over these seeds.

Suffixes: N runs, T tweets, K entity types, C = 3 counts (gold, predicted, correct), R draws, F = 1 + K scores (F1 of all
types together, then of each).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
CONFIDENCE = 0.95
_DRAWS_AT_ONCE = 500
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Difference:
    """Mean F1 of one system minus that of another, by type: arrays of length F."""

    difference: np.ndarray
    low: np.ndarray
    """Lower end of the bootstrap interval of the difference."""
    high: np.ndarray
    p: np.ndarray
    """Two-sided, of the paired randomization test; not adjusted."""


def f1_scores(counts_XKC: np.ndarray) -> np.ndarray:
    """F1 of all types together and of each, from counts with any leading axes: ``[..., K, 3]`` to ``[..., 1 + K]``."""
    counts_XFC = np.concatenate([counts_XKC.sum(axis=-2, keepdims=True), counts_XKC], axis=-2)
    total_XF = counts_XFC[..., 0] + counts_XFC[..., 1]
    return np.divide(2.0 * counts_XFC[..., 2], total_XF, out=np.zeros(total_XF.shape), where=total_XF > 0)


def bootstrap(counts_NTKC: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """F1 of each run in each of ``draws`` resamples of the tweets, with replacement: ``[R, N, F]``.

    All runs see the same resamples, also in another call with as many tweets and the same seed: scores of the same draw
    can be averaged over a system's seeds, and subtracted.
    """
    runs, tweets, types, _ = counts_NTKC.shape
    scores_RNF = np.zeros((draws, runs, types + 1))
    if not tweets:
        return scores_RNF
    generator = np.random.Generator(np.random.Philox(key=[seed, 0xB007]))

    def times_drawn(rows: int) -> np.ndarray:
        drawn_RT = generator.integers(0, tweets, (rows, tweets), dtype=np.int64)
        drawn_RT += tweets * np.arange(rows)[:, None]
        return np.bincount(drawn_RT.reshape(-1), minlength=rows * tweets).reshape(rows, tweets)

    for start, weights_RT in _chunks(draws, times_drawn):
        scores_RNF[start : start + len(weights_RT)] = f1_scores(_weighted_sums(weights_RT, counts_NTKC))
    return scores_RNF


def interval(scores_RX: np.ndarray, confidence: float = CONFIDENCE) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the percentile interval (Efron 1979) of bootstrap scores, over their first axis."""
    low, high = np.quantile(scores_RX, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def randomization_test(
    first_NTKC: np.ndarray, second_NTKC: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Difference of mean F1 between paired runs, and its two-sided p-value, by type: two arrays of length F.

    Approximate randomization (Noreen 1989, "Computer-Intensive Methods for Testing Hypotheses"): if the two systems are
    equal, so is their difference after their outputs for any of the tweets are swapped. A tweet is swapped in all pairs
    of runs at once, since the runs of a system are alike. p = (r + 1) / (R + 1), where r of R random swaps give a
    difference as large as the one that was seen.
    """
    if first_NTKC.shape != second_NTKC.shape:
        raise ValueError(f"runs are not paired: counts of shapes {first_NTKC.shape} and {second_NTKC.shape}")
    tweets = first_NTKC.shape[1]
    first_NKC, second_NKC = first_NTKC.sum(axis=1), second_NTKC.sum(axis=1)
    seen_F = (f1_scores(first_NKC) - f1_scores(second_NKC)).mean(axis=0)
    generator = np.random.Generator(np.random.Philox(key=[seed, 0x5A4B]))

    def swapped(rows: int) -> np.ndarray:
        bits_RB = generator.integers(0, 256, (rows, -(-tweets // 8)), dtype=np.uint8)
        return np.unpackbits(bits_RB, axis=1, count=tweets)

    as_large_F = np.zeros(len(seen_F), np.int64)
    for _, swaps_RT in _chunks(draws, swapped):
        moved_RNKC = _weighted_sums(swaps_RT, first_NTKC - second_NTKC)
        differences_RNF = f1_scores(first_NKC - moved_RNKC) - f1_scores(second_NKC + moved_RNKC)
        as_large_F += (abs(differences_RNF.mean(axis=1)) >= abs(seen_F) - _ROUNDING).sum(axis=0)
    return seen_F, (as_large_F + 1) / (draws + 1)


def compare_systems(first_NTKC: np.ndarray, second_NTKC: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Difference:
    """Everything about the difference of two systems whose runs are paired."""
    difference_F, p_F = randomization_test(first_NTKC, second_NTKC, draws, seed)
    scores_RNF = bootstrap(first_NTKC, draws, seed) - bootstrap(second_NTKC, draws, seed)
    return Difference(difference_F, *interval(scores_RNF.mean(axis=1)), p_F)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): all below 0.05 together hold with at most 5 % risk of an error."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _chunks(draws: int, draw: Callable[[int], np.ndarray]) -> Iterator[tuple[int, np.ndarray]]:
    """``draw(rows)`` for all draws, some at a time, with the place of the first."""
    for start in range(0, draws, _DRAWS_AT_ONCE):
        yield start, draw(min(_DRAWS_AT_ONCE, draws - start))


def _weighted_sums(weights_RT: np.ndarray, counts_NTKC: np.ndarray) -> np.ndarray:
    """Sums over the tweets with each draw's weights, ``[R, N, K, C]``: one matrix product."""
    runs, tweets, types, kinds = counts_NTKC.shape
    columns_TX = counts_NTKC.transpose(1, 0, 2, 3).reshape(tweets, -1)
    # Whole numbers below 2^24 are exact in fp32.
    sums_RX = weights_RT.astype(np.float32) @ columns_TX.astype(np.float32)
    return sums_RX.astype(np.float64).reshape(len(weights_RT), runs, types, kinds)
