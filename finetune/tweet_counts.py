"""What recognizers did tweet by tweet: mentions that are gold, predicted and correct, all and those unseen in training.

Shapes: S runs of a system, T test tweets, K entity types; 3: gold, predicted, correct.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data_prep.dataset_texts import text_of
from data_prep.layout import ENTITY_TYPES, read_ner
from data_prep.near_duplicates import SIMILAR, NearDuplicates, words_of
from data_prep.tag_counts import mentions_of
from finetune.scorer import CONVENTIONS, Span, spans
from finetune.tags import check_tags
from launch.errors import InputError
from launch.results import StageFolder

COLUMNS = ["id", "source_tokens", "source_tags"]


@dataclass(frozen=True)
class TestSplit:
    """The test tweets, and what the training split tells of them."""

    ids: list[str]
    tokens: list[list[str]]
    gold: list[list[str]]
    """Tags as published, orphans included."""
    seen: frozenset[tuple[str, str]]
    """Type and words, in lower case, of all mentions of the training split."""
    has_near_duplicate: np.ndarray
    """bool [T]: whether a training tweet has nearly the same words, as `data_prep/clean.py --exclude` sees it."""

    __test__ = False  # no test for pytest, whatever its name

    @classmethod
    def read(cls, folder: Path, similarity: float = SIMILAR) -> TestSplit:
        """Of a `ner` data set; InputError where the folder is none, or has no test split."""
        train = read_ner(folder, "train", COLUMNS)
        test = read_ner(folder, "test", COLUMNS)
        if not len(test):
            raise InputError(f"{folder}: its test split is empty.")
        known = NearDuplicates([words_of(text_of(tokens)) for tokens in train["source_tokens"]], similarity)
        mentions = (mentions_of(row["source_tokens"], row["source_tags"]) for row in train)
        tokens = test["source_tokens"][:]
        return cls(
            test["id"][:],
            tokens,
            test["source_tags"][:],
            frozenset(mention for of_tweet in mentions for mention in of_tweet),
            np.array([known.find(words_of(text_of(words))) is not None for words in tokens]),
        )

    @cached_property
    def gold_spans(self) -> dict[str, list[list[Span]]]:
        """Gold mentions of each tweet, by convention."""
        return {convention: [spans(tags, convention) for tags in self.gold] for convention in CONVENTIONS}

    def is_seen(self, tweet: int, span: Span) -> bool:
        """Whether a mention of a tweet has a type and words that a mention of the training split has."""
        entity_type, start, end = span
        return (entity_type, " ".join(self.tokens[tweet][start:end]).lower()) in self.seen


def read_predictions(run: StageFolder, test: TestSplit) -> list[list[str]]:
    """The tags that a run predicted for each test tweet.

    InputError if there are none, or they are for other tweets than those of ``test``, or no BIO tags.
    """
    path = run.folder / "predictions" / "test.jsonl"
    if not path.is_file():
        raise InputError(f"{run.folder}: no predictions/test.jsonl. Give folders of finished recognizer stages.")
    rows = run.predictions
    remedy = "Compare runs on one data set, and give that one as --data."
    if len(rows) != len(test.ids):
        raise InputError.at(path, None, f"{len(rows)} tweets, the data set's test split has {len(test.ids)}", remedy)
    for line, (row, *own) in enumerate(zip(rows, test.ids, test.tokens, test.gold, strict=True), start=1):
        names = ("id", "tokens", "gold", "predicted")
        if not all(name in row for name in names):
            raise InputError.at(path, line, f"not all of {', '.join(names)}", "Run the stage again.")
        for name, value in zip(names, own, strict=False):
            if row[name] != value:
                raise InputError.at(path, line, f"{name} of tweet {row['id']} is not that of the data set", remedy)
        try:
            check_tags(row["predicted"], ENTITY_TYPES)
            if len(row["predicted"]) != len(row["tokens"]):
                raise ValueError(f"{len(row['predicted'])} tags for {len(row['tokens'])} tokens")
        except ValueError as error:
            raise InputError.at(path, line, f"tweet {row['id']}: {error}", "Run the stage again.") from None
    return [row["predicted"] for row in rows]


@dataclass(frozen=True)
class SystemCounts:
    """What a system's runs did, by one convention."""

    all_STK3: np.ndarray
    unseen_STK3: np.ndarray
    """Of mentions alone whose type and words no gold mention of the training split has."""
    right_ST: np.ndarray
    """bool: whether a run found all mentions of the tweet and no others."""


def count_system(test: TestSplit, runs: Sequence[list[list[str]]], convention: str) -> SystemCounts:
    """Count the predictions of a system's runs."""
    counted = [_count_run(test, predicted, convention) for predicted in runs]
    return SystemCounts(*(np.stack(arrays) for arrays in zip(*counted, strict=True)))


def _count_run(
    test: TestSplit, predicted: list[list[str]], convention: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    place_of = {entity_type: place for place, entity_type in enumerate(ENTITY_TYPES)}
    all_TK3 = np.zeros((len(test.ids), len(ENTITY_TYPES), 3), np.int32)
    unseen_TK3 = np.zeros_like(all_TK3)
    right_T = np.zeros(len(test.ids), bool)
    for tweet, (gold, tags) in enumerate(zip(test.gold_spans[convention], predicted, strict=True)):
        found = spans(tags, convention)
        right_T[tweet] = found == gold
        for column, mentions in enumerate((gold, found, set(gold) & set(found))):
            for mention in mentions:
                all_TK3[tweet, place_of[mention[0]], column] += 1
                if not test.is_seen(tweet, mention):
                    unseen_TK3[tweet, place_of[mention[0]], column] += 1
    return all_TK3, unseen_TK3, right_T
