"""Fine-tune an encoder into a multimodal named-entity recognizer (the paper's MSB, with and without a CRF).

    accelerate launch finetune/ner.py --encoder ENCODER --data TMN --head crf --output RECOGNIZER

Trains on the repaired tags of `train`, keeps the weights that are best on `validation`, scores `test` once, and both
against the tags as they were published. The output is a plain Hugging Face folder that `finetune.predict` reads.
ENCODER may be a recognizer, too, such as one trained on CoNLL-2003: then it is trained on, head and all.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from transformers import AutoModel, AutoModelForTokenClassification, PreTrainedConfig, PreTrainedModel

from data_prep.layout import ENTITY_TYPES
from finetune.features import InputFormat, PieceReader
from finetune.regularisation import Regularisation, RegularisedPieceTagger
from finetune.systems.msb import MSBConfig, MSBForTokenClassification, without_pooler
from finetune.tags import TagScheme
from finetune.training import RecognizerSettings, read_splits, train_recognizer
from finetune.word_shapes import SHAPES
from launch.errors import InputError
from launch.loop import OptimizerSettings, has_parameters_in_parts, make_accelerator
from launch.paper_tables import msb_system
from launch.pretrained import (
    check_vocabulary,
    encoder_input,
    is_unused,
    load_config,
    load_pretrained,
    load_tokenizer,
    longest_input,
)
from launch.schedule import ScheduleSettings
from launch.stage import Stage
from launch.training_stage import EncoderStageSettings, describe_encoder, run_training_stage

NEW_PARTS = ("model.classifier.", "model.crf.", "model.shape_embeddings.", "model.image_gate.")
"""What the names of parameters that are no encoder's begin with, in a tagger."""
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
HEAD_DROPOUTS = ("classifier_dropout", "classifier_dropout_prob")
"""What stock models call the dropout before their head, where it is not that of the encoder."""


@dataclass(frozen=True, kw_only=True)
class MSBSettings(EncoderStageSettings, RecognizerSettings):
    """Settings of every stage that makes a recognizer of an encoder."""

    head: Literal["softmax", "crf"] = "crf"
    """What decides the labels: a softmax for each word, or a linear-chain CRF over the words."""
    input: InputFormat = field(default_factory=InputFormat)
    """Lengths and form of the model's input."""
    image_gate: bool = False
    """Whether a gate weighs a tweet's image words by how much they have to do with its own; for the head `crf`."""
    head_learning_rate: float = 5e-3
    """Peak learning rate of linear layer, CRF, word shapes, gate, which are new; `optimizer.learning_rate` is the encoder's."""
    layer_decay: float = 1.0
    """The learning rate of each of the encoder's layers is that of the layer above times this; the embeddings lie lowest."""
    dropout: float | None = None
    """Dropout of the encoder and before the head; null keeps the encoder's own."""
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(learning_rate=3e-4))
    """The optimizer, AdamW."""
    schedule: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(epochs=10))
    """How long to train, and the learning rate's shape."""

    def __post_init__(self) -> None:
        """Refuse rates that are none."""
        super().__post_init__()
        if self.head_learning_rate < 0:
            raise ValueError(f"head_learning_rate: {self.head_learning_rate} is negative")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay: {self.layer_decay} is not above 0 and at most 1")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class NERSettings(MSBSettings):
    """Settings of `finetune/ner.py`."""

    regularisation: Regularisation = field(default_factory=Regularisation)
    """R-Drop, adversarial training, multi-sample dropout."""


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    inputs = lambda settings: {"encoder": encoder_input(settings.encoder), "data": settings.data}  # noqa: E731
    return run_training_stage(NERSettings, finetune, inputs, argv)


def finetune(settings: NERSettings, stage: Stage) -> None:
    """The stage: from an encoder to a recognizer with scores."""
    if settings.run.compile and settings.regularisation.adversarial:
        raise InputError("--run.compile: a compiled model cannot be trained adversarially. Leave one of them out.")
    accelerator = make_accelerator(settings.run)
    if settings.regularisation.adversarial and has_parameters_in_parts(accelerator):
        raise InputError(
            "--regularisation.adversarial: not under ZeRO-3, where no process has whole embeddings. ZeRO-2 can."
        )
    stage.seeds = [settings.seed]

    scheme = TagScheme(settings.scheme, ENTITY_TYPES)
    model, reader = model_and_reader(settings, stage, scheme)
    splits = read_splits(settings, stage, reader)
    tagger = RegularisedPieceTagger(model, settings.regularisation)
    train_recognizer(
        settings, stage, accelerator, splits, scheme, reader, tagger, learning_rate_by_name(settings, model)
    )


def model_and_reader(settings: MSBSettings, stage: Stage, scheme: TagScheme) -> tuple[PreTrainedModel, PieceReader]:
    """What is to be trained and how it reads tweets, checked, seeded, and described in the stage's facts."""
    check_encoder(settings)
    tokenizer = load_tokenizer(settings.encoder)
    torch.manual_seed(settings.seed)
    model, new_parameters = build_model(settings, scheme)
    check_vocabulary(settings.encoder, model, tokenizer)
    stage.facts["encoder"] = encoder = describe_encoder(model, new_parameters)
    stage.facts["system"] = msb_system(encoder["layers"], encoder["hidden_size"], settings.head)
    return model, PieceReader(tokenizer, settings.input)


def check_encoder(settings: MSBSettings) -> None:
    """Refuse, before anything is loaded, an encoder that cannot be made into a recognizer with these settings."""
    config = load_config(settings.encoder)
    if is_recognizer(config):
        check_recognizer(settings, config)
        if config.model_type == MSBConfig.model_type:
            config = config.encoder_config()
    if any(not hasattr(config, name) for name in (*DROPOUTS, "max_position_embeddings")):
        raise InputError(f"{settings.encoder}: {config.model_type} is not BERT-like enough. Give a BERT, or its like.")
    if settings.input.word_shapes and settings.head != "crf":
        raise InputError("--input.word_shapes: a stock model reads none. Give --head crf, or leave it out.")
    if settings.image_gate and settings.head != "crf":
        raise InputError("--image_gate: a stock model has none. Give --head crf, or leave it out.")
    if settings.image_gate and settings.image_words == "none":
        raise InputError("--image_words none: a gate needs image words. Give given or shuffled, or no --image_gate.")
    if settings.input.maximum_length > longest_input(config):
        raise InputError(
            f"{settings.encoder}: reads {longest_input(config)} word pieces at the most. "
            f"Lower --input.maximum_length ({settings.input.maximum_length})."
        )
    if settings.image_words != "none" and getattr(config, "type_vocab_size", 1) < 2:
        raise InputError(
            f"{settings.encoder}: knows one segment only, and image words are a second one. "
            "Give an encoder with two token types, or --image_words none."
        )


def is_recognizer(config: PreTrainedConfig) -> bool:
    """Whether this is the configuration of a model that labels words, not of an encoder."""
    return any(name.endswith("ForTokenClassification") for name in config.architectures or ())


def check_recognizer(settings: MSBSettings, config: PreTrainedConfig) -> None:
    """Refuse to go on from a recognizer whose head is another."""
    head = "crf" if config.model_type == MSBConfig.model_type else "softmax"
    if head != settings.head:
        raise InputError(
            f"{settings.encoder}: is a recognizer with the head {head}. To train it on, give --head {head}."
        )
    if head == "crf" and bool(config.word_shapes) != settings.input.word_shapes:
        raise InputError(
            f"{settings.encoder}: is a recognizer {'with' if config.word_shapes else 'without'} word shapes. "
            f"To train it on, give --input.word_shapes {str(bool(config.word_shapes)).lower()}."
        )
    if head == "crf" and config.image_gate != settings.image_gate:
        raise InputError(
            f"{settings.encoder}: is a recognizer {'with' if config.image_gate else 'without'} a gate on image words. "
            f"To train it on, give --image_gate {str(config.image_gate).lower()}."
        )
    labels = [config.id2label[index] for index in sorted(config.id2label)]
    if labels != TagScheme(settings.scheme, ENTITY_TYPES).labels:
        raise InputError(
            f"{settings.encoder}: is a recognizer of other labels ({', '.join(labels)}) than those of --scheme "
            f"{settings.scheme}. Give the encoder that it was made from, or a recognizer of the same labels."
        )


def build_model(settings: MSBSettings, scheme: TagScheme) -> tuple[PreTrainedModel, list[str]]:
    """The encoder with a new head, or a recognizer with its own, to be trained on; and the names of the new parameters."""
    labels = {"id2label": dict(enumerate(scheme.labels)), "label2id": {tag: i for i, tag in enumerate(scheme.labels)}}
    start = load_config(settings.encoder)
    encoder_config = start.encoder_config() if start.model_type == MSBConfig.model_type else start
    given = [name for name in (*DROPOUTS, *HEAD_DROPOUTS) if hasattr(encoder_config, name)]
    options = {} if settings.dropout is None else dict.fromkeys(given, settings.dropout)
    if settings.head == "softmax":
        model, new = load_pretrained(
            AutoModelForTokenClassification, settings.encoder, ("classifier.",), **labels, **options
        )
    elif is_recognizer(start):
        start.encoder |= options
        start.classifier_dropout = start.classifier_dropout if settings.dropout is None else settings.dropout
        model, new = load_pretrained(MSBForTokenClassification, settings.encoder, (), config=start)
    else:
        encoder, new = load_pretrained(AutoModel, settings.encoder, (), **options, **without_pooler(start))
        config = MSBConfig(
            encoder=encoder.config.to_diff_dict() | {"model_type": encoder.config.model_type},
            scheme=scheme.name,
            types=scheme.types,
            classifier_dropout=encoder.config.hidden_dropout_prob,
            word_shapes=len(SHAPES) if settings.input.word_shapes else 0,
            image_gate=settings.image_gate,
        )
        model = MSBForTokenClassification(config)
        model.encoder.load_state_dict(encoder.state_dict())
        new += [name for name, _ in model.named_parameters() if not name.startswith("encoder.")]
    for name, parameter in model.named_parameters():
        if is_unused(name):  # stock models that cannot do without; DDP would wait for its gradient
            parameter.requires_grad_(False)
    model.config.msb_input = asdict(settings.input)
    model.config.msb_scheme = scheme.name
    model.config.msb_image_words = settings.image_words != "none"
    return model, new


def learning_rate_by_name(settings: MSBSettings, model: PreTrainedModel) -> Callable[[str], float]:
    """The peak learning rate of a parameter of the tagger: the head's own, or that of the encoder's layer.

    Raises InputError where layers are to have rates of their own and parameters do not tell their layer by their name.
    """
    layers = model.base_model.config.num_hidden_layers
    found = {_layer_of(name) for name, _ in model.named_parameters()} - {None}
    if settings.layer_decay != 1 and found != set(range(layers)):
        raise InputError(
            f"{settings.encoder}: its parameters do not tell by their names which of {layers} layers they are of, "
            "so --layer_decay cannot be taken. Leave it out."
        )

    def of(parameter: str) -> float:
        if parameter.startswith(NEW_PARTS):
            return settings.head_learning_rate
        layer = _layer_of(parameter)
        above = layers if layer is None else layers - 1 - layer
        return settings.optimizer.learning_rate * settings.layer_decay**above

    return of


def _layer_of(parameter: str) -> int | None:
    """The number of the layer that a parameter is of, by its name; None for embeddings and the head."""
    match = re.search(r"\.layer\.(\d+)\.", parameter)
    return int(match[1]) if match else None


if __name__ == "__main__":
    raise SystemExit(main())
