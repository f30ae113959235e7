"""The texts of a data set of any kind (posts, corpus, ner), gone through as often as needed, and a sample of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

from tqdm import tqdm

from data_prep.layout import iterate_rows
from data_prep.near_duplicates import words_of
from data_prep.similar_texts import Matches, Overlap, Pair, Text, TextIndex

SAMPLE_ROWS = 20_000
"""Texts of a set that are looked for among others: in memory, and the time to compare grows with them."""


@dataclass(frozen=True, eq=False)
class Texts:
    """The texts of some splits of a data set."""

    name: str
    folder: Path
    rows: dict[str, int]
    """By split."""
    column: str
    """`text`, or `source_tokens`."""

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.rows.values())

    @property
    def is_sampled(self) -> bool:
        """Whether :attr:`sample` is not all of them."""
        return self.count > SAMPLE_ROWS

    def read(self) -> Iterator[tuple[str, str]]:
        """Id and text of each."""
        for split in self.rows:
            for row in iterate_rows(self.folder, split, ["id", self.column]):
                yield row["id"], text_of(row[self.column])

    def read_words(self) -> Iterator[Text]:
        """Id and words of each, with a progress bar."""
        bar = tqdm(self.read(), f"comparing {self.name}", self.count, unit=" text", leave=False, disable=None)
        return ((text_id, words_of(text)) for text_id, text in bar)

    @cached_property
    def sample(self) -> list[tuple[str, str]]:
        """Id and text of all, or of about `SAMPLE_ROWS` picked by a hash of the id."""
        limit = 2**64 * SAMPLE_ROWS // max(self.count, 1)
        return [(text_id, text) for text_id, text in self.read() if not self.is_sampled or _hash(text_id) < limit]

    @cached_property
    def index(self) -> TextIndex:
        """The sample, made searchable."""
        return TextIndex((text_id, words_of(text)) for text_id, text in self.sample)


def text_of(value: str | list[str]) -> str:
    """A text, or words joined by spaces."""
    return value if isinstance(value, str) else " ".join(value)


@dataclass(frozen=True)
class Comparison:
    """Which texts of one set are in another."""

    texts: Texts
    others: Texts
    matches: Matches
    """Of ``texts``; of a sample of them, where ``is_sampled``."""
    is_sampled: bool
    examples: list[Pair]


def compare(texts: list[Texts], others: Texts) -> list[Comparison]:
    """Which of each of the ``texts`` are among the ``others``.

    The smaller set is held in memory, and the larger one gone through. Where both are large, a sample of ``texts`` is held.
    """
    found: dict[Texts, Comparison] = {}
    overlaps: dict[Texts, Overlap] = {}
    for one in texts:
        if others.count < one.count and not others.is_sampled:
            overlap = Overlap(others.index)
            for text_id, words in one.read_words():
                overlap.add(text_id, words)
            examples = [(text_id, other_id, similarity) for other_id, text_id, similarity in overlap.examples]
            found[one] = Comparison(one, others, overlap.others, False, examples)
        else:
            overlaps[one] = Overlap(one.index)
    for other_id, words in others.read_words() if overlaps else ():
        for overlap in overlaps.values():
            overlap.add(other_id, words)
    for one, overlap in overlaps.items():
        found[one] = Comparison(one, others, overlap.indexed, one.is_sampled, overlap.examples)
    return [found[one] for one in texts]


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
