"""A system on word vectors, such as CWI, learns what larger recognizers think of many unlabelled posts.

    accelerate launch finetune/word_distill.py --system cwi --vectors '[GLOVE, FASTTEXT]' --data TMN \\
        --soft_labels SOFT_LABELS --output RECOGNIZER

What `finetune/distill.py` is to encoders, with the settings of `finetune/word_ner.py`. The words of the soft labels' texts
that come up often enough get vectors, too.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.layout import ENTITY_TYPES
from finetune.distillation import DistillationSettings, SoftWordTagger, make_task, read_soft_labels
from finetune.tags import TagScheme
from finetune.training import read_all_rows, train_recognizer
from finetune.word_ner import WordNERSettings, check_settings, inputs, model_and_reader, read_splits
from launch.loop import make_accelerator
from launch.schedule import ScheduleSettings
from launch.stage import Stage
from launch.training_stage import run_training_stage

SEEN_AT_LEAST = 5
"""How often a word must be there among the soft labels' texts to get a vector of its own."""


@dataclass(frozen=True, kw_only=True)
class WordDistillSettings(WordNERSettings, DistillationSettings):
    """Settings of `finetune/word_distill.py`."""

    tweets_per_step: int = 64
    """Global batch of an optimizer step, in tweets."""
    schedule: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(epochs=2))
    """How long to train, and the learning rate's shape. An epoch goes through all soft labels."""

    def __post_init__(self) -> None:
        """Refuse regions, which no text of the soft labels has."""
        super().__post_init__()
        if self.regions:
            raise ValueError("regions: the texts of soft labels have no images; leave them out")


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    return run_training_stage(WordDistillSettings, word_distill, inputs_of, argv)


def inputs_of(settings: WordDistillSettings) -> dict[str, Path | str | None]:
    """The data set, each file of vectors, the soft labels."""
    return {**inputs(settings), "soft_labels": settings.soft_labels}


def word_distill(settings: WordDistillSettings, stage: Stage) -> None:
    """The stage: from word vectors and a teacher's scores to a recognizer with scores of its own."""
    accelerator = make_accelerator(settings.run)
    stage.seeds = [settings.seed]
    check_settings(settings)
    scheme = TagScheme(settings.scheme, ENTITY_TYPES)
    rows = read_all_rows(settings)
    soft = read_soft_labels(settings.soft_labels, scheme, settings.read_image_words, settings.seed)
    counts = Counter(token for tokens in soft.tokens for token in tokens)
    frequent = {word: count for word, count in counts.items() if count >= SEEN_AT_LEAST}
    model, reader = model_and_reader(settings, stage, scheme, rows, frequent)
    splits = read_splits(settings, stage, reader, rows)
    tagger = SoftWordTagger(model, soft.crf, settings.temperature)
    task = make_task(settings, stage, soft, reader, splits, scheme)
    train_recognizer(settings, stage, accelerator, splits, scheme, reader, tagger, task=task)


if __name__ == "__main__":
    raise SystemExit(main())
