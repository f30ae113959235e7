"""Masking: how many tokens of a row, whole words, and that nothing but (seed, epoch, sample, position, row) decides it."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_store import make_store, tweet_lengths

from pretrain.draws import uniform
from pretrain.masking import Masking
from pretrain.packing import Layout, lay_out, pack
from pretrain.token_store import BEGINS_WORD, CONTINUES_WORD, SPECIAL, TokenStore

MASK, VOCABULARY = 4, 1000
MASKING = Masking(rate=0.15, whole_word=False, mask_token=MASK, vocabulary_size=VOCABULARY, seed=3)
WHOLE_WORD = dataclasses.replace(MASKING, whole_word=True)

LENGTH = 100
GRID = lay_out([np.array([sample]) for sample in range(400)], make_store([LENGTH] * 400), LENGTH)
"""A text in each row, which it fills: a special token at each end, words of some pieces between."""

LENGTHS = tweet_lengths(600)
PACKED = lay_out(pack(np.arange(600), LENGTHS, 128), make_store(LENGTHS, seed=1), 128, row_count=130)
"""Rows of several texts, with padding, and empty rows at the end."""


def part(rows: Layout, chosen: list[int] | slice) -> Layout:
    return Layout(*(getattr(rows, name)[chosen] for name in ("tokens", "samples", "positions", "kinds")))


def layout_of(kinds: list[int], width: int | None = None) -> Layout:
    """One text of these kinds of tokens in a row."""
    store = TokenStore(np.arange(10, 10 + len(kinds)), np.array(kinds, np.uint8), np.array([0, len(kinds)]))
    return lay_out([np.array([0])], store, width or len(kinds))


def assert_share(hits: np.ndarray, share: float) -> None:
    """Within five standard deviations of the binomial."""
    deviation = math.sqrt(share * (1 - share) / hits.size)
    assert abs(hits.mean() - share) < 5 * deviation, (hits.mean(), share, deviation)


def words_of(rows: Layout) -> np.ndarray:
    """A number for each word, counted through all rows; special tokens have words of their own."""
    return np.cumsum(rows.kinds != CONTINUES_WORD).reshape(rows.kinds.shape)


def choose_plainly(masking: Masking, rows: Layout, epoch: int) -> np.ndarray:
    """Row by row and word by word (or token by token): smallest draws first, until one does not fit any more."""
    chosen = np.zeros(rows.tokens.shape, bool)
    for row in range(len(rows.tokens)):
        tokens = int((rows.samples[row] >= 0).sum())
        left = max(1, round(tokens * masking.rate)) if tokens else 0
        units: list[list[int]] = []
        for column, kind in enumerate(rows.kinds[row]):
            if kind == CONTINUES_WORD and masking.whole_word:
                units[-1].append(column)
            elif kind != SPECIAL:
                units.append([column])
        first = [unit[0] for unit in units]
        draws = uniform(masking.seed, epoch, rows.samples[row, first], rows.positions[row, first], "choose")
        for unit in np.argsort(draws):
            left -= len(units[unit])
            if left < 0:
                break
            chosen[row, units[unit]] = True
    return chosen


@pytest.mark.parametrize("rows", [GRID, PACKED], ids=["grid", "packed"])
@pytest.mark.parametrize("whole_word", [False, True])
@pytest.mark.parametrize("rate", [0.001, 0.15, 0.6, 0.99])
def test_tokens_are_chosen_as_the_plain_way_chooses_them(rows, whole_word, rate):
    masking = dataclasses.replace(MASKING, whole_word=whole_word, rate=rate)
    _, chosen = masking.apply(rows, epoch=2)
    assert np.array_equal(chosen, choose_plainly(masking, rows, epoch=2))


@pytest.mark.parametrize("rate, quota", [(0.05, 5), (0.15, 15), (0.4, 40), (0.999, 98), (0.001, 1)])
def test_of_each_row_the_share_is_chosen_to_the_token(rate, quota):
    _, chosen = dataclasses.replace(MASKING, rate=rate).apply(GRID, epoch=0)
    assert (chosen.sum(axis=1) == quota).all(), "special tokens count, and are not chosen"


def test_tokens_are_equally_likely_wherever_they_stand():
    _, chosen = MASKING.apply(GRID, epoch=0)
    shares = chosen[:, 1:-1].mean(axis=0)
    deviation = math.sqrt(15 / 98 * (83 / 98) / len(chosen))
    assert (abs(shares - 15 / 98) < 5 * deviation).all()


@pytest.mark.parametrize("whole_word", [False, True])
@settings(max_examples=30, deadline=None)
@given(rate=st.floats(0.01, 0.99), epoch=st.integers(0, 10**6))
def test_no_row_has_more_than_its_share_and_lacks_less_than_a_word(whole_word, rate, epoch):
    masking = dataclasses.replace(MASKING, rate=rate, whole_word=whole_word)
    rows = part(PACKED, slice(-60, None))
    _, chosen = masking.apply(rows, epoch)
    tokens = (rows.samples >= 0).sum(axis=1)
    quota = np.where(tokens > 0, np.maximum(1, np.rint(tokens * rate)), 0)
    choosable = rows.kinds != SPECIAL
    lacking = np.minimum(quota, choosable.sum(axis=1)) - chosen.sum(axis=1)
    longest_word = np.bincount(words_of(rows).ravel()).max() if whole_word else 1
    assert (lacking >= 0).all() and (lacking < longest_word).all()
    assert not chosen[~choosable].any()
    assert chosen.sum() <= masking.most(*rows.tokens.shape)


def test_full_rows_have_the_most():
    _, chosen = MASKING.apply(GRID, epoch=0)
    assert chosen.sum() == MASKING.most(400, LENGTH) == 6000
    _, chosen = WHOLE_WORD.apply(GRID, epoch=0)
    assert 0.93 * 6000 < chosen.sum() <= 6000


def test_short_words_and_long_ones_are_chosen_about_equally_often():
    """A long word is left out a little more often, on the border."""
    words = words_of(GRID)
    pieces = np.bincount(words.ravel())[words]
    _, chosen = WHOLE_WORD.apply(GRID, epoch=0)
    shares = [chosen[(pieces == n) & (GRID.kinds == BEGINS_WORD)].mean() for n in (1, 2, 3)]
    assert all(0.12 < share < 0.165 for share in shares), shares


@pytest.mark.parametrize("masking", [MASKING, WHOLE_WORD])
def test_80_10_10(masking):
    masked, chosen = masking.apply(GRID, epoch=0)
    before, after = GRID.tokens[chosen], masked[chosen]
    assert_share(after == MASK, 0.8)
    same = after == before
    assert_share(same, 0.1 + 0.1 / VOCABULARY)
    other = after[(after != MASK) & ~same]
    assert_share((after != MASK) & ~same, 0.1 - 0.1 / VOCABULARY)
    assert other.min() >= 0 and other.max() < VOCABULARY
    assert_share(other < VOCABULARY // 4, 0.25)
    assert np.array_equal(masked[~chosen], GRID.tokens[~chosen])
    assert masked.dtype == GRID.tokens.dtype and chosen.dtype == bool


def test_specials_and_padding_are_never_chosen():
    for rows in (GRID, PACKED):
        for masking in (MASKING, WHOLE_WORD):
            masked, chosen = dataclasses.replace(masking, rate=0.99).apply(rows, epoch=0)
            special = rows.kinds == SPECIAL
            assert special.any() and not chosen[special].any()
            assert np.array_equal(masked[special], rows.tokens[special])
    assert (PACKED.samples[-1] < 0).all(), "an empty row was among them"


@pytest.mark.parametrize("rows", [GRID, PACKED], ids=["grid", "packed"])
def test_whole_words_are_chosen_whole_or_not_at_all(rows):
    _, chosen = WHOLE_WORD.apply(rows, epoch=0)
    words = words_of(rows).ravel()
    pieces, chosen_pieces = np.bincount(words), np.bincount(words, weights=chosen.ravel())
    assert np.all((chosen_pieces == 0) | (chosen_pieces == pieces))
    assert ((chosen_pieces > 1) & (chosen_pieces == pieces)).any(), "no word of several pieces was chosen"
    _, single = MASKING.apply(rows, epoch=0)
    split = np.bincount(words, weights=single.ravel())
    assert ((split > 0) & (split < pieces)).any(), "token masking splits words"


def test_a_word_that_is_longer_than_the_share_is_left():
    rows = layout_of([SPECIAL, BEGINS_WORD, CONTINUES_WORD, SPECIAL])
    assert not any(WHOLE_WORD.apply(rows, epoch)[1].any() for epoch in range(20))
    assert all(MASKING.apply(rows, epoch)[1].sum() == 1 for epoch in range(20))


@pytest.mark.parametrize("masking", [MASKING, WHOLE_WORD])
def test_a_share_of_the_whole_row_takes_all_that_can_be_taken(masking):
    """Where the quota is the row's length, there is no token beyond it whose word would be left out."""
    kinds = [SPECIAL, *[BEGINS_WORD, CONTINUES_WORD] * 3, BEGINS_WORD, SPECIAL]
    for width in (len(kinds), len(kinds) + 3):
        rows = layout_of(kinds, width)
        _, chosen = dataclasses.replace(masking, rate=0.99).apply(rows, epoch=0)
        assert np.array_equal(chosen, rows.kinds != SPECIAL)
    rows = layout_of([BEGINS_WORD, CONTINUES_WORD, BEGINS_WORD])  # of a tokenizer without special tokens
    assert dataclasses.replace(masking, rate=0.99).apply(rows, epoch=0)[1].all()


def test_texts_without_a_word_have_nothing_to_choose():
    for masking in (MASKING, WHOLE_WORD):
        assert not masking.apply(layout_of([SPECIAL, SPECIAL], 5), epoch=0)[1].any()


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(12)), cut=st.integers(1, 11), epoch=st.integers(0, 10**6), whole=st.booleans())
def test_no_split_into_batches_changes_the_masks(order, cut, epoch, whole):
    masking = WHOLE_WORD if whole else MASKING
    rows = part(PACKED, slice(-20, -8))
    together, chosen = masking.apply(rows, epoch)
    for some in (list(order[:cut]), list(order[cut:])):
        masked, chosen_too = masking.apply(part(rows, some), epoch)
        assert np.array_equal(masked, together[some]) and np.array_equal(chosen_too, chosen[some])


@pytest.mark.parametrize("masking", [MASKING, WHOLE_WORD])
def test_more_padding_changes_nothing(masking):
    rows = pack(np.arange(600), LENGTHS, 128)
    masked, chosen = masking.apply(lay_out(rows, make_store(LENGTHS), 150, 130), epoch=1)
    narrow, narrow_chosen = masking.apply(lay_out(rows, make_store(LENGTHS), 128, 130), epoch=1)
    assert np.array_equal(masked[:, :128], narrow) and np.array_equal(chosen[:, :128], narrow_chosen)
    assert not chosen[:, 128:].any()


def test_what_a_token_becomes_does_not_depend_on_its_row():
    """Whether it is chosen does: the row's other tokens compete with it."""
    store = make_store(LENGTHS)
    rows = {
        "together": lay_out(pack(np.arange(600), LENGTHS, 128), store, 128),
        "alone": lay_out([np.array([sample]) for sample in range(600)], store, 128),
    }
    became = {}
    for name, laid in rows.items():
        masked, chosen = MASKING.apply(laid, epoch=0)
        keys = zip(laid.samples[chosen].tolist(), laid.positions[chosen].tolist(), strict=True)
        became[name] = dict(zip(keys, masked[chosen].tolist(), strict=True))
    both = became["together"].keys() & became["alone"].keys()
    assert len(both) > 1000 and became["together"].keys() != became["alone"].keys()
    assert all(became["together"][key] == became["alone"][key] for key in both)


@pytest.mark.parametrize("masking", [MASKING, WHOLE_WORD])
def test_epochs_seeds_and_samples_differ(masking):
    _, first = masking.apply(GRID, epoch=0)
    _, next_epoch = masking.apply(GRID, epoch=1)
    _, other_seed = dataclasses.replace(masking, seed=4).apply(GRID, epoch=0)
    _, other_samples = masking.apply(dataclasses.replace(GRID, samples=GRID.samples + 1000), epoch=0)
    starts = GRID.kinds == BEGINS_WORD  # of whole words, only one draw each is independent
    for other in (next_epoch, other_seed, other_samples):
        assert_share((first & other)[starts], first[starts].mean() * other[starts].mean())
    _, again = masking.apply(GRID, epoch=0)
    assert np.array_equal(first, again)


def test_the_draws_are_uniform_and_their_streams_independent():
    streams = ("choose", "replace", "token")
    draws = {stream: uniform(1, 2, GRID.samples, GRID.positions, stream) for stream in streams}
    for values in draws.values():
        assert values.min() >= 0 and values.max() < 1
        counts = np.histogram(values, bins=20, range=(0, 1))[0]
        expected = values.size / 20
        assert ((counts - expected) ** 2 / expected).sum() < 60, "chi-square with 19 degrees of freedom"
    for one, other in (("choose", "replace"), ("choose", "token"), ("replace", "token")):
        correlation = np.corrcoef(draws[one].ravel(), draws[other].ravel())[0, 1]
        assert abs(correlation) < 5 / math.sqrt(GRID.tokens.size)


def test_the_draws_are_pinned():
    """A resumed run, and a run of next year, must draw what this one draws."""
    drawn = uniform(1, 2, np.array([0, 7]), np.array([3, -1]), "token")
    assert drawn.tolist() == pytest.approx([0.8152778388386719, 0.8601086363615537], abs=1e-15)


@pytest.mark.parametrize(
    "masking, pinned",
    [
        (MASKING, {1: 655, 4: MASK, 7: MASK, 10: MASK, 15: MASK, 18: MASK}),
        (WHOLE_WORD, {4: MASK, 5: 15, 7: MASK, 8: MASK, 15: MASK}),  # the 15 was one
    ],
)
def test_the_masks_are_pinned(masking, pinned):
    kinds = [SPECIAL, *[BEGINS_WORD, CONTINUES_WORD, BEGINS_WORD] * 6, SPECIAL]
    masked, chosen = dataclasses.replace(masking, rate=0.3).apply(layout_of(kinds), epoch=2)
    assert {place: masked[0, place] for place in np.flatnonzero(chosen[0])} == pinned
