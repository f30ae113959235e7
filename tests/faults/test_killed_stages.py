"""Real training stages, killed without warning and started again by the same command: not one bit may differ."""

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import PROJECT, environment, make_corpus, make_encoder, make_ner

from launch.files import sha256_of_file
from launch.stage import iterate_jsonl, read_manifest

PATIENCE_SECONDS = 180
SHORT = ["--input.maximum_length=64", "--input.image_length=8"]
STAGES = {
    "mlm": (
        ["pretrain/mlm.py", "--row_length=64", "--tokens_per_step=256", "--dropout=0.1", "--schedule.epochs=5"],
        lambda folder: make_corpus(folder, train=300),
    ),
    "ner": (
        ["finetune/ner.py", "--head=crf", "--tweets_per_step=4", "--schedule.epochs=5", *SHORT],
        lambda folder: make_ner(folder, train=120),
    ),
}


class Run:
    """A stage that can be started, killed and started again."""

    def __init__(self, arguments: list[str], output: Path) -> None:
        self.output, self.partial = output, output.with_name(output.name + ".partial")
        self.command = [sys.executable, *arguments, f"--output={output}"]
        self.log = output.with_name(output.name + ".log")

    def start(self) -> subprocess.Popen:
        with open(self.log, "a") as log:
            return subprocess.Popen(self.command, cwd=PROJECT, env=environment(), stdout=log, stderr=log)

    def finish(self) -> None:
        assert self.start().wait(PATIENCE_SECONDS) == 0, self.log.read_text()

    def kill_when(self, happened: Callable[[], bool]) -> bool:
        """Start, and kill as soon as something has happened; whether that was before the end."""
        process, end = self.start(), time.monotonic() + PATIENCE_SECONDS
        while process.poll() is None and not happened():
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL

    def step(self) -> int:
        return max((row["step"] for row in self.metrics()), default=0)

    def metrics(self) -> list[dict]:
        for folder in (self.partial, self.output):
            if (folder / "metrics.jsonl").exists():
                return list(iterate_jsonl(folder / "metrics.jsonl"))
        return []

    def checkpoints(self) -> list[Path]:
        return sorted((self.partial / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("kind", STAGES)
def test_a_killed_stage_ends_with_the_same_bits(tmp_path, kind):
    arguments, make_data = STAGES[kind]
    arguments = [
        *arguments,
        f"--encoder={make_encoder(tmp_path / 'encoder')}",
        f"--data={make_data(tmp_path / 'data')}",
    ]
    arguments += ["--run.log_steps=1", "--run.checkpoint_steps=8", "--run.micro_batch=2", "--run.precision=fp32"]
    undisturbed = Run(arguments, tmp_path / "undisturbed")
    reference = undisturbed.start()
    run = Run(arguments, tmp_path / "killed")

    if kind == "mlm":  # Before there is a checkpoint.
        assert run.kill_when(lambda: run.step() >= 3)
    # While a checkpoint is being written (or, where that is too quick to be seen, later).
    assert run.kill_when(lambda: run.step() > 16 and any(run.partial.glob("checkpoints/.step-*")) or run.step() >= 30)
    assert not run.output.exists()

    # In the middle, and what was written last is damaged besides.
    reached = run.step()
    assert run.kill_when(lambda: run.step() >= reached + 10)
    newest, before = run.checkpoints()[-1], run.checkpoints()[-2]
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    (newest.parent / ".step-99999999.partial").mkdir()

    # When training is over and the result is being written. Too late for this, and the next start has nothing to do.
    last = "predictions/test.jsonl" if kind == "ner" else "config.json"
    run.kill_when(lambda: (run.partial / last).exists())
    log = run.log.read_text()
    assert f"checkpoint {newest.name} is passed over: model.safetensors is not what was written" in log
    assert f"resumed at step {int(before.name.removeprefix('step-'))} from" in log

    run.finish()
    assert reference.wait(PATIENCE_SECONDS) == 0, undisturbed.log.read_text()
    compared = ["model.safetensors", "config.json", "tokenizer.json"]
    compared += ["scores.json", "predictions/test.jsonl", "predictions/validation.jsonl"] if kind == "ner" else []
    for name in compared:
        assert sha256_of_file(run.output / name) == sha256_of_file(undisturbed.output / name), name
    assert {path.name for path in run.output.iterdir()} == {path.name for path in undisturbed.output.iterdir()}
    assert not run.partial.exists() and not any(path.name.startswith(".") for path in run.output.iterdir())

    rows = run.metrics()
    assert max(Counter((row["event"], row["step"]) for row in rows).values()) == 1
    assert [row["step"] for row in rows if row["event"] == "train"] == list(range(1, run.step() + 1))
    assert [(r["event"], r["step"], r["loss"]) for r in rows] == [
        (r["event"], r["step"], r["loss"]) for r in undisturbed.metrics()
    ]
    one, other = (read_manifest(folder)["fingerprint"] for folder in (run.output, undisturbed.output))
    assert one == other
    assert run.step() > 100, "long enough that no kill came too late"
