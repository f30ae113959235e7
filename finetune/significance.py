"""Statistics of F1 scores: how far they hold for other tweets, and whether two systems differ.

Everything is computed from counts by tweet, in an array ``counts_ST3`` for each system: how many mentions are gold, predicted,
and correct. A system's score is the mean of its runs' F1; the tweets are what is drawn, since runs of one system err alike.

- `bootstrap_f1`: the score on tweets drawn with replacement; `interval` cuts off what is rarest (Efron 1979, percentiles).
- `randomization_tests`: if two systems are equally good, it does not matter which of them tagged a tweet. So the tags of
  tweets drawn at random are exchanged, in all runs at once, and p is the share of exchanges that part the scores as
  far as they are (Noreen 1989, "Computer-intensive methods for testing hypotheses", approximate randomization).
- `holm`: p-values of many tests, made larger so that all are kept to one level together (Holm 1979).

Shapes: S runs of a system, T tweets, N runs of all systems, R draws, B draws of a block; 3: gold, predicted, correct;
2: correct, gold + predicted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

NUMBERS_AT_ONCE = 1 << 22
"""Of a block of draws, which is draws x tweets."""
ROUNDING = 1e-12


def f1_of(sums_2: np.ndarray) -> np.ndarray:
    """F1, as a fraction, from sums of (correct, gold + predicted) in the last axis; 0 where there are no mentions."""
    correct, both = sums_2[..., 0].astype(np.float64), sums_2[..., 1].astype(np.float64)
    return np.divide(2 * correct, both, out=np.zeros_like(correct), where=both > 0)


def mean_f1(counts_ST3: np.ndarray) -> float:
    """A system's score: the mean over its runs of F1, as a fraction."""
    return float(f1_of(_parts(counts_ST3).sum(axis=1)).mean())


def bootstrap_f1(systems: Sequence[np.ndarray], draws: int, seed: int) -> list[np.ndarray]:
    """Each system's score on ``draws`` samples of as many tweets, drawn with replacement: [R], as fractions.

    All systems get the same samples, so that the difference of two systems' scores is that of a sample.

        >>> counts_ST3 = np.array([[[1, 1, 1], [1, 0, 0], [2, 2, 1]]])
        >>> scores = bootstrap_f1([counts_ST3], draws=1000, seed=1)[0]
        >>> [round(bound, 2) for bound in interval(scores)]
        [0.0, 1.0]
    """
    parts_TN2, of_system = _side_by_side(systems)
    f1_RN = np.empty((draws, parts_TN2.shape[1]))
    generator = np.random.default_rng(seed)
    tweets = len(parts_TN2)
    for block in _blocks(draws, tweets):
        size = block.stop - block.start
        drawn_BT = generator.integers(tweets, size=(size, tweets)) + tweets * np.arange(size)[:, None]
        times_BT = np.bincount(drawn_BT.ravel(), minlength=size * tweets).reshape(size, tweets)
        f1_RN[block] = f1_of(_sums(times_BT, parts_TN2))
    return [f1_RN[:, runs].mean(axis=1) for runs in of_system]


def interval(values_R: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """What the middle ``level`` of the values lies between."""
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def randomization_tests(
    systems: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]], draws: int, seed: int
) -> list[float]:
    """Two-sided p of "the two systems of the pair are equally good", for each pair of places in ``systems``.

    Runs are paired in their order; where one system has fewer, its runs come in turn, each as often as the others.
    p is (r + 1) / (``draws`` + 1), where r counts the exchanges whose difference of scores is at least the one seen.
    """
    parts_TN2, of_system = _side_by_side(systems)
    totals_N2 = parts_TN2.sum(axis=0)
    matched = [_matched(of_system[a], of_system[b]) for a, b in pairs]
    seen = [abs(_difference(totals_N2[first], totals_N2[second])) for first, second in matched]
    as_far = np.zeros(len(pairs), np.int64)
    generator = np.random.default_rng(seed)
    tweets = len(parts_TN2)
    for block in _blocks(draws, tweets):
        exchanged_BT = generator.integers(2, size=(block.stop - block.start, tweets), dtype=np.uint8)
        moved_BN2 = _sums(exchanged_BT, parts_TN2)
        for place, (first, second) in enumerate(matched):
            gain_BP2 = moved_BN2[:, second] - moved_BN2[:, first]
            difference_B = _difference(totals_N2[first] + gain_BP2, totals_N2[second] - gain_BP2)
            as_far[place] += np.count_nonzero(np.abs(difference_B) >= seen[place] - ROUNDING)
    return [(int(count) + 1) / (draws + 1) for count in as_far]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: the tests whose value is at most a have, all together, a chance of a for any false alarm.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _parts(counts_ST3: np.ndarray) -> np.ndarray:
    """(correct, gold + predicted) of (gold, predicted, correct)."""
    return np.stack([counts_ST3[..., 2], counts_ST3[..., 0] + counts_ST3[..., 1]], axis=-1)


def _side_by_side(systems: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The runs of all systems in one array [T, N, 2], and the places of each system's runs in it."""
    parts_TN2 = np.concatenate([_parts(counts_ST3) for counts_ST3 in systems]).swapaxes(0, 1)
    ends = np.cumsum([len(counts_ST3) for counts_ST3 in systems])
    return parts_TN2, [np.arange(end - len(counts_ST3), end) for end, counts_ST3 in zip(ends, systems, strict=True)]


def _sums(times_BT: np.ndarray, parts_TN2: np.ndarray) -> np.ndarray:
    """Sums [B, N, 2] over the tweets, each as often as it was drawn: whole numbers, below 2^24, where float32 is exact."""
    flat = times_BT.astype(np.float32) @ parts_TN2.reshape(len(parts_TN2), -1).astype(np.float32)
    return flat.reshape(len(times_BT), -1, 2)


def _blocks(draws: int, tweets: int) -> Iterator[slice]:
    size = max(1, NUMBERS_AT_ONCE // max(tweets, 1))
    for start in range(0, draws, size):
        yield slice(start, min(start + size, draws))


def _matched(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.arange(math.lcm(len(first), len(second)))
    return first[pairs % len(first)], second[pairs % len(second)]


def _difference(first_P2: np.ndarray, second_P2: np.ndarray) -> np.ndarray:
    """How much better the first is, on the mean over the pairs of runs."""
    return (f1_of(first_P2) - f1_of(second_P2)).mean(axis=-1)
