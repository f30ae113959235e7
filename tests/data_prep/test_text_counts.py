import numpy as np
import pytest

from data_prep.text_counts import MARKS, TextCounts


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("hello @you", ["with a @mention"]),
        ("＠you and 你好@me", ["with a @mention"]),
        ("write to me@example.org", []),
        ("#win", ["with a #hashtag"]),
        ("it&#39;s no. #, a#b", []),
        ("RT @a: b", ["with a @mention", "retweets"]),
        ("“rt @a: b", ["with a @mention", "retweets"]),
        ("start @a", ["with a @mention"]),
        ("see t.co/abcdefghij", ["with a URL"]),
        ("😂", ["with an emoji"]),
        ("🇩🇪 vs ☀️", ["with an emoji"]),
        ("© é € 日本 1️", []),
    ],
)
def test_marks(text, marks):
    counts = TextCounts()
    counts.add(text)
    assert [mark for mark in MARKS if counts.marks[mark]] == marks


def test_lengths_and_repeats():
    counts = TextCounts()
    for text in ("Jordan  at last", "jordan at last ", "jordan at last!", "", ""):
        counts.add(text)
    assert len(counts) == 5
    assert counts.repeats == 2
    assert np.array_equal(counts.lengths["words"], [3, 3, 3, 0, 0])
    assert np.array_equal(counts.lengths["characters"], [15, 15, 15, 0, 0])
