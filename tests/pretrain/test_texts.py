"""Tokenized texts: what the flat arrays hold."""

import numpy as np
import pytest
from tiny_models import make_texts, make_tokenizer

import pretrain.texts
from launch.errors import InputError
from pretrain.texts import first_token_of_word, tokenize

TOKENIZER = make_tokenizer()


def test_texts_are_what_the_tokenizer_makes_of_each_alone(monkeypatch):
    monkeypatch.setattr(pretrain.texts, "TOKENIZED_AT_ONCE", 7)
    texts = ["", *make_texts(30)]
    tokenized = tokenize([f"id-{i}" for i in range(31)], texts, TOKENIZER, 1000)
    assert len(tokenized) == 31 and tokenized.ids[30] == "id-30" and tokenized.truncated == 0
    for index, text in enumerate(texts):
        span = slice(tokenized.offsets[index], tokenized.offsets[index + 1])
        assert tokenized.tokens[span].tolist() == TOKENIZER(text)["input_ids"]
        assert tokenized.lengths[index] == span.stop - span.start


def test_words_point_to_their_first_token():
    texts = make_texts(30)
    tokenized = tokenize(["x"] * 30, texts, TOKENIZER, 1000)
    for index, text in enumerate(texts):
        span = slice(tokenized.offsets[index], tokenized.offsets[index + 1])
        pieces, words = TOKENIZER.convert_ids_to_tokens(tokenized.tokens[span]), tokenized.words[span]
        assert words[0] == words[-1] == -1, "[CLS] and [SEP]"
        assert len(set(words[1:-1])) == len(text.split())
        for place in range(1, len(pieces) - 1):
            assert (words[place] == place) == (not pieces[place].startswith("##"))
            assert pieces[place].startswith("##") == (words[place] == words[place - 1])


def test_first_token_of_word():
    words = first_token_of_word([None, 0, 0, 1, 2, 2, 2, None])
    assert words.tolist() == [-1, 1, 1, 3, 4, 4, 4, -1] and words.dtype == np.int32


def test_long_texts_are_cut_and_counted():
    texts = ["ba ce di fo gu", "ba"]
    tokenized = tokenize(["long", "short"], texts, TOKENIZER, 5)
    assert tokenized.truncated == 1
    assert tokenized.lengths.tolist() == [5, 3]
    assert tokenized.tokens[4] == TOKENIZER.sep_token_id, "cut before the closing token, not with it"


def test_an_empty_split_is_refused():
    with pytest.raises(InputError, match="the split is empty"):
        tokenize([], [], TOKENIZER, 5)
