import json

import pytest

from data_prep import conll2003
from data_prep.layout import NER_TAGS, read_ner

TEXT = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
U.N. NNP I-NP B-ORG
sees VB I-VP O
http://un.org NN I-NP O

Paris NNP I-NP I-LOC
"""


@pytest.mark.parametrize("names", [("eng.train", "eng.testa", "eng.testb"), ("train.txt", "valid.txt", "test.txt")])
def test_rows(tmp_path, names):
    source, output = tmp_path / "conll", tmp_path / "out"
    source.mkdir()
    for name in names:
        (source / name).write_text(TEXT)
    assert conll2003.main(["--input", str(source), "--output", str(output)]) == 0
    rows = read_ner(output, "test").to_list()
    assert [row["id"] for row in rows] == [f"{names[2]}:3", f"{names[2]}:8"]
    assert rows[0]["tokens"] == ["EU", "U.N.", "sees", "http://un.org"]
    assert [NER_TAGS[tag] for tag in rows[0]["ner_tags"]] == ["B-ORG", "B-ORG", "O", "O"]
    assert rows[0]["source_tags"] == ["B-ORG", "B-ORG", "O", "O"]
    assert rows[0]["source_index"] == [0, 1, 2, 3]
    assert (rows[1]["image_id"], rows[1]["image"], rows[1]["image_words"]) == (None, None, [])
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["rows"] == {"taken": 6, "kept": 6, "rejected": {}}
    assert manifest["facts"]["document_starts"] == {"train": 1, "validation": 1, "test": 1}
    assert manifest["facts"]["entities"]["train"] == {"LOC": 1, "ORG": 2}


def test_missing_files_are_named(tmp_path, capsys):
    (tmp_path / "conll").mkdir()
    arguments = ["--input", str(tmp_path / "conll"), "--output", str(tmp_path / "out")]
    assert conll2003.main(arguments) == 2
    assert "Expected eng.train, eng.testa, eng.testb or train.txt" in capsys.readouterr().err
    (tmp_path / "conll" / "eng.train").write_text(TEXT)
    assert conll2003.main(arguments) == 2
    assert "eng.testa: no such file" in capsys.readouterr().err


def test_real_files(shared_data, tmp_path):
    output = tmp_path / "out"
    assert conll2003.main(["--input", str(shared_data / "conll2003"), "--output", str(output)]) == 0
    splits = [read_ner(output, split, columns=["ner_tags"]) for split in ("train", "validation", "test")]
    assert [len(split) for split in splits] == [14041, 3250, 3453]
    begins = [sum(NER_TAGS[tag][0] == "B" for tags in split["ner_tags"] for tag in tags) for split in splits]
    assert begins == [23499, 5942, 5648]  # as published with the shared task
