"""`python -m finetune.predict`: rows in, rows out, in bounded memory, whole or not at all."""

import errno
import gc
import gzip
import json
import os
import subprocess
import sys

import pytest

from finetune import ner, predict
from finetune.recognizer import Recognizer


@pytest.fixture(scope="module")
def model(trained):
    return trained("crf", "BIO")


def run(model, source, output, *more):
    return predict.main(["--model", str(model), "--input", str(source), "--output", str(output), *more])


def write(path, *rows):
    """A row is JSON, or a line as it is."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_json_lines(model, tmp_path, capsys):
    source = write(
        tmp_path / "posts.jsonl",
        {"id": 7, "text": "saw Maria Lee, met NASA", "lang": "en"},
        {"id": "b", "text": "today http://t.co/abc 🎉", "image_words": ["sea", "court"]},
        {"text": "in Oslo Bay! 👩‍💻", "image_words": "a caption"},
        {"tokens": ["saw", "http://t.co/abc", "acme", "corp", ""], "image_words": None},
    )
    assert run(model, source, tmp_path / "new" / "entities.jsonl") == 0
    rows = read(tmp_path / "new" / "entities.jsonl")
    assert [row["id"] for row in rows] == ["7", "b", "posts:3", "posts:4"]
    score = rows[0]["entities"][0].pop("score")
    assert 0 < score <= 1 and score == round(score, 4)
    assert rows[0]["entities"][0] == {"text": "Maria Lee", "type": "PER", "start": 4, "end": 13}
    assert rows[0]["entities"][1]["text"] == "NASA"
    assert rows[1] == {"id": "b", "entities": [], "words_truncated": 0}
    assert [(e["text"], e["type"], e["start"]) for e in rows[2]["entities"]] == [("Oslo Bay", "LOC", 3)]
    assert rows[3]["tags"] == ["O", "O", "B-ORG", "I-ORG", "O"]
    assert [(e["text"], e["start"], e["end"]) for e in rows[3]["entities"]] == [("acme corp", 20, 29)]
    assert all("tags" not in row for row in rows[:3])
    said = capsys.readouterr().err
    assert "4 posts in " in said and "4 entities (2 ORG, 1 PER, 1 LOC), 2 posts with image words" in said
    assert "posts/s" in said  # the bar


def test_text_lines(model, tmp_path, capsys):
    lines = [
        "\ufeffsaw Maria",
        "",
        "saw Paris\u2028at Oslo Bay\x0b!\r",
        "http://t.co/abc",
        "a " * 5000 + "paris",
        "שלום \u202bnasa\u202c",
    ]
    source = write(tmp_path / "posts.txt", *(line.encode() for line in lines))
    assert run(model, source, tmp_path / "out.jsonl") == 0
    rows = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == [f"posts:{n}" for n in range(1, 7)]
    assert rows[0]["entities"][0]["start"] == 4  # a byte-order mark is no part of the text
    assert [entity["text"] for entity in rows[2]["entities"]] == ["Paris", "Oslo Bay"]
    assert rows[1]["entities"] == rows[3]["entities"] == rows[4]["entities"] == []
    assert rows[4]["words_truncated"] == 5001 - 61
    assert "4940 words of 1 posts did not fit the model's input" in capsys.readouterr().err
    assert [entity["text"] for entity in rows[5]["entities"]] == ["nasa"]


def test_gzip(model, tmp_path, capsys):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "saw Maria"}\n' * 3))
    assert run(model, tmp_path / "a.jsonl.gz", tmp_path / "out.jsonl") == 0
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == ["a:1", "a:2", "a:3"]
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"saw Maria\n" * 100)[:-9])
    assert run(model, tmp_path / "b.txt.gz", tmp_path / "out2.jsonl") == 2
    assert "b.txt.gz:" in (error := capsys.readouterr().err) and "broken gzip data" in error
    assert not (tmp_path / "out2.jsonl").exists()


MALFORMED = [
    (b"nonsense", "no JSON"),
    (b"[" * 100_000, "no JSON"),
    (b'["text"]', "JSON that is no object"),
    (b'"text"', "JSON that is no object"),
    (b"{}", "neither `text` nor `tokens`"),
    (b'{"text": null}', "neither `text` nor `tokens`"),
    (b'{"text": "a", "tokens": ["a"]}', "both `text` and `tokens`"),
    (b'{"text": 3}', "a `text` that is no string"),
    (b'{"tokens": "a b"}', "`tokens` that are no list of strings"),
    (b'{"tokens": ["a", 3]}', "`tokens` that are no list of strings"),
    (b'{"text": "a", "image_words": 3}', "`image_words` that are neither strings nor a string"),
    (b'{"text": "a", "image_words": [null]}', "`image_words` that are neither strings nor a string"),
    (b'{"text": "a", "id": 1.5}', "an `id` that is neither string nor integer"),
    (b'{"text": "a", "id": true}', "an `id` that is neither string nor integer"),
    (b'{"text": "caf\xe9"}', "bytes that are not UTF-8"),
]


@pytest.mark.parametrize("line, problem", MALFORMED)
def test_a_malformed_line_ends_it_and_nothing_is_written(model, tmp_path, capsys, line, problem):
    source = write(tmp_path / "posts.jsonl", {"text": "saw Maria"}, line, {"text": "saw Paris"})
    output = write(tmp_path / "out.jsonl", {"from": "before"})
    assert run(model, source, output) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"finetune/predict: error: {source}:2: {problem}. ")
    assert error.endswith("Or leave such lines out with --on_error skip.")
    assert read(output) == [{"from": "before"}]
    assert {path.name for path in tmp_path.iterdir()} == {"posts.jsonl", "out.jsonl"}


def test_malformed_lines_skipped_and_counted(model, tmp_path, capsys):
    source = write(
        tmp_path / "posts.jsonl", *(line for line, _ in MALFORMED), {"text": "saw Maria"}, b" ", {"text": ""}
    )
    assert run(model, source, tmp_path / "out.jsonl", "--on_error", "skip") == 0
    assert [row["id"] for row in read(tmp_path / "out.jsonl")] == ["posts:16", "posts:18"]
    said = capsys.readouterr().err
    assert "2 posts in " in said
    assert "15 lines skipped: 2 with no JSON, 2 with JSON that is no object" in said
    assert "(line 1, line 2, line 3, line 4, line 5, …)" in said
    assert "18/18" in said  # the bar counts them, too


def test_half_surrogate_pairs(model, tmp_path):
    """JSON can spell them, and UTF-8 cannot: they go out as they came in."""
    source = write(
        tmp_path / "posts.jsonl", b'{"id": "\\ud83d", "text": "\\ud83d saw Maria\\ude00 \\ud83d\\ude00 Lee"}'
    )
    assert run(model, source, tmp_path / "out.jsonl") == 0
    [row] = read(tmp_path / "out.jsonl")
    assert row["id"] == "\ud83d"
    text = "\ud83d saw Maria\ude00 😀 Lee"
    assert row["entities"] and all(text[e["start"] : e["end"]] == e["text"] for e in row["entities"])


def test_posts_are_held_a_few_at_a_time(model, tmp_path, monkeypatch):
    """The same comes out, in the same order, and rows are written as they are found."""
    source = write(tmp_path / "posts.jsonl", *({"text": text} for text in ["saw Maria", "", "Oslo Bay, Paris"] * 4))
    assert run(model, source, tmp_path / "whole.jsonl") == 0
    held, recognize = [], Recognizer.recognize
    monkeypatch.setattr(
        Recognizer, "recognize", lambda self, posts, *a: held.append(len(posts)) or recognize(self, posts, *a)
    )
    assert run(model, source, tmp_path / "parts.jsonl", "--posts_at_once", "5") == 0
    assert held == [5, 5, 2]
    whole, parts = read(tmp_path / "whole.jsonl"), read(tmp_path / "parts.jsonl")
    for one, other in zip(whole, parts, strict=True):
        for a, b in zip(one.pop("entities"), other.pop("entities"), strict=True):
            assert a.pop("score") == pytest.approx(b.pop("score"), abs=2e-4)
            assert a == b
        assert one == other


def test_an_interrupted_run_leaves_nothing(model, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    source = write(tmp_path / "posts.jsonl", {"text": "saw Maria"})
    monkeypatch.setattr(Recognizer, "recognize", interrupt)
    assert run(model, source, tmp_path / "out.jsonl") == 130
    assert "interrupted" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"posts.jsonl"}


def test_empty_input(model, tmp_path, capsys):
    gc.unfreeze()
    assert run(model, write(tmp_path / "posts.txt"), tmp_path / "out.jsonl") == 0
    assert gc.get_freeze_count() > 10_000  # the collector leaves imports alone
    assert (tmp_path / "out.jsonl").read_text() == ""
    assert "0 posts" in capsys.readouterr().err


def test_image_words_for_a_model_without(encoder, named, tmp_path, capsys):
    """They are not read, and the user is told."""
    arguments = ["--encoder", str(encoder), "--data", str(named), "--output", str(tmp_path / "model")]
    arguments += ["--image_words", "none", "--schedule.steps", "1", "--input.maximum_length", "64"]
    assert ner.main(arguments) == 0
    source = write(tmp_path / "posts.jsonl", {"text": "saw Maria", "image_words": ["sea"]})
    assert run(tmp_path / "model", source, tmp_path / "out.jsonl") == 0
    assert "the model was trained without image words, so those of the input were not read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ({"--input": "nothing.jsonl"}, "nothing.jsonl: no such file"),
        ({"--input": "posts.csv"}, "posts.csv: not a file of posts by its name. Known endings are .txt, "),
        ({"--output": "."}, "is a folder"),
        ({"--output": "posts.jsonl"}, "is the input, too"),
        ({"--output": "posts.csv/out.jsonl"}, "cannot be written"),
        ({"--model": "nothing/here/at/all"}, "there is no such folder"),
        ({"--model": "."}, "there is no config.json"),
        ({"--device": "thermometer"}, "device thermometer: cannot be used"),
        ({"--precision": "int8"}, "precision int8: cannot be had here"),
    ],
)
def test_arguments_that_are_refused(model, tmp_path, monkeypatch, capsys, arguments, problem):
    monkeypatch.chdir(tmp_path)
    for name in ("posts.jsonl", "posts.csv"):
        write(tmp_path / name, {"text": "a"})
    given = {"--model": str(model), "--input": "posts.jsonl", "--output": "out.jsonl"} | arguments
    assert predict.main([part for pair in given.items() for part in pair]) == 2
    assert problem in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"posts.jsonl", "posts.csv"}


@pytest.mark.parametrize("more", [["--posts_at_once", "0"], ["--on_error", "cry"], ["--treshold", "1"]])
def test_settings_that_are_refused(model, tmp_path, capsys, more):
    with pytest.raises(SystemExit) as exit:
        run(model, tmp_path / "a.txt", tmp_path / "b.jsonl", *more)
    assert exit.value.code == 2
    assert more[0].strip("-") in capsys.readouterr().err


def test_a_full_disk(model, tmp_path, monkeypatch, capsys):
    write(tmp_path / "posts.jsonl", {"text": "a"})
    arguments = [
        "--model",
        str(model),
        "--input",
        str(tmp_path / "posts.jsonl"),
        "--output",
        str(tmp_path / "out.jsonl"),
    ]

    def full(_path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(predict, "sync_to_disk", full)
    assert predict.main(arguments) == 2
    assert "out.jsonl: No space left on device. Nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["posts.jsonl"]


def test_as_a_command(model, tmp_path):
    source = write(tmp_path / "posts.jsonl", {"id": "1", "text": "saw Maria Lee"})
    command = [sys.executable, "-m", "finetune.predict", "--model", str(model), "--input", str(source)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out.jsonl")],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert [entity["text"] for entity in read(tmp_path / "out.jsonl")[0]["entities"]] == ["Maria Lee"]
    assert done.stdout == ""
    assert "Do you wish to run" not in done.stderr
