"""Which images a data set's rows have, by content: a survey that reads every row once and keeps no image in memory."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from datasets import Features

from data_prep.images import NO_FILE, ImageProblem, image_file, read_image_file
from data_prep.layout import NER_FEATURES, shards_of, splits_of
from data_prep.posts import POSTS_FEATURES
from launch.dataset_card import read_shards
from launch.errors import InputError

NO_IMAGE = "no image"
NOT_DOWNLOADED = "not downloaded"
OUTSIDE = "its path leads out of the data set"
CHANGED = "not the file that was recorded"

BATCH_ROWS = 64
"""Rows whose images are in memory at once during the survey."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ImageFile:
    """An image in a file of its own."""

    path: Path

    def read(self) -> bytes:
        """The file's bytes. Raises :class:`ImageProblem`."""
        try:
            return read_image_file(self.path)
        except OSError:
            raise ImageProblem(NO_FILE) from None


@dataclass(frozen=True)
class EmbeddedImage:
    """An image in the column `image` of a Parquet file."""

    file: Path
    row_group: int
    row: int
    """Within the row group."""

    def read(self) -> bytes:
        """The image's bytes; fast where images of one row group are read one after the other, from any thread."""
        with _reading:
            images = _images_of(self.file, self.row_group)
        return images[self.row].as_py()


@dataclass(frozen=True, slots=True)
class RowImage:
    """One image of a row: its content's hash, or why it has none."""

    sha256: str | None = None
    problem: str | None = None


class ImageSurvey:
    """The images of all rows of a `ner` or `posts` data set."""

    def __init__(self, folder: Path, images: Path | None = None) -> None:
        """Read every row once. InputError if the data set is of another kind.

        ``images``: folder of files named by `image_id`, which then stand for the column `image` of a `ner` data set.
        """
        self.folder = folder
        self.images = images
        self.places: dict[str, ImageFile | EmbeddedImage] = {}
        """Where to read each distinct image, by hash, in the order in which they were met."""
        splits, self.kind = splits_of(folder), read_shards(folder).kind
        if self.kind == "corpus":
            raise InputError.at(folder, None, "a corpus, which has no images", "Give a `ner` or a `posts` data set.")
        if self.kind == "posts" and images is not None:
            raise InputError(
                "--images: posts have no image ids. Leave it out: a posts data set holds its images itself."
            )
        column = "images" if self.kind == "posts" else "image_id" if images else "image"
        needed = Features({column: (POSTS_FEATURES if self.kind == "posts" else NER_FEATURES)[column]})
        files = [file for split in splits for file in shards_of(folder, split, needed)]
        self.rows: dict[Path, list[tuple[RowImage, ...]]] = {file: self._rows(file, column) for file in files}
        """The images of each row, in the rows' order, by Parquet file; a tuple, since a post may have several."""

    def _rows(self, file: Path, column: str) -> list[tuple[RowImage, ...]]:
        images_of = {"images": self._of_post, "image_id": self._by_id, "image": self._embedded}[column]
        rows = []
        with pq.ParquetFile(file) as parquet:
            for group in range(parquet.num_row_groups):
                start = len(rows)
                for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=[column]):
                    for value in batch.column(0):
                        here = EmbeddedImage(file, group, len(rows) - start)
                        rows.append(images_of(value.as_py(), here) if value.is_valid else ())
        return rows

    def _of_post(self, images: list[dict[str, Any]], _: EmbeddedImage) -> tuple[RowImage, ...]:
        return tuple(self._downloaded(image) for image in images)

    def _downloaded(self, image: dict[str, Any]) -> RowImage:
        if not image["path"]:
            return RowImage(problem=f"{NOT_DOWNLOADED}: {image['problem']}" if image["problem"] else NOT_DOWNLOADED)
        try:
            file = ImageFile(file_within(self.folder, image["path"]))
            recorded = _SHA256.fullmatch(image["sha256"] or "")
            return self._met(recorded[0] if recorded else sha256(file.read()).hexdigest(), file)
        except ImageProblem as problem:
            return RowImage(problem=str(problem))

    def _by_id(self, image_id: str, _: EmbeddedImage) -> tuple[RowImage, ...]:
        try:
            file = ImageFile(image_file(self.images, image_id))
            return (self._met(sha256(file.read()).hexdigest(), file),)
        except ImageProblem as problem:
            return (RowImage(problem=str(problem)),)

    def _embedded(self, image: dict[str, Any], here: EmbeddedImage) -> tuple[RowImage, ...]:
        # A path without bytes names a file of whoever made the data set: it is not followed.
        return (self._met(sha256(image["bytes"]).hexdigest(), here),) if image["bytes"] is not None else ()

    def _met(self, digest: str, place: ImageFile | EmbeddedImage) -> RowImage:
        self.places.setdefault(digest, place)
        return RowImage(digest)


def file_within(folder: Path, relative: str) -> Path:
    """The file of this relative path in the folder, links resolved.

    Raises :class:`ImageProblem` if it is none, or leads out of the folder.
    """
    if PurePosixPath(relative).is_absolute() or ".." in PurePosixPath(relative).parts:
        raise ImageProblem(OUTSIDE)
    try:
        path = (folder / relative).resolve()
        is_file = path.is_file()
    except (OSError, ValueError):  # a name too long, a zero byte
        raise ImageProblem(NO_FILE) from None
    if not path.is_relative_to(folder.resolve()):
        raise ImageProblem(OUTSIDE)
    if not is_file:
        raise ImageProblem(NO_FILE)
    return path


_reading = threading.Lock()  # or threads that want the same row group would all read it


@lru_cache(maxsize=2)
def _images_of(file: Path, row_group: int) -> pa.ChunkedArray:
    with pq.ParquetFile(file) as parquet:
        column = parquet.read_row_group(row_group, columns=["image.bytes"]).column("image")
    return pyarrow.compute.struct_field(column, "bytes")
