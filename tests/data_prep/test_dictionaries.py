"""Dictionaries hold the entities of the training split, each once, and T-NER's features read them."""

import json

import pytest

from data_prep import conll2003, dictionaries
from finetune.systems.tner_features import read_dictionaries

TRAIN = """EU NNP I-NP I-ORG

New NNP I-NP I-LOC
York NNP I-NP I-LOC
beat VB I-VP O
New NNP I-NP I-LOC
York NNP I-NP B-LOC

Maria NNP I-NP I-PER
saw VB I-VP O
New NNP I-NP I-LOC
York NNP I-NP I-LOC
"""


@pytest.fixture
def news(tmp_path):
    source = tmp_path / "conll"
    source.mkdir()
    for name in ("eng.train", "eng.testa", "eng.testb"):
        (source / name).write_text(TRAIN if name == "eng.train" else "Oslo NNP I-NP I-LOC\n")
    assert conll2003.main(["--input", str(source), "--output", str(tmp_path / "news")]) == 0
    return tmp_path / "news"


def test_each_type_has_its_phrases_most_frequent_first(news, tmp_path):
    assert dictionaries.main(["--data", str(news), "--output", str(tmp_path / "out")]) == 0
    phrases = {path.stem: path.read_text().splitlines() for path in (tmp_path / "out").glob("*.txt")}
    assert phrases == {"ORG": ["EU"], "LOC": ["New York", "New", "York"], "PER": ["Maria"]}  # and no MISC
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())["facts"]
    assert facts["phrases"] == {"PER": 1, "LOC": 3, "ORG": 1, "MISC": 0} and not any(facts["left_out"].values())
    assert read_dictionaries(tmp_path / "out")["new york"] == ["LOC"]


def test_what_is_rare_can_be_left_out_but_not_all(news, tmp_path, capsys):
    run = lambda least: dictionaries.main(  # noqa: E731
        ["--data", str(news), "--output", str(tmp_path / f"out{least}"), "--minimum_count", str(least)]
    )
    assert run(2) == 0
    assert [path.name for path in (tmp_path / "out2").glob("*.txt")] == ["LOC.txt"]
    assert (tmp_path / "out2" / "LOC.txt").read_text() == "New York\n"
    assert json.loads((tmp_path / "out2" / "manifest.json").read_text())["facts"]["left_out"]["LOC"] == 2
    assert run(3) == 2
    assert "no entity occurs 3 times. Lower --minimum_count" in capsys.readouterr().err
    assert not (tmp_path / "out3").exists()
