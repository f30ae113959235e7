"""The step in one pass is that of torch: clip_grad_norm_, then AdamW, with AdamW's state."""

import copy

import pytest
import torch
from torch import nn

from launch.clipped_adamw import SOURCE, ClippedAdamW
from launch.native import library

pytestmark = pytest.mark.skipif(
    library(SOURCE, ("avx2", "fma")) is None, reason="no processor with AVX2, or no compiler"
)


def make(**options: object) -> tuple[nn.ParameterList, torch.optim.AdamW]:
    """Parameters of all sizes, one above a chunk, in two groups."""
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.randn(size)) for size in ((300, 70), (1,), (33,), (7, 5))])
    first, *others = model
    groups = [{"params": [first], "lr": 0.05, "weight_decay": 0.1}, {"params": others, "lr": 0.01, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, betas=(0.9, 0.98), **options)


def set_gradients(model: nn.ParameterList, step: int, scale: float = 1.0, but: int | None = None) -> None:
    generator = torch.Generator().manual_seed(step)
    for number, parameter in enumerate(model):
        gradient = scale * torch.randn(parameter.shape, generator=generator)
        parameter.grad = None if number == but else gradient


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("maximum_norm", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_steps_are_those_of_torch(fused, maximum_norm, scale):
    (model, optimizer), (other, plain) = make(fused=fused), make(fused=fused)
    fast = ClippedAdamW.of(optimizer, maximum_norm)
    for step in range(5):
        for group in (*optimizer.param_groups, *plain.param_groups):
            group["lr"] *= 0.9
        for parameters in (model, other):
            set_gradients(parameters, step, scale, but=2 if step == 1 else None)
        norm = fast.step()
        exact = nn.utils.clip_grad_norm_(other.parameters(), maximum_norm or 1e9)
        plain.step()
        assert norm == pytest.approx(exact.item(), rel=1e-6)
    for ours, theirs in zip(model, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        for name, value in plain.state[theirs].items():
            torch.testing.assert_close(optimizer.state[ours][name], value, rtol=1e-5, atol=1e-7)


def test_it_goes_on_where_torch_was_and_torch_where_it_was():
    (model, optimizer), (other, plain) = make(), make()
    for step in range(4):
        for parameters in (model, other):
            set_gradients(parameters, step)
        plain.step()
        if step % 2:
            optimizer.step()
        else:
            ClippedAdamW.of(optimizer, 0).step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for ours, theirs in zip(model, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_number_of_threads_changes_nothing():
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            model, optimizer = make()
            for step in range(3):
                set_gradients(model, step)
                ClippedAdamW.of(optimizer, 1.0).step()
            found.append([parameter.detach().clone() for parameter in model])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_not_a_number_is_not_clipped_away():
    model, optimizer = make()
    set_gradients(model, 0)
    model[1].grad.fill_(float("nan"))
    assert torch.tensor(ClippedAdamW.of(optimizer, 1.0).step()).isnan()
    assert model[0].isnan().all()


def test_what_changed_has_a_new_version():
    model, optimizer = make()
    set_gradients(model, 0, but=1)
    before = [parameter._version for parameter in model]
    ClippedAdamW.of(optimizer, 1.0).step()
    assert [parameter._version > old for parameter, old in zip(model, before, strict=True)] == [True, False, True, True]


def test_gradients_in_another_order_of_memory():
    (model, optimizer), (other, plain) = make(), make()
    for parameters in (model, other):
        set_gradients(parameters, 0)
    model[0].grad = model[0].grad.t().contiguous().t()
    ClippedAdamW.of(optimizer, 0).step()
    plain.step()
    torch.testing.assert_close(model[0], other[0], rtol=1e-5, atol=1e-6)


def test_other_optimizers_and_parameters_are_left_to_torch():
    model, _ = make()
    assert ClippedAdamW.of(torch.optim.SGD(model.parameters(), lr=0.1), 1.0) is None
    assert ClippedAdamW.of(torch.optim.Adam(model.parameters()), 1.0) is None
    assert ClippedAdamW.of(torch.optim.AdamW(model.parameters(), amsgrad=True), 1.0) is None
    assert ClippedAdamW.of(torch.optim.AdamW([torch.randn(4, 3).t().requires_grad_()]), 1.0) is None
    assert ClippedAdamW.of(torch.optim.AdamW(model.to(torch.bfloat16).parameters()), 1.0) is None
