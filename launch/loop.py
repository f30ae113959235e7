"""The training loop of every trained stage, on Accelerate: one process or many, DDP or DeepSpeed, CPU or GPU.

Exactness. The work of every optimizer step is a function of (seed, epoch), decided by the task's ``plan``; random
draws inside the model are reseeded for every micro-batch from (seed, step, process, micro-batch). So there is no random
state to save: a run that is killed at any step and resumed from its last checkpoint computes what the undisturbed one
computes, and the number of processes does not change what is trained on. On processors that is so bit for bit; on a GPU
as far as its kernels add up in a fixed order, which those of embeddings do not.

The loss. A task's model returns a loss *sum* and the *weight* it is a sum over (masked tokens, words). The loop divides
by the weight of the whole optimizer step, over all processes and micro-batches, so that neither changes the loss.

Read :func:`train` from top to bottom; what it calls stands below it in the order of use.
"""

import json
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
)
from safetensors import SafetensorError
from transformers.integrations import unset_hf_deepspeed_config

from launch import checkpoint as checkpoints
from launch.clipped_adamw import ClippedAdamW
from launch.errors import InputError
from launch.files import write_text_whole
from launch.interruption import REQUEUE_MARK, Interrupted, stop_requests
from launch.native import processor_has
from launch.schedule import ScheduleSettings, budget_in_seconds
from launch.settings import NOT_IDENTITY
from launch.stage import METRICS_NAME, Stage, iterate_jsonl

Unit = Any
"""What a step is made of and processes share: a packed row of texts (MLM), a tweet (NER)."""

Batch = dict[str, torch.Tensor]

Precision = Literal["auto", "fp32", "bf16"]
"""What is computed in; ``auto`` is bf16 where the GPU or the processor computes it fast, else fp32."""

COMPILED_FROM_STEPS, COMPILED_FROM_SECONDS = 300, 600
"""How long a run must be for `run.compile auto`: compiling takes half a minute, which these steps make up for."""

DEEPSPEED_TAG = "engine"
"""Folder of DeepSpeed's shards, inside the checkpoint's ``deepspeed/``."""


class TrainingTask(Protocol):
    """What a stage gives the loop."""

    def plan(self, epoch: int) -> Sequence[Sequence[Unit]]:
        """The units of each optimizer step of an epoch: a function of (seed, epoch) alone."""

    def collate(self, units: Sequence[Unit], epoch: int) -> Batch:
        """The model's keyword arguments for these units."""

    def size(self, units: Sequence[Unit]) -> int:
        """How much work they are, in ``size_unit``, for the rate in the progress bar."""

    def sample_ids(self, units: Sequence[Unit]) -> list[str]:
        """The ids of the samples in these units, for error messages."""

    def evaluate(self, model: torch.nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """Validation metrics, the same on every process. ``loss`` among them, and what ``best_by`` names."""


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW."""

    learning_rate: float = 5e-4
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; biases and normalisation weights have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running mean and of the running mean square of the gradient."""
    epsilon: float = 1e-8
    """Added to the denominator."""
    maximum_gradient_norm: float = 1.0
    """The global gradient norm is clipped to this; 0 for no clipping."""

    def __post_init__(self) -> None:
        """Refuse what cannot train."""
        for name in ("learning_rate", "weight_decay", "maximum_gradient_norm", "epsilon"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"optimizer.{name}: {getattr(self, name)} is negative, or no finite number")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas: {list(self.betas)} are not both at least 0 and below 1")


@dataclass(frozen=True)
class RunSettings:
    """How the loop runs: precision, micro-batches, checkpoints."""

    precision: Precision = "auto"
    """`bf16` autocast, `fp32`, or `auto`: bf16 where the GPU or the processor computes it fast, else fp32."""
    compile: Literal["auto"] | bool = False
    """`torch.compile` the model: half a minute at the start, then faster steps. `auto`: where the run is long enough."""
    micro_batch: int = field(default=32, metadata=NOT_IDENTITY)
    """Rows that go through the model at once on one process; accumulation follows from it and the global batch. The loss is
    the same whatever it is, but dropout draws other masks."""
    checkpoint_steps: int = field(default=500, metadata=NOT_IDENTITY)
    """Optimizer steps between checkpoints."""
    keep_checkpoints: int = field(default=2, metadata=NOT_IDENTITY)
    """How many checkpoints to keep while the run lasts."""
    log_steps: int = field(default=20, metadata=NOT_IDENTITY)
    """Optimizer steps between rows in metrics.jsonl."""
    timeout: int = field(default=600, metadata=NOT_IDENTITY)
    """Seconds that a process waits for another before it takes it for hanging, and the run ends."""

    def __post_init__(self) -> None:
        """Refuse counts of nothing."""
        for name in ("micro_batch", "checkpoint_steps", "keep_checkpoints", "log_steps", "timeout"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name}: {getattr(self, name)} is not positive")


@dataclass
class Position:
    """Where a run stands: all that a resumed run needs beside weights and optimizer."""

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    seconds: float = 0.0
    best_value: float = -math.inf
    best_step: int = -1
    evaluations_without_gain: int = 0
    evaluated_at_step: int = -1
    finished: bool = False
    logged_loss_sum: float = 0.0
    logged_weight: float = 0.0

    def epochs(self, steps_per_epoch: int) -> float:
        """Epochs that lie behind, the present one by its share of steps."""
        return self.epoch + self.step_in_epoch / steps_per_epoch


class TrainingError(InputError):
    """The run cannot go on: it says at which step, on which samples, and where the last good checkpoint lies."""


def make_accelerator(run: RunSettings, autocast: bool = True) -> Accelerator:
    """The Accelerator of a stage, as the launcher's configuration and ``run.precision`` say.

    ``autocast`` False is for a model that sees to its precision itself; under DeepSpeed it is autocast all the same.
    Raises InputError where fewer processes run than were asked for.
    """
    check_launch()
    AcceleratorState._reset_state()  # else a process keeps the precision of the first stage that it ran
    by_deepspeed = under_deepspeed()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    on_cpu = not torch.accelerator.is_available()
    process_group = {"timeout": timedelta(seconds=run.timeout)} | ({"backend": "gloo"} if on_cpu else {})
    accelerator = Accelerator(
        # DeepSpeed's own bf16 would round the weights, too: it gets autocast by its configuration below.
        mixed_precision="bf16" if autocast and precision_of(run) == "bf16" and not by_deepspeed else "no",
        # DeepSpeed would take the world to be one process on a CPU that Accelerate knows of, or without a backend.
        cpu=on_cpu and not by_deepspeed,
        kwargs_handlers=[
            *([InitProcessGroupKwargs(**process_group)] if several or by_deepspeed else []),
            # No model here changes its buffers: they need not be sent around in each step.
            *([DistributedDataParallelKwargs(broadcast_buffers=False)] if several and not by_deepspeed else []),
        ],
    )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        unset_hf_deepspeed_config()  # models are small and made whole; ZeRO-3 cuts them up when training starts
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": run.micro_batch,
            "gradient_accumulation_steps": 1,  # the loop weighs its micro-batches itself
            "torch_autocast": {"enabled": precision_of(run) == "bf16", "dtype": "bfloat16"},
        }
    assert accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.num_processes == 1 or accelerator.distributed_type != DistributedType.NO
    return accelerator


def with_compilation_decided(
    run: RunSettings, schedule: ScheduleSettings, steps_per_epoch: int, stage: Stage
) -> RunSettings:
    """The settings with ``compile`` true or false, and why in the log and the manifest."""
    if run.compile != "auto":
        return run
    steps = expected_steps(schedule, steps_per_epoch)
    is_long = (
        budget_in_seconds(schedule.budget) >= COMPILED_FROM_SECONDS if schedule.budget else steps >= COMPILED_FROM_STEPS
    )
    compiler = torch.accelerator.is_available() or shutil.which(os.environ.get("CXX", "g++")) is not None
    reason = (
        f"the run is short ({schedule.budget or f'{steps} steps'})"
        if not is_long
        else "the run is long enough"
        if compiler
        else "there is no C++ compiler (g++, or the one that CXX names): steps are slower"
    )
    stage.log(f"{'compiled' if is_long and compiler else 'not compiled'}: {reason}")
    stage.facts["compiled"] = {"compiled": is_long and compiler, "reason": reason}
    return replace(run, compile=is_long and compiler)


def under_deepspeed() -> bool:
    """Whether the launcher's configuration asks for DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def check_launch() -> None:
    """Raise InputError where ``accelerate launch`` was asked for several processes and quietly started this one alone.

    That is what it does on a CPU. It leaves a trace: the address at which the processes were to meet.
    """
    by_accelerate, to_meet = ("ACCELERATE_MIXED_PRECISION" in os.environ), ("MASTER_PORT" in os.environ)
    counted = {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"} & os.environ.keys()
    if by_accelerate and to_meet and not counted:
        raise InputError(
            "accelerate launch was asked for several processes and started one: it starts no more on a CPU. This does: "
            f"ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node N {shlex.join(sys.argv)} "
            "(If one is what you want, take MASTER_PORT out of the environment.)"
        )


def precision_of(run: RunSettings) -> str:
    """``bf16`` or ``fp32``: what ``run.precision`` comes to on this machine."""
    return chosen_precision(run.precision)


def chosen_precision(precision: Precision, device: torch.device | None = None) -> str:
    """``bf16`` or ``fp32``: what a setting comes to on a device; None for the one that training takes."""
    if precision != "auto":
        return precision
    return processor_precision() if device is not None and device.type == "cpu" else best_precision()


def type_of(run: RunSettings) -> torch.dtype:
    """The type that ``run.precision`` comes to on this machine."""
    return torch.bfloat16 if precision_of(run) == "bf16" else torch.float32


def best_precision() -> str:
    """bf16 where it is fast: CUDA devices that have it, processors with AMX or AVX512-BF16; else fp32."""
    told_to_use_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    if torch.cuda.is_available() and not told_to_use_cpu:
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return processor_precision()


def processor_precision() -> str:
    """bf16 on processors with AMX or AVX512-BF16; else fp32."""
    return "bf16" if processor_has("amx_bf16") or processor_has("avx512_bf16") else "fp32"


def make_optimizer(
    model: torch.nn.Module,
    settings: OptimizerSettings,
    learning_rate_of: Callable[[str], float] | None = None,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only, and a peak learning rate for each parameter by its name."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.dim() > 1 else 0.0
            peak = learning_rate_of(name) if learning_rate_of else settings.learning_rate
            groups.setdefault((peak, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": peak, "peak_learning_rate": peak, "weight_decay": decay}
            for (peak, decay), parameters in groups.items()
        ],
        betas=settings.betas,
        eps=settings.epsilon,
        fused=fused,
    )


@stop_requests.heeded_after_steps()
def train(
    stage: Stage,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    task: TrainingTask,
    *,
    seed: int,
    schedule: ScheduleSettings,
    run: RunSettings,
    maximum_gradient_norm: float,
    size_unit: str,
    evaluate_steps: int | None = None,
    best_by: str | None = None,
    patience: int | None = None,
    micro_batch: int | None = None,
    highest_rate: float | None = None,
) -> Path:
    """Train ``model`` on ``task`` and return the file of the final weights (a safetensors state dict).

    ``micro_batch`` units go through the model at once on a process; None takes ``run.micro_batch``. With ``highest_rate``,
    in ``size_unit`` a second, the share of it that is reached is shown and logged.

    Evaluates every ``evaluate_steps`` optimizer steps, or at the end of each epoch. With ``best_by`` the final weights
    are those of the evaluation at which this metric was highest, and training stops after ``patience`` evaluations
    without a gain; without it they are the last ones.

    Raises :class:`TrainingError` where the loss is not finite or a checkpoint cannot be written, and
    :class:`~launch.interruption.Interrupted` where it was asked to stop: after the step, and with a checkpoint.
    """
    assert isinstance(run.compile, bool), "with_compilation_decided comes first"
    folder = stage.folder / "checkpoints"
    if run.compile:
        model.compile()
    by_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if by_deepspeed:  # which clips the gradients itself
        accelerator.state.deepspeed_plugin.deepspeed_config["gradient_clipping"] = maximum_gradient_norm
    model, optimizer = accelerator.prepare(model, optimizer)
    plain_optimizer = optimizer.optimizer
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fast_optimizer = None if by_deepspeed else ClippedAdamW.of(plain_optimizer, maximum_gradient_norm)
    computed = {
        "precision": precision_of(run),
        "compiled": run.compile,
        "optimizer": "clipped_adamw.cpp" if fast_optimizer else "torch",
        **(getattr(unwrapped(model), "computed_by", {}) if precision_of(run) == "bf16" else {}),
    }
    position = resume(stage, accelerator, model, plain_optimizer, folder, computed)
    clock = Clock(position.seconds)
    plan = task.plan(position.epoch)
    batches_ahead = BatchesAhead(task, micro_batch or run.micro_batch, accelerator)
    bar = stage.progress(
        None, "training", total=expected_steps(schedule, len(plan)), unit="step", initial=position.step
    )
    last_logged, logged_size = time.monotonic(), 0
    model.train()  # once, and after evaluations: it goes through all modules

    while not position.finished:
        if position.step_in_epoch >= len(plan):
            position.epoch, position.step_in_epoch = position.epoch + 1, 0
            plan = task.plan(position.epoch)
        units = plan[position.step_in_epoch]
        batches = batches_ahead.take(plan, position)

        # The learning rate is a function of where the run stands, agreed between the processes.
        seconds = from_main_process(accelerator, clock.seconds()) if schedule.budget else clock.seconds()
        share_done = schedule.share_done(position.step, position.epochs(len(plan)), seconds)
        for group in plain_optimizer.param_groups:
            group["lr"] = group["peak_learning_rate"] * schedule.factor(share_done)

        # One optimizer step: every process takes its share of the units, a micro-batch at a time.
        total_weight = sum_over_processes(
            accelerator, sum(float(batch["weight"]) for batch, counts in batches if counts)
        )
        loss_sum = 0.0
        for index, (batch, counts) in enumerate(batches):
            seed_dropout(accelerator.device, seed, position.step, accelerator.process_index, index)
            is_last = index == len(batches) - 1
            with gradients_kept_local(accelerator, model, not is_last):
                loss = model(**to_device(batch, accelerator.device)) * float(counts)
                loss_sum += float(loss.detach())
                # DDP and DeepSpeed average gradients over processes; the loss is a sum over them.
                accelerator.backward(loss * (accelerator.num_processes / max(total_weight, 1.0)))
            del loss  # and with it what it was computed from, before the next is
        # One process may have its signal a step before another: they agree, in passing.
        loss_sum, asked_to_stop = sums_over_processes(accelerator, loss_sum, float(stop_requests.asked_by is not None))
        if not math.isfinite(loss_sum):
            raise not_finite(position, task.sample_ids(units), folder)
        if fast_optimizer:
            fast_optimizer.step()
        else:
            if maximum_gradient_norm > 0:
                accelerator.clip_grad_norm_(parameters, maximum_gradient_norm)
            optimizer.step()
        optimizer.zero_grad()

        position.step += 1
        position.step_in_epoch += 1
        position.logged_loss_sum += loss_sum
        position.logged_weight += total_weight
        bar.update()
        ends_epoch = position.step_in_epoch == len(plan)
        seconds = from_main_process(accelerator, clock.seconds()) if schedule.budget else clock.seconds()
        position.finished = schedule.share_done(position.step, position.epochs(len(plan)), seconds) >= 1

        logged_size += task.size(units)
        if position.step % run.log_steps == 0 or position.finished or ends_epoch:
            mean_loss = position.logged_loss_sum / max(position.logged_weight, 1.0)
            rate = logged_size / (time.monotonic() - last_logged)
            share = f" ({rate / highest_rate:.0%} of the products' limit)" if highest_rate else ""
            bar.set_postfix_str(f"loss {mean_loss:.3f}, {rate:,.0f} {size_unit}/s{share}", refresh=False)
            stage.log_metrics(
                event="train",
                step=position.step,
                epoch=round(position.epochs(len(plan)), 4),
                loss=mean_loss,
                learning_rate=plain_optimizer.param_groups[0]["lr"],
                seconds=round(clock.seconds(), 2),
                **{f"{size_unit}_per_second": round(rate, 1)},
                **({"share_of_limit": round(rate / highest_rate, 4)} if highest_rate else {}),
            )
            position.logged_loss_sum = position.logged_weight = 0.0
            last_logged, logged_size = time.monotonic(), 0

        if position.finished or (position.step % evaluate_steps == 0 if evaluate_steps else ends_epoch):
            started_at = time.monotonic()
            evaluate(stage, accelerator, model, task, position, clock, len(plan), best_by, folder)
            last_logged += time.monotonic() - started_at
            if patience is not None and position.evaluations_without_gain >= patience:
                position.finished = True
                stage.log(f"no gain in {best_by} for {patience} evaluations: stopped at step {position.step}")
        if (
            position.finished
            or asked_to_stop
            or position.step % run.checkpoint_steps == 0
            or position.evaluated_at_step == position.step
        ):
            position.seconds = clock.seconds()
            save(accelerator, model, plain_optimizer, position, computed, folder, run.keep_checkpoints)
        if asked_to_stop and not position.finished:
            raise stopped(stage, position)

    bar.close()
    weights = weights_file(folder, position.best_step if best_by else position.step)
    if not best_by:
        write_weights(accelerator, model, weights)
    stage.facts["training"] = {
        "steps": position.step,
        "epochs": round(position.epochs(len(plan)), 3),
        "seconds": round(position.seconds, 1),
        **computed,
        "distributed": accelerator.distributed_type.value,
        "processes": accelerator.num_processes,
        "threads_per_process": torch.get_num_threads(),
        **({"best_step": position.best_step, f"best_{best_by}": position.best_value} if best_by else {}),
    }
    return weights


class Clock:
    """Training time, going on from what a resumed run had used."""

    def __init__(self, seconds_before: float) -> None:
        self.started_at = time.monotonic() - seconds_before

    def seconds(self) -> float:
        """Seconds of training, over all the starts of this run."""
        return time.monotonic() - self.started_at


def resume(
    stage: Stage,
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    computed: dict[str, Any],
) -> Position:
    """Go back to the newest whole checkpoint, or to the start; damaged ones are set aside with a warning.

    ``computed`` says how this start computes: a warning tells where the checkpoint was computed otherwise.
    """
    choice: list[Any] = [None]
    if accelerator.is_main_process:
        for candidate in checkpoints.checkpoints_newest_first(folder):
            problem = checkpoints.damage(candidate) or _missing_weights(candidate)
            if problem is None:
                choice = [candidate]
                break
            aside = checkpoints.set_aside(candidate)
            stage.warn(f"checkpoint {candidate.name} is passed over: {problem}. It lies in {aside} now")
    if accelerator.num_processes > 1:
        broadcast_object_list(choice)
    newest: Path | None = choice[0]
    position = Position()
    if newest:
        state = checkpoints.read_state(newest)
        if state["written_by"] != kind_of_training(accelerator):
            raise InputError(
                f"{newest} was written by {state['written_by']}, and {kind_of_training(accelerator)} cannot read it. "
                "Start the stage as before, or begin anew with --resume never."
            )
        if changed := {name: was for name, was in state.get("computed", {}).items() if was != computed.get(name)}:
            was, now = (", ".join(f"{name} {values.get(name)}" for name in changed) for values in (changed, computed))
            stage.warn(
                f"computed until now with {was}, on this machine with {now}: not bit for bit what either would be"
            )
            stage.facts["computed_otherwise_until_step"] = {"step": state["position"]["step"], **changed}
        position = Position(**state["position"])
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            model.load_checkpoint(str(newest / "deepspeed"), tag=DEEPSPEED_TAG)
        else:
            checkpoints.restore_checkpoint(newest, unwrapped(model), optimizer)
        stage.log(f"resumed at step {position.step} from {newest}")
    if accelerator.is_main_process:
        _cut_metrics(stage.folder / METRICS_NAME, position.step)
    return position


def kind_of_training(accelerator: Accelerator) -> str:
    """What can read a checkpoint: any number of processes each other's, but DeepSpeed only the same number's."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return "training without DeepSpeed"
    plugin = accelerator.state.deepspeed_plugin
    return f"DeepSpeed ZeRO-{plugin.zero_stage} on {accelerator.num_processes} processes"


def expected_steps(schedule: ScheduleSettings, steps_per_epoch: int) -> int | None:
    """How many steps the run will take, where no time budget decides it."""
    limits = [schedule.epochs * steps_per_epoch] if schedule.epochs else []
    limits += [schedule.steps] if schedule.steps else []
    return min(limits) if limits and not schedule.budget else None


def micro_batches(
    units: Sequence[Unit], micro_batch: int, process_index: int, processes: int
) -> list[tuple[Sequence[Unit], bool]]:
    """This process's share of a step, in micro-batches; as many on every process, since each backward is collective.

    Where the units run out on this process, one that another process counts is taken again, marked not to count.
    """
    mine = units[process_index::processes]
    most = math.ceil(len(units) / processes)
    chunks = []
    for start in range(0, most, micro_batch):
        chunk = mine[start : start + micro_batch]
        chunks.append((chunk, True) if len(chunk) else (units[:1], False))
    return chunks


class BatchesAhead:
    """Makes the batches of the next step in a thread while a GPU works on this one. They depend on nothing else.

    On a processor they are made when they are needed: beside the model's threads there is none free to make them.
    """

    def __init__(self, task: TrainingTask, micro_batch: int, accelerator: Accelerator) -> None:
        self.task, self.micro_batch = task, micro_batch
        self.process_index, self.processes = accelerator.process_index, accelerator.num_processes
        self.ahead = accelerator.device.type != "cpu"
        self.next: Future | None = None

    def take(self, plan: Sequence[Sequence[Unit]], position: Position) -> list[tuple[Batch, bool]]:
        """This process's batches of the step at ``position``; on a GPU, those of the next one of the epoch are begun."""
        step, epoch = position.step_in_epoch, position.epoch
        batches = self.next.result() if self.next else self._make(plan, step, epoch)
        self.next = self._begin(plan, step + 1, epoch) if self.ahead and step + 1 < len(plan) else None
        return batches

    def _begin(self, plan: Sequence[Sequence[Unit]], step: int, epoch: int) -> Future:
        worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        begun = worker.submit(self._make, plan, step, epoch)
        worker.shutdown(wait=False)  # the thread ends with this step, in whatever way training may end
        return begun

    def _make(self, plan: Sequence[Sequence[Unit]], step: int, epoch: int) -> list[tuple[Batch, bool]]:
        chunks = micro_batches(plan[step], self.micro_batch, self.process_index, self.processes)
        return [(self.task.collate(chunk, epoch), counts) for chunk, counts in chunks]


def seed_dropout(device: torch.device, *key: int) -> None:
    """Seed the generators that dropout on ``device`` draws from. (``torch.manual_seed`` takes 3 ms for all others.)"""
    digest = sha256(json.dumps(key).encode()).digest()
    number = int.from_bytes(digest[:8], "big") >> 1
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)


def sum_over_processes(accelerator: Accelerator, value: float) -> float:
    """The sum of a number over all processes, in double precision."""
    return sums_over_processes(accelerator, value)[0]


def sums_over_processes(accelerator: Accelerator, *values: float) -> Sequence[float]:
    """The sums of some numbers over all processes, in double precision, by one message."""
    if accelerator.num_processes == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    torch.distributed.all_reduce(tensor)
    return tensor.tolist()


def from_main_process(accelerator: Accelerator, value: float) -> float:
    """The main process's number, on every process."""
    return sum_over_processes(accelerator, value if accelerator.is_main_process else 0.0)


def gradients_kept_local(accelerator: Accelerator, model: torch.nn.Module, local: bool) -> Any:
    """Context in which a backward pass accumulates on this process (``local``) or ends the step over all."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        accelerator.gradient_state._set_sync_gradients(not local)
        return nullcontext()
    return accelerator.no_sync(model) if local else nullcontext()


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside DDP or DeepSpeed. (``Accelerator.unwrap_model`` imports DeepSpeed wherever it is installed.)"""
    return getattr(model, "module", model)


def has_parameters_in_parts(accelerator: Accelerator) -> bool:
    """Whether each process has but a part of each parameter, as under ZeRO-3."""
    by_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    return by_deepspeed and accelerator.state.deepspeed_plugin.zero_stage == 3


def readable(model: torch.nn.Module) -> Any:
    """Context in which a model's parameters can be read outside of its forward pass: ZeRO-3 gathers them for it."""
    if not any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(model.parameters()))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch's tensors on the model's device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items() if name != "weight"}


def not_finite(position: Position, sample_ids: list[str], folder: Path) -> TrainingError:
    """The error of a loss that is NaN or infinite."""
    return TrainingError(
        f"the loss is not finite at step {position.step} (epoch {position.epoch}). "
        f"Samples of the step: {', '.join(sample_ids[:16])}{' …' if len(sample_ids) > 16 else ''}. "
        f"{last_good(folder)}. Try a lower learning rate or fp32."
    )


def last_good(folder: Path) -> str:
    """Which checkpoint is there to go on from, for error messages."""
    good = checkpoints.checkpoints_newest_first(folder)
    return f"Last good checkpoint: {good[0] if good else 'none yet'}"


def evaluate(
    stage: Stage,
    accelerator: Accelerator,
    model: torch.nn.Module,
    task: TrainingTask,
    position: Position,
    clock: Clock,
    steps_per_epoch: int,
    best_by: str | None,
    folder: Path,
) -> None:
    """Evaluate, log, and keep the weights where they are the best so far."""
    model.eval()
    with torch.no_grad():
        metrics = task.evaluate(model, accelerator)
    model.train()
    epoch = round(position.epochs(steps_per_epoch), 4)
    stage.log_metrics(
        event="evaluate",
        split="validation",
        step=position.step,
        epoch=epoch,
        seconds=round(clock.seconds(), 2),
        **metrics,
    )
    shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if isinstance(value, float))
    stage.log(f"step {position.step}, epoch {epoch:.2f}: validation {shown}")
    position.evaluated_at_step = position.step
    if best_by is None:
        return
    if metrics[best_by] > position.best_value:
        position.best_value, position.best_step = metrics[best_by], position.step
        position.evaluations_without_gain = 0
        write_weights(accelerator, model, weights_file(folder, position.step))
        # The weights that older checkpoints call the best must stay until those checkpoints are gone.
        if accelerator.is_main_process:
            _remove_unnamed_weights(folder, but=weights_file(folder, position.step))
    else:
        position.evaluations_without_gain += 1


def save(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    computed: dict[str, Any],
    folder: Path,
    keep: int,
) -> None:
    """Write a checkpoint of the position and drop the oldest. TrainingError where it would be of no use, or cannot be."""
    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise TrainingError(
            f"the weights are not finite after step {position.step} (epoch {position.epoch}). {last_good(folder)}. "
            "Try a lower learning rate or fp32."
        )
    state = {"written_by": kind_of_training(accelerator), "computed": computed, "position": asdict(position)}
    with told_where_it_fails(folder, f"the checkpoint of step {position.step}"):
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            temporary = folder / f".{checkpoints.PREFIX}{position.step:08d}.partial"
            if accelerator.is_main_process:
                checkpoints.begin_checkpoint(folder, position.step)
            accelerator.wait_for_everyone()
            model.save_checkpoint(str(temporary / "deepspeed"), tag=DEEPSPEED_TAG)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                checkpoints.finish_checkpoint(temporary, state)
        elif accelerator.is_main_process:
            checkpoints.write_checkpoint(folder, position.step, unwrapped(model), optimizer, state)
    if accelerator.is_main_process:
        checkpoints.keep_newest(folder, keep)
    accelerator.wait_for_everyone()


def write_weights(accelerator: Accelerator, model: torch.nn.Module, path: Path) -> None:
    """Write the whole model's weights from the main process; collective, since ZeRO-3 gathers them."""
    by_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    state_dict = accelerator.get_state_dict(model) if by_deepspeed else unwrapped(model).state_dict()
    if accelerator.is_main_process:
        with told_where_it_fails(path.parent, path.name):
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoints.save_weights(path, state_dict)
    accelerator.wait_for_everyone()


@contextmanager
def told_where_it_fails(folder: Path, what: str, checkpoints_folder: Path | None = None) -> Iterator[None]:
    """Context that writes into ``folder``; a TrainingError, and nothing half-written, where that cannot be done.

    It names the last checkpoint of ``checkpoints_folder``, if that is another.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        checkpoints.remove_half_written(folder)
        reason = error.strerror if isinstance(error, OSError) else error
        raise TrainingError(
            f"{folder}: {what} cannot be written ({reason}). {last_good(checkpoints_folder or folder)}. "
            "Make room, or make the folder writable; then the same command goes on."
        ) from None


def stopped(stage: Stage, position: Position) -> Interrupted:
    """What ends a run that was asked to stop, now that its checkpoint is written; leaves the mark of that."""
    if stage.is_main_process:
        (stage.folder / REQUEUE_MARK).touch()
    reason = f"stopped by {stop_requests.asked_by.name}" if stop_requests.asked_by else "stopped with the others"
    return Interrupted(f"{reason} after step {position.step}, of which there is a checkpoint")


def weights_file(folder: Path, step: int) -> Path:
    """Where the weights of an evaluation or of the end of the run lie."""
    return folder / f"weights-{step:08d}.safetensors"


def _remove_unnamed_weights(folder: Path, but: Path) -> None:
    whole = [path for path in checkpoints.checkpoints_newest_first(folder) if checkpoints.damage(path) is None]
    kept = {but, *(_best_weights(path) for path in whole)}
    for path in folder.glob("weights-*.safetensors"):
        if path not in kept:
            path.unlink()


def _best_weights(checkpoint: Path) -> Path | None:
    """The file of the weights that were the best when the checkpoint was written."""
    best_step = checkpoints.read_state(checkpoint)["position"]["best_step"]
    return weights_file(checkpoint.parent, best_step) if best_step >= 0 else None


def _missing_weights(checkpoint: Path) -> str | None:
    best = _best_weights(checkpoint)
    return f"{best.name}, its best weights, is missing" if best and not best.exists() else None


def _cut_metrics(path: Path, step: int) -> None:
    """Drop the rows of steps that will be taken again."""
    if path.exists():
        rows = [row for row in iterate_jsonl(path) if row.get("step", 0) <= step]
        write_text_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
