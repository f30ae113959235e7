from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from data_prep.layout import NER_TAGS
from data_prep.tag_counts import TagCounts, mentions_of


def test_mentions_of_a_text():
    tokens = "Dr . King in New Orleans Paris Hilton".split()
    tags = "O O I-PER O B-LOC I-LOC B-LOC I-PER".split()
    assert list(mentions_of(tokens, tags)) == [
        ("PER", "king"),
        ("LOC", "new orleans"),
        ("LOC", "paris"),
        ("PER", "hilton"),
    ]
    assert list(mentions_of(["Oslo"], ["B-LOC"])) == [("LOC", "oslo")]
    assert list(mentions_of([], [])) == []


@given(st.lists(st.sampled_from(NER_TAGS)))
def test_there_is_a_mention_for_each_entity_that_conlleval_counts(tags):
    tokens = [f"w{place}" for place in range(len(tags))]
    counts = TagCounts()
    counts.add(tokens, tags)
    mentions = list(mentions_of(tokens, tags))
    assert Counter(entity_type for entity_type, _ in mentions) == counts.conlleval
    words = [word for _, words in mentions for word in words.split()]
    assert words == [token for token, tag in zip(tokens, tags, strict=True) if tag != "O"]
