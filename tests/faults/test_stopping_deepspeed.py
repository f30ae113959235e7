"""A run under DeepSpeed that is asked to stop: a checkpoint, the code to start again, and then bit for bit."""

import importlib.util
import os
import signal
import subprocess
from pathlib import Path

import pytest
from kill_points import PATIENCE_SECONDS, Run, make_inputs, process_of_rank

from launch.interruption import REQUEUE_MARK

LAUNCHER = ["-m", "accelerate.commands.launch", "--config_file", "launch/accelerate/deepspeed_zero1.yaml"]
LAUNCHER += ["--num_processes", "2", "--main_process_port", "0"]  # any that is free


def run_of(folder: Path, name: str) -> Run:
    return Run(folder, name, 2, "--schedule.epochs=2", launcher=LAUNCHER)


def start(run: Run) -> subprocess.Popen:
    return run.start("tests/faults/uncompiled_deepspeed.py", "pretrain/mlm.py", ACCELERATE_USE_CPU="false")


def last_step(run: Run) -> int:
    return run.losses()[-1][1]


def assert_stopped(run: Run, process: subprocess.Popen) -> None:
    """As asked, and with all that is needed to go on."""
    assert process.wait(PATIENCE_SECONDS) == 1, "the launcher keeps the processes' exit codes to itself"
    said = f"stopped by SIGTERM after step {last_step(run)}, of which there is a checkpoint; the same command goes on"
    assert said in run.log.read_text()
    assert run.newest_checkpoint() == last_step(run) and (run.partial / REQUEUE_MARK).exists()
    assert not list((run.partial / "checkpoints").glob(".*")), "nothing half-written"


@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")
def test_two_processes_stop_with_a_checkpoint_and_go_on_bit_for_bit(tmp_path):
    make_inputs(tmp_path)
    undisturbed, run = run_of(tmp_path, "undisturbed"), run_of(tmp_path, "stopped")
    reference = start(undisturbed)

    process = start(run)
    run.wait_for_step(5, process)
    process.terminate()  # the launcher, which asks both
    assert_stopped(run, process)
    first = last_step(run)

    process = start(run)
    run.wait_for_step(first + 5, process)
    os.kill(process_of_rank(1, process.pid), signal.SIGTERM)  # one alone
    assert_stopped(run, process)
    log = run.log.read_text()
    assert f"stopped with the others after step {last_step(run)}" in log and "exitcode  : 75" in log

    assert start(run).wait(PATIENCE_SECONDS) == 0, run.log.read_text()[-3000:]
    assert reference.wait(PATIENCE_SECONDS) == 0, undisturbed.log.read_text()[-3000:]
    log = run.log.read_text()
    assert f"resumed at step {first} from" in log and log.count("resumed at step") == 2
    assert run.losses() == undisturbed.losses() and run.weights() == undisturbed.weights()
    assert not run.partial.exists()
