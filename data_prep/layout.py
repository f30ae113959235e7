"""How data sets lie on disk: folders of Parquet shards with a card, which `datasets.load_dataset(folder)` opens.

    FOLDER/README.md                           the card; its YAML header maps configs and splits to files
    FOLDER/data/train-00000-of-00001.parquet   config `default`, a group of shards for each split
    FOLDER/rejected/rejected-….parquet         config `rejected`: what was left out, with a column `reason`

Three kinds: `posts` as they were collected, a `corpus` of texts for language modelling, perhaps with words for their
images, and `ner` with words, tags and what goes with a tweet's image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetInfo, Features, Image, List, Value

from launch.dataset_card import facts_as_list, render_dataset_card, type_in_words
from launch.errors import InputError
from launch.files import sync_to_disk, write_text_whole
from launch.stage import CARD_NAME

NER_TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-MISC", "I-MISC")
ENTITY_TYPES = ("PER", "LOC", "ORG", "MISC")
TAG_IDS = {tag: number for number, tag in enumerate(NER_TAGS)}

CORPUS_FEATURES = Features({"id": Value("string"), "text": Value("string")})

PAIRS_FEATURES = Features({**CORPUS_FEATURES, "image_words": List(Value("string"))})
"""A corpus whose texts have what is seen in their images beside them; `image_words` as in `NER_FEATURES`."""

NER_FEATURES = Features(
    {
        "id": Value("string"),
        "tokens": List(Value("string")),  # what models read: URLs removed
        "ner_tags": List(ClassLabel(names=list(NER_TAGS))),  # of `tokens`, orphan I- tags repaired
        "source_tokens": List(Value("string")),  # as in the file
        "source_tags": List(Value("string")),  # as in the file, not repaired: what scores are taken against
        "source_index": List(Value("int32")),  # place in `source_tokens` of each of `tokens`
        "image_id": Value("string"),
        "image": Image(),
        "image_words": List(Value("string")),  # any text from the image: labels, a caption, what is written in it
        "image_word_scores": List(Value("float32")),
    }
)


def ner_row(
    row_id: str,
    tokens: Sequence[str],
    tags: Sequence[str],
    source_tokens: Sequence[str],
    source_tags: Sequence[str],
    source_index: Sequence[int],
    image_id: str | None = None,
) -> dict[str, Any]:
    """A row of a `ner` data set, ``tags`` as strings, with nothing from the image yet. See `NER_FEATURES`."""
    assert len(tokens) == len(tags) == len(source_index) and len(source_tokens) == len(source_tags)
    return {
        "id": row_id,
        "tokens": tokens,
        "ner_tags": [TAG_IDS[tag] for tag in tags],
        "source_tokens": source_tokens,
        "source_tags": source_tags,
        "source_index": source_index,
        "image_id": image_id,
        "image": None,
        "image_words": [],
        "image_word_scores": None,
    }


SPLITS = ("train", "validation", "test")
REJECTED = "rejected"
SHARD_BYTES = 256 << 20
"""Size, before compression, at which a new shard begins."""
BATCH_ROWS = 1000
"""Rows of a Parquet row group: what a writer holds in memory."""
TABLE_ROWS = 50_000
"""The same for rows that come as Arrow tables, which take less memory."""


def with_reason(features: Features) -> Features:
    """Columns of the rejected rows: the same, and why."""
    return Features({**features, "reason": Value("string")})


class DatasetWriter:
    """Writes a data set's splits and rejected rows as they come, holding a batch of each in memory.

    The same rows give the same bytes. Use it as a context manager, then write the card:

        with DatasetWriter(folder, CORPUS_FEATURES) as writer:
            writer.add("train", {"id": "a", "text": "Jordan at last"})
            writer.reject({"id": "b", "text": ""}, "empty")
        writer.write_card("Cleaned posts", {"minimum words": 3})
    """

    def __init__(self, folder: Path, features: Features) -> None:
        self.folder = folder
        self.features = features
        self._shards: dict[str, _ShardWriter] = {}

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        for shards in self._shards.values():
            shards.close(complete=exception_type is None)

    def add(self, split: str, row: Mapping[str, Any]) -> None:
        """Append a row to a split."""
        self._of(split, "data", self.features).add(row)

    def reject(self, row: Mapping[str, Any], reason: str) -> None:
        """Append a row to the rejected ones."""
        self._of(REJECTED, REJECTED, with_reason(self.features)).add({**row, "reason": reason})

    def add_table(self, split: str, table: pa.Table) -> None:
        """Append rows that are an Arrow table already."""
        self._of(split, "data", self.features).add_table(table)

    def reject_table(self, table: pa.Table) -> None:
        """Append rows to the rejected ones; ``table`` has the column `reason`, too."""
        self._of(REJECTED, REJECTED, with_reason(self.features)).add_table(table)

    def rows(self, split: str) -> int:
        """Rows written to a split (or to ``"rejected"``) so far."""
        return self._shards[split].rows if split in self._shards else 0

    def write_card(self, title: str, facts: Mapping[str, Any], about: str = "") -> None:
        """Write the card: see :func:`write_card`. Call it when the writer is closed."""
        write_card(self.folder, title, facts, about)

    def _of(self, split: str, subfolder: str, features: Features) -> _ShardWriter:
        if split not in self._shards:
            self._shards[split] = _ShardWriter(self.folder / subfolder, split, features)
        return self._shards[split]


def write_card(folder: Path, title: str, facts: Mapping[str, Any], about: str = "") -> None:
    """Write README.md for the shards that are there: the header that `load_dataset` needs, and what tells of the data.

    ``about`` is Markdown; ``facts`` follow it as a list. The stage's manifest comes in when the stage ends.
    """
    said = "\n\n".join(part for part in (about, facts_as_list(facts)) if part)
    write_text_whole(folder / CARD_NAME, render_dataset_card(folder, title, said))


def write_dataset(
    folder: Path,
    splits: Mapping[str, Iterable[Mapping[str, Any]]],
    features: Features,
    title: str,
    facts: Mapping[str, Any] | None = None,
    about: str = "",
    rejected: Iterable[tuple[Mapping[str, Any], str]] = (),
) -> None:
    """Write a whole data set: rows of each split, and rejected rows as ``(row, reason)``. See :class:`DatasetWriter`."""
    with DatasetWriter(folder, features) as writer:
        for split, rows in splits.items():
            for row in rows:
                writer.add(split, row)
        for row, reason in rejected:
            writer.reject(row, reason)
    writer.write_card(title, facts or {}, about)


def splits_of(folder: Path) -> list[str]:
    """The splits a data set folder holds, `train`, `validation`, `test` first; InputError if it is none."""
    files = sorted((folder / "data").glob("*.parquet"))
    found = {match[1] for file in files if (match := _SHARD_NAME.fullmatch(file.name))}
    if not found:
        problem = "not a data set (no data/SPLIT-00000-of-00001.parquet)" if folder.exists() else "no such folder"
        raise InputError.at(folder, None, problem, "Give the output folder of a data_prep stage.")
    return [split for split in SPLITS if split in found] + sorted(found - set(SPLITS))


def shards_of(folder: Path, split: str, features: Features) -> list[Path]:
    """The Parquet files of a split in their order, in which the columns ``features`` are found, perhaps with others.

    InputError names the missing split, shard, column or type.
    """
    if split not in splits_of(folder):
        raise InputError.at(folder, None, f"no split {split!r}", f"It has {', '.join(splits_of(folder))}.")
    shards = shard_files(folder, split)
    for shard in shards:
        check_columns(shard, features)
    return shards


def read_split(folder: Path, split: str, features: Features, columns: Sequence[str] | None = None) -> Dataset:
    """One split of a data set, in memory and without a cache; images stay undecoded until a row is looked at.

    ``features`` are the columns it must have, of these types; others may be there. ``columns`` limits what is read
    (leave out `image` to save memory). InputError names the missing split, shard, column or type.
    """
    wanted = Features({name: features[name] for name in columns or features})
    shards = shards_of(folder, split, wanted)
    table = pa.concat_tables([pq.read_table(shard, columns=list(wanted)) for shard in shards])
    # The shards' metadata may describe columns that were left out; the wanted features are what the table has now.
    return Dataset(table.select(list(wanted)).cast(wanted.arrow_schema), info=DatasetInfo(features=wanted))


def iterate_rows(folder: Path, split: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a split one after the other, in bounded memory. A column may be a part of one, as `image.path`."""
    for shard in shard_files(folder, split):
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                yield from batch.to_pylist()


def read_corpus(folder: Path, split: str) -> Dataset:
    """A split of a `corpus` data set. See :func:`read_split`."""
    return read_split(folder, split, CORPUS_FEATURES)


def read_ner(folder: Path, split: str, columns: Sequence[str] | None = None) -> Dataset:
    """A split of a `ner` data set. See :func:`read_split`."""
    return read_split(folder, split, NER_FEATURES, columns)


def read_texts(folder: Path, split: str, words: str = "source_tokens") -> tuple[list[str], list[str]]:
    """Ids and texts of a split of either kind of data set: `text`, or the column ``words`` joined by spaces."""
    if "text" in pq.read_schema(shard_files(folder, split)[0]).names:
        corpus = read_corpus(folder, split)
        return corpus["id"][:], corpus["text"][:]
    ner = read_ner(folder, split, columns=["id", words])
    return ner["id"][:], [" ".join(tokens) for tokens in ner[words]]


def read_ids(folder: Path, split: str, places: Sequence[int]) -> list[str]:
    """The ids of the rows at ``places`` of a split, in bounded memory."""
    wanted, found, row = set(map(int, places)), {}, 0
    for shard in shard_files(folder, split):
        with pq.ParquetFile(shard) as file:
            for group in range(file.num_row_groups):
                rows = range(row, row + file.metadata.row_group(group).num_rows)
                here = [place for place in wanted if place in rows]
                if here:
                    ids = file.read_row_group(group, columns=["id"])["id"]
                    found |= {place: ids[place - row].as_py() for place in here}
                row = rows.stop
    return [found[int(place)] for place in places]


def shard_files(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split in their order; InputError where some are missing."""
    shards = sorted((folder / "data").glob(f"{split}-?????-of-?????.parquet"))
    if not shards and (others := splits_of(folder)):
        problem = f"has no split {split!r}; it has {', '.join(others)}"
        raise InputError.at(folder, None, problem, "Give a data set with it, or make this one again with such a split.")
    counts = {_SHARD_NAME.fullmatch(shard.name)[3] for shard in shards}
    if len(counts) != 1 or len(shards) != int(next(iter(counts))):
        found = ", ".join(shard.name for shard in shards)
        problem = f"shards of split {split!r} are missing or mixed: {found}"
        raise InputError.at(folder / "data", None, problem, "Make it again.")
    return shards


def write_parquet_whole(table: pa.Table, file: Path) -> None:
    """Write a Parquet file under a temporary name, then rename: no reader and no kill finds a part of it."""
    temporary = file.with_name(f".{file.name}.partial")
    pq.write_table(table, temporary, compression="zstd")
    sync_to_disk(temporary)
    os.replace(temporary, file)


def check_columns(shard: Path, wanted: Mapping[str, Any]) -> None:
    """InputError unless the Parquet file has the wanted columns with the wanted types."""
    try:
        schema = pq.read_schema(shard)
        found = Features.from_arrow_schema(schema)
    except (pa.ArrowInvalid, ValueError, KeyError, TypeError) as error:
        raise InputError.at(shard, None, f"not a Parquet file of a data set ({error})", "Make it again.") from None
    missing = [name for name in wanted if name not in found]
    if missing:
        problem = f"no column {', '.join(missing)} (it has {', '.join(found)})"
        raise InputError.at(shard, None, problem, f"Needed are the columns {', '.join(wanted)}.")
    for name, feature in wanted.items():
        if found[name] != feature:
            problem = f"column {name} is {type_in_words(found[name])}"
            raise InputError.at(shard, None, problem, f"Needed is {type_in_words(feature)}.")


_SHARD_NAME = re.compile(r"(\w+)-(\d{5})-of-(\d{5})\.parquet")


class _ShardWriter:
    """Writes rows into `SPLIT-00000-of-0000N.parquet`; N is known, and put into the names, at the end."""

    def __init__(self, folder: Path, split: str, features: Features) -> None:
        self.folder = folder
        self.split = split
        self.schema = features.arrow_schema
        self.rows = 0
        self._batch: list[Mapping[str, Any]] = []
        self._tables: list[pa.Table] = []
        self._files: list[Path] = []
        self._file: pq.ParquetWriter | None = None
        self._file_bytes = 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, row: Mapping[str, Any]) -> None:
        if row.keys() != set(self.schema.names):
            raise AssertionError(f"row has columns {sorted(row)}, the data set {sorted(self.schema.names)}")
        self._batch.append(row)
        self.rows += 1
        if len(self._batch) == BATCH_ROWS:
            self._write_batch()

    def add_table(self, table: pa.Table) -> None:
        self.rows += len(table)
        self._tables.append(table.select(self.schema.names).cast(self.schema))
        if sum(map(len, self._tables)) >= TABLE_ROWS:
            waiting = pa.concat_tables(self._tables)
            # Row groups of one size, so that the same rows give the same bytes in whatever batches they came.
            for start in range(0, len(waiting) - TABLE_ROWS + 1, TABLE_ROWS):
                self._write(waiting.slice(start, TABLE_ROWS))
            self._tables = [waiting.slice(len(waiting) // TABLE_ROWS * TABLE_ROWS)]

    def close(self, complete: bool) -> None:
        if self._batch and complete:
            self._write_batch()
        if sum(map(len, self._tables)) and complete:
            self._write(pa.concat_tables(self._tables))
        if self._file is not None:
            self._file.close()
        if complete:
            for number, file in enumerate(self._files):
                file.rename(self.folder / f"{self.split}-{number:05d}-of-{len(self._files):05d}.parquet")

    def _write_batch(self) -> None:
        self._write(pa.Table.from_pylist(self._batch, schema=self.schema))
        self._batch = []

    def _write(self, table: pa.Table) -> None:
        if self._file is None or self._file_bytes > SHARD_BYTES:
            if self._file is not None:
                self._file.close()
            self._files.append(self.folder / f"{self.split}-{len(self._files):05d}.partial")
            self._file = pq.ParquetWriter(self._files[-1], self.schema, compression="zstd")
            self._file_bytes = 0
        self._file.write_table(table, row_group_size=TABLE_ROWS)
        self._file_bytes += table.nbytes
