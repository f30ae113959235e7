"""Two processes on a CPU train on what one does: DDP, DeepSpeed, and launches that start too few processes."""

import importlib.util
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import PROJECT, environment, make_corpus, make_encoder, make_ner
from transformers import AutoModelForMaskedLM

from finetune import ner
from finetune.systems.msb import MSBForTokenClassification
from launch.errors import InputError
from launch.loop import check_launch
from launch.stage import iterate_jsonl, read_manifest
from pretrain import mlm

PATIENCE_SECONDS = 240
DRIVER = str(Path(__file__).with_name("drive_stages.py"))
DEEPSPEED = ["--config_file", "launch/accelerate/deepspeed_zero2.yaml", "--num_processes", "2"]
ZERO = ["zero1", "zero1_offload", "zero2_offload", "zero3", "zero3_offload", "zero2"]

pytestmark = pytest.mark.xdist_group("distributed")  # one worker, so that the reference is made once


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict[str, list[str]]:
    """Arguments of both stages, but for the output. There are steps of one row or tweet, fewer than processes.

    Micro-batches of one row make steps of several, more on one process than on the other; the validation splits and
    the test split (a single tweet) do not go into two either.
    """
    folder = tmp_path_factory.mktemp("data")
    encoder = make_encoder(folder / "encoder")
    corpus, tweets = make_corpus(folder / "corpus", train=60, validation=11), make_ner(folder / "ner", 41, 5, 1)
    common = [f"--encoder={encoder}", "--dropout=0", "--run.log_steps=1", "--run.precision=fp32"]
    common += ["--run.micro_batch=1", "--run.checkpoint_steps=4", "--schedule.epochs=2"]
    return {
        "mlm": [*common, f"--data={corpus}", "--row_length=64", "--tokens_per_step=100"],
        "ner": [
            *(*common, f"--data={tweets}", "--head=crf", "--tweets_per_step=4"),
            *("--input.maximum_length=64", "--input.image_length=8"),
        ],
    }


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory) -> Path:
    """What one process makes: folders `mlm` and `ner`."""
    folder = tmp_path_factory.mktemp("alone")
    assert mlm.main([*settings["mlm"], f"--output={folder / 'mlm'}"]) == 0
    assert ner.main([*settings["ner"], f"--output={folder / 'ner'}"]) == 0
    return folder


@pytest.fixture(scope="module")
def by_ddp(settings, tmp_path_factory) -> tuple[Path, str]:
    """What two processes make by DDP: a folder with `mlm`, interrupted and resumed, `bf16` and `ner`; and the log."""
    folder = tmp_path_factory.mktemp("ddp")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    log = drive(
        launcher,
        [
            ("pretrain.mlm", [*settings["mlm"], f"--output={folder / 'mlm'}"], 9),
            ("pretrain.mlm", [*settings["mlm"], f"--output={folder / 'mlm'}"], None),
            ("pretrain.mlm", [*settings["mlm"], "--run.precision=bf16", f"--output={folder / 'bf16'}"], None),
            ("finetune.ner", [*settings["ner"], f"--output={folder / 'ner'}"], None),
        ],
    )
    return folder, log


def drive(launcher: list[str], entries: list[tuple], **variables: str) -> str:
    command = [*launcher, DRIVER, json.dumps(entries)]
    finished = subprocess.run(
        command, cwd=PROJECT, env=environment(**variables), capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stderr


def assert_same_losses(folder: Path, alone: Path, tolerance: float) -> None:
    there, here = (list(iterate_jsonl(each / "metrics.jsonl")) for each in (folder, alone))
    assert [(row["event"], row["step"]) for row in there] == [(row["event"], row["step"]) for row in here]
    names = [name for name in ("loss", "perplexity", "f1_conlleval", "f1_strict") if name in here[-1]]
    for name in names:
        expected = {row["step"]: row[name] for row in here if name in row}
        assert {row["step"]: row[name] for row in there if name in row} == pytest.approx(expected, rel=tolerance)
    for one, other in zip(there, here, strict=True):
        if one["event"] == "train":
            assert one["learning_rate"] == other["learning_rate"]


def assert_rounded(folder: Path, alone: Path) -> None:
    """What bf16 makes of the same training: nearly the same losses, and fp32 weights."""
    assert_same_losses(folder, alone, 0.02)
    there, here = ([row["loss"] for row in iterate_jsonl(each / "metrics.jsonl")] for each in (folder, alone))
    assert there != here
    weights, expected = (load_file(str(each / "model.safetensors")) for each in (folder, alone))
    assert {name: tensor.dtype for name, tensor in weights.items()} == dict.fromkeys(expected, torch.float32)


def assert_same_weights(folder: Path, other: Path, absolute: float, relative: float) -> None:
    there, here = (load_file(str(each / "model.safetensors")) for each in (folder, other))
    assert there.keys() == here.keys()
    # The biases of attention keys have no gradient but rounding errors, which Adam makes steps of.
    different = [
        name
        for name, tensor in here.items()
        if not name.endswith("key.bias") and not there[name].allclose(tensor, rtol=relative, atol=absolute)
    ]
    assert not different


def test_two_processes_by_ddp_train_as_one(settings, alone, by_ddp):
    folder, log = by_ddp
    for name in settings:
        assert_same_losses(folder / name, alone / name, 1e-5)
        assert_same_weights(folder / name, alone / name, absolute=1e-4, relative=1e-3)
        training = read_manifest(folder / name)["facts"]["training"]
        assert training["processes"] == 2 and training["distributed"] == "MULTI_CPU"
        assert log.count(f"done: {folder / name}") == 1, "the second process is quiet"
    assert "resumed at step 8 from" in log
    assert_rounded(folder / "bf16", alone / "mlm")
    scores = json.loads((folder / "ner/scores.json").read_text())
    assert scores == json.loads((alone / "ner/scores.json").read_text())
    for split in ("validation", "test"):
        predictions = (each / f"ner/predictions/{split}.jsonl" for each in (folder, alone))
        assert len({path.read_text() for path in predictions}) == 1


@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")
def test_deepspeed_trains_resumes_and_exports_what_ddp_does(settings, by_ddp, tmp_path):
    """ZeRO-1, 2 and 3, with and without offload, in one start: the same losses and weights, to 1e-5 (seen: 4e-8)."""
    ddp, _ = by_ddp
    entries = []
    for zero in ZERO:
        output = f"--output={tmp_path / f'mlm-{zero}'}"
        entries.append(("pretrain.mlm", [*settings["mlm"], output], 9, f"launch/deepspeed/{zero}.json"))
        entries.append(("pretrain.mlm", [*settings["mlm"], output], None))
        if zero in ("zero2", "zero3"):
            entries.append(("finetune.ner", [*settings["ner"], f"--output={tmp_path / f'ner-{zero}'}"], None))
    entries.append(("pretrain.mlm", [*settings["mlm"], "--run.precision=bf16", f"--output={tmp_path / 'bf16'}"], None))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *DEEPSPEED]
    log = drive(launcher, entries, ACCELERATE_USE_CPU="false")
    assert_rounded(tmp_path / "bf16", ddp / "mlm")
    made = [path.name for path in tmp_path.iterdir() if path.name != "bf16"]
    assert len(made) == len(ZERO) + 2
    for name in made:
        stage, _, zero = name.partition("-")
        assert_same_losses(tmp_path / name, ddp / stage, 1e-5)
        assert_same_weights(tmp_path / name, ddp / stage, absolute=1e-5, relative=0)
        training = read_manifest(tmp_path / name)["facts"]["training"]
        assert training["processes"] == 2 and training["distributed"] == "DEEPSPEED"
        assert {path.name for path in (tmp_path / name).iterdir()} == {path.name for path in (ddp / stage).iterdir()}
        if stage == "mlm":
            assert f"resumed at step 8 from {tmp_path / name}.partial" in log
        ran_under = zero.replace("zero", "ZeRO-").replace("_offload", ", offloaded")
        assert f"--output={tmp_path / name} ran under {ran_under}\n" in log
    _, loading = AutoModelForMaskedLM.from_pretrained(tmp_path / "mlm-zero3", output_loading_info=True)
    assert not any(loading.values())
    _, loading = MSBForTokenClassification.from_pretrained(tmp_path / "ner-zero3", output_loading_info=True)
    assert not any(loading.values())


def test_accelerate_that_starts_too_few_processes_is_noticed(tmp_path):
    """`accelerate launch --cpu --num_processes 2` starts one process, and says nothing."""
    script = tmp_path / "stage.py"
    script.write_text(
        "from launch.errors import InputError\n"
        "from launch.loop import RunSettings, make_accelerator\n"
        "try:\n"
        "    print('processes:', make_accelerator(RunSettings()).num_processes)\n"
        "except InputError as error:\n"
        "    print('refused:', error)\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", str(script)]
    options = {"cwd": PROJECT, "env": environment(), "capture_output": True, "text": True, "timeout": PATIENCE_SECONDS}
    refused = subprocess.run([*command, "--seed", "a b"], check=True, **options).stdout
    assert "refused: accelerate launch was asked for several processes and started one" in refused
    assert f"torchrun --standalone --nproc_per_node N {script} --seed 'a b'" in refused


@pytest.mark.parametrize(
    "variables, refused",
    [
        ({}, False),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, False),  # accelerate launch, of one process
        ({"MASTER_PORT": "29500"}, False),  # python, where a cluster sets it
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}, True),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500", "WORLD_SIZE": "2"}, False),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500", "OMPI_COMM_WORLD_SIZE": "2"}, False),
    ],
)
def test_other_launches_are_not_refused(monkeypatch, variables, refused):
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_PORT", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="torchrun") if refused else nullcontext():
        check_launch()
