"""Raw posts split into words as TMN's are, with their places."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.column_files import read_tmn
from data_prep.urls import find_urls
from finetune.post_words import PostWords, encodable


@pytest.mark.parametrize(
    "text, words",
    [
        ("RT @Gabriele_Corno: don't go to the U.S.A.", "RT @Gabriele _ Corno : don ' t go to the U . S . A ."),
        ("T-Mobile & AT&T, 9/11 #a@b e@mail.com", "T-Mobile & AT&T , 9/11 #a@b e@mail . com"),
        ("Elm&amp;Co &gt;&gt; $45,000 at 3.5%...", "Elm&amp ; Co &gt ; &gt ; $ 45 , 000 at 3 . 5 % . . ."),
        ('"Quoted" “quoted” (in) [brackets]!?', '" Quoted " “ quoted ” ( in ) [ brackets ] ! ?'),
        ("-Joe *New* Four• America… BKK-- a - b -- c", "- Joe * New * Four • America … BKK -- a - b -- c"),
        ("Paris🎉 📷Bookstore #elephants🐘", "Paris 🎉 📷 Bookstore #elephants 🐘"),
        ("👩‍💻👍🏽 🇫🇷 1️⃣ #️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿England", "👩‍💻👍🏽 🇫🇷 1️⃣ # ️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 England"),
        ("cafe\u0301 می‌خواهم שלום, \u200fx हिन्दी", "cafe\u0301 می‌خواهم שלום , x हिन्दी"),
        ("a\u00a0b\u200bc\ufeffd\u2028e\tf", "a b c d e f"),
        ("half \ud83d pair", "half pair"),
        ("", ""),
        (" \n\u00a0", ""),
    ],
)
def test_words(text, words):
    post = PostWords.of_text(text)
    assert post.words == words.split(" ") if words else post.words == []
    assert [text[start:end] for start, end in post.slots] == post.words


def test_urls_are_slots_but_no_words():
    text = "saw http://t.co/abc, pic.twitter.com/x Paris"
    post = PostWords.of_text(text)
    assert post.words == ["saw", ",", "Paris"]
    assert [text[start:end] for start, end in post.slots] == "saw http://t.co/abc , pic.twitter.com/x Paris".split()
    assert post.slot_of == [0, 2, 4]
    assert PostWords.of_text("http://t.co/abc").words == []


def test_tokens_keep_their_places_and_lose_their_urls():
    tokens = ["saw", "https", ":", "//t", ".", "co/abc", "http://t.co/Icx262EgEU@victoria", "", "New York", "\ud83d"]
    post = PostWords.of_tokens(tokens)
    assert post.text == " ".join(tokens)
    assert [post.text[start:end] for start, end in post.slots] == tokens
    assert post.words == ["saw", "@victoria", "New York", "\ufffd"]
    assert post.slot_of == [0, 6, 8, 9]


def test_encodable_keeps_lengths():
    assert encodable("a\ud83d\udc00b🎉") == "a\ufffd\ufffdb🎉"


@settings(max_examples=300)
@given(st.text(st.one_of(st.characters(), st.sampled_from("aé#@_-/&;.'\u200d\ufe0f🎉 ")), max_size=40))
def test_any_text(text):
    """Slots are in order, apart, without white space, and hold every letter and digit."""
    post = PostWords.of_text(text)
    end = 0
    for start, stop in post.slots:
        assert end <= start < stop <= len(text)
        assert not any(character.isalnum() for character in text[end:start])
        end = stop
    assert not any(character.isalnum() for character in text[end:])
    assert [encodable(text[start:stop]) for start, stop in (post.slots[slot] for slot in post.slot_of)] == post.words
    assert not any(character.isspace() for word in post.words for character in word)


@pytest.mark.parametrize(
    "piece", ["a.", "/", "http ", "-", "a/", "http://", "e\u0301", "()", "co/a ", "&amp;", "@", "🎉"]
)
def test_long_texts_take_no_long_time(piece):
    started_at = time.process_time()
    PostWords.of_text(piece * 20_000)
    assert time.process_time() - started_at < 5


def test_splits_as_tmn_does(shared_data):
    """The words of TMN's tweets, joined by spaces, come back but where the docstring says that they don't."""
    same = tweets = 0
    for tweet in read_tmn(shared_data / "tmn" / "train.txt", ("PER", "LOC", "ORG", "OTHER")):
        # TMN's splitter left alone what follows a URL.
        text = " ".join(tweet.tokens)
        before = text[: min((start for start, _ in find_urls(text)), default=len(text))]
        tweets += 1
        same += PostWords.of_text(before).words == before.split(" ")[: -1 if before.endswith(" ") else None]
    assert tweets == 4000
    assert same / tweets > 0.97
