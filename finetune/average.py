"""The mean of the weights of several recognizers that were trained on from the same one: one recognizer of their size.

    python finetune/average.py --recognizers '[RUN_1, RUN_2, RUN_3]' --data TMN --output RECOGNIZER

("Model soups", Wortsman et al., 2022.) Runs of `finetune/ner.py` or `distill.py` that differ in their seed alone, and start
from one encoder, may lie so close together that the mean of their weights is better than each: its scores tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from finetune.recognizer import Recognizer, add_model_code
from finetune.tagger import PieceTagger
from finetune.tagging import predict, read_rows
from finetune.training import SCORED, make_splits, score_recognizer
from launch.errors import InputError
from launch.loop import Precision, RunSettings, make_accelerator
from launch.paper_tables import msb_system
from launch.pretrained import encoder_input, refuse_twice
from launch.publishing import PublishingSettings, run_publishing_stage
from launch.settings import NOT_IDENTITY
from launch.stage import Stage
from launch.training_stage import describe_encoder, export, write_model_card


@dataclass(frozen=True, kw_only=True)
class AverageSettings(PublishingSettings):
    """Settings of `finetune/average.py`."""

    recognizers: list[str] = field(metadata=NOT_IDENTITY)
    """Folders or Hub ids of recognizers of one system and one start, two or more."""
    data: Path = field(metadata=NOT_IDENTITY)
    """Folder of the `ner` data set to score on."""
    image_words: Literal["given", "shuffled", "none"] = "given"
    """What the recognizers were trained with."""
    seed: int = 1
    """Which image words are shuffled where is a function of it."""
    precision: Precision = "auto"
    """What is scored in: `auto` is bf16 where the GPU or the processor computes it fast, else fp32."""

    def __post_init__(self) -> None:
        """Refuse the mean of one."""
        if len(self.recognizers) < 2:
            raise ValueError("recognizers: give two or more")


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    return run_publishing_stage(
        AverageSettings, average, inputs_of, argv, repository_type="model", describe=write_model_card
    )


def inputs_of(settings: AverageSettings) -> dict[str, Path | str | None]:
    """The recognizers, numbered, and the data set."""
    recognizers = {f"model_{number}": encoder_input(name) for number, name in enumerate(settings.recognizers, start=1)}
    return {**recognizers, "data": settings.data}


def average(settings: AverageSettings, stage: Stage) -> None:
    """The stage: load, take the mean, score, export."""
    accelerator = make_accelerator(RunSettings(precision=settings.precision))
    recognizer = mean_of(settings.recognizers)
    if recognizer.reads_image_words != (settings.image_words != "none"):
        trained_with = "given (or shuffled)" if recognizer.reads_image_words else "none"
        raise InputError(f"--image_words {settings.image_words}: the recognizers were trained with {trained_with}.")
    rows = {name: read_rows(settings.data, name, settings.image_words, settings.seed) for name in SCORED}
    splits = make_splits(rows, stage, recognizer.reader)
    stage.seeds = [settings.seed]
    encoder = describe_encoder(recognizer.tagger.model, [])
    head = "crf" if recognizer.tagger.has_crf else "softmax"
    stage.facts |= {
        "encoder": encoder,
        "system": msb_system(encoder["layers"], encoder["hidden_size"], head),
        "head": head,
        "averaged": len(settings.recognizers),
        "reads_image_words": recognizer.reads_image_words,
    }

    tagger = recognizer.tagger.to(accelerator.device)
    score_recognizer(
        stage, splits, {name: predict(tagger, splits[name], recognizer.scheme, accelerator) for name in SCORED}
    )
    export(stage, accelerator, tagger.model, recognizer.reader.save)
    add_model_code(stage.folder)


@torch.no_grad()
def mean_of(names: list[str]) -> Recognizer:
    """The first recognizer with the mean of the weights of all. InputError where they are not of one kind."""
    refuse_twice(names, "recognizers")
    first, *others = (Recognizer.from_pretrained(name, device="cpu") for name in names)
    if not isinstance(first.tagger, PieceTagger):
        raise InputError(f"{names[0]}: is a system on word vectors. Give recognizers of finetune/ner.py or distill.py.")
    state = first.tagger.state_dict()  # its tensors are the model's own
    for name, other in zip(names[1:], others, strict=True):
        theirs = other.tagger.state_dict()
        if (
            (first.scheme, first.reads_image_words) != (other.scheme, other.reads_image_words)
            or {key: x.shape for key, x in state.items()} != {key: x.shape for key, x in theirs.items()}
            or first.tagger.model.config.msb_input != other.tagger.model.config.msb_input
            or first.reader.tokenizer.get_vocab() != other.reader.tokenizer.get_vocab()
        ):
            raise InputError(
                f"{name}: is another kind of recognizer than {names[0]} (labels, input, vocabulary or weights). "
                "Give runs that differ in their seed alone."
            )
        for key, tensor in state.items():
            if tensor.is_floating_point():
                tensor += theirs[key]
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor /= len(names)
    return first


if __name__ == "__main__":
    raise SystemExit(main())
