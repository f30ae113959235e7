"""The paper's layers against their definitions, computed the plain way."""

import math

import pytest
import torch

from finetune.layers import Attention, ModalityAttention, SequenceAttention, SineReLU, TargetedDropout


def test_sine_relu_is_equation_12():
    values = [-3.0, -0.5, -1e-6, 0.0, 1e-6, 0.5, 3.0]
    expected = [x if x > 0 else 0.25 * (math.sin(x) - math.cos(x)) for x in values]
    torch.testing.assert_close(SineReLU(epsilon=0.25)(torch.tensor(values)), torch.tensor(expected))
    assert SineReLU().epsilon == 0.0025  # Table 5
    x = torch.tensor([-1.0], requires_grad=True)
    SineReLU(epsilon=0.25)(x).backward()  # a unit below zero still learns
    assert x.grad.item() == pytest.approx(0.25 * (math.cos(-1) + math.sin(-1)))


def channels(rows: int) -> torch.Tensor:
    """Ten channels of four places whose norm grows with their number, in another order for each row."""
    norms_C = torch.arange(1, 11)[:, None] * torch.tensor([0.5, -0.5, 0.5, -0.5])
    return torch.stack([norms_C[torch.randperm(10)] for _ in range(rows)])


def test_targeted_dropout_takes_only_the_smallest_units_and_at_its_rate():
    torch.manual_seed(1)
    x_NCP = channels(4000)
    y_NCP = TargetedDropout(rate=0.25, target=0.4).train()(x_NCP)
    norms_NC = x_NCP.norm(dim=2)
    dropped_NC = (y_NCP == 0).all(dim=2)
    assert torch.equal(y_NCP[~dropped_NC], x_NCP[~dropped_NC])  # whole channels, and nothing is scaled
    assert norms_NC[dropped_NC].max() < 4.5  # four of ten are targets
    for norm in (1, 2, 3, 4):
        share = dropped_NC[(norms_NC - norm).abs() < 0.1].float().mean().item()
        assert share == pytest.approx(0.25, abs=0.03), norm


def test_targeted_dropout_passes_gradients_of_what_it_keeps():
    torch.manual_seed(1)
    x_NCP = channels(3).requires_grad_()
    y_NCP = TargetedDropout(rate=0.5, target=1.0).train()(x_NCP)
    y_NCP.sum().backward()
    assert torch.equal(x_NCP.grad, (y_NCP != 0).float())
    assert 0 < x_NCP.grad.mean() < 1


def test_targeted_dropout_does_nothing_in_evaluation():
    x_NCP = channels(3)
    assert torch.equal(TargetedDropout(rate=1.0, target=1.0).eval()(x_NCP), x_NCP)


@pytest.mark.parametrize("options", [{"rate": 1.5}, {"target": -0.1}])
def test_targeted_dropout_takes_shares(options):
    with pytest.raises(ValueError, match="share between 0 and 1"):
        TargetedDropout(**options)


def plain_attention(attention: Attention, things: list[torch.Tensor]) -> tuple[torch.Tensor, list[float]]:
    """Equations 14 to 16, thing by thing."""
    scores = [(h @ torch.tanh(attention.transform.weight @ h + attention.transform.bias)).exp() for h in things]
    alpha = [score / sum(scores) for score in scores]
    return sum(a * h for a, h in zip(alpha, things, strict=True)), [a.item() for a in alpha]


def test_attention_is_equations_14_to_16():
    torch.manual_seed(1)
    attention = Attention(6)
    h_NTH = torch.randn(2, 5, 6)
    mask_NT = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    beta_NH, alpha_NT = attention(h_NTH, mask_NT)
    for row, things in enumerate([list(h_NTH[0]), list(h_NTH[1, :3])]):
        beta, alpha = plain_attention(attention, things)
        torch.testing.assert_close(beta_NH[row], beta)
        assert alpha_NT[row].tolist() == pytest.approx([*alpha, *[0.0] * (5 - len(alpha))])


def test_sequence_attention_joins_each_word_with_its_tweet():
    torch.manual_seed(1)
    layer = SequenceAttention(6)
    h_BWH, mask_BW = torch.randn(2, 4, 6), torch.tensor([[True] * 4, [False] * 4])
    joined_BWH = layer(h_BWH, mask_BW)
    assert joined_BWH.shape == (2, 4, 12)
    assert torch.equal(joined_BWH[:, :, :6], h_BWH)
    beta, _ = plain_attention(layer.attention, list(h_BWH[0]))
    torch.testing.assert_close(joined_BWH[0, :, 6:], beta.expand(4, 6))
    assert joined_BWH.isfinite().all()  # also of a tweet without words


def test_modality_attention_weighs_the_modalities_of_each_word():
    torch.manual_seed(1)
    layer = ModalityAttention([3, 5, 2], 4)
    modalities = [torch.randn(2, 3, size) for size in (3, 5, 2)]
    beta_BWH = layer(modalities)
    assert beta_BWH.shape == (2, 3, 4)
    projected = [project(x[1, 2]) for project, x in zip(layer.projections, modalities, strict=True)]
    torch.testing.assert_close(beta_BWH[1, 2], plain_attention(layer.attention, projected)[0])
