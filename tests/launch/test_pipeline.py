"""The pipeline, on tiny stages of its own: order, commands, failures, resuming, dry runs, signals and its lock."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from launch import pipeline
from launch.errors import InputError
from launch.interruption import REQUEUE_EXIT_CODE
from launch.pipeline import Command, Launcher, command_of, duration, flags, main, shortest
from launch.recipe import PROJECT, RecipeStage, read_recipe
from launch.running import last_lines
from launch.stage import read_manifest

STAGE = '''
"""Join the texts of its inputs; fail, wait and count as told by files beside the recipe."""
import os, time
from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Optional
from launch.errors import InputError
from launch.interruption import Interrupted
from launch.settings import NOT_IDENTITY
from launch.stage import StageSettings, run_stage

@dataclass(frozen=True)
class Optimizer:
    """Nested settings."""
    learning_rate: float = 1.0
    """Rate."""

@dataclass(frozen=True, kw_only=True)
class JoinSettings(StageSettings):
    """Settings."""
    inputs: List[Path] = field(default_factory=list, metadata=NOT_IDENTITY)
    """Folders with text.txt, or text files."""
    word: Optional[str] = None
    """Text to add."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """Nested."""

def join(settings, stage):
    control = Path(os.environ["CONTROL"])
    name = settings.output.name
    with open(control / "calls.txt", "a") as file:
        file.write(name + "\\n")
    if (control / f"refuse_{name}").exists():
        raise InputError("the input is bad. Mend it.")
    if (control / f"fail_{name}").exists():
        raise RuntimeError("bug")
    if (control / f"stop_{name}").exists():
        raise Interrupted("stopped by SIGTERM")
    if (control / f"wait_{name}").exists():
        (control / "waiting").write_text(str(os.getpid()))
        time.sleep(60)
    if (control / f"meet_{name}").exists():  # go on once the other is here, too
        (control / f"here_{name}").write_text("")
        for _ in range(600):
            if all((control / path.name.replace("meet", "here")).exists() for path in control.glob("meet_*")):
                break
            time.sleep(0.05)
        else:
            raise RuntimeError("the other never came")
    texts = [(path / "text.txt" if path.is_dir() else path).read_text() for path in settings.inputs]
    texts += [settings.word or name, str(settings.optimizer.learning_rate)]
    if stage.is_main_process:
        (stage.folder / "text.txt").write_text(" ".join(texts))
    stage.facts["processes"] = [os.environ.get("WORLD_SIZE"), os.environ.get("OMP_NUM_THREADS")]

def main(argv=None):
    inputs = lambda settings: {f"text_{n}": path for n, path in enumerate(settings.inputs)}
    return run_stage(JoinSettings, join, inputs, argv, several_processes=True)

if __name__ == "__main__":
    raise SystemExit(main())
'''

CHAIN = [
    {"name": "first", "settings": {"inputs": ["{data_root}/raw.txt"]}},
    {"name": "second", "settings": {"inputs": ["{stages.first}"], "optimizer": {"learning_rate": "3e-4"}}},
    {"name": "side", "settings": {"word": "it's aside"}},
    {"name": "third", "for_each": {"word": ["a", "b"]}, "settings": {"inputs": ["{stages.second}"]}},
]


class Run:
    """A recipe of joining stages with the files that steer them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.output = folder, folder / "my data", folder / "run"
        self.data.mkdir()
        (self.data / "raw.txt").write_text("raw")
        for script in ("tools/join.py", "pretrain/join.py"):
            (folder / script).parent.mkdir()
            (folder / script).write_text(STAGE)
        self.recipe = folder / "recipe.yaml"
        self.write(CHAIN)

    def write(self, stages: list[dict], **more: str) -> None:
        stages = [{"run": "tools/join.py"} | stage for stage in stages]
        self.recipe.write_text(yaml.safe_dump({"name": "try", "description": "A trial", "stages": stages} | more))

    def arguments(self, *more: str) -> list[str]:
        return [str(self.recipe), "--data_root", str(self.data), "--output", str(self.output), *more]

    def __call__(self, *more: str) -> int:
        return main(self.arguments(*more))

    def start(self, *more: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "launch.pipeline", *self.arguments(*more)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def calls(self) -> list[str]:
        """The stages that have really worked since this was last asked."""
        file = self.folder / "calls.txt"
        called = file.read_text().split() if file.exists() else []
        file.unlink(missing_ok=True)
        return called

    def control(self, name: str) -> Path:
        (self.folder / name).write_text("")
        return self.folder / name

    def wait_for(self, name: str, seconds: float = 30) -> int:
        """Wait until a stage waits; gives its process."""
        end = time.monotonic() + seconds
        while not (self.folder / name).exists() or not (self.folder / name).read_text():
            assert time.monotonic() < end, f"{name} did not appear"
            time.sleep(0.05)
        return int((self.folder / name).read_text())


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTROL", str(tmp_path))
    return Run(tmp_path)


def verdicts(out: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in out.splitlines())


def test_runs_the_chain_and_reports(run, capfd):
    assert run() == 0
    shown = capfd.readouterr().out
    assert run.calls() == ["first", "second", "side", "third-a", "third-b"]
    assert (run.output / "third-b/text.txt").read_text() == "raw first 1.0 second 0.0003 b 1.0"
    for number, name in enumerate(["first", "second", "side", "third-a", "third-b"], start=1):
        assert f"[{number}/5] {name}\n" in shown and f"[{number}/5] {name}: done after" in shown
    assert (run.output / "report.html").stat().st_size > 1000 and "A trial" in (run.output / "report.html").read_text()
    assert shown.splitlines()[-1] == f"report: {run.output / 'report.html'}"


def test_the_printed_commands_can_be_pasted(run, capfd, tmp_path):
    assert run() == 0
    commands = [line.strip() for line in capfd.readouterr().out.splitlines() if "join.py" in line]
    texts = {path.parent.name: path.read_text() for path in run.output.glob("*/text.txt")}
    run.output.rename(tmp_path / "gone")
    run.calls()
    subprocess.run("set -e\n" + "\n".join(commands), shell=True, check=True, capture_output=True)
    assert run.calls() == ["first", "second", "side", "third-a", "third-b"]
    assert {path.parent.name: path.read_text() for path in run.output.glob("*/text.txt")} == texts
    assert '"it\'s aside"' in commands[2] or "'it'\"'\"'s aside'" in commands[2]


def test_a_second_run_repeats_nothing(run, capfd):
    assert run() == 0
    run.calls()
    capfd.readouterr()
    assert run() == 0
    assert run.calls() == []
    assert "[2/5] second: up to date\n[3/5] side: up to date\n" in capfd.readouterr().out


def test_recipes_with_one_beginning_share_what_it_makes(run):
    run.write(CHAIN[:2])
    run.recipe.rename(run.folder / "beginning.yaml")
    for word in ("one", "other"):
        run.write(
            [{"name": word, "settings": {"inputs": ["{stages.second}"], "word": word}}], begins_with="beginning.yaml"
        )
        assert run() == 0
    assert run.calls() == ["first", "second", "one", "other"]


def test_what_is_published_is_started_even_when_up_to_date(run, capfd):
    script = run.folder / "tools/join.py"
    script.write_text(script.read_text().replace("    word:", "    push_to_hub: Optional[str] = None\n    word:"))
    run.write([{"name": "first", "settings": {"word": "x", "push_to_hub": "owner/name"}}])
    for again in ("done after", "up to date: "):
        assert run() == 0
        assert again in "".join(capfd.readouterr())


@pytest.mark.parametrize("fault, code", [("fail", 1), ("refuse", 2)])
def test_a_failing_stage_stops_it_and_the_next_run_goes_on(run, capfd, fault, code):
    control = run.control(f"{fault}_second")
    assert run() == code
    out, errors = capfd.readouterr()
    assert run.calls() == ["first", "second"]
    assert f"[2/5] second: failed with exit code {code} after" in out
    assert out.count("tools/join.py --inputs") == 3, "first's command, second's, and second's again to repeat it"
    assert not (run.output / "report.html").exists()
    if fault == "refuse":
        assert "tools/join: error: the input is bad. Mend it.\n" in errors and "Traceback" not in errors
    control.unlink()
    assert run() == 0
    assert run.calls() == ["second", "side", "third-a", "third-b"]


def test_a_stage_that_is_killed_is_told_by_signal(run, capfd):
    run.write([{"name": "first", "settings": {"inputs": ["{data_root}/raw.txt"]}}])
    run.control("wait_first")
    killer = threading.Thread(target=lambda: os.kill(run.wait_for("waiting"), signal.SIGKILL))
    killer.start()
    assert run() == 128 + signal.SIGKILL
    killer.join()
    assert "failed with signal SIGKILL" in capfd.readouterr().out


def test_a_stage_that_stopped_to_go_on_ends_the_run_with_its_code(run, capfd):
    run.control("stop_second")
    assert run() == REQUEUE_EXIT_CODE
    assert "second: stopped after" in capfd.readouterr().out
    assert run.calls() == ["first", "second"]


def test_from_and_until(run, capfd):
    assert run("--until", "second") == 0
    assert run.calls() == ["first", "second"]
    assert run("--from", "third", "--until", "third-a") == 0
    assert run.calls() == ["third-a"]
    assert run("--from", "side", "--until", "third") == 0
    assert run.calls() == ["side", "third-b"]
    assert "[3/3] third-b" in capfd.readouterr().out


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--from", "third"], "stage third-a reads second, which is not finished in"),
        (["--from", "secnd"], "no stage 'secnd'. Did you mean 'second'?"),
        (["--until", "x"], "no stage 'x'. There are: first, second, side, third, third-a, third-b."),
        (["--from", "side", "--until", "first"], "--from side comes after --until first"),
        (["--data_root", "/nowhere"], "--data_root /nowhere: no such folder"),
        (["--set", "frist.word=x"], "Did you mean 'first'?"),
        (["--num_processes", "0"], "at least one"),
        (["--launch_config", "/nowhere.yaml"], "/nowhere.yaml: cannot be read"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_code_2(run, capfd, arguments, told):
    assert run(*arguments) == 2
    out, errors = capfd.readouterr()
    assert told in errors and errors.startswith("pipeline: error: ") and errors.count("\n") == 1
    assert run.calls() == [] and not run.output.exists()


def test_without_data_root(run, capfd):
    assert main([str(run.recipe), "--output", str(run.output)]) == 2
    assert "give --data_root DIR" in capfd.readouterr().err


def test_a_wrong_setting_of_the_last_stage_is_refused_before_the_first_is_run(run, capfd):
    wrong = ["--set", "third-b.optimizer.learnign_rate=2"]
    assert run(*wrong) == 2
    errors = capfd.readouterr().err
    assert "nothing was run, for stage third-b would fail" in errors and "learnign_rate" in errors
    assert run.calls() == [] and list(run.output.iterdir()) == [run.output / ".pipeline.lock"]
    assert run("--dry_run", *wrong) == 2
    assert "learnign_rate" in verdicts(capfd.readouterr().out)["third-b"]
    assert run(*wrong, "--until", "second") == 0, "it need not be mended for the stages before it"


def test_what_a_failing_stage_keeps_from_running_is_said(run, capfd):
    assert run("--dry_run", "--set", "first.wrod=x") == 2
    shown = verdicts(capfd.readouterr().out)
    assert shown["first"].startswith("would fail: ") and "wrod" in shown["first"]
    assert shown["second"] == "would not be reached: its input first would fail"
    assert shown["third-a"] == "would not be reached: its input second would not be reached"
    assert shown["side"] == "would run: its output is not there"


def test_a_stage_file_that_does_not_load_is_told(run, capfd):
    (run.folder / "tools/join.py").write_text("import nothing_of_this_name")
    assert run() == 2
    assert "No module named 'nothing_of_this_name'" in capfd.readouterr().err


def test_one_start_of_python_asks_all_stages_of_a_file(run, monkeypatch):
    stages = read_recipe(run.recipe, run.data).stages
    started = []
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: started.append(a) or real(*a, **k))
    assert len(pipeline.dry_run(list(stages), run.output)) == 5
    assert len(started) == 1


def test_a_stage_of_a_file_that_holds_several(run, capfd):
    (run.data / "raw.txt").write_text("what a night in Chicago http://t.co/abcdefghij\n")
    settings = {"input": "{stages.posts}", "validation_share": 0}
    run.write(
        [
            {"name": "posts", "run": "data_prep/crawl.py files", "settings": {"input": "{data_root}/raw.txt"}},
            {"name": "corpus", "run": "data_prep/clean.py", "settings": settings},
        ]
    )
    assert run() == 0, capfd.readouterr().err
    assert read_manifest(run.output / "corpus")["rows"]["kept"] == 1
    capfd.readouterr()
    assert run("--dry_run") == 0
    assert verdicts(capfd.readouterr().out) == {"posts": "up to date", "corpus": "up to date"}
    again = read_recipe(run.output / "recipe.yaml")
    assert again.stages[0].run == "data_prep/crawl.py files" and again.stages[0].command == ("files",)


def test_dry_run_of_a_fresh_chain(run, capfd):
    assert run("--dry_run") == 0
    assert verdicts(capfd.readouterr().out) == {
        "first": "would run: its output is not there",
        "second": "would run: its input first is made first",
        "side": "would run: its output is not there",
        "third-a": "would run: its input second is made first",
        "third-b": "would run: its input second is made first",
    }
    assert run.calls() == [] and not run.output.exists()


def test_dry_run_of_a_changed_chain(run, capfd, tmp_path):
    run.write([*CHAIN[:2], {"name": "third", "settings": {"inputs": ["{stages.second}"]}}])
    assert run() == 0
    run.calls()
    capfd.readouterr()

    assert run("--dry_run") == 0
    assert set(verdicts(capfd.readouterr().out).values()) == {"up to date"}

    changed = ["--set", "second.word=new"]
    assert run(*changed, "--dry_run") == 2
    shown = verdicts(capfd.readouterr().out)
    assert shown["first"] == "up to date"
    assert shown["second"].startswith("would be refused") and "setting word: was None, now 'new'" in shown["second"]
    assert shown["third"] == "would not be reached: its input second would be refused"

    assert run(*changed, "--dry_run", "--overwrite") == 0
    shown = verdicts(capfd.readouterr().out)
    assert shown["second"] == "would run: replaces its output"
    assert shown["third"] == "would run: its input second is made again"

    (run.output / "second").rename(tmp_path / "gone")
    assert run("--dry_run") == 0
    shown = verdicts(capfd.readouterr().out)
    assert shown["third"] == "would run: its input second is made again; refused if that comes out different"
    assert run.calls() == []

    assert run(*changed, "--overwrite") == 0
    assert run.calls() == ["second", "third"]
    capfd.readouterr()
    assert run("--from", "second") == 2
    assert "setting word: was 'new', now None" in (errors := capfd.readouterr().err)
    assert errors.endswith("or --overwrite to replace it.\n")


def test_dry_run_says_what_no_stage_will_make(run, capfd):
    (run.data / "raw.txt").unlink()
    assert run("--dry_run") == 2
    shown = verdicts(capfd.readouterr().out)
    assert shown["first"] == f"would fail: its input text_0: {run.data / 'raw.txt'} is not there"
    run.write([CHAIN[2], {"name": "third", "settings": {"inputs": ["{stages.side}", "{data_root}/raw.txt"]}}])
    run.control("calls.txt")
    assert run() == 2 and run.calls() == [], "known before the side stage is run"


def test_the_resolved_recipe_lies_in_the_run(run, tmp_path):
    assert run("--set", "third.word=[c]", "--until", "first") == 0
    resolved = read_recipe(run.output / "recipe.yaml")
    assert [stage.name for stage in resolved.stages] == ["first", "second", "side", "third-c"]
    assert main([str(run.output / "recipe.yaml"), "--output", str(run.output), "--until", "first"]) == 0
    assert run.calls() == ["first"], "the second run is up to date"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on_to_the_stage(run, number):
    control = run.control("wait_first")
    started = run.start()
    stage = run.wait_for("waiting")
    started.send_signal(number)  # to the pipeline alone, as `kill` does; a terminal's Ctrl-C comes to the same
    out, errors = started.communicate(timeout=30)
    assert started.returncode == 128 + number
    assert f"first: stopped by {number.name}" in out and "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(stage, 0)
    control.unlink()
    run.calls()
    assert run() == 0
    assert run.calls() == ["first", "second", "side", "third-a", "third-b"]


def test_one_pipeline_at_a_time(run, capfd):
    control = run.control("wait_first")
    started = run.start()
    stage = None
    try:
        stage = run.wait_for("waiting")
        assert run() == 2
        assert f"process {started.pid}" in capfd.readouterr().err
        assert run("--dry_run") == 0, "looking is no writing"
        capfd.readouterr()

        started.kill()  # leaves its stage running, which still writes there
        started.wait(timeout=30)
        assert run() == 2
        assert "a stage that it left running" in capfd.readouterr().err
    finally:
        started.kill()
        if stage is not None:
            os.kill(stage, signal.SIGKILL)
        started.communicate(timeout=30)
    control.unlink()
    end = time.monotonic() + 10
    while run("--until", "first") != 0:
        assert time.monotonic() < end, capfd.readouterr()
        time.sleep(0.1)


@pytest.mark.parametrize("processes", [1, 2])
def test_training_stages_run_on_as_many_processes_as_asked_for(run, capfd, processes, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pipeline, "_cores", lambda: 6)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    run.write([{"name": "first", "run": "pretrain/join.py", "settings": {"word": "x"}}])
    more = ["--num_processes", "2"] if processes == 2 else []
    assert run(*more) == 0
    facts = read_manifest(run.output / "first")["facts"]
    assert facts["processes"] == (["2", "3"] if processes == 2 else [None, "6"])
    assert set(run.calls()) == {"first"}  # a second process that starts late finds this little stage finished
    shown = capfd.readouterr().out
    config = shortest(PROJECT / "accelerate_config.yaml")
    assert ("-m torch.distributed.run --standalone --nproc_per_node 2" in shown) == (processes == 2)
    assert (f"-m accelerate.commands.launch --quiet --config_file {config}" in shown) == (processes == 1)


def test_a_training_stage_that_refuses_says_so_without_a_traceback(run, capfd):
    run.write([{"name": "first", "run": "pretrain/join.py", "settings": {"word": "x"}}])
    run.control("refuse_first")
    assert run() == 1  # accelerate launch gives 1, whatever its script gives
    errors = capfd.readouterr().err
    assert "the input is bad" in errors and "Traceback" not in errors


@pytest.mark.parametrize(
    "launcher, expected",
    [
        (Launcher(1, on_cpu=False, config=Path("/c.yaml")), "--config_file /c.yaml --num_processes 1 /s/mlm.py"),
        (
            Launcher(4, on_cpu=False, config=Path("/c.yaml")),
            "--config_file /c.yaml --multi_gpu --num_processes 4 /s/mlm.py",
        ),
        (Launcher(1, on_cpu=False, config=None), "launch --quiet /s/mlm.py"),
        (Launcher(2, on_cpu=True, config=Path("/ds.yaml"), plain=False), "--config_file /ds.yaml --num_processes 2 /s"),
        (Launcher(2, on_cpu=True, config=Path("/c.yaml")), "--standalone --nproc_per_node 2 /s/mlm.py"),
    ],
)
def test_launchers(launcher, expected):
    stage = RecipeStage("mlm", "mlm", Path("/s/mlm.py"), "accelerate", {"data": "x"}, ())
    command = str(command_of(stage, Path("out"), launcher))
    assert expected in command and command.endswith("--data x --output out/mlm")


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"distributed_type": "NO", "use_cpu": True, "num_processes": 3}, (3, True, True)),
        ({"distributed_type": "DEEPSPEED", "num_processes": 2}, (2, True, False)),
        ({"distributed_type": "MULTI_GPU", "num_machines": 2, "num_processes": 8}, (8, True, False)),
        ({}, (1, True, True)),
    ],
)
def test_the_launch_config_is_followed(tmp_path, monkeypatch, config, expected):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    stages = [RecipeStage("mlm", "mlm", Path("/s/mlm.py"), "accelerate", {}, ())]
    launcher = pipeline.choose_launcher(None, tmp_path / "config.yaml", stages)
    assert (launcher.processes, launcher.on_cpu, launcher.plain) == expected
    assert pipeline.choose_launcher(5, tmp_path / "config.yaml", stages).processes == 5


def test_every_gpu_is_used(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 4)
    stages = [RecipeStage("mlm", "mlm", Path("/s/mlm.py"), "accelerate", {}, ())]
    launcher = pipeline.choose_launcher(None, None, stages)
    assert (launcher.processes, launcher.on_cpu) == (4, False)


def test_settings_as_flags():
    values = {
        "a": "two words", "b": 3e-4, "c": True, "d": None, "e": ["x y", 1], "f": {"g": {"h": "-1"}, "i": -2}, "j": {},
    }  # fmt: skip
    assert flags(values) == [
        "--a", "two words", "--b", "0.0003", "--c", "true", "--d", "null", "--e", '["x y", 1]',
        "--f.g.h=-1", "--f.i=-2", "--j", "{}",
    ]  # fmt: skip


def test_commands_show_their_variables():
    assert str(Command(["python", "a b.py"], {"X": "1 2"})) == "X='1 2' python 'a b.py'"


def test_shortest_keeps_links(tmp_path, monkeypatch):
    (tmp_path / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    assert shortest(tmp_path / "python") == "python"
    assert shortest("/elsewhere/x") == "/elsewhere/x"


@pytest.mark.parametrize(
    "seconds, text", [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7384, "2 h 03 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_accelerate_config_is_one_that_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(PROJECT / "accelerate_config.yaml"))
    assert config.num_processes == 1 and config.use_cpu is False


def test_output_that_cannot_be_made(run, capfd):
    run.output = run.data / "raw.txt" / "run"
    assert run() == 2
    assert "Choose another --output" in capfd.readouterr().err


def test_help_needs_no_recipe(capfd):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0 and "--dry_run" in capfd.readouterr().out


def test_stages_that_read_nothing_of_each_other_run_side_by_side(run, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    run.write([*CHAIN, {"name": "last", "settings": {"inputs": ["{stages.third-a}", "{stages.side}"]}}])
    for name in ("first", "side"):
        run.control(f"meet_{name}")
    assert run("--jobs", "2") == 0
    told = capfd.readouterr().out
    assert "OMP_NUM_THREADS" in told and "side.log" in told
    calls = run.calls()
    assert set(calls[:2]) == {"first", "side"}
    place = calls.index
    assert place("first") < place("second") < place("third-a") < place("last")
    assert (run.output / "last" / "text.txt").read_text().startswith("raw first 1.0 second 0.0003 a 1.0 it's aside 1.0")
    assert "side: done" in told and "tools/join: done" in (run.output / "side.log").read_text()
    assert run("--jobs", "2") == 0 and run.calls() == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_side_by_side_a_bar_counts_the_stages(run, monkeypatch, jobs):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run("--jobs", str(jobs)) == 0
    told = terminal.getvalue()
    if jobs == 1:
        assert "stages" not in told
    else:
        assert f"{len(CHAIN) + 1}/{len(CHAIN) + 1}" in told and "first, side" in told


def test_one_alone_would_wait_for_ever(run):
    """What the test above stands on: with one job the two stages do not meet."""
    for name in ("first", "side"):
        run.control(f"meet_{name}")
    process = run.start("--jobs", "1")
    run_until = time.monotonic() + 10
    while not (run.folder / "here_first").exists():
        assert time.monotonic() < run_until
        time.sleep(0.05)
    time.sleep(1)
    assert not (run.folder / "here_side").exists()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_after_a_failure_none_is_started_and_the_others_end(run, capfd):
    run.control("refuse_first")
    run.control("meet_side")
    assert run("--jobs", "2") == 2
    told = capfd.readouterr().out
    assert "the input is bad" in told and "first: failed with exit code 2" in told and "side: done" in told
    assert "second" not in run.calls()
    (run.folder / "refuse_first").unlink()
    assert run("--jobs", "2") == 0
    assert sorted(run.calls()) == ["first", "second", "third-a", "third-b"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_all_that_run(run, number):
    run.control("wait_first")
    run.control("wait_side")
    process = run.start("--jobs", "2")
    end = time.monotonic() + 30
    while len(run.folder.joinpath("calls.txt").read_text().split() if (run.folder / "calls.txt").exists() else []) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert out.count(f"stopped by {number.name}") == 2


def test_the_commands_of_what_could_run_now(run, capfd):
    assert run("--commands") == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.rpartition("/")[2] for line in lines] == ["first", "side"]
    assert run.calls() == []
    for line in lines:
        subprocess.run(f"{sys.executable} {line}", shell=True, check=True)
    assert run("--commands") == 0
    assert [line.rpartition("/")[2] for line in capfd.readouterr().out.splitlines()] == ["second"]


def test_jobs_with_gpus_have_one_each():
    stage = RecipeStage("a", "a", PROJECT / "finetune/ner.py", "accelerate", {}, ())
    launcher = Launcher(processes=1, on_cpu=False, config=None, jobs=3, gpus=2)
    visible = [command_of(stage, Path("out"), launcher, slot=slot).environment for slot in range(3)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in visible] == ["0", "1", "0"]


@pytest.mark.parametrize(
    "given, jobs, taken",
    [(None, 1, "8"), (None, 4, "2"), ("8", 1, None), ("8", 4, "2"), ("1", 4, "1"), ("4,2", 4, None)],
)
def test_side_by_side_no_stage_takes_more_than_its_share_of_the_cores(monkeypatch, given, jobs, taken):
    monkeypatch.setattr(pipeline, "_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    launcher = Launcher(processes=1, on_cpu=True, config=None, jobs=jobs)
    assert launcher.threads(1).get("OMP_NUM_THREADS") == taken


def test_no_jobs_are_refused(run, capfd):
    assert run("--jobs", "0") == 2
    assert "it takes at least one" in capfd.readouterr().err


def test_jobs_keep_to_the_gpus_that_they_were_given(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    stage = RecipeStage("a", "a", PROJECT / "finetune/ner.py", "accelerate", {}, ())
    launcher = Launcher(processes=1, on_cpu=False, config=None, jobs=3, gpus=2)
    visible = [command_of(stage, Path("out"), launcher, slot=slot).environment for slot in range(3)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in visible] == ["2", "3", "2"]


def test_no_two_jobs_meet_at_one_port(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"distributed_type": "DEEPSPEED", "num_processes": 2}))
    stage = RecipeStage("a", "a", PROJECT / "pretrain/mlm.py", "accelerate", {}, ())
    launcher = pipeline.choose_launcher(None, config, [stage], jobs=3)
    commands = [command_of(stage, Path("out"), launcher, slot=slot).arguments for slot in range(3)]
    assert len({command[command.index("--main_process_port") + 1] for command in commands}) == 3
    one = pipeline.choose_launcher(None, config, [stage])
    assert "--main_process_port" not in command_of(stage, Path("out"), one).arguments
    config.write_text(yaml.safe_dump({"distributed_type": "MULTI_GPU", "num_machines": 2}))
    with pytest.raises(InputError, match="several machines"):
        pipeline.choose_launcher(None, config, [stage], jobs=2)


def test_the_last_lines_are_those_of_this_start(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("of an earlier start\n")
    begins = log.stat().st_size
    assert last_lines(log, begins) == ""
    with open(log, "a") as file:
        file.write("bar 1%\rbar 2%\nthe error\n")
    assert last_lines(log, begins) == "bar 2%\nthe error"


def test_a_pipeline_that_fails_itself_leaves_no_stage_running(run):
    run.write([{"name": "first"}, {"name": "side"}])
    run.control("wait_first")
    (run.output / "side.log").mkdir(parents=True)  # no log can be opened there
    started = run.start("--jobs", "2")
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 1 and "side.log" in errors
    waiting = run.folder / "waiting"
    if waiting.exists() and waiting.read_text():
        with pytest.raises(ProcessLookupError):
            os.kill(int(waiting.read_text()), 0)
    assert run("--until", "first", "--dry_run") == 0
    with pipeline.locked(run.output):
        pass  # nothing holds it any more
