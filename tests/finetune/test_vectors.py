"""Word vectors: what is read of which file, what is drawn, what is reported, and what is refused with its place."""

import gzip
import sys

import numpy as np
import pytest

from finetune.vectors import read_vectors, word_vectors
from launch.errors import InputError

GLOVE = "the 1 2 3\nparis 4 5 6\nthe 9 9 9\n. . 7 7 7\nOslo -1e-1 0 .5\n"
FASTTEXT = "3 2\nthe 10 20 \nParis 30 40 \n\u00a0 50 60 \n"
COUNTS = {"the": 5, "Paris": 2, "OSLO": 1, "zzz": 3, "yyy": 1}


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix.lower() == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["glove.6B.3d.txt", "glove.vec", "glove.txt.gz", "GLOVE.VEC.GZ"])
def test_rows_that_are_asked_for(tmp_path, name):
    file = read_vectors(write(tmp_path / name, GLOVE), {"the", "Oslo"})
    assert file.width == 3
    assert {word: row.tolist() for word, row in file.rows.items()} == {
        "the": [1, 2, 3],  # the first of two
        "Oslo": pytest.approx([-0.1, 0, 0.5]),
    }


def test_a_header_is_no_word_and_spaces_at_the_ends_no_number(tmp_path):
    file = read_vectors(write(tmp_path / "wiki.vec", FASTTEXT), None)
    assert list(file.rows) == ["the", "Paris", "\u00a0"]
    assert file.rows["\u00a0"].tolist() == [50, 60]


def test_files_beside_each_other_lower_case_and_what_is_drawn(tmp_path):
    paths = [write(tmp_path / "g.txt", GLOVE), write(tmp_path / "f.vec", FASTTEXT)]
    words, vectors_VD, reports = word_vectors(paths, COUNTS, seed=1)
    assert words == sorted(COUNTS)
    assert vectors_VD.shape == (5, 5) and vectors_VD.dtype == np.float32
    rows = dict(zip(words, vectors_VD, strict=True))
    assert rows["the"].tolist() == [1, 2, 3, 10, 20]
    assert rows["Paris"].tolist() == [4, 5, 6, 30, 40]  # "paris" of the one, "Paris" of the other
    drawn = np.concatenate([rows["OSLO"], rows["zzz"], rows["yyy"]])  # "Oslo" is neither OSLO nor oslo
    assert np.abs(drawn).max() <= 0.25 and len(set(drawn)) == 15
    assert np.array_equal(vectors_VD, word_vectors(paths, COUNTS, seed=1)[1])
    other = dict(zip(words, word_vectors(paths, COUNTS, seed=2)[1], strict=True))
    assert np.array_equal(other["the"], rows["the"]) and not np.array_equal(other["zzz"], rows["zzz"])
    glove, fasttext = reports
    assert (glove["file"], glove["width"], glove["words"]) == ("g.txt", 3, 5)
    assert (glove["as_written"], glove["in_lower_case"], glove["out_of_vocabulary"]) == (1, 1, 3)
    assert (fasttext["as_written"], fasttext["in_lower_case"], fasttext["out_of_vocabulary"]) == (2, 0, 3)
    assert glove["out_of_vocabulary_rate"] == pytest.approx(3 / 5)
    assert glove["out_of_vocabulary_rate_in_text"] == pytest.approx(5 / 12)
    assert glove["examples"] == ["zzz", "OSLO", "yyy"]  # the most frequent first


def test_every_word_of_the_files(tmp_path):
    paths = [write(tmp_path / "g.txt", GLOVE), write(tmp_path / "f.vec", FASTTEXT)]
    words, vectors_VD, reports = word_vectors(paths, COUNTS, seed=1, every_word=True)
    assert words == sorted({*COUNTS, "paris", "Oslo", "\u00a0"})
    oslo = vectors_VD[words.index("Oslo")]
    assert oslo[:3].tolist() == pytest.approx([-0.1, 0, 0.5]) and np.abs(oslo[3:]).max() <= 0.25
    assert reports[0]["words"] == 5


@pytest.mark.parametrize(
    "text, problem",
    [
        ("a 1 2 3\nb 1 2\n", r"v\.txt:2: 2 numbers beside the word, but the rows are of 3"),
        ("a 1 2 3\nzzz 1 2 3 4\n", r"v\.txt:2: 4 numbers beside the word, but the rows are of 3"),
        ("2 3\na 1 2\n", r"v\.txt:2: 2 numbers beside the word, but the rows are of 3"),
        ("a 1 2 3\n\nb 1 2 3\n", r"v\.txt:2: 0 numbers"),
        ("a 1 2 3\nb 1 x 3\n", r"v\.txt:2: could not convert string to float"),
        ("a 1 2 3\nb 1 nan 3\n", r"v\.txt:2: a number is not finite"),
        ("", r"v\.txt: is empty"),
        ("x 1 2\ny 1 2\n", r"v\.txt: has none of the data's words"),
    ],
)
def test_files_that_are_refused(tmp_path, text, problem):
    with pytest.raises(InputError, match=problem):
        word_vectors([write(tmp_path / "v.txt", text)], {"a": 1, "b": 1}, seed=1)


def test_names_that_are_refused(tmp_path):
    with pytest.raises(InputError, match="no vectors were given"):
        word_vectors([], COUNTS, seed=1)
    with pytest.raises(InputError, match="there is no such file"):
        read_vectors(tmp_path / "none.txt", None)
    with pytest.raises(InputError, match="not known as vectors by its name"):
        read_vectors(write(tmp_path / "vectors.npy", GLOVE), None)


def test_a_gzip_file_that_was_cut_short_or_damaged(tmp_path):
    path = tmp_path / "v.txt.gz"
    whole = gzip.compress(GLOVE.encode() * 1000)
    for damaged in (whole[:-20], whole[:30] + b"\xff" * 8 + whole[38:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"v\.txt\.gz: cannot be read"):
            read_vectors(path, (), every_word=True)


def test_a_bin_without_gensim(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gensim.models.fasttext", None)
    with pytest.raises(InputError, match=r"pip install 'msb-ner\[vectors\]'"):
        read_vectors(write(tmp_path / "wiki.bin", ""), {"the"})


def test_fasttexts_binary_format(tmp_path):
    """Known words as they are, words in lower case before subwords, and subwords for all others."""
    fasttext = pytest.importorskip("gensim.models.fasttext")
    texts = [["the", "river", "rivers", "paris"]] * 20
    model = fasttext.FastText(texts, vector_size=6, min_count=1, bucket=50, epochs=1, workers=1, seed=1)
    fasttext.save_facebook_model(model, str(tmp_path / "v.bin"))
    counts = {"the": 4, "Paris": 3, "riverly": 2, "\u00e9": 1}
    words, vectors_VD, (report,) = word_vectors([tmp_path / "v.bin"], counts, seed=1)
    rows = dict(zip(words, vectors_VD, strict=True))
    np.testing.assert_array_equal(rows["the"], model.wv["the"])
    np.testing.assert_array_equal(rows["Paris"], model.wv["paris"])
    np.testing.assert_array_equal(rows["riverly"], model.wv["riverly"])
    assert (report["width"], report["as_written"], report["in_lower_case"]) == (6, 1, 1)
    assert report["of_subwords"] == 2 and report["out_of_vocabulary"] == 0
    every, vectors_VD, (report_of_all,) = word_vectors([tmp_path / "v.bin"], counts, seed=1, every_word=True)
    assert {"river", "rivers", "riverly", "Paris"} <= set(every) and report_of_all == report
    np.testing.assert_array_equal(vectors_VD[every.index("riverly")], model.wv["riverly"])
    with pytest.raises(InputError, match=r"w\.bin: is not fastText's binary format"):
        read_vectors(write(tmp_path / "w.bin", GLOVE), {"the"})
