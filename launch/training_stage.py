"""What the training stages (`pretrain/mlm.py`, `finetune/ner.py` and others) have in common beside the loop."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from launch.interruption import stopping_when_asked
from launch.loop import OptimizerSettings, RunSettings, TrainingError, last_good, told_where_it_fails
from launch.model_card import render_model_card
from launch.publishing import PublishingSettings, SettingsType, run_publishing_stage
from launch.schedule import ScheduleSettings
from launch.settings import NOT_IDENTITY
from launch.stage import CARD_NAME, Stage, read_manifest
from launch.trackers import parse_trackers, tracking

CONNECTION_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
WAITED_IN_VAIN = ("Timed out waiting", "Wait timeout")
"""Words of gloo's errors."""


@dataclass(frozen=True, kw_only=True)
class TrainingStageSettings(PublishingSettings):
    """Settings of every training stage."""

    data: Path = field(metadata=NOT_IDENTITY)
    """Folder of the data set to train on."""
    seed: int = 1
    """Order of samples, masks, dropout and new weights are functions of it."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    """The optimizer, AdamW."""
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    """How long to train, and the learning rate's shape."""
    run: RunSettings = field(default_factory=RunSettings)
    """Precision, micro-batches, checkpoints."""
    trackers: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Where metrics go beside `metrics.jsonl`: `tensorboard`, `trackio`, `wandb`, or several, with commas."""

    def __post_init__(self) -> None:
        """Refuse trackers that are not known."""
        parse_trackers(self.trackers)


@dataclass(frozen=True, kw_only=True)
class EncoderStageSettings(TrainingStageSettings):
    """Settings of a training stage that starts from an encoder."""

    encoder: str = field(metadata=NOT_IDENTITY)
    """Folder or Hub id of the encoder to start from."""


def run_training_stage(
    settings_class: type[SettingsType],
    function: Callable[[SettingsType, Stage], None],
    inputs: Callable[[SettingsType], dict[str, Path | str | None]],
    argv: list[str] | None = None,
) -> int:
    """:func:`launch.stage.run_stage` for a stage that trains: resumable, with a model card, published where asked.

    It stops when it is asked to, and ends with a clear error when another of its processes dies or hangs.
    """

    @wraps(function)  # the stage is named by it
    def watched(settings: SettingsType, stage: Stage) -> None:
        with tracking(stage, parse_trackers(settings.trackers)), lost_processes_told(stage, settings.run.timeout):
            function(settings, stage)

    with stopping_when_asked():
        return run_publishing_stage(
            settings_class,
            watched,
            inputs,
            argv,
            repository_type="model",
            describe=write_model_card,
            keeps_partial=True,
            several_processes=True,
        )


def write_model_card(folder: Path) -> None:
    """Write the card of a stage's model, from its manifest and its scores, if it has any."""
    scores = folder / "scores.json"
    card = render_model_card(read_manifest(folder), json.loads(scores.read_text()) if scores.exists() else None)
    (folder / CARD_NAME).write_text(card, encoding="utf-8")


@contextmanager
def lost_processes_told(stage: Stage, timeout: int) -> Iterator[None]:
    """Context in which a process that is left alone by another raises TrainingError: that one died, or hangs."""
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in WAITED_IN_VAIN):
            what = f"another process has not answered for {timeout} s (run.timeout): it hangs, or is that slow"
        elif any(words in str(error) for words in CONNECTION_LOST):
            what = "another process has died; what it or its launcher says here tells why"
        else:
            raise
        raise TrainingError(
            f"process {os.environ.get('RANK', '0')}: {what}. {last_good(stage.folder / 'checkpoints')}. "
            "The same command goes on from there."
        ) from error


def export(
    stage: Stage,
    accelerator: Accelerator,
    model: PreTrainedModel,
    save_tokenizer: Callable[[Path], object],
) -> None:
    """Write the trained model as a plain Hugging Face folder into the stage's, whose checkpoints are done with.

    ``save_tokenizer`` writes what makes the model's inputs into the folder.
    """
    if accelerator.is_main_process:
        with told_where_it_fails(stage.folder, "the trained model", stage.folder / "checkpoints"):
            model.save_pretrained(stage.folder)
            save_tokenizer(stage.folder)
        if (stage.folder / "checkpoints").is_dir():
            stage.scratch.append(stage.folder / "checkpoints")
    accelerator.wait_for_everyone()


def load_weights(model: nn.Module, weights: Path, prefix: str = "") -> None:
    """Put trained weights into ``model``, every one of them.

    ``weights`` holds a state dict of the trained module, in which ``model`` is the part called ``prefix``.
    """
    state_dict = {name.removeprefix(prefix): tensor for name, tensor in load_file(str(weights)).items()}
    model.load_state_dict(state_dict)


def describe_encoder(model: PreTrainedModel, new_parameters: list[str]) -> dict[str, Any]:
    """Kind and size of an encoder, and the commit of one of the Hub, for the manifest."""
    config = model.base_model.config
    return {
        "architecture": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "attention_heads": config.num_attention_heads,
        "vocabulary_size": config.vocab_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "new_parameters": new_parameters,
        **({"commit": commit} if (commit := getattr(config, "_commit_hash", None)) else {}),
    }
