import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.urls import find_urls, remove_urls, remove_urls_from_tokens

WITH_URLS = [
    # text, its URLs
    ("see http://t.co/abc and https://t.co/XyZ12", ["http://t.co/abc", "https://t.co/XyZ12"]),
    ("HTTP://T.CO/ABC", ["HTTP://T.CO/ABC"]),
    ("http://a.b/c?d=e&f=%20#g, next", ["http://a.b/c?d=e&f=%20#g"]),
    ("wiki http://en.wikipedia.org/wiki/X_(y).", ["http://en.wikipedia.org/wiki/X_(y)"]),
    ("(http://a.org/b)", ["http://a.org/b"]),
    ('said "http://t.co/abcdefghij"', ["http://t.co/abcdefghij"]),
    # glued to words and to each other
    ("home.https://t.co/Abcdef1234", ["https://t.co/Abcdef1234"]),
    ("https://t.co/Abcdef1234Now", ["https://t.co/Abcdef1234"]),
    ("http://t.co/Abcdef1234@victoria", ["http://t.co/Abcdef1234"]),
    ("http://t.co/ahttp://t.co/b", ["http://t.co/a", "http://t.co/b"]),
    ("streetpic.twitter.com/abcdefghij", ["pic.twitter.com/abcdefghij"]),
    ("日本http://t.co/abcdefghij日本", ["http://t.co/abcdefghij"]),
    # cut short
    ("end http://t.co/ab…", ["http://t.co/ab…"]),
    ("end http://t.c…", ["http://t.c…"]),
    ("end http://…", ["http://…"]),
    ("end http:/…", ["http:/…"]),
    ("end http:…", ["http:…"]),
    ("end http…", ["http…"]),
    ("end http: ...", ["http:"]),
    ("end http ...", ["http"]),
    ("the text ends here http", ["http"]),
    # without a scheme, or the whole of it
    ("t.co/abc pic.twitter.com/abc", ["t.co/abc", "pic.twitter.com/abc"]),
    ('www.example.in/fgye" and www.example.com.', ["www.example.in/fgye", "www.example.com"]),
    ("bit.ly/aBcDe fb.me/AbC youtube.com/u", ["bit.ly/aBcDe", "fb.me/AbC", "youtube.com/u"]),
    (" ttp://tinyurl.com/abcdef", ["ttp://tinyurl.com/abcdef"]),
    # taken apart
    ("https : //t . co/Abcdef1234 http://t.co/x", ["https : //t . co/Abcdef1234", "http://t.co/x"]),
]

WITHOUT_URLS = [
    "e.g. 3.5 km/h and/or AC/DC, U.S/Canada legs...and/or",
    "use http: it is a protocol; http is one",
    "write to me@example.com or me@example.com/x, gmail.com",
    "at.company/abc awwww. www. :// :/// //",
    "RT @http_fan: hi",
]


@pytest.mark.parametrize(("text", "urls"), WITH_URLS)
def test_finds_urls(text, urls):
    assert [text[start:end] for start, end in find_urls(text)] == urls


@pytest.mark.parametrize("text", WITHOUT_URLS)
def test_leaves_other_text_alone(text):
    assert find_urls(text) == []
    assert remove_urls(text) == text


def test_removal_keeps_the_rest():
    assert remove_urls("a  http://t.co/b\tc") == "a  \tc"


@pytest.mark.parametrize(
    ("tokens", "left_over"),
    [
        (["at", "last", "http://t.co/abc"], ["at", "last", ""]),
        (["https", ":", "//t", ".", "co/Abcdef1234", "#goal"], ["", "", "", "", "", "#goal"]),
        (["http://t.co/Abcdef1234@victoria"], ["@victoria"]),
        (["(http://t.co/abcdefghij)", 'http://t.co/abcdefghij"', "http://t.co/a…"], ["", "", ""]),
        (["😂http://t.co/abcdefghij"], ["😂"]),
        (["http", "...", "http:", "…"], ["", "...", "", "…"]),
        (["\xa0", ".", "3.5", "e.g.", "//", "and/or"], ["\xa0", ".", "3.5", "e.g.", "//", "and/or"]),
        ([], []),
    ],
)
def test_tokens(tokens, left_over):
    assert remove_urls_from_tokens(tokens) == left_over


@given(st.lists(st.text(st.characters(exclude_characters=" "), min_size=1), max_size=8))
def test_tokens_lose_only_characters(tokens):
    left_over = remove_urls_from_tokens(tokens)
    assert len(left_over) == len(tokens)
    for token, rest in zip(tokens, left_over, strict=True):
        characters = iter(token)
        assert all(character in characters for character in rest)  # a subsequence


@given(st.text(alphabet="htps:/.…tco awm12(", max_size=40))
def test_places_are_ordered_and_not_empty(text):
    places = find_urls(text)
    ends = [0, *(end for _, end in places)]
    assert all(end_before <= start < end for end_before, (start, end) in zip(ends, places, strict=False))


@pytest.mark.parametrize(
    "piece", ["a.", "http:", "http://(", "t . co / ", "http ", "www.a,", "&amp;", "a-", "rt @a _ "]
)
def test_time_grows_with_length_only(piece):
    start = time.perf_counter()
    find_urls(piece * 20_000)
    find_urls("http://" + piece * 20_000)
    assert time.perf_counter() - start < 5  # quadratic matching would take minutes
