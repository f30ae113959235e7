"""Labels of images by content hash: kept in shards while they are found, and written beside the rows in the end."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from datasets import Features, List, Value

from data_prep.images import ImageProblem
from data_prep.labellers import first_synonym
from data_prep.layout import REJECTED, write_parquet_whole
from data_prep.row_images import NO_IMAGE, ImageSurvey, RowImage, file_within

LABEL_FEATURES = Features(
    {
        "image_words": List(Value("string")),
        "image_word_scores": List(Value("float32")),  # probabilities
        "image_word_ids": List(Value("int32")),  # numbers of the model's classes
        "image_problem": Value("string"),  # why there are no image words
    }
)
BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Label:
    """What the classifier says of one image: its most probable classes, or why there are none."""

    classes: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    problem: str | None = None


class LabelShards:
    """The labels of some images, in files of ``size`` images each, written whole, so that a killed run goes on."""

    SCHEMA = pa.schema(
        [
            ("sha256", pa.string()),
            ("classes", pa.list_(pa.int32())),
            ("scores", pa.list_(pa.float32())),
            ("problem", pa.string()),
        ]
    )

    def __init__(self, folder: Path, hashes: Sequence[str], size: int) -> None:
        self.folder = folder
        self.shards = [hashes[start : start + size] for start in range(0, len(hashes), size)]

    def missing(self) -> list[int]:
        """Numbers of the shards that are not written yet."""
        return [number for number in range(len(self.shards)) if not self._file(number).exists()]

    def write(self, number: int, labels: Sequence[Label]) -> None:
        """Write the labels of a shard's images, in their order."""
        rows = [{"sha256": digest, **asdict(label)} for digest, label in zip(self.shards[number], labels, strict=True)]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_parquet_whole(pa.Table.from_pylist(rows, schema=self.SCHEMA), self._file(number))

    def read(self) -> dict[str, Label]:
        """All labels, by hash."""
        labels = {}
        for number in range(len(self.shards)):
            for row in pq.read_table(self._file(number)).to_pylist():
                digest = row.pop("sha256")
                labels[digest] = Label(**row)
        return labels

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"


def unlabelled(survey: ImageSurvey, labels: Mapping[str, Label]) -> list[str]:
    """Hashes of the images to label next: of each row the first that may have a label, unless an earlier one has."""
    wanted = {}
    for rows in survey.rows.values():
        for images in rows:
            for image in images:
                if image.sha256 and image.sha256 not in labels:
                    wanted[image.sha256] = None
                if image.sha256 and (image.sha256 not in labels or labels[image.sha256].problem is None):
                    break
    return list(wanted)


def label_of_row(images: Sequence[RowImage], labels: Mapping[str, Label]) -> Label:
    """The label of the row's first image that has one; else why its first image has none."""
    first = None
    for image in images:
        label = labels[image.sha256] if image.sha256 else Label(problem=image.problem)
        if label.problem is None:
            return label
        first = first or label
    return first or Label(problem=NO_IMAGE)


@dataclass
class Written:
    """What was written, counted."""

    rows: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    """Rows without words, by reason."""
    replaced: int = 0
    """Rows that had other image words before."""


def write_labelled(
    source: Path, target: Path, survey: ImageSurvey, labels: Mapping[str, Label], class_names: Sequence[str]
) -> Written:
    """Copy a data set from one folder to another, with labels: same files, same rows, in the same order.

    Rejected rows are copied without labels, the image files of posts with them.
    """
    words = [first_synonym(name) for name in class_names]
    written = Written()

    def labelled(batch: pa.RecordBatch, start: int, rows: list[tuple[RowImage, ...]]) -> dict[str, list]:
        found = [label_of_row(images, labels) for images in rows[start : start + batch.num_rows]]
        written.rows += len(found)
        written.problems.update(label.problem for label in found if label.problem)
        if "image_words" in batch.schema.names:
            lengths = pyarrow.compute.list_value_length(batch["image_words"])
            written.replaced += pyarrow.compute.sum(pyarrow.compute.greater(lengths, 0)).as_py() or 0
        return {
            "image_words": [[words[number] for number in label.classes] for label in found],
            "image_word_scores": [label.scores or None for label in found],
            "image_word_ids": [label.classes or None for label in found],
            "image_problem": [label.problem for label in found],
        }

    for file, rows in survey.rows.items():
        _copy(file, target / "data" / file.name, lambda batch, start, rows=rows: labelled(batch, start, rows))
    for file in sorted((source / REJECTED).glob("*.parquet")):
        _copy(file, target / REJECTED / file.name, lambda batch, _: _nothing_new(batch))
    if survey.kind == "posts":
        for file in [*survey.rows, *sorted((source / REJECTED).glob("*.parquet"))]:
            _link_images(file, source, target)
    return written


def _copy(source: Path, target: Path, new_columns: Callable[[pa.RecordBatch, int], Mapping[str, list]]) -> None:
    """Copy a Parquet file, with columns that are made for each batch of it and its first row's number."""
    target.parent.mkdir(exist_ok=True)
    with pq.ParquetFile(source) as parquet:
        schema = _with_labels(Features.from_arrow_schema(parquet.schema_arrow)).arrow_schema
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            start = 0
            for batch in parquet.iter_batches(BATCH_ROWS):
                new = new_columns(batch, start)
                columns = [
                    pa.array(new[field.name], field.type) if field.name in new else batch[field.name]
                    for field in schema
                ]
                writer.write_table(pa.table(columns, names=schema.names).cast(schema))
                start += batch.num_rows


def _nothing_new(batch: pa.RecordBatch) -> dict[str, list]:
    return {name: [None] * batch.num_rows for name in LABEL_FEATURES if name not in batch.schema.names}


def _with_labels(features: Features) -> Features:
    """The columns and those of the labels; `reason`, if it is there, remains the last."""
    last = {name: feature for name, feature in features.items() if name == "reason"}
    return Features(
        {**{name: feature for name, feature in features.items() if name not in last}, **LABEL_FEATURES, **last}
    )


def _link_images(file: Path, source: Path, target: Path) -> None:
    """Put the image files that a file of posts names into the other folder, by hard links where possible."""
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(BATCH_ROWS, columns=["images"]):
            paths = {image["path"] for images in batch["images"].to_pylist() for image in images or () if image["path"]}
            for path in sorted(paths):
                try:
                    found, copy = file_within(source, path), target / path
                except ImageProblem:
                    continue
                if not copy.exists():
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    try:
                        os.link(found, copy)
                    except OSError:  # another disk, or one without links
                        shutil.copyfile(found, copy)
