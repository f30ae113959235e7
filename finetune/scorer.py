"""Span scorer: precision, recall and F1 of entities, in two conventions that are always named.

A predicted entity is correct if the gold has one with the same type and the same first and last word.
The conventions differ on an ``I-X`` that continues nothing (first in the sentence, or after ``O`` or
another type), of which TMN's gold has 374:

- ``conlleval``: it opens an entity. The CoNLL script's reading, and seqeval's default.
- ``strict``: it belongs to no entity. seqeval's ``mode="strict", scheme=IOB2``.

Both equal seqeval 1.2.2, which the tests hold them to; this one counts what it did, and refuses tags it does not
know. All sentences are scored at once, as arrays of words: it takes a hundredth of seqeval's time.

    >>> gold, predicted = [["B-PER", "I-PER", "O"]], [["I-PER", "I-PER", "O"]]
    >>> score(gold, predicted, "conlleval")["micro"]["f1"], score(gold, predicted, "strict")["micro"]["f1"]
    (1.0, 0.0)
"""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np

from finetune.tags import ENTITY_TYPES, check_tags, check_types, split_tag

CONVENTIONS = ("conlleval", "strict")

Span = tuple[str, int, int]
"""Type, index of the first word, index after the last word."""

Sentences = Sequence[Sequence[str]]
"""BIO tags, by sentence and word."""


def spans(tags: Sequence[str], convention: str) -> list[Span]:
    """Entities of one sentence's BIO tags, in order: (type, start, end), end exclusive.

    Raises ValueError for an unknown convention and for a tag that is not BIO.
    """
    _check_convention(convention)
    found: list[Span] = []
    open_type, start, counts = "", 0, False
    for position, tag in enumerate([*tags, "O"]):
        prefix, entity_type = split_tag(tag)
        if tag != "O" and (prefix not in ("B", "I") or tag[1:2] != "-" or not entity_type):
            raise ValueError(f"{tag!r} at position {position} is not a BIO tag")
        if prefix == "I" and entity_type == open_type:
            continue
        if counts:
            found.append((open_type, start, position))
        open_type, start = entity_type, position
        counts = tag != "O" and (prefix == "B" or convention == "conlleval")
    return found


def score(gold: Sentences, predicted: Sentences, convention: str, types: Sequence[str] = ENTITY_TYPES) -> dict:
    """Score the predicted BIO tags of all sentences against the gold ones.

    Returns ``{"micro": C, "by_type": {type: C}}`` with an entry for each of `types`. C has the fractions
    ``precision``, ``recall``, ``f1`` (0 where there is nothing to divide by) and the counts ``gold``,
    ``predicted``, ``correct``.

    Raises ValueError, naming the sentence, if the lengths differ or a tag is not BIO over `types`.
    """
    _check_convention(convention)
    return _score(*_read(gold, predicted, types), convention, types)


def score_both(gold: Sentences, predicted: Sentences, types: Sequence[str] = ENTITY_TYPES) -> dict:
    """`score` in both conventions: ``{"conlleval": ..., "strict": ...}``."""
    return _score_both(*_read(gold, predicted, types), types)


def confusion(
    gold: Sentences, predicted: Sentences, types: Sequence[str] = ENTITY_TYPES, convention: str = "conlleval"
) -> dict:
    """Which type was taken for which, among entities with the same boundaries.

    Returns ``{"labels": [*types, "none"], "matrix": [[int]]}``: rows gold, columns predicted. Row ``none``
    counts predicted entities whose boundaries no gold entity has, column ``none`` gold ones whose boundaries
    no predicted one has. Rows and columns sum to the counts of `score`, which raises the same errors.
    """
    _check_convention(convention)
    return _confusion(*_read(gold, predicted, types), convention, types)


def score_all(gold: Sentences, predicted: Sentences, types: Sequence[str] = ENTITY_TYPES) -> dict:
    """What `score_both` returns, and ``confusion``, from one reading of the tags."""
    pair = _read(gold, predicted, types)
    return {**_score_both(*pair, types), "confusion": _confusion(*pair, "conlleval", types)}


class _Entities(NamedTuple):
    """All sentences' entities in order, as arrays: where they are, what, and whether a ``B-`` opens them."""

    boundaries: np.ndarray
    """Of the first word and the one behind the last, as one number for each entity."""
    types: np.ndarray
    by_b: np.ndarray

    def of(self, convention: str) -> "_Entities":
        """Those of a convention: the strict reading has but what a ``B-`` opens."""
        return self if convention == "conlleval" else _Entities(*(array[self.by_b] for array in self))


def _read(gold: Sentences, predicted: Sentences, types: Sequence[str]) -> tuple[_Entities, _Entities]:
    """All sentences' entities, after a check of their tags."""
    types = check_types(types)
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} gold sentences, but {len(predicted)} predicted")
    for index, (of_gold, of_predicted) in enumerate(zip(map(len, gold), map(len, predicted), strict=True)):
        if of_gold != of_predicted:
            raise ValueError(f"sentence {index}: {of_gold} gold tags, but {of_predicted} predicted")
    try:
        return _entities(gold, types), _entities(predicted, types)
    except KeyError:  # the first sentence that has an unknown tag, gold before predicted
        for index, pair in enumerate(zip(gold, predicted, strict=True)):
            for name, tags in zip(("gold", "predicted"), pair, strict=True):
                try:
                    check_tags(tags, types)
                except ValueError as error:
                    raise ValueError(f"sentence {index}, {name}: {error}") from None
        raise


def _entities(sentences: Sentences, types: Sequence[str]) -> _Entities:
    """Entities as conlleval reads them. KeyError for an unknown tag."""
    number = {"O": 0} | {f"{prefix}-{t}": 2 * i + (prefix == "I") for i, t in enumerate(types, 1) for prefix in "BI"}
    behind = np.fromiter(accumulate(map(len, sentences), initial=0), np.int64)
    words = np.fromiter(map(number.__getitem__, chain.from_iterable(sentences)), np.int64, behind[-1])
    tags = np.insert(words, behind, 0)  # nothing goes on from one sentence to the next
    type_of, inside, by_i = tags // 2, tags > 0, tags % 2 == 1
    goes_on = by_i[1:] & (type_of[1:] == type_of[:-1])  # from the word before
    starts = np.flatnonzero(inside[1:] & ~goes_on) + 1
    ends = np.flatnonzero(inside[:-1] & ~goes_on) + 1
    return _Entities(starts * (len(tags) + 1) + ends, type_of[starts] - 1, ~by_i[starts])


def _score(gold: _Entities, predicted: _Entities, convention: str, types: Sequence[str]) -> dict:
    gold, predicted = gold.of(convention), predicted.of(convention)
    _, of_gold, of_predicted = np.intersect1d(gold.boundaries, predicted.boundaries, True, return_indices=True)
    found = gold.types[of_gold]
    of_types = {
        "gold": gold.types,
        "predicted": predicted.types,
        "correct": found[found == predicted.types[of_predicted]],
    }
    counts = {name: np.bincount(of_type, minlength=len(types)).tolist() for name, of_type in of_types.items()}
    return {
        "micro": _fractions(**{name: sum(of_type) for name, of_type in counts.items()}),
        "by_type": {t: _fractions(**{name: counts[name][i] for name in counts}) for i, t in enumerate(types)},
    }


def _score_both(gold: _Entities, predicted: _Entities, types: Sequence[str]) -> dict:
    return {convention: _score(gold, predicted, convention, types) for convention in CONVENTIONS}


def _confusion(gold: _Entities, predicted: _Entities, convention: str, types: Sequence[str]) -> dict:
    gold, predicted = gold.of(convention), predicted.of(convention)
    _, of_gold, of_predicted = np.intersect1d(gold.boundaries, predicted.boundaries, True, return_indices=True)
    none = len(types)
    matrix = np.zeros((none + 1, none + 1), np.int64)
    np.add.at(matrix, (gold.types[of_gold], predicted.types[of_predicted]), 1)
    np.add.at(matrix, (np.delete(gold.types, of_gold), none), 1)
    np.add.at(matrix, (none, np.delete(predicted.types, of_predicted)), 1)
    return {"labels": [*types, "none"], "matrix": matrix.tolist()}


def _check_convention(convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}: expected one of {', '.join(CONVENTIONS)}")


def _fractions(gold: int, predicted: int, correct: int) -> dict:
    return {
        "precision": correct / predicted if predicted else 0.0,
        "recall": correct / gold if gold else 0.0,
        "f1": 2 * correct / (gold + predicted) if gold + predicted else 0.0,
        "gold": gold,
        "predicted": predicted,
        "correct": correct,
    }
