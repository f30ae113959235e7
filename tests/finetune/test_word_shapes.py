"""Word shapes: what each word is, where the model reads it, and that a model begins as its encoder was pretrained."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import batch_of
from tiny_ner import make_tokenizer

from finetune import ner
from finetune.features import InputFormat, encode
from finetune.ner import NERSettings, build_model
from finetune.recognizer import Recognizer
from finetune.tagger import PieceTagger
from finetune.tags import TagScheme
from finetune.word_shapes import SHAPES, shape_of

WORDS = {
    "lower": ["paris", "é", "#nba", "don't"],
    "capitalised": ["Paris", "Élise", "@Maria", "#Oslo", "O'neil"],
    "upper": ["NASA", "U.S.", "#NBA"],
    "one letter": ["A", "@B"],
    "mixed": ["McDonald", "iPhone", "eBay"],
    "digits": ["2014", "#1", "3.5"],
    "with digits": ["B2B", "1st"],
    "other": ["!", "#", "@", "", "🎉", "..."],
}
LAYOUT = InputFormat(16, 4, word_shapes=True)


@pytest.mark.parametrize("shape, word", [(shape, word) for shape, words in WORDS.items() for word in words])
def test_shapes(shape, word):
    assert SHAPES[shape_of(word)] == shape


def test_each_piece_has_the_shape_of_its_word_and_all_else_none():
    tweets = encode([["saw", "Jordans", "\u200d", "NASA"], ["A"]], [["Sea"], []], make_tokenizer(), LAYOUT)
    shape_ids_BT = batch_of(tweets, None, 0)["shape_ids_BT"]
    told = [[SHAPES[shape] for shape in row] for row in shape_ids_BT.tolist()]
    assert told[0] == "none lower capitalised capitalised other upper none none none".split()
    assert told[1] == ["none", "one letter", *["none"] * 7]


def test_a_tweet_without_words_has_the_shapes_of_no_word():
    empty, with_image, other = encode([[], [], ["Oslo"]], [[], ["sea"], []], make_tokenizer(), LAYOUT)
    assert (empty.shapes, with_image.shapes) == ([0, 0], [0, 0])
    assert batch_of([empty, with_image, other], None, 0)["shape_ids_BT"].shape == (3, 4)


def test_words_that_are_cut_off_have_no_shape():
    [tweet] = encode([["Paris"] * 30], [["sea"]], make_tokenizer(), LAYOUT)
    shapes = batch_of([tweet], None, 0)["shape_ids_BT"][0].tolist()
    assert shapes == [0, *[SHAPES.index("capitalised")] * 12, 0, 0, 0]


@pytest.fixture
def settings(encoder) -> NERSettings:
    return NERSettings(output=Path("out"), data=Path("data"), encoder=str(encoder), input=LAYOUT)


def test_a_new_model_computes_what_one_without_shapes_does_and_then_learns_them(settings):
    torch.manual_seed(3)
    model, new = build_model(settings, TagScheme("BIO"))
    assert "shape_embeddings.weight" in new
    plain, _ = build_model(replace(settings, input=InputFormat(16, 4)), TagScheme("BIO"))
    plain.load_state_dict(model.state_dict(), strict=False)
    batch = batch_of(encode([["saw", "Jordans"]], [[]], make_tokenizer(), LAYOUT), [[0, 1]], 0)
    del batch["weight"]
    unread = {name: x for name, x in batch.items() if name != "shape_ids_BT"}
    tagger = PieceTagger(model).eval()
    loss = tagger(**batch)
    torch.testing.assert_close(loss, PieceTagger(plain).eval()(**unread))

    loss.backward()
    learnt = model.shape_embeddings.weight.grad.abs().sum(dim=1)
    assert {SHAPES[index] for index in learnt.nonzero().flatten().tolist()} == {"none", "lower", "capitalised"}
    with torch.no_grad():
        model.shape_embeddings.weight[SHAPES.index("capitalised")] = torch.randn(32)
    assert not torch.allclose(tagger(**batch), loss)
    with pytest.raises(ValueError, match="give shape_ids"):
        tagger(**unread)


def run(tmp_path: Path, *arguments: object) -> int:
    return ner.main([*map(str, arguments), "--output", str(tmp_path / "out"), "--schedule.epochs", "1"])


def test_what_cannot_read_shapes_is_refused(tmp_path, encoder, named, trained, capsys):
    stock = ["--encoder", encoder, "--data", named, "--input.word_shapes", "true", "--head", "softmax"]
    assert run(tmp_path, *stock) == 2
    assert "Give --head crf" in capsys.readouterr().err
    recognizer = ["--encoder", trained("crf", "BIO"), "--data", named, "--input.word_shapes", "true"]
    assert run(tmp_path, *recognizer, "--input.maximum_length", "64", "--input.image_length", "8") == 2
    assert "recognizer without word shapes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_exported_folder_reads_shapes_without_the_toolkit_s_reader(tmp_path, encoder, named):
    """By what its model card says, word for word, and with the labels that the recognizer's own reader gives."""
    layout = ["--input.word_shapes", "true", "--input.maximum_length", "64", "--input.image_length", "8"]
    assert run(tmp_path, "--encoder", encoder, "--data", named, "--image_words", "none", *layout) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    assert "shape_ids_of" in snippet
    names: dict[str, Any] = {}
    exec(snippet.replace("PATH_OR_REPOSITORY", str(tmp_path / "out")), names)
    words, encoding = names["words"], names["encoding"]
    recognizer = Recognizer.from_pretrained(tmp_path / "out")
    assert recognizer.entities(["", "http://t.co/abc"]) == [[], []]  # posts without words
    batch = recognizer.reader.read([words], [[]]).batch([0])
    pieces = int(batch["attention_mask_BT"].sum())
    assert encoding["shape_ids"].tolist() == batch["shape_ids_BT"][:, :pieces].tolist()
    assert encoding["input_ids"].tolist() == batch["input_ids_BT"][:, :pieces].tolist()
