"""Tag schemes: conversions, repairs, constraints."""

import doctest
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

import finetune.tags
from data_prep.tag_repair import repair_orphans
from finetune.scorer import spans
from finetune.tags import (
    ENTITY_TYPES,
    TagScheme,
    bio_to_bioes,
    bioes_to_bio,
    check_tags,
)

TYPES = ("PER", "LOC")
BIO, BIOES = TagScheme("BIO", TYPES), TagScheme("BIOES", TYPES)

soup = st.lists(st.sampled_from(BIO.labels), max_size=12)
bioes_soup = st.lists(st.sampled_from(BIOES.labels), max_size=12)
check = settings(max_examples=200, deadline=None)


def test_labels_are_in_the_documented_order():
    assert BIO.labels == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    assert BIOES.labels == ["O", *"B-PER I-PER E-PER S-PER B-LOC I-LOC E-LOC S-LOC".split()]
    assert TagScheme().labels == "O B-PER I-PER B-LOC I-LOC B-ORG I-ORG B-MISC I-MISC".split()
    assert len(TagScheme("BIOES").labels) == 17
    assert TagScheme("BIO", ["PER", "LOC"]) == BIO  # a list, as YAML gives it
    assert hash(TagScheme("BIO", ["PER", "LOC"])) == hash(BIO)


def test_docstring_examples():
    assert doctest.testmod(finetune.tags).failed == 0


@pytest.mark.parametrize(
    "name, types", [("IOB", TYPES), ("BIO", ()), ("BIO", ("A", "A")), ("BIO", ("-A",)), ("BIO", ("A B",))]
)
def test_impossible_schemes_are_refused(name, types):
    with pytest.raises(ValueError, match="scheme|type"):
        TagScheme(name, types)


def test_bioes_by_hand():
    bio = "B-PER I-PER I-PER B-PER O B-LOC B-LOC I-LOC".split()
    bioes = "B-PER I-PER E-PER S-PER O S-LOC B-LOC E-LOC".split()
    assert bio_to_bioes(bio) == bioes
    assert bioes_to_bio(bioes) == bio
    assert BIOES.encode(bio) == [1, 2, 3, 4, 0, 8, 5, 7]


@check
@given(soup)
def test_the_repair_of_training_data_writes_down_what_conlleval_reads(tags):
    repaired, orphans = repair_orphans(tags)
    assert orphans == sum(a != b for a, b in zip(tags, repaired, strict=True))
    # It makes the conventions agree.
    assert spans(repaired, "conlleval") == spans(tags, "conlleval") == spans(repaired, "strict")


@check
@given(soup)
def test_encode_then_decode_gives_the_tags_back(tags):
    tags = repair_orphans(tags)[0]
    for scheme in (BIO, BIOES):
        assert scheme.decode(scheme.encode(tags)) == tags


@check
@given(bioes_soup)
def test_decoded_bioes_soup_has_the_entities_seqeval_reads_in_it(tags):
    decoded = BIOES.decode([BIOES.labels.index(tag) for tag in tags])
    check_tags(decoded, TYPES)
    assert spans(decoded, "conlleval") == [(t, start, last + 1) for t, start, last in get_entities(tags)]


def test_bio_ids_decode_to_their_labels_even_when_invalid():
    assert BIO.decode([2, 4, 0, 2]) == ["I-PER", "I-LOC", "O", "I-PER"]
    assert BIO.decode([]) == []


@pytest.mark.parametrize("wrong", [-100, -1, 5])
def test_ids_that_are_no_labels_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{wrong} is not in 0 .. 4"):
        BIO.decode([0, wrong])


@pytest.mark.parametrize("scheme", [BIO, BIOES], ids=lambda scheme: scheme.name)
def test_encode_refuses_unknown_tags_and_orphans(scheme):
    with pytest.raises(ValueError, match="unknown tag 'B-ORG' at position 1"):
        scheme.encode(["O", "B-ORG"])
    with pytest.raises(ValueError, match="orphan tag 'I-PER' at position 2"):
        scheme.encode(["B-LOC", "I-LOC", "I-PER"])
    with pytest.raises(ValueError, match="orphan tag 'I-PER' at position 0"):
        scheme.encode(["I-PER"])


@pytest.mark.parametrize("tag", ["B-OTHER", "E-PER", "B", "b-PER", "", "O "])
def test_check_tags_names_the_unknown_tag(tag):
    with pytest.raises(ValueError, match=f"unknown tag '{tag}' at position 1: .* PER, LOC, ORG, MISC"):
        check_tags(["O", tag])
    check_tags(["O", "I-PER", "B-MISC"], ENTITY_TYPES)


@pytest.mark.parametrize("scheme", [BIO, BIOES], ids=lambda scheme: scheme.name)
def test_constraints_allow_exactly_the_sequences_that_tags_encode_to(scheme):
    """Of all label sequences of up to three words."""
    transitions, start, end = scheme.allowed_transitions(), scheme.allowed_start(), scheme.allowed_end()
    for words in (1, 2, 3):
        allowed = {
            ids
            for ids in itertools.product(range(len(scheme.labels)), repeat=words)
            if start[ids[0]] and end[ids[-1]] and all(transitions[i, j] for i, j in itertools.pairwise(ids))
        }
        valid = (tags for tags in itertools.product(BIO.labels, repeat=words) if repair_orphans(tags)[1] == 0)
        assert allowed == {tuple(scheme.encode(tags)) for tags in valid}
