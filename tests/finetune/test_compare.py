"""The comparison of finished runs: its numbers against the scorer and by hand, its files, its page, what it refuses."""

import csv
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from tiny_ner import make_ner, make_row, named_tweet

from data_prep.layout import read_ner
from finetune.compare import main
from finetune.comparison import read_systems
from finetune.scorer import score_both, spans
from finetune.tweet_counts import TestSplit
from launch.errors import InputError
from launch.paper_tables import TABLE_4, TABLE_9, TABLE_10
from launch.stage import sha256_of_tree

ATTACK = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Made-up tweets; of the last test tweets one repeats a training tweet, and one has a name that training has not."""
    seen = make_row("seen", "nasa and oslo bay likes paris today".split(), "B-ORG O B-LOC I-LOC O B-LOC O".split(), [])
    again = make_row("again", "Nasa and oslo bay likes paris today !".split(), [*seen["source_tags"], "O"], [])
    new = make_row("new", ["met", "Zoe", ATTACK], ["O", "B-PER", "O"], ["sea"])
    orphan = make_row("orphan", ["dr", "zoe"], ["O", "I-PER"], [])
    return make_ner(tmp_path_factory.mktemp("data") / "tmn", named_tweet, train=[seen], test=[again, new, orphan])


def make_run(
    folder: Path,
    data: Path,
    seed: int | None = 1,
    system: str | None = "CWI",
    right: float = 0.7,
    config=None,
    **settings,
) -> Path:
    """A finished run whose predictions are gold with words changed at random."""
    draw = random.Random(f"{system}{seed}{right}{settings}")
    rows = []
    for row in read_ner(data, "test").to_list():
        predicted = [
            tag if draw.random() < right else draw.choice(["O", "B-PER", "I-LOC"]) for tag in row["source_tags"]
        ]
        if system == "perfect":
            predicted = row["source_tags"]
        rows.append(
            {
                "id": row["id"], "tokens": row["source_tokens"], "gold": row["source_tags"], "predicted": predicted,
                "image_id": row["image_id"], "image_words": row["image_words"],
            }
        )  # fmt: skip
    (folder / "predictions").mkdir(parents=True)
    write_rows(folder, rows)
    scores = {"test": {**score_both([r["gold"] for r in rows], [r["predicted"] for r in rows]), "tweets": len(rows)}}
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "config.json").write_text(json.dumps(config or {}))
    seeds = {} if seed is None else {"seed": seed}
    entry = {"path": str(data), "sha256": sha256_of_tree(data), "manifest": None}
    manifest = {"stage": "finetune/any_ner", "settings": {"data": str(data), "system": system, **seeds, **settings}}
    manifest |= {"inputs": {"data": entry}, "facts": {"system": system} if system else {}, "seeds": [*seeds.values()]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_rows(folder: Path, rows: list[dict]) -> None:
    (folder / "predictions" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]


def run(output: Path, data: Path, runs: list[Path], *more: str) -> int:
    folders = json.dumps([str(one) for one in runs])
    return main(["--runs", folders, "--data", str(data), "--output", str(output), "--draws", "300", *more])


@pytest.fixture(scope="module")
def compared(tmp_path_factory, data) -> Path:
    """Three systems: CWI in three settings of image words by three seeds, a perfect one, and one in the style of T-NER."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        make_run(folder / f"cwi-{words}-{seed}", data, seed, right=right, image_words=words)
        for words, right in (("given", 0.9), ("shuffled", 0.7), ("none", 0.6))
        for seed in (1, 2, 3)
    ]
    runs += [make_run(folder / "perfect", data, None, "perfect"), make_run(folder / "tner", data, None, "T-NER style")]
    assert run(folder / "table", data, runs) == 0
    return folder / "table"


@pytest.fixture(scope="module")
def found(compared) -> dict:
    return json.loads((compared / "comparison.json").read_text())


def test_scores_are_the_scorers(compared, found):
    names = [system["name"] for system in found["systems"]]
    assert names == [
        "T-NER style", "CWI, image words none", "CWI, image words shuffled", "CWI, image words given", "perfect",
    ]  # fmt: skip
    assert found["systems"][3]["seeds"] == [1, 2, 3]
    for score in found["views"]["all"]["scores"]:
        runs = next(one["runs"] for one in found["systems"] if one["name"] == score["system"])
        own = [json.loads((compared.parent / name / "scores.json").read_text())["test"] for name in runs]
        own = [scores[score["convention"]] for scores in own]
        assert score["mean"]["F1"] == pytest.approx(100 * np.mean([one["micro"]["f1"] for one in own]))
        assert score["mean"]["P"] == pytest.approx(100 * np.mean([one["micro"]["precision"] for one in own]))
        assert score["mean"]["R"] == pytest.approx(100 * np.mean([one["micro"]["recall"] for one in own]))
        assert score["mean"]["ORG"] == pytest.approx(100 * np.mean([one["by_type"]["ORG"]["f1"] for one in own]))
        low, high = score["f1_interval"]
        assert low <= score["mean"]["F1"] <= high and (low < high or score["system"] == "perfect")


def test_the_parts_add_up(found, data):
    views = found["views"]
    gold = sum(tag != "O" for row in read_ner(data, "test") for tag in row["source_tags"] if not tag.startswith("I"))
    assert views["all"]["tweets"] == 43 and views["all"]["mentions"] == {"conlleval": gold + 1, "strict": gold}
    assert views["near-duplicate"]["tweets"] + views["new"]["tweets"] == 43 and views["near-duplicate"]["tweets"] >= 1
    for convention in ("conlleval", "strict"):
        parts = [views[key]["mentions"][convention] for key in ("near-duplicate", "new")]
        assert sum(parts) == views["all"]["mentions"][convention]
    # "zoe" is all that training has not seen: in one tweet with a B- tag, in another with an orphan.
    assert views["unseen"]["mentions"] == {"conlleval": 2, "strict": 1} and views["unseen"]["tweets"] == 2


def test_unseen_mentions_by_hand(tmp_path, data):
    folder = make_run(tmp_path / "run", data, None, "perfect")
    rows = rows_of(folder)
    for row in rows:
        row["predicted"] = ["O"] * len(row["tokens"])
        if row["id"] == "new":
            row["predicted"] = ["B-LOC", "B-PER", "O"]  # "met" as a place is as unseen as Zoe
        if row["id"] == "again":
            row["predicted"] = ["B-ORG", "B-PER", *row["predicted"][2:]]  # Nasa is seen, a person "and" is not
    write_rows(folder, rows)
    test = TestSplit.read(data)
    (system,) = read_systems([folder], test, "none")
    sums = {name: counts.unseen_STK3.sum(axis=(0, 1, 2)).tolist() for name, counts in system.counts.items()}
    assert sums == {"conlleval": [2, 3, 1], "strict": [1, 3, 1]}
    near = {test.ids[place] for place in np.flatnonzero(test.has_near_duplicate)}
    assert "again" in near and "new" not in near and "orphan" not in near


def test_tests_between_systems(found):
    assert len(found["tests"]) == 10
    by_names = {(one["first"], one["second"]): one for one in found["tests"]}
    sure = by_names["CWI, image words none", "CWI, image words given"]
    assert sure["difference"] < -5 and sure["interval"][1] < 0 and sure["p"] <= sure["adjusted_p"] < 0.05
    assert all(one["p"] <= one["adjusted_p"] <= 1 for one in found["tests"])


def test_against_a_baseline(tmp_path, data, compared):
    runs = [compared.parent / name for name in ("cwi-given-1", "cwi-none-1", "perfect", "tner")]
    assert run(tmp_path / "out", data, runs, "--baseline", "T-NER style") == 0
    tests = json.loads((tmp_path / "out" / "comparison.json").read_text())["tests"]
    assert len(tests) == 3 and {one["second"] for one in tests} == {"T-NER style"}


def test_image_words(compared, found):
    (family,) = found["image_words"]
    assert list(family["tests"]) == ["given - none", "given - shuffled", "shuffled - none"]
    right = family["tests"]["given - none"]
    assert list(right) == ["all", "PER", "LOC", "ORG", "MISC"]
    means = {one["system"]: one["mean"] for one in found["views"]["all"]["scores"] if one["convention"] == "conlleval"}
    given, none = means["CWI, image words given"], means["CWI, image words none"]
    assert right["all"]["difference"] == pytest.approx(given["F1"] - none["F1"])
    assert right["PER"]["difference"] == pytest.approx(given["PER"] - none["PER"])

    with open(compared / "image_tweets.csv", newline="") as file:
        tweets = list(csv.DictReader(file))
    assert len(tweets) == family["deciding_tweets"] > 0

    runs = {
        words: [rows_of(compared.parent / f"cwi-{words}-{seed}") for seed in (1, 2, 3)] for words in ("given", "none")
    }
    for tweet in tweets:
        count = {}
        for words, of_seeds in runs.items():
            own = [row for rows in of_seeds for row in rows if row["id"] == tweet["id"]]
            is_right = [spans(row["predicted"], "conlleval") == spans(row["gold"], "conlleval") for row in own]
            count[words] = sum(is_right)
            assert tweet[f"{words}_right"] == f"{count[words]} of 3"
            assert (tweet[words] == tweet["gold"]) == (count[words] >= 2)  # shown is a run that is as most are
        helped = count["given"] >= 2 > count["none"]
        assert helped or count["given"] < 2 <= count["none"]
        assert tweet["kind"] == ("given right, none wrong" if helped else "given wrong, none right")


def test_table_files(compared, found):
    with open(compared / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    papers = [row for row in rows if row["convention"].startswith("paper")]
    assert [row["system"] for row in papers] == ["T-NER", "CWI"] and papers[1]["F1"] == "71.61"
    assert len(rows) - len(papers) == 5 * 2 * len(found["views"])
    first = next(row for row in rows if row["system"] == "CWI, image words given" and row["convention"] == "strict")
    expected = found["views"]["all"]["scores"][7]
    assert first["n"] == "3" and float(first["F1"]) == pytest.approx(expected["mean"]["F1"], abs=1e-4)
    markdown = (compared / "table.md").read_text()
    mean, sd = expected["mean"]["F1"], expected["sd"]["F1"]
    assert f"{mean:.2f} ± {sd:.2f}" in markdown and "adjusted p" in markdown and "given − none" in markdown


def test_the_page_is_whole_and_loads_nothing(compared):
    page = (compared / "table.html").read_text()
    assert not re.search(r"<script|src=|href=\"(?!#)|url\(|@import", page)
    assert "default-src 'none'" in page
    for text in ("unseen", "conlleval", "strict", "Holm", "CWI, image words given", "given − none", "71.61", "T-NER"):
        assert text in page
    assert str(compared.parent) not in page
    assert page.count("<svg") == 4 + 3


def test_names_are_escaped(tmp_path, data):
    runs = [make_run(tmp_path / "a", data, 1, ATTACK), make_run(tmp_path / "b", data, 1, "a | b\nc")]
    assert run(tmp_path / "out", data, runs, "--paper", "none") == 0
    assert "<script" not in (tmp_path / "out" / "table.html").read_text()
    assert "a \\| b c" in (tmp_path / "out" / "table.md").read_text()


def test_the_papers_other_tables(tmp_path, data):
    cwi = {"model_type": "cwi", "attention": "none", "vector_size": 350, "regularised": True}
    runs = [
        make_run(tmp_path / "narrow", data, config=cwi, vectors=["/secret/glove.txt"]),
        make_run(
            tmp_path / "wide", data, config=cwi | {"vector_size": 600}, vectors=["/secret/glove.txt", "/x/more.vec"]
        ),
        make_run(tmp_path / "plain", data, system="CWI without TD+GN+SineReLU", config=cwi | {"regularised": False}),
        make_run(tmp_path / "attention", data, system="CWI + Attention", config=cwi | {"attention": "sequence"}),
    ]
    test = TestSplit.read(data)

    def rows(table: str) -> dict:
        return {one.configuration.first.name: (one.name, one.paper) for one in read_systems(runs, test, table)}

    nine, ten = rows("table9"), rows("table10")
    assert nine["narrow"] == ("CWI, word vectors of 350", TABLE_9[350]) and TABLE_9[350].f1 == 69.87
    assert nine["wide"] == ("CWI, word vectors of 600", TABLE_9[600])
    assert nine["plain"][1] is None and nine["attention"][1] is None and ten["attention"][1] is None
    assert ten["plain"] == ("CWI without TD+GN+SineReLU", TABLE_10[False]) and TABLE_10[False].by_type["ORG"] == 40.98
    assert ten["narrow"][1] is TABLE_10[True]
    four = rows("table4")
    assert four["narrow"][1].system == "CWI" and four["attention"][1].system == "CWI + Attention"
    assert four["plain"][1] is None and four["attention"][1] in TABLE_4
    assert four["wide"][0] == "CWI · NER only · vectors=glove.txt + more.vec · image words none"
    assert {paper for _, paper in rows("none").values()} == {None}
    assert run(tmp_path / "out", data, runs, "--paper", "table10") == 0
    assert "| – | – | 64.18 |" in (tmp_path / "out" / "table.md").read_text()


def test_the_same_again_is_the_same(tmp_path, data, compared):
    runs = [compared.parent / name for name in ("cwi-given-1", "cwi-given-2", "perfect")]
    for name in ("a", "b"):
        assert run(tmp_path / name, data, runs) == 0
    assert sha256_of_tree(tmp_path / "a" / "comparison.json") == sha256_of_tree(tmp_path / "b" / "comparison.json")
    assert (tmp_path / "a" / "table.html").read_text() == (tmp_path / "b" / "table.html").read_text()


def spoil(folder: Path, change) -> Path:
    rows = rows_of(folder)
    change(rows)
    write_rows(folder, rows)
    return folder


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda rows: rows.pop(), "42 tweets, the data set's test split has 43"),
        (lambda rows: rows[1].update(id="other"), "id of tweet other is not that of the data set"),
        (lambda rows: rows[2].update(tokens=["other"]), "tokens of tweet"),
        (lambda rows: rows[2]["gold"].__setitem__(0, "B-MISC"), "gold of tweet"),
        (lambda rows: rows[2]["predicted"].pop(), "tags for"),
        (lambda rows: rows[2]["predicted"].__setitem__(0, "B-BAND"), "B-BAND"),
        (lambda rows: rows[2].pop("predicted"), "not all of"),
    ],
)
def test_other_tweets_are_refused(tmp_path, data, capsys, change, told):
    runs = [make_run(tmp_path / "good", data), spoil(make_run(tmp_path / "bad", data, seed=2), change)]
    assert run(tmp_path / "out", data, runs) == 2
    message = capsys.readouterr().err
    assert told in message and "bad/predictions/test.jsonl" in message
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_what_cannot_be_compared_is_refused(tmp_path, data):
    test = TestSplit.read(data)
    good = make_run(tmp_path / "good", data)
    with pytest.raises(InputError, match="given twice"):
        read_systems([good, tmp_path / "x" / ".." / "good"], test, "table4")
    copy = make_run(tmp_path / "copy", data)
    with pytest.raises(InputError, match="one run twice"):
        read_systems([good, copy], test, "table4")
    without = make_run(tmp_path / "without", data, seed=2)
    (without / "predictions" / "test.jsonl").unlink()
    with pytest.raises(InputError, match=r"without: no predictions/test\.jsonl"):
        read_systems([good, without], test, "table4")
    with pytest.raises(InputError, match="no scores"):
        read_systems([plain_stage(tmp_path / "clean")], test, "table4")
    with pytest.raises(InputError, match="no manifest"):
        read_systems([tmp_path / "nothing"], test, "table4")


def plain_stage(folder: Path) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text('{"stage": "data_prep/clean"}')
    return folder


def test_an_unknown_baseline_is_refused(tmp_path, data, capsys):
    runs = [make_run(tmp_path / "a", data), make_run(tmp_path / "b", data, 1, "perfect")]
    assert run(tmp_path / "out", data, runs, "--baseline", "MSB") == 2
    assert "--baseline MSB" in (message := capsys.readouterr().err) and "CWI; perfect" in message
