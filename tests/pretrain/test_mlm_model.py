"""The packed model with its sparse output layer equals the stock model on each text alone, with the dense one."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import bert_config, make_encoder
from tiny_store import make_store, one_by_one, tweet_lengths
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CamembertConfig,
    CamembertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from launch.errors import InputError
from launch.loop import Batch
from launch.precision import RoundedOnce
from pretrain import varlen_attention
from pretrain.masking import Masking
from pretrain.mlm import make_batch
from pretrain.model import PackedMaskedLanguageModel, load_masked_language_model
from pretrain.output_layer import NO_LABEL
from pretrain.packing import pack
from pretrain.token_store import TokenStore

VOCABULARY, ROW = 50, 24
MASKING = Masking(rate=0.3, whole_word=True, mask_token=4, vocabulary_size=VOCABULARY, seed=0)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
MODELS = {
    "bert": lambda: BertForMaskedLM(BertConfig(max_position_embeddings=ROW, **SIZES)),
    # Two positions more than a row has tokens: these count from pad_token_id + 1.
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(max_position_embeddings=ROW + 2, pad_token_id=1, **SIZES)),
    "xlm-roberta": lambda: XLMRobertaForMaskedLM(
        XLMRobertaConfig(max_position_embeddings=ROW + 2, pad_token_id=1, **SIZES)
    ),
    "camembert": lambda: CamembertForMaskedLM(
        CamembertConfig(max_position_embeddings=ROW + 2, pad_token_id=1, **SIZES)
    ),
}


def make_model(architecture: str, attention: str = "sdpa", dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A stock model whose every parameter matters (biases are not zero)."""
    torch.manual_seed(0)
    model = MODELS[architecture]().to(dtype)
    model.set_attn_implementation(attention)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def make_texts(lengths: list[int], seed: int = 0) -> TokenStore:
    return make_store(lengths, VOCABULARY, seed)


def make_rows(store: TokenStore) -> list[np.ndarray]:
    return pack(np.arange(len(store)), store.lengths(), ROW)


def packed(
    model: PreTrainedModel, rows: list[np.ndarray], store: TokenStore, epoch: int, empty_rows: int = 2
) -> tuple[torch.Tensor, int]:
    """The packed model's loss, with static padding, and the number of masked tokens."""
    batch = make_batch(rows, store, ROW, len(rows) + empty_rows, MASKING, epoch)
    weight = int(batch.pop("weight"))
    return PackedMaskedLanguageModel(model)(**batch), weight


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# The loss itself is taken in fp32 on the packed side, as under bf16: this bounds the agreement.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


def varlen_attn(query, key, value, starts, starts_of_keys, longest, longest_key, *, scale):
    """What torch's kernel computes by its documentation; the kernel itself runs on GPUs alone."""
    assert starts.dtype == torch.int32 and starts is starts_of_keys and longest == longest_key == ROW
    assert starts[0] == 0 and starts[-1] == len(query)
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(x[a:b].transpose(0, 1) for x in (query, key, value)), scale=scale
        )
        for a, b in itertools.pairwise(starts.tolist())
        if b > a
    ]
    return torch.cat(parts, dim=1).transpose(0, 1)


@pytest.fixture(autouse=True)
def varlen_on_a_cpu(monkeypatch):
    monkeypatch.setattr(varlen_attention, "varlen_attn", varlen_attn)


@pytest.mark.parametrize("attention", ["sdpa", "eager", varlen_attention.NAME])
@pytest.mark.parametrize("architecture", MODELS)
def test_loss_and_all_gradients_equal_the_stock_models(architecture, attention):
    model = make_model(architecture, attention)
    assert model.config._attn_implementation == attention
    store = make_texts([5, 3, ROW, 9, 2, 11, 7, 3, 18, 6])
    rows = make_rows(store)
    sparse, weight = packed(model, rows, store, epoch=1)
    sparse_gradients = gradients(model, sparse)
    dense = one_by_one(make_model(architecture), rows, store, MASKING, ROW, epoch=1)
    assert 10 < weight < len(rows) * MASKING.most(1, ROW), "some places are filled up"
    torch.testing.assert_close(sparse.double(), dense, **TOLERANCE)
    stock = make_model(architecture)
    dense_gradients = gradients(stock, one_by_one(stock, rows, store, MASKING, ROW, epoch=1))
    assert dense_gradients.keys() == sparse_gradients.keys()
    for name, expected in dense_gradients.items():
        # Keys are shifted alike at every position by their bias, which softmax does not see: its gradient is zero.
        assert expected.abs().max() > 1e-3 or name.endswith("key.bias"), name
        torch.testing.assert_close(
            sparse_gradients[name], expected, **TOLERANCE, msg=lambda m, name=name: f"{name}: {m}"
        )
    with torch.no_grad():
        torch.testing.assert_close(packed(model, rows, store, epoch=1)[0].double(), dense, **TOLERANCE)


BERT = make_model("bert")
BERT_EAGER = make_model("bert", "eager")


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(2, ROW), min_size=1, max_size=12),
    epoch=st.integers(0, 99),
    empty_rows=st.integers(0, 3),
)
def test_the_loss_is_equal_for_any_lengths(lengths, epoch, empty_rows):
    store = make_texts(lengths, seed=epoch)
    rows = make_rows(store)
    with torch.no_grad():
        expected = one_by_one(BERT, rows, store, MASKING, ROW, epoch)
        for model in (BERT, BERT_EAGER):
            loss, _ = packed(model, rows, store, epoch, empty_rows)
            torch.testing.assert_close(loss.double(), expected, **TOLERANCE)


def test_batches_have_one_shape_whatever_the_rows():
    store = make_texts([ROW, 5, 3, 9, 2, 0, 11, 7, 2, 2])
    whole = make_batch(make_rows(store), store, ROW, 6, MASKING, epoch=0)
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.items()}
    places = 6 * round(0.3 * ROW)
    assert shapes == {
        **dict.fromkeys(("tokens_RT", "positions_RT", "samples_RT"), (6, ROW)),
        **dict.fromkeys(("masked_M", "labels_M"), (places,)),
        "weight": (),
    }
    assert all(tensor.dtype == torch.int64 for tensor in whole.values())
    labelled = whole["labels_M"] != NO_LABEL
    assert 0 < labelled.sum() == whole["weight"] < places and labelled[: labelled.sum()].all()
    for row in ([np.array([1, 2])], [np.array([4])], [np.array([5])], [np.array([8, 9])]):
        few = make_batch(row, store, ROW, 6, MASKING, epoch=0)
        assert {name: tuple(tensor.shape) for name, tensor in few.items()} == shapes
        assert few["weight"] == (few["labels_M"] != NO_LABEL).sum()


@pytest.mark.parametrize("model", [BERT, BERT_EAGER], ids=["sdpa", "eager"])
def test_texts_of_a_row_do_not_see_each_other(model):
    """Another neighbour in the row leaves a text's loss as it was; were positions not to restart, it would differ."""
    alone, both = make_texts([8]), make_texts([8, 9])
    assert np.array_equal(alone.tokens, both.tokens[:8])
    batch = make_batch([np.array([1, 0])], both, ROW, 1, MASKING, epoch=3)
    batch.pop("weight")
    of_first = (batch["samples_RT"].flatten()[batch["masked_M"]] == 0) & (batch["labels_M"] != NO_LABEL)
    batch["labels_M"] = torch.where(of_first, batch["labels_M"], NO_LABEL)
    assert of_first.any()
    # The same tokens with the same masks, without the neighbour.
    here = batch["samples_RT"].flatten() == 0
    place_of = torch.cumsum(here, 0) - 1
    single: Batch = {name: batch[name].flatten()[here][None] for name in ("tokens_RT", "positions_RT", "samples_RT")}
    single |= {"masked_M": place_of[batch["masked_M"][of_first]], "labels_M": batch["labels_M"][of_first]}
    wrapped = PackedMaskedLanguageModel(model)
    expected = wrapped(**single)
    torch.testing.assert_close(wrapped(**batch), expected, **TOLERANCE)
    further = batch | {"positions_RT": torch.arange(ROW)[None]}
    assert not torch.allclose(wrapped(**further), expected, rtol=1e-3)


def test_without_a_masked_token_loss_and_gradients_are_zero():
    store = make_texts([2, 2, 0])
    loss, weight = packed(BERT, make_rows(store), store, epoch=0)
    assert weight == 0 and loss.item() == 0.0
    assert all(not gradient.any() for gradient in gradients(BERT, loss).values())


LONG_ROW = 128
LENGTHS = tweet_lengths(370)


def long_batch() -> tuple[Batch, int]:
    """As many tokens as an optimizer step has."""
    store = make_texts(LENGTHS.tolist())
    masking = Masking(rate=0.15, whole_word=True, mask_token=4, vocabulary_size=VOCABULARY, seed=0)
    rows = pack(np.arange(len(store)), store.lengths(), LONG_ROW)
    batch = make_batch(rows, store, LONG_ROW, len(rows) + 1, masking, epoch=0)
    return batch, int(batch.pop("weight"))


def long_model(attention: str) -> PackedMaskedLanguageModel:
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(max_position_embeddings=LONG_ROW, **SIZES))
    model.set_attn_implementation(attention)
    return PackedMaskedLanguageModel(model)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_in_bf16_loss_and_gradients_are_those_of_fp32_but_for_rounding(attention):
    """Of 8,000 tokens: what all of them have in common (the token type, say) has the sum of 8,000 gradients."""
    batch, weight = long_batch()
    model = long_model(attention)
    expected_loss = model(**batch)
    expected = gradients(model, expected_loss / weight)
    rounded = RoundedOnce(model, torch.bfloat16)
    loss = rounded(**batch)
    assert loss.dtype == torch.float32 and loss.item() != expected_loss.item()
    torch.testing.assert_close(loss, expected_loss, rtol=1e-3, atol=0)
    found = gradients(rounded, loss / weight)
    assert {name.removeprefix("inner.") for name in found} == expected.keys()
    assert "model.bert.embeddings.word_embeddings.weight" in expected, "tied to the output layer's weight"
    for name, gradient in expected.items():
        one = found[f"inner.{name}"]
        assert one.dtype == torch.float32 and one.isfinite().all(), name
        if not name.endswith("key.bias"):  # whose gradient is rounding alone
            assert (one - gradient).norm() < 0.02 * gradient.norm(), (
                name,
                float((one - gradient).norm() / gradient.norm()),
            )


@pytest.mark.parametrize("architecture", MODELS)
def test_rounding_reaches_every_architecture(architecture):
    store = make_texts([5, 3, ROW, 9, 2, 11, 7, 3, 18, 6])
    batch = make_batch(make_rows(store), store, ROW, 6, MASKING, epoch=1)
    batch.pop("weight")
    for attention in ("sdpa", "eager"):
        model = PackedMaskedLanguageModel(make_model(architecture, attention, torch.float32))
        expected = model(**batch)
        rounded = RoundedOnce(model, torch.bfloat16)
        loss = rounded(**batch)
        torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)
        found = gradients(rounded, loss)
        assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in found.values())
        assert all(gradient.any() for name, gradient in found.items() if not name.endswith("key.bias"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rounding_to_fp32_changes_nothing(attention):
    batch, _ = long_batch()
    model = long_model(attention)
    expected_loss = model(**batch)
    expected = gradients(model, expected_loss)
    rounded = RoundedOnce(model, torch.float32)
    loss = rounded(**batch)
    assert torch.equal(loss, expected_loss)
    for name, gradient in gradients(rounded, loss).items():
        assert torch.equal(gradient, expected[name.removeprefix("inner.")]), name


def test_compiled_it_computes_what_it_computes_else():
    """As `--run.compile` trains on a CPU in bf16: with the plain attention."""
    batch, weight = long_batch()
    model = long_model("eager")
    expected_loss = model(**batch)
    expected = gradients(model, expected_loss / weight)
    rounded = RoundedOnce(model, torch.bfloat16)
    rounded.compile()
    loss = rounded(**batch)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-3, atol=0)
    for name, gradient in gradients(rounded, loss / weight).items():
        reference = expected[name.removeprefix("inner.")]
        if not name.endswith("key.bias"):
            assert (gradient - reference).norm() < 0.02 * reference.norm(), name


def test_an_unsupported_architecture_is_refused():
    config = DistilBertConfig(vocab_size=VOCABULARY, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    with pytest.raises(InputError, match="type distilbert cannot be pretrained here; these can: bert, roberta"):
        PackedMaskedLanguageModel(DistilBertForMaskedLM(config))


def test_dropout_is_set_for_training_only(tmp_path):
    folder = make_encoder(tmp_path)
    without, new = load_masked_language_model(str(folder), dropout=0.0)
    assert new == [] and {m.p for m in without.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    own, _ = load_masked_language_model(str(folder), dropout=None)
    assert {m.p for m in own.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}


def test_a_head_may_be_new_and_is_named(tmp_path):
    torch.manual_seed(0)
    BertForMaskedLM(bert_config(VOCABULARY)).bert.save_pretrained(tmp_path)
    _, new = load_masked_language_model(str(tmp_path), dropout=None)
    assert new and all(name.startswith("cls.") for name in new)
