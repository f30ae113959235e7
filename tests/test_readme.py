"""The README's commands, as they stand there: run where a machine like this one can, else read by the same parser."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune import ner
from launch import pipeline
from launch.ask import ask

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
SAMPLE = PROJECT / "data_prep" / "sample"

pytestmark = pytest.mark.xdist_group("readme")  # one worker, so that the chain is run once

SHELL_STATE = ("export ", "source ")
"""Lines that set up the shell; the tests run in the environment that they make."""

NEEDS_GPUS = "accelerate launch --multi_gpu --num_processes 4 "
NEEDS_TORCHRUN = "ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 "


def commands(language: str = "bash") -> list[str]:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line and not line.startswith(SHELL_STATE)]


def run(arguments: list[str], folder: Path) -> str:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def as_arguments(command: str, folder: Path, extra: str = "") -> list[str]:
    """A README command with this environment's programs and the test's folders in place of its capitals."""
    command = f"{command} {extra}"
    for scripts in ("data_prep", "pretrain", "finetune"):
        command = re.sub(rf"(?<=\s){scripts}/(?=\w+\.py)", f"{PROJECT}/{scripts}/", command)
    for name in ("DATA", "ENCODER", "ANNOTATED"):
        command = re.sub(rf"(?<=\s){name}(?=\s)", str(folder / name), command)
    command = command.replace("google/bert_uncased_L-2_H-128_A-2", str(folder / "ENCODER"))
    words = shlex.split(command)
    if words[:2] == ["accelerate", "launch"]:
        return [sys.executable, "-m", "accelerate.commands.launch", *words[2:]]
    assert words[0] == "python", command
    return [sys.executable, *words[1:]]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README takes as given: posts, annotated posts, an encoder, the real data's layout."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(SAMPLE, folder / "ANNOTATED")
    shutil.copy(SAMPLE / "image_words.tsv", folder / "image_words.tsv")
    (folder / "posts.txt").write_text("".join((SAMPLE / "posts.txt").open(encoding="utf-8").readlines()[:800]))
    rows = [{"text": "Jordan at last", "image_words": ["basketball", "scoreboard"]}, {"text": "nothing here"}]
    (folder / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, files in {"tmn": "*.txt", "conll2003": "eng.*", "tweets": "posts.txt"}.items():
        (folder / "DATA" / name).mkdir(parents=True)
        for file in SAMPLE.glob(files):
            shutil.copy(file, folder / "DATA" / name)
    shutil.copy(SAMPLE / "image_words.tsv", folder / "DATA" / "tmn" / "captions_blip2.tsv")
    (folder / "DATA" / "glove.txt").write_text("the 0.1 0.2\n")
    return folder


@pytest.fixture(scope="module")
def chain(workspace: Path) -> Path:
    """The chain of "Your own posts", run command by command on the sample, with few steps."""
    section = README.split("## Your own posts")[1]
    block = re.search(r"^```bash\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)[1].splitlines()[1:]
    few = {
        "pretrain/mlm.py": "--schedule.steps 3 --tokens_per_step 1024",
        "finetune/ner.py": "--schedule.steps 3 --schedule.epochs null",
    }
    run(as_arguments(block[0], workspace), workspace)
    shape = "--hidden_size 16 --layers 1 --heads 2 --vocabulary_size 800"
    new = f"python pretrain/new_encoder.py --data runs/corpus --output ENCODER {shape}"
    run(as_arguments(new, workspace), workspace)
    for command in block[1:]:
        extra = next((settings for script, settings in few.items() if script in command), "")
        run(as_arguments(command, workspace, extra), workspace)
    return workspace


def test_make_targets_exist():
    makes = [command for command in commands() if command.startswith("make ")]
    assert makes == ["make demo", "make test"]
    for command in makes:
        run([*command.split(), "--dry-run", "--directory", str(PROJECT)], PROJECT)


def test_own_posts_chain_ends_in_entities(chain: Path):
    rows = [json.loads(line) for line in (chain / "entities.jsonl").read_text().splitlines()]
    texts = [json.loads(line)["text"] for line in (chain / "posts.jsonl").read_text().splitlines()]
    assert len(rows) == len(texts)
    for text, row in zip(texts, rows, strict=True):
        for entity in row["entities"]:
            assert text[entity["start"] : entity["end"]] == entity["text"]


def test_python_example(chain: Path):
    script = "\n".join(commands("python"))
    run([sys.executable, "-c", script], chain)


@pytest.mark.parametrize("command", [line for line in commands() if "launch.pipeline" in line])
def test_pipeline_commands(command: str, chain: Path, monkeypatch, capsys):
    command = command.replace("launch/recipes", f"{PROJECT}/launch/recipes")
    if "--dry_run" in command:
        output = run(as_arguments(command, chain), chain)
    else:  # in this process, which has imported already what a process for each stage would take seconds for
        monkeypatch.chdir(chain)
        monkeypatch.setattr(pipeline, "_ask", ask)
        monkeypatch.setattr(pipeline, "ThreadPoolExecutor", OneByOne)
        assert pipeline.main(as_arguments(command, chain, "--dry_run")[3:]) == 0
        output = capsys.readouterr().out
    assert "would run" in output


class OneByOne(contextlib.nullcontext):
    """In the place of a pool of threads: stages see to signals, which the main thread alone can."""

    def __init__(self, max_workers: int) -> None:
        super().__init__(self)

    map = staticmethod(map)


@pytest.mark.parametrize("command", [line for line in commands() if "--config ner.yaml" in line])
def test_commands_for_larger_machines_are_understood(command: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("ner.yaml").write_text("encoder: runs/encoder\ndata: runs/annotated\noutput: runs/again\n")
    bare = command.removeprefix(NEEDS_TORCHRUN).removeprefix(NEEDS_GPUS).removeprefix("accelerate launch ")
    script, *arguments = bare.split()
    assert script == "finetune/ner.py"
    with pytest.raises(SystemExit) as ended:
        ner.main([*arguments, "--print_config"])
    assert ended.value.code == 0 and "encoder: runs/encoder" in capsys.readouterr().out


def test_every_command_is_covered():
    known = ("make ", "python ", "accelerate launch ", NEEDS_TORCHRUN)
    assert all(command.startswith(known) for command in commands())
