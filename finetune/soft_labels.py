"""Teachers label a corpus: what they think of each word's labels is kept, for a student to learn (`finetune/distill.py`).

    python finetune/soft_labels.py --teachers '[RUN_1, RUN_2, RUN_3]' --data CORPUS --output SOFT_LABELS --texts 100000

Each row has a text's words, the words of its image where the corpus has them, and for each word and label the mean of
the teachers' scores. What is labelled is kept while the stage works: killed, it goes on by the same command, and ends with
the same bytes. With the mean of their CRFs, in `teacher.safetensors`, these scores are a CRF again: the normalised
geometric mean of the teachers' distributions over label sequences, which a student can learn as a whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features, Value
from datasets import List as ListOf

from data_prep.layout import DatasetWriter, shard_files, write_parquet_whole
from data_prep.text_batches import iterate_texts
from finetune.post_words import PostWords
from finetune.recognizer import Recognizer, RecognizerPrecision
from finetune.teacher import Teacher, save_crf
from launch.dataset_stage import DatasetStageSettings, run_dataset_stage
from launch.errors import InputError
from launch.pretrained import encoder_input, refuse_twice
from launch.settings import NOT_IDENTITY
from launch.stage import Stage

FEATURES = Features(
    {
        "id": Value("string"),
        "tokens": ListOf(Value("string")),
        "image_words": ListOf(Value("string")),
        "scores": ListOf(Value("float16")),
    }
)
"""Columns of the data set. ``scores`` has those of all labels for the first token, then for the second, and so on."""

WORK_FOLDER = "labelled"
"""In the stage's folder until it is done: what is labelled so far."""
SHARD_TEXTS = 4096
"""Texts held in memory, sorted by length for the teachers, and written at once: what a kill can cost."""
NO_WORDS = "no words"


class Text(NamedTuple):
    """A text to label."""

    id: str
    words: list[str]
    image_words: list[str]


@dataclass(frozen=True, kw_only=True)
class SoftLabelSettings(DatasetStageSettings):
    """Settings of `finetune/soft_labels.py`."""

    teachers: list[str] = field(metadata=NOT_IDENTITY)
    """Folders or Hub ids of recognizers with the same labels."""
    data: Path = field(metadata=NOT_IDENTITY)
    """A `corpus` data set (posts without labels); its split `train` is labelled."""
    texts: int | None = None
    """How many of its texts to label, drawn at random by `seed`; null labels all."""
    image_words: Literal["given", "none"] = "none"
    """Whether teachers and student read the words of the texts' images, in a corpus that has them."""
    seed: int = 1
    """Which texts are drawn is a function of it."""
    precision: RecognizerPrecision = "auto"
    """What the teachers compute in: `auto` is bf16 where the GPU or the processor computes it fast, else fp32; `int8` as in
    `finetune.predict`."""

    def __post_init__(self) -> None:
        """Refuse to label nothing."""
        if self.texts is not None and self.texts < 1:
            raise ValueError(f"texts: {self.texts} is not positive")


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    return run_dataset_stage(SoftLabelSettings, label_corpus, inputs_of, argv, keeps_partial=True)


def inputs_of(settings: SoftLabelSettings) -> dict[str, Path | str | None]:
    """The teachers, numbered, and the corpus."""
    teachers = {f"teacher_{number}": encoder_input(name) for number, name in enumerate(settings.teachers, start=1)}
    return {**teachers, "data": settings.data}


def label_corpus(settings: SoftLabelSettings, stage: Stage) -> None:
    """The stage: draw texts, split them into words, let the teachers score them."""
    if not settings.teachers:
        raise InputError("teachers: none are given. Give the folders of trained recognizers.")
    refuse_twice(settings.teachers, "teachers")
    shards = shard_files(settings.data, "train")
    if settings.image_words == "given" and "image_words" not in pq.read_schema(shards[0]).names:
        raise InputError.at(
            settings.data, None, "has no image words", "Give a corpus with them, or --image_words none."
        )
    recognizers = [Recognizer.from_pretrained(name, precision=settings.precision) for name in settings.teachers]
    teacher = Teacher(recognizers, settings.teachers)
    rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
    chosen = draw(rows, settings.texts, settings.seed)
    stage.seeds = [settings.seed]
    stage.facts |= {"texts_in_corpus": rows, "labels": teacher.scheme.labels, "words_truncated": 0, "words": 0}

    labelled_shards = label_shards(settings, stage, teacher, chosen)
    with DatasetWriter(stage.folder, FEATURES) as writer:
        for shard in labelled_shards:
            write_labelled(writer, stage, pq.read_table(shard))
    if not stage.rows.kept:
        raise InputError.at(settings.data, None, f"none of the {len(chosen)} texts has words", "Give another corpus.")
    save_crf(stage.folder, teacher.crf, teacher.scheme)
    about = "For each word and label a score; with the transitions in `teacher.safetensors` they make a CRF."
    writer.write_card("Texts with a teacher's scores of their named entities", stage.facts, about)


def label_shards(settings: SoftLabelSettings, stage: Stage, teacher: Teacher, chosen: np.ndarray) -> list[Path]:
    """Label the texts at the places ``chosen``, but for those that an interrupted run has labelled; returns the files."""
    work = stage.folder / WORK_FOLDER
    work.mkdir(exist_ok=True)
    stage.scratch.append(work)
    shards = [work / f"{number:06d}.parquet" for number in range(-(-len(chosen) // SHARD_TEXTS))]
    missing = [shard for shard in shards if not shard.exists()]
    done = SHARD_TEXTS * (len(shards) - len(missing))  # written one after another
    texts = read_chosen(settings.data, chosen[done:], settings.image_words == "given")
    with stage.progress(None, "labelling", total=len(chosen), initial=done, unit="text") as bar:
        for shard in missing:
            table = labelled(teacher, list(islice(texts, SHARD_TEXTS)))
            write_parquet_whole(table, shard)
            bar.update(len(table))
    return shards


def draw(rows: int, texts: int | None, seed: int) -> np.ndarray:
    """Places of the texts to label, in order: all, or ``texts`` of them at random."""
    if texts is None or texts >= rows:
        return np.arange(rows)
    return np.sort(np.random.Generator(np.random.Philox(key=[seed, 0x7E4C4])).choice(rows, texts, replace=False))


def read_chosen(data: Path, chosen: np.ndarray, with_image_words: bool) -> Iterator[Text]:
    """The texts at the places ``chosen``, as words."""
    first = 0
    for batch in iterate_texts(data, ["train"], image_words=with_image_words):
        inside = chosen[np.searchsorted(chosen, first) : np.searchsorted(chosen, first + len(batch.texts))]
        for place in inside.tolist():
            image_words = list(batch.image_words[place - first]) if batch.image_words else []
            yield Text(f"train:{place}", PostWords.of_text(batch.texts[place - first] or "").words, image_words)
        first += len(batch.texts) + batch.left_out


def labelled(teacher: Teacher, texts: Sequence[Text]) -> pa.Table:
    """Rows of the data set with, in ``words``, how many a text had before those that a teacher does not read were left off.

    A text without words has no scores.
    """
    with_words = [text for text in texts if text.words]
    scores = teacher.scores([text.words for text in with_words], [text.image_words for text in with_words])
    found = iter(scores)
    scores = [next(found) if text.words else np.zeros((0, 0), np.float32) for text in texts]
    flat = np.concatenate([scores_WL.reshape(-1) for scores_WL in scores]).astype(np.float16)
    ends = np.cumsum([0, *(scores_WL.size for scores_WL in scores)], dtype=np.int32)
    table = pa.table(
        {
            "id": [text.id for text in texts],
            "tokens": pa.array(
                [text.words[: len(scores_WL)] for text, scores_WL in zip(texts, scores, strict=True)],
                pa.list_(pa.string()),
            ),
            "image_words": pa.array([text.image_words for text in texts], pa.list_(pa.string())),
            "scores": pa.ListArray.from_arrays(ends, pa.array(flat)),
        }
    )
    return table.cast(FEATURES.arrow_schema).append_column("words", pa.array([len(text.words) for text in texts]))


def write_labelled(writer: DatasetWriter, stage: Stage, table: pa.Table) -> None:
    """Write and count what :func:`labelled` made; a text without words is rejected."""
    has_words = pc.greater(table["words"], 0)
    kept, empty = table.filter(has_words), table.filter(pc.invert(has_words))
    stage.rows.taken += len(table)
    stage.rows.kept += len(kept)
    if len(kept):
        writer.add_table("train", kept)
    if len(empty):
        stage.rows.rejected[NO_WORDS] += len(empty)
        writer.reject_table(empty.append_column("reason", pa.array([NO_WORDS] * len(empty))))
    words = pc.sum(kept["words"]).as_py() or 0
    stage.facts["words"] += words
    stage.facts["words_truncated"] += words - (pc.sum(pc.list_value_length(kept["tokens"])).as_py() or 0)


if __name__ == "__main__":
    raise SystemExit(main())
