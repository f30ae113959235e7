"""Tagging as a task of the training loop: splits of a `ner` data set, batches, predictions and their scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data_prep.layout import NER_TAGS, read_ner
from finetune import scorer
from finetune.features import image_words_read
from finetune.inputs import Inputs, Reader, longest_first
from finetune.tagger import Tagger
from finetune.tags import TagScheme, bio_to_bioes, check_tags, tags_at
from launch.errors import InputError
from launch.files import write_text_whole
from launch.loop import Batch, micro_batches, readable, sum_over_processes, to_device, unwrapped

COLUMNS = ["id", "tokens", "ner_tags", "source_tokens", "source_tags", "source_index", "image_id", "image_words"]

POOL_STEPS = 16
"""Optimizer steps whose tweets are sorted by length together, so that a batch holds tweets of like length."""

TARGETS = ("word_mask_BW", "labels_BW")
"""What of a batch only the loss and the decoding read."""

PREDICTED_AT_ONCE = 64
BATCHES_AT_ONCE = 16
"""Batches of these that are made, and decoded, one after another."""


@dataclass(frozen=True)
class Split:
    """A split's rows, and its tweets as the system reads them."""

    rows: list[dict[str, Any]]
    inputs: Inputs

    @property
    def words_truncated(self) -> int:
        """Words that did not fit the model's input; they are scored as predicted ``O``."""
        return sum(self.inputs.words_truncated)

    def tags_read(self) -> list[list[str]]:
        """The repaired BIO tags of each tweet's words, without those of words that did not fit."""
        cut = self.inputs.words_truncated
        return [
            [NER_TAGS[tag] for tag in row["ner_tags"][: len(row["ner_tags"]) - words]]
            for row, words in zip(self.rows, cut, strict=True)
        ]

    @classmethod
    def of(cls, rows: list[dict[str, Any]], reader: Reader) -> Split:
        """Rows of :func:`read_rows`, read."""
        return cls(rows, reader.read([row["tokens"] for row in rows], [row["image_words"] for row in rows]))


def read_rows(folder: Path, name: str, image_words: str, seed: int) -> list[dict[str, Any]]:
    """Rows of a split, with the image words that the system shall read: ``given``, ``shuffled`` (by ``seed``) or ``none``.

    Raises InputError where image words are asked for and no tweet has any, and for tags that are not those of a `ner`
    data set.
    """
    rows = read_ner(folder, name, columns=COLUMNS).to_list()
    if not rows:
        raise InputError(f"{folder}: its {name} split is empty.")
    for row in rows:
        if problem := tag_problem(row):
            raise InputError(
                f"{folder}: tweet {row['id']} of its {name} split has {problem}. Make the data set with data_prep."
            )
    words = [row["image_words"] or [] for row in rows]
    if image_words != "none" and not any(words):
        raise InputError(
            f"{folder}: no tweet of its {name} split has image words, which --image_words {image_words} needs. "
            "Give a data set with them, or --image_words none."
        )
    for row, read in zip(rows, image_words_read(words, image_words, seed), strict=True):
        row["image_words"] = list(read)  # what the model reads, for the predictions file
    return rows


def tag_problem(row: dict[str, Any]) -> str | None:
    """What is wrong with the tags of a row, if anything is."""
    if not len(row["tokens"]) == len(row["ner_tags"]) == len(row["source_index"]):
        return "other numbers of tokens, ner_tags and source_index"
    if len(row["source_tokens"]) != len(row["source_tags"]):
        return "other numbers of source_tokens and source_tags"
    if any(not 0 <= place < len(row["source_tokens"]) for place in row["source_index"]):
        return "a source_index beyond its source_tokens"
    if any(not 0 <= tag < len(NER_TAGS) for tag in row["ner_tags"]):
        return "ner_tags without a label"
    try:
        check_tags(row["source_tags"])
        bio_to_bioes([NER_TAGS[tag] for tag in row["ner_tags"]])  # refuses orphans
    except ValueError as error:
        return str(error)
    return None


class Tagging:
    """The training loop's task: tweets, batched with others of like length. ``inputs`` are all that it trains on."""

    def __init__(self, training: Split, validation: Split, scheme: TagScheme, tweets_per_step: int, seed: int) -> None:
        self.training, self.validation = training, validation
        self.scheme, self.tweets_per_step, self.seed = scheme, tweets_per_step, seed
        self.training_labels, self.validation_labels = (labels_of(split, scheme) for split in (training, validation))
        self.inputs = training.inputs
        self.lengths = np.asarray(self.inputs.lengths)

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Steps of an epoch: tweets in random order, sorted by length within pools; then the steps in random order."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        order = generator.permutation(self.units())
        size = self.tweets_per_step
        steps = []
        for start in range(0, len(order), size * POOL_STEPS):
            pool = order[start : start + size * POOL_STEPS]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            steps += [pool[place : place + size] for place in range(0, len(pool), size)]
        return [steps[index] for index in generator.permutation(len(steps))]

    def units(self) -> np.ndarray:
        """What an epoch goes through: each tweet once."""
        return np.arange(len(self.lengths))

    def collate(self, tweets: Sequence[int], epoch: int) -> Batch:
        """Tweets as the tagger's tensors."""
        return make_batch(self.training, tweets, self.training_labels)

    def size(self, tweets: Sequence[int]) -> int:
        """Number of tweets."""
        return len(tweets)

    def sample_ids(self, tweets: Sequence[int]) -> list[str]:
        """Ids of the tweets."""
        return [self.training.rows[index]["id"] for index in tweets]

    def evaluate(self, model: torch.nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Loss per word, and precision, recall and F1 by both conventions, on the validation split."""
        tagger = unwrapped(model)
        loss = weight = 0.0
        labelled = []
        with accelerator.autocast(), tagger.unchanged():
            for tweets, counts, targets, emissions_BWL in computed(
                tagger, self.validation, accelerator, self.validation_labels
            ):
                word_mask_BW = targets["word_mask_BW"]
                loss += counts * float(tagger.loss(emissions_BWL, word_mask_BW, targets["labels_BW"]))
                weight += counts * float(word_mask_BW.sum())
                with readable(tagger):
                    labelled += zip(tweets, tagger.decode(emissions_BWL, word_mask_BW), strict=True)
        metrics = {"loss": sum_over_processes(accelerator, loss) / sum_over_processes(accelerator, weight)}
        predicted = assemble(self.validation, labelled, self.scheme, accelerator)
        for convention, scores in scorer.score_both(gold_tags(self.validation), predicted).items():
            metrics |= {f"{name}_{convention}": scores["micro"][name] for name in ("precision", "recall", "f1")}
        return metrics


@torch.no_grad()
def predict(tagger: Tagger, split: Split, scheme: TagScheme, accelerator: Accelerator) -> list[list[str]]:
    """BIO tags of each tweet of a split, over its source tokens; the processes share the work.

    Computed in the accelerator's precision, which is that of training but under DeepSpeed, where it is fp32.
    """
    labelled = []
    with accelerator.autocast(), tagger.unchanged():  # one for all batches: the weights are rounded once
        for tweets, _, targets, emissions_BWL in computed(tagger, split, accelerator):
            labelled += zip(tweets, tagger.decode(emissions_BWL, targets["word_mask_BW"]), strict=True)
    return assemble(split, labelled, scheme, accelerator)


def assemble(
    split: Split, labelled: list[tuple[int, list[int]]], scheme: TagScheme, accelerator: Accelerator
) -> list[list[str]]:
    """Every process's label ids as BIO tags of all source tokens: ``O`` for URLs and for words that were cut off."""
    together = gather_object(labelled) if accelerator.num_processes > 1 else labelled
    ids_of = dict(together)
    return [over_source_tokens(row, scheme.decode(ids_of.get(tweet, ()))) for tweet, row in enumerate(split.rows)]


def over_source_tokens(row: dict[str, Any], tags: Sequence[str]) -> list[str]:
    """Tags of a row's words as tags of its source tokens: ``O`` for URLs, and for last words without a tag."""
    return tags_at(row["source_index"], tags, len(row["source_tokens"]))


def computed(
    tagger: Tagger, split: Split, accelerator: Accelerator, labels: list[list[int]] | None = None
) -> Iterator[tuple[list[int], bool, Batch, torch.Tensor]]:
    """:func:`batches`, each as what the model does not read (``word_mask_BW`` and, if given, ``labels_BW``) and its emissions
    [B, W, L].

    Some batches are made, then all go through the model, then they are given: a processor that has just been through a model
    has none of Python's in its caches, and would take three times as long for each batch.
    """
    left = batches(split, accelerator, labels)
    while made := list(islice(left, BATCHES_AT_ONCE)):
        targets = [{name: batch.pop(name) for name in TARGETS if name in batch} for _, _, batch in made]
        emissions = [tagger.emissions(**batch) for _, _, batch in made]
        for (tweets, counts, _), of_batch, emissions_BWL in zip(made, targets, emissions, strict=True):
            yield tweets, counts, of_batch, emissions_BWL


def batches(
    split: Split, accelerator: Accelerator, labels: list[list[int]] | None = None
) -> Iterator[tuple[list[int], bool, Batch]]:
    """This process's share of a split, longest first: indexes of tweets, whether this process counts them, tensors."""
    order = longest_first(split.inputs)
    for tweets, counts in micro_batches(order, PREDICTED_AT_ONCE, accelerator.process_index, accelerator.num_processes):
        yield tweets, counts, to_device(make_batch(split, tweets, labels), accelerator.device)


def make_batch(split: Split, tweets: Sequence[int], labels: list[list[int]] | None) -> Batch:
    """Tensors of some of a split's tweets."""
    chosen = None if labels is None else [labels[index] for index in tweets]
    return split.inputs.batch(tweets, chosen)


def labels_of(split: Split, scheme: TagScheme) -> list[list[int]]:
    """The label ids of the words that are read. An entity that was cut ends, in BIOES, with the last of them."""
    return [scheme.encode(tags) for tags in split.tags_read()]


def gold_tags(split: Split) -> list[list[str]]:
    """The tags as published, over the source tokens."""
    return [row["source_tags"] for row in split.rows]


def score(split: Split, predicted: list[list[str]]) -> dict[str, Any]:
    """Everything `scores.json` holds of a split."""
    return {
        **scorer.score_all(gold_tags(split), predicted),
        "words_truncated": split.words_truncated,
        "tweets": len(split.rows),
    }


def write_predictions(path: Path, split: Split, predicted: list[list[str]]) -> None:
    """Gold and predicted tags of each tweet, with what the model read of its image."""
    lines = (
        {
            "id": row["id"],
            "tokens": row["source_tokens"],
            "gold": row["source_tags"],
            "predicted": tags,
            "image_id": row["image_id"],
            "image_words": row["image_words"],
        }
        for row, tags in zip(split.rows, predicted, strict=True)
    )
    path.parent.mkdir(exist_ok=True)
    write_text_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
