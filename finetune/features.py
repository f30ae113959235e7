"""Tweets as model inputs: words become word pieces, image words the second segment, tags label ids.

Shapes: B tweets, T word pieces of the longest, W words of the longest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from finetune.word_shapes import shape_of

SPECIAL_TOKENS = 3
"""[CLS] and two [SEP]."""
TOKENIZED_AT_ONCE = 1000
PLAIN = {"add_special_tokens": False, "split_special_tokens": True}
"""How words are tokenized: a post that holds ``[SEP]`` holds three characters and a word, no separator."""
LENGTHS_APART = 4
"""Batches are padded to multiples of this: products are prepared anew for each shape that comes up, in half a millisecond."""


@dataclass(frozen=True)
class InputFormat:
    """How a tweet and its image words are laid out; part of a recognizer, stored in its ``config.json``."""

    maximum_length: int = 128
    """Word pieces of an input, special tokens included."""
    image_length: int = 32
    """Word pieces of the image words at the most."""
    image_words_joiner: str = ", "
    """What stands between two image words."""
    word_shapes: bool = False
    """Whether the model reads how the tweet's words are written, beside their pieces (:mod:`finetune.word_shapes`)."""

    def __post_init__(self) -> None:
        if self.image_length < 0:
            raise ValueError(f"image_length ({self.image_length}) is negative")
        if self.maximum_length - self.image_length - SPECIAL_TOKENS < 1:
            raise ValueError(
                f"maximum_length ({self.maximum_length}) leaves no room for words beside image_length "
                f"({self.image_length}) and {SPECIAL_TOKENS} special tokens"
            )


@dataclass(frozen=True)
class Encoded:
    """One tweet as the model reads it."""

    pieces: list[int]
    """Ids of ``[CLS] tweet [SEP] image words [SEP]``."""
    text_length: int
    """How many of them belong to the first segment."""
    first_piece: list[int]
    """Place in ``pieces`` of the first piece of each word; words that were cut off have none."""
    words: int
    """Words of the tweet, those that were cut off included."""
    shapes: list[int] | None = None
    """For each piece of the first segment the shape of its word, where the model reads them."""

    @property
    def words_truncated(self) -> int:
        """Words that did not fit."""
        return self.words - len(self.first_piece)


@dataclass(frozen=True)
class PieceInputs:
    """Tweets as word pieces; see :class:`finetune.inputs.Inputs`."""

    encoded: list[Encoded]
    pad_token: int
    maximum_length: int
    """Word pieces at the most, padding included."""

    @cached_property
    def columns(self) -> Columns:
        """All tweets, to cut batches from."""
        return Columns.of(self.encoded)

    @property
    def lengths(self) -> list[int]:
        """Word pieces of each tweet."""
        return [len(tweet.pieces) for tweet in self.encoded]

    @property
    def words_truncated(self) -> list[int]:
        """Words of each tweet that did not fit."""
        return [tweet.words_truncated for tweet in self.encoded]

    def pieces_in_use(self) -> np.ndarray:
        """Ids of all pieces that there are, with that of the padding."""
        return np.unique(np.append(self.columns.pieces, self.pad_token))

    def batch(self, tweets: Sequence[int], labels: Sequence[Sequence[int]] | None = None) -> dict[str, torch.Tensor]:
        """Tensors of some of the tweets, as :meth:`Columns.batch` makes them, in lengths that are :data:`LENGTHS_APART`."""
        return self.columns.batch(tweets, labels, self.pad_token, LENGTHS_APART, self.maximum_length)


@dataclass(frozen=True)
class PieceReader:
    """Reads tweets as word pieces with an encoder's tokenizer; see :class:`finetune.inputs.Reader`."""

    tokenizer: PreTrainedTokenizerBase
    layout: InputFormat

    def read(self, words: Sequence[Sequence[str]], image_words: Sequence[Sequence[str]]) -> PieceInputs:
        """Tweets as :func:`encode` lays them out."""
        encoded = encode(words, image_words, self.tokenizer, self.layout)
        return PieceInputs(encoded, self.tokenizer.pad_token_id, self.layout.maximum_length)

    def save(self, folder: Path) -> None:
        """Write the tokenizer; the layout is part of the model's configuration."""
        self.tokenizer.save_pretrained(folder)


def encode(
    words_of_tweets: Sequence[Sequence[str]],
    image_words_of_tweets: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    layout: InputFormat,
) -> list[Encoded]:
    """Tokenize tweets given as words. A word that the tokenizer reduces to nothing becomes the unknown token."""
    image_texts = [layout.image_words_joiner.join(words) for words in image_words_of_tweets]
    image_pieces = _pieces(image_texts, tokenizer)
    encoded = []
    for start in range(0, len(words_of_tweets), TOKENIZED_AT_ONCE):
        chunk = [list(words) for words in words_of_tweets[start : start + TOKENIZED_AT_ONCE]]
        filled = [index for index, words in enumerate(chunk) if words]
        encodings = dict(
            zip(
                filled,
                tokenizer([chunk[i] for i in filled], is_split_into_words=True, **PLAIN).encodings if filled else [],
                strict=True,
            )
        )
        for index, words in enumerate(chunk):
            image = image_pieces[start + index][: layout.image_length]
            room = layout.maximum_length - SPECIAL_TOKENS - len(image)
            encoding = encodings.get(index)
            pieces, first_piece = _align(
                encoding.ids if encoding else [],
                encoding.word_ids if encoding else [],
                len(words),
                tokenizer.unk_token_id,
            )
            fitting = [place for place in first_piece if place < room]
            text = [tokenizer.cls_token_id, *pieces[:room], tokenizer.sep_token_id]
            second = [*image, tokenizer.sep_token_id] if image else []
            shapes = [0, *_shapes(words, first_piece, len(pieces))[:room], 0] if layout.word_shapes else None
            encoded.append(Encoded(text + second, len(text), [place + 1 for place in fitting], len(words), shapes))
    return encoded


@dataclass(frozen=True)
class Columns:
    """What tweets have, one behind another, so that a batch is cut from it at once."""

    pieces: np.ndarray
    piece_start: np.ndarray
    """Of each tweet, and behind the last."""
    text_length: np.ndarray
    first_piece: np.ndarray
    word_start: np.ndarray
    shapes: np.ndarray | None

    @classmethod
    def of(cls, tweets: Sequence[Encoded]) -> Columns:
        """Of encoded tweets."""
        shapes = None
        if tweets and tweets[0].shapes is not None:  # of the second segment it is 0
            shapes = numbers((*tweet.shapes, *[0] * (len(tweet.pieces) - tweet.text_length)) for tweet in tweets)
        return cls(
            numbers(tweet.pieces for tweet in tweets),
            starts(len(tweet.pieces) for tweet in tweets),
            numbers((tweet.text_length,) for tweet in tweets)[:, None],
            numbers(tweet.first_piece for tweet in tweets),
            starts(len(tweet.first_piece) for tweet in tweets),
            shapes,
        )

    def batch(
        self,
        tweets: Sequence[int],
        labels: Sequence[Sequence[int]] | None,
        pad_token: int,
        multiple: int = 1,
        maximum_length: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Tensors of some tweets for :class:`finetune.tagger.PieceTagger`, padded to the longest of them.

        ``labels`` are ids for each of their words. Token types are 0 in the first segment and the padding, 1 in the image
        words. Pieces and words are padded on to the next ``multiple``, pieces to no more than ``maximum_length``.
        """
        rows = np.asarray(tweets)
        place_BT, there_BT = self._places(self.piece_start, rows, multiple, maximum_length)
        place_BW, word_mask_BW = self._places(self.word_start, rows, multiple)
        second_BT = there_BT & (np.arange(there_BT.shape[1]) >= self.text_length[rows])
        arrays = {
            "input_ids_BT": np.where(there_BT, self.pieces.take(place_BT, mode="clip"), pad_token),
            "attention_mask_BT": there_BT.astype(np.int64),
            "token_type_ids_BT": second_BT.astype(np.int64),
            "first_piece_BW": taken(self.first_piece, place_BW, word_mask_BW),
            "word_mask_BW": word_mask_BW,
        }
        if self.shapes is not None:
            arrays["shape_ids_BT"] = taken(self.shapes, place_BT, there_BT)
        if labels is not None:
            labels_BW = np.zeros(word_mask_BW.shape, np.int64)
            counts = word_mask_BW.sum(axis=1).tolist()
            labels_BW[word_mask_BW] = numbers(row[:count] for row, count in zip(labels, counts, strict=True))
            arrays |= {"labels_BW": labels_BW, "weight": np.asarray(sum(counts))}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @staticmethod
    def _places(
        start: np.ndarray, rows: np.ndarray, multiple: int, maximum: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where each row's numbers stand, padded to one length, and which of them are no padding."""
        first = start[rows, None]
        counts = start[rows + 1, None] - first
        longest = max(1, int(counts.max()))
        within = np.arange(min(rounded_up(longest, multiple), max(longest, maximum or math.inf)))
        return first + within, within < counts


def numbers(rows: Iterable[Iterable[int]]) -> np.ndarray:
    """All rows' numbers, one behind another."""
    return np.fromiter(chain.from_iterable(rows), np.int64)


def starts(counts: Iterable[int]) -> np.ndarray:
    """Where each row begins, and behind the last."""
    return np.fromiter(accumulate(counts, initial=0), np.int64)


def taken(x: np.ndarray, places: np.ndarray, there: np.ndarray) -> np.ndarray:
    """What stands at the places; 0 at those that are padding."""
    return np.where(there, x.take(places, mode="clip"), 0) if len(x) else np.zeros(places.shape, np.int64)


def rounded_up(length: int, multiple: int) -> int:
    """The length or the next multiple."""
    return -(-length // multiple) * multiple


def image_words_read(image_words: Sequence[Sequence[str]], mode: str, seed: int) -> Sequence[Sequence[str]]:
    """What is read of the tweets' image words: their own (``given``), another tweet's (``shuffled``), or ``none``."""
    if mode == "none":
        return [()] * len(image_words)
    return shuffled(image_words, seed) if mode == "shuffled" else image_words


def shuffled(image_words: Sequence[Sequence[str]], seed: int) -> list[Sequence[str]]:
    """Every tweet gets another tweet's image words: one cycle through all of them, in a random order."""
    order = np.random.Generator(np.random.Philox(key=[seed, 0x1AA6E])).permutation(len(image_words))
    result: list[Sequence[str]] = [()] * len(image_words)
    for place, source in zip(order, np.roll(order, 1), strict=True):
        result[place] = image_words[source]
    return result


def _pieces(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return tokenizer(texts, **PLAIN)["input_ids"] if texts else []


def _shapes(words: Sequence[str], first_piece: Sequence[int], pieces: int) -> list[int]:
    """The shape of each piece's word."""
    ends = [*first_piece[1:], pieces][: len(words)]  # none in a tweet without words
    return [
        shape
        for word, start, end in zip(words, first_piece, ends, strict=True)
        for shape in [shape_of(word)] * (end - start)
    ]


def _align(ids: list[int], word_ids: list[int], words: int, unknown: int) -> tuple[list[int], list[int]]:
    """The pieces of all words in order, and the place of each word's first; a word without pieces gets ``unknown``."""
    pieces: list[int] = []
    first_piece: list[int] = []
    position = 0
    for word in range(words):
        first_piece.append(len(pieces))
        start = position
        while position < len(ids) and word_ids[position] == word:
            position += 1
        pieces += ids[start:position] or [unknown]
    return pieces, first_piece
