"""Run a recipe's chain of stages, each as a command of its own, and end with the score table and a report.

    python -m launch.pipeline launch/recipes/demo.yaml
    python -m launch.pipeline launch/recipes/tmn_tiny.yaml --data_root DIR
    python -m launch.pipeline launch/recipes/tmn_tiny.yaml --data_root DIR --dry_run
    python -m launch.pipeline launch/recipes/tmn_tiny.yaml --data_root DIR --until ner --set ner.seed=[1]

Every command is printed so that it can be pasted. A stage that fails stops the pipeline; the next run goes on there, as
finished stages are up to date and training stages resume. See :mod:`launch.recipe` for what a recipe holds.

SIGTERM or SIGUSR1 make a training stage stop with a checkpoint, and the pipeline exit with code 75: the same command goes
on from there.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launch.errors import InputError
from launch.files import write_text_whole
from launch.interruption import REQUEUE_EXIT_CODE, REQUEUE_MARK, STOP_SIGNALS, Interrupted, stopping_when_asked
from launch.recipe import PROJECT, Recipe, RecipeStage, plain_text, read_recipe
from launch.stage import INPUT_MISSING, MANIFEST_NAME, partial_folder

DEFAULT_CONFIG = PROJECT / "accelerate_config.yaml"
RECIPE_NAME = "recipe.yaml"
REPORT_NAME = "report.html"
LOCK_NAME = ".pipeline.lock"
UP_TO_DATE = "up to date"
WOULD_RUN = "would run"
PUBLISHING = "push_to_hub"  # a stage with this setting has something to do even when its output is up to date
SECONDS_TO_END = 10  # how long the processes of an interrupted stage have before they are killed
SECONDS_TO_STOP = 120  # the same for a training stage: a step, an evaluation if one is due, a checkpoint


@dataclass(frozen=True)
class Launcher:
    """How training stages are started on this machine: by ``accelerate launch``, or by ``torchrun`` on a CPU."""

    processes: int
    on_cpu: bool
    config: Path | None
    """``--config_file`` of ``accelerate launch``; None leaves the choice to accelerate."""
    plain: bool = True
    """Whether the processes are all there is to it; not where ``config`` says DeepSpeed, FSDP, several machines."""

    def command(self) -> tuple[list[str], dict[str, str]]:
        """The command before the script, and the variables it needs in its environment."""
        threads = (
            {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, _cores() // self.processes))}
        )
        if self.plain and self.on_cpu and self.processes > 1:
            # accelerate launch starts a single process on a CPU, whatever --num_processes says.
            start = [_python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes)]
            return start, {"ACCELERATE_USE_CPU": "true"} | threads
        # --quiet: when a stage fails, its own words are enough; accelerate would add a traceback of itself.
        start = [_python(), "-m", "accelerate.commands.launch", "--quiet"]
        if self.config is not None:
            start += ["--config_file", shortest(self.config)]
        if self.plain and self.processes > 1:
            start += ["--multi_gpu"]
        if not self.plain or self.processes > 1:
            start += ["--num_processes", str(self.processes)]
        return start, threads if self.on_cpu else {}  # without it accelerate launch gives a process one thread


@dataclass(frozen=True)
class Command:
    """What one stage is started by."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    """Variables on top of those there are."""

    def __str__(self) -> str:
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*variables, shlex.join(self.arguments)])


def command_of(stage: RecipeStage, output: Path, launcher: Launcher, overwrite: bool = False) -> Command:
    """The command of one stage of a recipe that writes to ``output``."""
    start, environment = launcher.command() if stage.launch == "accelerate" else ([_python()], {})
    return Command([*start, shortest(stage.script), *stage_arguments(stage, output, overwrite)], environment)


def stage_arguments(stage: RecipeStage, output: Path, overwrite: bool = False) -> list[str]:
    """What follows the script in the command of one stage of a recipe that writes to ``output``."""
    settings = stage.settings_in(output) | {"output": str(output / stage.name)}
    return [*stage.command, *flags(settings | ({"overwrite": True} if overwrite else {}))]


def flags(settings: dict[str, Any], prefix: str = "--") -> list[str]:
    """Settings as jsonargparse reads them: ``--optimizer.learning_rate 3e-4 --exclude '["a", "b"]'``."""
    arguments = []
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            arguments += flags(value, prefix=f"{prefix}{name}.")
            continue
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else plain_text(value)
        # A value that looks like a flag has to be joined to its own.
        arguments += [f"{prefix}{name}={text}"] if text.startswith("-") else [f"{prefix}{name}", text]
    return arguments


def shortest(path: str | Path) -> str:
    """The path relative to the working directory if it lies within it, else absolute: either can be pasted."""
    path = Path(os.path.abspath(path))  # not resolve(): a virtual environment's python is a link, and must stay one
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def select(recipe: Recipe, first: str | None, last: str | None) -> list[RecipeStage]:
    """The stages from ``first`` until ``last``; a name with ``for_each`` means the first or the last made of it."""
    begin = recipe.stages.index(recipe.find(first)[0]) if first else 0
    end = recipe.stages.index(recipe.find(last)[-1]) if last else len(recipe.stages) - 1
    if begin > end:
        raise InputError(f"--from {first} comes after --until {last}; nothing would run.")
    return list(recipe.stages[begin : end + 1])


def is_finished(folder: Path) -> bool:
    """Whether a stage has finished its folder."""
    return (folder / MANIFEST_NAME).is_file()


def dry_run(stages: list[RecipeStage], output: Path, overwrite: bool = False) -> dict[str, str]:
    """What would happen to each stage, asked of the stages themselves: ``{name: "up to date" | "would ...: why"}``."""
    commands: dict[Path, dict[str, list[str]]] = {}
    for stage in stages:
        commands.setdefault(stage.script, {})[stage.name] = stage_arguments(stage, output, overwrite)
    own: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=_cores()) as pool:
        for answers in pool.map(lambda script: _ask(script, commands[script]), commands):
            own.update(answers)
    verdicts: dict[str, str] = {}
    for stage in stages:
        upstream = {name: verdicts[name] for name in stage.reads if name in verdicts}
        verdicts[stage.name] = _verdict(own[stage.name], upstream, output, is_finished(output / stage.name), overwrite)
    return verdicts


def is_fine(verdict: str) -> bool:
    """Whether a stage is done or can be: not refused, not failing."""
    return verdict == UP_TO_DATE or verdict.startswith(WOULD_RUN)


def _ask(script: Path, commands: dict[str, list[str]]) -> dict[str, str]:
    """What a stage file answers to the commands with ``--dry_run true``; one process for all of them."""
    done = subprocess.run(
        [sys.executable, str(PROJECT / "launch" / "ask.py"), str(script)],
        input=json.dumps(commands),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return dict.fromkeys(commands, f"would fail: {lines[-1]}")
    return json.loads(done.stdout)


def _verdict(own: str, upstream: dict[str, str], output: Path, finished: bool, overwrite: bool) -> str:
    """A stage's own verdict, corrected by what happens to its inputs before it."""
    if not own.startswith(INPUT_MISSING) and not is_fine(own):
        return own.replace("--overwrite true", "--overwrite")  # the pipeline's takes no value
    for name, verdict in upstream.items():
        if not is_fine(verdict):
            return f"would not be reached: its input {name} {verdict.partition(':')[0]}"
    changing = [name for name, verdict in upstream.items() if verdict != UP_TO_DATE]
    missing = own.removeprefix(INPUT_MISSING).split("; ") if own.startswith(INPUT_MISSING) else []
    for place in missing:
        if not changing or str(output) not in place:  # no stage before it makes that
            return f"would fail: its input {place.strip()}"
    if not changing:
        return own
    names, are = " and ".join(changing), "is" if len(changing) == 1 else "are"
    inputs = f"its input{'s' if len(changing) > 1 else ''} {names} {are} made"
    if not finished:
        return f"{WOULD_RUN}: {inputs} first"
    return f"{WOULD_RUN}: {inputs} again" + ("" if overwrite else "; refused if that comes out different")


def run(
    stages: list[RecipeStage], up_to_date: set[str], output: Path, launcher: Launcher, overwrite: bool, lock: int
) -> int:
    """Run the stages that are not up to date, one after the other; stop at the first that fails, with its exit code."""
    for number, stage in enumerate(stages, start=1):
        label = f"[{number}/{len(stages)}] {stage.name}"
        if stage.name in up_to_date and not stage.settings.get(PUBLISHING):
            say(f"{label}: up to date")
            continue
        command = command_of(stage, output, launcher, overwrite)
        trains = stage.launch == "accelerate"
        mark = partial_folder(output / stage.name) / REQUEUE_MARK
        mark.unlink(missing_ok=True)
        say(f"\n{label}\n  {command}")
        started = time.monotonic()
        code, signalled = _run_passing_signals_on(command, lock, SECONDS_TO_STOP if trains else SECONDS_TO_END)
        after = f"after {duration(time.monotonic() - started)}"
        stopped_to_go_on = code == REQUEUE_EXIT_CODE or trains and (signalled in STOP_SIGNALS or mark.exists())
        if signalled is not None or stopped_to_go_on:
            by = f" by {signalled.name}" if signalled else ""
            say(f"{label}: stopped{by} {after}. The same pipeline command goes on from here.")
            return REQUEUE_EXIT_CODE if stopped_to_go_on else 128 + signalled
        if code != 0:
            what = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
            say(f"{label}: failed with {what} {after}. This command repeats it:\n  {command}")
            say("When it is mended, the same pipeline command goes on from here.")
            return code if code > 0 else 128 - code
        say(f"{label}: done {after}")
    return 0


def _run_passing_signals_on(command: Command, lock: int, seconds_to_end: int) -> tuple[int, signal.Signals | None]:
    """Run a command in the foreground; return its exit code, and the signal that came meanwhile, if one did.

    The command is a process group of its own, so that an interrupt reaches it once, whole, and wherever it was sent:
    Ctrl-C at a terminal and ``kill`` of the pipeline do the same. It holds the pipeline's lock, too: a pipeline that is
    killed outright leaves its stage running, and the output folder locked as long.
    """
    came: list[signal.Signals] = []
    process: subprocess.Popen | None = None

    def pass_on(number: int, _frame: Any) -> None:
        came.append(signal.Signals(number))
        if process is not None:
            _signal_group(process.pid, _passed_on(number))

    numbers = (signal.SIGINT, signal.SIGHUP, *STOP_SIGNALS)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        environment = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(seconds_to_end)} | os.environ | command.environment
        process = subprocess.Popen(command.arguments, env=environment, start_new_session=True, pass_fds=(lock,))
        if came:  # it came before there was a process to pass it to
            _signal_group(process.pid, _passed_on(came[0]))
        code = process.wait()
        if came:
            _end_group(process.pid, seconds_to_end)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code, came[0] if came else None


def _passed_on(number: int) -> int:
    """The signal to send to a stage for one that came: launchers know SIGTERM, but die of SIGUSR1 before their script."""
    return signal.SIGTERM if number in STOP_SIGNALS else number


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; whether there still is one."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _end_group(group: int, seconds: int) -> None:
    """Wait for what an interrupted command started (a launcher ends before its script does), and kill what stays."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not _signal_group(group, 0):
            return
        time.sleep(0.1)
    _signal_group(group, signal.SIGKILL)


@contextmanager
def locked(output: Path) -> Iterator[int]:
    """Hold the output folder against other pipelines; gives the lock's file descriptor. InputError if it is held."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror}). Choose another --output.") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 100).decode(errors="replace").strip() or "unknown"
            raise InputError(
                f"{output}: another pipeline, or a stage that it left running, is writing there (process {holder}). "
                "Wait for it, end it, or choose another --output."
            ) from None
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield descriptor
    finally:
        os.close(descriptor)


def choose_launcher(processes: int | None, config: Path | None, stages: list[RecipeStage]) -> Launcher:
    """As many processes as asked for, else as ``config`` says, else one for each GPU, else one."""
    if processes is not None and processes < 1:
        raise InputError(f"--num_processes {processes}: it takes at least one.")
    configured = _read_launch_config(config) if config is not None else {}
    devices = 0
    if any(stage.launch == "accelerate" for stage in stages):
        import torch  # takes seconds, and data preparation alone does without it

        devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    return Launcher(
        processes=processes or configured.get("num_processes") or max(1, devices),
        on_cpu=devices == 0 or configured.get("use_cpu") is True,
        config=config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None),
        plain=configured.get("distributed_type", "NO") in ("NO", "MULTI_CPU", "MULTI_GPU")
        and configured.get("num_machines", 1) == 1,
    )


def _read_launch_config(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"--launch_config {path}: cannot be read ({error}). `accelerate config` makes one.") from None
    if not isinstance(content, dict):
        raise InputError(f"--launch_config {path}: not an accelerate configuration. `accelerate config` makes one.")
    return content


def check_inputs(recipe: Recipe, stages: list[RecipeStage], output: Path) -> None:
    """Raise InputError unless what the stages read is finished or made by a stage among them."""
    for stage in stages:
        for read in stage.reads:
            if not is_finished(output / read) and read not in {other.name for other in stages}:
                raise InputError(
                    f"stage {stage.name} reads {read}, which is not finished in {output}. Start with --from {read}."
                )


def duration(seconds: float) -> str:
    """A time for people: ``12 s``, ``3 min 05 s``, ``2 h 03 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def say(text: str) -> None:
    """One of the pipeline's own lines; the stages write in between, hence the flush."""
    print(text, flush=True)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recipe", type=Path, help="YAML file that lists the stages; see launch/recipes/")
    add("--data_root", type=Path, metavar="DIR", help="folder of the raw data: {data_root} in the recipe")
    add("--encoder", metavar="DIR_OR_ID", help="encoder to start from instead of the recipe's: {encoder}")
    add(
        "--output", type=Path, metavar="DIR", help="folder of the run, a sub-folder for each stage (default: runs/NAME)"
    )
    add("--from", dest="first", metavar="STAGE", help="start with this stage; what it reads must be finished")
    add("--until", dest="last", metavar="STAGE", help="stop after this stage")
    add("--dry_run", action="store_true", help="say what would run, what is up to date, and why, and stop")
    add("--overwrite", action="store_true", help="make stages again whose settings or inputs have changed")
    add("--num_processes", type=int, metavar="N", help="processes of a training stage (default: the GPUs, or 1)")
    add(
        "--launch_config",
        type=Path,
        metavar="YAML",
        help="accelerate's configuration (default: accelerate_config.yaml)",
    )
    add("--set", dest="overrides", action="append", default=[], metavar="STAGE.SETTING=VALUE",
        help="override a setting of a stage, or the list of one of its for_each; may be repeated")  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code: 0 done, 2 for what the user can mend, 75 for stopped, else the failed stage's."""
    arguments = parse_arguments(argv)
    try:
        with stopping_when_asked():
            return _main(arguments)
    except InputError as error:
        print(f"pipeline: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # between two stages; while one runs it is passed on
        print("pipeline: interrupted", file=sys.stderr)
        return 130
    except Interrupted as reason:  # likewise
        print(f"pipeline: {reason}; the same command goes on", file=sys.stderr)
        return REQUEUE_EXIT_CODE


def _main(arguments: argparse.Namespace) -> int:
    if arguments.data_root is not None and not arguments.data_root.is_dir():
        raise InputError(f"--data_root {arguments.data_root}: no such folder.")
    recipe = read_recipe(arguments.recipe, arguments.data_root, arguments.encoder, arguments.overrides)
    output = arguments.output or Path("runs") / recipe.name
    stages = select(recipe, arguments.first, arguments.last)
    check_inputs(recipe, stages, output)
    if arguments.dry_run:
        verdicts = dry_run(stages, output, arguments.overwrite)
        width = max(map(len, verdicts))
        for name, verdict in verdicts.items():
            say(f"{name:{width}}  {verdict}")
        return (
            0 if all(verdict == "up to date" or verdict.startswith("would run") for verdict in verdicts.values()) else 2
        )

    launcher = choose_launcher(arguments.num_processes, arguments.launch_config, stages)
    started = time.monotonic()
    with locked(output) as lock:
        say(f"{recipe.name}: {recipe.description}\nwriting to {output}")
        # All are asked before the first is run: what is wrong with the last is said now, not in hours; and what is up
        # to date, with all that it reads, need not be started.
        verdicts = dry_run(stages, output, arguments.overwrite)
        for name, verdict in verdicts.items():
            if not is_fine(verdict):
                raise InputError(f"nothing was run, for stage {name} {verdict}")
        write_text_whole(output / RECIPE_NAME, recipe.to_yaml())
        up_to_date = {name for name, verdict in verdicts.items() if verdict == UP_TO_DATE}
        code = run(stages, up_to_date, output, launcher, arguments.overwrite, lock)
        if code == 0:
            say(f"\nall done in {duration(time.monotonic() - started)}\n")
            _report(recipe, output)
    return code


def _report(recipe: Recipe, output: Path) -> None:
    """Print the score table, write the report page, and say where it lies."""
    from launch.report import print_table, write_report  # only now: it is not needed by a pipeline that fails

    folders = [output / stage.name for stage in recipe.stages if is_finished(output / stage.name)]
    page = write_report(output, folders, output / REPORT_NAME, recipe.description or recipe.name)
    say(f"{print_table(folders)}\n\nreport: {shortest(page)}")


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _python() -> str:
    return shortest(sys.executable)


if __name__ == "__main__":
    raise SystemExit(main())
