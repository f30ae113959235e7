"""Words and word pieces: alignment, truncation, segments, other tweets' image words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import batch_of
from tiny_ner import make_tokenizer

from finetune import features
from finetune.features import InputFormat, encode, shuffled

TOKENIZER = make_tokenizer()
LAYOUT = InputFormat(maximum_length=20, image_length=6)

# What tokenizers do odd things with: accents that are taken off, characters that vanish, white space within a word.
CHARACTERS = "abéÉ19.!#@' \u00a0\u200d\ufe0f\u0301🎉漢"
word = st.text(CHARACTERS, min_size=1, max_size=5)


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def tokens(encoded) -> list[str]:
    return TOKENIZER.convert_ids_to_tokens(encoded.pieces)


def test_layout_of_an_input():
    [tweet] = encode([["saw", "Jordans", "!"]], [["sea", "court"]], TOKENIZER, InputFormat())
    expected = "[CLS] saw jordan ##s ! [SEP] sea , court [SEP]"
    assert " ".join(tokens(tweet)) == expected
    assert tweet.text_length == 6
    assert tweet.first_piece == [1, 2, 4]
    assert (tweet.words, tweet.words_truncated) == (3, 0)


def test_without_image_words_there_is_no_second_segment():
    [tweet] = encode([["saw"]], [[]], TOKENIZER, LAYOUT)
    assert tokens(tweet) == ["[CLS]", "saw", "[SEP]"]
    assert tweet.text_length == 3


def test_a_word_of_no_pieces_becomes_the_unknown_token():
    [tweet] = encode([["saw", "\u200d", "\ufe0f", "paris"]], [[]], TOKENIZER, LAYOUT)
    assert tokens(tweet) == "[CLS] saw [UNK] [UNK] paris [SEP]".split()
    assert tweet.first_piece == [1, 2, 3, 4]


def test_a_post_that_holds_special_tokens_holds_words():
    plain = [["saw", "[SEP]", "[PAD]", "paris"]]
    [tweet] = encode(plain, [["at [SEP] sea", "[PAD]"]], TOKENIZER, InputFormat())
    special = {TOKENIZER.sep_token_id, TOKENIZER.pad_token_id}
    assert [place for place, piece in enumerate(tweet.pieces) if piece in special] == [
        tweet.text_length - 1,
        len(tweet.pieces) - 1,
    ]
    assert len(tweet.first_piece) == 4


def test_words_that_do_not_fit_are_counted_and_the_image_words_stay():
    words = ["paris"] * 30
    [bare, with_image] = encode([words, words], [[], ["sea"]], TOKENIZER, LAYOUT)
    assert len(bare.first_piece) == 17 and bare.words_truncated == 13
    assert len(with_image.first_piece) == 16 and with_image.words_truncated == 14
    assert len(with_image.pieces) == LAYOUT.maximum_length
    assert tokens(with_image)[-3:] == ["[SEP]", "sea", "[SEP]"]
    # A word that only begins within the limit counts as read: its first piece is what carries the label.
    [split] = encode([["paris"] * 16 + ["jordans"]], [[]], TOKENIZER, LAYOUT)
    assert split.words_truncated == 0 and tokens(split)[-2:] == ["jordan", "[SEP]"]


def test_image_words_are_cut_at_their_own_limit():
    [tweet] = encode([["saw"]], [["sea"] * 20], TOKENIZER, LAYOUT)
    assert tokens(tweet) == "[CLS] saw [SEP] sea , sea , sea , [SEP]".split()


def test_the_joiner_is_a_setting():
    [tweet] = encode([["saw"]], [["sea", "court"]], TOKENIZER, InputFormat(image_words_joiner=" "))
    assert tokens(tweet)[3:] == ["sea", "court", "[SEP]"]


def test_a_negative_length_is_refused():
    with pytest.raises(ValueError, match="image_length .* negative"):
        InputFormat(16, -5)


@pytest.mark.parametrize("lengths", [(20, 17), (3, 0), (35, 32)])
def test_layouts_without_room_for_words_are_refused(lengths):
    with pytest.raises(ValueError, match="leaves no room for words"):
        InputFormat(*lengths)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.lists(word, max_size=8), st.lists(word, max_size=4)), max_size=4))
def test_equals_words_tokenized_one_by_one(tweets):
    encoded = encode([words for words, _ in tweets], [image for _, image in tweets], TOKENIZER, LAYOUT)
    assert len(encoded) == len(tweets)
    for (words, image_words), tweet in zip(tweets, encoded, strict=True):
        image = ids(", ".join(image_words))[: LAYOUT.image_length]
        room = LAYOUT.maximum_length - 3 - len(image)
        of_words = [ids(word) or [TOKENIZER.unk_token_id] for word in words]
        starts = np.cumsum([0, *map(len, of_words)])[:-1]
        text = [TOKENIZER.cls_token_id, *sum(of_words, [])[:room], TOKENIZER.sep_token_id]
        assert tweet.pieces == text + ([*image, TOKENIZER.sep_token_id] if image else [])
        assert tweet.text_length == len(text)
        assert tweet.first_piece == [start + 1 for start in starts if start < room]
        assert tweet.words == len(words)


def test_more_tweets_than_are_tokenized_at_once(monkeypatch):
    tweets = [["saw", "paris"][: i % 3] for i in range(11)]
    images = [["sea"] * (i % 2) for i in range(11)]
    together = encode(tweets, images, TOKENIZER, LAYOUT)
    monkeypatch.setattr(features, "TOKENIZED_AT_ONCE", 3)
    assert encode(tweets, images, TOKENIZER, LAYOUT) == together
    assert encode([], [], TOKENIZER, LAYOUT) == []


def test_collated_batch():
    encoded = encode([["saw", "jordans"], [], ["paris"]], [["sea"], ["sea"], []], TOKENIZER, LAYOUT)
    batch = batch_of(encoded, [[4, 5], [], [6]], TOKENIZER.pad_token_id)
    decoded = [" ".join(TOKENIZER.convert_ids_to_tokens(row)) for row in batch["input_ids_BT"].tolist()]
    assert decoded == [
        "[CLS] saw jordan ##s [SEP] sea [SEP]",
        "[CLS] [SEP] sea [SEP] [PAD] [PAD] [PAD]",
        "[CLS] paris [SEP] [PAD] [PAD] [PAD] [PAD]",
    ]
    assert batch["attention_mask_BT"].tolist() == [[1] * 7, [1] * 4 + [0] * 3, [1] * 3 + [0] * 4]
    assert batch["token_type_ids_BT"].tolist() == [[0] * 5 + [1, 1], [0, 0, 1, 1, 0, 0, 0], [0] * 7]
    assert batch["first_piece_BW"].tolist() == [[1, 2], [0, 0], [1, 0]]
    assert batch["word_mask_BW"].tolist() == [[True, True], [False, False], [True, False]]
    assert batch["labels_BW"].tolist() == [[4, 5], [0, 0], [6, 0]]
    assert int(batch["weight"]) == 3


def test_collated_labels_of_words_cut_off_are_left_out():
    encoded = encode([["paris"] * 18], [[]], TOKENIZER, LAYOUT)
    batch = batch_of(encoded, [list(range(18))], TOKENIZER.pad_token_id)
    assert batch["labels_BW"].tolist() == [list(range(17))]
    assert int(batch["weight"]) == 17


def test_collated_without_labels_and_without_any_words():
    batch = batch_of(encode([[]], [[]], TOKENIZER, LAYOUT), None, 0)
    assert "labels_BW" not in batch and "weight" not in batch
    assert batch["word_mask_BW"].tolist() == [[False]]


@given(st.integers(2, 40), st.integers(0, 2**40))
def test_shuffled_gives_every_tweet_the_words_of_another(tweets, seed):
    own = [[str(i)] for i in range(tweets)]
    others = shuffled(own, seed)
    assert sorted(others) == sorted(own)
    assert all(a != b for a, b in zip(own, others, strict=True))
    assert shuffled(own, seed) == others


def test_shuffled_depends_on_the_seed():
    own = [[str(i)] for i in range(50)]
    assert shuffled(own, 1) != shuffled(own, 2)
    assert shuffled([], 1) == []
