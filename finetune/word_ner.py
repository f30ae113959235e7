"""Train a recognizer on word vectors: the paper's CWI, with or without attention, and the systems it is compared with.

    accelerate launch finetune/word_ner.py --system cwi --vectors '[GLOVE.txt, FASTTEXT.vec]' --data TMN --output RECOGNIZER

Several files of vectors are put beside each other. Training, scores and the output's form are those of `finetune/ner.py`.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from data_prep.layout import ENTITY_TYPES
from finetune.systems.bilstm_crf import BiLSTMCRFConfig, BiLSTMCRFForTokenClassification
from finetune.systems.cwi import CWIConfig, CWIForTokenClassification
from finetune.systems.lstm_cnn_crf import LSTMCNNCRFConfig, LSTMCNNCRFForTokenClassification
from finetune.tagger import WordTagger
from finetune.tagging import read_rows
from finetune.tags import TagScheme
from finetune.training import SPLITS, RecognizerSettings, make_splits, train_recognizer
from finetune.vectors import word_vectors
from finetune.word_input import WordFormat, WordReader
from finetune.word_model import WordModel
from launch.errors import InputError
from launch.loop import OptimizerSettings, make_accelerator
from launch.schedule import ScheduleSettings
from launch.settings import NOT_IDENTITY
from launch.stage import Stage
from launch.training_stage import run_training_stage

NAMES = {"bilstm_crf": "BiLSTM+CRF", "lstm_cnn_crf": "LSTM+CNN+CRF"}
"""Of the systems without an image side, as in Table 4."""
ATTENTION_NAMES = {"none": "CWI", "sequence": "CWI + Attention", "modality": "CWI + Modality Attention"}


@dataclass(frozen=True, kw_only=True)
class WordNERSettings(RecognizerSettings):
    """Settings of `finetune/word_ner.py`. Systems without an image side take no notice of ``image_words given``."""

    system: Literal["cwi", "bilstm_crf", "lstm_cnn_crf"]
    """The system of Table 4."""
    vectors: list[Path] | Path = field(metadata=NOT_IDENTITY)
    """A file of word vectors, or several (`'[A, B]'`), put beside each other: `.txt` or `.vec`, perhaps gzipped, or
    fastText's `.bin`."""
    vocabulary: Literal["data", "all"] = "data"
    """Words the recognizer keeps vectors of: those of the data set, or all of the files, for texts to come."""
    train_vectors: bool = False
    """Whether the word vectors are trained, too."""
    input: WordFormat = field(default_factory=WordFormat)
    """How much of a tweet is read."""
    attention: Literal["none", "sequence", "modality"] = "none"
    """CWI's: none, over the tweet's words before the CRF (Table 4's row), or over each word's modalities."""
    regularised: bool = True
    """CWI with targeted dropout, group normalisation and SineReLU, or with a plain ReLU (Table 10)."""
    dropout: float | None = None
    """Dropout of the systems that have it, which CWI has not; null keeps their own."""
    tweets_per_step: int = 16
    """Global batch of an optimizer step, in tweets."""
    optimizer: OptimizerSettings = field(
        default_factory=lambda: OptimizerSettings(learning_rate=2e-3, weight_decay=0.0, maximum_gradient_norm=5.0)
    )
    """The optimizer, Adam where weight decay is 0."""
    schedule: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(epochs=10))
    """How long to train, and the learning rate's shape."""

    @property
    def vector_files(self) -> list[Path]:
        """The files of word vectors."""
        return self.vectors if isinstance(self.vectors, list) else [self.vectors]

    @property
    def has_image_side(self) -> bool:
        """Whether the system reads image words."""
        return self.system == "cwi"

    @property
    def layout(self) -> WordFormat:
        """What of a tweet the system reads."""
        characters = 0 if self.system == "bilstm_crf" else self.input.characters
        return replace(
            self.input, characters=characters, image_words=self.input.image_words if self.has_image_side else 0
        )


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    return run_training_stage(WordNERSettings, train_on_vectors, inputs, argv)


def inputs(settings: WordNERSettings) -> dict[str, Path | str | None]:
    """The data set and each file of vectors."""
    return {"data": settings.data} | {
        f"vectors {place}": path for place, path in enumerate(settings.vector_files, start=1)
    }


def train_on_vectors(settings: WordNERSettings, stage: Stage) -> None:
    """The stage: from word vectors to a recognizer with scores."""
    accelerator = make_accelerator(settings.run)
    stage.seeds = [settings.seed]
    check_settings(settings)
    scheme = TagScheme(settings.scheme, ENTITY_TYPES)
    image_words = settings.image_words if settings.has_image_side else "none"
    stage.facts |= {"system": name_of(settings), "reads_image_words": image_words != "none"}

    rows = {split: read_rows(settings.data, split, image_words, settings.seed) for split in SPLITS}
    counts = Counter(token for split in SPLITS for row in rows[split] for token in row["tokens"])
    words, vectors_VD, reports = word_vectors(
        settings.vector_files, counts, settings.seed, every_word=settings.vocabulary == "all"
    )
    stage.facts["vectors"] = reports
    for report in reports:
        stage.log(
            f"{report['file']}: {report['width']} numbers a word; {report['out_of_vocabulary']:,} of {report['words']:,} "
            f"words ({100 * report['out_of_vocabulary_rate_in_text']:.1f} % of the text) are out of vocabulary, such as "
            f"{', '.join(report['examples'][:5]) or 'none'}"
        )

    reader = WordReader.of(words, rows["train"], settings.layout)
    torch.manual_seed(settings.seed)
    model = build_model(settings, scheme, reader, vectors_VD.shape[1])
    model.set_word_vectors(vectors_VD)
    model.config.msb_image_words = image_words != "none"
    stage.facts["parameters"] = {
        "all": sum(parameter.numel() for parameter in model.parameters()),
        "word_vectors": model.words.weight.numel(),
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    }
    splits = make_splits(rows, stage, reader)
    if settings.layout.image_words:
        for name, split in splits.items():
            stage.facts["data"][name]["image_words_truncated"] = sum(split.inputs.image_words_truncated)
    train_recognizer(settings, stage, accelerator, splits, scheme, reader, WordTagger(model))


def check_settings(settings: WordNERSettings) -> None:
    """Refuse, before anything is read, settings that the system has not."""
    if settings.system != "cwi":
        for name, plain in (("image_words", "given"), ("attention", "none"), ("regularised", True)):
            if getattr(settings, name) != plain:
                raise InputError(f"--{name} {getattr(settings, name)}: {settings.system} has no such side; CWI has.")
    elif settings.dropout is not None:
        raise InputError(
            f"--dropout {settings.dropout}: CWI has targeted dropout, as --regularised says, and no other."
        )
    elif settings.input.characters < 8 or settings.input.characters % 8 or settings.input.image_words < 1:
        raise InputError(
            f"--input: CWI reads characters by 8 ({settings.input.characters} were asked for) and at least one image word "
            f"({settings.input.image_words}). Without the image's, give --image_words none."
        )
    if settings.system == "lstm_cnn_crf" and not settings.input.characters:
        raise InputError(
            "--input.characters 0: lstm_cnn_crf reads characters. Give --system bilstm_crf, which does not."
        )


def name_of(settings: WordNERSettings) -> str:
    """The system's name in Table 4, or what it differs in from it."""
    if settings.system != "cwi":
        return NAMES[settings.system]
    return ATTENTION_NAMES[settings.attention] + ("" if settings.regularised else " without TD+GN+SineReLU")


def build_model(settings: WordNERSettings, scheme: TagScheme, reader: WordReader, vector_size: int) -> WordModel:
    """The system with new weights, whose word vectors are still to be set."""
    options = reader.sizes | {"vector_size": vector_size, "scheme": scheme.name, "types": scheme.types}
    dropout = {} if settings.dropout is None else {"dropout": settings.dropout}
    if settings.system == "cwi":
        cwi = {"attention": settings.attention, "regularised": settings.regularised}
        model = CWIForTokenClassification(CWIConfig(**options, **cwi))
    elif settings.system == "bilstm_crf":
        model = BiLSTMCRFForTokenClassification(BiLSTMCRFConfig(**options, **dropout))
    else:
        model = LSTMCNNCRFForTokenClassification(LSTMCNNCRFConfig(**options, **dropout))
    model.words.weight.requires_grad_(settings.train_vectors)
    model.config.msb_input = asdict(settings.layout)
    model.config.msb_scheme = scheme.name
    return model


if __name__ == "__main__":
    raise SystemExit(main())
