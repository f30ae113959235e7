"""Train one of Table 4's two feature-based systems: a linear-chain CRF over published templates, in the style of the original.

    python finetune/feature_ner.py --system stanford --data TMN --output RECOGNIZER
    python finetune/feature_ner.py --system tner --data TMN --clusters CLUSTERS/paths.tsv --output RECOGNIZER

Stanford NER and T-NER are other programs; `finetune/systems/stanford_features.py` and `tner_features.py` say which of their
features are here and which are not. CRFsuite trains the CRF, by L-BFGS, the same on every run: there is no seed. It reads the
text alone. Trains on the repaired tags of `train`; scores `validation` and `test` against the tags as they were published.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_prep.layout import NER_TAGS
from data_prep.tag_repair import repair_orphans
from finetune.systems.stanford_features import StanfordFeatures
from finetune.systems.tner_features import TNERFeatures, read_clusters, read_dictionaries
from finetune.tagging import Split, over_source_tokens, read_rows
from finetune.training import SCORED, SPLITS, score_recognizer
from launch.errors import InputError
from launch.settings import NOT_IDENTITY
from launch.stage import Stage, StageSettings, run_stage

SYSTEM_NAMES = {"stanford": "Stanford NER style", "tner": "T-NER style"}
MODEL_NAME = "model.crfsuite"

Features = Callable[[Sequence[str]], list[list[str]]]
"""From a tweet's words to the names of the features of each."""


@dataclass(frozen=True, kw_only=True)
class CRFSettings:
    """How CRFsuite trains."""

    c1: float = 0.0
    """Weight of the L1 penalty; above 0 most features get no weight."""
    c2: float = 1.0
    """Weight of the L2 penalty."""
    maximum_iterations: int = 200
    """Iterations of L-BFGS, if it does not converge before."""

    def __post_init__(self) -> None:
        """Refuse penalties that reward, and no training at all."""
        if self.c1 < 0 or self.c2 < 0:
            raise ValueError("crf.c1 and crf.c2 must not be below 0")
        if self.maximum_iterations < 1:
            raise ValueError("crf.maximum_iterations must be at least 1")


@dataclass(frozen=True, kw_only=True)
class FeatureNERSettings(StageSettings):
    """Settings of `finetune/feature_ner.py`."""

    data: Path = field(metadata=NOT_IDENTITY)
    """Folder of the `ner` data set, with splits train, validation and test."""
    system: Literal["stanford", "tner"]
    """Whose feature templates: Stanford NER's (Finkel et al. 2005) or T-NER's (Ritter et al. 2011)."""
    dictionaries: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Folder of dictionaries for `tner`: text files, a phrase a line; a file's name is its dictionary's."""
    clusters: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """`paths.tsv` of `pretrain/word_clusters.py`, for `tner`."""
    crf: CRFSettings = field(default_factory=CRFSettings)
    """How CRFsuite trains."""


@dataclass(frozen=True)
class FeatureInputs:
    """Tweets as features; as much of `finetune.inputs.Inputs` as the scores ask for."""

    features: list[Any]
    """An ItemSequence of CRFsuite for each tweet."""

    @property
    def words_truncated(self) -> list[int]:
        """None is: every word has its features."""
        return [0] * len(self.features)


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    inputs = lambda settings: {  # noqa: E731
        "data": settings.data,
        "dictionaries": settings.dictionaries,
        "clusters": settings.clusters,
    }
    return run_stage(FeatureNERSettings, train_features, inputs, argv)


def train_features(settings: FeatureNERSettings, stage: Stage) -> None:
    """The stage: from tweets to a CRF over their features, with scores."""
    crfsuite = import_crfsuite()
    check_settings(settings)
    rows = {name: read_rows(settings.data, name, "none", seed=0) for name in SPLITS}
    stage.rows.taken = stage.rows.kept = sum(map(len, rows.values()))
    stage.facts["system"] = SYSTEM_NAMES[settings.system]
    stage.facts["data"] = {name: {"tweets": len(rows[name])} for name in SPLITS}

    features = make_features(settings, [row["tokens"] for row in rows["train"]])
    splits = {}
    for name in SPLITS:
        tweets = stage.progress(rows[name], f"features of {name}", unit="tweet")
        read = [crfsuite.ItemSequence(features(row["tokens"])) for row in tweets]
        splits[name] = Split(rows[name], FeatureInputs(read))

    stage.facts["crf"] = train_crf(stage, splits["train"], settings.crf)

    tagger = crfsuite.Tagger()
    tagger.open(str(stage.folder / MODEL_NAME))
    found = {name: predict_tags(tagger, splits[name]) for name in SCORED}
    stage.facts["orphan_tags_repaired"] = {name: orphans for name, (_, orphans) in found.items()}
    score_recognizer(stage, splits, {name: tags for name, (tags, _) in found.items()})


def import_crfsuite() -> Any:
    """The module `pycrfsuite`; InputError where it is not installed."""
    try:
        import pycrfsuite
    except ImportError:
        raise InputError(
            "python-crfsuite trains the CRF, and is not installed. pip install 'msb-ner[features]'"
        ) from None
    return pycrfsuite


def check_settings(settings: FeatureNERSettings) -> None:
    """Refuse what the system would not look at."""
    for name in ("dictionaries", "clusters"):
        if getattr(settings, name) and settings.system != "tner":
            raise InputError(f"--system {settings.system} has no features of {name}. Leave --{name} out, or take tner.")


def make_features(settings: FeatureNERSettings, training: list[list[str]]) -> Features:
    """The system's templates, with what they need beside the tweet."""
    if settings.system == "stanford":
        return StanfordFeatures(training)
    return TNERFeatures(
        read_dictionaries(settings.dictionaries) if settings.dictionaries else {},
        read_clusters(settings.clusters) if settings.clusters else {},
    )


def train_crf(stage: Stage, split: Split, settings: CRFSettings) -> dict[str, Any]:
    """Train on the repaired tags of a split, write the model; returns what is worth knowing of it."""
    crfsuite = import_crfsuite()
    begun = time.monotonic()
    state: dict[str, Any] = {}

    class Trainer(crfsuite.Trainer):
        """Tells of each iteration as it ends."""

        def message(self, message: str) -> None:
            if self.logparser.feed(message) == "iteration":
                last = self.logparser.last_iteration
                state.update(iterations=last["num"], loss=last["loss"], active_features=last["active_features"])
                stage.log_metrics(event="iteration", step=last["num"], loss=last["loss"])
                progress.set_postfix(loss=f"{last['loss']:.1f}", refresh=False)
                progress.update()

    # Also transitions that never occur get a weight: they can be made unlikely.
    parameters = {"c1": settings.c1, "c2": settings.c2, "max_iterations": settings.maximum_iterations}
    trainer = Trainer("lbfgs", parameters | {"feature.possible_transitions": True})
    for row, features in zip(split.rows, split.inputs.features, strict=True):
        trainer.append(features, [NER_TAGS[tag] for tag in row["ner_tags"]])
    with stage.progress(None, "L-BFGS", total=settings.maximum_iterations, unit="iteration") as progress:
        trainer.train(str(stage.folder / MODEL_NAME))
    return asdict(settings) | state | {"training_seconds": round(time.monotonic() - begun, 1)}


def predict_tags(tagger: Any, split: Split) -> tuple[list[list[str]], int]:
    """Valid BIO tags of each tweet of a split, over its source tokens, and how many orphan tags had to be repaired."""
    predicted, orphans = [], 0
    for row, features in zip(split.rows, split.inputs.features, strict=True):
        tags, repaired = repair_orphans(tagger.tag(features))
        orphans += repaired
        assert len(tags) == len(row["source_index"])
        predicted.append(over_source_tokens(row, tags))
    return predicted, orphans


if __name__ == "__main__":
    raise SystemExit(main())
