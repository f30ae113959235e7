"""The lean BERT computes what transformers' BertModel does: hidden states, losses, gradients, with and without dropout."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForTokenClassification, DistilBertConfig, DistilBertForTokenClassification

from finetune.dropout import drop_mask
from finetune.lean_bert import LeanBert
from finetune.systems.msb import MSBConfig, MSBForTokenClassification
from finetune.tagger import PieceTagger

SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "max_position_embeddings": 32,
}


def stock(**options: object) -> BertForTokenClassification:
    torch.manual_seed(1)
    config = BertConfig(**SIZES | options, num_labels=9)
    model = BertForTokenClassification(config)
    for parameter in model.parameters():  # biases and normalisation, too, shall count
        nn.init.normal_(parameter, std=0.3)
    return model


def with_shapes() -> MSBForTokenClassification:
    torch.manual_seed(2)
    model = MSBForTokenClassification(MSBConfig({"model_type": "bert", **SIZES}, word_shapes=8))
    nn.init.normal_(model.shape_embeddings.weight)
    return model


def make_batch(shapes: bool = False) -> dict[str, torch.Tensor]:
    """Three tweets of 12, 7 and 2 pieces and 5, 3 and no words, the first two with image words."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([12, 7, 2])[:, None]
    places = torch.arange(12)
    batch = {
        "input_ids_BT": torch.randint(1, 60, (3, 12), generator=generator),
        "attention_mask_BT": (places < lengths).long(),
        "token_type_ids_BT": ((places >= lengths - 2) & (places < lengths) & (lengths > 2)).long(),
        "first_piece_BW": torch.tensor([[1, 2, 4, 5, 8], [1, 3, 4, 0, 0], [0] * 5]),
        "word_mask_BW": torch.arange(5) < torch.tensor([5, 3, 0])[:, None],
        "labels_BW": torch.randint(0, 9, (3, 5), generator=generator),
    }
    if shapes:
        batch["shape_ids_BT"] = torch.randint(0, 8, (3, 12), generator=generator)
    return batch


def plain(tagger: PieceTagger) -> PieceTagger:
    """The same weights, computed by transformers."""
    other = copy.deepcopy(tagger)
    other.lean = None
    return other


def assert_same_loss_and_gradients(lean: PieceTagger, other: PieceTagger, batch: dict[str, torch.Tensor]) -> None:
    losses = [tagger(**batch) for tagger in (lean, other)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
    for loss in losses:
        loss.backward()
    gradients = dict(other.named_parameters())
    for name, parameter in lean.named_parameters():
        if gradients[name].grad is None:
            assert parameter.grad is None, name
        else:
            torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("model", [stock, with_shapes])
def test_loss_and_gradients_are_those_of_the_stock_model(model):
    lean = PieceTagger(model()).eval()
    assert lean.lean
    assert_same_loss_and_gradients(lean, plain(lean), make_batch(shapes=model is with_shapes))


def test_one_layer_is_enough():
    lean = PieceTagger(stock(num_hidden_layers=1)).eval()
    assert_same_loss_and_gradients(lean, plain(lean), make_batch())


class GivenDropout(nn.Module):
    """Dropout by a mask that was drawn before."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask


def test_dropout_drops_the_same_where_its_masks_are_the_same(monkeypatch):
    tagger = PieceTagger(stock(attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.3)).train()
    tagger.model.dropout = nn.Identity()
    other, batch = plain(tagger), make_batch()
    tweets, pieces, words = 3, 12, 5
    masks = list(tagger.lean.masks(tweets, pieces, words, torch.float32))
    assert [mask is None for mask in masks] == [False] + [True, False, False] * 3
    monkeypatch.setattr(tagger.lean, "masks", lambda *_: iter(masks))

    def of_all_pieces(mask: torch.Tensor) -> torch.Tensor:
        """Where pieces but the words' first are not computed, what is dropped of them does not matter."""
        if len(mask) == tweets * pieces:
            return mask.view(tweets, pieces, -1)
        whole = torch.ones(tweets, pieces, mask.shape[1])
        places = batch["first_piece_BW"][:, :, None].expand(-1, -1, mask.shape[1])
        # At padding, where the first piece is said to be piece 0, there is no loss: what stands there is overwritten.
        return whole.scatter(1, places.flip(1), mask.view(tweets, words, -1).flip(1))

    bert = other.model.bert
    bert.embeddings.dropout = GivenDropout(of_all_pieces(masks[0]))
    for number, layer in enumerate(bert.encoder.layer):
        layer.attention.output.dropout = GivenDropout(of_all_pieces(masks[2 + 3 * number]))
        layer.output.dropout = GivenDropout(of_all_pieces(masks[3 + 3 * number]))
    assert_same_loss_and_gradients(tagger, other, batch)


def test_dropout_of_the_attention_drops_shares_of_it(monkeypatch):
    """With the softmax's result dropped as a whole in the only layer, nothing but the values' bias is attended to."""
    tagger = PieceTagger(stock(num_hidden_layers=1, hidden_dropout_prob=0.0)).train()
    masks = list(tagger.lean.masks(3, 12, 5, torch.float32))
    assert [mask is None for mask in masks] == [True, False, True, True] and masks[1].shape == (3, 3, 5, 12)
    monkeypatch.setattr(tagger.lean, "masks", lambda *_: iter([None, torch.zeros_like(masks[1]), None, None]))
    found = tagger.lean(*lean_inputs(tagger, make_batch()))
    layer = tagger.model.bert.encoder.layer[0]
    layer.attention.output.dense.weight.data.zero_()
    monkeypatch.setattr(tagger.lean, "masks", lambda *_: iter([None] * 4))
    torch.testing.assert_close(found, tagger.lean(*lean_inputs(tagger, make_batch())))


def lean_inputs(tagger: PieceTagger, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    embedded_BTH = tagger.model.get_input_embeddings()(batch["input_ids_BT"])
    return [embedded_BTH, *(batch[name] for name in ("attention_mask_BT", "token_type_ids_BT", "first_piece_BW"))]


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_masks_keep_the_mean(rate):
    torch.manual_seed(5)
    first, second = drop_mask([(400, 500), (7,)], rate, torch.float32)
    assert first.shape == (400, 500) and second.shape == (7,)
    assert set(first.unique().tolist()) == {0.0, first.max().item()}
    assert abs(first.mean() - 1) < 5 * (rate / (1 - rate) / first.numel()) ** 0.5
    assert drop_mask([(2,), (3,)], 0.0, torch.float32) == [None, None]


def test_under_autocast_it_computes_in_bf16_and_rounds_the_weights_once_where_they_do_not_change():
    tagger = PieceTagger(stock()).eval()
    batch = make_batch()
    inputs = {name: x for name, x in batch.items() if name not in ("word_mask_BW", "labels_BW")}
    with torch.no_grad():
        exact = tagger.emissions(**inputs)
        with torch.autocast("cpu", torch.bfloat16), tagger.unchanged():
            rounded = tagger.emissions(**inputs)
            assert rounded.dtype == torch.float32
            assert not torch.equal(rounded, exact)
            torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.3)
            tagger.model.bert.encoder.layer[0].output.dense.weight.zero_()
            assert torch.equal(tagger.emissions(**inputs), rounded)  # kept, as was promised
        with torch.autocast("cpu", torch.bfloat16):
            assert not torch.allclose(tagger.emissions(**inputs), rounded)
        changed = tagger.emissions(**inputs)
    assert not torch.allclose(changed, exact)
    tagger.lean = None
    with torch.no_grad():
        torch.testing.assert_close(changed, tagger.emissions(**inputs), rtol=1e-5, atol=1e-5)


def test_other_encoders_are_left_to_transformers():
    assert LeanBert.of(stock(hidden_act="relu")) is None
    distil = DistilBertForTokenClassification(DistilBertConfig(vocab_size=60, dim=24, hidden_dim=40, n_heads=3))
    assert PieceTagger(distil).lean is None
    assert LeanBert.of(stock(is_decoder=True)) is None
    adapted = stock()
    adapted.bert.encoder.layer[1].output.dense.__class__ = type("Adapted", (nn.Linear,), {})
    assert LeanBert.of(adapted) is None


def test_weights_are_not_kept_for_what_needs_their_gradients():
    tagger, batch = PieceTagger(stock()).eval(), make_batch()
    with tagger.unchanged():
        with torch.no_grad(), tagger.unchanged():
            tagger(**batch)
        assert tagger.lean.kept_weights is not None
        tagger(**batch).backward()
    assert tagger.model.bert.encoder.layer[0].output.dense.weight.grad.any()
    assert tagger.lean.kept_weights is None
