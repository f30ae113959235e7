import pytest
import torch
from torch import nn

from pretrain.embedding import OperatorEmbedding, use_operator


class Model(nn.Module):
    """Words, positions and a tied output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(11, 8, padding_idx=0)
        self.positions = nn.Embedding(5, 8)
        self.output = nn.Linear(8, 11, bias=False)
        self.output.weight = self.words.weight

    def forward(self, ids):
        hidden = self.words(ids) * self.positions(torch.arange(ids.shape[1]).expand_as(ids))
        return self.output(torch.tanh(hidden)).square().sum()


def loss_and_gradients(model, ids):
    loss = model(ids)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters()}}


@pytest.mark.parametrize("compiled", [False, True])
def test_loss_and_gradients_equal_the_plain_ones(compiled):
    ids = torch.tensor([[0, 3, 3, 10, 0], [3, 0, 7, 7, 7]])
    plain, model = Model(), Model()
    use_operator(model)
    assert type(model.words) is OperatorEmbedding and model.output.weight is model.words.weight
    found = loss_and_gradients(torch.compile(model) if compiled else model, ids)
    expected = loss_and_gradients(plain, ids)
    assert {name.removeprefix("_orig_mod.") for name in found} == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name.removeprefix("_orig_mod.")], msg=name)


def test_the_operators_are_sound():
    weight = torch.randn(7, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.msb_ner.embedding.default, (weight, torch.tensor([[1, 6], [1, 0]]), -1))


def test_embeddings_that_do_more_stay_as_they_are():
    module = nn.ModuleList([nn.Embedding(3, 2, max_norm=1.0), nn.Embedding(3, 2, sparse=True)])
    use_operator(module)
    assert all(type(inner) is nn.Embedding for inner in module)
