"""How the pipeline runs its stages: one after another in the foreground, or side by side, each with its log."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from launch.interruption import REQUEUE_EXIT_CODE, REQUEUE_MARK, STOP_SIGNALS
from launch.recipe import RecipeStage
from launch.stage import partial_folder

PUBLISHING = "push_to_hub"  # a stage with this setting has something to do even when its output is up to date
SECONDS_TO_END = 10  # how long the processes of an interrupted stage have before they are killed
SECONDS_TO_STOP = 120  # the same for a training stage: a step, an evaluation if one is due, a checkpoint
SECONDS_BETWEEN_LOOKS = 0.05
LINES_SHOWN = 12  # of the log of a stage that failed


@dataclass(frozen=True)
class Command:
    """What one stage is started by."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    """Variables on top of those there are."""

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.arguments)])


@dataclass
class Running:
    """A stage at work. It is a process group of its own, so that a signal reaches it once and whole."""

    stage: RecipeStage
    label: str
    command: Command
    slot: int
    """Its place among those that run side by side."""
    mark: Path
    """Lies there once the stage has stopped to go on later, whatever exit code its launcher makes of it."""
    log: Path | None
    """Where its output goes; None for the pipeline's own."""
    process: subprocess.Popen = field(init=False)
    started: float = field(init=False)
    log_begins: int = field(init=False, default=0)
    """Where this start begins in the log, which keeps what earlier ones wrote."""

    def start(self, lock: int) -> None:
        """Start it. It holds the pipeline's lock, too: a pipeline that is killed outright leaves its stages running, and
        the output folder locked as long."""
        self.mark.unlink(missing_ok=True)
        self.started = time.monotonic()
        environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(self.patience)} | os.environ | self.command.environment
        options: dict[str, Any] = {"env": environment, "start_new_session": True, "pass_fds": (lock,)}
        if self.log is None:
            self.process = subprocess.Popen(self.command.arguments, **options)
        else:
            with open(self.log, "ab") as log:
                self.log_begins = log.tell()
                options |= {"stdout": log, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
                self.process = subprocess.Popen(self.command.arguments, **options)

    @property
    def trains(self) -> bool:
        """Whether it is a training stage."""
        return self.stage.launch == "accelerate"

    @property
    def patience(self) -> int:
        """Seconds that it has to end after a signal."""
        return SECONDS_TO_STOP if self.trains else SECONDS_TO_END

    def pass_on(self, number: int) -> bool:
        """Send it a signal that came; whether there still is anything of it.

        Launchers know SIGTERM, but die of SIGUSR1 before their script.
        """
        try:
            os.killpg(self.process.pid, signal.SIGTERM if number in STOP_SIGNALS else number)
        except ProcessLookupError:
            return False
        return True

    def end(self) -> None:
        """Wait for what an interrupted command started (a launcher ends before its script does), and kill what stays."""
        until = time.monotonic() + self.patience
        while time.monotonic() < until:
            if not self.pass_on(0):
                return
            time.sleep(0.1)
        self.pass_on(signal.SIGKILL)

    def say_how_it_ended(self, signalled: signal.Signals | None) -> int:
        """Say it, and give the pipeline's exit code for it."""
        code, after = self.process.returncode, f"after {duration(time.monotonic() - self.started)}"
        if code == 0 and not self.mark.exists():
            say(f"{self.label}: done {after}")
            return 0
        stopped_to_go_on = (
            code == REQUEUE_EXIT_CODE or self.trains and (signalled in STOP_SIGNALS or self.mark.exists())
        )
        if signalled is not None or stopped_to_go_on:
            if code > 0 and code != REQUEUE_EXIT_CODE and not self.mark.exists() and self.log is not None:
                say(last_lines(self.log, self.log_begins))  # it may have failed, and not stopped
            by = f" by {signalled.name}" if signalled else ""
            say(f"{self.label}: stopped{by} {after}. The same pipeline command goes on from here.")
            return REQUEUE_EXIT_CODE if stopped_to_go_on else 128 + signalled
        what = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
        if self.log is not None:
            say(last_lines(self.log, self.log_begins))
        say(f"{self.label}: failed with {what} {after}. This command repeats it:\n  {self.command}")
        say("When it is mended, the same pipeline command goes on from here.")
        return code if code > 0 else 128 - code


def run_stages(
    stages: list[RecipeStage],
    up_to_date: set[str],
    output: Path,
    command_of: Callable[[RecipeStage, int], Command],
    lock: int,
    jobs: int,
) -> int:
    """Run the stages that are not up to date, each once what it reads is finished; gives the pipeline's exit code.

    ``command_of`` gives the command of a stage and its slot among the ``jobs`` that may run at once. After a failure or a
    signal none is started any more; those that run are waited for, and after a signal, which is passed on, ended.
    """
    among = {stage.name for stage in stages}
    pending = {stage.name: stage for stage in stages}
    number_of = {stage.name: number for number, stage in enumerate(stages, start=1)}
    running: list[Running] = []
    codes: list[int] = []
    # Alone a stage shows its own progress; side by side theirs is in their logs. Only people watch it move.
    bar = tqdm(total=len(stages), desc="stages", unit=" stage", dynamic_ncols=True, disable=None if jobs > 1 else True)
    with bar, signals_passed_on(running) as came:
        while True:
            for stage in list(pending.values()):
                if came or any(codes) or len(running) == jobs:
                    break
                at_work = pending.keys() | {one.stage.name for one in running}
                if set(stage.reads) & among & at_work:
                    continue
                del pending[stage.name]
                label = f"[{number_of[stage.name]}/{len(stages)}] {stage.name}"
                if stage.name in up_to_date and not stage.settings.get(PUBLISHING):
                    say(f"{label}: up to date")
                    bar.update()
                    continue
                slot = min(set(range(jobs)) - {one.slot for one in running})
                mark = partial_folder(output / stage.name) / REQUEUE_MARK
                log = output / f"{stage.name}.log" if jobs > 1 else None
                one = Running(stage, label, command_of(stage, slot), slot, mark, log)
                say(f"\n{label}{f', to {log}' if log else ''}\n  {one.command}")
                one.start(lock)
                running.append(one)
                bar.set_postfix_str(", ".join(one.stage.name for one in running))
                for number in came:  # it came before there was a process to pass it to
                    one.pass_on(number)
            if not running:
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
            for one in [one for one in running if one.process.poll() is not None]:
                if came:
                    one.end()
                running.remove(one)
                codes.append(one.say_how_it_ended(came[0] if came else None))
                bar.update()
                bar.set_postfix_str(", ".join(one.stage.name for one in running))
    failures = [code for code in codes if code]
    if came and (not failures or REQUEUE_EXIT_CODE in failures):
        # Where one stage goes on from where it was, the pipeline does, whatever became of the others.
        return REQUEUE_EXIT_CODE if failures or came[0] in STOP_SIGNALS else 128 + came[0]
    return next((code for code in failures if code != REQUEUE_EXIT_CODE), failures[0] if failures else 0)


@contextmanager
def signals_passed_on(running: list[Running]) -> Iterator[list[signal.Signals]]:
    """Context in which the signals that ask to stop are sent on to what runs; gives the list of those that came.

    Wherever they were sent: Ctrl-C at a terminal and ``kill`` of the pipeline do the same.
    """
    came: list[signal.Signals] = []

    def pass_on(number: int, _frame: Any) -> None:
        came.append(signal.Signals(number))
        for one in running:
            one.pass_on(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGHUP, *STOP_SIGNALS)}
    try:
        yield came
    except BaseException:  # the pipeline itself fails: what it started would go on unseen
        for one in running:
            one.pass_on(signal.SIGTERM)
        for one in running:
            one.process.wait()
            one.end()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def last_lines(log: Path, begins: int = 0) -> str:
    """The end of a log after ``begins``, of a progress bar what was last to be seen."""
    with open(log, "rb") as file:
        file.seek(max(begins, log.stat().st_size - 20_000))
        text = file.read().decode(errors="replace")
    lines = [line.rpartition("\r")[2] for line in text.rstrip().split("\n")]
    return "\n".join(lines[-LINES_SHOWN:])


def duration(seconds: float) -> str:
    """A time for people: ``12 s``, ``3 min 05 s``, ``2 h 03 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def say(text: str) -> None:
    """One of the pipeline's own lines, above the bar if there is one; the stages write in between, hence the flush."""
    with tqdm.external_write_mode(sys.stdout):
        print(text, flush=True)
