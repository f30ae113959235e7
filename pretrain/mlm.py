"""Continue pretraining an encoder as a masked language model, on a corpus or on the text of a `ner` data set.

    accelerate launch pretrain/mlm.py --encoder google/bert_uncased_L-2_H-128_A-2 --data CORPUS --output ENCODER

The output is a plain Hugging Face folder: `AutoModelForMaskedLM.from_pretrained(ENCODER)`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from data_prep.layout import read_ids
from data_prep.streamed_texts import data_input, is_streamed, iterate_streamed_texts
from data_prep.text_batches import Place, TextBatch, iterate_texts
from launch.errors import InputError
from launch.files import default_cache
from launch.loop import (
    Batch,
    RunSettings,
    make_accelerator,
    make_optimizer,
    micro_batches,
    sum_over_processes,
    to_device,
    train,
    type_of,
    under_deepspeed,
    with_compilation_decided,
)
from launch.precision import RoundedOnce
from launch.pretrained import check_vocabulary, encoder_input, load_tokenizer
from launch.settings import NOT_IDENTITY
from launch.stage import Stage, partial_folder
from launch.training_stage import EncoderStageSettings, describe_encoder, export, load_weights, run_training_stage
from pretrain import varlen_attention
from pretrain.cutter import Cutter
from pretrain.embedding import use_operator
from pretrain.limit import tokens_per_second_of_products
from pretrain.masking import Masking
from pretrain.model import PackedMaskedLanguageModel, load_masked_language_model
from pretrain.output_layer import NO_LABEL
from pretrain.packing import PackedSteps, lay_out, rows_of_step
from pretrain.token_store import TokenStore
from pretrain.tokenizing import tokenize

EVALUATION_SEED = 20031217
"""Seed of the validation split's masks: the same for every run, so that losses compare."""

EVALUATION_ROWS = 64
"""Rows that are packed together of the validation split; like its masks, the same for every run."""

TRAINING_SPLITS = ("train", "validation")

SHORTEST_ROW = 3
"""[CLS], a token, [SEP]."""


@dataclass(frozen=True, kw_only=True)
class MLMSettings(EncoderStageSettings):
    """Settings of `pretrain/mlm.py`. The data are a `corpus` or `ner` data set with splits `train` and `validation`."""

    data: str = field(metadata=NOT_IDENTITY)
    """Folder of the data set to train on, or what to stream: one on the Hub, `hub:OWNER/NAME` or
    `hub:OWNER/NAME@REVISION`, or a Parquet file, `https://HOST/FILE.parquet` (several with spaces between)."""
    text_column: str = "text"
    """Of streamed data: the column to read."""
    validation_share: float = 0.02
    """Of streamed data without a split `validation`: share of `train`, picked by a hash of the text."""
    image_words: Literal["given", "none"] = "given"
    """Second segment: the image words of a text where the data set has them, or nothing."""
    image_length: int = 32
    """Word pieces of the image words at the most."""
    image_words_joiner: str = ", "
    """What stands between two image words."""
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
    token_cache: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Folder where tokenized texts are kept for later runs; null is `$MSB_CACHE`, else `~/.cache/msb-ner`."""
    run: RunSettings = field(default_factory=lambda: RunSettings(micro_batch=80, compile="auto"))
    """Precision, compilation, micro-batches, checkpoints."""

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        super().__post_init__()
        if not 0 < self.masking_rate < 1:
            raise ValueError(f"masking_rate: {self.masking_rate} is not in (0, 1)")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not in [0, 1)")
        if self.row_length < SHORTEST_ROW:
            raise ValueError(f"row_length: {self.row_length} is too short for a word between two special tokens")
        if not 0 < self.validation_share < 1:
            raise ValueError(f"validation_share: {self.validation_share} is not in (0, 1)")
        if self.evaluate_steps is not None and self.evaluate_steps < 1:
            raise ValueError(f"evaluate_steps: {self.evaluate_steps} is not positive")
        if self.row_length > self.tokens_per_step:
            raise ValueError(f"tokens_per_step ({self.tokens_per_step}) is less than one row ({self.row_length})")


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    return run_training_stage(MLMSettings, pretrain, inputs_of, argv)


def inputs_of(settings: MLMSettings) -> dict[str, Path | str]:
    """What the stage reads: an encoder and texts, each in a folder or elsewhere."""
    data = data_input(settings.data, partial_folder(settings.output))
    return {"encoder": encoder_input(settings.encoder), "data": data}


def pretrain(settings: MLMSettings, stage: Stage) -> None:
    """The stage: from texts to an encoder."""
    by_autocast = under_deepspeed()
    accelerator = make_accelerator(settings.run, autocast=by_autocast)
    stage.seeds = [settings.seed]
    if is_streamed(settings.data):  # a change while the processes start must not give them different versions
        (stage.inputs["data"],) = broadcast_object_list([stage.inputs["data"]])

    torch.manual_seed(settings.seed)
    tokenizer = load_tokenizer(settings.encoder)
    stock, new_parameters = load_masked_language_model(settings.encoder, settings.dropout)
    check_vocabulary(settings.encoder, stock, tokenizer)
    packed = PackedMaskedLanguageModel(stock)
    check_encoder(settings, packed, tokenizer)
    stage.facts["encoder"] = describe_encoder(stock, new_parameters)
    if new_parameters:
        stage.log(f"new parameters, not in {settings.encoder}: {', '.join(new_parameters)}")

    stores = tokenized(settings, stage, tokenizer, TRAINING_SPLITS)
    check_segments(settings, stock.config, stores)
    stage.rows.kept, left_out = len(stores["train"]), stores["train"].left_out
    stage.rows.rejected.update({"empty": left_out} if left_out else {})
    stage.rows.taken = stage.rows.kept + left_out
    stage.facts["data"] = {
        split: {
            "texts": len(store),
            "tokens": len(store.tokens),
            "texts_truncated": store.truncated,
            "has_image_words": store.text_lengths is not None,
        }
        for split, store in stores.items()
    }

    task = MaskedLanguageModelling(
        settings, stores["train"], stores["validation"], tokenizer, accelerator.num_processes
    )
    run = with_compilation_decided(settings.run, settings.schedule, len(task.plan(0)), stage)
    if run.compile and accelerator.device.type == "cpu":
        # The compiler makes one kernel of the plain attention's masking and softmax; without it, torch's own is faster.
        stock.set_attn_implementation("eager")
        use_operator(stock)
    precision = type_of(run)
    if not by_autocast and varlen_attention.can_be_used(accelerator.device, precision, settings.dropout):
        stock.set_attn_implementation(varlen_attention.NAME)
    model = packed if by_autocast else RoundedOnce(packed, precision)
    weights = train(
        stage,
        accelerator,
        model,
        make_optimizer(model, settings.optimizer),
        task,
        seed=settings.seed,
        schedule=settings.schedule,
        run=run,
        maximum_gradient_norm=settings.optimizer.maximum_gradient_norm,
        size_unit="tokens",
        evaluate_steps=settings.evaluate_steps,
        micro_batch=task.rows_at_once,
        highest_rate=highest_rate(settings, stage, accelerator, stock.config, precision),
    )
    trained, _ = load_masked_language_model(settings.encoder, dropout=None)
    load_weights(trained, weights, prefix="model." if by_autocast else "inner.model.")
    export(stage, accelerator, trained, tokenizer.save_pretrained)


def highest_rate(
    settings: MLMSettings, stage: Stage, accelerator: Accelerator, config: PreTrainedConfig, precision: torch.dtype
) -> float | None:
    """Tokens a second of the step's matrix products alone; None for several processes, which would disturb each other."""
    if accelerator.num_processes > 1:
        return None
    limit = tokens_per_second_of_products(
        config, settings.tokens_per_step, settings.masking_rate, precision, accelerator.device
    )
    name = str(precision).removeprefix("torch.")
    stage.log(f"matrix products alone, in {name}: {limit:,.0f} tokens/s, the limit of this machine")
    stage.facts["tokens_per_second_of_products"] = round(limit)
    return limit


def tokenized(
    settings: MLMSettings, stage: Stage, tokenizer: PreTrainedTokenizerBase, splits: Sequence[str]
) -> dict[str, TokenStore]:
    """The texts of some splits as tokens, from the cache or made now."""
    content, cache = stage.inputs["data"]["sha256"], settings.token_cache or default_cache()
    cutter = Cutter(tokenizer, settings.row_length, settings.image_length, settings.image_words_joiner)

    def read(
        together: Sequence[str], content: str, texts: Callable[[Place], Iterator[TextBatch]]
    ) -> dict[str, TokenStore]:
        def progress(batches: Iterable[TextBatch]) -> Iterator[TextBatch]:
            with stage.progress(None, f"tokenizing {' and '.join(together)}", unit="text") as bar:
                for batch in batches:
                    yield batch
                    bar.update(len(batch.texts) + batch.left_out)

        return tokenize(texts, together, content, cutter, cache, progress)

    if is_streamed(settings.data):
        # Training and validation in one go: the second may have to be cut from the first.
        together = TRAINING_SPLITS if set(splits) <= set(TRAINING_SPLITS) else tuple(splits)
        column, share = settings.text_column, settings.validation_share
        texts = partial(iterate_streamed_texts, content, together, column, share)
        return read(together, f"{content} {column} {share}", texts)
    with_images = settings.image_words == "given"
    stores: dict[str, TokenStore] = {}
    for split in splits:
        texts = partial(iterate_texts, Path(settings.data), (split,), "tokens", with_images)
        stores |= read((split,), f"{content} image words: {settings.image_words}", texts)
    return stores


def check_encoder(settings: MLMSettings, packed: PackedMaskedLanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """InputError for an encoder that cannot be masked, or reads less than a row."""
    if tokenizer.mask_token_id is None:
        raise InputError(
            f"{settings.encoder}: its tokenizer has no mask token. Give an encoder that was made with one."
        )
    if settings.row_length > packed.maximum_length:
        raise InputError(
            f"{settings.encoder}: reads {packed.maximum_length} tokens at the most. "
            f"Lower --row_length ({settings.row_length})."
        )


def check_segments(settings: MLMSettings, config: PreTrainedConfig, stores: dict[str, TokenStore]) -> None:
    """Refuse image words for an encoder that has no token type for them."""
    if any(store.text_lengths is not None for store in stores.values()) and getattr(config, "type_vocab_size", 1) < 2:
        raise InputError(
            f"{settings.encoder}: knows one segment only, and image words are a second one. "
            "Give an encoder with two token types, or --image_words none."
        )


class MaskedLanguageModelling:
    """The training loop's task: packed rows of texts, masked anew in every epoch."""

    def __init__(
        self,
        settings: MLMSettings,
        training: TokenStore,
        validation: TokenStore,
        tokenizer: PreTrainedTokenizerBase,
        processes: int,
    ) -> None:
        self.settings = settings
        self.training = training
        self.validation = validation
        self.masking, self.evaluation_masking = (
            Masking(settings.masking_rate, settings.whole_word, tokenizer.mask_token_id, len(tokenizer), seed)
            for seed in (settings.seed, EVALUATION_SEED)
        )
        rows_of_process = math.ceil(rows_of_step(settings.tokens_per_step, settings.row_length) / processes)
        self.rows_at_once = math.ceil(rows_of_process / math.ceil(rows_of_process / settings.run.micro_batch))
        """Rows of a micro-batch: as many in each, so that all have one shape."""
        self._planned: PackedSteps | None = None

    def plan(self, epoch: int) -> PackedSteps:
        """Optimizer steps of an epoch. The last one asked for is kept: planning looks at the length of every text."""
        settings = self.settings
        if self._planned is None or self._planned.epoch != epoch:
            self._planned = PackedSteps(
                self.training, settings.row_length, settings.tokens_per_step, settings.seed, epoch
            )
        return self._planned

    def collate(self, rows: Sequence[np.ndarray], epoch: int) -> Batch:
        """Rows as the model's tensors, masked for this epoch."""
        return make_batch(rows, self.training, self.settings.row_length, self.rows_at_once, self.masking, epoch)

    def size(self, rows: Sequence[np.ndarray]) -> int:
        """Tokens in the rows, padding left out."""
        return int(self.training.lengths(np.concatenate(rows)).sum())

    def sample_ids(self, rows: Sequence[np.ndarray]) -> list[str]:
        """Ids of the texts in the rows."""
        samples = np.concatenate(rows)
        if is_streamed(self.settings.data):
            return [f"train text {sample}" for sample in samples.tolist()]
        return read_ids(Path(self.settings.data), "train", samples)

    def evaluate(self, model: torch.nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Loss per masked token (nats) and perplexity on the validation split, whose masks never change."""
        settings = self.settings
        loss = weight = 0.0
        tokens_at_once = EVALUATION_ROWS * settings.row_length
        for rows in PackedSteps(self.validation, settings.row_length, tokens_at_once, seed=None, epoch=0):
            for chunk, counts in micro_batches(
                rows, self.rows_at_once, accelerator.process_index, accelerator.num_processes
            ):
                batch = make_batch(
                    chunk, self.validation, settings.row_length, self.rows_at_once, self.evaluation_masking, epoch=0
                )
                loss += counts * float(model(**to_device(batch, accelerator.device)))
                weight += counts * float(batch["weight"])
        loss_sum, total = (sum_over_processes(accelerator, value) for value in (loss, weight))
        if not total:
            raise InputError(
                "no token is masked in what the loss is taken of: no row has a word short enough for its share "
                f"(--masking_rate {settings.masking_rate}, --row_length {settings.row_length}). Give more texts."
            )
        mean = loss_sum / total
        return {"loss": mean, "perplexity": math.exp(min(mean, 700.0))}


def make_batch(
    rows: Sequence[np.ndarray], store: TokenStore, row_length: int, row_count: int, masking: Masking, epoch: int
) -> Batch:
    """The model's tensors of packed rows, of one shape whatever the rows; ``weight`` is the number of masked tokens.

    Rows are filled up with empty ones to ``row_count``, masked places with some that have no label.
    """
    laid = lay_out(rows, store, row_length, row_count)
    masked, chosen = masking.apply(laid, epoch)
    places = np.flatnonzero(chosen)
    missing = masking.most(row_count, row_length) - len(places)
    arrays = {
        "tokens_RT": masked,
        "positions_RT": laid.positions,
        "samples_RT": laid.samples,
        "masked_M": np.pad(places, (0, missing)),
        "labels_M": np.pad(laid.tokens.ravel()[places], (0, missing), constant_values=NO_LABEL),
        "weight": np.asarray(len(places)),
        **({} if laid.segments is None else {"segments_RT": laid.segments}),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


if __name__ == "__main__":
    raise SystemExit(main())
