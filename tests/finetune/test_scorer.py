"""The span scorer equals seqeval in both modes, on random tag soup and on the real data."""

import doctest
import random
import time
import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import sequence_labeling, v1
from seqeval.scheme import IOB2

import finetune.scorer
from data_prep.tag_repair import repair_orphans
from finetune.scorer import CONVENTIONS, confusion, score, score_both, spans
from finetune.tags import ENTITY_TYPES, TagScheme

# One type with a hyphen, one that begins another: what a sloppy split or prefix test gets wrong.
TYPES = ("PER", "PERSON", "ART-WORK")
SEQEVAL = {
    "conlleval": sequence_labeling.precision_recall_fscore_support,
    "strict": partial(v1.precision_recall_fscore_support, scheme=IOB2),
}

tags = st.sampled_from(TagScheme("BIO", TYPES).labels)
sentence_pairs = st.lists(st.lists(st.tuples(tags, tags), max_size=8), min_size=1, max_size=6)


def assert_equals_seqeval(gold, predicted, types):
    for convention, seqeval_score in SEQEVAL.items():
        ours = score(gold, predicted, convention, types)
        assert list(ours["by_type"]) == list(types)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # seqeval warns where it divides by zero
            precision, recall, f1, support = seqeval_score(gold, predicted, average="micro")
            by_type = seqeval_score(gold, predicted, average=None)
        micro = ours["micro"]
        assert micro["gold"] == support
        np.testing.assert_allclose(
            [micro["precision"], micro["recall"], micro["f1"]], [precision, recall, f1], rtol=1e-12
        )
        # seqeval lists only the types it found, by name.
        found = sorted(t for t in types if ours["by_type"][t]["gold"] or ours["by_type"][t]["predicted"])
        entries = [ours["by_type"][t] for t in found]
        for key, theirs in zip(("precision", "recall", "f1", "gold"), by_type, strict=True):
            np.testing.assert_allclose([entry[key] for entry in entries], theirs, rtol=1e-12)
        for key in ("gold", "predicted", "correct"):
            assert micro[key] == sum(entry[key] for entry in ours["by_type"].values())


@settings(max_examples=200, deadline=None)
@given(sentence_pairs)
def test_equals_seqeval_on_tag_soup(pairs):
    gold = [[g for g, _ in sentence] for sentence in pairs]
    predicted = [[p for _, p in sentence] for sentence in pairs]
    assert_equals_seqeval(gold, predicted, TYPES)


def test_conventions_differ_on_orphans_only():
    sentence = "I-PER I-PER O B-LOC I-LOC I-PER I-LOC B-LOC".split()
    assert spans(sentence, "conlleval") == [
        ("PER", 0, 2),
        ("LOC", 3, 5),
        ("PER", 5, 6),
        ("LOC", 6, 7),
        ("LOC", 7, 8),
    ]
    assert spans(sentence, "strict") == [("LOC", 3, 5), ("LOC", 7, 8)]
    assert spans([], "strict") == []


def test_score_by_hand():
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG"]]
    predicted = [["B-PER", "I-PER", "O", "B-ORG"], ["O"]]
    scores = score_both(gold, predicted)
    assert list(scores) == ["conlleval", "strict"]
    assert scores["strict"] == scores["conlleval"]
    micro = scores["strict"]["micro"]
    assert micro == {
        "precision": 1 / 2,
        "recall": 1 / 3,
        "f1": 2 / 5,
        "gold": 3,
        "predicted": 2,
        "correct": 1,
    }
    zero = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    assert scores["strict"]["by_type"] == {
        "PER": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "gold": 1, "predicted": 1, "correct": 1},
        "LOC": {**zero, "gold": 1, "predicted": 0, "correct": 0},
        "ORG": {**zero, "gold": 1, "predicted": 1, "correct": 0},
        "MISC": {**zero, "gold": 0, "predicted": 0, "correct": 0},
    }


def test_confusion_by_hand():
    gold = [["B-PER", "I-PER", "O", "B-LOC", "B-ORG", "I-ORG"], ["O", "I-MISC"]]
    predicted = [["B-PER", "I-PER", "B-PER", "B-ORG", "B-ORG", "O"], ["O", "B-MISC"]]
    labels = [*ENTITY_TYPES, "none"]
    assert confusion(gold, predicted) == {
        "labels": labels,
        "matrix": [
            [1, 0, 0, 0, 0],
            [0, 0, 1, 0, 0],
            [0, 0, 0, 0, 1],  # B-ORG I-ORG against B-ORG: other boundaries
            [0, 0, 0, 1, 0],
            [1, 0, 1, 0, 0],
        ],
    }
    assert confusion(gold, predicted, convention="strict")["matrix"][3] == [0, 0, 0, 0, 0]


@settings(max_examples=100, deadline=None)
@given(sentence_pairs, st.sampled_from(CONVENTIONS))
def test_confusion_adds_up_to_the_counts(pairs, convention):
    gold = [[g for g, _ in sentence] for sentence in pairs]
    predicted = [[p for _, p in sentence] for sentence in pairs]
    scores = score(gold, predicted, convention, TYPES)["by_type"]
    matrix = np.array(confusion(gold, predicted, TYPES, convention)["matrix"])
    assert matrix[-1, -1] == 0
    assert matrix.sum(axis=1)[:-1].tolist() == [scores[t]["gold"] for t in TYPES]
    assert matrix.sum(axis=0)[:-1].tolist() == [scores[t]["predicted"] for t in TYPES]
    assert matrix.diagonal()[:-1].tolist() == [scores[t]["correct"] for t in TYPES]


@pytest.mark.parametrize("function", [lambda g, p: score(g, p, "strict"), confusion], ids=["score", "confusion"])
def test_errors_name_the_sentence(function):
    with pytest.raises(ValueError, match="2 gold sentences, but 1 predicted"):
        function([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match="sentence 1: 2 gold tags, but 1 predicted"):
        function([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="sentence 1, gold: unknown tag 'B-OTHER' at position 1"):
        function([["O"], ["O", "B-OTHER"]], [["O"], ["O", "O"]])
    with pytest.raises(ValueError, match="sentence 0, predicted: unknown tag 'S-PER' at position 0"):
        function([["O"]], [["S-PER"]])


def test_unknown_conventions_are_refused_even_without_sentences():
    for function in (spans, lambda _, convention: score([], [], convention)):
        with pytest.raises(ValueError, match="unknown convention 'default': expected one of conlleval, strict"):
            function([], "default")


@pytest.mark.parametrize("tag", ["", "B", "B-", "O-", "O-PER", "E-PER", "BPER", "PER", "-PER"])
def test_spans_refuses_what_is_not_bio(tag):
    with pytest.raises(ValueError, match=f"'{tag}' at position 1 is not a BIO tag"):
        spans(["O", tag], "conlleval")


def test_docstring_examples():
    assert doctest.testmod(finetune.scorer).failed == 0


def test_scores_eight_thousand_tweets_well_within_a_second():
    rng = random.Random(1)
    labels = TagScheme().labels
    gold = [rng.choices(labels, weights=[40, *[1] * 8], k=16) for _ in range(8000)]
    start = time.process_time()  # of this process, so a busy machine does not fail the test
    score(gold, gold, "conlleval")
    assert time.process_time() - start < 1


def read_tags(path):
    """Tags by tweet of a TMN file: lines of token, tab, tag between other lines."""
    tweets = [[]]
    for line in path.read_text(encoding="utf-8").split("\n"):
        if "\t" in line:
            tweets[-1].append(line.rsplit("\t", 1)[1].replace("OTHER", "MISC"))
        elif tweets[-1]:
            tweets.append([])
    return [tweet for tweet in tweets if tweet]


@pytest.mark.parametrize(
    "split, tweets, conlleval, strict, orphans",
    [("train", 4000, 6352, 6166, 186), ("valid", 1000, 1594, 1541, 53), ("test", 3257, 5207, 5072, 135)],
)
def test_real_data(shared_data, split, tweets, conlleval, strict, orphans):
    gold = read_tags(shared_data / "tmn" / f"{split}.txt")
    assert len(gold) == tweets
    assert sum(repair_orphans(tweet)[1] for tweet in gold) == orphans
    # A made-up recognizer that is wrong here and there, in all ways: types, boundaries, prefixes.
    rng, labels = random.Random(split), TagScheme().labels
    predicted = [[rng.choice(labels) if rng.random() < 0.1 else tag for tag in tweet] for tweet in gold]
    scores = score_both(gold, predicted)
    assert (scores["conlleval"]["micro"]["gold"], scores["strict"]["micro"]["gold"]) == (conlleval, strict)
    assert_equals_seqeval(gold, predicted, ENTITY_TYPES)
