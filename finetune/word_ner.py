"""Train a recognizer on word vectors: the paper's CWI, with or without attention, and the systems it is compared with.

    accelerate launch finetune/word_ner.py --system cwi --vectors '[GLOVE.txt, FASTTEXT.vec]' --data TMN --output RECOGNIZER

Several files of vectors are put beside each other. Training, scores and the output's form are those of `finetune/ner.py`.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from data_prep.layout import ENTITY_TYPES
from data_prep.region_file import RegionFile
from finetune.region_input import RegionInputs
from finetune.systems.bilstm_crf import BiLSTMCRFForTokenClassification
from finetune.systems.coattention import CoAttentionForTokenClassification
from finetune.systems.cwi import CWIForTokenClassification
from finetune.systems.lstm_cnn_crf import LSTMCNNCRFForTokenClassification
from finetune.tagger import WordTagger
from finetune.tagging import Split
from finetune.tags import TagScheme
from finetune.training import SPLITS, RecognizerSettings, make_splits, read_all_rows, train_recognizer
from finetune.vectors import word_vectors
from finetune.word_input import WordFormat, WordReader
from finetune.word_model import WordModel
from launch.errors import InputError
from launch.loop import OptimizerSettings, make_accelerator
from launch.paper_tables import MASKED
from launch.schedule import ScheduleSettings
from launch.settings import NOT_IDENTITY
from launch.stage import Stage
from launch.training_stage import run_training_stage

MODELS: dict[str, type[WordModel]] = {
    "cwi": CWIForTokenClassification,
    "bilstm_crf": BiLSTMCRFForTokenClassification,
    "lstm_cnn_crf": LSTMCNNCRFForTokenClassification,
    "coattention": CoAttentionForTokenClassification,
}
NAMES = {"bilstm_crf": "BiLSTM+CRF", "lstm_cnn_crf": "LSTM+CNN+CRF", "coattention": "BiLSTM+CNN+Co-Attention"}
"""Of the systems that read no image words, as in Table 4."""
ATTENTION_NAMES = {"none": "CWI", "sequence": "CWI + Attention", "modality": "CWI + Modality Attention"}


@dataclass(frozen=True, kw_only=True)
class WordNERSettings(RecognizerSettings):
    """Settings of `finetune/word_ner.py`. Systems that read no image words take no notice of ``image_words given``."""

    system: Literal["cwi", "bilstm_crf", "lstm_cnn_crf", "coattention"]
    """The system of Table 4."""
    vectors: list[Path] | Path = field(metadata=NOT_IDENTITY)
    """A file of word vectors, or several (`'[A, B]'`), put beside each other: `.txt` or `.vec`, perhaps gzipped, or
    fastText's `.bin`."""
    regions: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Region features of the images, which `data_prep/image_regions.py` makes, for `coattention`; without them its image side
    is masked."""
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

    def __post_init__(self) -> None:
        """Refuse a rate that is none."""
        super().__post_init__()
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not at least 0 and below 1")

    @property
    def vector_files(self) -> list[Path]:
        """The files of word vectors."""
        return self.vectors if isinstance(self.vectors, list) else [self.vectors]

    @property
    def read_image_words(self) -> str:
        """The image words that are read: those of ``image_words``, or none where the system reads none."""
        return self.image_words if self.system == "cwi" else "none"

    @property
    def layout(self) -> WordFormat:
        """What of a tweet the system reads."""
        characters = 0 if self.system == "bilstm_crf" else self.input.characters
        image_words = self.input.image_words if self.system == "cwi" else 0
        return replace(self.input, characters=characters, image_words=image_words)


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    return run_training_stage(WordNERSettings, train_on_vectors, inputs, argv)


def inputs(settings: WordNERSettings) -> dict[str, Path | str | None]:
    """The data set, each file of vectors, and the regions."""
    vectors = {f"vectors {place}": path for place, path in enumerate(settings.vector_files, start=1)}
    return {"data": settings.data, **vectors, "regions": settings.regions}


def train_on_vectors(settings: WordNERSettings, stage: Stage) -> None:
    """The stage: from word vectors to a recognizer with scores."""
    accelerator = make_accelerator(settings.run)
    stage.seeds = [settings.seed]
    check_settings(settings)
    regions = RegionFile(settings.regions) if settings.regions else None
    scheme = TagScheme(settings.scheme, ENTITY_TYPES)
    rows = read_all_rows(settings)
    if regions:
        regions.check_holds_some(row["image_id"] for row in rows["train"])
    model, reader = model_and_reader(settings, stage, scheme, rows)
    splits = read_splits(settings, stage, reader, rows)
    if settings.system == "coattention":
        splits = with_regions(splits, regions, stage)
    train_recognizer(settings, stage, accelerator, splits, scheme, reader, WordTagger(model))


def model_and_reader(
    settings: WordNERSettings,
    stage: Stage,
    scheme: TagScheme,
    rows: Mapping[str, list[dict[str, Any]]],
    more_words: Mapping[str, int] | None = None,
) -> tuple[WordModel, WordReader]:
    """What is to be trained and how it reads tweets, seeded, and described in the stage's facts.

    It knows the words of the rows that are read, by split, and ``more_words``, given with their counts.
    """
    reads_image_words = settings.read_image_words != "none"
    stage.facts |= {"system": name_of(settings), "reads_image_words": reads_image_words}
    counts = Counter(token for split in SPLITS for row in rows[split] for token in row["tokens"])
    counts.update(more_words or {})
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
    model.config.msb_image_words = reads_image_words
    stage.facts["parameters"] = {
        "all": sum(parameter.numel() for parameter in model.parameters()),
        "word_vectors": model.words.weight.numel(),
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    }
    return model, reader


def read_splits(
    settings: WordNERSettings, stage: Stage, reader: WordReader, rows: dict[str, list[dict[str, Any]]]
) -> dict[str, Split]:
    """The data set's splits, counted in the stage's rows and facts, image words that were cut off among them."""
    splits = make_splits(rows, stage, reader)
    if settings.layout.image_words:
        for name, split in splits.items():
            stage.facts["data"][name]["image_words_truncated"] = sum(split.inputs.image_words_truncated)
    return splits


def with_regions(splits: dict[str, Split], regions: RegionFile | None, stage: Stage) -> dict[str, Split]:
    """The splits with the regions of their images, if there are any; how many tweets have none is counted and told."""
    if regions is None:
        stage.facts["image_side"] = "masked, as no region features were given: trained and scored on text alone"
        stage.log(f"image side: {stage.facts['image_side']}")
        return splits
    seen = {}
    for name, split in splits.items():
        inputs = RegionInputs(split.inputs, [row["image_id"] for row in split.rows], regions)
        seen[name] = Split(split.rows, inputs)
        stage.facts["data"][name]["tweets_without_regions"] = inputs.tweets_without
    without = ", ".join(f"{stage.facts['data'][name]['tweets_without_regions']:,} of {name}" for name in seen)
    stage.facts["image_side"] = f"fed regions of images by {regions.source}, and masked for tweets without ({without})"
    stage.log(f"image side: {stage.facts['image_side']}")
    return seen


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
    if settings.system in ("lstm_cnn_crf", "coattention") and not settings.input.characters:
        raise InputError(
            f"--input.characters 0: {settings.system} reads characters. Give --system bilstm_crf, which does not."
        )
    if settings.system != "coattention" and settings.regions:
        raise InputError(f"--regions {settings.regions}: {settings.system} sees no regions; coattention does.")


def name_of(settings: WordNERSettings) -> str:
    """The system's name in Table 4, or what it differs in from it."""
    if settings.system == "cwi":
        return ATTENTION_NAMES[settings.attention] + ("" if settings.regularised else " without TD+GN+SineReLU")
    is_masked = settings.system == "coattention" and settings.regions is None
    return NAMES[settings.system] + (MASKED if is_masked else "")


def build_model(settings: WordNERSettings, scheme: TagScheme, reader: WordReader, vector_size: int) -> WordModel:
    """The system with new weights, whose word vectors are still to be set."""
    options = reader.sizes | {"vector_size": vector_size, "scheme": scheme.name, "types": scheme.types}
    if settings.system == "cwi":
        options |= {"attention": settings.attention, "regularised": settings.regularised}
    elif settings.dropout is not None:
        options |= {"dropout": settings.dropout}
    model_class = MODELS[settings.system]
    model = model_class(model_class.config_class(**options))
    if settings.system == "coattention" and settings.regions is None:
        # No gradient comes to it, and DDP would wait for one.
        model.co_attention.requires_grad_(False)
    model.words.weight.requires_grad_(settings.train_vectors)
    model.config.msb_input = asdict(settings.layout)
    model.config.msb_scheme = scheme.name
    return model


if __name__ == "__main__":
    raise SystemExit(main())
