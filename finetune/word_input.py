"""Tweets for the systems on word vectors: words, their characters, and the words of their images, all as ids.

Shapes: B tweets, W words of the longest, U distinct words of the batch, C characters of a word, I image words of a tweet,
S distinct words of all tweets that are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import cached_file

from finetune.vectors import is_entry
from finetune.word_model import ENTRIES_FROM, PADDING, UNKNOWN
from launch.errors import InputError, first_line

SEEN_AT_LEAST = 2
"""How often characters and image words must be there in training to get a vector of their own. The others share that of the
unknown, which so is trained, too."""

WORDS_FILE, CHARACTERS_FILE, IMAGE_WORDS_FILE = "words.txt", "characters.txt", "image_words.txt"


@dataclass(frozen=True)
class WordFormat:
    """How much of a tweet is read (Tables 5 to 7); part of a recognizer, stored in its ``config.json``."""

    words: int = 35
    """Words of a tweet at the most."""
    characters: int = 40
    """Characters of a word at the most; 0 where a system reads none."""
    image_words: int = 5
    """Words of an image at the most; 0 where a system reads none."""

    def __post_init__(self) -> None:
        if self.words < 1 or self.characters < 0 or self.image_words < 0:
            raise ValueError(f"words ({self.words}) must be positive, characters and image_words not negative")


class Vocabulary:
    """Entries, each with an id; in a file it is one entry a line. Padding and what is unknown have ids before them."""

    def __init__(self, entries: Sequence[str]) -> None:
        self.entries = list(entries)
        self._ids = {entry: place for place, entry in enumerate(self.entries, start=ENTRIES_FROM)}
        if len(self._ids) < len(self.entries):
            raise ValueError("an entry is there twice")

    def __len__(self) -> int:
        return len(self.entries) + ENTRIES_FROM

    def id_of(self, entry: str) -> int:
        """The entry's id, or that of the unknown."""
        return self._ids.get(entry, UNKNOWN)

    def id_of_word(self, word: str) -> int:
        """The word's id, or that of its lower case, or that of the unknown."""
        return self._ids.get(word) or self.id_of(word.lower())

    def save(self, path: Path) -> None:
        """Write the entries, one a line."""
        path.write_text("".join(f"{entry}\n" for entry in self.entries), encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what :meth:`save` wrote."""
        return cls(path.read_bytes().decode("utf-8").split("\n")[:-1])

    @classmethod
    def of(cls, texts: Iterable[str]) -> Vocabulary:
        """What is there at least twice, in order."""
        counts = Counter(texts)
        return cls(sorted(text for text, n in counts.items() if n >= SEEN_AT_LEAST and is_entry(text)))


@dataclass(frozen=True)
class WordInputs:
    """Tweets as ids; see :class:`finetune.inputs.Inputs`."""

    word_ids: list[np.ndarray]
    """Of each tweet, those of the words that fit."""
    spellings: list[np.ndarray]
    """Of each of these words, its row in ``character_ids_SC``."""
    character_ids_SC: np.ndarray
    image_word_ids: list[np.ndarray]
    """Of each tweet, those of the image words that fit."""
    words_truncated: list[int]
    image_words_truncated: list[int]
    layout: WordFormat

    @property
    def lengths(self) -> list[int]:
        """Words of each tweet that are read."""
        return [len(ids) for ids in self.word_ids]

    def batch(self, tweets: Sequence[int], labels: Sequence[Sequence[int]] | None = None) -> dict[str, torch.Tensor]:
        """``word_ids_BW`` and what else the layout has: ``character_ids_UC`` of the batch's distinct words with each
        word's row among them, ``spelling_BW``; ``image_word_ids_BI``."""
        word_ids_BW = padded([self.word_ids[tweet] for tweet in tweets])
        arrays = {"word_ids_BW": word_ids_BW, "word_mask_BW": word_ids_BW != PADDING}
        if self.layout.characters:
            # Padding has the spelling of any word: nothing reads it.
            places_BW = padded([self.spellings[tweet] for tweet in tweets])
            distinct_U, spelling = np.unique(places_BW, return_inverse=True)
            arrays["character_ids_UC"] = self.character_ids_SC[distinct_U]
            arrays["spelling_BW"] = spelling.reshape(places_BW.shape)
        if self.layout.image_words:
            arrays["image_word_ids_BI"] = padded([self.image_word_ids[tweet] for tweet in tweets])
        if labels is not None:
            fitting = zip(tweets, labels, strict=True)
            arrays["labels_BW"] = padded([np.asarray(ids[: len(self.word_ids[tweet])]) for tweet, ids in fitting])
            arrays["weight"] = np.asarray(int(arrays["word_mask_BW"].sum()))
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass(frozen=True)
class WordReader:
    """Reads tweets by vocabularies; see :class:`finetune.inputs.Reader`."""

    words: Vocabulary
    characters: Vocabulary
    image_words: Vocabulary
    layout: WordFormat

    @classmethod
    def of(cls, words: Sequence[str], training_rows: Sequence[dict[str, Any]], layout: WordFormat) -> WordReader:
        """For words that have vectors, with the characters and image words of the training rows that the layout reads."""
        tokens = (token for row in training_rows for token in row["tokens"] if layout.characters)
        entries = (row["image_words"] for row in training_rows if layout.image_words)
        return cls(
            Vocabulary(words),
            Vocabulary.of(character for token in tokens for character in token),
            Vocabulary.of(entry for words in entries for entry in image_entries(words)[: layout.image_words]),
            layout,
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Rows that the embeddings of a model need, as its configuration calls them."""
        sizes = {"words": len(self.words)}
        if self.layout.characters:
            sizes |= {"characters": len(self.characters), "word_length": self.layout.characters}
        if self.layout.image_words:
            sizes |= {"image_words": len(self.image_words)}
        return sizes

    def read(self, words: Sequence[Sequence[str]], image_words: Sequence[Sequence[str]]) -> WordInputs:
        """Tweets as ids."""
        spelling_of: dict[str, int] = {}
        word_ids, spellings, image_word_ids, words_truncated, image_words_truncated = [], [], [], [], []
        for tweet, of_image in zip(words, image_words, strict=True):
            fitting = tweet[: self.layout.words]
            word_ids.append(np.array([self.words.id_of_word(word) for word in fitting], np.int64))
            spellings.append(np.array([spelling_of.setdefault(word, len(spelling_of)) for word in fitting], np.int64))
            words_truncated.append(len(tweet) - len(fitting))
            entries = image_entries(of_image) if self.layout.image_words else []
            seen = entries[: self.layout.image_words]
            image_word_ids.append(np.array([self.image_words.id_of(entry) for entry in seen], np.int64))
            image_words_truncated.append(len(entries) - len(seen))
        character_ids_SC = np.full((max(1, len(spelling_of)), self.layout.characters), PADDING, np.int64)
        for word, row in spelling_of.items():
            ids = [self.characters.id_of(character) for character in word[: self.layout.characters]]
            character_ids_SC[row, : len(ids)] = ids
        return WordInputs(
            word_ids, spellings, character_ids_SC, image_word_ids, words_truncated, image_words_truncated, self.layout
        )

    def save(self, folder: Path) -> None:
        """Write the vocabularies that the layout reads; the layout is part of the model's configuration."""
        for name, vocabulary in self._files().items():
            vocabulary.save(folder / name)

    def _files(self) -> dict[str, Vocabulary]:
        return {
            WORDS_FILE: self.words,
            **({CHARACTERS_FILE: self.characters} if self.layout.characters else {}),
            **({IMAGE_WORDS_FILE: self.image_words} if self.layout.image_words else {}),
        }


def load_word_reader(name: str, config: dict[str, Any]) -> WordReader:
    """The reader of a recognizer on word vectors, from its folder or Hub id.

    Raises TypeError or ValueError for an ``msb_input`` that it does not understand, and InputError for vocabularies that are
    not there, or not those of the model.
    """
    layout = WordFormat(**config["msb_input"])
    vocabularies = []
    for file, rows, is_read in (
        (WORDS_FILE, "words", True),
        (CHARACTERS_FILE, "characters", layout.characters),
        (IMAGE_WORDS_FILE, "image_words", layout.image_words),
    ):
        try:
            vocabulary = Vocabulary.load(Path(cached_file(name, file))) if is_read else Vocabulary([])
        except (OSError, ValueError) as error:
            raise InputError(
                f"{name}: its {file} cannot be read ({first_line(error)}). Give the whole folder."
            ) from None
        if is_read and len(vocabulary) != config[rows]:
            raise InputError(
                f"{name}: its {file} has {len(vocabulary.entries)} entries, but its weights are of "
                f"{config[rows] - ENTRIES_FROM}. Give weights and vocabulary of one run."
            )
        vocabularies.append(vocabulary)
    return WordReader(*vocabularies, layout)


def image_entries(image_words: Sequence[str]) -> list[str]:
    """What is looked up of an image's words, in lower case.

    Several texts are labels, each an entry, such as "golden retriever" (equation 13). A single text is a caption, and its
    words are the entries.
    """
    entries = [" ".join(text.lower().split()) for text in image_words]
    return entries[0].split() if len(entries) == 1 else [entry for entry in entries if entry]


def padded(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of ids as one array of at least one column, padding behind them."""
    array = np.full((len(rows), max(1, *(len(row) for row in rows))), PADDING, np.int64)
    for place, row in enumerate(rows):
        array[place, : len(row)] = row
    return array
