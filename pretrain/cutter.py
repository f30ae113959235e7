"""Texts and image words become tokens: `[CLS] text [SEP]`, or `[CLS] text [SEP] image words [SEP]` as for recognizers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from launch.errors import InputError
from pretrain.token_store import BEGINS_WORD, CONTINUES_WORD, SPECIAL

SPECIAL_TOKENS = 3
"""Of a text with image words: [CLS] and two [SEP]."""


@dataclass(frozen=True)
class Cut:
    """Some texts, one after another."""

    tokens: np.ndarray
    kinds: np.ndarray
    """uint8, of `pretrain.token_store`."""
    lengths: np.ndarray
    """int64, tokens of each text with its image words."""
    text_lengths: np.ndarray
    """int32, without them."""
    truncated: int


class Cutter:
    """Tokenizes on all cores, and cuts what is too long; the tokenizer that it is made of stays as it is."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        maximum_length: int,
        image_length: int = 32,
        image_words_joiner: str = ", ",
    ) -> None:
        """``image_length``: word pieces of the image words at the most, of ``maximum_length`` for all."""
        self.maximum_length, self.image_length, self.joiner = maximum_length, image_length, image_words_joiner
        self.cls_token, self.sep_token = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.cuts_left = tokenizer.truncation_side == "left"
        self._alone = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._alone.no_padding()
        self._alone.no_truncation()
        self._alone.encode_special_tokens = True  # a post that holds [SEP] holds characters and a word, no separator
        self._parts = Tokenizer.from_str(self._alone.to_str())  # of pairs: cut here, since one depends on the other
        self._parts.encode_special_tokens = True
        self._alone.enable_truncation(maximum_length, direction=tokenizer.truncation_side)
        self.token_type = np.dtype(np.uint16 if self._alone.get_vocab_size() <= 1 << 16 else np.uint32)

    @property
    def identity(self) -> str:
        """What decides the tokens."""
        pairs = [self.image_length, self.joiner, self.cls_token, self.sep_token]
        return json.dumps([self._alone.to_str(), self._alone.encode_special_tokens, pairs])

    def cut(self, texts: Sequence[str], image_words: Sequence[Sequence[str]] | None = None) -> Cut:
        """The tokens of some texts, each with its image words behind it, if it has any."""
        pairs = self._pairs(texts, image_words) if image_words is not None else {}
        encodings = self._alone.encode_batch([text for row, text in enumerate(texts) if row not in pairs])
        truncated = sum(bool(encoding.overflowing) for encoding in encodings)
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        tokens, kinds = self._arrays(encodings, lengths)
        if not pairs:
            return Cut(tokens, kinds, lengths, lengths.astype(np.int32), truncated)
        borders = np.cumsum(lengths)[:-1]
        alone = zip(np.split(tokens, borders), np.split(kinds, borders), lengths.tolist(), strict=True)
        rows = [pairs[row][:3] if row in pairs else next(alone) for row in range(len(texts))]
        return Cut(
            np.concatenate([row[0] for row in rows]),
            np.concatenate([row[1] for row in rows]),
            np.array([len(row[0]) for row in rows], np.int64),
            np.array([row[2] for row in rows], np.int32),
            truncated + sum(was_cut for *_, was_cut in pairs.values()),
        )

    def _pairs(
        self, texts: Sequence[str], image_words: Sequence[Sequence[str]]
    ) -> dict[int, tuple[np.ndarray, np.ndarray, int, bool]]:
        """Tokens, kinds and length of the text of the rows that have image words, and whether one was cut."""
        rows = [row for row, words in enumerate(image_words) if words]
        if rows and (self.cls_token is None or self.sep_token is None):
            raise InputError("the tokenizer has no [CLS] or no [SEP], which image words need. Give --image_words none.")
        if rows and self.maximum_length - self.image_length - SPECIAL_TOKENS < 1:
            raise InputError(
                f"image_length: {self.image_length} leaves no room for a text in rows of {self.maximum_length}. Lower it."
            )
        both = zip(
            rows,
            self._split([texts[row] for row in rows]),
            self._split_image_words([image_words[row] for row in rows]),
            strict=True,
        )
        pairs = {}
        for row, text, image in both:
            if not len(image[0]):
                continue
            room = self.maximum_length - SPECIAL_TOKENS - min(len(image[0]), self.image_length)
            was_cut = len(text[0]) > room or len(image[0]) > self.image_length
            text, image = (
                [array[-room:] if self.cuts_left else array[:room] for array in text],
                [array[: self.image_length] for array in image],
            )
            cls, sep = (np.array([token], self.token_type) for token in (self.cls_token, self.sep_token))
            special = np.array([SPECIAL], np.uint8)
            pairs[row] = (
                np.concatenate([cls, text[0], sep, image[0], sep]),
                np.concatenate([special, text[1], special, image[1], special]),
                len(text[0]) + 2,
                was_cut,
            )
        return pairs

    def _split(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Tokens and kinds of each text, whole and without special tokens."""
        return self._parts_of(self._parts.encode_batch(texts, add_special_tokens=False))

    def _split_image_words(self, image_words: list[Sequence[str]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """The same of each text's image words; what joins them is special, since it is the same everywhere."""
        joined = [self.joiner.join(words) for words in image_words]
        encodings = self._parts.encode_batch(joined, add_special_tokens=False)
        parts = self._parts_of(encodings)
        for words, encoding, (_, kinds) in zip(image_words, encodings, parts, strict=True):
            kinds[between_words(words, self.joiner, encoding.offsets)] = SPECIAL
        return parts

    def _parts_of(self, encodings: Sequence[Encoding]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Tokens and kinds of each encoding."""
        if not encodings:
            return []
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        borders = np.cumsum(lengths)[:-1]
        tokens, kinds = self._arrays(encodings, lengths)
        return list(zip(np.split(tokens, borders), np.split(kinds, borders), strict=True))

    def _arrays(self, encodings: Sequence[Encoding], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and kinds of some texts, one text after another, the kinds from the number of each token's word."""
        tokens = np.concatenate(
            [np.asarray(e.ids, self.token_type) for e in encodings] or [np.empty(0, self.token_type)]
        )
        word_ids = chain.from_iterable(encoding.word_ids for encoding in encodings)
        words = np.array(list(word_ids), dtype=np.float32)  # None becomes NaN, which equals nothing
        continues = np.r_[False, words[1:] == words[:-1]][: len(words)]
        continues[(np.cumsum(lengths) - lengths)[lengths > 0]] = (
            False  # also where no special token is between two texts
        )
        kinds = np.where(np.isnan(words), SPECIAL, np.where(continues, CONTINUES_WORD, BEGINS_WORD)).astype(np.uint8)
        return tokens, kinds


def between_words(words: Sequence[str], joiner: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which tokens, given where they begin and end in ``joiner.join(words)``, hold nothing of a word (bool)."""
    lengths = np.array([len(word) for word in words])
    ends = np.cumsum(lengths + len(joiner)) - len(joiner)
    token_begins, token_ends = np.array(offsets, np.int64).reshape(-1, 2).T
    word = np.minimum(np.searchsorted(ends, token_begins, side="right"), len(words) - 1)  # the first that ends later
    return (ends - lengths)[word] >= token_ends
