"""How well an encoder predicts masked tokens of a data set's split: what `pretrain/mlm.py` reports while it trains.

    python pretrain/evaluate.py --encoder ENCODER --data data/tmn --split validation --output runs/loss_on_tmn

Masks are the same for every encoder with the same tokenizer, so that losses compare. The output is `loss.json`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from launch.files import write_json_whole
from launch.loop import RunSettings, make_accelerator, type_of
from launch.precision import RoundedOnce
from launch.pretrained import check_vocabulary, load_tokenizer
from launch.settings import NOT_IDENTITY
from launch.stage import Stage, StageSettings, run_stage
from pretrain.mlm import (
    MaskedLanguageModelling,
    MLMSettings,
    check_encoder,
    check_segments,
    inputs_of,
    tokenized,
)
from pretrain.model import PackedMaskedLanguageModel, load_masked_language_model

LOSS_NAME = "loss.json"


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(StageSettings):
    """Settings of `pretrain/evaluate.py`."""

    encoder: str = field(metadata=NOT_IDENTITY)
    """Folder or Hub id of the encoder."""
    data: str = field(metadata=NOT_IDENTITY)
    """Folder of a `corpus` or `ner` data set, or one on the Hub, as for `pretrain/mlm.py`."""
    split: Literal["train", "validation", "test"] = "validation"
    """Which of its splits."""
    masking_rate: float = 0.15
    """Share of tokens to predict."""
    whole_word: bool = True
    """Mask whole words; `false` masks single word pieces."""
    row_length: int = 128
    """Tokens of a packed row; a longer text is cut there, and counted."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """As `run.precision` of the training stages."""
    token_cache: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Folder where tokenized texts are kept for later runs; null is `$MSB_CACHE`, else `~/.cache/msb-ner`."""

    def __post_init__(self) -> None:
        """Refuse a rate that masks nothing, or all."""
        if not 0 < self.masking_rate < 1:
            raise ValueError(f"masking_rate: {self.masking_rate} is not in (0, 1)")


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    return run_stage(EvaluateSettings, evaluate, inputs_of, argv, several_processes=True)


def evaluate(settings: EvaluateSettings, stage: Stage) -> None:
    """The stage: from an encoder and texts to a loss."""
    run = RunSettings(precision=settings.precision, micro_batch=80)
    accelerator = make_accelerator(run, autocast=False)
    tokenizer = load_tokenizer(settings.encoder)
    stock, new_parameters = load_masked_language_model(settings.encoder, dropout=None)
    check_vocabulary(settings.encoder, stock, tokenizer)
    if new_parameters:
        stage.warn(f"new parameters, not in {settings.encoder}, predict at random: {', '.join(new_parameters)}")

    as_trained = MLMSettings(
        **{name: getattr(settings, name) for name in ("encoder", "data", "output", "masking_rate", "whole_word")},
        **{name: getattr(settings, name) for name in ("row_length", "token_cache")},
        tokens_per_step=max(8192, settings.row_length),
        run=run,
    )
    packed = PackedMaskedLanguageModel(stock)
    check_encoder(as_trained, packed, tokenizer)
    stores = tokenized(as_trained, stage, tokenizer, (settings.split,))
    check_segments(as_trained, stock.config, stores)
    store = stores[settings.split]
    model = RoundedOnce(packed, type_of(run)).to(accelerator.device).eval()
    task = MaskedLanguageModelling(as_trained, store, store, tokenizer, accelerator.num_processes)
    with torch.no_grad():
        metrics = task.evaluate(model, accelerator)

    stage.rows.taken = stage.rows.kept = len(store)
    stage.facts |= {"tokens": len(store.tokens), "texts_truncated": store.truncated, **metrics}
    stage.log(f"{settings.split}: loss {metrics['loss']:.4f}, perplexity {metrics['perplexity']:.2f}")
    if accelerator.is_main_process:
        write_json_whole(stage.folder / LOSS_NAME, metrics)


if __name__ == "__main__":
    raise SystemExit(main())
