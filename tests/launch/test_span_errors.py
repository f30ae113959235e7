"""The pairing of gold and predicted entities, by example and against the scorer."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.scorer import confusion, score
from launch.error_page import OutcomeCounts
from launch.gallery import spans
from launch.span_errors import (
    CORRECT,
    ERRORS,
    MISSED,
    SPURIOUS,
    WRONG_BOTH,
    WRONG_BOUNDARY,
    WRONG_TYPE,
    Outcome,
    align,
)

TYPES = ("PER", "LOC", "ORG", "MISC")
TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in TYPES)]
tweets = st.lists(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), max_size=8), max_size=6)


@pytest.mark.parametrize(
    ("gold", "predicted", "kinds"),
    [
        ([(0, 2, "PER")], [(0, 2, "PER")], [CORRECT]),
        ([(0, 2, "PER")], [(0, 2, "LOC")], [WRONG_TYPE]),
        ([(0, 2, "PER")], [(1, 2, "PER")], [WRONG_BOUNDARY]),
        ([(0, 2, "PER")], [(1, 3, "LOC")], [WRONG_BOTH]),
        ([(0, 2, "PER")], [(2, 3, "PER")], [MISSED, SPURIOUS]),
        ([(0, 2, "PER")], [], [MISSED]),
        ([], [(0, 2, "PER")], [SPURIOUS]),
        ([], [], []),
    ],
)
def test_kinds(gold, predicted, kinds):
    assert [outcome.kind for outcome in align(gold, predicted)] == kinds


@pytest.mark.parametrize(
    ("gold", "predicted", "pairs"),
    [
        # One type goes before more shared words.
        ([(0, 5, "ORG")], [(0, 4, "LOC"), (4, 5, "ORG")], {((0, 5, "ORG"), (4, 5, "ORG"))}),
        # Then more shared words.
        ([(0, 5, "ORG")], [(0, 2, "ORG"), (2, 5, "ORG")], {((0, 5, "ORG"), (2, 5, "ORG"))}),
        # Then fewer words that are not shared.
        ([(2, 4, "ORG")], [(0, 3, "ORG"), (3, 5, "ORG")], {((2, 4, "ORG"), (3, 5, "ORG"))}),
        # Then further left.
        ([(1, 3, "ORG")], [(0, 2, "ORG"), (2, 4, "ORG")], {((1, 3, "ORG"), (0, 2, "ORG"))}),
        ([(0, 2, "ORG"), (2, 4, "ORG")], [(1, 3, "ORG")], {((0, 2, "ORG"), (1, 3, "ORG"))}),
        # A chain: what the first pair leaves over can still be a pair.
        (
            [(0, 3, "PER"), (3, 6, "PER")],
            [(0, 1, "PER"), (1, 4, "PER"), (4, 6, "LOC")],
            {((0, 3, "PER"), (1, 4, "PER")), ((3, 6, "PER"), (4, 6, "LOC"))},
        ),
    ],
)
def test_of_several_that_overlap_one_is_the_partner(gold, predicted, pairs):
    found = align(gold, predicted)
    assert {(one.gold, one.predicted) for one in found if one.gold and one.predicted} == pairs
    assert align(gold[::-1], predicted[::-1]) == found


def test_outcomes_are_in_the_tweets_order():
    found = align([(0, 1, "PER"), (4, 6, "LOC")], [(2, 3, "ORG"), (4, 5, "LOC")])
    assert found == [
        Outcome((0, 1, "PER"), None),
        Outcome(None, (2, 3, "ORG")),
        Outcome((4, 6, "LOC"), (4, 5, "LOC")),
    ]


@given(tweets)
def test_every_entity_is_in_one_outcome(drawn):
    for tweet in drawn:
        gold, predicted = spans([tag for tag, _ in tweet]), spans([tag for _, tag in tweet])
        found = align(gold, predicted)
        assert Counter(one.gold for one in found if one.gold) == Counter(gold)
        assert Counter(one.predicted for one in found if one.predicted) == Counter(predicted)


@given(tweets)
def test_counts_are_the_scorers(drawn):
    gold, predicted = [[tag for tag, _ in tweet] for tweet in drawn], [[tag for _, tag in tweet] for tweet in drawn]
    outcomes = [one for a, b in zip(gold, predicted, strict=True) for one in align(spans(a), spans(b))]
    counts, expected = OutcomeCounts(outcomes), score(gold, predicted, "conlleval")
    for label, scores in {"": expected["micro"], **expected["by_type"]}.items():
        with_gold = counts.of((CORRECT, WRONG_TYPE, WRONG_BOUNDARY, WRONG_BOTH, MISSED), gold=label)
        with_predicted = counts.of((CORRECT, WRONG_TYPE, WRONG_BOUNDARY, WRONG_BOTH, SPURIOUS), predicted=label)
        correct = counts.of((CORRECT,), label, label)
        assert (with_gold, with_predicted, correct) == (scores["gold"], scores["predicted"], scores["correct"])
    assert counts.of((CORRECT, *ERRORS)) == len(outcomes)
    assert counts.f1 == pytest.approx(100 * expected["micro"]["f1"])


@given(tweets)
def test_tables_are_the_scorers_confusion_and_add_up(drawn):
    gold, predicted = [[tag for tag, _ in tweet] for tweet in drawn], [[tag for _, tag in tweet] for tweet in drawn]
    outcomes = [one for a, b in zip(gold, predicted, strict=True) for one in align(spans(a), spans(b))]
    confused, by_gold, by_predicted = OutcomeCounts(outcomes).tables()
    matrix = [[cell.count if cell else 0 for cell in cells] for _, cells in confused.rows]
    assert {"labels": confused.heads, "matrix": matrix} == confusion(gold, predicted)
    for table in (by_gold, by_predicted):
        for _, (total, *cells) in table.rows:
            assert total.count == sum(cell.count for cell in cells)
