"""Training the rows in use alone is the same training; and dropout by 16 bits is dropout."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from finetune.dropout import SixteenBitDropout, draw, use_fast_dropout
from finetune.rows_in_use import RowsInUse, with_all_rows
from launch.loop import OptimizerSettings, make_optimizer

ROWS, WIDTH = 50, 8
USED = [0, 3, 4, 7, 20, 49]


class Model(nn.Module):
    """An embedding that is looked up, and what tells one id's from another's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(ROWS, WIDTH, padding_idx=0)
        self.linear = nn.Linear(WIDTH, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.linear(self.embedding(ids))


def steps(model: nn.Module, weight_decay: float = 0.0, micro_batches: int = 1) -> list[float]:
    """Losses of some steps, with clipping, as the loop takes them."""
    optimizer = make_optimizer(model, OptimizerSettings(learning_rate=0.05, weight_decay=weight_decay))
    draws = np.random.default_rng(2)
    losses = []
    for _ in range(10):
        for _ in range(micro_batches):
            ids = torch.from_numpy(draws.choice(USED, (4, 5)))
            loss = nn.functional.cross_entropy(model.train()(ids).flatten(0, 1), ids.flatten() % 3)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_it_is_the_same_training():
    whole, some = Model(), Model()
    some.embedding = RowsInUse(some.embedding, np.array(USED))
    assert some.embedding.weight.shape == (len(USED), WIDTH)
    assert steps(some) == steps(whole)
    trained = with_all_rows(some, some.state_dict())
    assert trained.keys() == whole.state_dict().keys()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(trained[name], tensor), name


def test_it_is_the_same_training_in_micro_batches():
    whole, some = Model(), Model()
    some.embedding = RowsInUse(some.embedding, np.array(USED))
    np.testing.assert_allclose(steps(some, micro_batches=3), steps(whole, micro_batches=3), rtol=1e-5)


def test_among_several_processes_the_gradient_is_autograd_s(monkeypatch):
    whole, some = Model(), Model()
    some.embedding = RowsInUse(some.embedding, np.array(USED))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert steps(some) == steps(whole)
    assert some.embedding.gradient.gradient_RH is None


def test_rows_that_are_set_aside_are_looked_up_outside_training_and_stay_as_they_were():
    before = Model()
    model = copy.deepcopy(before)
    model.embedding = RowsInUse(model.embedding, np.array(USED))
    steps(model, weight_decay=0.5)
    every = torch.arange(ROWS)[None]
    unused = [row for row in range(ROWS) if row not in USED]
    found = model.eval().embedding(every)[0]
    assert torch.equal(found[unused], before.embedding.weight[unused])
    assert torch.equal(found, with_all_rows(model, model.state_dict())["embedding.weight"])
    assert not torch.allclose(found[USED[1:]], before.embedding.weight[USED[1:]])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.25])
def test_sixteen_bits_drop_as_many_and_keep_the_mean(rate):
    torch.manual_seed(4)
    x = torch.ones(1000, 1001, requires_grad=True)
    dropped = SixteenBitDropout(rate)(x)
    kept = (dropped != 0).float()
    # Five standard deviations, of the whole and of the rows.
    assert abs(kept.mean() - (1 - rate)) < 5 * (rate * (1 - rate) / x.numel()) ** 0.5
    assert (kept.mean(dim=1) - (1 - rate)).abs().max() < 6 * (rate * (1 - rate) / 1001) ** 0.5
    assert torch.allclose(dropped[dropped != 0], torch.tensor(1 / (1 - rate)), rtol=1e-4)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())


def test_neighbours_are_independent():
    torch.manual_seed(5)
    kept = draw(torch.Size([4_000_000]), 2**15).float() * 2 - 1
    for distance in (1, 2, 3, 4, 8):
        assert abs((kept[:-distance] * kept[distance:]).mean()) < 5 / 4_000_000**0.5


def test_the_mask_is_a_function_of_the_seed_and_outside_training_there_is_none():
    dropout, x = SixteenBitDropout(0.3), torch.randn(7, 3)
    torch.manual_seed(6)
    first = dropout(x)
    torch.manual_seed(6)
    assert torch.equal(dropout(x), first)
    assert torch.equal(dropout.eval()(x), x)
    assert SixteenBitDropout(0.0)(x) is x or torch.equal(SixteenBitDropout(0.0)(x), x)


def test_it_takes_the_place_of_every_plain_dropout():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.2)), nn.Dropout1d(0.3))
    use_fast_dropout(model)
    assert type(model[1][0]) is SixteenBitDropout and model[1][0].p == 0.2
    assert type(model[2]) is nn.Dropout1d
