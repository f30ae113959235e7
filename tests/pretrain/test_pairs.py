"""`text [SEP] image words`: tokens as recognizers read them, and a packed loss that is the stock model's on each alone."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from test_mlm_model import MASKING, ROW, TOLERANCE, gradients, make_model
from tiny_models import make_encoder, make_ner, make_texts, make_tokenizer
from tiny_store import make_store, one_by_one
from transformers import RobertaConfig, RobertaForMaskedLM

from data_prep import mmsarcasm
from data_prep.layout import PAIRS_FEATURES, read_split, write_dataset
from data_prep.text_batches import TextBatch, iterate_texts
from finetune.features import InputFormat, encode
from launch.errors import InputError
from launch.stage import iterate_jsonl, read_manifest
from pretrain import mlm
from pretrain.cutter import Cutter, between_words
from pretrain.embedding import use_operator
from pretrain.masking import Masking
from pretrain.mlm import MLMSettings, make_batch
from pretrain.model import PackedMaskedLanguageModel
from pretrain.packing import lay_out, pack
from pretrain.token_store import SPECIAL, TokenStore
from pretrain.tokenizing import tokenize

TOKENIZER = make_tokenizer()


def image_words(count: int) -> list[list[str]]:
    """None, one, … of several pieces each."""
    words = make_texts(count, seed=7, longest=6)
    return [words[row].split()[: row % 5] for row in range(count)]


def store_of(texts: list[str], words: list[list[str]] | None, cutter: Cutter, cache: Path) -> TokenStore:
    batch = TextBatch("train", texts, words)
    return tokenize(lambda start: [batch], ["train"], f"{texts}{words}", cutter, cache)["train"]


def rows_of(store: TokenStore) -> list[tuple[list[int], int]]:
    tokens = np.split(store.tokens, store.offsets[1:-1])
    return [(row.tolist(), int(length)) for row, length in zip(tokens, store.text_lengths, strict=True)]


@pytest.mark.parametrize("maximum_length, image_length", [(64, 32), (24, 9), (12, 8)])
def test_pairs_are_tokenized_as_a_recognizer_reads_them(tmp_path, maximum_length, image_length):
    texts, words = make_texts(60), image_words(60)
    store = store_of(texts, words, Cutter(TOKENIZER, maximum_length, image_length), tmp_path)
    form = InputFormat(maximum_length, image_length)
    expected = encode([text.split() for text in texts], words, TOKENIZER, form)
    cut = 0
    for row, (tokens, text_length) in enumerate(rows_of(store)):
        whole = len(TOKENIZER(texts[row])["input_ids"])
        if words[row]:
            assert (tokens, text_length) == (expected[row].pieces, expected[row].text_length)
            image = len(TOKENIZER(form.image_words_joiner.join(words[row]))["input_ids"]) - 2
            cut += image > image_length or whole > text_length
        else:  # of which a recognizer, unlike this, leaves a place for another [SEP]
            assert tokens == TOKENIZER(texts[row], truncation=True, max_length=maximum_length)["input_ids"]
            cut += whole > maximum_length
    assert store.truncated == cut and (cut > 0) == (maximum_length < 64)


def test_the_form_is_the_recognizers_unless_told():
    settings, form = MLMSettings(encoder="e", data="d", output=Path("o")), InputFormat()
    assert (settings.image_length, settings.image_words_joiner) == (form.image_length, form.image_words_joiner)


def test_real_tweets_are_tokenized_as_a_recognizer_reads_them(shared_data, tmp_path):
    file = shared_data / "mmsarcasm" / "tweets_with_5_image_words.jsonl.gz"
    assert mmsarcasm.main([f"--input={file}", f"--output={tmp_path / 'corpus'}"]) == 0
    rows = read_split(tmp_path / "corpus", "validation", PAIRS_FEATURES).to_list()
    texts = lambda start: iterate_texts(tmp_path / "corpus", ["validation"], start=start)  # noqa: E731
    store = tokenize(texts, ["validation"], "c", Cutter(TOKENIZER, 128), tmp_path / "cache")["validation"]
    words = [row["text"].split() for row in rows]
    expected = encode(words, [row["image_words"] for row in rows], TOKENIZER, InputFormat())
    assert len(store) > 2000 and rows_of(store) == [(one.pieces, one.text_length) for one in expected]


def test_a_post_that_holds_special_tokens_holds_words():
    tokenizer = make_tokenizer()
    cut = Cutter(tokenizer, 32).cut(["ba [SEP] ce [MASK] di"])
    special = {tokenizer.sep_token_id, tokenizer.mask_token_id}
    assert [place for place, token in enumerate(cut.tokens.tolist()) if token in special] == [len(cut.tokens) - 1]


def test_without_image_words_the_store_is_that_of_the_texts(tmp_path):
    texts, left = make_texts(30), copy.deepcopy(TOKENIZER)
    left.truncation_side = "left"
    for number, tokenizer in enumerate((TOKENIZER, left)):
        cutter = Cutter(tokenizer, 16, 4)
        plain = store_of(texts, None, cutter, tmp_path / f"plain{number}")
        none = store_of(texts, [[] for _ in texts], cutter, tmp_path / f"none{number}")
        some = store_of(texts, [["ba"], *([] for _ in texts[1:])], cutter, tmp_path / f"some{number}")
        assert plain.text_lengths is None and none.text_lengths is None and plain.truncated == none.truncated
        for name in ("tokens", "kinds", "offsets"):
            assert np.array_equal(getattr(plain, name), getattr(none, name))
        assert np.array_equal(some.tokens[some.offsets[1] :], plain.tokens[plain.offsets[1] :])
        assert some.text_lengths[1:].tolist() == plain.lengths()[1:].tolist()


@pytest.mark.parametrize("joiner", [", ", " , ", " ba "])
@pytest.mark.parametrize("whole_word", [True, False])
def test_what_joins_image_words_is_never_masked(tmp_path, joiner, whole_word):
    """Commas in a text, and in an image word, are; so are words that read like the joiner."""
    texts, words = ["ce, di"] * 40, [["fo, gu", "ba", "ha je", "ki"]] * 40
    cutter = Cutter(TOKENIZER, 64, 32, joiner)
    store = store_of(texts, words, cutter, tmp_path)
    length = int(store.lengths()[0])
    kinds = store.kinds[:length].tolist()
    image = TOKENIZER(joiner.join(words[0]), add_special_tokens=False, return_offsets_mapping=True)
    text_length = int(store.text_lengths[0])
    assert [kind != SPECIAL for kind in kinds[:text_length]] == [False, *[True] * (text_length - 2), False]
    joiners, place = set(), 0
    for word in words[0][:-1]:
        joiners |= set(range(place + len(word), place + len(word) + len(joiner)))
        place += len(word) + len(joiner)
    expected = [not set(range(*span)) <= joiners for span in image["offset_mapping"]]
    assert [kind != SPECIAL for kind in kinds[text_length:]] == [*expected, False] and expected.count(False) == 3

    masking, seen = Masking(0.3, whole_word, TOKENIZER.mask_token_id, len(TOKENIZER), seed=1), set()
    laid = lay_out(pack(np.arange(40), store.lengths(), 64), store, 64)
    for epoch in range(20):
        _, chosen = masking.apply(laid, epoch)
        seen |= set(laid.positions[chosen].tolist())
    assert seen == {place for place, kind in enumerate(kinds) if kind != SPECIAL}


def test_no_text_is_between_words():
    assert between_words(["ab", "c"], ", ", [(0, 1), (1, 2), (2, 3), (4, 5)]).tolist() == [False, False, True, False]
    assert between_words(["ab", "c"], ", ", [(0, 2), (2, 5)]).tolist() == [False, False], (
        "a token with both is a word's"
    )
    assert between_words(["ab"], ", ", []).tolist() == []


def test_image_words_that_leave_no_room_are_refused(tmp_path):
    with pytest.raises(InputError, match="image_length: 29 leaves no room for a text in rows of 32"):
        store_of(["ba"], [["ce"]], Cutter(TOKENIZER, 32, 29), tmp_path)


def make_pairs(lengths: list[int], seed: int = 0) -> TokenStore:
    """Texts of which every other one has image words."""
    store = make_store(lengths, 50, seed)
    text_lengths = np.array([length if number % 2 else max(2, length // 2) for number, length in enumerate(lengths)])
    return TokenStore(store.tokens, store.kinds, store.offsets, text_lengths.astype(np.int32))


@pytest.mark.parametrize("attention, as_compiled", [("sdpa", False), ("eager", True)])
def test_loss_and_gradients_equal_the_stock_models_on_each_pair_alone(attention, as_compiled):
    store = make_pairs([12, 5, ROW, 9, 8, 11, 7, 3, 18, 6])
    rows = pack(np.arange(len(store)), store.lengths(), ROW)
    model, stock = make_model("bert", attention), make_model("bert")
    if as_compiled:
        use_operator(model)
    batch = make_batch(rows, store, ROW, len(rows) + 2, MASKING, epoch=1)
    assert int(batch.pop("weight")) > 10
    loss, expected = PackedMaskedLanguageModel(model)(**batch), one_by_one(stock, rows, store, MASKING, ROW, epoch=1)
    torch.testing.assert_close(loss.double(), expected, **TOLERANCE)
    found, wanted = gradients(model, loss), gradients(stock, expected)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, **TOLERANCE, msg=lambda m, name=name: f"{name}: {m}")
    assert wanted["bert.embeddings.token_type_embeddings.weight"][1].abs().max() > 1e-3
    with torch.no_grad():
        without = {name: tensor for name, tensor in batch.items() if name != "segments_RT"}
        assert not torch.allclose(PackedMaskedLanguageModel(model)(**without), loss, rtol=1e-3)


def test_segments_are_those_of_the_pairs_and_both_are_masked():
    store = make_pairs([12, 5, 20, 9, 8, 11] * 30)
    rows = pack(np.arange(len(store)), store.lengths(), ROW)
    laid = lay_out(rows, store, ROW, len(rows) + 1)
    assert (laid.segments[laid.samples < 0] == 0).all()
    for sample in range(len(store)):
        expected = np.arange(store.lengths(np.array([sample]))[0]) >= store.text_lengths[sample]
        assert np.array_equal(laid.segments[laid.samples == sample], expected)
    _, chosen = MASKING.apply(laid, epoch=0)
    words = laid.kinds != SPECIAL
    shares = [chosen[words & (laid.segments == segment)].mean() for segment in (0, 1)]
    assert all(0.2 < share < 0.5 for share in shares) and abs(shares[0] - shares[1]) < 0.1, shares


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    rows = lambda name, count: [  # noqa: E731
        {"id": f"{name}-{row}", "text": text, "image_words": words}
        for row, (text, words) in enumerate(zip(make_texts(count, 1), image_words(count), strict=True))
    ]
    write_dataset(folder, {"train": rows("t", 80), "validation": rows("v", 20)}, PAIRS_FEATURES, "Pairs")
    return folder


def arguments(encoder: Path, data: Path, output: Path, *more: str) -> list[str]:
    common = ["--row_length=64", "--tokens_per_step=256", "--run.precision=fp32", "--schedule.epochs=1"]
    return [f"--encoder={encoder}", f"--data={data}", f"--output={output}", *common, *more]


def final_loss(folder: Path) -> float:
    return [row["loss"] for row in iterate_jsonl(folder / "metrics.jsonl") if row["event"] == "evaluate"][-1]


def test_the_stage_trains_on_them_unless_told_otherwise(encoder, corpus, tmp_path):
    assert mlm.main(arguments(encoder, corpus, tmp_path / "given")) == 0
    assert mlm.main(arguments(encoder, corpus, tmp_path / "none", "--image_words=none")) == 0
    given, none = (read_manifest(tmp_path / name)["facts"]["data"]["train"] for name in ("given", "none"))
    assert (given["has_image_words"], none["has_image_words"]) == (True, False)
    assert none["tokens"] == sum(len(TOKENIZER(text)["input_ids"]) for text in make_texts(80, 1)) < given["tokens"]
    assert final_loss(tmp_path / "given") != final_loss(tmp_path / "none")


def test_the_image_words_of_a_ner_data_set_are_read_too(encoder, tmp_path):
    assert mlm.main(arguments(encoder, make_ner(tmp_path / "ner", 20), tmp_path / "out")) == 0
    assert read_manifest(tmp_path / "out")["facts"]["data"]["train"]["has_image_words"]


def test_an_encoder_of_one_segment_is_refused(encoder, corpus, tmp_path, capsys):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=200, max_position_embeddings=80, pad_token_id=0, type_vocab_size=1, **sizes)
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "roberta")
    TOKENIZER.save_pretrained(tmp_path / "roberta")
    assert mlm.main(arguments(tmp_path / "roberta", corpus, tmp_path / "out")) == 2
    assert "knows one segment only" in capsys.readouterr().err
    assert mlm.main(arguments(tmp_path / "roberta", corpus, tmp_path / "out", "--image_words=none")) == 0
