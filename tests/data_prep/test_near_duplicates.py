from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.near_duplicates import NearDuplicates, words_of

word_lists = st.lists(st.sampled_from("abcdefgh"), max_size=8)


@given(st.lists(word_lists, max_size=12), word_lists, st.integers(1, 20))
def test_equals_comparing_everything(texts, query, twentieths):
    threshold = Fraction(twentieths, 20)
    expected = []
    for place, text in enumerate(texts):
        union = set(text) | set(query)
        if union and Fraction(len(set(text) & set(query)), len(union)) >= threshold:
            expected.append(place)
    index = NearDuplicates(texts, float(threshold))
    found = index.find_all(query)
    assert [place for place, _ in found] == expected
    best = index.find(query)
    assert best == (max(found, key=lambda match: match[1]) if found else None)


def test_words_unknown_to_the_index_count():
    index = NearDuplicates([list("abcd")], 0.8)
    assert index.find(list("abcd")) == (0, 1.0)
    assert index.find(list("abcdx")) == (0, 0.8)
    assert index.find(list("abcdxy")) is None


@pytest.mark.parametrize("similarity", [0, -1, 1.01])
def test_refuses_impossible_thresholds(similarity):
    with pytest.raises(ValueError, match="similarity"):
        NearDuplicates([], similarity)


def test_words_equal_their_tokenized_copy():
    raw = "RT @SN_Ohio: Don't miss Jordan &amp; co… http://t.co/abc"
    tokenized = "RT @SN _ Ohio : Don ' t miss Jordan & co … https : //t . co/abcdefghij"
    assert words_of(raw) == words_of(tokenized) == ("don", "t", "miss", "jordan", "co")
    assert words_of("Don't miss Jordan & co") == words_of(raw)  # the original of the retweet
    assert words_of("RT @a hello: there") == ("rt", "a", "hello", "there")  # no retweet: text before the colon


def test_posts_without_words_stay_apart():
    assert words_of("😂 😂") == ("😂", "😂") != words_of("😍")
    assert words_of("http://t.co/abc") == ()
