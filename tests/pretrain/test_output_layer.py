"""The fused output layer: equal to `cross_entropy(linear(…))`, in loss and gradients, however it is cut into chunks."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from pretrain import output_layer
from pretrain.output_layer import NO_LABEL, linear_cross_entropy, loss_and_gradients

ROWS, WIDTH, VOCABULARY = 37, 16, 203

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def make_inputs(rows: int = ROWS, width: int = WIDTH, vocabulary: int = VOCABULARY, dtype=torch.float64) -> Tensors:
    """Hidden states, weight, bias and labels; every fourth row has no label, others the first and the last word."""
    torch.manual_seed(rows)
    hidden, weight, bias = (torch.randn(shape) for shape in ((rows, width), (vocabulary, width), (vocabulary,)))
    labels = torch.randint(vocabulary, (rows,))
    labels[::4], labels[1::12], labels[2::12] = NO_LABEL, 0, vocabulary - 1
    return (*(tensor.to(dtype).requires_grad_() for tensor in (hidden, weight, bias)), labels)


def plain(hidden, weight, bias, labels) -> torch.Tensor:
    logits = functional.linear(hidden, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return functional.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")


def loss_and_gradients_of(function, inputs: Tensors, scale: float = 1.0) -> list[torch.Tensor]:
    """The loss, and the gradients of hidden states, weight and bias."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs[:3]]
    loss = function(*leaves, inputs[3])
    (loss * scale).backward()
    assert all(leaf.grad.dtype == leaf.dtype for leaf in leaves)
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor], **tolerance: float) -> None:
    for name, one, other in zip(("loss", "hidden", "weight", "bias"), found, expected, strict=True):
        torch.testing.assert_close(
            one.double(),
            other.double(),
            msg=lambda m, name=name: f"{name}: {m}",
            **{"rtol": 2e-6, "atol": 2e-6} | tolerance,
        )


@pytest.mark.parametrize("rows_at_once", [0, 1, 5, ROWS - 1, ROWS, 10_000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradients_equal_the_plain_ones(monkeypatch, dtype, rows_at_once):
    monkeypatch.setattr(output_layer, "LOGITS_AT_ONCE", rows_at_once * VOCABULARY)
    inputs = make_inputs(dtype=dtype)
    found = loss_and_gradients_of(linear_cross_entropy, inputs, scale=0.25)
    # The softmax is taken in fp32 here, whatever the type: that bounds the agreement.
    assert_equal(found, loss_and_gradients_of(plain, inputs, scale=0.25), rtol=1e-5)
    assert found[0].dtype == torch.float32 and found[1].abs().max() > 0.05


@pytest.mark.parametrize("rows_at_once", [1, 7, 10_000])
def test_without_gradients_the_loss_is_the_same(monkeypatch, rows_at_once):
    monkeypatch.setattr(output_layer, "LOGITS_AT_ONCE", rows_at_once * VOCABULARY)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        inputs = make_inputs(dtype=dtype)
        with torch.no_grad():
            loss = linear_cross_entropy(*inputs)
        assert loss.dtype == torch.float32 and not loss.requires_grad
        torch.testing.assert_close(loss, linear_cross_entropy(*inputs).detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rows, labelled", [(5, False), (1, False), (1, True), (0, False)])
def test_few_rows_and_none_with_a_label(rows, labelled):
    inputs = make_inputs(rows)
    inputs[3][:] = 3 if labelled else NO_LABEL
    found = loss_and_gradients_of(linear_cross_entropy, inputs)
    assert_equal(found, loss_and_gradients_of(plain, inputs), rtol=1e-5)
    assert any(tensor.any() for tensor in found) == labelled
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(*inputs), found[0])


def test_rows_without_a_label_change_nothing():
    hidden, weight, bias, labels = make_inputs()
    counts = labels != NO_LABEL
    found = loss_and_gradients_of(linear_cross_entropy, (hidden, weight, bias, labels))
    expected = loss_and_gradients_of(linear_cross_entropy, (hidden[counts], weight, bias, labels[counts]))
    assert not found[1][~counts].any()
    found[1] = found[1][counts]
    assert_equal(found, expected)


def test_large_logits_do_not_overflow():
    hidden, weight, bias, labels = make_inputs(dtype=torch.float32)
    inputs = (hidden * 1e4, weight, bias, labels)
    found = loss_and_gradients_of(linear_cross_entropy, inputs)
    assert all(tensor.isfinite().all() for tensor in found)
    assert_equal(found, loss_and_gradients_of(plain, inputs), rtol=1e-4)


def errors(found: list[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    return [float((one.double() - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True)]


def test_in_bf16_it_is_about_as_exact_as_the_plain_way(monkeypatch):
    """Measured against fp64 on the same rounded inputs, with as many chunks as an optimizer step has."""
    inputs = make_inputs(600, 64, 1000, torch.bfloat16)
    monkeypatch.setattr(output_layer, "LOGITS_AT_ONCE", 600 // 18 * 1000)
    exact = loss_and_gradients_of(plain, tuple(t.double() if t.is_floating_point() else t for t in inputs))
    of_fused = errors(loss_and_gradients_of(linear_cross_entropy, inputs), exact)
    of_plain = errors(loss_and_gradients_of(plain, inputs), exact)
    assert of_fused[0] < 2e-4
    pairs = zip(of_fused[1:], of_plain[1:], strict=True)
    assert all(fused < 1.5 * plain for fused, plain in pairs), (of_fused, of_plain)


def test_weights_are_rounded_to_the_type_of_the_hidden_states():
    """And have their gradients in their own."""
    hidden, weight, bias, labels = make_inputs(dtype=torch.float32)
    rounded = tuple(tensor.detach().bfloat16() for tensor in (hidden, weight, bias))
    expected = loss_and_gradients_of(linear_cross_entropy, (*rounded, labels))
    found = loss_and_gradients_of(linear_cross_entropy, (rounded[0], weight, bias, labels))
    assert_equal(found, expected, rtol=0, atol=0)


def test_under_autocast_the_products_are_in_its_type():
    """As DeepSpeed computes in bf16: hidden states that come out of a normalisation are fp32 there."""
    inputs = make_inputs(dtype=torch.float32)

    def under_autocast(*tensors):
        with torch.autocast("cpu", torch.bfloat16):
            return linear_cross_entropy(*tensors)

    found = loss_and_gradients_of(under_autocast, inputs)
    expected = loss_and_gradients_of(lambda h, *rest: linear_cross_entropy(h.bfloat16(), *rest), inputs)
    assert_equal(found, expected, rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(under_autocast(*inputs), linear_cross_entropy(inputs[0].bfloat16(), *inputs[1:]))


def test_what_needs_no_gradient_gets_none():
    hidden, weight, bias, labels = make_inputs()
    expected = loss_and_gradients_of(linear_cross_entropy, (hidden, weight, bias, labels))
    frozen = weight.detach()
    linear_cross_entropy(hidden, frozen, bias, labels).backward()
    assert frozen.grad is None
    torch.testing.assert_close(hidden.grad, expected[1])
    torch.testing.assert_close(bias.grad, expected[3])


@pytest.mark.parametrize("rows", [0, ROWS])
def test_the_operator_is_what_the_compiler_takes_it_for(rows):
    inputs = [tensor.detach() for tensor in make_inputs(rows)]
    torch.library.opcheck(loss_and_gradients, (*inputs, False))


class Layer(nn.Module):
    """Something for the compiler around the loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.decoder = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, hidden, labels):
        return linear_cross_entropy(torch.tanh(self.before(hidden)), self.decoder.weight, self.decoder.bias, labels)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_compiled_it_is_equal(monkeypatch, dtype, tolerance):
    monkeypatch.setattr(output_layer, "LOGITS_AT_ONCE", 10 * VOCABULARY)  # three chunks of ten rows and one of seven
    softmax, chunks = output_layer._compiled_softmax_loss, []
    monkeypatch.setattr(output_layer, "_compiled_softmax_loss", lambda *a: chunks.append(len(a[0])) or softmax(*a))
    layer = Layer().to(dtype)
    hidden, _, _, labels = make_inputs(dtype=dtype)

    def run(function) -> list[torch.Tensor]:
        layer.zero_grad()
        leaf = hidden.detach().requires_grad_()
        loss = function(leaf, labels)
        loss.backward()
        return [loss.detach(), leaf.grad, *(parameter.grad.clone() for parameter in layer.parameters())]

    expected = run(layer)
    compiled = torch.compile(layer, fullgraph=True)
    for _ in range(2):
        for one, other in zip(run(compiled), expected, strict=True):
            assert one.dtype == other.dtype and float((one - other).norm() / other.norm()) < tolerance
    assert chunks == [10, 10, 10, 7] * 2, "the softmax was compiled, too"
    with torch.no_grad():
        torch.testing.assert_close(compiled(hidden, labels), expected[0], rtol=tolerance, atol=0)
