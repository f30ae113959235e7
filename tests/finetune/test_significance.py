"""Intervals and tests: equal to a plain loop, right on cases with a known answer, and on simulated data."""

import math

import numpy as np
import pytest

from finetune.significance import bootstrap, compare_systems, f1_scores, holm, interval, randomization_test


def simulated(rng, runs=2, tweets=40, types=2, right=0.6):
    """Tweets with 0 to 2 gold entities of each type; each is found with a probability, and some are made up."""
    gold = rng.integers(0, 3, (1, tweets, types)).repeat(runs, axis=0)
    correct = rng.binomial(gold, right)
    predicted = correct + rng.binomial(1, 0.3, gold.shape)
    return np.stack([gold, predicted, correct], axis=-1)


def plain_f1(rows):
    """F1 of all types and of each, over (gold, predicted, correct) by type of some tweets."""
    totals = [[sum(row[kind][count] for row in rows) for count in range(3)] for kind in range(len(rows[0]))]
    scores = []
    for gold, predicted, correct in [[sum(column) for column in zip(*totals, strict=True)], *totals]:
        scores.append(2 * correct / (gold + predicted) if gold + predicted else 0.0)
    return scores


def test_f1_of_counts_that_are_all_zero_is_zero():
    assert f1_scores(np.array([[4, 2, 1], [0, 0, 0]])).tolist() == [1 / 3, 1 / 3, 0.0]


def test_the_bootstrap_is_a_plain_loop_over_resamples():
    counts = simulated(np.random.default_rng(1), runs=3, tweets=7)
    found = bootstrap(counts, draws=600, seed=5)
    generator = np.random.Generator(np.random.Philox(key=[5, 0xB007]))
    for start, rows in ((0, 500), (500, 100)):
        drawn = generator.integers(0, 7, (rows, 7), dtype=np.int64)
        for row in range(rows):
            for run in range(3):
                expected = plain_f1([counts[run, tweet].tolist() for tweet in drawn[row]])
                assert found[start + row, run] == pytest.approx(expected)


def test_the_randomization_test_is_a_plain_loop_over_swaps():
    rng = np.random.default_rng(2)
    first, second = simulated(rng, tweets=11), simulated(rng, tweets=11, right=0.4)
    difference, p = randomization_test(first, second, draws=300, seed=3)
    bits = np.random.Generator(np.random.Philox(key=[3, 0x5A4B])).integers(0, 256, (300, 2), dtype=np.uint8)
    swaps = np.unpackbits(bits, axis=1, count=11)

    def mean_difference(swapped):
        pairs = []
        for run in range(2):
            a = [(second if swapped[tweet] else first)[run, tweet].tolist() for tweet in range(11)]
            b = [(first if swapped[tweet] else second)[run, tweet].tolist() for tweet in range(11)]
            pairs.append(np.subtract(plain_f1(a), plain_f1(b)))
        return np.mean(pairs, axis=0)

    seen = mean_difference([0] * 11)
    as_large = sum((abs(mean_difference(swapped)) >= abs(seen) - 1e-12) for swapped in swaps)
    assert difference == pytest.approx(seen) and p == pytest.approx((as_large + 1) / 301)


def test_a_known_p_value():
    """One system right in all of n tweets, the other in none: only two of the 2^n swaps are as extreme."""
    first = np.tile([1, 1, 1], (1, 6, 1, 1))
    second = np.tile([1, 1, 0], (1, 6, 1, 1))
    difference, p = randomization_test(first, second, draws=20_000)
    assert difference.tolist() == [1.0, 1.0]
    assert p[0] == pytest.approx(2 / 2**6, rel=0.15)


def test_the_test_is_symmetric_and_repeats():
    rng = np.random.default_rng(4)
    first, second = simulated(rng), simulated(rng, right=0.5)
    forth, back = compare_systems(first, second, draws=400), compare_systems(second, first, draws=400)
    assert forth.p.tolist() == back.p.tolist() and forth.difference.tolist() == (-back.difference).tolist()
    assert forth.low == pytest.approx(-back.high) and forth.low.tolist() != forth.high.tolist()
    assert compare_systems(first, second, draws=400).low.tolist() == forth.low.tolist()
    assert compare_systems(first, second, draws=400, seed=1).low.tolist() != forth.low.tolist()


def test_no_difference_gives_a_p_value_of_one():
    same = simulated(np.random.default_rng(5))
    found = compare_systems(same, same, draws=200)
    assert found.p.tolist() == [1.0] * 3 and found.low.tolist() == found.high.tolist() == [0.0] * 3


def test_p_values_of_equal_systems_are_uniform_and_of_unequal_ones_small():
    rng = np.random.default_rng(6)
    equal = [randomization_test(simulated(rng), simulated(rng), draws=200)[1][0] for _ in range(300)]
    assert 0.01 <= np.mean(np.array(equal) <= 0.05) <= 0.1
    far = simulated(rng, tweets=400, right=0.9), simulated(rng, tweets=400, right=0.5)
    assert randomization_test(*far, draws=500)[1][0] == pytest.approx(1 / 501)


def test_intervals_cover_the_true_f1():
    rng = np.random.default_rng(7)
    truth = f1_scores(simulated(rng, runs=1, tweets=200_000).sum(axis=(0, 1)))[0]
    covered = 0
    for _ in range(300):
        low, high = interval(bootstrap(simulated(rng, runs=1, tweets=150), draws=500)[:, 0, 0])
        covered += low <= truth <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_runs_must_be_paired_and_may_be_empty():
    some = simulated(np.random.default_rng(8), runs=2)
    with pytest.raises(ValueError, match="not paired"):
        randomization_test(some, some[:1])
    assert bootstrap(some[:, :0], draws=5).tolist() == np.zeros((5, 2, 3)).tolist()


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    assert math.isclose(holm([0.02])[0], 0.02)
