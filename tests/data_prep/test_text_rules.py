"""The rules on Arrow arrays equal those of plain Python."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import text_rules
from data_prep.sources.files import post_files, read_batches
from data_prep.urls import remove_urls

PIECES = [
    "http://t.co/ab1",
    "https://t.co/x",
    "HTTP://T.CO/a",
    "www.a.com",
    "t.co/abc",
    "pic.twitter.com/a1",
    "http",
    "…",
]
PIECES += [" ", "\n", "\x85", "\u2028", "\xa0", "a", "word", "e.g.", "3.5", "@", "/", "é", "日本", "😂", ":", "http:/"]
texts = st.lists(st.lists(st.sampled_from(PIECES), max_size=9).map("".join), min_size=1, max_size=20)


def plain(text: str) -> str:
    return " ".join(remove_urls(text).split())


def has_words(text: str, count: int) -> bool:
    return sum(any(map(str.isalnum, word)) for word in text.split(" ")) >= count


def cleaned(array: pa.Array) -> pa.Array:
    return text_rules.with_single_spaces(text_rules.without_urls(array))


@settings(deadline=None, max_examples=300)
@given(texts=texts, count=st.integers(0, 4))
def test_urls_spaces_and_word_counts(texts, count):
    clean = cleaned(pa.array(texts, pa.string()))
    assert clean.to_pylist() == [plain(text) for text in texts]
    assert text_rules.have_words(clean, count).to_pylist() == [has_words(text, count) for text in clean.to_pylist()]


def test_urls_of_real_tweets(shared_data):
    for batch in read_batches(post_files(shared_data / "tweets")):
        part = batch["text"].slice(0, 8000)
        assert cleaned(part).to_pylist() == [plain(text) for text in part.to_pylist()]


@pytest.mark.parametrize(
    "text",
    [
        "in 1999 we won 10-9",
        "call 911",
        "#2023 2024-2025",
        "id 1234567890123",
        "@bob a@b",
        "3.5 5,000,000 users",
        "12:30-14:00",
    ],
)
def test_what_is_not_sensitive_stays(text):
    assert text_rules.with_sensitive_masked(pa.array([text])).to_pylist() == [text]


@pytest.mark.parametrize(
    "text, masked",
    [
        ("call 555-123-4567 555-987-6543 now", "call [phone] [phone] now"),
        ("555-123-4567\n555-987-6543", "[phone]\n[phone]"),
        ("(555) 123-4567 (555) 987-6543", "[phone] [phone]"),
        ("0171 123 456 789 today", "[phone] today"),
        ("555-123-4567/8", "[phone]/8"),
    ],
)
def test_phone_numbers_side_by_side(text, masked):
    assert text_rules.with_sensitive_masked(pa.array([text])).to_pylist() == [masked]


def test_mentions_of_other_platforms():
    texts = pa.array(
        ["@jay.bsky.social hi", "by @some-one.example.org.", "@ann@mastodon.social: hi", "hi @ann.Nice one"]
    )
    replaced = ["@user hi", "by @user.", "@user: hi", "hi @user.Nice one"]
    assert text_rules.with_mentions(texts, "@user").to_pylist() == replaced


def test_mentions_side_by_side():
    array = pa.array(["@a@b @c_d: x@y @e"])
    assert text_rules.with_mentions(array, "@user").to_pylist() == ["@user@b @user: x@y @user"]
