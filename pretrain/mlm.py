"""Continue pretraining an encoder as a masked language model, on a corpus or on the text of a `ner` data set.

    accelerate launch pretrain/mlm.py --encoder google/bert_uncased_L-2_H-128_A-2 --data CORPUS --output ENCODER

The output is a plain Hugging Face folder: `AutoModelForMaskedLM.from_pretrained(ENCODER)`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator

from data_prep.layout import read_texts
from launch.errors import InputError
from launch.loop import (
    Batch,
    make_accelerator,
    make_optimizer,
    micro_batches,
    sum_over_processes,
    to_device,
    train,
)
from launch.pretrained import check_vocabulary, encoder_input, load_tokenizer
from launch.stage import Stage
from launch.training_stage import TrainingStageSettings, describe_encoder, export, run_training_stage
from pretrain.masking import Masking
from pretrain.model import PackedMaskedLanguageModel, load_masked_language_model
from pretrain.packing import cut_into_steps, epoch_order, lay_out, pack
from pretrain.texts import TokenizedTexts, tokenize

EVALUATION_SEED = 20031217
"""Seed of the validation split's masks: the same for every run, so that losses compare."""

SHORTEST_ROW = 3
"""[CLS], a token, [SEP]."""


@dataclass(frozen=True, kw_only=True)
class MLMSettings(TrainingStageSettings):
    """Settings of `pretrain/mlm.py`. The data are a `corpus` or `ner` data set with splits `train` and `validation`."""

    masking_rate: float = 0.15
    """Share of tokens to predict."""
    whole_word: bool = True
    """Mask whole words; `false` masks single word pieces."""
    row_length: int = 128
    """Tokens of a packed row; a longer text is cut there, and counted."""
    tokens_per_step: int = 8192
    """Global batch of an optimizer step, in tokens."""
    dropout: float | None = 0.0
    """Dropout while pretraining; null keeps the encoder's own."""
    evaluate_steps: int | None = None
    """Optimizer steps between evaluations; null evaluates at the end of each epoch."""

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        if not 0 < self.masking_rate < 1:
            raise ValueError(f"masking_rate: {self.masking_rate} is not in (0, 1)")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not in [0, 1)")
        if self.row_length < SHORTEST_ROW:
            raise ValueError(f"row_length: {self.row_length} is too short for a word between two special tokens")
        if self.evaluate_steps is not None and self.evaluate_steps < 1:
            raise ValueError(f"evaluate_steps: {self.evaluate_steps} is not positive")
        if self.row_length > self.tokens_per_step:
            raise ValueError(f"tokens_per_step ({self.tokens_per_step}) is less than one row ({self.row_length})")


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    inputs = lambda settings: {"encoder": encoder_input(settings.encoder), "data": settings.data}  # noqa: E731
    return run_training_stage(MLMSettings, pretrain, inputs, argv)


def pretrain(settings: MLMSettings, stage: Stage) -> None:
    """The stage: from texts to an encoder."""
    accelerator = make_accelerator(settings.run)
    stage.seeds = [settings.seed]

    torch.manual_seed(settings.seed)
    tokenizer = load_tokenizer(settings.encoder)
    stock, new_parameters = load_masked_language_model(settings.encoder, settings.dropout)
    check_vocabulary(settings.encoder, stock, tokenizer)
    if tokenizer.mask_token_id is None:
        raise InputError(
            f"{settings.encoder}: its tokenizer has no mask token. Give an encoder that was made with one."
        )
    model = PackedMaskedLanguageModel(stock)
    if settings.row_length > model.maximum_length:
        raise InputError(
            f"{settings.encoder}: reads {model.maximum_length} tokens at the most. "
            f"Lower --row_length ({settings.row_length})."
        )
    stage.facts["encoder"] = describe_encoder(stock, new_parameters)
    if new_parameters:
        stage.log(f"new parameters, not in {settings.encoder}: {', '.join(new_parameters)}")

    texts = {}
    for split in ("train", "validation"):
        bar = lambda chunks, split=split: stage.progress(chunks, f"tokenizing {split}", unit="chunk")  # noqa: E731
        texts[split] = tokenize(*read_texts(settings.data, split, words="tokens"), tokenizer, settings.row_length, bar)
    stage.rows.taken = stage.rows.kept = len(texts["train"])
    stage.facts["data"] = {
        split: {"texts": len(part), "tokens": len(part.tokens), "texts_truncated": part.truncated}
        for split, part in texts.items()
    }

    task = MaskedLanguageModelling(settings, texts["train"], texts["validation"], tokenizer)
    weights = train(
        stage,
        accelerator,
        model,
        make_optimizer(model, settings.optimizer),
        task,
        seed=settings.seed,
        schedule=settings.schedule,
        run=settings.run,
        maximum_gradient_norm=settings.optimizer.maximum_gradient_norm,
        size_unit="tokens",
        evaluate_steps=settings.evaluate_steps,
    )
    trained, _ = load_masked_language_model(settings.encoder, dropout=None)
    export(stage, accelerator, trained, tokenizer, weights, prefix="model.")


class MaskedLanguageModelling:
    """The training loop's task: packed rows of texts, masked anew in every epoch."""

    def __init__(
        self, settings: MLMSettings, training: TokenizedTexts, validation: TokenizedTexts, tokenizer: object
    ) -> None:
        self.settings = settings
        self.training = training
        self.validation = validation
        self.masking, self.evaluation_masking = (
            Masking(settings.masking_rate, settings.whole_word, tokenizer.mask_token_id, len(tokenizer), seed)
            for seed in (settings.seed, EVALUATION_SEED)
        )

    def plan(self, epoch: int) -> "PackedSteps":
        """Optimizer steps of an epoch."""
        order = epoch_order(len(self.training), self.settings.seed, epoch)
        steps = cut_into_steps(order, self.training.lengths, self.settings.tokens_per_step)
        return PackedSteps(steps, self.training, self.settings.row_length)

    def collate(self, rows: Sequence[np.ndarray], epoch: int) -> Batch:
        """Rows as the model's tensors, masked for this epoch."""
        return make_batch(rows, self.training, self.settings.row_length, self.masking, epoch)

    def size(self, rows: Sequence[np.ndarray]) -> int:
        """Tokens in the rows, padding left out."""
        return int(sum(self.training.lengths[row].sum() for row in rows))

    def sample_ids(self, rows: Sequence[np.ndarray]) -> list[str]:
        """Ids of the texts in the rows."""
        return [self.training.ids[sample] for row in rows for sample in row]

    def evaluate(self, model: torch.nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Loss per masked token (nats) and perplexity on the validation split, whose masks never change."""
        rows = pack(np.arange(len(self.validation)), self.validation.lengths, self.settings.row_length)
        loss = weight = 0.0
        for chunk, counts in micro_batches(
            rows, self.settings.run.micro_batch, accelerator.process_index, accelerator.num_processes
        ):
            batch = make_batch(chunk, self.validation, self.settings.row_length, self.evaluation_masking, epoch=0)
            loss += counts * float(model(**to_device(batch, accelerator.device)))
            weight += counts * float(batch["weight"])
        mean = sum_over_processes(accelerator, loss) / max(sum_over_processes(accelerator, weight), 1.0)
        return {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}


class PackedSteps(Sequence):
    """The steps of an epoch; each is packed into rows when it is asked for."""

    def __init__(self, steps: list[np.ndarray], texts: TokenizedTexts, row_length: int) -> None:
        self.steps, self.lengths, self.row_length = steps, texts.lengths, row_length

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> list[np.ndarray]:
        return pack(self.steps[index], self.lengths, self.row_length)


def make_batch(
    rows: Sequence[np.ndarray], texts: TokenizedTexts, row_length: int, masking: Masking, epoch: int
) -> Batch:
    """The model's tensors of packed rows; ``weight`` is the number of masked tokens."""
    laid = lay_out(rows, texts, row_length)
    masked, chosen = masking.apply(laid["tokens"], laid["words"], laid["samples"], laid["positions"], epoch)
    places = np.flatnonzero(chosen)
    arrays = {
        "tokens_RT": masked,
        "positions_RT": laid["positions"],
        "samples_RT": laid["samples"],
        "masked_M": places,
        "labels_M": laid["tokens"].ravel()[places],
        "weight": np.asarray(len(places)),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


if __name__ == "__main__":
    raise SystemExit(main())
