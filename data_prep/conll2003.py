"""CoNLL-2003's English files become a `ner` data set.

    python data_prep/conll2003.py --input CONLL2003 --output data/conll2003

Reads `eng.train`, `eng.testa` and `eng.testb`, or `train.txt`, `valid.txt` and `test.txt`: four columns parted by
spaces, tags in IOB1 (or BIO), which become BIO. `-DOCSTART-` lines are dropped and counted. Nothing else is changed.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.column_files import TaggedText, read_conll
from data_prep.layout import ENTITY_TYPES, NER_FEATURES, DatasetWriter, ner_row
from data_prep.tag_repair import count_entities, iob1_to_bio
from launch.dataset_stage import DatasetStageSettings, run_dataset_stage
from launch.errors import InputError
from launch.settings import NOT_IDENTITY
from launch.stage import Stage

FILE_NAMES = (
    {"train": "eng.train", "validation": "eng.testa", "test": "eng.testb"},
    {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"},
)


@dataclass(frozen=True, kw_only=True)
class Conll2003Settings(DatasetStageSettings):
    """Settings of the CoNLL-2003 reader."""

    input: Path = field(metadata=NOT_IDENTITY)
    """Folder with `eng.train`, `eng.testa`, `eng.testb`, or with `train.txt`, `valid.txt`, `test.txt`."""


def main(argv: list[str] | None = None) -> int:
    """Run the stage."""
    return run_dataset_stage(
        Conll2003Settings, make_conll2003, inputs=lambda settings: {"news": settings.input}, argv=argv
    )


def make_conll2003(settings: Conll2003Settings, stage: Stage) -> None:
    """Read the three files, convert their tags and write them."""
    stage.facts["language"] = "en"
    stage.facts["document_starts"] = {}
    stage.facts["entities"] = {}
    with DatasetWriter(stage.folder, NER_FEATURES) as writer:
        for split, path in _split_files(settings.input).items():
            sentences, documents = read_conll(path, ENTITY_TYPES)
            for sentence in stage.progress(sentences, f"writing {split}", unit="sentence"):
                writer.add(split, _row(path, sentence))
            counts = sum((count_entities(sentence.tags)[1] for sentence in sentences), start=Counter())
            stage.facts["document_starts"][split] = documents
            stage.facts["entities"][split] = dict(sorted(counts.items()))
            stage.rows.taken += len(sentences)
            stage.rows.kept += len(sentences)
            stage.log(f"{split}: {len(sentences)} sentences, {sum(counts.values())} entities, {documents} documents")
    writer.write_card("News with named entities (CoNLL-2003 layout)", {"entities": stage.facts["entities"]})


def _split_files(folder: Path) -> dict[str, Path]:
    for names in FILE_NAMES:
        files = {split: folder / name for split, name in names.items()}
        if files["train"].is_file():
            return files  # a missing one of the others is refused by the reader, by name
    expected = " or ".join(", ".join(names.values()) for names in FILE_NAMES)
    raise InputError.at(folder, None, "no CoNLL-2003 files in it", f"Expected {expected}.")


def _row(path: Path, sentence: TaggedText) -> dict[str, Any]:
    # `source_tags` are what scores are taken against: here the converted ones, since scorers read BIO, not IOB1.
    tags = iob1_to_bio(sentence.tags)
    return ner_row(
        f"{path.name}:{sentence.line}",
        tokens=sentence.tokens,
        tags=tags,
        source_tokens=sentence.tokens,
        source_tags=tags,
        source_index=range(len(sentence.tokens)),
    )


if __name__ == "__main__":
    raise SystemExit(main())
