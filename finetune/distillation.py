"""Learning from a teacher's scores as a task of the training loop; see `finetune/distill.py` and `finetune/word_distill.py`.

Shapes: B tweets, W words of the longest, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from data_prep.layout import check_columns, shard_files
from finetune.crf import PENALTY, LinearChainCRF
from finetune.features import image_words_read
from finetune.inputs import Reader
from finetune.soft_labels import FEATURES
from finetune.tagger import PieceTagger, Tagger, WordTagger
from finetune.tagging import Split, Tagging
from finetune.tags import TagScheme
from finetune.teacher import load_crf
from finetune.training import RecognizerSettings
from launch.errors import InputError
from launch.loop import Batch
from launch.settings import NOT_IDENTITY
from launch.stage import Stage


@dataclass(frozen=True)
class SoftLabels:
    """A corpus as a teacher labelled it, in memory."""

    ids: list[str]
    tokens: list[list[str]]
    image_words: Sequence[Sequence[str]]
    scores: np.ndarray
    """The teacher's, fp16 [sum of all words, L]."""
    first_word: np.ndarray
    """Row of ``scores`` at which each text begins, and where the last one ends."""
    crf: LinearChainCRF
    """The teacher's."""

    def scores_of(self, text: int) -> np.ndarray:
        """The teacher's scores [W, L] of a text's words."""
        return self.scores[self.first_word[text] : self.first_word[text + 1]]


def read_soft_labels(folder: Path, scheme: TagScheme, image_words: str, seed: int) -> SoftLabels:
    """Read what `finetune/soft_labels.py` wrote, with the texts' image words ``given``, ``shuffled`` (by ``seed``) or ``none``.

    Raises InputError where its labels are not the student's, or its rows not whole.
    """
    crf, teachers = load_crf(folder)
    if teachers != scheme:
        raise InputError(
            f"{folder}: its labels are {teachers.name} of {', '.join(teachers.types)}, the student's {scheme.name} of "
            f"{', '.join(scheme.types)}. Give --scheme {teachers.name}, or label the corpus with other teachers."
        )
    columns = {name: FEATURES[name] for name in ("id", "tokens", "image_words", "scores")}
    shards = shard_files(folder, "train")
    for shard in shards:
        check_columns(shard, columns)
    table = pq.read_table(shards, columns=list(columns)).combine_chunks()
    tokens, labels = table["tokens"].to_pylist(), len(scheme.labels)
    words = np.array([len(row) for row in tokens])
    wrong = np.flatnonzero(pc.list_value_length(table["scores"]).to_numpy() != labels * words)
    if len(wrong):
        which = f"text {table['id'][int(wrong[0])]} has not as many scores as words and labels"
        raise InputError.at(folder, None, which, "Label the corpus again.")
    scores = table["scores"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, labels)
    words_of_images = image_words_read(table["image_words"].to_pylist(), image_words, seed)
    first_word = np.cumsum([0, *words])
    return SoftLabels(table["id"].to_pylist(), tokens, words_of_images, scores, first_word, crf)


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(RecognizerSettings):
    """Settings of every stage in which a recognizer learns from soft labels."""

    soft_labels: Path = field(metadata=NOT_IDENTITY)
    """Output of `finetune/soft_labels.py`, by teachers of the same labels."""
    temperature: float = 1.0
    """The teacher's scores are divided by it: above 1, the student learns more of what is unlikely."""
    gold_repeats: int = 1
    """How often the data set's own tweets, with their tags, come up in an epoch; 0 leaves them out."""

    def __post_init__(self) -> None:
        """Refuse what cannot be learnt from."""
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature: {self.temperature} is not positive")
        if self.gold_repeats < 0:
            raise ValueError(f"gold_repeats: {self.gold_repeats} is negative")


class SoftLoss(Tagger):
    """A student: its loss is the cross-entropy of the teacher's distribution over label sequences and its own.

    A student without a CRF learns the teacher's distribution over labels at each word. Stands before a system's own tagger.
    """

    def __init__(self, model: torch.nn.Module, teacher: LinearChainCRF, temperature: float) -> None:
        super().__init__(model)
        # Not a part of the student: neither trained nor saved with it.
        self.__dict__["teacher"] = softened(teacher, temperature)
        self.temperature = temperature

    def forward(
        self, word_mask_BW: torch.Tensor, teacher_scores_BWL: torch.Tensor, **inputs: torch.Tensor
    ) -> torch.Tensor:
        """The loss, summed over the words of the batch."""
        emissions_BWL = self.emissions(**inputs)
        teacher = self.teacher.to(emissions_BWL.device)
        expected = teacher.expected_counts(teacher_scores_BWL / self.temperature, word_mask_BW)
        if self.has_crf:
            return self.model.crf.cross_entropy(emissions_BWL, expected, word_mask_BW)
        return -(emissions_BWL.log_softmax(dim=2) * expected.labels_BWL).sum()


class SoftPieceTagger(SoftLoss, PieceTagger):
    """A student over word pieces (MSB)."""


class SoftWordTagger(SoftLoss, WordTagger):
    """A student over words, such as CWI."""


def softened(crf: LinearChainCRF, temperature: float) -> LinearChainCRF:
    """A CRF whose scores are divided by ``temperature``, and whose parameters need no gradient."""
    soft = LinearChainCRF(crf.num_labels)
    soft.load_state_dict(
        {name: x if x.dtype == torch.bool else x / temperature for name, x in crf.state_dict().items()}
    )
    return soft.requires_grad_(False)


class Distillation(Tagging):
    """The training loop's task: texts with a teacher's scores, and among them tweets with their own tags.

    A unit is a place: that of a text, or behind all texts that of a tweet. Tweets come up ``gold_repeats`` times an
    epoch. Their labels are given to the student as scores, too: of a teacher that is sure of them.
    """

    def __init__(
        self,
        soft: SoftLabels,
        reader: Reader,
        training: Split,
        validation: Split,
        scheme: TagScheme,
        tweets_per_step: int,
        gold_repeats: int,
        seed: int,
    ) -> None:
        super().__init__(training, validation, scheme, tweets_per_step, seed)
        self.soft, self.texts, self.gold_repeats = soft, len(soft.ids), gold_repeats
        self.inputs = reader.read(
            soft.tokens + [row["tokens"] for row in training.rows],
            soft.image_words + [row["image_words"] for row in training.rows],
        )
        self.lengths = np.asarray(self.inputs.lengths)

    def units(self) -> np.ndarray:
        """What an epoch goes through."""
        tweets = np.arange(self.texts, len(self.lengths))
        return np.concatenate([np.arange(self.texts), np.tile(tweets, self.gold_repeats)])

    def collate(self, units: Sequence[int], epoch: int) -> Batch:
        """Texts and tweets as the student's tensors, with the teacher's scores."""
        batch = self.inputs.batch(units)
        word_mask_BW = batch["word_mask_BW"]
        scores_BWL = np.zeros((*word_mask_BW.shape, len(self.scheme.labels)), np.float32)
        for row, (unit, words) in enumerate(zip(units, word_mask_BW.sum(dim=1).tolist(), strict=True)):
            scores_BWL[row, :words] = self.scores_of(unit)[:words]
        batch["teacher_scores_BWL"] = torch.from_numpy(scores_BWL)
        batch["weight"] = word_mask_BW.sum()
        return batch

    def scores_of(self, unit: int) -> np.ndarray:
        """Scores [W, L] of a text by the teacher, or of a tweet by its tags."""
        if unit < self.texts:
            return self.soft.scores_of(unit)
        labels = self.training_labels[unit - self.texts]
        scores_WL = np.full((len(labels), len(self.scheme.labels)), PENALTY, np.float32)
        scores_WL[np.arange(len(labels)), labels] = 0.0
        return scores_WL

    def sample_ids(self, units: Sequence[int]) -> list[str]:
        """Ids of the texts and tweets."""
        tweets = [unit - self.texts for unit in units if unit >= self.texts]
        return [self.soft.ids[unit] for unit in units if unit < self.texts] + super().sample_ids(tweets)


def make_task(
    settings: DistillationSettings,
    stage: Stage,
    soft: SoftLabels,
    reader: Reader,
    splits: dict[str, Split],
    scheme: TagScheme,
) -> Distillation:
    """The task of a stage, whose facts say how much there is to learn from."""
    task = Distillation(
        soft,
        reader,
        splits["train"],
        splits["validation"],
        scheme,
        settings.tweets_per_step,
        settings.gold_repeats,
        settings.seed,
    )
    cut = sum(task.inputs.words_truncated[: len(soft.ids)])
    stage.facts["data"]["soft_labels"] = {"texts": len(soft.ids), "words": len(soft.scores), "words_truncated": cut}
    if settings.read_image_words != "none" and not any(soft.image_words):
        stage.warn(
            f"{settings.soft_labels}: no text has image words: the student sees those of the data set's tweets alone"
        )
    return task
