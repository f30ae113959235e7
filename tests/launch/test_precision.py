"""A module computed in bf16 on rounded copies of its weights: what it gives, and where gradients arrive."""

import copy

import pytest
import torch
from torch import nn

from launch.precision import RoundedOnce

WORDS, WIDTH, TOKENS = 20, 8, 4000


class Network(nn.Module):
    """Embeddings (one of which all tokens share), a normalisation, layers, and an output layer tied to the first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.kinds = nn.Embedding(WORDS, WIDTH), nn.Embedding(2, WIDTH)
        self.norm, self.layer, self.dropout = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5)
        self.again = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, WORDS)
        self.out.weight = self.words.weight
        self.register_buffer("counts", torch.arange(3))

    def forward(self, tokens, *, scale: float = 1.0):
        hidden = self.norm(self.words(tokens) + self.kinds(torch.zeros_like(tokens)))
        hidden = self.again(hidden + self.dropout(torch.tanh(self.layer(hidden))))
        return nn.functional.linear(hidden, self.out.weight.to(hidden.dtype), self.out.bias) * scale


def make_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(WORDS, (TOKENS,)), torch.randn(TOKENS, WORDS) + 0.3


def gradients(module: nn.Module, tokens, target) -> dict[str, torch.Tensor]:
    module.zero_grad()
    (module(tokens).float() * target).sum().backward()
    return {name.removeprefix("inner."): parameter.grad.clone() for name, parameter in module.named_parameters()}


@pytest.fixture
def network() -> Network:
    return Network().eval()


def test_gradients_arrive_at_the_fp32_weights_and_add_up(network):
    """4,000 gradients of one bias are a sum that bf16 cannot hold: it stops growing at 256 times what is added."""
    expected = gradients(network, *make_inputs())
    found = gradients(RoundedOnce(network, torch.bfloat16), *make_inputs())
    assert found.keys() == expected.keys() == dict(network.named_parameters()).keys() and "out.weight" not in found
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32, name
        error = float((found[name] - gradient).norm() / gradient.norm())
        assert 0 < error < 0.02, (name, error)


def test_the_output_is_in_the_lower_precision_and_the_weights_stay(network):
    tokens, _ = make_inputs()
    expected, before = network(tokens, scale=2.0), copy.deepcopy(network.state_dict())
    rounded = RoundedOnce(network, torch.bfloat16)
    output = rounded(tokens, scale=2.0)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    assert not torch.equal(output.float(), expected)
    after = rounded.state_dict()
    assert after.keys() == {f"inner.{name}" for name in before}
    assert all(torch.equal(after[f"inner.{name}"], tensor) for name, tensor in before.items())
    assert all(parameter.dtype == torch.float32 for parameter in rounded.parameters())


def test_the_weights_are_rounded_anew_in_each_call(network):
    rounded, (tokens, _) = RoundedOnce(network, torch.bfloat16), make_inputs()
    first = rounded(tokens)
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    assert not torch.equal(rounded(tokens), first)


def test_in_fp32_nothing_changes_not_a_bit(network):
    tokens, target = make_inputs()
    expected, expected_gradients = network(tokens), gradients(network, tokens, target)
    rounded = RoundedOnce(network, torch.float32)
    assert torch.equal(rounded(tokens), expected)
    for name, gradient in gradients(rounded, tokens, target).items():
        assert torch.equal(gradient, expected_gradients[name]), name


def test_training_and_evaluation_reach_the_module(network):
    rounded, (tokens, _) = RoundedOnce(network, torch.bfloat16), make_inputs()
    assert torch.equal(rounded.eval()(tokens), rounded(tokens))
    rounded.train()
    assert not torch.equal(rounded(tokens), rounded(tokens)), "dropout"
