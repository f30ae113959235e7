"""Encoders that would be trained from random weights, and others that cannot be used, are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import bert_config, make_encoder, make_tokenizer
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    RobertaConfig,
    RobertaTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from launch.errors import InputError
from launch.pretrained import (
    check_vocabulary,
    encoder_input,
    load_config,
    load_pretrained,
    load_tokenizer,
    longest_input,
    refuse_twice,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def encoder(whole, tmp_path) -> Path:
    """A copy to do harm to."""
    return Path(shutil.copytree(whole, tmp_path / "encoder"))


def load(folder: Path, model_class=AutoModelForMaskedLM):
    return load_pretrained(model_class, str(folder), ("cls.",))


def change_weights(folder: Path, change) -> None:
    weights = load_file(str(folder / "model.safetensors"))
    changed = dict(item for name, tensor in weights.items() for item in change(name, tensor))
    save_file(changed, str(folder / "model.safetensors"), metadata={"format": "pt"})


def change_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def test_a_whole_encoder_is_loaded_as_it_is(encoder):
    model, new = load(encoder)
    assert new == []
    expected = load_file(str(encoder / "model.safetensors"))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "change",
    [
        lambda name, tensor: [(name, tensor)] if "encoder.layer.1." not in name else [],
        lambda name, tensor: [(name, tensor)] if "word_embeddings" not in name else [],
        lambda name, tensor: [(f"other.{name}", tensor)],
        lambda name, tensor: [(name.replace("bert.", "roberta."), tensor)],
    ],
    ids=["a layer is missing", "embeddings are missing", "other names", "another architecture's names"],
)
def test_a_silently_random_encoder_is_refused(encoder, change):
    change_weights(encoder, change)
    with pytest.raises(InputError, match=r"encoder parameters are not in its weights \(bert\..*would be random"):
        load(encoder)


def test_weights_of_another_shape_are_refused(encoder):
    change_config(encoder, intermediate_size=64)
    with pytest.raises(InputError, match="encoder parameters are not in its weights .*intermediate.dense"):
        load(encoder)


def test_a_head_may_be_new_and_so_may_the_pooler_that_nothing_reads(encoder):
    change_weights(encoder, lambda name, tensor: [(name, tensor)] if not name.startswith("cls.") else [])
    _, new = load(encoder)
    assert new and all(name.startswith("cls.") for name in new)
    _, new = load(encoder, AutoModel)
    assert new and all(name.startswith("pooler.") for name in new)


def test_another_head_is_new_and_named(encoder):
    _, new = load_pretrained(BertForTokenClassification, str(encoder), ("classifier.",))
    assert new == ["classifier.bias", "classifier.weight"]


def test_a_head_of_another_shape_is_new(encoder):
    torch.manual_seed(0)
    BertForTokenClassification(bert_config(200, num_labels=3)).save_pretrained(encoder)
    _, new = load_pretrained(BertForTokenClassification, str(encoder), ("classifier.",), num_labels=5)
    assert new == ["classifier.bias", "classifier.weight"]
    with pytest.raises(InputError, match="classifier.weight"):
        load_pretrained(BertForTokenClassification, str(encoder), (), num_labels=5)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}"])
def test_rubbish_for_weights_is_refused(encoder, content):
    (encoder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="its model cannot be loaded"):
        load(encoder)


def test_cut_weights_are_refused(encoder):
    file = encoder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="its model cannot be loaded"):
        load(encoder)


def test_pickled_weights_are_refused(encoder):
    (encoder / "model.safetensors").unlink()
    torch.save(BertForMaskedLM(bert_config(200)).state_dict(), encoder / "pytorch_model.bin")
    with pytest.raises(InputError, match="Give a folder with a Hugging Face model in safetensors"):
        load(encoder)


@pytest.mark.parametrize("content", [None, "{", "{}", '{"model_type": "nonsense"}'])
def test_configurations_that_are_refused(encoder, content):
    (encoder / "config.json").unlink()
    if content is not None:
        (encoder / "config.json").write_text(content)
    for function in (load, lambda folder: load_config(str(folder))):
        with pytest.raises(InputError, match=f"^{encoder}: its (model|configuration) cannot be loaded"):
            function(encoder)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    BertForMaskedLM(bert_config(200)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="its tokenizer has no vocabulary"):
        load_tokenizer(str(tmp_path))


def test_a_hub_id_without_a_network_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for function in (load_tokenizer, load_config):
        with pytest.raises(InputError, match=r"^nobody/nothing: its .* \(needs a network\)") as raised:
            function("nobody/nothing")
        assert "\n" not in str(raised.value)


def test_a_tokenizer_bigger_than_the_embeddings_is_refused(encoder):
    tokenizer, (model, _) = load_tokenizer(str(encoder)), load(encoder)
    check_vocabulary("it", model, tokenizer)
    tokenizer.add_tokens(["[NEW]"])
    with pytest.raises(InputError, match="the tokenizer has 201 entries but the encoder only 200 embeddings"):
        check_vocabulary("it", model, tokenizer)


def test_embeddings_may_be_more_than_the_tokenizer_has():
    model = BertForMaskedLM(bert_config(256))
    check_vocabulary("it", model, make_tokenizer())


@pytest.mark.parametrize(
    "given, expected",
    [
        ("google/bert_uncased_L-2_H-128_A-2", "hub:google/bert_uncased_L-2_H-128_A-2"),
        ("bert-base-uncased", "hub:bert-base-uncased"),
        ("./runs", Path("./runs")),
        ("runs/mlm/encoder", Path("runs/mlm/encoder")),
        ("/made/by/a/later/stage", Path("/made/by/a/later/stage")),
        ("launch", Path("launch")),
    ],
)
def test_folders_and_hub_ids_are_told_apart(given, expected, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    assert encoder_input(given) == expected


def byte_level(folder: Path) -> Path:
    """A tokenizer as RoBERTa's is published: a word within a text has its space in front of it."""
    characters = bytes_to_unicode().values()
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *characters, "at", "la", "st", "last", "Ġat", "Ġlast"]
    merges = [("a", "t"), ("l", "a"), ("s", "t"), ("la", "st"), ("Ġ", "at"), ("Ġ", "last")]
    tokenizer = RobertaTokenizer(vocab={piece: place for place, piece in enumerate(pieces)}, merges=merges)
    tokenizer.save_pretrained(folder)
    return folder


def test_words_given_one_by_one_are_not_run_together(tmp_path):
    published = AutoTokenizer.from_pretrained(byte_level(tmp_path / "roberta"))
    loaded = load_tokenizer(str(tmp_path / "roberta"))
    loaded.save_pretrained(tmp_path / "saved")
    words = {"is_split_into_words": True, "add_special_tokens": False}
    pieces = lambda tokenizer: tokenizer.convert_ids_to_tokens(tokenizer(["at", "last"], **words)["input_ids"])  # noqa: E731
    assert pieces(published) == ["at", "last"]  # as in "atlast"
    assert pieces(loaded) == pieces(load_tokenizer(str(tmp_path / "saved"))) == ["Ġat", "Ġlast"]


def test_positions_that_roberta_counts_behind_its_padding_are_no_room():
    sizes = {"max_position_embeddings": 514, "pad_token_id": 1}
    assert longest_input(RobertaConfig(**sizes)) == 512
    assert longest_input(BertConfig(**sizes)) == 514


def test_a_model_that_is_given_twice_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    refuse_twice(["./a", "owner/a", str(tmp_path / "b")], "teachers")
    with pytest.raises(InputError, match="teachers: .*a is given twice"):
        refuse_twice(["./a", str(tmp_path / "a")], "teachers")
