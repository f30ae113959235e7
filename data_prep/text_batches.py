"""The texts of a data set for language modelling, a batch at a time, from any place on: nothing is kept in memory.

A *place* is where a reading stands: it can stop after any batch, and another one begins there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.layout import CORPUS_FEATURES, NER_FEATURES, check_columns, shard_files
from launch.errors import InputError

TEXTS_AT_ONCE = 10_000
"""Texts that a reader holds in memory."""


class Place(NamedTuple):
    """A shard, counted through the splits, and a row of it."""

    shard: int
    row: int


BEGIN = Place(0, 0)


@dataclass(frozen=True)
class TextBatch:
    """Some texts of a split, in the order of the rows."""

    split: str
    texts: Sequence[str]
    image_words: Sequence[Sequence[str]] | None = None
    """Of each text; None where the data set has none."""
    next_place: Place | None = None
    """Where a reading goes on after this batch; None where it cannot stop here."""
    left_out: int = 0
    """Rows without a text that were passed over on the way."""


class ReadingInterrupted(InputError):
    """A source could not be read on. What was read so far is good: the same reading may go on later."""


def iterate_texts(
    folder: Path, splits: Sequence[str], words: str = "source_tokens", image_words: bool = True, start: Place = BEGIN
) -> Iterator[TextBatch]:
    """The texts of some splits of a `corpus` or `ner` data set: `text`, or the column ``words`` joined by spaces.

    ``image_words`` False leaves these out. InputError names a shard that is missing or cannot be read.
    """
    shards = [(split, shard) for split in splits for shard in shard_files(folder, split)]
    for number, (split, shard) in enumerate(shards[start.shard :], start.shard):
        first_row = start.row if number == start.shard else 0
        try:
            names = pq.read_schema(shard).names
            column, features = ("text", CORPUS_FEATURES) if "text" in names else (words, NER_FEATURES)
            wanted = {column: features[column]}
            if image_words and "image_words" in names:
                wanted["image_words"] = NER_FEATURES["image_words"]
            check_columns(shard, wanted)
            with pq.ParquetFile(shard) as file:
                for row, batch in read_batches(file, list(wanted), first_row):
                    values = batch[column].to_pylist()
                    if batch[column].null_count:
                        place = row + values.index(None)
                        raise InputError.at(shard, None, f"row {place} has no {column}", "Leave such rows out.")
                    yield TextBatch(
                        split,
                        values if column == "text" else [" ".join(tokens) for tokens in values],
                        [given or [] for given in batch["image_words"].to_pylist()] if len(wanted) > 1 else None,
                        Place(number, row + len(batch)),
                    )
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError.at(shard, None, f"cannot be read ({error})", "Make it again.") from None


def read_batches(file: pq.ParquetFile, columns: list[str], first_row: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches from ``first_row`` on, with the row at which each begins; row groups before it are not read."""
    group, row = 0, 0
    while group < file.num_row_groups and row + file.metadata.row_group(group).num_rows <= first_row:
        row += file.metadata.row_group(group).num_rows
        group += 1
    if group == file.num_row_groups:
        return
    # A thread would read each column: one alone is as quick in this thread, where a signal is heard while it waits.
    several, groups = len(columns) > 1, range(group, file.num_row_groups)
    for batch in file.iter_batches(TEXTS_AT_ONCE, row_groups=groups, columns=columns, use_threads=several):
        skipped = min(max(first_row - row, 0), len(batch))
        if skipped < len(batch):
            yield row + skipped, batch.slice(skipped)
        row += len(batch)


def batches_of_texts(
    split: str, values: Sequence[str | None], validation_share: float, next_place: Place
) -> Iterator[TextBatch]:
    """The texts among some values, of which ``validation_share``, picked by their hash, go to `validation` instead."""
    if kinds := sorted({type(value).__name__ for value in values if not isinstance(value, str | None)}):
        raise InputError(f"{split}: its text column holds no texts but {', '.join(kinds)}. Name another column.")
    texts = [text for text in values if text and not text.isspace()]
    kept, cut = _cut(texts, validation_share) if validation_share else (texts, [])
    if cut:
        yield TextBatch("validation", cut)
    yield TextBatch(split, kept, None, next_place, left_out=len(values) - len(texts))


def _cut(texts: list[str], share: float) -> tuple[list[str], list[str]]:
    """Texts of the training split, and those for validation: the same whatever comes with them."""
    hashes = [blake2b(text.casefold().encode(), digest_size=8).digest() for text in texts]
    is_validation = np.frombuffer(b"".join(hashes), "<u8") * 2.0**-64 < share
    parts: tuple[list[str], list[str]] = ([], [])
    for text, where in zip(texts, is_validation.tolist(), strict=True):
        parts[where].append(text)
    return parts
