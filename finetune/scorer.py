"""Span scorer: precision, recall and F1 of entities, in two conventions that are always named.

A predicted entity is correct if the gold has one with the same type and the same first and last word.
The conventions differ on an ``I-X`` that continues nothing (first in the sentence, or after ``O`` or
another type), of which TMN's gold has 374:

- ``conlleval``: it opens an entity. The CoNLL script's reading, and seqeval's default.
- ``strict``: it belongs to no entity. seqeval's ``mode="strict", scheme=IOB2``.

Both equal seqeval 1.2.2, which the tests hold them to; this one has no dependencies, counts what it did,
and refuses tags it does not know.

    >>> gold, predicted = [["B-PER", "I-PER", "O"]], [["I-PER", "I-PER", "O"]]
    >>> score(gold, predicted, "conlleval")["micro"]["f1"], score(gold, predicted, "strict")["micro"]["f1"]
    (1.0, 0.0)
"""

from collections import Counter
from collections.abc import Sequence

from finetune.tags import ENTITY_TYPES, bio_tags, check_tags, check_types, split_tag

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
    entities: list[Span] = []
    open_type, start = "", 0
    for position, tag in enumerate(tags):
        if tag == "O":  # as most are
            if open_type:
                entities.append((open_type, start, position))
                open_type = ""
            continue
        prefix, entity_type = split_tag(tag)
        if prefix not in ("B", "I") or tag[1:2] != "-" or not entity_type:
            raise ValueError(f"{tag!r} at position {position} is not a BIO tag")
        if prefix == "I" and entity_type == open_type:
            continue
        if open_type:
            entities.append((open_type, start, position))
        opens = prefix == "B" or convention == "conlleval"
        open_type, start = (entity_type, position) if opens else ("", position)
    if open_type:
        entities.append((open_type, start, len(tags)))
    return entities


def score(gold: Sentences, predicted: Sentences, convention: str, types: Sequence[str] = ENTITY_TYPES) -> dict:
    """Score the predicted BIO tags of all sentences against the gold ones.

    Returns ``{"micro": C, "by_type": {type: C}}`` with an entry for each of `types`. C has the fractions
    ``precision``, ``recall``, ``f1`` (0 where there is nothing to divide by) and the counts ``gold``,
    ``predicted``, ``correct``.

    Raises ValueError, naming the sentence, if the lengths differ or a tag is not BIO over `types`.
    """
    spans_of = {"gold": [], "predicted": [], "correct": []}
    for gold_spans, predicted_spans in _span_pairs(gold, predicted, convention, types):
        spans_of["gold"] += gold_spans
        spans_of["predicted"] += predicted_spans
        spans_of["correct"] += set(gold_spans).intersection(predicted_spans)
    found = {name: Counter(entity_type for entity_type, _, _ in found) for name, found in spans_of.items()}
    by_type = {t: _fractions(**{name: counts[t] for name, counts in found.items()}) for t in types}
    return {
        "micro": _fractions(**{name: counts.total() for name, counts in found.items()}),
        "by_type": by_type,
    }


def score_both(gold: Sentences, predicted: Sentences, types: Sequence[str] = ENTITY_TYPES) -> dict:
    """`score` in both conventions: ``{"conlleval": ..., "strict": ...}``."""
    return {convention: score(gold, predicted, convention, types) for convention in CONVENTIONS}


def confusion(
    gold: Sentences, predicted: Sentences, types: Sequence[str] = ENTITY_TYPES, convention: str = "conlleval"
) -> dict:
    """Which type was taken for which, among entities with the same boundaries.

    Returns ``{"labels": [*types, "none"], "matrix": [[int]]}``: rows gold, columns predicted. Row ``none``
    counts predicted entities whose boundaries no gold entity has, column ``none`` gold ones whose boundaries
    no predicted one has. Rows and columns sum to the counts of `score`, which raises the same errors.
    """
    labels = [*types, "none"]
    row = {label: i for i, label in enumerate(labels)}
    matrix = [[0] * len(labels) for _ in labels]
    for gold_spans, predicted_spans in _span_pairs(gold, predicted, convention, types):
        # A sentence's entities do not overlap, so boundaries identify them.
        gold_types = {(start, end): entity_type for entity_type, start, end in gold_spans}
        predicted_types = {(start, end): entity_type for entity_type, start, end in predicted_spans}
        for boundaries in gold_types.keys() | predicted_types.keys():
            pair = gold_types.get(boundaries, "none"), predicted_types.get(boundaries, "none")
            matrix[row[pair[0]]][row[pair[1]]] += 1
    return {"labels": labels, "matrix": matrix}


def _span_pairs(gold: Sentences, predicted: Sentences, convention: str, types: Sequence[str]):
    """Yield each sentence's gold and predicted spans, after checking its tags."""
    _check_convention(convention)
    types = check_types(types)
    known = bio_tags(types)
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} gold sentences, but {len(predicted)} predicted")
    for index, (gold_tags, predicted_tags) in enumerate(zip(gold, predicted, strict=True)):
        if len(gold_tags) != len(predicted_tags):
            raise ValueError(f"sentence {index}: {len(gold_tags)} gold tags, but {len(predicted_tags)} predicted")
        for name, tags in (("gold", gold_tags), ("predicted", predicted_tags)):
            if not known.issuperset(tags):
                try:
                    check_tags(tags, types)
                except ValueError as error:
                    raise ValueError(f"sentence {index}, {name}: {error}") from None
        yield spans(gold_tags, convention), spans(predicted_tags, convention)


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
