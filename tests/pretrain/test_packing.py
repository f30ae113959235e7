"""Packing: nothing lost, nothing too long, little padding, an order that (seed, epoch) decides."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tiny_store import make_store, tweet_lengths

from pretrain import packing
from pretrain.packing import Layout, PackedSteps, lay_out, pack, rows_of_step
from pretrain.permutation import permuted
from pretrain.token_store import SPECIAL, TokenStore

ROW = 64
lengths_of_texts = st.lists(st.integers(0, ROW), min_size=1, max_size=200).map(np.asarray)


def samples_of(rows: Sequence[np.ndarray]) -> list[int]:
    return np.concatenate(rows).tolist()


@settings(deadline=None)
@given(
    lengths=lengths_of_texts,
    seed=st.none() | st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
    per_step=st.integers(ROW, 500),
)
@example(lengths=np.array([0, 5, 0, 0]), seed=None, epoch=0, per_step=ROW)  # texts without a token, first and last
@example(lengths=np.array([0, 0]), seed=1, epoch=0, per_step=ROW)
@example(lengths=np.array([ROW]), seed=1, epoch=0, per_step=ROW)
@example(lengths=np.full(7, ROW), seed=1, epoch=0, per_step=ROW)
def test_an_epoch_has_every_text_once_and_no_row_is_too_long(lengths, seed, epoch, per_step):
    store = make_store(lengths)
    steps = PackedSteps(store, ROW, per_step, seed, epoch)
    order = np.arange(len(lengths)) if seed is None else permuted(np.arange(len(lengths)), len(lengths), seed, epoch)
    all_rows = list(steps)
    assert len(all_rows) == len(steps) >= 1
    start = 0
    for rows in all_rows:  # each step takes the next texts of the order
        samples = samples_of(rows)
        assert sorted(samples) == sorted(order[start : start + len(samples)].tolist())
        start += len(samples)
        assert all(len(row) and lengths[row].sum() <= ROW for row in rows)
    assert start == len(lengths)
    tokens = np.array([lengths[samples_of(rows)].sum() for rows in all_rows])
    assert (tokens[1:] > 0).all() and (tokens < per_step + ROW).all()
    assert (tokens[:-1] > per_step - ROW).all()
    ends = np.cumsum(tokens)  # no drift: whatever the lengths, step n ends where n steps' tokens are full
    assert (np.abs(ends - per_step * np.arange(1, len(ends) + 1))[:-1] < ROW).all()


@settings(max_examples=30, deadline=None)
@given(lengths=lengths_of_texts, at_once=st.integers(1, 50), per_step=st.integers(ROW, 300))
@example(lengths=np.array([0, 0, 3, 0, ROW, ROW, 0, ROW]), at_once=1, per_step=ROW)
def test_steps_are_cut_alike_however_many_lengths_are_looked_up_at_once(lengths, at_once, per_step):
    store = make_store(lengths)
    expected = PackedSteps(store, ROW, per_step, seed=3, epoch=1).starts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "SAMPLES_AT_ONCE", at_once)
        assert np.array_equal(PackedSteps(store, ROW, per_step, seed=3, epoch=1).starts, expected)


def test_steps_can_be_asked_for_in_any_order_and_end():
    steps = PackedSteps(make_store(tweet_lengths(300)), 128, 1024, seed=1, epoch=0)
    rows = [samples_of(step) for step in steps]
    assert len(rows) > 5 and [samples_of(steps[index]) for index in (4, 0)] == [rows[4], rows[0]]
    for index in (-1, len(steps)):
        with pytest.raises(IndexError):
            steps[index]


def test_the_order_is_a_function_of_seed_and_epoch():
    store = make_store(tweet_lengths(300))
    of = lambda seed, epoch: [samples_of(rows) for rows in PackedSteps(store, 128, 1024, seed, epoch)]  # noqa: E731
    keys = [(seed, epoch) for seed in (1, 2) for epoch in (0, 1)]
    orders = {key: of(*key) for key in keys}
    assert len({str(order) for order in orders.values()}) == 4
    np.random.seed(0)  # whoever seeds numpy does not change it
    assert all(of(*key) == order for key, order in orders.items())


def test_an_epoch_of_a_single_step():
    steps = PackedSteps(make_store([3, 9, 4]), ROW, 8192, seed=1, epoch=0)
    assert len(steps) == 1 and sorted(samples_of(steps[0])) == [0, 1, 2] and len(steps[0]) == 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_little_is_padding_on_lengths_as_tweets_have(seed):
    """Word pieces per tweet: mean 22; rows of 128, steps of 8192 tokens."""
    lengths = tweet_lengths(3000, seed)
    rows = sum(len(rows) for rows in PackedSteps(make_store(lengths), 128, 8192, seed, 0))
    padding = 1 - lengths.sum() / (rows * 128)
    assert padding < 0.03, padding


@pytest.mark.parametrize("per_step, row_length", [(8192, 128), (4096, 128), (16384, 256)])
def test_the_rows_of_tweets_are_as_many_as_was_foreseen(per_step, row_length):
    """More than foreseen cost a micro-batch of their own, so they must be rare."""
    foreseen = rows_of_step(per_step, row_length)
    store = make_store(tweet_lengths(40_000))
    counts = np.array([len(rows) for rows in PackedSteps(store, row_length, per_step, seed=1, epoch=0)])
    assert (counts[:-1] > foreseen).mean() < 0.02, counts
    assert (counts[:-1] >= 0.95 * foreseen).all(), "and hardly less: empty rows are computed, too"


@pytest.mark.parametrize("tokens, rows", [(64, 2), (8192, 130), (63, 1), (6304, 100), (6305, 101)])
def test_foreseen_rows(tokens, rows):
    assert rows_of_step(tokens, 64) == rows


def first_fit(lengths: Sequence[int]) -> list[list[int]]:
    """First-fit decreasing as it is told."""
    rows: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        for row in rows:
            if sum(lengths[other] for other in row) + lengths[place] <= ROW:
                row.append(place)
                break
        else:
            rows.append([place])
    return rows


@settings(max_examples=50, deadline=None)
@given(lengths=lengths_of_texts)
def test_packing_is_first_fit_decreasing(lengths):
    samples = 1000 + np.arange(len(lengths))[::-1]
    rows = pack(samples, lengths, ROW)
    assert [row.tolist() for row in rows] == [samples[row].tolist() for row in first_fit(lengths.tolist())]


def test_a_text_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="65 tokens does not fit a row of 64"):
        pack(np.array([0, 1]), np.array([3, ROW + 1]), ROW)
    with pytest.raises(ValueError, match="65 tokens does not fit a row of 64"):
        list(PackedSteps(make_store([3, ROW + 1, 5]), ROW, 100, seed=1, epoch=0))


def lay_out_plainly(rows: Sequence[np.ndarray], store: TokenStore, row_length: int, row_count: int) -> Layout:
    """A token at a time."""
    fills = {"tokens": 0, "samples": -1, "positions": 0, "kinds": SPECIAL}
    laid = {name: np.full((row_count, row_length), fill, np.int64) for name, fill in fills.items()}
    for index, row in enumerate(rows):
        column = 0
        for sample in row.tolist():
            for position, place in enumerate(range(store.offsets[sample], store.offsets[sample + 1])):
                laid["tokens"][index, column] = store.tokens[place]
                laid["samples"][index, column] = sample
                laid["positions"][index, column] = position
                laid["kinds"][index, column] = store.kinds[place]
                column += 1
    return Layout(**laid)


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_texts, more_rows=st.integers(0, 3), data=st.data())
@example(lengths=np.array([0]), more_rows=1, data=None)
@example(lengths=np.array([ROW, ROW]), more_rows=0, data=None)
def test_rows_are_laid_out_as_the_plain_way_lays_them(lengths, more_rows, data):
    store = make_store(lengths)
    rows = pack(np.arange(len(lengths)), lengths, ROW)
    if data:  # some of the rows, as a micro-batch has them
        rows = data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=len(rows)), label="rows")
    row_count = len(rows) + more_rows
    laid, expected = lay_out(rows, store, ROW, row_count), lay_out_plainly(rows, store, ROW, row_count)
    for name, dtype in {"tokens": int, "samples": int, "positions": int, "kinds": np.uint8}.items():
        assert np.array_equal(getattr(laid, name), getattr(expected, name)), name
        assert getattr(laid, name).dtype == dtype and type(getattr(laid, name)) is np.ndarray, name
    if not more_rows:
        assert np.array_equal(lay_out(rows, store, ROW).tokens, laid.tokens)


def test_tokens_of_the_highest_ids_are_laid_out_whole():
    for dtype in (np.uint16, np.uint32):
        most = np.iinfo(dtype).max
        store = TokenStore(np.array([1, most, 2], dtype), np.array([0, 1, 0], np.uint8), np.array([0, 3]))
        assert lay_out([np.array([0])], store, 4).tokens.tolist() == [[1, most, 2, 0]]


@settings(max_examples=50, deadline=None)
@given(lengths=lengths_of_texts)
def test_laid_out_rows_hold_each_text_whole_with_its_own_positions(lengths):
    assume(lengths.sum() > 0)
    store = make_store(lengths)
    laid = lay_out(pack(np.arange(len(lengths)), lengths, ROW), store, ROW)
    for sample, length in enumerate(lengths):
        here = laid.samples == sample
        rows, columns = np.nonzero(here)
        assert len(set(rows)) == min(length, 1) and (np.diff(columns) == 1).all()
        span = slice(store.offsets[sample], store.offsets[sample + 1])
        assert np.array_equal(laid.tokens[here], store.tokens[span])
        assert np.array_equal(laid.kinds[here], store.kinds[span])
        assert np.array_equal(laid.positions[here], np.arange(length))
    padding = laid.samples < 0
    assert padding.sum() == laid.samples.size - lengths.sum()
    for name, fill in (("tokens", 0), ("kinds", SPECIAL), ("positions", 0)):
        assert (getattr(laid, name)[padding] == fill).all()
