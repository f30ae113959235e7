"""Run a recipe's chain of stages, each as a command of its own, and end with the score table and a report.

    python -m launch.pipeline launch/recipes/demo.yaml
    python -m launch.pipeline launch/recipes/tmn_tiny.yaml --data_root DIR
    python -m launch.pipeline launch/recipes/tmn_tiny.yaml --data_root DIR --dry_run
    python -m launch.pipeline launch/recipes/tmn_tiny.yaml --data_root DIR --until ner --set ner.seed=[1]

Every command is printed so that it can be pasted. A stage that fails stops the pipeline; the next run goes on there, as
finished stages are up to date and training stages resume. See :mod:`launch.recipe` for what a recipe holds.

With `--jobs N` up to N stages run side by side, each as soon as what it reads is finished, with its share of the cores, or a
GPU of its own; the output of each goes to a log beside its folder. `--commands` prints what could run now, a command a line,
for a batch system (`launch/slurm/array.sbatch`).

SIGTERM or SIGUSR1 make a training stage stop with a checkpoint, and the pipeline exit with code 75: the same command goes
on from there.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launch.errors import InputError
from launch.files import write_text_whole
from launch.interruption import REQUEUE_EXIT_CODE, Interrupted, stopping_when_asked
from launch.recipe import PROJECT, Recipe, RecipeStage, plain_text, read_recipe
from launch.running import Command, duration, run_stages, say
from launch.stage import CANNOT_WRITE, INPUT_MISSING, MANIFEST_NAME

DEFAULT_CONFIG = PROJECT / "accelerate_config.yaml"
RECIPE_NAME = "recipe.yaml"
REPORT_NAME = "report.html"
LOCK_NAME = ".pipeline.lock"
UP_TO_DATE = "up to date"
WOULD_RUN = "would run"


@dataclass(frozen=True)
class Launcher:
    """How training stages are started on this machine: by ``accelerate launch``, or by ``torchrun`` on a CPU."""

    processes: int
    on_cpu: bool
    config: Path | None
    """``--config_file`` of ``accelerate launch``; None leaves the choice to accelerate."""
    plain: bool = True
    """Whether the processes are all there is to it; not where ``config`` says DeepSpeed, FSDP, several machines."""
    jobs: int = 1
    """Stages that may run side by side: each has its share of the cores, and a GPU if there are any."""
    gpus: int = 0
    ports: tuple[int, ...] = ()
    """Where the processes of each job meet; accelerate by itself takes one port for all."""

    def threads(self, processes: int) -> dict[str, str]:
        """The variable that gives each of a stage's processes its share of the cores.

        One that is set already stands; but side by side no stage takes more than its share.
        """
        share = max(1, _cores() // (processes * self.jobs))
        given = os.environ.get("OMP_NUM_THREADS")
        if given is None:
            return {"OMP_NUM_THREADS": str(share)}
        return {"OMP_NUM_THREADS": str(min(share, int(given)))} if self.jobs > 1 and given.isdigit() else {}

    def command(self, slot: int = 0) -> tuple[list[str], dict[str, str]]:
        """The command before the script, in a slot of those that run side by side, and the variables it needs."""
        threads = self.threads(self.processes)
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
        if self.config is not None or self.processes > 1:
            start += ["--num_processes", str(self.processes)]  # else as many as the configuration says
        if self.ports and (not self.plain or self.processes > 1):
            start += ["--main_process_port", str(self.ports[slot])]
        return start, threads if self.on_cpu else {}  # without it accelerate launch gives a process one thread


def command_of(stage: RecipeStage, output: Path, launcher: Launcher, overwrite: bool = False, slot: int = 0) -> Command:
    """The command of one stage of a recipe that writes to ``output``, in a slot of those that run side by side."""
    if stage.launch == "accelerate":
        start, environment = launcher.command(slot)
    else:
        start, environment = [_python()], launcher.threads(1) if launcher.jobs > 1 else {}
    if launcher.jobs > 1 and launcher.gpus:
        given = os.environ.get("CUDA_VISIBLE_DEVICES")  # by a batch system, for one: the others are not ours
        visible = given.split(",") if given else [str(number) for number in range(launcher.gpus)]
        environment |= {"CUDA_VISIBLE_DEVICES": visible[slot % launcher.gpus]}
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
        text = (
            json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else plain_text(value)
        )
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


def ready(stages: list[RecipeStage], output: Path, overwrite: bool = False) -> list[RecipeStage]:
    """The stages that are not up to date, and read nothing that still has to be made. InputError if one is refused."""
    verdicts = dry_run(stages, output, overwrite)
    for name, verdict in verdicts.items():
        if not is_fine(verdict):
            raise InputError(f"stage {name} {verdict}")
    made = {name for name, verdict in verdicts.items() if verdict != UP_TO_DATE}
    return [stage for stage in stages if stage.name in made and not made & set(stage.reads)]


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
        path = Path(place.partition(": ")[2].removesuffix(" is not there"))
        if not changing or not path.is_relative_to(output):  # no stage before it makes that
            return f"would fail: its input {place.strip()}"
    if not changing:
        return own
    names, are = " and ".join(changing), "is" if len(changing) == 1 else "are"
    inputs = f"its input{'s' if len(changing) > 1 else ''} {names} {are} made"
    if not finished:
        return f"{WOULD_RUN}: {inputs} first"
    return f"{WOULD_RUN}: {inputs} again" + ("" if overwrite else "; refused if that comes out different")


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


def choose_launcher(processes: int | None, config: Path | None, stages: list[RecipeStage], jobs: int = 1) -> Launcher:
    """As many processes as asked for, else as ``config`` says, else one for each GPU, else one; one for ``jobs``."""
    if processes is not None and processes < 1:
        raise InputError(f"--num_processes {processes}: it takes at least one.")
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: it takes at least one.")
    configured = _read_launch_config(config) if config is not None else {}
    if jobs > 1 and configured.get("num_machines", 1) > 1:
        raise InputError(
            f"--jobs {jobs}: {config} starts a stage on several machines. Run one at a time, or change it."
        )
    devices = 0
    if any(stage.launch == "accelerate" for stage in stages):
        import torch  # takes seconds, and data preparation alone does without it

        devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    on_cpu = devices == 0 or configured.get("use_cpu") is True
    processes = processes or configured.get("num_processes") or (max(1, devices) if jobs == 1 else 1)
    if jobs > 1 and processes > 1 and not on_cpu:
        raise InputError(
            f"--jobs {jobs}: each has one GPU, and {processes} processes need as many. Give --num_processes 1."
        )
    return Launcher(
        processes=processes,
        on_cpu=on_cpu,
        jobs=jobs,
        gpus=0 if on_cpu else devices,
        ports=free_ports(jobs) if jobs > 1 else (),
        config=config or (DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None),
        plain=configured.get("distributed_type", "NO") in ("NO", "MULTI_CPU", "MULTI_GPU")
        and configured.get("num_machines", 1) == 1,
    )


def free_ports(count: int) -> tuple[int, ...]:
    """As many ports of this machine that nobody listens on, each another."""
    with ExitStack() as held:  # all at once, so that they differ
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return tuple(one.getsockname()[1] for one in sockets)


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
    add("--jobs", type=int, default=1, metavar="N", help="stages that may run side by side (default: 1)")
    add("--commands", action="store_true", help="print the commands of the stages that could run now, a line each")
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
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        print(f"pipeline: error: {error.filename}: cannot be written ({error.strerror})", file=sys.stderr)
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
        return 0 if all(map(is_fine, verdicts.values())) else 2

    if arguments.commands:
        for stage in ready(stages, output, arguments.overwrite):
            say(shlex.join([shortest(stage.script), *stage_arguments(stage, output, arguments.overwrite)]))
        return 0

    launcher = choose_launcher(arguments.num_processes, arguments.launch_config, stages, arguments.jobs)
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
        commands = lambda stage, slot: command_of(stage, output, launcher, arguments.overwrite, slot)  # noqa: E731
        code = run_stages(stages, up_to_date, output, commands, lock, launcher.jobs)
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
