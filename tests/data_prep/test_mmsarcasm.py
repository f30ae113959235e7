import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_prep import mmsarcasm
from data_prep.excluded import EXCLUDED, NEARLY_EXCLUDED
from data_prep.layout import NER_FEATURES, PAIRS_FEATURES, ner_row, read_corpus, read_split, write_dataset
from launch.stage import read_manifest


def tweet(name: str, text: str, split: str = "train", words: object = ("eyes", "black")) -> dict:
    return {"id": name, "split": split, "text": text, "image_words": list(words) if isinstance(words, tuple) else words}


TWEETS = [
    tweet("1", "spurs # creativethinking ! <url>"),
    tweet("2", "<user> thanks  <3"),
    tweet("3", "<url>"),
    tweet("4", "a day", "valid2", ()),
    tweet("1", "again"),
    tweet("5", "the end", "test2"),
]


def write(path: Path, rows: list) -> Path:
    content = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["tweets.jsonl.gz", "tweets.jsonl"])
def test_rows(tmp_path, name):
    output = tmp_path / "out"
    assert mmsarcasm.main([f"--input={write(tmp_path / name, TWEETS)}", f"--output={output}"]) == 0
    rows = {split: read_split(output, split, PAIRS_FEATURES).to_list() for split in ("train", "validation", "test")}
    assert rows == {
        "train": [
            {"id": "1", "text": "spurs # creativethinking !", "image_words": ["eyes", "black"]},
            {"id": "2", "text": "<user> thanks <3", "image_words": ["eyes", "black"]},
        ],
        "validation": [{"id": "4", "text": "a day", "image_words": []}],
        "test": [{"id": "5", "text": "the end", "image_words": ["eyes", "black"]}],
    }
    assert read_corpus(output, "train")["text"][:] == [row["text"] for row in rows["train"]], "a corpus, too"
    manifest = read_manifest(output)
    assert manifest["rows"] == {"taken": 6, "kept": 4, "rejected": {"empty": 1, "id came before": 1}}
    assert manifest["facts"]["tweets_with_urls"] == 1


def test_tweets_of_a_data_set_to_test_on_are_left_out(tmp_path):
    words = "alpha beta gamma delta epsilon".split()
    tagged = ner_row("test:1", words, ["O"] * 5, words, ["O"] * 5, range(5))
    ner = tmp_path / "ner"
    write_dataset(ner, {"train": [tagged | {"id": "train:1"}], "test": [tagged]}, NER_FEATURES, "Tweets")
    tweets = [
        *TWEETS,
        tweet("6", "Alpha beta, gamma delta epsilon! <url>"),  # equal
        tweet("7", "alpha beta gamma delta epsilon eta", "test2"),  # 5 of 6 words: 0.83
        tweet("8", "alpha beta gamma delta zeta"),  # 4 of 6 words
    ]
    file, output = write(tmp_path / "tweets.jsonl", tweets), tmp_path / "out"
    assert mmsarcasm.main([f"--input={file}", f"--output={output}", f"--exclude={ner}"]) == 0
    manifest = read_manifest(output)
    reasons = {"empty": 1, "id came before": 1, EXCLUDED: 1, NEARLY_EXCLUDED: 1}
    assert manifest["rows"] == {"taken": 9, "kept": 5, "rejected": reasons}
    assert manifest["facts"]["excluded_texts"] == 2
    assert manifest["facts"]["excluded_matches"] == [["6", "train:1", 1.0], ["7", "train:1", 0.833]]
    assert sorted(manifest["inputs"]) == ["exclude_0", "tweets"]
    (rejected,) = (output / "rejected").glob("*.parquet")
    rows = {row["id"]: row["reason"] for row in pq.read_table(rejected).to_pylist()}
    assert (rows["6"], rows["7"]) == (EXCLUDED, NEARLY_EXCLUDED)
    kept = [row["id"] for split in ("train", "validation", "test") for row in read_split(output, split, PAIRS_FEATURES)]
    assert kept == ["1", "2", "8", "4", "5"]

    equal = tmp_path / "equal"
    assert mmsarcasm.main([f"--input={file}", f"--output={equal}", f"--exclude={ner}", "--exclude_similarity=1"]) == 0
    assert read_manifest(equal)["rows"]["rejected"] == {"empty": 1, "id came before": 1, EXCLUDED: 1}


@pytest.mark.parametrize(
    "rows, problem",
    [
        ([*TWEETS, "{"], ":7: not JSON"),
        ([*TWEETS, "[]\n"], ":7: not a tweet with image words"),
        ([{"id": "1", "split": "train", "text": "a"}], ":1: not a tweet with image words"),
        ([tweet("1", "a", words=[" "])], ":1: image words that are no words"),
        ([tweet("1", "a", split="valid")], ":1: split 'valid'. Known are train, valid2, test2."),
        (TWEETS[:3], ": no tweets for the split validation"),
    ],
)
def test_what_is_refused(tmp_path, capsys, rows, problem):
    file = write(tmp_path / "tweets.jsonl", rows)
    assert mmsarcasm.main([f"--input={file}", f"--output={tmp_path / 'out'}"]) == 2
    assert f"{file}{problem}" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_a_file_that_is_cut_short_is_refused(tmp_path, capsys):
    file = write(tmp_path / "tweets.jsonl.gz", TWEETS)
    file.write_bytes(file.read_bytes()[:-12])
    assert mmsarcasm.main([f"--input={file}", f"--output={tmp_path / 'out'}"]) == 2
    assert "cannot be read" in capsys.readouterr().err and not list(tmp_path.glob("out*"))


def test_real_file(shared_data, tmp_path):
    file = shared_data / "mmsarcasm" / "tweets_with_5_image_words.jsonl.gz"
    assert mmsarcasm.main([f"--input={file}", f"--output={tmp_path / 'out'}"]) == 0
    manifest = read_manifest(tmp_path / "out")
    rejected = sum(manifest["rows"]["rejected"].values())
    assert manifest["rows"]["taken"] == 33859 and rejected < 100
    splits = manifest["facts"]["rows_of_split"]
    assert sum(splits.values()) == 33859 - rejected and abs(splits["validation"] - 2410) < 20
