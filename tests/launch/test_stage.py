"""The stage contract, on a tiny stage run as users run it: as a command."""

import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from launch import stage
from launch.stage import NEW_OBJECTS, read_manifest

STAGE = '''
"""Copy the lines of a text file that are long enough."""
import gc, os, signal, sys, time
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional
from launch.errors import InputError
from launch.settings import NOT_IDENTITY
from launch.stage import StageSettings, run_stage

@dataclass(frozen=True)
class Filter:
    """What is long enough."""
    shortest: int = 1
    """Characters a line has at least."""

    def __post_init__(self):
        if self.shortest < 0:
            raise ValueError(f"shortest: {self.shortest} is negative")

@dataclass(frozen=True, kw_only=True)
class CopySettings(StageSettings):
    """Settings of copy.py."""
    input: Path
    """Text to copy."""
    exclude: List[Path] = field(default_factory=list)
    """Texts whose lines are left out."""
    filter: Filter = field(default_factory=Filter)
    """Which lines to keep."""
    workers: int = field(default=1, metadata=NOT_IDENTITY)
    """How many work."""
    fault: Optional[str] = field(default=None, metadata=NOT_IDENTITY)
    """How to fail."""

def inputs(settings):
    return {"text": settings.input, "model": "hub:someone/model@abc"} | {
        f"exclude_{number}": path for number, path in enumerate(settings.exclude)
    }

def copy(settings, stage):
    if settings.fault == "input at once":
        raise InputError("an encoder of the wrong kind")
    if (stage.folder / "part").exists():
        stage.log("went on")
    (stage.folder / "part").write_text("half")
    if settings.fault == "input":
        raise InputError.at(settings.input, 3, "a line without a tab", "Write one.")
    if settings.fault == "bug":
        raise RuntimeError("bug")
    if settings.fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if settings.fault == "none, but tell of the collector":
        print(gc.get_freeze_count(), gc.get_threshold()[0])
    if settings.fault == "wait":
        print("waiting", flush=True)
        time.sleep(60)
    left_out = {line for path in settings.exclude for line in path.read_text().splitlines()}
    with open(stage.folder / "copy.txt", "w") as file:
        for line in stage.progress(settings.input.read_text().splitlines(), "copying"):
            stage.rows.taken += 1
            if len(line) < settings.filter.shortest or line in left_out:
                stage.rows.rejected["too short or left out"] += settings.fault != "lose"
            else:
                file.write(line + "\\n")
                stage.rows.kept += 1
    if settings.fault == "late input":
        raise InputError("the key is no longer valid")
    stage.facts["longest"] = 5
    stage.seeds = [7]
    stage.log_metrics(event="train", loss=0.5)

def main(argv=None):
    return run_stage(CopySettings, copy, inputs, argv, OPTIONS)

if __name__ == "__main__":
    raise SystemExit(main())
'''


class Command:
    """A stage file in a folder of its own, with the text it reads."""

    def __init__(self, folder: Path, options: str, name: str = "copy_lines.py") -> None:
        self.script = folder / "tools" / name
        self.script.parent.mkdir(exist_ok=True)
        self.script.write_text(STAGE.replace("OPTIONS", options))
        self.text, self.output = folder / "text.txt", folder / "out" / "copied"
        self.partial = folder / "out" / "copied.partial"
        self.text.write_text("one\ntwo\nthree\n")

    def arguments(self, **settings) -> list[str]:
        settings = {"input": self.text, "output": self.output} | settings
        return [sys.executable, str(self.script), *(f"--{k.replace('__', '.')}={v}" for k, v in settings.items())]

    def __call__(self, *more: str, **settings) -> subprocess.CompletedProcess:
        return subprocess.run([*self.arguments(**settings), *more], capture_output=True, text=True, timeout=60)


@pytest.fixture
def copy(tmp_path):
    return Command(tmp_path, "keeps_partial=False")


@pytest.fixture
def trainer(tmp_path):
    return Command(tmp_path, "keeps_partial=True")


@pytest.fixture
def grower(tmp_path):
    """A stage whose finished output can grow; it has grown once."""
    command = Command(tmp_path, "grows=True, subcommand='longer'")
    assert command().returncode == 0
    return command


def test_writes_the_artefact_with_its_records(copy):
    done = copy(filter__shortest=4)
    assert done.returncode == 0, done.stderr
    assert (copy.output / "copy.txt").read_text() == "three\n"
    assert not copy.partial.exists()
    assert sorted(path.name for path in copy.output.iterdir()) == [
        "config.yaml", "copy.txt", "manifest.json", "metrics.jsonl", "part",
    ]  # fmt: skip
    manifest = read_manifest(copy.output)
    assert manifest["stage"] == "tools/copy_lines"
    assert manifest["rows"] == {"taken": 3, "kept": 1, "rejected": {"too short or left out": 2}}
    assert manifest["facts"] == {"longest": 5} and manifest["seeds"] == [7]
    assert manifest["settings"]["filter"] == {"shortest": 4}
    assert manifest["inputs"]["text"]["path"] == str(copy.text)
    assert manifest["inputs"]["model"]["sha256"] == "hub:someone/model@abc"
    assert manifest["versions"]["python"].startswith("3.")
    assert yaml.safe_load((copy.output / "config.yaml").read_text())["filter"] == {"shortest": 4}


def test_the_garbage_collector_leaves_imports_alone(copy):
    done = copy(fault="none, but tell of the collector")
    left_alone, collected_after = map(int, done.stdout.split())
    assert done.returncode == 0 and left_alone > 10_000 and collected_after == NEW_OBJECTS


def test_its_own_config_repeats_it(copy):
    assert copy(filter__shortest=4).returncode == 0
    again = subprocess.run(
        [sys.executable, str(copy.script), "--config", str(copy.output / "config.yaml")], capture_output=True, text=True
    )
    assert again.returncode == 0 and "up to date" in again.stderr


def test_manifests_nest_along_a_chain(copy, tmp_path):
    assert copy().returncode == 0
    copy.script.write_text(copy.script.read_text().replace("path.read_text()", "(path / 'copy.txt').read_text()"))
    done = copy(exclude=f'["{copy.output}"]', output=tmp_path / "second")
    assert done.returncode == 0, done.stderr
    assert read_manifest(tmp_path / "second")["inputs"]["exclude_0"]["manifest"] == read_manifest(copy.output)


def test_a_finished_stage_is_up_to_date(copy):
    assert copy().returncode == 0
    before = (copy.output / "copy.txt").stat()
    again = copy(workers=4, resume="never")
    assert again.returncode == 0 and "up to date" in again.stderr
    assert (copy.output / "copy.txt").stat().st_mtime_ns == before.st_mtime_ns


def test_the_same_content_elsewhere_is_the_same_input(copy, tmp_path):
    (tmp_path / "left.txt").write_text("two\n")
    assert copy(exclude=f'["{tmp_path / "left.txt"}"]').returncode == 0
    moved = copy.text.rename(tmp_path / "moved.txt")
    again = copy(input=moved, exclude=f'["{(tmp_path / "left.txt").rename(tmp_path / "left2.txt")}"]')
    assert again.returncode == 0 and "up to date" in again.stderr, again.stderr


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"filter__shortest": 4}, "setting filter.shortest: was 1, now 4"),
        ({"text": "one\n"}, "input text: content changed"),
        ({"exclude": "LEFT"}, "input exclude_0: now given"),
    ],
)
def test_changed_settings_and_inputs_are_refused_by_name(copy, tmp_path, changed, told):
    assert copy().returncode == 0
    settings = dict(changed)
    if "text" in settings:
        copy.text.write_text(settings.pop("text"))
    if "exclude" in settings:
        (tmp_path / "left.txt").write_text("one\n")
        settings["exclude"] = f'["{tmp_path / "left.txt"}"]'
    refused = copy(**settings)
    assert refused.returncode == 2
    assert told in refused.stderr and "Traceback" not in refused.stderr
    assert "--overwrite true" in refused.stderr
    assert told in copy(dry_run="true", **settings).stdout
    assert (copy.output / "copy.txt").read_text() == "one\ntwo\nthree\n"

    assert copy(overwrite="true", **settings).returncode == 0
    assert (copy.output / "copy.txt").read_text() != "one\ntwo\nthree\n"
    assert not copy.partial.exists()


def test_a_setting_that_there_was_not_yet_had_its_default(copy):
    """A newer toolkit has more settings; what an older one made is neither made again nor refused."""
    assert copy().returncode == 0
    path = copy.output / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest["plan"]["settings"].pop("filter.shortest") == 1
    path.write_text(json.dumps(manifest | {"fingerprint": "of an older plan"}))
    assert "up to date" in copy(dry_run="true").stdout
    refused = copy(filter__shortest=4)
    assert refused.returncode == 2 and "setting filter.shortest: was 1, now 4" in refused.stderr


def test_changing_the_text_of_an_unread_setting_is_no_change(copy):
    assert copy(workers=1).returncode == 0
    assert "up to date" in copy(workers=2, dry_run="true").stdout


@pytest.mark.parametrize("output", ["a folder", "a file"])
def test_never_replaces_what_no_stage_made(copy, output):
    copy.output.parent.mkdir()
    precious = copy.output
    if output == "a folder":
        precious.mkdir()
        precious = precious / "thesis.tex"
    precious.write_text("years of work")
    for overwrite in ("false", "true"):
        refused = copy(overwrite=overwrite)
        assert refused.returncode == 2 and "no stage made it" in refused.stderr
    assert precious.read_text() == "years of work"


@pytest.mark.parametrize("what", ["a folder of somebody's", "a file", "another stage's work"])
def test_what_lies_where_it_would_work_is_not_removed(copy, trainer_of_another_name, what):
    copy.partial.parent.mkdir(exist_ok=True)
    precious = copy.partial
    if what == "another stage's work":
        assert trainer_of_another_name(output=copy.output, fault="kill").returncode == -signal.SIGKILL
        precious, told = copy.partial / "part", "it was made by stage tools/other_lines, not tools/copy_lines"
    elif what == "a file":
        precious.write_text("years of work")
        told = "is a file, where the stage would work"
    else:
        precious.mkdir()
        precious = precious / "thesis.tex"
        precious.write_text("years of work")
        told = "no stage left it there"
    before = precious.read_text()
    refused = copy()
    assert refused.returncode == 2 and told in refused.stderr and "Traceback" not in refused.stderr
    assert precious.read_text() == before


@pytest.fixture
def trainer_of_another_name(copy, tmp_path):
    command = Command(tmp_path, "keeps_partial=True", "other_lines.py")
    command.script.with_name("copy_lines.py").write_text(STAGE.replace("OPTIONS", "keeps_partial=False"))
    return command


def test_an_output_that_cannot_be_put_in_its_place_is_refused_before_the_work(copy, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    folder = tmp_path / "texts"
    folder.mkdir()
    for settings, told in (
        ({"output": tmp_path / "link"}, "is a symbolic link"),
        ({"output": "."}, "names no folder"),
        ({"output": folder / "out", "input": folder}, "lies within the input `text`"),
        ({"output": tmp_path, "input": folder}, "lies within the input `text`"),
    ):
        refused = copy(**settings)
        assert refused.returncode == 2 and told in refused.stderr, refused.stderr
    assert (tmp_path / "link").is_symlink() and not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("name", ["copied.replaced/output", "copied"])
def test_a_run_that_is_cut_off_as_it_replaces_its_output_leaves_no_half_one(copy, name):
    assert copy().returncode == 0
    replacing = {"overwrite": "true", "filter__shortest": 4}
    cut_off_at_renaming(copy, name, done=True, **replacing)
    if copy.output.exists():  # the new one, whole
        assert (copy.output / "copy.txt").read_text() == "three\n"
    done = copy(**replacing)
    assert done.returncode == 0 and (copy.output / "copy.txt").read_text() == "three\n"
    assert {path.name for path in copy.output.parent.iterdir()} <= {"copied", ".copied.replaced"}


def test_a_setting_that_is_called_as_an_input_is_one_all_the_same():
    """Of what is equal to an input's path, only what may be a path is left out of what decides the artefact."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(stage.StageSettings):
        encoder: Path
        head: str

    plans = [
        stage.Stage("s", Settings(output=Path("o"), encoder=Path("crf"), head=head), {"encoder": entry}).plan
        for head in ("crf", "softmax")
        for entry in [{"path": "crf", "sha256": "1"}]
    ]
    assert plans[0]["settings"] == {"head": "crf"} and plans[1]["settings"] == {"head": "softmax"}


def test_the_time_of_a_training_is_that_of_all_its_starts():
    made = stage.Stage("s", stage.StageSettings(output=Path("o")), {})
    assert made.seconds() < 60
    made.facts["training"] = {"seconds": 3600.5}
    assert made.seconds() == 3600.5


def test_an_empty_folder_may_be_given(copy):
    copy.output.mkdir(parents=True)
    assert copy().returncode == 0


def test_input_error_is_one_line_and_code_2(copy):
    failed = copy(fault="input")
    assert failed.returncode == 2
    assert failed.stderr.splitlines() == [f"tools/copy_lines: error: {copy.text}:3: a line without a tab. Write one."]
    assert not copy.output.exists()


def test_missing_input_is_named(copy):
    copy.text.unlink()
    failed = copy()
    assert failed.returncode == 2 and str(copy.text) in failed.stderr and "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--inptu=x"], "inptu"),
        (["--filter.shortset=3"], "shortset"),
        (["--filter.shortest=few"], "filter.shortest"),
        (["--workers=1.5"], "workers"),
        (["--resume=maybe"], "resume"),
        (["--filter.shortest=-1"], "shortest: -1 is negative"),
    ],
)
def test_unknown_and_ill_typed_settings_are_refused_by_name(copy, arguments, told):
    failed = copy(*arguments)
    assert failed.returncode == 2
    assert told in failed.stderr and "Traceback" not in failed.stderr
    assert not copy.output.exists()


def test_unknown_key_of_a_config_file_is_refused_by_name(copy, tmp_path):
    (tmp_path / "config.yaml").write_text("filter: {longest: 3}\n")
    failed = copy(f"--config={tmp_path / 'config.yaml'}")
    assert failed.returncode == 2 and "longest" in failed.stderr


def test_help_documents_every_setting(copy):
    shown = subprocess.run([sys.executable, str(copy.script), "--help"], capture_output=True, text=True).stdout
    for words in ("Copy the lines", "Text to copy.", "Characters a line has at least.", "--overwrite", "default: 1"):
        assert words in shown


def test_a_lost_row_is_a_bug(copy):
    failed = copy(filter__shortest=4, fault="lose")
    assert failed.returncode == 1 and "rows do not add up: 3 in, 1 out, 0 rejected" in failed.stderr
    assert not copy.output.exists()


@pytest.mark.parametrize("fault", ["bug", "kill", "input"])
def test_a_failed_run_leaves_no_output_and_starts_over(copy, fault):
    assert copy(fault=fault).returncode != 0
    assert not copy.output.exists() and (copy.partial / "part").exists() == (fault != "input")
    done = copy()
    assert done.returncode == 0 and "went on" not in done.stderr
    assert not copy.partial.exists()


def test_a_training_stage_goes_on(trainer):
    assert trainer(fault="kill").returncode == -signal.SIGKILL
    assert "goes on with the interrupted run" in trainer(dry_run="true").stdout
    refused = trainer(filter__shortest=4)
    assert refused.returncode == 2 and "filter.shortest" in refused.stderr
    assert "would be refused" in trainer(filter__shortest=4, dry_run="true").stdout
    done = trainer()
    assert done.returncode == 0 and "went on" in done.stderr
    assert not (trainer.output / ".plan.json").exists()


@pytest.mark.parametrize("settings", [{"resume": "never"}, {"overwrite": "true", "filter__shortest": 4}])
def test_a_training_stage_starts_over_when_told(trainer, settings):
    assert trainer(fault="kill").returncode == -signal.SIGKILL
    done = trainer(**settings)
    assert done.returncode == 0 and "went on" not in done.stderr


def cut_off_at_renaming(command: Command, name: str, done: bool = False, **settings) -> None:
    """Run the command until it gives a file or folder that name, which is ``done`` before the end or not."""
    code = (
        "import os, runpy, sys\n"
        "def replace(old, new, real=os.replace):\n"
        f"    last = str(new).endswith({name!r})\n"
        f"    if not last or {done}: real(old, new)\n"
        "    if last: os._exit(9)\n"
        "os.replace, sys.argv = replace, sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    cut = subprocess.run(
        [sys.executable, "-c", code, *command.arguments(**settings)[1:]], capture_output=True, text=True
    )
    assert cut.returncode == 9, cut.stderr


def test_a_run_cut_off_before_its_renaming_goes_on(trainer):
    """All is written, and the output not yet renamed: nothing of it may be lost."""
    cut_off_at_renaming(trainer, "copied")
    assert (trainer.partial / "manifest.json").exists() and not trainer.output.exists()
    done = trainer()
    assert done.returncode == 0 and "went on" in done.stderr


def test_two_at_once_are_kept_apart(copy):
    first = subprocess.Popen(copy.arguments(fault="wait"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "waiting\n"
        second = copy()
        assert second.returncode == 2 and "another process is writing it" in second.stderr
    finally:
        first.send_signal(signal.SIGINT)
        _, errors = first.communicate(timeout=20)
    assert first.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert copy().returncode == 0


def test_dry_run_changes_nothing(copy):
    assert "would run: its output is not there" in copy(dry_run="true").stdout
    assert not copy.output.parent.exists()
    copy.text.unlink()
    missing = copy(dry_run="true")
    assert missing.returncode == 0 and "input text" in missing.stdout


def test_a_refused_run_stands_in_the_corrected_ones_way_only_with_work_in_it(trainer):
    assert trainer(fault="input at once", filter__shortest=2).returncode == 2
    assert not trainer.partial.exists()
    assert trainer(fault="input", filter__shortest=2).returncode == 2
    assert (trainer.partial / "part").exists(), "a checkpoint would lie here"
    corrected = trainer(filter__shortest=4)
    assert corrected.returncode == 2 and "filter.shortest" in corrected.stderr


def test_a_refused_stage_that_cannot_go_on_leaves_nothing(copy):
    assert copy(fault="input").returncode == 2
    assert not copy.partial.exists()
    assert copy(filter__shortest=4).returncode == 0


def test_several_processes_are_refused_and_the_command_that_works_is_told(copy):
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": "2"}
    done = subprocess.run(copy.arguments(filter__shortest=4), env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and not copy.output.exists() and not copy.partial.exists()
    assert "tools/copy_lines: error: started as 2 processes, but it works in one." in done.stderr
    command = done.stderr.splitlines()[-1].strip()
    assert command.startswith("python tools/copy_lines.py --input=")
    command = [sys.executable, *shlex.split(command)[1:]]
    assert subprocess.run(command, cwd=copy.script.parents[1]).returncode == 0
    assert (copy.output / "copy.txt").read_text() == "three\n"


def test_only_the_main_process_writes(tmp_path):
    copy = Command(tmp_path, "several_processes=True")
    environment = os.environ | {"RANK": "1", "WORLD_SIZE": "2"}
    copy.partial.mkdir(parents=True)
    done = subprocess.run(copy.arguments(), env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert not copy.output.exists() and not (copy.partial / "manifest.json").exists()


def test_metrics_are_json_lines(copy):
    assert copy().returncode == 0
    assert [json.loads(line) for line in (copy.output / "metrics.jsonl").read_text().splitlines()] == [
        {"event": "train", "loss": 0.5}
    ]


def test_the_contract_imports_nothing_heavy():
    """The pipeline asks every stage before it runs any; data preparation must not wait for torch."""
    code = "import sys, launch.stage; print([n for n in ('torch', 'transformers', 'datasets') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_finished_stage_that_grows_goes_on(grower):
    assert "would run: goes on from" in grower(dry_run="true").stdout
    more = grower()
    assert more.returncode == 0 and "went on" in more.stderr
    assert read_manifest(grower.output)["stage"] == "tools/copy_lines longer"
    assert not grower.partial.exists() and not list(grower.output.glob(".*"))

    refused = grower(filter__shortest=4)
    assert refused.returncode == 2 and "filter.shortest: was 1, now 4" in refused.stderr
    assert not grower.partial.exists()


def test_a_finished_stage_that_grows_starts_over_only_when_told_twice(grower):
    refused = grower(resume="never")
    assert refused.returncode == 2 and "--overwrite true" in refused.stderr
    assert "would be refused" in grower(resume="never", dry_run="true").stdout
    assert "would run: replaces" in grower(resume="never", overwrite="true", dry_run="true").stdout
    again = grower(resume="never", overwrite="true")
    assert again.returncode == 0 and "went on" not in again.stderr and not grower.partial.exists()


@pytest.mark.parametrize(
    "at, done", [(".plan.json", False), (".plan.json", True), ("copied.partial", False), ("copied.partial", True)]
)
def test_a_stage_cut_off_as_it_begins_to_grow_goes_on(grower, at, done):
    cut_off_at_renaming(grower, at, done)
    assert grower.output.exists() != grower.partial.exists(), "either, and not both"
    more = grower()
    assert more.returncode == 0 and "went on" in more.stderr
    assert not grower.partial.exists() and not list(grower.output.glob(".*"))


def test_a_stage_killed_as_it_grows_goes_on(grower):
    assert grower(fault="kill").returncode == -signal.SIGKILL
    assert not grower.output.exists()
    assert "goes on with the interrupted run" in grower(dry_run="true").stdout
    more = grower()
    assert more.returncode == 0 and "went on" in more.stderr


def test_what_a_growing_stage_kept_is_finished_in_spite_of_bad_input(grower):
    refused = grower(fault="late input")
    assert refused.returncode == 2 and "no longer valid" in refused.stderr
    assert read_manifest(grower.output)["rows"]["kept"] == 3 and not grower.partial.exists()


def test_a_finished_output_is_not_lost_to_an_interrupted_fresh_start(grower):
    assert grower(fault="kill", resume="never", overwrite="true").returncode == -signal.SIGKILL
    refused = grower()
    assert refused.returncode == 2 and "would replace it" in refused.stderr
    assert (grower.output / "copy.txt").exists()
    done = grower(overwrite="true")
    assert done.returncode == 0 and "went on" in done.stderr and not grower.partial.exists()


def test_two_that_grow_the_same_output_are_kept_apart(grower):
    first = subprocess.Popen(grower.arguments(fault="wait"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "waiting\n"
        second = grower()
        assert second.returncode == 2 and "another process is writing it" in second.stderr
    finally:
        first.send_signal(signal.SIGINT)
        _, errors = first.communicate(timeout=20)
    assert first.returncode == 130 and "the same command goes on" in errors
    assert grower().returncode == 0


def test_a_line_that_is_being_written_is_passed_over(monkeypatch):
    """What Python reads of a file that grows while it stands at the end: the rest of a line as one more line."""
    read = ['{"step": 1}\n', '{"step"', ": 2}\n", '{"step": 3}\n']
    monkeypatch.setattr(stage, "open", lambda *_, **__: nullcontext(iter(read)), raising=False)
    assert list(stage.iterate_jsonl(Path("metrics.jsonl"))) == [{"step": 1}]
