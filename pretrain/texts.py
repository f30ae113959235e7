"""Texts as one flat array of token ids: what masking and packing work on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from launch.errors import InputError

TOKENIZED_AT_ONCE = 2000


@dataclass(frozen=True)
class TokenizedTexts:
    """``n`` texts, special tokens included; text ``i`` is ``tokens[offsets[i] : offsets[i + 1]]``."""

    ids: list[str]
    """The samples' ids in the data set."""
    tokens: np.ndarray
    """int32, all texts one after another."""
    words: np.ndarray
    """int32, for each token the position in its text of its word's first token; -1 for special tokens."""
    offsets: np.ndarray
    """int64, n + 1 entries."""
    truncated: int
    """Texts that were cut at the maximum length."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.ids)


def tokenize(
    ids: list[str],
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    maximum_length: int,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> TokenizedTexts:
    """Tokenize texts with special tokens, cut at ``maximum_length`` tokens."""
    tokens, words, lengths, truncated = [], [], [], 0
    for start in progress(range(0, len(texts), TOKENIZED_AT_ONCE)):
        batch = tokenizer(
            texts[start : start + TOKENIZED_AT_ONCE],
            truncation=True,
            max_length=maximum_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        for encoding in batch.encodings:
            tokens.append(np.asarray(encoding.ids, dtype=np.int32))
            words.append(first_token_of_word(encoding.word_ids))
            lengths.append(len(encoding.ids))
            truncated += bool(encoding.overflowing)
    if not texts:
        raise InputError("there is no text to train on: the split is empty.")
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return TokenizedTexts(ids, np.concatenate(tokens), np.concatenate(words), offsets, truncated)


def first_token_of_word(word_ids: list[int | None]) -> np.ndarray:
    """For each token the position of its word's first token; -1 for special tokens. int32."""
    first: dict[int, int] = {}
    positions = (-1 if word is None else first.setdefault(word, i) for i, word in enumerate(word_ids))
    return np.fromiter(positions, dtype=np.int32, count=len(word_ids))
