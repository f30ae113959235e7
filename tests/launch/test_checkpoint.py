"""Checkpoints: whole or not there, checked by content, exact to the bit."""

import copy
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from launch import checkpoint as checkpoints
from launch import files
from launch.loop import OptimizerSettings, make_optimizer

STATE = {"step": 3, "epoch": 1, "best_value": -float("inf"), "finished": False}


class Tied(nn.Module):
    """Two layers and a weight that has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.output = nn.Linear(4, 7)
        self.output.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, tokens):
        return self.output(torch.tanh(self.hidden(self.embedding(tokens)))) * self.scale


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        tokens = torch.randint(0, 7, (8,), generator=generator)
        nn.functional.cross_entropy(model(tokens), (tokens + 1) % 7).backward()
        optimizer.step()
        optimizer.zero_grad()


def make(fused: bool = True) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Tied()
    rates = lambda name: 1e-2 if name.startswith("hidden") else 1e-3  # noqa: E731
    return model, make_optimizer(model, OptimizerSettings(), rates, fused=fused)


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(checkpoints, "sync_to_disk", lambda path: None)
    monkeypatch.setattr(files, "sync_to_disk", lambda path: None)


@pytest.fixture
def written(tmp_path):
    model, optimizer = make()
    train(model, optimizer, 3, seed=1)
    checkpoints.write_checkpoint(tmp_path, 3, model, optimizer, STATE)
    return tmp_path


@pytest.mark.parametrize("fused", [True, False])
def test_training_goes_on_bit_for_bit(tmp_path, fused):
    model, optimizer = make(fused)
    train(model, optimizer, 3, seed=1)
    folder = checkpoints.write_checkpoint(tmp_path, 3, model, optimizer, STATE)
    kept = copy.deepcopy(model.state_dict())
    train(model, optimizer, 4, seed=2)

    other, other_optimizer = make(fused)
    for parameter in other.parameters():
        parameter.data.fill_(9.0)
    other.scale.fill_(9.0)
    checkpoints.restore_checkpoint(folder, other, other_optimizer)
    assert all(torch.equal(kept[name], value) for name, value in other.state_dict().items())
    assert other.output.weight is other.embedding.weight
    rates = [group["peak_learning_rate"] for group in other_optimizer.param_groups]
    assert rates == [group["peak_learning_rate"] for group in optimizer.param_groups] and len(set(rates)) == 2
    train(other, other_optimizer, 4, seed=2)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    assert not torch.equal(kept["hidden.weight"], model.hidden.weight)
    of_one, of_other = (
        {n: o.state[p] for n, p in m.named_parameters()} for m, o in ((model, optimizer), (other, other_optimizer))
    )
    for name, entries in of_one.items():
        assert entries.keys() == of_other[name].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(value, of_other[name][entry]) for entry, value in entries.items())
        assert entries["step"].dtype == of_other[name]["step"].dtype


def test_before_the_first_step_there_is_no_optimizer_state(tmp_path):
    model, optimizer = make()
    folder = checkpoints.write_checkpoint(tmp_path, 0, model, optimizer, STATE)
    checkpoints.restore_checkpoint(folder, model, optimizer)
    assert not optimizer.state


def test_a_whole_checkpoint(written):
    (folder,) = checkpoints.checkpoints_newest_first(written)
    assert folder.name == "step-00000003"
    assert checkpoints.damage(folder) is None
    assert checkpoints.read_state(folder) == STATE
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        "checksums.json",
    }
    assert not list(written.glob(".*")), "nothing temporary is left"


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize(
    "harm, problem",
    [
        (lambda path: flip(path, 0), "is not what was written"),
        (lambda path: flip(path, path.stat().st_size // 2), "is not what was written"),
        (lambda path: flip(path, -1), "is not what was written"),
        (lambda path: os.truncate(path, path.stat().st_size - 1), "is not what was written"),
        (lambda path: os.truncate(path, 0), "is not what was written"),
        (lambda path: path.unlink(), "is missing"),
    ],
    ids=["first byte", "middle byte", "last byte", "cut", "empty", "missing"],
)
def test_damage_is_found(written, name, harm, problem):
    (folder,) = checkpoints.checkpoints_newest_first(written)
    harm(folder / name)
    assert checkpoints.damage(folder) == f"{name} {problem}"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{}", b"[]", b"null", b'{"state.json": "0"}'])
def test_damaged_checksums_are_found(written, content):
    (folder,) = checkpoints.checkpoints_newest_first(written)
    (folder / "checksums.json").write_bytes(content)
    assert checkpoints.damage(folder)


def test_missing_checksums_are_found(written):
    (folder,) = checkpoints.checkpoints_newest_first(written)
    (folder / "checksums.json").unlink()
    assert "checksums.json cannot be read" in checkpoints.damage(folder)


def test_half_written_ones_do_not_count_and_are_swept(written):
    half = written / ".step-00000006.partial"
    shutil.copytree(written / "step-00000003", half)
    assert [path.name for path in checkpoints.checkpoints_newest_first(written)] == ["step-00000003"]
    checkpoints.keep_newest(written, 2)
    assert not half.exists() and (written / "step-00000003").exists()


def test_a_half_written_one_is_written_anew(written):
    half = written / ".step-00000006.partial"
    half.mkdir()
    (half / "rubbish").write_text("left by a crash")
    model, optimizer = make()
    folder = checkpoints.write_checkpoint(written, 6, model, optimizer, STATE)
    assert checkpoints.damage(folder) is None and not (folder / "rubbish").exists()


def test_the_newest_are_kept(tmp_path):
    for step in (5, 100, 20, 99_999_999):
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / "weights-00000005.safetensors").write_text("not a checkpoint")
    checkpoints.keep_newest(tmp_path, 2)
    assert [path.name for path in checkpoints.checkpoints_newest_first(tmp_path)] == ["step-99999999", "step-00000100"]
    assert (tmp_path / "weights-00000005.safetensors").exists()
    checkpoints.keep_newest(tmp_path, 5)
    assert len(checkpoints.checkpoints_newest_first(tmp_path)) == 2


def test_a_crash_leaves_the_old_checkpoint_or_the_new(written, monkeypatch):
    """Writing step 3 once more, cut off before each operation on the disk in turn."""
    model, optimizer = make()
    done, calls = False, 0

    class Crash(BaseException):
        pass

    def crashing(function, at):
        def wrapped(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == at:
                raise Crash
            return function(*arguments, **options)

        return wrapped

    for at in range(1, 40):
        calls = 0
        with monkeypatch.context() as patch:
            for module, name in [
                (checkpoints, "save_model"),
                (checkpoints, "save_file"),
                (checkpoints, "sync_to_disk"),
                (checkpoints, "write_json_whole"),
                (os, "replace"),
                (shutil, "rmtree"),
            ]:
                patch.setattr(module, name, crashing(getattr(module, name), at))
            try:
                checkpoints.write_checkpoint(written, 6, model, optimizer, STATE | {"step": 6})
                done = True
            except Crash:
                pass
        whole = [path for path in checkpoints.checkpoints_newest_first(written) if checkpoints.damage(path) is None]
        assert whole and whole[-1].name == "step-00000003"
        if done:
            break
    assert done and at > 8 and json.loads((whole[0] / "state.json").read_text())["step"] == 6


def test_weights_are_written_whole_with_tied_ones_under_each_name(tmp_path):
    model, _ = make()
    path = tmp_path / "weights.safetensors"
    checkpoints.save_weights(path, model.state_dict())
    loaded = load_file(str(path))
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
