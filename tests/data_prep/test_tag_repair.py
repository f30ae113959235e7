from hypothesis import given
from hypothesis import strategies as st

from data_prep.tag_repair import count_entities, iob1_to_bio, repair_orphans, tags_without_tokens

TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
tag_lists = st.lists(st.sampled_from(TAGS), max_size=12)


def spans(tags):
    """Entities of valid BIO as (start, end, type)."""
    found = []
    for position, tag in enumerate(tags):
        if tag[0] == "B":
            found.append((position, position + 1, tag[2:]))
        elif tag[0] == "I":
            assert found and found[-1][1:] == (position, tag[2:]), f"orphan in {tags}"
            found[-1] = (found[-1][0], position + 1, tag[2:])
    return found


def test_repair():
    tags = ["I-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-PER", "I-PER", "B-PER", "I-LOC"]
    repaired = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "B-PER", "I-PER", "B-PER", "B-LOC"]
    assert repair_orphans(tags) == (repaired, 4)


def test_iob1():
    # CoNLL-2003: B- only where an entity touches another of its type
    assert iob1_to_bio(["I-LOC", "I-LOC", "B-LOC", "O", "I-PER"]) == ["B-LOC", "I-LOC", "B-LOC", "O", "B-PER"]


@given(tag_lists)
def test_repaired_tags_are_valid_and_stay(tags):
    repaired, _ = repair_orphans(tags)
    spans(repaired)
    assert repair_orphans(repaired) == (repaired, 0)
    assert [tag[2:] for tag in repaired] == [tag[2:] for tag in tags]


def test_removal_inside_entities():
    assert tags_without_tokens(["B-PER", "I-PER", "I-PER"], [0, 2]) == ["B-PER", "I-PER"]
    assert tags_without_tokens(["B-PER", "I-PER", "I-PER"], [1, 2]) == ["B-PER", "I-PER"]
    # two entities that come to touch stay two
    assert tags_without_tokens(["B-PER", "B-PER", "I-PER"], [0, 2]) == ["B-PER", "B-PER"]
    # an orphan after a removed O token was an entity of its own to conlleval
    assert tags_without_tokens(["B-PER", "O", "I-PER"], [0, 2]) == ["B-PER", "B-PER"]
    assert tags_without_tokens(["B-PER", "O"], []) == []


@given(tag_lists, st.data())
def test_removal_keeps_entities(tags, data):
    kept = [position for position in range(len(tags)) if data.draw(st.booleans())]
    left = spans(tags_without_tokens(tags, kept))
    expected = []
    for start, end, entity_type in spans(repair_orphans(tags)[0]):
        places = [kept.index(position) for position in range(start, end) if position in kept]
        if places:
            expected.append((places[0], places[-1] + 1, entity_type))
    assert left == expected


@given(tag_lists)
def test_counts(tags):
    strict, conlleval = count_entities(tags)
    assert sum(conlleval.values()) - sum(strict.values()) == repair_orphans(tags)[1]
    assert sum(conlleval.values()) == len(spans(repair_orphans(tags)[0]))
