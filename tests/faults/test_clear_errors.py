"""What breaks a training run from outside: each time one clear line, nothing half-written, and the run goes on after."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kill_points import PATIENCE_SECONDS, Run, process_of_rank
from safetensors.torch import load_file
from tiny_models import PROJECT, environment, make_corpus, make_encoder, make_ner

from finetune import ner
from launch import loop
from launch.clipped_adamw import ClippedAdamW
from launch.files import sha256_of_file
from pretrain import mlm

MOST_BYTES_OF_A_FILE = 60_000
"""More than the weights take, less than the optimizer's state."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_encoder(folder / "encoder")
    make_corpus(folder / "corpus", train=60)
    make_ner(folder / "ner", train=20)
    return folder


@pytest.fixture
def arguments(inputs, tmp_path) -> list[str]:
    """Of an MLM run of some 20 steps, with checkpoints at 4, 8, …"""
    return [
        *(f"--encoder={inputs / 'encoder'}", f"--data={inputs / 'corpus'}", f"--output={tmp_path / 'out'}"),
        *("--row_length=32", "--tokens_per_step=128", "--schedule.epochs=2", "--evaluate_steps=1000", "--dropout=0.1"),
        *("--run.log_steps=1", "--run.checkpoint_steps=4", "--run.precision=fp32"),
    ]


@pytest.fixture
def interrupted(monkeypatch, arguments):
    """Run the stage until its step ``step`` is interrupted."""

    def until(step: int) -> None:
        seed_dropout = loop.seed_dropout

        def seed(device, *key):
            if key[1] == step:
                raise KeyboardInterrupt
            seed_dropout(device, *key)

        with monkeypatch.context() as patched:
            patched.setattr(loop, "seed_dropout", seed)
            assert mlm.main(arguments) == 130

    return until


@pytest.fixture(autouse=True)
def all_that_is_logged(caplog):
    caplog.set_level("INFO", logger="msb_ner")


@pytest.fixture(scope="module")
def weights(inputs, tmp_path_factory) -> str:
    """The hash of what the undisturbed run makes."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    arguments = [f"--encoder={inputs / 'encoder'}", f"--data={inputs / 'corpus'}", f"--output={output}"]
    arguments += ["--row_length=32", "--tokens_per_step=128", "--schedule.epochs=2", "--dropout=0.1"]
    assert mlm.main([*arguments, "--evaluate_steps=1000", "--run.precision=fp32"]) == 0
    return sha256_of_file(output / "model.safetensors")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def error_of(capfd, stage: str = "pretrain/mlm") -> str:
    """The one line that a stage has said on its error."""
    said = capfd.readouterr().err
    (line,) = (line for line in said.splitlines() if line.startswith(f"{stage}: error: "))
    assert "Traceback" not in said
    return line


def test_a_checkpoint_that_cannot_be_written(arguments, interrupted, weights, tmp_path, capfd, caplog):
    interrupted(6)
    partial = tmp_path / "out.partial"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_BYTES_OF_A_FILE, before[1]))
    try:
        assert mlm.main(arguments) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = error_of(capfd)
    assert (
        f"{partial / 'checkpoints'}: the checkpoint of step 8 cannot be written (" in error
        and "File too large" in error
    )
    assert f"Last good checkpoint: {partial / 'checkpoints/step-00000004'}. Make room" in error
    assert checkpoints(partial) == ["step-00000004"], "nothing half-written"
    assert mlm.main(arguments) == 0
    assert "resumed at step 4" in caplog.text
    assert sha256_of_file(tmp_path / "out/model.safetensors") == weights


DISKS = """
import gc, os, subprocess, sys
from pathlib import Path
from pretrain import mlm

disk, *arguments = sys.argv[1:]
def mount(options):
    gc.collect()  # a lock that is still open for writing would keep the disk from becoming read-only
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], check=True)
    os.chdir(disk)

mount("size=300k")
codes = [mlm.main(arguments)]
left = sorted(str(path.relative_to(disk)) for path in Path(disk).rglob("*") if path.is_dir())
mount("remount,ro,size=300k")
codes.append(mlm.main(arguments))
codes.append(mlm.main([*arguments, "--output=new"]))
mount("remount,rw,size=10m")
codes.append(mlm.main(arguments))
print(codes, left, flush=True)
"""


def test_a_full_disk_and_a_read_only_one(inputs, tmp_path):
    """On a disk of its own, where this system lets users mount one."""
    namespaces = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*namespaces, "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = [f"--encoder={inputs / 'encoder'}", f"--data={inputs / 'corpus'}", "--output=out", "--row_length=32"]
    arguments += ["--tokens_per_step=128", "--run.checkpoint_steps=4", "--run.keep_checkpoints=9", "--run.log_steps=1"]
    done = subprocess.run(
        [*namespaces, sys.executable, "-c", DISKS, str(disk), *arguments],
        cwd=PROJECT,
        env=environment(PYTHONPATH=str(PROJECT)),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert "[2, 2, 2, 0] " in done.stdout and "Traceback" not in done.stderr, done.stdout + done.stderr
    full, read_only, new = (line for line in done.stderr.splitlines() if line.startswith("pretrain/mlm: error: "))
    assert "No space left on device" in full and "Last good checkpoint: out.partial/checkpoints/step-" in full
    assert "out.partial/checkpoints/step-" in done.stdout and "/." not in done.stdout, "whole ones alone are left"
    assert "out.partial/.lock: cannot be written (Read-only file system). Make room" in read_only
    assert "new.partial: cannot be made (Read-only file system). Choose an --output that can be written." in new
    assert "resumed at step" in done.stderr


def test_an_output_that_cannot_be_written(arguments, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    assert mlm.main([*arguments, f"--output={tmp_path / 'file' / 'out'}"]) == 2
    assert "out.partial: cannot be made (Not a directory). Choose an --output that can be written." in error_of(capfd)


@pytest.mark.parametrize("stage, corpus", [(mlm, "corpus"), (ner, "ner")])
def test_a_damaged_shard_is_named(inputs, tmp_path, capfd, stage, corpus):
    data = shutil.copytree(inputs / corpus, tmp_path / "data")
    (shard,) = (data / "data").glob("train-*")
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    arguments = [f"--encoder={inputs / 'encoder'}", f"--data={data}", f"--output={tmp_path / 'out'}"]
    arguments.append("--run.precision=fp32")
    arguments += ["--row_length=32"] if stage is mlm else ["--input.maximum_length=64", "--input.image_length=8"]
    assert stage.main(arguments) == 2
    error = error_of(capfd, stage.__name__.replace(".", "/"))
    assert f"{shard}: " in error and "Make it again." in error
    assert not (tmp_path / "out.partial").exists() and not (tmp_path / "out").exists()


def test_a_damaged_token_store_is_named_and_can_be_made_again(arguments, interrupted, weights, tmp_path, capfd):
    cache = tmp_path / "cache"
    arguments.append(f"--token_cache={cache}")
    interrupted(6)
    (tokens,) = cache.glob("*/train/tokens.bin")
    store = tokens.parent.parent
    content = bytearray(tokens.read_bytes())
    content[len(content) // 2] ^= 1
    tokens.unlink()  # the interrupted run, in this same process, may have it mapped still
    tokens.write_bytes(content)
    assert mlm.main(arguments) == 2
    error = error_of(capfd)
    assert f"{store}: damaged" in error and "tokens.bin is not what was written" in error
    assert checkpoints(tmp_path / "out.partial") == ["step-00000004"]
    shutil.rmtree(store)  # as the message says
    assert mlm.main(arguments) == 0
    assert sha256_of_file(tmp_path / "out/model.safetensors") == weights


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "checksums.json"])
def test_a_truncated_checkpoint_is_passed_over_for_the_one_before(
    arguments, interrupted, weights, tmp_path, caplog, name
):
    interrupted(10)
    assert checkpoints(tmp_path / "out.partial") == ["step-00000004", "step-00000008"]
    os.truncate(tmp_path / "out.partial/checkpoints/step-00000008" / name, 100)
    assert mlm.main(arguments) == 0
    said = caplog.text
    assert "checkpoint step-00000008 is passed over: " in said and "resumed at step 4 from" in said
    assert sha256_of_file(tmp_path / "out/model.safetensors") == weights


def test_a_loss_that_is_not_finite(arguments, monkeypatch, tmp_path, capfd, caplog):
    with monkeypatch.context() as patched:
        forward = mlm.RoundedOnce.forward
        steps = iter(range(1000))
        patched.setattr(
            mlm.RoundedOnce,
            "forward",
            lambda self, *args, **batch: forward(self, *args, **batch) * (torch.nan if next(steps) == 6 else 1),
        )
        assert mlm.main(arguments) == 2
    error = error_of(capfd)
    assert "the loss is not finite at step 6 (epoch 0). Samples of the step: train-" in error
    assert "Last good checkpoint" in error and checkpoints(tmp_path / "out.partial") == ["step-00000004"]
    assert mlm.main(arguments) == 0 and "resumed at step 4" in caplog.text


def test_weights_that_are_not_finite_are_no_checkpoint(arguments, monkeypatch, tmp_path, capfd):
    """The loss is finite, its gradient is not: the next loss would tell, after the checkpoint."""
    step, steps = torch.optim.AdamW.step, iter(range(1000))

    def poisoned(self, *args, **options):
        step(self, *args, **options)
        if next(steps) == 7:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = torch.nan

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", poisoned)
        patched.setattr(ClippedAdamW, "of", lambda *_: None)  # so that torch's own is called
        assert mlm.main(arguments) == 2
    assert "the weights are not finite after step 8 (epoch 0). Last good checkpoint: " in error_of(capfd)
    assert checkpoints(tmp_path / "out.partial") == ["step-00000004"]


def test_changed_settings_are_refused_by_name(arguments, interrupted, inputs, tmp_path, capfd):
    interrupted(6)
    for setting, was, now in [
        ("masking_rate", "0.15", "0.2"),
        ("seed", "1", "2"),
        ("tokens_per_step", "128", "64"),
        ("row_length", "32", "16"),
        ("dropout", "0.1", "0.0"),
        ("optimizer.learning_rate", "0.0005", "0.001"),
        ("schedule.epochs", "2", "3"),
    ]:
        capfd.readouterr()
        assert mlm.main([*arguments, f"--{setting}={now}"]) == 2, setting
        error = error_of(capfd)
        assert setting.split(".")[0] in error and was in error and now in error, error
    corpus = make_corpus(tmp_path / "corpus", train=61)
    assert mlm.main([*arguments, f"--data={corpus}"]) == 2
    assert "input data: content changed" in error_of(capfd)
    assert checkpoints(tmp_path / "out.partial") == ["step-00000004"], "it is all still there"
    assert mlm.main([*arguments, "--run.checkpoint_steps=5", "--run.micro_batch=2"]) == 0, (
        "changes nothing that is made"
    )
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "out/model.safetensors").values())


def test_a_process_that_dies_and_one_that_hangs_are_told_of(inputs, tmp_path):
    for name in ("encoder", "corpus"):
        (tmp_path / name).symlink_to(inputs / name)
    run = Run(tmp_path, "run", 2, "--schedule.epochs=1000", "--run.timeout=3", "--tokens_per_step=64")
    process = run.start()
    run.wait_for_step(5, process)
    os.kill(process_of_rank(1, process.pid), signal.SIGKILL)
    assert process.wait(60) == 1
    log = run.log.read_text()
    assert "pretrain/mlm: error: process 0: another process has died" in log
    assert f"Last good checkpoint: {run.partial / 'checkpoints'}/step-" in log and "exitcode  : -9" in log

    process = run.start()
    run.wait_for_step(run.losses()[-1][1] + 5, process)
    hanging = process_of_rank(1, process.pid)
    os.kill(hanging, signal.SIGSTOP)
    message = "pretrain/mlm: error: process 0: another process has not answered for 3 s (run.timeout): it hangs"
    end = time.monotonic() + 60
    while message not in run.log.read_text():
        assert time.monotonic() < end, run.log.read_text()
        time.sleep(0.05)
    os.kill(hanging, signal.SIGKILL)  # torchrun would do so, but waits first
    assert process.wait(60) == 1
    assert not list((run.partial / "checkpoints").glob(".*")), "nothing half-written"
