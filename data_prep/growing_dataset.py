"""Data sets that grow: readable at any time, killed at any time, and continued even after they were finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from data_prep.layout import REJECTED, DatasetWriter, with_reason, write_parquet_whole
from launch.errors import InputError
from launch.files import sync_to_disk


class GrowingDatasetWriter(DatasetWriter):
    """Writes a data set of which :meth:`flush` makes all that was added so far readable, and safe on disk.

    Its shards are `train-00000.parquet`, `train-00001.parquet`, …, which the card's patterns match. Each has
    ``shard_rows`` rows but the last, which is written anew with each flush. Leaving the context without an error gives
    them the names of a finished data set; opening it again takes these back.
    """

    def __init__(self, folder: Path, features: Features, shard_rows: int, flushed: Mapping[str, int]) -> None:
        """Open the data set as it was when it had the ``flushed`` numbers of rows in `train` and `rejected`.

        Rows after these are removed: whoever wrote them was killed before noting it. InputError if rows are missing.
        """
        super().__init__(folder, features)
        for split, subfolder, columns in (("train", "data", features), (REJECTED, REJECTED, with_reason(features))):
            self._shards[split] = _GrowingShards(folder / subfolder, split, columns, shard_rows, flushed.get(split, 0))

    def flush(self) -> None:
        """Write all rows added so far."""
        for shards in self._shards.values():
            shards.flush()

    def read_flushed(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns of all flushed rows, those of `train` and then the rejected ones, a shard at a time."""
        for shards in self._shards.values():
            for shard in shards.files():
                yield pq.read_table(shard, columns=list(columns))


class _GrowingShards:
    """The shards of one split. See :class:`GrowingDatasetWriter`."""

    def __init__(self, folder: Path, split: str, features: Features, shard_rows: int, flushed: int) -> None:
        self.folder = folder
        self.split = split
        self.schema = features.arrow_schema
        self.shard_rows = shard_rows
        self.rows = flushed
        self._added: list[Mapping[str, Any]] = []
        self._full_shards = 0
        self._last = self.schema.empty_table()  # rows of the last shard, where it is not full
        self._reopen()

    def files(self) -> list[Path]:
        return [self._file(number) for number in range(self._full_shards + bool(self._last.num_rows))]

    def add(self, row: Mapping[str, Any]) -> None:
        self._added.append(row)
        self.rows += 1

    def flush(self) -> None:
        if not self._added:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = pa.concat_tables([self._last, pa.Table.from_pylist(self._added, schema=self.schema)]).combine_chunks()
        self._added = []
        for start in range(0, rows.num_rows, self.shard_rows):
            self._last = rows.slice(start, self.shard_rows)
            write_parquet_whole(self._last, self._file(self._full_shards))
            if self._last.num_rows == self.shard_rows:
                self._full_shards += 1
                self._last = self.schema.empty_table()
        sync_to_disk(self.folder)

    def close(self, complete: bool) -> None:
        if complete:
            self.flush()
            files = self.files()
            for number, file in enumerate(files):
                file.rename(self.folder / f"{self.split}-{number:05d}-of-{len(files):05d}.parquet")

    def _reopen(self) -> None:
        for half_written in self.folder.glob(f".{self.split}-*"):
            half_written.unlink()
        left = self.rows
        for number, shard in enumerate(sorted(self.folder.glob(f"{self.split}-*.parquet"))):
            if not left:
                shard.unlink()
                continue
            shard = shard.rename(self._file(number))
            rows = pq.read_metadata(shard).num_rows
            if rows > left:
                rows = left
                write_parquet_whole(pq.read_table(shard).slice(0, rows), shard)
            left -= rows
            if left or rows >= self.shard_rows:
                self._full_shards += 1
            else:
                self._last = pq.read_table(shard).cast(self.schema)
        if left:
            problem = f"{left} of {self.rows} rows are missing"
            raise InputError.at(self.folder, None, problem, "Start over with --resume never --overwrite true.")

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:05d}.parquet"
