"""The Slurm scripts, run with programs in place of `srun` and `scontrol` that do what those do and write down their calls."""

import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import PROJECT, environment, make_corpus, make_encoder

from launch.interruption import REQUEUE_EXIT_CODE
from launch.stage import read_manifest

ARRAY = PROJECT / "launch/slurm/array.sbatch"
SCRIPTS = sorted(set((PROJECT / "launch/slurm").glob("*.sbatch")) - {ARRAY})
PATIENCE_SECONDS = 120
JOB = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "1"}

SRUN = f"""#!{sys.executable}
# Starts the command for each task, passes signals on, and ends with the highest exit code.
import os, signal, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    option = command.pop(0)
    print("srun", option, file=open(os.environ["CALLS"], "a"))
tasks = [
    subprocess.Popen(command, env=os.environ | {{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}})
    for rank in range(int(os.environ["SLURM_NTASKS"]))
]
signal.signal(signal.SIGTERM, lambda number, _: [task.send_signal(number) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""

SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$CALLS"
if [ "$1 $2" = "show hostnames" ]; then printf '127.0.0.1\\nnode2\\n'; fi
"""

STAGE = """
import os, signal, sys, time
from pathlib import Path
folder, code = Path(sys.argv[1]), int(sys.argv[2])
names = "RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS".split()
checkpoint = folder / ("checkpoint-" + os.environ["RANK"])
if code != 75 or checkpoint.exists():
    sys.exit(code if code != 75 else 0)

def stop(*_):
    time.sleep(0.3)  # the step is finished
    checkpoint.touch()
    sys.exit(75)

signal.signal(signal.SIGTERM, stop)
(folder / ("ready-" + os.environ["RANK"])).write_text(" ".join(os.environ[name] for name in names))
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    """The environment of a job's script."""
    programs = tmp_path / "bin"
    programs.mkdir()
    python = f'#!/usr/bin/env bash\nexec {shlex.quote(sys.executable)} "$@"\n'
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": python}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(stat.S_IRWXU)
    (tmp_path / "stage.py").write_text(STAGE)
    (tmp_path / "calls").touch()
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return environment(**JOB, PATH=path, CALLS=str(tmp_path / "calls"))


def start(script: Path, slurm: dict[str, str], *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", str(script), *arguments],
        cwd=PROJECT,
        env=slurm,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for(job: subprocess.Popen, *files: Path) -> None:
    """Until the files are there and hold something; fails where the job ends before, or takes too long."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not all(path.exists() and path.read_text() for path in files):
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()[0]
        time.sleep(0.01)


def options(script: Path) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in script.read_text().splitlines() if line.startswith("#SBATCH ")}


@pytest.mark.parametrize("script", [*SCRIPTS, ARRAY], ids=lambda script: script.name)
def test_scripts_are_queued_again_and_told_in_time(script):
    assert {"--requeue", "--signal=B:TERM@120", "--open-mode=append"} <= options(script)


def test_there_is_a_script_for_one_node_and_one_for_many():
    nodes = {script.name: next(o for o in options(script) if o.startswith("--nodes=")) for script in SCRIPTS}
    assert nodes == {"one_node.sbatch": "--nodes=1", "many_nodes.sbatch": "--nodes=2"}


@pytest.mark.parametrize("script", [*SCRIPTS, ARRAY, PROJECT / "launch/slurm/start.sh"], ids=lambda script: script.name)
def test_shell_understands_them(script):
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_stage_that_stopped_with_a_checkpoint_is_queued_again_and_goes_on(script, slurm, tmp_path):
    job = start(script, slurm, str(tmp_path / "stage.py"), str(tmp_path), "75")
    ready = [tmp_path / "ready-0", tmp_path / "ready-1"]
    wait_for(job, *ready)
    assert ready[0].read_text() == "0 0 2 127.0.0.1 24711 1"
    assert ready[1].read_text() == "1 1 2 127.0.0.1 24711 1"

    job.send_signal(signal.SIGTERM)  # to the script alone, as --signal=B:TERM does
    output, _ = job.communicate(timeout=PATIENCE_SECONDS)
    assert job.returncode == REQUEUE_EXIT_CODE == 75, output
    assert (tmp_path / "checkpoint-0").exists() and (tmp_path / "checkpoint-1").exists()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-1] == "scontrol requeue 4711" and "srun --wait=1800" in calls

    again = start(script, slurm, str(tmp_path / "stage.py"), str(tmp_path), "75")
    output, _ = again.communicate(timeout=PATIENCE_SECONDS)
    assert again.returncode == 0, output
    assert (tmp_path / "calls").read_text().count("scontrol requeue") == 1


def test_a_task_of_an_array_runs_its_line_and_is_queued_again(slurm, tmp_path):
    stage, place = tmp_path / "stage.py", tmp_path / "it's here"
    place.mkdir()
    lines = [[stage, tmp_path, "2"], [stage, place, "75"]]
    commands = tmp_path / "commands.txt"
    commands.write_text("".join(shlex.join(map(str, line)) + "\n" for line in lines))
    one = slurm | {"SLURM_NTASKS": "1"}
    first = start(ARRAY, one | {"SLURM_ARRAY_TASK_ID": "1"}, str(commands))
    first.communicate(timeout=PATIENCE_SECONDS)
    assert first.returncode == 2
    second = start(ARRAY, one | {"SLURM_ARRAY_TASK_ID": "2"}, str(commands))
    wait_for(second, place / "ready-0")
    second.send_signal(signal.SIGTERM)
    output, _ = second.communicate(timeout=PATIENCE_SECONDS)
    assert second.returncode == REQUEUE_EXIT_CODE, output
    assert (tmp_path / "calls").read_text().count("scontrol requeue") == 1


def test_a_task_of_an_array_without_a_command_fails(slurm, tmp_path):
    commands = tmp_path / "commands.txt"
    commands.write_text(f"{tmp_path / 'stage.py'} {tmp_path} 0\n")
    for task, arguments in [("1", []), ("1", [str(tmp_path / "nothing.txt")]), ("2", [str(commands)])]:
        one = slurm | {"SLURM_NTASKS": "1", "SLURM_ARRAY_TASK_ID": task}
        job = start(ARRAY, one, *arguments)
        output, _ = job.communicate(timeout=PATIENCE_SECONDS)
        assert job.returncode not in (0, REQUEUE_EXIT_CODE) and output
    assert "srun" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize("code", [0, 2])
def test_other_exit_codes_are_the_job_s_own(code, slurm, tmp_path):
    job = start(SCRIPTS[0], slurm, str(tmp_path / "stage.py"), str(tmp_path), str(code))
    output, _ = job.communicate(timeout=PATIENCE_SECONDS)
    assert job.returncode == code, output
    assert "requeue" not in (tmp_path / "calls").read_text()


def test_tasks_of_a_job_train_together_stop_and_go_on(slurm, tmp_path):
    encoder, corpus = make_encoder(tmp_path / "encoder"), make_corpus(tmp_path / "corpus", train=40)
    settings = {
        "encoder": encoder,
        "data": corpus,
        "output": tmp_path / "out",
        "row_length": 64,
        "tokens_per_step": 256,
    }
    settings |= {"run.precision": "fp32", "run.log_steps": 1, "schedule.epochs": "null", "schedule.steps": 80}
    command = ["pretrain/mlm.py", *(f"--{name}={value}" for name, value in settings.items())]
    job = start(SCRIPTS[0], slurm, *command)
    wait_for(job, tmp_path / "out.partial/metrics.jsonl")
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=PATIENCE_SECONDS)
    assert job.returncode == REQUEUE_EXIT_CODE, output
    assert "scontrol requeue 4711" in (tmp_path / "calls").read_text()

    again = start(SCRIPTS[0], slurm, *command)
    output, _ = again.communicate(timeout=PATIENCE_SECONDS)
    assert again.returncode == 0, output
    assert "resumed at step" in output
    training = read_manifest(tmp_path / "out")["facts"]["training"]
    assert training["steps"] == 80 and training["processes"] == 2 and training["threads_per_process"] == 1
