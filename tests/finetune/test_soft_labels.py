"""The labelling of a corpus by teachers, killed and stopped on the way: the same command goes on, not a byte differs."""

import json
import signal
import subprocess
import sys

import pytest
from tiny_models import PROJECT, environment
from tiny_ner import make_rows, named_tweet

from data_prep.layout import CORPUS_FEATURES, write_dataset
from finetune import soft_labels
from launch.interruption import REQUEUE_EXIT_CODE
from launch.stage import read_manifest

SCRIPT = """
import json, os, sys
from data_prep import layout
from finetune import soft_labels

soft_labels.SHARD_TEXTS, layout.TABLE_ROWS, layout.SHARD_BYTES = 4, 8, 1  # several shards of either kind

def kill_at(number, event, path, which):
    seen = 0

    def on_file(happened, arguments):
        nonlocal seen
        if happened == event and path in str(arguments[0]):
            seen += 1
            if seen == which:
                os.kill(os.getpid(), number)

    sys.addaudithook(on_file)

for line in sys.stdin:
    run = json.loads(line)
    if not (process := os.fork()):
        os.dup2(os.open(run["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        if run["killed"]:
            kill_at(*run["killed"])
        os._exit(soft_labels.main(run["arguments"]))
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""
"""Runs of the stage, each in a process of its own; some send themselves a signal just before the n-th time that something
is done to a file. One process imports what they need, which would take each of them seconds."""


def write_corpus(folder, seed):
    texts = [" ".join(row["tokens"]) for row in make_rows(named_tweet, 34, seed)]
    rows = [{"id": str(number), "text": text} for number, text in enumerate([*texts[:5], " ", *texts[5:], ""])]
    write_dataset(folder, {"train": rows}, CORPUS_FEATURES, "Texts")
    return folder


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, trained):
    corpus = write_corpus(tmp_path_factory.mktemp("corpus") / "corpus", seed=9)
    return ["--teachers", json.dumps([str(trained("crf"))]), "--data", str(corpus), "--precision", "fp32"]


@pytest.fixture
def run(tmp_path, arguments):
    """Runs the stage to its end, whatever that is; its exit code and what it said."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", SCRIPT], cwd=PROJECT, env=environment(), text=True, **pipes) as runner:

        def to_the_end(output, *killed):
            asked = {"log": str(log), "killed": killed, "arguments": [*arguments, "--output", str(tmp_path / output)]}
            print(json.dumps(asked), file=runner.stdin, flush=True)
            return int(runner.stdout.readline()), log.read_text()

        yield to_the_end
        runner.stdin.close()


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_goes_on_to_the_same_bytes(tmp_path, run, arguments, capsys):
    assert run("undisturbed")[0] == 0
    partial = tmp_path / "soft.partial"
    shards = lambda: {path.name: path.stat().st_ino for path in (partial / "labelled").glob("*.parquet")}  # noqa: E731

    # When the fourth shard is written, but has not yet its name.
    assert run("soft", signal.SIGKILL, "open", "labelled/.000003", 1)[0] == -signal.SIGKILL
    first = shards()
    assert sorted(first) == ["000000.parquet", "000001.parquet", "000002.parquet"]

    code, errors = run("soft", signal.SIGTERM, "os.rename", "labelled/", 3)
    assert code == REQUEUE_EXIT_CODE
    assert "finetune/soft_labels: stopped by SIGTERM; the same command goes on" in errors
    assert f"going on with the interrupted run in {partial}" in errors and "12/36" in errors
    assert len(shards()) == 5 and shards().items() > first.items()  # what is labelled is not labelled again

    # When all is labelled, and the second of the data set's shards is about to get its name.
    assert run("soft", signal.SIGKILL, "os.rename", "data/train", 2)[0] == -signal.SIGKILL
    assert len(shards()) == 9 and (partial / "data" / "train-00000-of-00005.parquet").exists()
    assert not (tmp_path / "soft").exists()

    other = write_corpus(tmp_path / "other", seed=8)
    for changed, told in [
        (["--seed", "2"], "setting seed: was 1, now 2"),
        (["--data", str(other)], "input data: content changed"),
    ]:
        assert soft_labels.main([*arguments, *changed, "--output", str(tmp_path / "soft")]) == 2
        assert told in capsys.readouterr().err
    assert len(shards()) == 9

    assert run("soft")[0] == 0
    found, expected = (files_of(tmp_path / name) for name in ("soft", "undisturbed"))
    assert found.keys() == expected.keys() and not partial.exists()
    assert {name for name in found if found[name] != expected[name]} <= {"manifest.json", "config.yaml", "README.md"}
    one, other = (read_manifest(tmp_path / name) for name in ("soft", "undisturbed"))
    assert one["rows"] == {"taken": 36, "kept": 34, "rejected": {"no words": 2}}
    for part in ("rows", "facts", "fingerprint"):
        assert one[part] == other[part]


def test_a_corpus_without_words_is_refused(tmp_path, arguments, capsys):
    rows = [{"id": str(number), "text": " "} for number in range(3)]
    write_dataset(tmp_path / "blank", {"train": rows}, CORPUS_FEATURES, "Blank")
    more = ["--data", str(tmp_path / "blank"), "--output", str(tmp_path / "out")]
    assert soft_labels.main([*arguments, *more]) == 2
    assert "blank: none of the 3 texts has words" in capsys.readouterr().err
