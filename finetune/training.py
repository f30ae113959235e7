"""Training and scoring of a recognizer, the same for every system: the loop, the best weights, scores, predictions, export."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from accelerate import Accelerator
from safetensors.torch import load_file

from finetune.dropout import use_fast_dropout
from finetune.inputs import Reader
from finetune.recognizer import add_model_code
from finetune.rows_in_use import with_all_rows
from finetune.scorer import CONVENTIONS
from finetune.tagger import Tagger
from finetune.tagging import Split, Tagging, predict, read_rows, score, write_predictions
from finetune.tags import TagScheme
from launch.files import write_json_whole
from launch.loop import make_optimizer, train, unwrapped, with_compilation_decided
from launch.stage import Stage
from launch.training_stage import TrainingStageSettings, export

SPLITS = ("train", "validation", "test")
SCORED = SPLITS[1:]
"""What scores are taken of."""


@dataclass(frozen=True, kw_only=True)
class RecognizerSettings(TrainingStageSettings):
    """Settings of every stage that trains a recognizer, on a `ner` data set with splits train, validation and test."""

    scheme: Literal["BIO", "BIOES"] = "BIO"
    """Tag scheme of the labels the model learns; scores are always taken on BIO."""
    image_words: Literal["given", "shuffled", "none"] = "given"
    """The tweet's own image words, another tweet's (an ablation), or nothing."""
    tweets_per_step: int = 16
    """Global batch of an optimizer step, in tweets."""
    patience: int | None = None
    """Stop after this many epochs without a better F1 on `validation`; null trains to the end."""

    def __post_init__(self) -> None:
        """Refuse counts of nothing."""
        super().__post_init__()
        if self.tweets_per_step < 1:
            raise ValueError(f"tweets_per_step: {self.tweets_per_step} is not positive")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience: {self.patience} is not positive; null trains to the end")

    @property
    def read_image_words(self) -> str:
        """The image words that are read: those of ``image_words``; a system that reads none says so."""
        return self.image_words


def read_splits(settings: RecognizerSettings, stage: Stage, reader: Reader) -> dict[str, Split]:
    """The data set's splits, counted in the stage's rows and facts."""
    return make_splits(read_all_rows(settings), stage, reader)


def read_all_rows(settings: RecognizerSettings) -> dict[str, list[dict[str, Any]]]:
    """The data set's rows by split, with the image words that the system reads."""
    return {name: read_rows(settings.data, name, settings.read_image_words, settings.seed) for name in SPLITS}


def make_splits(rows_of_splits: dict[str, list[dict[str, Any]]], stage: Stage, reader: Reader) -> dict[str, Split]:
    """Splits of rows that were read, counted in the stage's rows and facts."""
    splits = {name: Split.of(rows, reader) for name, rows in rows_of_splits.items()}
    stage.rows.taken = stage.rows.kept = sum(len(split.rows) for split in splits.values())
    stage.facts["data"] = {
        name: {"tweets": len(split.rows), "words_truncated": split.words_truncated} for name, split in splits.items()
    }
    return splits


def train_recognizer(
    settings: RecognizerSettings,
    stage: Stage,
    accelerator: Accelerator,
    splits: dict[str, Split],
    scheme: TagScheme,
    reader: Reader,
    tagger: Tagger,
    learning_rate_of: Callable[[str], float] | None = None,
    task: Tagging | None = None,
) -> None:
    """Train a tagger on ``train``, keep the weights best on ``validation``, score ``test`` once, export the model.

    ``learning_rate_of`` gives the peak learning rate of a parameter by its name in the tagger; None takes the optimizer's.
    ``task`` is what is trained on, if that is not ``train`` with its own tags.
    """
    task = task or Tagging(splits["train"], splits["validation"], scheme, settings.tweets_per_step, settings.seed)
    in_training = copy.deepcopy(tagger)
    in_training.train_rows_in_use(task.inputs)
    use_fast_dropout(in_training)
    weights = train(
        stage,
        accelerator,
        in_training,
        make_optimizer(in_training, settings.optimizer, learning_rate_of),
        task,
        seed=settings.seed,
        schedule=settings.schedule,
        run=with_compilation_decided(settings.run, settings.schedule, len(task.plan(0)), stage),
        maximum_gradient_norm=settings.optimizer.maximum_gradient_norm,
        size_unit="tweets",
        best_by="f1_conlleval",
        patience=settings.patience,
    )
    tagger.load_state_dict(with_all_rows(unwrapped(in_training), load_file(str(weights))))
    tagger.to(accelerator.device).eval()
    score_recognizer(stage, splits, {name: predict(tagger, splits[name], scheme, accelerator) for name in SCORED})
    export(stage, accelerator, tagger.model, reader.save)
    if stage.is_main_process:
        add_model_code(stage.folder)


def score_recognizer(stage: Stage, splits: dict[str, Split], predicted: dict[str, list[list[str]]]) -> None:
    """Write the stage's `scores.json` and `predictions/`, given the tags predicted for the splits that are scored."""
    scores = {}
    for name, tags in predicted.items():
        scores[name] = score(splits[name], tags)
        f1 = {convention: scores[name][convention]["micro"]["f1"] for convention in CONVENTIONS}
        stage.log(f"{name}: " + ", ".join(f"F1 {100 * value:.2f} ({convention})" for convention, value in f1.items()))
        if stage.is_main_process:
            write_predictions(stage.folder / "predictions" / f"{name}.jsonl", splits[name], tags)
    if stage.is_main_process:
        write_json_whole(stage.folder / "scores.json", scores)
