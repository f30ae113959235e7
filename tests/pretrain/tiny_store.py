"""Token stores that no tokenizer made, and what the stock model makes of their texts."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from pretrain.masking import Masking
from pretrain.packing import lay_out
from pretrain.token_store import BEGINS_WORD, CONTINUES_WORD, SPECIAL, TokenStore

FIRST_TOKEN = 5
"""Ids below are special."""


def make_store(lengths: Sequence[int], vocabulary: int = 1000, seed: int = 0) -> TokenStore:
    """Random texts between two special tokens, with words of one to three pieces (and, rarely, more)."""
    draw = np.random.default_rng(seed)
    offsets = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    tokens = draw.integers(FIRST_TOKEN, vocabulary, offsets[-1])
    kinds = np.where(draw.random(offsets[-1]) < 0.6, BEGINS_WORD, CONTINUES_WORD).astype(np.uint8)
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        kinds[start + 1 : start + 2] = BEGINS_WORD  # the first word has a beginning
        kinds[[*range(start, min(start + 1, end)), *range(max(start, end - 1), end)]] = SPECIAL
    return TokenStore(tokens.astype(np.uint16), kinds, offsets)


def tweet_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Word pieces of tweets, special tokens included: 22 on average, 3 to 128."""
    return np.clip(np.random.default_rng(seed).gamma(4.0, 5.5, size=count).astype(int), 3, 128)


def one_by_one(
    model: PreTrainedModel, rows: list[np.ndarray], store: TokenStore, masking: Masking, row_length: int, epoch: int
) -> torch.Tensor:
    """The stock model's loss, summed over masked tokens: each text alone, logits at every position, labels -100.

    The masks alone are those of the packed rows, which have a share to fill. Image words are a second segment.
    """
    laid = lay_out(rows, store, row_length)
    masked, chosen = masking.apply(laid, epoch)
    total = torch.zeros((), dtype=torch.float64)
    for sample in range(len(store)):
        here = laid.samples == sample
        tokens = store.tokens[store.offsets[sample] : store.offsets[sample + 1]].astype(np.int64)
        if not chosen[here].any():
            continue
        inputs = {"input_ids": masked[here], "labels": np.where(chosen[here], tokens, -100)}
        if store.text_lengths is not None:
            inputs["token_type_ids"] = (np.arange(len(tokens)) >= store.text_lengths[sample]).astype(np.int64)
        mean = model(**{name: torch.from_numpy(array)[None] for name, array in inputs.items()}).loss
        total = total + mean * int(chosen[here].sum())
    return total
