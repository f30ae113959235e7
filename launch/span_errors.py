"""Which gold entity a predicted one was meant to be, and what is wrong with it.

Each gold and each predicted entity of a tweet is in exactly one `Outcome`, so that the outcomes of a kind add up to
the scorer's counts: `CORRECT` ones are its true positives, those with a gold entity its gold ones, those with a predicted
entity its predicted ones.

Two entities can be a pair if they share a word. As one entity can share words with several of the other side, pairs are
made one by one, and both of a pair are then taken. First come pairs of one type, for they differ in least; then those that
share more words; then those that have fewer words that are not shared; then those further left. A pair with the same
first and last word never competes: neither side's entities overlap among themselves, so nothing else shares its words.
What is left over is missed or spurious.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launch.gallery import Span

CORRECT = "correct"
WRONG_TYPE = "wrong type"
WRONG_BOUNDARY = "wrong boundary"
WRONG_BOTH = "wrong boundary and type"
MISSED = "missed"
SPURIOUS = "spurious"

ERRORS = (MISSED, SPURIOUS, WRONG_TYPE, WRONG_BOUNDARY, WRONG_BOTH)


@dataclass(frozen=True)
class Outcome:
    """A gold entity, a predicted one, or one of each that belong together."""

    gold: Span | None
    predicted: Span | None

    @property
    def kind(self) -> str:
        """`CORRECT` or one of `ERRORS`."""
        if self.predicted is None:
            return MISSED
        if self.gold is None:
            return SPURIOUS
        same_words, same_type = self.gold[:2] == self.predicted[:2], self.gold[2] == self.predicted[2]
        if same_words:
            return CORRECT if same_type else WRONG_TYPE
        return WRONG_BOUNDARY if same_type else WRONG_BOTH


def align(gold: Sequence[Span], predicted: Sequence[Span]) -> list[Outcome]:
    """The outcomes of one tweet, by first word. Entities of one side must not overlap each other."""
    candidates = [(one, other) for one in gold for other in predicted if _shared_words(one, other)]
    free_gold, free_predicted = set(gold), set(predicted)
    found = []
    for one, other in sorted(candidates, key=_rank):
        if one in free_gold and other in free_predicted:
            free_gold.remove(one)
            free_predicted.remove(other)
            found.append(Outcome(one, other))
    found += [Outcome(one, None) for one in free_gold]
    found += [Outcome(None, other) for other in free_predicted]
    return sorted(found, key=lambda outcome: (outcome.gold or outcome.predicted, outcome.gold is None))


def _shared_words(one: Span, other: Span) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))


def _rank(pair: tuple[Span, Span]) -> tuple:
    one, other = pair
    shared = _shared_words(one, other)
    words_not_shared = (one[1] - one[0]) + (other[1] - other[0]) - 2 * shared
    return one[2] != other[2], -shared, words_not_shared, one, other
