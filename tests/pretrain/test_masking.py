"""Masking: the rates, whole words, and that nothing but (seed, epoch, sample, position) decides it."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.masking import Masking, uniform

MASK, VOCABULARY = 4, 1000
MASKING = Masking(rate=0.15, whole_word=False, mask_token=MASK, vocabulary_size=VOCABULARY, seed=3)
WHOLE_WORD = dataclasses.replace(MASKING, whole_word=True)


def grid(samples: int = 400, length: int = 100) -> dict[str, np.ndarray]:
    """Samples of one length: a special token at each end, words of one to three pieces between."""
    draw = np.random.default_rng(0)
    starts = draw.random((samples, length)) < 0.6
    starts[:, 1] = True
    positions = np.broadcast_to(np.arange(length), starts.shape)
    words = np.maximum.accumulate(np.where(starts, positions, 0), axis=1)
    words[:, [0, -1]] = -1
    return {
        "tokens": draw.integers(5, VOCABULARY, starts.shape),
        "words": words,
        "samples": np.broadcast_to(np.arange(samples)[:, None], starts.shape),
        "positions": positions,
    }


GRID = grid()


def assert_share(hits: np.ndarray, share: float) -> None:
    """Within five standard deviations of the binomial."""
    deviation = math.sqrt(share * (1 - share) / hits.size)
    assert abs(hits.mean() - share) < 5 * deviation, (hits.mean(), share, deviation)


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.4])
def test_the_share_of_tokens_that_is_chosen(rate):
    _, chosen = dataclasses.replace(MASKING, rate=rate).apply(**GRID, epoch=0)
    assert_share(chosen[GRID["words"] >= 0], rate)


def test_the_share_of_words_that_is_chosen():
    _, chosen = WHOLE_WORD.apply(**GRID, epoch=0)
    assert_share(chosen[GRID["words"] == GRID["positions"]], 0.15)


@pytest.mark.parametrize("masking", [MASKING, WHOLE_WORD])
def test_80_10_10(masking):
    masked, chosen = masking.apply(**GRID, epoch=0)
    before, after = GRID["tokens"][chosen], masked[chosen]
    assert_share(after == MASK, 0.8)
    same = after == before
    assert_share(same, 0.1 + 0.1 / VOCABULARY)
    other = after[(after != MASK) & ~same]
    assert_share((after != MASK) & ~same, 0.1 - 0.1 / VOCABULARY)
    assert other.min() >= 0 and other.max() < VOCABULARY
    assert_share(other < VOCABULARY // 4, 0.25)
    assert np.array_equal(masked[~chosen], GRID["tokens"][~chosen])
    assert masked.dtype == GRID["tokens"].dtype


def test_specials_are_never_chosen():
    for masking in (MASKING, WHOLE_WORD):
        masked, chosen = dataclasses.replace(masking, rate=0.99).apply(**GRID, epoch=0)
        special = GRID["words"] < 0
        assert special.any() and not chosen[special].any()
        assert np.array_equal(masked[special], GRID["tokens"][special])


def test_whole_words_are_chosen_whole_or_not_at_all():
    _, chosen = WHOLE_WORD.apply(**GRID, epoch=0)
    key = GRID["samples"] * 1000 + GRID["words"]
    _, word_of = np.unique(key, return_inverse=True)
    pieces, chosen_pieces = np.bincount(word_of.ravel()), np.bincount(word_of.ravel(), weights=chosen.ravel())
    assert np.all((chosen_pieces == 0) | (chosen_pieces == pieces))
    assert ((chosen_pieces > 1) & (chosen_pieces == pieces)).any(), "no word of several pieces was chosen"
    _, single = MASKING.apply(**GRID, epoch=0)
    split = np.bincount(word_of.ravel(), weights=single.ravel())
    assert ((split > 0) & (split < pieces)).any(), "token masking splits words"


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(12)), cut=st.integers(1, 11), epoch=st.integers(0, 10**6), whole=st.booleans())
def test_no_split_into_batches_changes_the_masks(order, cut, epoch, whole):
    masking = WHOLE_WORD if whole else MASKING
    part = {name: array[:12] for name, array in GRID.items()}
    together, chosen = masking.apply(**part, epoch=epoch)
    for rows in (list(order[:cut]), list(order[cut:])):
        masked, chosen_too = masking.apply(**{name: array[rows] for name, array in part.items()}, epoch=epoch)
        assert np.array_equal(masked, together[rows]) and np.array_equal(chosen_too, chosen[rows])
    flat, _ = masking.apply(**{name: array.ravel() for name, array in part.items()}, epoch=epoch)
    assert np.array_equal(flat, together.ravel())


@pytest.mark.parametrize("masking", [MASKING, WHOLE_WORD])
def test_epochs_seeds_and_samples_differ(masking):
    words = GRID["words"] >= 0
    _, first = masking.apply(**GRID, epoch=0)
    _, next_epoch = masking.apply(**GRID, epoch=1)
    _, other_seed = dataclasses.replace(masking, seed=4).apply(**GRID, epoch=0)
    _, other_samples = masking.apply(**GRID | {"samples": GRID["samples"] + 1000}, epoch=0)
    starts = words & (GRID["words"] == GRID["positions"])  # of whole words, only one draw each is independent
    for other in (next_epoch, other_seed, other_samples):
        assert_share((first & other)[starts], 0.15**2)
    _, again = masking.apply(**GRID, epoch=0)
    assert np.array_equal(first, again)


def test_the_draws_are_uniform_and_their_streams_independent():
    draws = {stream: uniform(1, 2, GRID["samples"], GRID["positions"], stream) for stream in ("choose", "replace")}
    for values in draws.values():
        assert values.min() >= 0 and values.max() < 1
        counts = np.histogram(values, bins=20, range=(0, 1))[0]
        expected = values.size / 20
        assert ((counts - expected) ** 2 / expected).sum() < 60, "chi-square with 19 degrees of freedom"
    assert abs(np.corrcoef(draws["choose"].ravel(), draws["replace"].ravel())[0, 1]) < 5 / math.sqrt(
        GRID["tokens"].size
    )


def test_the_draws_are_pinned():
    """A resumed run, and a run of next year, must draw what this one draws."""
    drawn = uniform(1, 2, np.array([0, 7]), np.array([3, -1]), "token")
    assert drawn.tolist() == pytest.approx(PINNED, abs=1e-15)


PINNED = [0.8152778388386719, 0.8601086363615537]
