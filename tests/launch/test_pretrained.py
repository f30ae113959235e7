"""Encoders and tokenizers that must be refused before anything is trained from them."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import make_encoder
from transformers import AutoModelForMaskedLM, AutoModelForTokenClassification

from launch.errors import InputError
from launch.pretrained import check_vocabulary, encoder_input, load_pretrained, load_tokenizer


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return make_encoder(tmp_path / "encoder")


def test_a_new_head_is_named_and_a_complete_encoder_is_taken(encoder):
    _, new = load_pretrained(AutoModelForTokenClassification, str(encoder), ("classifier.",))
    assert sorted(new) == ["classifier.bias", "classifier.weight"]
    model, new = load_pretrained(AutoModelForMaskedLM, str(encoder), ("cls.",))
    assert new == []
    check_vocabulary(str(encoder), model, load_tokenizer(str(encoder)))


def test_an_encoder_that_would_be_random_is_refused(encoder):
    weights = load_file(encoder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1.attention" not in name}
    assert len(kept) < len(weights)
    save_file(kept, encoder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"encoder parameters are not in its weights .*layer\.1\.attention"):
        load_pretrained(AutoModelForMaskedLM, str(encoder), ("cls.",))


def test_weights_of_another_shape_are_refused(encoder):
    weights = load_file(encoder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.0.intermediate.dense.bias"))
    save_file(weights | {name: weights[name][:-1].clone()}, encoder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="layer.0.intermediate.dense.bias"):
        load_pretrained(AutoModelForMaskedLM, str(encoder), ("cls.",))


def test_a_pickle_is_not_loaded(encoder):
    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        load_pretrained(AutoModelForMaskedLM, str(encoder), ("cls.",))


def test_a_tokenizer_with_more_entries_than_embeddings_is_refused(encoder):
    tokenizer = load_tokenizer(str(encoder))
    model, _ = load_pretrained(AutoModelForMaskedLM, str(encoder), ("cls.",))
    tokenizer.add_tokens(["entirelynew"])
    with pytest.raises(InputError, match="embeddings"):
        check_vocabulary(str(encoder), model, tokenizer)


def test_a_folder_without_a_vocabulary_is_refused(encoder):
    (encoder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="tokenizer"):
        load_tokenizer(str(encoder))


def test_what_an_encoder_setting_names(tmp_path, encoder):
    assert encoder_input(str(encoder)) == encoder
    assert encoder_input("google/bert_uncased_L-2_H-128_A-2") == "hub:google/bert_uncased_L-2_H-128_A-2"
    shutil.rmtree(encoder)
    assert encoder_input(str(encoder)) == encoder, "a folder that another stage is yet to make"
