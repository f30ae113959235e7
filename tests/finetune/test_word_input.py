"""Tweets as ids: vocabularies and their files, what is cut off and counted, and the tensors of a batch."""

import json

import pytest
import torch

from finetune.word_input import Vocabulary, WordFormat, WordReader, image_entries, load_word_reader
from finetune.word_model import ENTRIES_FROM, PADDING, UNKNOWN
from launch.errors import InputError

ROWS = [
    {"tokens": ["aab", "ba"], "image_words": ["Golden Retriever", "cat"]},
    {"tokens": ["a", "\u0131"], "image_words": ["golden  retriever", "dog", "cat"]},
]
LAYOUT = WordFormat(words=3, characters=4, image_words=2)


@pytest.fixture
def reader() -> WordReader:
    return WordReader.of(["Paris", "b\u2028c", "paris", "us"], ROWS, LAYOUT)


def test_what_is_in_the_vocabularies(reader):
    assert reader.characters.entries == ["a", "b"]  # the dotless i is there once: it trains the unknown
    assert reader.image_words.entries == ["golden retriever"]  # the second "cat" is beyond two image words
    assert reader.sizes == {"words": 6, "characters": 4, "word_length": 4, "image_words": 3}


def test_ids_of_words(reader):
    ids = [reader.words.id_of_word(word) for word in ("Paris", "paris", "PARIS", "US", "nowhere", "")]
    assert ids == [2, 4, 4, 5, UNKNOWN, UNKNOWN]


def test_a_batch(reader):
    words = [["paris", "aab", "US", "b"], ["aab"], []]
    inputs = reader.read(words, [["cat", "golden retriever", "x"], ["a golden retriever"], []])
    assert inputs.lengths == [3, 1, 0]
    assert inputs.words_truncated == [1, 0, 0]
    assert inputs.image_words_truncated == [1, 1, 0]
    batch = inputs.batch([1, 0, 2], [[7], [1, 2, 3, 4], []])
    assert batch["word_ids_BW"].tolist() == [[UNKNOWN, 0, 0], [4, UNKNOWN, 5], [0, 0, 0]]
    assert batch["word_mask_BW"].tolist() == [[True, False, False], [True] * 3, [False] * 3]
    assert batch["labels_BW"].tolist() == [[7, 0, 0], [1, 2, 3], [0, 0, 0]]
    assert int(batch["weight"]) == 4
    assert batch["image_word_ids_BI"].tolist() == [[UNKNOWN, UNKNOWN], [UNKNOWN, 2], [0, 0]]
    spelt = batch["character_ids_UC"][batch["spelling_BW"]]
    a, b = 2, 3
    assert spelt[0, 0].tolist() == spelt[1, 1].tolist() == [a, a, b, PADDING]
    assert spelt[1, 0].tolist() == [UNKNOWN, a, UNKNOWN, UNKNOWN]  # four of five characters
    assert spelt[1, 2].tolist() == [UNKNOWN, UNKNOWN, PADDING, PADDING]
    assert len(batch["character_ids_UC"]) == 3  # each distinct word once
    assert all(x.dtype in (torch.int64, torch.bool) for x in batch.values())
    alone = inputs.batch([2])
    assert alone["word_ids_BW"].tolist() == [[PADDING]] and "labels_BW" not in alone


@pytest.mark.parametrize("parts", [{"characters": 0}, {"image_words": 0}, {"characters": 0, "image_words": 0}])
def test_what_a_system_does_not_read(parts, tmp_path):
    reader = WordReader.of(["paris"], ROWS, WordFormat(**parts))
    inputs = reader.read([["paris"]], [["cat", "dog"]])
    batch = inputs.batch([0])
    assert ("character_ids_UC" in batch, "spelling_BW" in batch) == ("characters" not in parts,) * 2
    assert ("image_word_ids_BI" in batch) == ("image_words" not in parts)
    assert inputs.image_words_truncated == [0]
    reader.save(tmp_path)
    kept = {"words.txt"} | {f"{part}.txt" for part in ("characters", "image_words") if part not in parts}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_captions_and_labels():
    assert image_entries(["A man  in\na boat"]) == ["a", "man", "in", "a", "boat"]
    assert image_entries(["Golden retriever", " ", "lab coat"]) == ["golden retriever", "lab coat"]
    assert image_entries([]) == []


def config_of(reader: WordReader) -> dict:
    layout = {"words": 3, "characters": 4, "image_words": 2}
    return json.loads(json.dumps({"msb_input": layout, **reader.sizes}))


def test_a_saved_reader_comes_back(reader, tmp_path):
    reader.save(tmp_path)
    # An entry with what str.splitlines takes for the end of a line is one entry all the same.
    assert (tmp_path / "words.txt").read_bytes().decode().split("\n") == ["Paris", "b\u2028c", "paris", "us", ""]
    loaded = load_word_reader(str(tmp_path), config_of(reader))
    assert loaded.layout == reader.layout
    for name in ("words", "characters", "image_words"):
        assert getattr(loaded, name).entries == getattr(reader, name).entries


def test_vocabularies_that_are_not_the_models(reader, tmp_path):
    reader.save(tmp_path)
    (tmp_path / "characters.txt").write_text("a\n")
    with pytest.raises(InputError, match=r"characters\.txt has 1 entries, but its weights are of 2"):
        load_word_reader(str(tmp_path), config_of(reader))
    (tmp_path / "characters.txt").write_text("a\na\n")
    with pytest.raises(InputError, match=r"characters\.txt cannot be read \(an entry is there twice\)"):
        load_word_reader(str(tmp_path), config_of(reader))
    (tmp_path / "words.txt").unlink()
    with pytest.raises(InputError, match=r"words\.txt"):
        load_word_reader(str(tmp_path), config_of(reader))


def test_entries_begin_after_padding_and_the_unknown():
    vocabulary = Vocabulary(["x"])
    assert vocabulary.id_of("x") == ENTRIES_FROM == len(vocabulary) - 1
    assert {PADDING, UNKNOWN, ENTRIES_FROM} == {0, 1, 2}


@pytest.mark.parametrize("options", [{"words": 0}, {"characters": -1}, {"image_words": -1}])
def test_lengths_that_make_no_sense(options):
    with pytest.raises(ValueError, match="must be positive"):
        WordFormat(**options)
