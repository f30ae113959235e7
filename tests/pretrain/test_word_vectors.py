"""Word vectors: what is a word, what the stage writes, that it is the same again, and what it refuses."""

import json
import sys

import numpy as np
import pytest
from tiny_models import make_corpus

from pretrain import word_vectors
from pretrain.word_vectors import words_of

SIZES = ["--dimension", "8", "--epochs", "2", "--minimum_count", "2", "--buckets", "100"]


@pytest.fixture
def gensim():
    return pytest.importorskip("gensim", reason="the extra `vectors` is not installed")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("texts") / "corpus", train=60)


def run(corpus, output, *more):
    return word_vectors.main(["--data", str(corpus), "--output", str(output), *SIZES, *more])


@pytest.mark.parametrize(
    "text, words",
    [
        ("@Ann_1 likes #Oslo!?", ["@ann_1", "likes", "#oslo", "!", "?"]),
        ("don't e-mail -- 'so'", ["don't", "e-mail", "-", "-", "'", "so", "'"]),
        ("see https://t.co/aB1, ok", ["see", "https://t.co/ab1,", "ok"]),
        ("Zürich 🎉🎉", ["zürich", "🎉", "🎉"]),
        ("a @ b # c", ["a", "@", "b", "#", "c"]),
    ],
)
def test_what_a_word_is(text, words):
    assert words_of(text) == words


def test_letters_are_kept_where_asked():
    assert words_of("Ann", lower_case=False) == ["Ann"]


def test_files_and_manifest(gensim, corpus, tmp_path):
    assert run(corpus, tmp_path / "a", "--binary", "true") == 0
    lines = (tmp_path / "a" / "vectors.vec").read_text(encoding="utf-8").splitlines()
    counts = dict(line.split(" ") for line in (tmp_path / "a" / "counts.txt").read_text("utf-8").splitlines())
    assert lines[0] == f"{len(lines) - 1} 8"
    assert [line.split(" ")[0] for line in lines[1:]] == list(counts)
    assert all(int(count) >= 2 for count in counts.values())

    facts = json.loads((tmp_path / "a" / "manifest.json").read_text())["facts"]["vectors"]
    assert facts["words"] == len(counts) and facts["reproducible"] is True
    assert facts["words_in_text_with_a_vector"] == sum(map(int, counts.values())) <= facts["words_in_text"]

    from gensim.models.fasttext import load_facebook_vectors

    binary = load_facebook_vectors(str(tmp_path / "a" / "vectors.bin"))
    word, *numbers = lines[1].split(" ")
    np.testing.assert_allclose(binary[word], [float(number) for number in numbers], atol=1e-5)
    assert binary["unheardof"].any()


def test_the_same_again_and_another_seed(gensim, corpus, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run(corpus, tmp_path / name, "--seed", seed) == 0
    first, again, other = ((tmp_path / name / "vectors.vec").read_bytes() for name in "abc")
    assert first == again != other


def test_threads_are_told_of(gensim, corpus, tmp_path):
    assert run(corpus, tmp_path / "a", "--threads", "2") == 0
    facts = json.loads((tmp_path / "a" / "manifest.json").read_text())["facts"]["vectors"]
    assert facts["reproducible"] is False and "another run" in facts["note"]


def test_too_rare_words_are_refused(gensim, corpus, tmp_path, capfd):
    assert run(corpus, tmp_path / "a", "--minimum_count", "100000") == 2
    assert "no word is there 100000 times" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_gensim(monkeypatch, corpus, tmp_path, capfd):
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    assert run(corpus, tmp_path / "a") == 2
    assert "msb-ner[vectors]" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_sizes_of_nothing_are_refused(corpus, tmp_path):
    with pytest.raises(SystemExit):
        run(corpus, tmp_path / "a", "--epochs", "0")
