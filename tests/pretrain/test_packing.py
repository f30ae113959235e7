"""Packing: nothing lost, nothing too long, little padding, an order that (seed, epoch) decides."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.packing import cut_into_steps, epoch_order, lay_out, pack
from pretrain.texts import TokenizedTexts

ROW = 64
lengths_of_texts = st.lists(st.integers(2, ROW), min_size=1, max_size=200).map(np.asarray)


def make_tokenized(lengths: np.ndarray) -> TokenizedTexts:
    """Texts of these lengths whose tokens are all different; the first and last of each are special."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    words = np.concatenate([np.r_[-1, np.arange(1, n - 1), -1] for n in lengths]).astype(np.int32)
    tokens = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    return TokenizedTexts([f"text-{i}" for i in range(len(lengths))], tokens, words, offsets, truncated=0)


@settings(deadline=None)
@given(lengths=lengths_of_texts, seed=st.integers(0, 2**40), epoch=st.integers(0, 1000), per_step=st.integers(ROW, 500))
def test_an_epoch_has_every_text_once_and_no_row_is_too_long(lengths, seed, epoch, per_step):
    order = epoch_order(len(lengths), seed, epoch)
    steps = cut_into_steps(order, lengths, per_step)
    assert np.array_equal(np.concatenate(steps), order)
    rows = [row for step in steps for row in pack(step, lengths, ROW)]
    assert sorted(np.concatenate(rows)) == list(range(len(lengths)))
    assert all(0 < lengths[row].sum() <= ROW for row in rows)
    for step in steps:
        assert 0 < lengths[step].sum() < per_step + ROW
    assert all(lengths[step].sum() > per_step - ROW for step in steps[:-1])


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): epoch_order(500, seed, epoch) for seed in (1, 2) for epoch in (0, 1)}
    assert len({tuple(order) for order in orders.values()}) == 4
    np.random.seed(0)  # whoever seeds numpy does not change it
    assert all(np.array_equal(epoch_order(500, *key), order) for key, order in orders.items())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_little_is_padding_on_lengths_as_tweets_have(seed):
    """Word pieces per tweet: mean 22; rows of 128, steps of 8192 tokens."""
    lengths = np.clip(np.random.default_rng(seed).gamma(4.0, 5.5, size=3000).astype(int), 3, 128)
    steps = cut_into_steps(epoch_order(len(lengths), seed, 0), lengths, 8192)
    rows = sum(len(pack(step, lengths, 128)) for step in steps)
    padding = 1 - lengths.sum() / (rows * 128)
    assert padding < 0.03, padding


def test_a_text_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="65 tokens does not fit a row of 64"):
        pack(np.array([0, 1]), np.array([3, ROW + 1]), ROW)


@settings(max_examples=50, deadline=None)
@given(lengths=lengths_of_texts)
def test_laid_out_rows_hold_each_text_whole_with_its_own_positions(lengths):
    texts = make_tokenized(lengths)
    laid = lay_out(pack(np.arange(len(lengths)), lengths, ROW), texts, ROW)
    for sample, length in enumerate(lengths):
        here = laid["samples"] == sample
        rows, columns = np.nonzero(here)
        assert len(set(rows)) == 1 and np.array_equal(np.diff(columns), np.ones(length - 1))
        span = slice(texts.offsets[sample], texts.offsets[sample + 1])
        assert np.array_equal(laid["tokens"][here], texts.tokens[span])
        assert np.array_equal(laid["words"][here], texts.words[span])
        assert np.array_equal(laid["positions"][here], np.arange(length))
    padding = laid["samples"] < 0
    assert padding.sum() == laid["samples"].size - lengths.sum()
    for name, fill in (("tokens", 0), ("words", -1), ("positions", 0)):
        assert (laid[name][padding] == fill).all()
