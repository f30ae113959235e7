"""Statistics of F1: against plain loops and whole enumerations, on cases whose answer is known, and by simulation."""

import itertools

import numpy as np
import pytest

from finetune.significance import bootstrap_f1, holm, interval, mean_f1, randomization_tests


def made_counts(seed: int, runs: int = 2, tweets: int = 12, right: float = 0.6) -> np.ndarray:
    """Counts of made-up runs over the same gold mentions."""
    draw = np.random.default_rng(seed)
    gold = np.random.default_rng(0).integers(0, 4, tweets)
    correct = draw.binomial(np.tile(gold, (runs, 1)), right)
    predicted = correct + draw.integers(0, 2, (runs, tweets))
    return np.stack([np.tile(gold, (runs, 1)), predicted, correct], axis=-1)


def plain_f1(counts: np.ndarray) -> float:
    gold, predicted, correct = counts.sum(axis=0)
    return 2 * correct / (gold + predicted) if gold + predicted else 0.0


def plain_score(counts: np.ndarray) -> float:
    return sum(plain_f1(run) for run in counts) / len(counts)


def test_a_score_is_the_mean_of_its_runs_f1():
    counts = made_counts(1, runs=3)
    assert mean_f1(counts) == pytest.approx(plain_score(counts))
    assert mean_f1(np.zeros((2, 5, 3), int)) == 0.0


def test_bootstrap_equals_a_plain_loop(monkeypatch):
    monkeypatch.setattr("finetune.significance.NUMBERS_AT_ONCE", 12 * 7)  # the draws do not fill the last block
    systems = [made_counts(1), made_counts(2, runs=3)]
    draws = np.random.default_rng(5)
    expected = []
    for _ in range(50):
        chosen = [int(place) for place in draws.integers(12, size=12)]
        expected.append([plain_score(counts[:, chosen]) for counts in systems])
    found = bootstrap_f1(systems, draws=50, seed=5)
    np.testing.assert_allclose(np.transpose(found), expected, rtol=1e-12)


def test_tests_equal_a_plain_loop():
    a, b = made_counts(1, runs=3), made_counts(2, runs=2, right=0.5)
    seen = abs(plain_score(a) - plain_score(b))
    exchanges = np.random.default_rng(3).integers(2, size=(200, 12), dtype=np.uint8)
    as_far = 0
    for exchange in exchanges:
        differences = []
        for pair in range(6):  # each run of three with each of two
            first, second = a[pair % 3].copy(), b[pair % 2].copy()
            for tweet in np.flatnonzero(exchange):
                first[tweet], second[tweet] = b[pair % 2][tweet], a[pair % 3][tweet]
            differences.append(plain_f1(first) - plain_f1(second))
        as_far += abs(sum(differences) / 6) >= seen - 1e-12
    assert randomization_tests([a, b], [(0, 1)], draws=200, seed=3) == [(as_far + 1) / 201]


def test_tests_come_near_what_all_exchanges_give():
    a, b = made_counts(1, runs=1, tweets=10, right=0.9), made_counts(2, runs=1, tweets=10, right=0.4)
    seen = abs(plain_f1(a[0]) - plain_f1(b[0]))
    far = 0
    for exchange in itertools.product([False, True], repeat=10):
        swap = np.array(exchange)[:, None]
        far += abs(plain_f1(np.where(swap, b[0], a[0])) - plain_f1(np.where(swap, a[0], b[0]))) >= seen - 1e-12
    (p,) = randomization_tests([a, b], [(0, 1)], draws=20_000, seed=1)
    assert p == pytest.approx(far / 2**10, abs=0.012)


def test_a_known_case():
    # One system finds all of ten mentions, the other none: only the exchanges of no and of all tweets part them as far.
    right = np.tile([1, 1, 1], (1, 10, 1))
    wrong = np.tile([1, 0, 0], (1, 10, 1))
    (p,) = randomization_tests([right, wrong], [(0, 1)], draws=20_000, seed=1)
    assert p == pytest.approx(2 / 2**10, abs=0.001)
    assert interval(bootstrap_f1([right], 100, seed=1)[0]) == (1.0, 1.0)


def test_order_does_not_matter():
    systems = [made_counts(1), made_counts(2, right=0.5), made_counts(3)]
    p = randomization_tests(systems, [(0, 1), (1, 0), (2, 1)], draws=500, seed=4)
    assert p[0] == p[1]
    assert randomization_tests(systems[::-1], [(0, 1)], draws=500, seed=4) == [p[2]]


def test_no_difference_gives_a_p_of_one():
    a = made_counts(1)
    assert randomization_tests([a, a.copy()], [(0, 1)], draws=100, seed=1) == [1.0]


def test_runs_of_equal_systems_seldom_differ():
    p_values = []
    for seed in range(100):
        a, b = made_counts(2 * seed + 1, tweets=80), made_counts(2 * seed + 2, tweets=80)
        p_values += randomization_tests([a, b], [(0, 1)], draws=200, seed=seed)
    assert 0 <= np.mean(np.array(p_values) <= 0.05) <= 0.12
    assert 0.35 < np.mean(p_values) < 0.65


def test_the_seed_decides():
    systems = [made_counts(1, tweets=200), made_counts(2, tweets=200)]
    first, again, other = (bootstrap_f1(systems, 200, seed)[0] for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    p = [randomization_tests(systems, [(0, 1)], 200, seed) for seed in (1, 1, 2)]
    assert p[0] == p[1]


def test_intervals_cover_the_score_of_all_tweets():
    population = made_counts(7, runs=2, tweets=50_000)
    truth = mean_f1(population)
    draw = np.random.default_rng(8)
    covered = 0
    for seed in range(200):
        sample = population[:, draw.integers(50_000, size=150)]
        low, high = interval(bootstrap_f1([sample], draws=400, seed=seed)[0])
        covered += low <= truth <= high
    assert 0.89 <= covered / 200 <= 0.985


def test_intervals_of_differences_are_paired():
    # The same run but for one tweet in ten: the scores' own intervals overlap, that of the difference is narrow.
    a = made_counts(1, runs=1, tweets=300)
    b = a.copy()
    b[:, ::10, 2] = 0
    scores = bootstrap_f1([a, b], draws=1000, seed=1)
    low, high = interval(scores[0] - scores[1])
    own = interval(scores[0])
    assert 0 < low < mean_f1(a) - mean_f1(b) < high
    assert high - low < own[1] - own[0]


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
