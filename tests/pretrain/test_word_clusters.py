"""Word clusters: the tree by hand, the stage's file, and what it refuses."""

import json
import sys

import numpy as np
import pytest

from pretrain import word_clusters
from pretrain.word_clusters import tree_paths

GROUPS = {"city": (1, 0, 0), "town": (0.9, 0.3, 0), "name": (0, 0, 1)}
"""Two kinds of places that are near each other, and names far off."""


@pytest.fixture
def kmeans():
    return pytest.importorskip("sklearn.cluster", reason="the extra `features` is not installed").KMeans


@pytest.fixture
def vectors(tmp_path):
    """A folder as `pretrain/word_vectors.py` writes it, of ten words a group."""
    draw = np.random.default_rng(1)
    words = [f"{group}{number}" for number in range(10) for group in GROUPS]
    rows = [np.array(GROUPS[word[:4]]) + draw.normal(0, 0.02, 3) for word in words]
    folder = tmp_path / "vectors"
    folder.mkdir()
    lines = [f"{word} {' '.join(map(str, row))}" for word, row in zip(words, rows, strict=True)]
    (folder / "vectors.vec").write_text(f"{len(words)} 3\n" + "\n".join(lines) + "\n")
    (folder / "counts.txt").write_text("".join(f"{word} {100 - place}\n" for place, word in enumerate(words)))
    return folder


def run(vectors, output, *more):
    return word_clusters.main(["--vectors", str(vectors), "--output", str(output), *more])


def by_median(vectors):
    return (vectors[:, 0] >= np.median(vectors[:, 0])).astype(int)


def test_the_widest_cluster_is_split_first():
    told = []
    paths = tree_paths(np.array([[0.0], [1.0], [10.0], [30.0]]), 3, by_median, lambda: told.append(1))
    assert paths == ["0", "0", "10", "11"] and len(told) == 2


def test_equal_vectors_stay_together():
    assert (
        tree_paths(np.array([[0.0], [5.0], [5.0]]), 3, lambda vectors: np.ones(3), lambda: None) == [""] * 3
    )  # all on one side
    assert tree_paths(np.array([[0.0], [0.0], [5.0], [5.0]]), 4, by_median, lambda: None) == ["0", "0", "1", "1"]
    assert tree_paths(np.ones((4, 2)), 3, by_median, lambda: None) == [""] * 4


def test_paths_tell_who_is_like_whom(kmeans, vectors, tmp_path):
    assert run(vectors, tmp_path / "out", "--clusters", "3") == 0
    rows = [line.split("\t") for line in (tmp_path / "out" / "paths.tsv").read_text().splitlines()]
    assert len(rows) == 30
    assert all(int(count) == 100 - 3 * int(word[4:]) - list(GROUPS).index(word[:4]) for _, word, count in rows)
    paths = {group: {path for path, word, _ in rows if word.startswith(group)} for group in GROUPS}
    assert all(len(found) == 1 for found in paths.values())
    city, town, name = (found.pop() for found in paths.values())
    assert city[0] == town[0] != name[0] and city != town and len(name) == 1

    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())["facts"]["clusters"]
    assert (facts["leaves"], facts["longest_path"], facts["words_of_the_largest"]) == (3, 2, 10)


@pytest.mark.parametrize(
    "file, text, problem",
    [
        ("vectors.vec", "2 3\na 1 2 3\n", "1: is not how many rows follow"),
        ("vectors.vec", "2 3\na 1 2 3\nb 1 2\n", "3: is not a word and 3 numbers"),
        ("counts.txt", "city0 3\nname0 many\n", "2: is not a word and its count"),
        ("counts.txt", "city0 3\n", "counts.txt lacks 'town0'"),
    ],
)
def test_other_files_are_refused(kmeans, vectors, tmp_path, capfd, file, text, problem):
    (vectors / file).write_text(text)
    assert run(vectors, tmp_path / "out", "--clusters", "2") == 2
    assert problem in capfd.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_more_clusters_than_words_are_refused(kmeans, vectors, tmp_path, capfd):
    assert run(vectors, tmp_path / "out", "--clusters", "31") == 2
    assert "has 30 words" in capfd.readouterr().err


def test_without_scikit_learn(monkeypatch, vectors, tmp_path, capfd):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    assert run(vectors, tmp_path / "out") == 2
    assert "msb-ner[features]" in capfd.readouterr().err
