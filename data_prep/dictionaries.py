"""The entities of an annotated data set become dictionaries, one for each type, for T-NER's features.

    python data_prep/dictionaries.py --data CONLL2003 --output runs/dictionaries
    python finetune/feature_ner.py --system tner --data TMN --dictionaries runs/dictionaries --output runs/tner

Writes `PER.txt`, `LOC.txt`, `ORG.txt` and `MISC.txt`: each entity of the split `train` once, most frequent first. Take other
data than a system is trained on: it would learn that whatever it sees in training stands in a dictionary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.layout import ENTITY_TYPES, NER_TAGS, read_ner
from launch.errors import InputError
from launch.files import write_text_whole
from launch.settings import NOT_IDENTITY
from launch.stage import Stage, StageSettings, run_stage


@dataclass(frozen=True, kw_only=True)
class DictionarySettings(StageSettings):
    """Settings of `data_prep/dictionaries.py`."""

    data: Path = field(metadata=NOT_IDENTITY)
    """Folder of a `ner` data set; its split `train` is read."""
    minimum_count: int = 1
    """Leave out what occurs less often with this type."""

    def __post_init__(self) -> None:
        """Refuse to count to nothing."""
        if self.minimum_count < 1:
            raise ValueError(f"minimum_count: {self.minimum_count} is not positive")


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    return run_stage(DictionarySettings, make_dictionaries, lambda settings: {"data": settings.data}, argv)


def make_dictionaries(settings: DictionarySettings, stage: Stage) -> None:
    """The stage: from tagged sentences to a file of phrases for each type."""
    counts = {entity_type: Counter[str]() for entity_type in ENTITY_TYPES}
    rows = read_ner(settings.data, "train", columns=["tokens", "ner_tags"])
    for row in stage.progress(rows, "entities", unit="sentence"):
        for entity_type, phrase in entities(row["tokens"], [NER_TAGS[tag] for tag in row["ner_tags"]]):
            counts[entity_type][phrase] += 1
    stage.facts["phrases"], stage.facts["left_out"] = {}, {}
    for entity_type, found in counts.items():
        kept = [phrase for phrase, count in found.most_common() if count >= settings.minimum_count]
        stage.facts["phrases"][entity_type] = len(kept)
        stage.facts["left_out"][entity_type] = len(found) - len(kept)
        if kept:
            write_text_whole(stage.folder / f"{entity_type}.txt", "".join(f"{phrase}\n" for phrase in kept))
    stage.rows.taken = stage.rows.kept = len(rows)
    stage.log(", ".join(f"{count} {entity_type}" for entity_type, count in stage.facts["phrases"].items()))
    if not any(stage.facts["phrases"].values()):
        raise InputError.at(
            settings.data, None, f"no entity occurs {settings.minimum_count} times", "Lower --minimum_count."
        )


def entities(tokens: Sequence[str], tags: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Type and words of each entity, by valid BIO tags."""
    start = 0
    for place in range(1, len(tags) + 1):
        if place == len(tags) or not tags[place].startswith("I-"):
            if tags[start] != "O":
                yield tags[start][2:], " ".join(tokens[start:place])
            start = place


if __name__ == "__main__":
    raise SystemExit(main())
