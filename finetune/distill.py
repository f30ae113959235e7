"""A small recognizer learns what larger ones think of many unlabelled posts (knowledge distillation).

    accelerate launch finetune/distill.py --encoder ENCODER --data TMN --soft_labels SOFT_LABELS --output RECOGNIZER

`finetune/soft_labels.py` made the soft labels. The student learns the teacher's distribution over whole label sequences
(Wang et al., 2020), and the tags of the data set's `train` among it; the weights best on `validation` are kept and
`test` is scored once, as in `finetune/ner.py`, whose settings these are, but for `--regularisation`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from data_prep.layout import ENTITY_TYPES
from finetune.distillation import DistillationSettings, SoftPieceTagger, make_task, read_soft_labels
from finetune.ner import MSBSettings, learning_rate_by_name, model_and_reader
from finetune.tags import TagScheme
from finetune.training import read_splits, train_recognizer
from launch.loop import make_accelerator
from launch.pretrained import encoder_input
from launch.schedule import ScheduleSettings
from launch.stage import Stage
from launch.training_stage import run_training_stage


@dataclass(frozen=True, kw_only=True)
class DistillSettings(MSBSettings, DistillationSettings):
    """Settings of `finetune/distill.py`."""

    tweets_per_step: int = 64
    """Global batch of an optimizer step, in tweets."""
    schedule: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(epochs=3))
    """How long to train, and the learning rate's shape. An epoch goes through all soft labels."""


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    return run_training_stage(DistillSettings, distill, inputs_of, argv)


def inputs_of(settings: DistillSettings) -> dict[str, Path | str | None]:
    """The student's encoder, the data set, the soft labels."""
    return {
        "encoder": encoder_input(settings.encoder),
        "data": settings.data,
        "soft_labels": settings.soft_labels,
    }


def distill(settings: DistillSettings, stage: Stage) -> None:
    """The stage: from an encoder and a teacher's scores to a recognizer with scores of its own."""
    accelerator = make_accelerator(settings.run)
    stage.seeds = [settings.seed]
    scheme = TagScheme(settings.scheme, ENTITY_TYPES)
    model, reader = model_and_reader(settings, stage, scheme)
    soft = read_soft_labels(settings.soft_labels, scheme, settings.read_image_words, settings.seed)
    splits = read_splits(settings, stage, reader)
    tagger = SoftPieceTagger(model, soft.crf, settings.temperature)
    task = make_task(settings, stage, soft, reader, splits, scheme)
    rates = learning_rate_by_name(settings, model)
    train_recognizer(settings, stage, accelerator, splits, scheme, reader, tagger, rates, task)


if __name__ == "__main__":
    raise SystemExit(main())
