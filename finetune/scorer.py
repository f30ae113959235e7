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
    return _of_convention(_opened_spans(tags), convention)


def score(gold: Sentences, predicted: Sentences, convention: str, types: Sequence[str] = ENTITY_TYPES) -> dict:
    """Score the predicted BIO tags of all sentences against the gold ones.

    Returns ``{"micro": C, "by_type": {type: C}}`` with an entry for each of `types`. C has the fractions
    ``precision``, ``recall``, ``f1`` (0 where there is nothing to divide by) and the counts ``gold``,
    ``predicted``, ``correct``.

    Raises ValueError, naming the sentence, if the lengths differ or a tag is not BIO over `types`.
    """
    _check_convention(convention)
    return _score(_span_pairs(gold, predicted, types), convention, types)


def score_both(gold: Sentences, predicted: Sentences, types: Sequence[str] = ENTITY_TYPES) -> dict:
    """`score` in both conventions: ``{"conlleval": ..., "strict": ...}``."""
    return _score_both(_span_pairs(gold, predicted, types), types)


def confusion(
    gold: Sentences, predicted: Sentences, types: Sequence[str] = ENTITY_TYPES, convention: str = "conlleval"
) -> dict:
    """Which type was taken for which, among entities with the same boundaries.

    Returns ``{"labels": [*types, "none"], "matrix": [[int]]}``: rows gold, columns predicted. Row ``none``
    counts predicted entities whose boundaries no gold entity has, column ``none`` gold ones whose boundaries
    no predicted one has. Rows and columns sum to the counts of `score`, which raises the same errors.
    """
    _check_convention(convention)
    return _confusion(_span_pairs(gold, predicted, types), convention, types)


def score_all(gold: Sentences, predicted: Sentences, types: Sequence[str] = ENTITY_TYPES) -> dict:
    """What `score_both` returns, and ``confusion``, from one reading of the tags."""
    pairs = _span_pairs(gold, predicted, types)
    return {**_score_both(pairs, types), "confusion": _confusion(pairs, "conlleval", types)}


_OpenedSpan = tuple[Span, bool]
"""An entity as conlleval reads it, and whether a ``B-`` opens it: those are the entities of the strict reading."""


def _opened_spans(tags: Sequence[str]) -> list[_OpenedSpan]:
    """Entities of one sentence, in order. ValueError for a tag that is not BIO."""
    if tags.count("O") == len(tags):  # as in many sentences
        return []
    found: list[_OpenedSpan] = []
    open_type, start, by_b = "", 0, False
    for position, tag in enumerate(tags):
        if tag == "O":
            if open_type:
                found.append(((open_type, start, position), by_b))
                open_type = ""
            continue
        prefix, entity_type = split_tag(tag)
        if prefix not in ("B", "I") or tag[1:2] != "-" or not entity_type:
            raise ValueError(f"{tag!r} at position {position} is not a BIO tag")
        if prefix == "I" and entity_type == open_type:
            continue
        if open_type:
            found.append(((open_type, start, position), by_b))
        open_type, start, by_b = entity_type, position, prefix == "B"
    if open_type:
        found.append(((open_type, start, len(tags)), by_b))
    return found


def _of_convention(opened: list[_OpenedSpan], convention: str) -> list[Span]:
    return [span for span, by_b in opened if by_b or convention == "conlleval"]


_SpanPairs = list[tuple[list[_OpenedSpan], list[_OpenedSpan]]]
"""Gold and predicted entities of each sentence that has any."""


def _span_pairs(gold: Sentences, predicted: Sentences, types: Sequence[str]) -> _SpanPairs:
    """All sentences' entities, after a check of their tags."""
    types = check_types(types)
    known = bio_tags(types)
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} gold sentences, but {len(predicted)} predicted")
    pairs = []
    for index, (gold_tags, predicted_tags) in enumerate(zip(gold, predicted, strict=True)):
        if len(gold_tags) != len(predicted_tags):
            raise ValueError(f"sentence {index}: {len(gold_tags)} gold tags, but {len(predicted_tags)} predicted")
        for name, tags in (("gold", gold_tags), ("predicted", predicted_tags)):
            if not known.issuperset(tags):
                try:
                    check_tags(tags, types)
                except ValueError as error:
                    raise ValueError(f"sentence {index}, {name}: {error}") from None
        pair = _opened_spans(gold_tags), _opened_spans(predicted_tags)
        if any(pair):
            pairs.append(pair)
    return pairs


def _score(pairs: _SpanPairs, convention: str, types: Sequence[str]) -> dict:
    spans_of = {"gold": [], "predicted": [], "correct": []}
    for pair in pairs:
        gold_spans, predicted_spans = (_of_convention(opened, convention) for opened in pair)
        spans_of["gold"] += gold_spans
        spans_of["predicted"] += predicted_spans
        spans_of["correct"] += set(gold_spans).intersection(predicted_spans)
    found = {name: Counter(entity_type for entity_type, _, _ in found) for name, found in spans_of.items()}
    by_type = {t: _fractions(**{name: counts[t] for name, counts in found.items()}) for t in types}
    return {
        "micro": _fractions(**{name: counts.total() for name, counts in found.items()}),
        "by_type": by_type,
    }


def _score_both(pairs: _SpanPairs, types: Sequence[str]) -> dict:
    return {convention: _score(pairs, convention, types) for convention in CONVENTIONS}


def _confusion(pairs: _SpanPairs, convention: str, types: Sequence[str]) -> dict:
    labels = [*types, "none"]
    row = {label: i for i, label in enumerate(labels)}
    matrix = [[0] * len(labels) for _ in labels]
    for pair in pairs:
        # A sentence's entities do not overlap, so boundaries identify them.
        gold_types, predicted_types = (
            {(start, end): entity_type for entity_type, start, end in _of_convention(opened, convention)}
            for opened in pair
        )
        for boundaries in gold_types.keys() | predicted_types.keys():
            labelled = gold_types.get(boundaries, "none"), predicted_types.get(boundaries, "none")
            matrix[row[labelled[0]]][row[labelled[1]]] += 1
    return {"labels": labels, "matrix": matrix}


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
