"""A run that is asked to stop: it writes a checkpoint, says so by its exit code, and goes on by the same command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from kill_points import PATIENCE_SECONDS, Run, make_inputs, process_of_rank
from tiny_models import PROJECT, environment

from launch.interruption import REQUEUE_EXIT_CODE, REQUEUE_MARK

TOO_LONG = "--schedule.epochs=1000"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


def test_it_stops_with_a_checkpoint_and_goes_on_bit_for_bit(inputs):
    undisturbed, run = (Run(inputs, name, 1, "--schedule.epochs=3") for name in ("a", "b"))
    reference = undisturbed.start()
    process = run.start()
    run.wait_for_step(5, process)
    process.terminate()
    process.terminate()  # as process group and launcher may
    assert process.wait(PATIENCE_SECONDS) == REQUEUE_EXIT_CODE == 75
    last = run.losses()[-1][1]
    log = run.log.read_text()
    assert run.newest_checkpoint() == last and "Traceback" not in log
    assert f"stopped by SIGTERM after step {last}, of which there is a checkpoint; the same command goes on" in log
    assert (run.partial / REQUEUE_MARK).exists()

    run.finish()
    assert f"resumed at step {last} from" in run.log.read_text()
    assert reference.wait(PATIENCE_SECONDS) == 0
    assert run.losses() == undisturbed.losses() and run.weights() == undisturbed.weights()
    assert {path.name for path in run.output.iterdir()} == {path.name for path in undisturbed.output.iterdir()}


def test_two_processes_stop_after_the_same_step(inputs):
    run = Run(inputs, "two", 2, TOO_LONG)
    process = run.start()
    run.wait_for_step(3, process)
    os.kill(process_of_rank(1, process.pid), signal.SIGUSR1)
    assert process.wait(PATIENCE_SECONDS) == 1, "torchrun keeps the processes' exit codes to itself"
    last, log = run.losses()[-1][1], run.log.read_text()
    assert run.newest_checkpoint() == last and (run.partial / REQUEUE_MARK).exists()
    for reason in ("stopped by SIGUSR1", "stopped with the others"):
        assert f"{reason} after step {last}, of which there is a checkpoint" in log


def test_before_the_first_step_it_stops_at_once(inputs):
    """While the inputs are read, say; an unfinished cache is not left behind."""
    run = Run(inputs, "early", 1)
    script = inputs / "slow.py"
    script.write_text(
        "import sys, time\n"
        "from pretrain import mlm\n"
        "sys.argv[0] = 'pretrain/mlm.py'\n"
        "def slowly(*_):\n"
        "    print('reading', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "mlm.load_tokenizer = slowly\n"
        "raise SystemExit(mlm.main(sys.argv[1:]))\n"
    )
    process = run.start(str(script))
    end = time.monotonic() + PATIENCE_SECONDS
    while "reading" not in run.log.read_text():
        assert time.monotonic() < end and process.poll() is None, run.log.read_text()
        time.sleep(0.01)
    process.terminate()
    assert process.wait(20) == REQUEUE_EXIT_CODE
    assert "pretrain/mlm: stopped by SIGTERM; the same command goes on" in run.log.read_text()


@pytest.mark.parametrize("processes, number", [(1, signal.SIGUSR1), (2, signal.SIGTERM)])
def test_the_pipeline_stops_and_tells_to_requeue(inputs, tmp_path, processes, number):
    run = Run(tmp_path / "out", "mlm", processes)
    settings = {"encoder": str(inputs / "encoder"), "data": str(inputs / "corpus"), "schedule": {"epochs": 1000}}
    settings |= {"run": {"log_steps": 1, "checkpoint_steps": 1000, "compile": False}, "evaluate_steps": 10**6}
    stage = {"name": "mlm", "run": "pretrain/mlm.py", "settings": settings | {"row_length": 32, "tokens_per_step": 64}}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "try", "description": "A trial", "stages": [stage]}))
    command = [sys.executable, "-m", "launch.pipeline", str(recipe), "--output", str(run.output.parent)]
    run.log.parent.mkdir()
    with open(run.log, "w") as log:
        process = subprocess.Popen(
            [*command, "--num_processes", str(processes)], cwd=PROJECT, env=environment(), stdout=log, stderr=log
        )
    run.wait_for_step(3, process)
    process.send_signal(number)
    assert process.wait(PATIENCE_SECONDS) == REQUEUE_EXIT_CODE, run.log.read_text()
    said = run.log.read_text()
    assert f"mlm: stopped by {number.name} after" in said and "The same pipeline command goes on from here." in said
    assert run.newest_checkpoint() == run.losses()[-1][1]
