"""Token stores that no tokenizer made: texts of given lengths."""

from collections.abc import Sequence

import numpy as np

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
