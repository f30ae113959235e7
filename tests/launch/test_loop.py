"""The training loop, on a task of its own: what it promises, without a stage around it."""

import json
import math
import threading
import time
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from launch import checkpoint as checkpoints
from launch import files, loop
from launch.errors import InputError
from launch.loop import (
    BatchesAhead,
    OptimizerSettings,
    Position,
    RunSettings,
    last_good,
    make_accelerator,
    make_optimizer,
    micro_batches,
    train,
    with_compilation_decided,
)
from launch.schedule import ScheduleSettings
from launch.settings import parse_settings
from launch.stage import Stage, StageSettings, iterate_jsonl

SAMPLES, FEATURES, PER_STEP = 60, 5, 7


class Regression(nn.Module):
    """A network with dropout; the loss is a sum over samples."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.dropout, self.out = nn.Linear(FEATURES, 8), nn.Dropout(dropout), nn.Linear(8, 1)

    def forward(self, x, y):
        return (self.out(self.dropout(torch.tanh(self.hidden(x)))).squeeze(1) - y).square().sum()


class Task:
    """Samples in an order of their own in each epoch, of weights 1 to 3; scores that the test decides."""

    def __init__(self, scores=None, interrupt_at: int | None = None) -> None:
        draw = np.random.default_rng(0)
        self.x = torch.from_numpy(draw.normal(size=(SAMPLES, FEATURES))).float()
        self.y = self.x.sum(1).sin()
        self.weights = draw.integers(1, 4, SAMPLES)
        self.scores, self.interrupt_at = scores, interrupt_at
        self.collated = self.evaluated = 0
        self.seen: list[list[int]] = []

    def plan(self, epoch):
        order = np.random.Generator(np.random.Philox(key=[1, epoch])).permutation(SAMPLES)
        return [order[start : start + PER_STEP] for start in range(0, SAMPLES, PER_STEP)]

    def collate(self, units, epoch):
        self.collated += 1
        if self.collated == self.interrupt_at:
            raise KeyboardInterrupt
        self.seen.append(list(units))
        return {"x": self.x[units], "y": self.y[units], "weight": torch.tensor(self.weights[units].sum())}

    def size(self, units):
        return len(units)

    def sample_ids(self, units):
        return [f"sample-{unit}" for unit in units]

    def evaluate(self, model, accelerator):
        self.evaluated += 1
        loss = float(model(self.x, self.y)) / SAMPLES
        return {"loss": loss, "score": self.scores[self.evaluated - 1] if self.scores else -loss}


STEPS_PER_EPOCH = len(Task().plan(0))


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(checkpoints, "sync_to_disk", lambda path: None)
    monkeypatch.setattr(files, "sync_to_disk", lambda path: None)


@pytest.fixture
def stage(tmp_path) -> Stage:
    return make_stage(tmp_path / "out")


def make_stage(output: Path) -> Stage:
    stage = Stage("test/loop", StageSettings(output=output), inputs={})
    stage.folder.mkdir(exist_ok=True)
    return stage


def run(
    stage,
    task=None,
    *,
    dropout=0.0,
    fused=True,
    epochs=2,
    precision="fp32",
    schedule=None,
    rate=1e-2,
    rows_at_once=None,
    **options,
):
    """Train a new model; gives the final weights."""
    of_run = {name: options.pop(name) for name in list(options) if name in RunSettings.__dataclass_fields__}
    settings = RunSettings(**{"precision": precision, "log_steps": 1, "checkpoint_steps": 4, **of_run})
    model = Regression(dropout)
    weights = train(
        stage,
        make_accelerator(settings),
        model,
        make_optimizer(model, OptimizerSettings(learning_rate=rate), fused=fused),
        task or Task(),
        seed=1,
        schedule=schedule or ScheduleSettings(epochs=epochs),
        run=settings,
        size_unit="samples",
        micro_batch=rows_at_once,
        **{"maximum_gradient_norm": 1.0, **options},
    )
    return load_file(str(weights))


def rows(stage: Stage, event: str = "train") -> list[dict]:
    return [row for row in iterate_jsonl(stage.folder / "metrics.jsonl") if row["event"] == event]


def losses(stage: Stage) -> list[float]:
    return [row["loss"] for row in rows(stage)]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_it_learns_and_logs_each_step(stage):
    run(stage, epochs=8)
    assert [row["step"] for row in rows(stage)] == list(range(1, 8 * STEPS_PER_EPOCH + 1))
    validation = [row["loss"] for row in rows(stage, "evaluate")]
    assert validation[-1] < 0.8 * validation[0]
    evaluations = rows(stage, "evaluate")
    assert [row["step"] for row in evaluations] == [STEPS_PER_EPOCH * epoch for epoch in range(1, 9)]
    assert [row["epoch"] for row in evaluations] == [float(epoch) for epoch in range(1, 9)]
    assert {"event", "step", "epoch", "loss", "learning_rate", "seconds", "samples_per_second"} == rows(stage)[0].keys()
    assert stage.facts["training"]["steps"] == 8 * STEPS_PER_EPOCH and stage.facts["training"]["precision"] == "fp32"


def test_the_learning_rate_follows_the_schedule(stage):
    run(stage, epochs=2)
    schedule, total = ScheduleSettings(epochs=2), 2 * STEPS_PER_EPOCH
    expected = [1e-2 * schedule.factor(step / total) for step in range(total)]
    assert [row["learning_rate"] for row in rows(stage)] == pytest.approx(expected)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 5])
def test_micro_batches_change_nothing(tmp_path, micro_batch):
    whole, parts = make_stage(tmp_path / "whole"), make_stage(tmp_path / "parts")
    expected = run(whole, micro_batch=PER_STEP)
    weights = run(parts, micro_batch=micro_batch)
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_over_the_weight_of_the_step(stage):
    task = Task()
    run(stage, task, epochs=1, rate=0.0, log_steps=3)
    model = Regression(0.0)
    for row, start in zip(rows(stage), range(0, STEPS_PER_EPOCH, 3), strict=True):
        units = np.concatenate(task.plan(0)[start : start + 3])
        expected = float(model(task.x[units], task.y[units]).detach()) / task.weights[units].sum()
        assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_fused_and_plain_adamw_agree(tmp_path):
    fused, plain = (run(make_stage(tmp_path / str(flag)), fused=flag) for flag in (True, False))
    for name, tensor in fused.items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped(tmp_path):
    clipped = run(make_stage(tmp_path / "a"), maximum_gradient_norm=1e-3)
    free = run(make_stage(tmp_path / "b"), maximum_gradient_norm=0)
    assert not torch.allclose(clipped["hidden.weight"], free["hidden.weight"], atol=1e-4)


def test_only_matrices_decay_and_rates_go_by_name():
    model = Regression(0.0)
    optimizer = make_optimizer(
        model, OptimizerSettings(weight_decay=0.1), lambda name: 1.0 if name.startswith("out") else 0.5
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: (group["peak_learning_rate"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {
        "hidden.weight": (0.5, 0.1),
        "hidden.bias": (0.5, 0.0),
        "out.weight": (1.0, 0.1),
        "out.bias": (1.0, 0.0),
    }


@pytest.mark.parametrize("best_by", [None, "score"])
@pytest.mark.parametrize("interruption", [1, 6, 9, 10, 25])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, interruption, best_by):
    """Interrupted in whichever step, at checkpoints, ends of epochs and between."""
    options = {"dropout": 0.3, "epochs": 3, "best_by": best_by, "log_steps": 2, "micro_batch": 4}
    micro_batches_of_a_step = 2
    undisturbed, resumed = make_stage(tmp_path / "undisturbed"), make_stage(tmp_path / "resumed")
    expected = run(undisturbed, **options)
    for _ in range(2):  # the second time in the same place counted from the resumption, a step that came later
        with pytest.raises(KeyboardInterrupt):
            run(resumed, Task(interrupt_at=micro_batches_of_a_step * interruption), **options)
        if interruption > 6:
            break
    assert_equal(run(resumed, **options), expected)
    for event in ("train", "evaluate"):
        keys = ("step", "epoch", "loss", *(("learning_rate",) if event == "train" else ("score",)))
        assert [[row[key] for key in keys] for row in rows(resumed, event)] == [
            [row[key] for key in keys] for row in rows(undisturbed, event)
        ]
    assert_equal(run(resumed, **options), expected)  # a finished run, started again before it was exported
    counts = Counter((row["event"], row["step"]) for row in iterate_jsonl(resumed.folder / "metrics.jsonl"))
    assert max(counts.values()) == 1


def test_dropout_is_a_function_of_seed_and_step(tmp_path):
    one = run(make_stage(tmp_path / "one"), dropout=0.5)
    torch.rand(17)  # whoever else draws changes nothing
    assert_equal(run(make_stage(tmp_path / "two"), dropout=0.5), one)
    assert not torch.equal(run(make_stage(tmp_path / "three"))["hidden.weight"], one["hidden.weight"])


@pytest.mark.parametrize("harm", ["state.json", "model.safetensors", "optimizer.safetensors", "checksums.json", "best"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, harm, caplog):
    options = {"dropout": 0.3, "epochs": 3, "best_by": "score", "checkpoint_steps": 2}
    expected = run(make_stage(tmp_path / "undisturbed"), **options)
    stage = make_stage(tmp_path / "resumed")
    with pytest.raises(KeyboardInterrupt):
        run(stage, Task(interrupt_at=STEPS_PER_EPOCH + 1), **options)
    newest, before = checkpoints.checkpoints_newest_first(stage.folder / "checkpoints")
    assert newest.name == f"step-{STEPS_PER_EPOCH:08d}"
    if harm == "best":
        (newest.parent / f"weights-{STEPS_PER_EPOCH:08d}.safetensors").unlink()
    else:
        (newest / harm).write_bytes(b"\0" + (newest / harm).read_bytes()[1:])
    with caplog.at_level("INFO", logger="msb_ner"):
        assert_equal(run(stage, **options), expected)
    told = [record.message for record in caplog.records]
    assert any(f"checkpoint {newest.name} is passed over: " in message for message in told), told
    assert any(f"resumed at step {int(before.name[5:])} from" in message for message in told), told


def test_a_damaged_checkpoint_does_not_count_among_those_that_are_kept(tmp_path):
    """Else the next one would be removed for it as soon as it is written."""
    stage, options = make_stage(tmp_path / "run"), {"epochs": 3, "checkpoint_steps": 2, "keep_checkpoints": 2}
    with pytest.raises(KeyboardInterrupt):
        run(stage, Task(interrupt_at=STEPS_PER_EPOCH + 1), **options)
    folder = stage.folder / "checkpoints"
    newest, before = checkpoints.checkpoints_newest_first(folder)
    (newest / "model.safetensors").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(stage, Task(interrupt_at=1), **options)
    assert checkpoints.checkpoints_newest_first(folder) == [before]
    assert (folder / f"damaged-{newest.name}").is_dir()
    assert last_good(folder) == f"Last good checkpoint: {before}"


def test_a_change_in_how_it_computes_is_told(tmp_path, caplog, monkeypatch):
    stage = make_stage(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        run(stage, Task(interrupt_at=STEPS_PER_EPOCH + 1))
    monkeypatch.setattr("launch.loop.precision_of", lambda run: "bf16")  # another machine: its `auto` is another
    run(stage)
    assert "computed until now with precision fp32, on this machine with precision bf16" in caplog.text
    assert stage.facts["computed_otherwise_until_step"] == {"step": STEPS_PER_EPOCH, "precision": "fp32"}


def test_with_all_checkpoints_damaged_it_starts_over(tmp_path):
    expected = run(make_stage(tmp_path / "undisturbed"))
    stage = make_stage(tmp_path / "resumed")
    with pytest.raises(KeyboardInterrupt):
        run(stage, Task(interrupt_at=STEPS_PER_EPOCH + 2))
    for folder in checkpoints.checkpoints_newest_first(stage.folder / "checkpoints"):
        (folder / "model.safetensors").unlink()
    assert_equal(run(stage), expected)
    assert [row["step"] for row in rows(stage)] == list(range(1, 2 * STEPS_PER_EPOCH + 1))


def test_a_checkpoint_of_another_kind_of_training_is_refused(stage):
    with pytest.raises(KeyboardInterrupt):
        run(stage, Task(interrupt_at=6))
    (folder,) = checkpoints.checkpoints_newest_first(stage.folder / "checkpoints")
    text = (folder / "state.json").read_text().replace("training without DeepSpeed", "DeepSpeed ZeRO-2 on 2 processes")
    (folder / "state.json").write_text(text)
    sums = json.loads((folder / "checksums.json").read_text())
    sums["state.json"] = files.sha256_of_file(folder / "state.json")
    (folder / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(InputError, match="written by DeepSpeed ZeRO-2 on 2 processes.*--resume never"):
        run(stage)


@pytest.mark.parametrize("step, checkpoint", [(2, None), (6, "step-00000004")])
def test_a_loss_that_is_not_finite_stops_the_run(stage, step, checkpoint):
    task = Task()
    unit = task.plan(0)[step][3]
    task.x[unit] = math.nan
    with pytest.raises(InputError) as raised:
        run(stage, task)
    message = str(raised.value)
    assert f"not finite at step {step} (epoch 0)" in message
    assert f"sample-{unit}" in message and message.count("sample-") == PER_STEP
    assert (
        f"Last good checkpoint: {stage.folder / 'checkpoints' / checkpoint}" if checkpoint else "none yet"
    ) in message
    assert [row["step"] for row in rows(stage)] == list(range(1, step + 1))
    for folder in checkpoints.checkpoints_newest_first(stage.folder / "checkpoints"):
        assert all(value.isfinite().all() for value in load_file(str(folder / "model.safetensors")).values())


def test_early_stopping_gives_the_best_weights(tmp_path):
    scores = [0.1, 0.5, 0.3, 0.5, 0.2, 0.9]
    stage = make_stage(tmp_path / "early")
    weights = run(stage, Task(scores), epochs=6, best_by="score", patience=3)
    assert len(rows(stage, "evaluate")) == 5, "stopped after three without a gain; an equal score is none"
    # The same schedule without patience passes through the same weights; those of its second evaluation are known.
    full = make_stage(tmp_path / "full")
    until_second = run(full, Task([0.1, 0.5, 0, 0, 0, 0]), epochs=6, best_by="score")
    assert_equal(weights, until_second)
    assert len(rows(full, "evaluate")) == 6
    last = run(make_stage(tmp_path / "last"), Task(), epochs=6)
    assert not torch.equal(last["hidden.weight"], weights["hidden.weight"])
    assert stage.facts["training"]["best_step"] == 2 * STEPS_PER_EPOCH
    assert stage.facts["training"]["best_score"] == 0.5


def test_the_final_weights_are_the_best_of_all_or_the_last(tmp_path):
    improving = run(make_stage(tmp_path / "a"), Task([1, 2, 3]), epochs=3, best_by="score")
    assert_equal(improving, run(make_stage(tmp_path / "b"), Task(), epochs=3))


def test_early_stopping_survives_an_interruption(tmp_path):
    scores = [0.1, 0.5, 0.3, 0.4, 0.2, 0.9]
    options = {"epochs": 6, "best_by": "score", "patience": 3, "dropout": 0.2}
    expected = run(make_stage(tmp_path / "undisturbed"), Task(scores), **options)
    stage = make_stage(tmp_path / "resumed")
    with pytest.raises(KeyboardInterrupt):
        run(stage, Task(scores, interrupt_at=3 * STEPS_PER_EPOCH + 3), **options)
    assert_equal(run(stage, Task(scores[3:]), **options), expected)
    assert len(rows(stage, "evaluate")) == 5
    kept = {path.name for path in (stage.folder / "checkpoints").glob("weights-*")}
    assert f"weights-{2 * STEPS_PER_EPOCH:08d}.safetensors" in kept and len(kept) <= 3


def test_evaluations_by_steps(stage):
    run(stage, epochs=2, evaluate_steps=4)
    steps = [row["step"] for row in rows(stage, "evaluate")]
    assert steps == [4, 8, 12, 16, 18], "and one at the end"


def test_it_stops_at_a_number_of_steps_within_an_epoch(stage):
    run(stage, schedule=ScheduleSettings(epochs=None, steps=STEPS_PER_EPOCH + 2))
    assert len(rows(stage)) == STEPS_PER_EPOCH + 2
    assert [row["step"] for row in rows(stage, "evaluate")] == [STEPS_PER_EPOCH, STEPS_PER_EPOCH + 2]


def test_the_learning_rate_lands_on_a_time_budget(stage, monkeypatch):
    """Whatever a step takes; time is counted here in looks at the clock."""
    now = iter(range(10**9))
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: next(now) * 0.05))
    run(stage, schedule=ScheduleSettings(epochs=None, budget="20s", warmup_share=0.1))
    rates = [row["learning_rate"] for row in rows(stage)]
    peak = int(np.argmax(rates))
    assert max(rates) > 0.95e-2 and rates[0] < 1e-3
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 2e-4, "of a peak of 1e-2"
    assert 20 <= rows(stage)[-1]["seconds"] < 21
    assert rows(stage, "evaluate")[-1]["step"] == len(rates)


def test_a_resumed_run_has_what_is_left_of_its_budget(stage, monkeypatch):
    now = iter(range(10**9))
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(monotonic=lambda: next(now) * 0.01))
    schedule = ScheduleSettings(epochs=None, budget="4s")
    with pytest.raises(KeyboardInterrupt):
        run(stage, Task(interrupt_at=30), schedule=schedule, log_steps=2)
    spent = rows(stage)[-1]["seconds"]
    assert 1 < spent < 4
    run(stage, schedule=schedule, log_steps=2)
    seconds = [row["seconds"] for row in rows(stage)]
    assert seconds == sorted(seconds) and 4 <= seconds[-1] < 4.3


def test_a_real_second_is_kept(stage):
    run(stage, schedule=ScheduleSettings(epochs=None, budget="1s"))
    assert 1 <= rows(stage)[-1]["seconds"] < 6


@given(units=st.integers(1, 40), micro_batch=st.integers(1, 9), processes=st.integers(1, 8), shift=st.integers(0, 1000))
def test_processes_take_equally_many_micro_batches_and_count_each_unit_once(units, micro_batch, processes, shift):
    all_units = np.arange(units) + shift
    shares = [micro_batches(all_units, micro_batch, process, processes) for process in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert all(1 <= len(chunk) <= micro_batch for share in shares for chunk, _ in share)
    counted = [unit for share in shares for chunk, counts in share if counts for unit in chunk]
    assert sorted(counted) == list(all_units)
    assert {unit for share in shares for chunk, counts in share if not counts for unit in chunk} <= set(all_units)
    most, least = (f(sum(len(c) for c, counts in share if counts) for share in shares) for f in (max, min))
    assert most - least <= 1


def test_every_sample_is_trained_on_once_in_an_epoch(stage):
    task = Task()
    run(stage, task, epochs=2, micro_batch=3)
    units = [unit for chunk in task.seen for unit in chunk]
    assert sorted(units[:SAMPLES]) == sorted(units[SAMPLES:]) == list(range(SAMPLES))
    assert units[:SAMPLES] != units[SAMPLES:]


def test_a_stage_can_choose_its_micro_batch(stage):
    task = Task()
    run(stage, task, epochs=1, rows_at_once=2)
    assert [len(chunk) for chunk in task.seen] == [2, 2, 2, 1] * (SAMPLES // PER_STEP) + [2, 2]
    units = [unit for chunk in task.seen for unit in chunk]
    assert units == np.concatenate(task.plan(0)).tolist()


def fake_accelerator(process: int = 0, processes: int = 1, device: str = "cuda") -> types.SimpleNamespace:
    return types.SimpleNamespace(process_index=process, num_processes=processes, device=torch.device(device))


def wait_until(happened) -> None:
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.002)


def threads_for_batches() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("per_step", [7, SAMPLES])
@pytest.mark.parametrize("start", [(0, 0), (1, 3)])
@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_batches_made_ahead_are_those_made_in_place(monkeypatch, per_step, start, processes, device):
    """From the beginning or from where a run is resumed, over the ends of epochs, also those of a single step."""
    monkeypatch.setattr("test_loop.PER_STEP", per_step)
    for process in range(processes):
        task, micro_batch = Task(), 2
        ahead = BatchesAhead(task, micro_batch, fake_accelerator(process, processes, device))
        first_epoch, first = start
        for epoch in range(first_epoch, 3):
            plan = task.plan(epoch)
            for step in range(min(first, len(plan) - 1), len(plan)):
                found = ahead.take(plan, Position(epoch=epoch, step_in_epoch=step))
                chunks = micro_batches(plan[step], micro_batch, process, processes)
                assert [counts for _, counts in found] == [counts for _, counts in chunks]
                for (batch, _), (chunk, _) in zip(found, chunks, strict=True):
                    assert_equal(batch, Task().collate(chunk, epoch))
            first = 0


def test_the_next_step_is_made_while_the_model_works_on_this_one():
    """And none after it, nor one of the next epoch, whose plan is not known."""
    task = Task()
    ahead, plan = BatchesAhead(task, PER_STEP, fake_accelerator()), task.plan(0)
    for step in range(STEPS_PER_EPOCH):
        ahead.take(plan, Position(step_in_epoch=step))
        made = min(step + 2, STEPS_PER_EPOCH)
        wait_until(lambda made=made: len(task.seen) == made)
        time.sleep(0.005)
        assert [list(units) for units in plan[:made]] == task.seen


def test_on_a_processor_no_batch_is_made_before_its_step():
    task = Task()
    ahead, plan = BatchesAhead(task, PER_STEP, fake_accelerator(device="cpu")), task.plan(0)
    for step in range(2):
        ahead.take(plan, Position(step_in_epoch=step))
        assert len(task.seen) == step + 1 and not threads_for_batches()


class BadData(Exception):
    pass


@pytest.mark.parametrize("bad_step", [0, 1, 4, STEPS_PER_EPOCH - 1])
def test_what_goes_wrong_with_a_batch_is_raised_at_its_step(stage, bad_step):
    task = Task()
    collate, bad = task.collate, task.plan(0)[bad_step][-1]

    def with_bad_data(units, epoch):
        if bad in units:
            raise BadData(f"sample {bad}")
        return collate(units, epoch)

    task.collate = with_bad_data
    with pytest.raises(BadData, match=f"sample {bad}"):
        run(stage, task)
    trained_on = [row["step"] for row in rows(stage)] if bad_step else []
    assert trained_on == list(range(1, bad_step + 1)), "what came before"


def test_no_thread_is_left_behind(tmp_path):
    run(make_stage(tmp_path / "whole"), epochs=1)
    wait_until(lambda: not threads_for_batches())
    run(make_stage(tmp_path / "stopped"), schedule=ScheduleSettings(epochs=None, steps=3))  # with a batch in the making
    wait_until(lambda: not threads_for_batches())
    with pytest.raises(KeyboardInterrupt) as interrupted:  # its traceback keeps the loop's variables
        run(make_stage(tmp_path / "interrupted"), Task(interrupt_at=5))
    wait_until(lambda: not threads_for_batches())
    task = Task()
    task.x[task.plan(0)[3][0]] = math.nan
    with pytest.raises(InputError) as failed:
        run(make_stage(tmp_path / "failed"), task)
    wait_until(lambda: not threads_for_batches())
    assert interrupted.tb and failed.tb


def test_all_modules_are_in_training_in_each_step_and_in_none_of_the_evaluations(stage, monkeypatch):
    """Also where they came in evaluation, inside of a new module, as encoders from a checkpoint do."""
    seen: list[tuple[bool, bool]] = []
    made, forward = Regression.__init__, Regression.forward

    def with_parts_in_evaluation(self, dropout: float) -> None:
        made(self, dropout)
        self.dropout.eval()

    def noting(self, x, y):
        seen.append((self.training, self.dropout.training))
        return forward(self, x, y)

    monkeypatch.setattr(Regression, "__init__", with_parts_in_evaluation)
    monkeypatch.setattr(Regression, "forward", noting)
    run(stage, dropout=0.5, evaluate_steps=2)
    assert set(seen) <= {(True, True), (False, False)} and seen[0] == (True, True)
    assert seen.count((True, True)) == 2 * STEPS_PER_EPOCH


@pytest.fixture
def new_accelerator():
    """Accelerate keeps the precision of the first Accelerator of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("autocast, precision", [(True, "bf16"), (False, "no")])
def test_a_model_can_see_to_its_precision_itself(new_accelerator, monkeypatch, autocast, precision):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as accelerate launch may set it
    accelerator = make_accelerator(RunSettings(precision="bf16"), autocast=autocast)
    assert accelerator.mixed_precision == precision
    layer = accelerator.prepare(nn.Linear(2, 2))
    with accelerator.autocast():
        assert (torch.mm(torch.ones(2, 2), layer.weight).dtype == torch.bfloat16) == autocast


def test_bf16_autocast_trains_and_keeps_fp32_weights(tmp_path, new_accelerator):
    from accelerate.state import AcceleratorState

    stage = make_stage(tmp_path / "bf16")
    weights = run(stage, precision="bf16", epochs=4)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert losses(stage)[-1] < 0.6 * losses(stage)[0] and stage.facts["training"]["precision"] == "bf16"
    full = make_stage(tmp_path / "fp32")
    run(full, epochs=4)
    assert losses(stage) != losses(full) and losses(stage) == pytest.approx(losses(full), rel=0.1)


@pytest.mark.parametrize(
    "argument, problem",
    [
        ("--run.micro_batch=0", "run.micro_batch: 0 is not positive"),
        ("--run.log_steps=-1", "run.log_steps: -1 is not positive"),
        ("--run.checkpoint_steps=0", "run.checkpoint_steps: 0 is not positive"),
        ("--run.keep_checkpoints=0", "run.keep_checkpoints: 0 is not positive"),
        ("--optimizer.learning_rate=-1", "optimizer.learning_rate: -1.0 is negative"),
        ("--optimizer.learning_rate=.nan", "optimizer.learning_rate: nan is negative, or no finite number"),
        ("--optimizer.betas=[1.5, 0.9]", "optimizer.betas: [1.5, 0.9] are not both at least 0 and below 1"),
    ],
)
def test_settings_without_a_meaning_are_refused_by_name(argument, problem, capsys):
    from pretrain.mlm import MLMSettings

    with pytest.raises(SystemExit) as exit_:
        parse_settings(MLMSettings, ["--encoder=e", "--data=d", "--output=o", argument])
    assert exit_.value.code == 2 and problem in capsys.readouterr().err


@pytest.mark.parametrize(
    "setting, schedule, compiler, compiled, reason",
    [
        (True, ScheduleSettings(steps=1), False, True, None),
        (False, ScheduleSettings(epochs=9), True, False, None),
        ("auto", ScheduleSettings(steps=299, epochs=None), True, False, "the run is short (299 steps)"),
        ("auto", ScheduleSettings(epochs=3), True, True, "the run is long enough"),
        ("auto", ScheduleSettings(epochs=3, budget="599s"), True, False, "the run is short (599s)"),
        ("auto", ScheduleSettings(epochs=None, budget="1h"), True, True, "the run is long enough"),
        ("auto", ScheduleSettings(epochs=3), False, False, "there is no C++ compiler (g++, or the one that CXX names)"),
    ],
)
def test_compilation_is_decided_by_the_length_of_the_run(
    stage, monkeypatch, setting, schedule, compiler, compiled, reason
):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if compiler else None)
    run = with_compilation_decided(RunSettings(compile=setting), schedule, 100, stage)
    assert run.compile is compiled
    assert (reason is None) == ("compiled" not in stage.facts)
    if reason:
        assert stage.facts["compiled"]["reason"].startswith(reason)
