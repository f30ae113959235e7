"""The packed model with its sparse output layer equals the stock model on each text alone, with the dense one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import bert_config, make_encoder
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
from pretrain.masking import Masking
from pretrain.mlm import make_batch
from pretrain.model import PackedMaskedLanguageModel, load_masked_language_model
from pretrain.packing import pack
from pretrain.texts import TokenizedTexts

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


def make_model(architecture: str) -> PreTrainedModel:
    """A stock model in double precision whose every parameter matters (biases are not zero)."""
    torch.manual_seed(0)
    model = MODELS[architecture]().double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def make_tokenized(lengths: list[int], seed: int = 0) -> TokenizedTexts:
    """Random texts, words of one or two pieces."""
    draw = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = draw.integers(5, VOCABULARY, offsets[-1]).astype(np.int32)
    words = [np.r_[-1, 1 + np.arange(n - 2) // 2 * 2, -1] for n in lengths]
    return TokenizedTexts([str(i) for i in range(len(lengths))], tokens, np.concatenate(words), offsets, truncated=0)


def one_by_one(model: PreTrainedModel, texts: TokenizedTexts, epoch: int) -> torch.Tensor:
    """The stock model's loss, summed over masked tokens: each text alone, logits at every position, labels -100."""
    total = torch.zeros((), dtype=torch.float64)
    for sample in range(len(texts)):
        span = slice(texts.offsets[sample], texts.offsets[sample + 1])
        tokens, words = texts.tokens[span].astype(np.int64), texts.words[span]
        masked, chosen = MASKING.apply(tokens, words, np.full_like(tokens, sample), np.arange(len(tokens)), epoch)
        if chosen.any():
            labels = torch.from_numpy(np.where(chosen, tokens, -100))[None]
            mean = model(input_ids=torch.from_numpy(masked)[None], labels=labels).loss
            total = total + mean * int(chosen.sum())
    return total


def packed(model: PreTrainedModel, texts: TokenizedTexts, epoch: int) -> tuple[torch.Tensor, int]:
    batch = make_batch(pack(np.arange(len(texts)), texts.lengths, ROW), texts, ROW, MASKING, epoch)
    weight = int(batch.pop("weight"))
    return PackedMaskedLanguageModel(model)(**batch), weight


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# The loss itself is taken in fp32 on the packed side, as under bf16: this bounds the agreement.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


@pytest.mark.parametrize("architecture", MODELS)
def test_loss_and_all_gradients_equal_the_stock_models(architecture):
    model = make_model(architecture)
    texts = make_tokenized([5, 3, ROW, 9, 2, 11, 7, 3, 18, 6])
    sparse, weight = packed(model, texts, epoch=1)
    sparse_gradients = gradients(model, sparse)
    dense = one_by_one(model, texts, epoch=1)
    dense_gradients = gradients(model, dense)
    assert weight > 10
    torch.testing.assert_close(sparse.double(), dense, **TOLERANCE)
    for name, expected in dense_gradients.items():
        # Keys are shifted alike at every position by their bias, which softmax does not see: its gradient is zero.
        assert expected.abs().max() > 1e-3 or name.endswith("key.bias"), name
        torch.testing.assert_close(
            sparse_gradients[name], expected, **TOLERANCE, msg=lambda m, name=name: f"{name}: {m}"
        )


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(2, ROW), min_size=1, max_size=12), epoch=st.integers(0, 99))
def test_the_loss_is_equal_for_any_lengths(lengths, epoch):
    texts = make_tokenized(lengths, seed=epoch)
    with torch.no_grad():
        loss, _ = packed(BERT, texts, epoch)
        torch.testing.assert_close(loss.double(), one_by_one(BERT, texts, epoch), **TOLERANCE)


BERT = make_model("bert")


def test_texts_of_a_row_do_not_see_each_other():
    """Another neighbour in the row leaves a text's loss as it was; were positions not to restart, it would differ."""
    alone = make_tokenized([8])
    both = make_tokenized([8, 9])
    assert np.array_equal(alone.tokens, both.tokens[:8])
    batch = make_batch([np.array([1, 0])], both, ROW, MASKING, epoch=3)
    batch.pop("weight")
    of_first = batch["samples_RT"].flatten()[batch["masked_M"]] == 0
    batch["masked_M"], batch["labels_M"] = batch["masked_M"][of_first], batch["labels_M"][of_first]
    expected, weight = packed(BERT, alone, epoch=3)
    assert weight == len(batch["masked_M"]) > 0
    torch.testing.assert_close(PackedMaskedLanguageModel(BERT)(**batch), expected, **TOLERANCE)


def test_without_a_masked_token_loss_and_gradients_are_zero():
    texts = make_tokenized([2, 2])
    loss, weight = packed(BERT, texts, epoch=0)
    assert weight == 0 and loss.item() == 0.0
    assert all(not gradient.any() for gradient in gradients(BERT, loss).values())


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
