"""Fine-tune an encoder into a multimodal named-entity recognizer (the paper's MSB, with and without a CRF).

    accelerate launch finetune/ner.py --encoder ENCODER --data TMN --head crf --output RECOGNIZER

Trains on the repaired tags of `train`, keeps the weights that are best on `validation`, scores `test` once, and both
against the tags as they were published. The output is a plain Hugging Face folder that `finetune.predict` reads.
"""

from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from transformers import AutoModel, AutoModelForTokenClassification, PreTrainedModel

from data_prep.layout import ENTITY_TYPES
from finetune.features import InputFormat
from finetune.recognizer import add_model_code
from finetune.systems.msb import MSBConfig, MSBForTokenClassification, WordTagger, without_pooler
from finetune.tagging import Tagging, predict, read_split, score, write_predictions
from finetune.tags import TagScheme
from launch.errors import InputError
from launch.files import write_json_whole
from launch.loop import OptimizerSettings, make_accelerator, make_optimizer, train
from launch.pretrained import check_vocabulary, encoder_input, load_config, load_pretrained, load_tokenizer
from launch.schedule import ScheduleSettings
from launch.stage import Stage
from launch.training_stage import TrainingStageSettings, describe_encoder, export, load_weights, run_training_stage

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")


@dataclass(frozen=True, kw_only=True)
class NERSettings(TrainingStageSettings):
    """Settings of `finetune/ner.py`. The data are a `ner` data set with splits `train`, `validation` and `test`."""

    head: Literal["softmax", "crf"] = "crf"
    """What decides the labels: a softmax for each word, or a linear-chain CRF over the words."""
    scheme: Literal["BIO", "BIOES"] = "BIO"
    """Tag scheme of the labels the model learns; scores are always taken on BIO."""
    image_words: Literal["given", "shuffled", "none"] = "given"
    """Second segment: the tweet's own image words, another tweet's (an ablation), or nothing."""
    input: InputFormat = field(default_factory=InputFormat)
    """Lengths and form of the model's input."""
    head_learning_rate: float = 5e-3
    """Peak learning rate of the linear layer and the CRF; `optimizer.learning_rate` is the encoder's."""
    tweets_per_step: int = 16
    """Global batch of an optimizer step, in tweets."""
    dropout: float | None = None
    """Dropout of the encoder and before the head; null keeps the encoder's own."""
    patience: int | None = None
    """Stop after this many epochs without a better F1 on `validation`; null trains to the end."""
    optimizer: OptimizerSettings = field(default_factory=lambda: OptimizerSettings(learning_rate=3e-4))
    """The optimizer, AdamW."""
    schedule: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(epochs=10))
    """How long to train, and the learning rate's shape."""


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    inputs = lambda settings: {"encoder": encoder_input(settings.encoder), "data": settings.data}  # noqa: E731
    return run_training_stage(NERSettings, finetune, inputs, argv)


def finetune(settings: NERSettings, stage: Stage) -> None:
    """The stage: from an encoder to a recognizer with scores."""
    accelerator = make_accelerator(settings.run)
    stage.seeds = [settings.seed]

    torch.manual_seed(settings.seed)
    scheme = TagScheme(settings.scheme, ENTITY_TYPES)
    check_encoder(settings)
    tokenizer = load_tokenizer(settings.encoder)
    model, new_parameters = build_model(settings, scheme)
    check_vocabulary(settings.encoder, model, tokenizer)
    stage.facts["encoder"] = describe_encoder(model, new_parameters)

    splits = {
        name: read_split(settings.data, name, tokenizer, settings.input, settings.image_words, settings.seed)
        for name in ("train", "validation", "test")
    }
    stage.rows.taken = stage.rows.kept = sum(len(split.rows) for split in splits.values())
    stage.facts["data"] = {
        name: {"tweets": len(split.rows), "words_truncated": split.words_truncated} for name, split in splits.items()
    }

    task = Tagging(splits["train"], splits["validation"], scheme, settings.tweets_per_step, settings.seed)
    tagger = WordTagger(model)
    weights = train(
        stage,
        accelerator,
        tagger,
        make_optimizer(tagger, settings.optimizer, lambda name: learning_rate_of(name, settings)),
        task,
        seed=settings.seed,
        schedule=settings.schedule,
        run=settings.run,
        maximum_gradient_norm=settings.optimizer.maximum_gradient_norm,
        size_unit="tweets",
        best_by="f1_conlleval",
        patience=settings.patience,
    )

    # The best weights in a model of its own, on every process, whatever DDP or DeepSpeed made of the trained one.
    model, _ = build_model(settings, scheme)
    load_weights(model, weights, prefix="model.")
    tagger = WordTagger(model).to(accelerator.device).eval()
    scores = {}
    for name in ("validation", "test"):
        predicted = predict(tagger, splits[name], scheme, accelerator)
        scores[name] = score(splits[name], predicted)
        f1 = {convention: scores[name][convention]["micro"]["f1"] for convention in ("conlleval", "strict")}
        stage.log(f"{name}: " + ", ".join(f"F1 {100 * value:.2f} ({convention})" for convention, value in f1.items()))
        if stage.is_main_process:
            write_predictions(stage.folder / "predictions" / f"{name}.jsonl", splits[name], predicted)
    if stage.is_main_process:
        write_json_whole(stage.folder / "scores.json", scores)
    export(stage, accelerator, model, tokenizer, weights, prefix="model.")
    if stage.is_main_process:
        add_model_code(stage.folder)


def check_encoder(settings: NERSettings) -> None:
    """Refuse, before anything is loaded, an encoder that cannot be made into a recognizer with these settings."""
    config = load_config(settings.encoder)
    if any(name.endswith("ForTokenClassification") for name in config.architectures or ()):
        raise InputError(f"{settings.encoder}: is a recognizer already. Give the encoder that it was made from.")
    if any(not hasattr(config, name) for name in (*DROPOUTS, "max_position_embeddings")):
        raise InputError(f"{settings.encoder}: {config.model_type} is not BERT-like enough. Give a BERT, or its like.")
    if settings.input.maximum_length > config.max_position_embeddings:
        raise InputError(
            f"{settings.encoder}: reads {config.max_position_embeddings} word pieces at the most. "
            f"Lower --input.maximum_length ({settings.input.maximum_length})."
        )
    if settings.image_words != "none" and getattr(config, "type_vocab_size", 1) < 2:
        raise InputError(
            f"{settings.encoder}: knows one segment only, and image words are a second one. "
            "Give an encoder with two token types, or --image_words none."
        )


def build_model(settings: NERSettings, scheme: TagScheme) -> tuple[PreTrainedModel, list[str]]:
    """The encoder with a new head, and the names of the new parameters."""
    labels = {"id2label": dict(enumerate(scheme.labels)), "label2id": {tag: i for i, tag in enumerate(scheme.labels)}}
    options = {} if settings.dropout is None else {name: settings.dropout for name in DROPOUTS}
    if settings.head == "softmax":
        model, new = load_pretrained(
            AutoModelForTokenClassification, settings.encoder, ("classifier.",), **labels, **options
        )
    else:
        pooler = without_pooler(load_config(settings.encoder))
        encoder, new = load_pretrained(AutoModel, settings.encoder, (), **options, **pooler)
        config = MSBConfig(
            encoder=encoder.config.to_diff_dict() | {"model_type": encoder.config.model_type},
            scheme=scheme.name,
            types=scheme.types,
            classifier_dropout=encoder.config.hidden_dropout_prob,
        )
        model = MSBForTokenClassification(config)
        model.encoder.load_state_dict(encoder.state_dict())
        new += [name for name, _ in model.named_parameters() if not name.startswith("encoder.")]
    model.config.msb_input = asdict(settings.input)
    model.config.msb_scheme = scheme.name
    model.config.msb_image_words = settings.image_words != "none"
    return model, new


def learning_rate_of(parameter: str, settings: NERSettings) -> float:
    """Peak learning rate of a parameter of the tagger: the head's own, or the encoder's."""
    is_head = parameter.startswith(("model.classifier.", "model.crf."))
    return settings.head_learning_rate if is_head else settings.optimizer.learning_rate


if __name__ == "__main__":
    raise SystemExit(main())
