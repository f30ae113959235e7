"""Cluster words into a tree by their vectors, for features like those of Brown clusters.

    python pretrain/word_clusters.py --vectors VECTORS --output CLUSTERS

VECTORS is the folder of `pretrain/word_vectors.py`. All words are one cluster at first; the cluster whose words differ most is
split into two by k-means, again and again (bisecting k-means). A word's *path* has a bit for each split on the way to its
cluster, so that words with a longer beginning in common are more alike. Writes `paths.tsv`: path, word and count, with tabs
between, as programs for Brown clusters do. Brown clustering itself splits by bigram counts; this is "Brown-like".
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from launch.errors import InputError
from launch.files import write_text_whole
from launch.settings import NOT_IDENTITY
from launch.stage import Stage, StageSettings, run_stage

Split = Callable[[np.ndarray], np.ndarray]
"""From vectors [W, D] to the side, 0 or 1, of each [W]."""


@dataclass(frozen=True, kw_only=True)
class WordClusterSettings(StageSettings):
    """Settings of `pretrain/word_clusters.py`."""

    vectors: Path = field(metadata=NOT_IDENTITY)
    """Folder of `pretrain/word_vectors.py`, with `vectors.vec` and `counts.txt`."""
    clusters: int = 1000
    """Leaves of the tree."""
    seed: int = 1
    """The first centres of each split are functions of it."""

    def __post_init__(self) -> None:
        """Refuse a tree of a single leaf."""
        if self.clusters < 2:
            raise ValueError("clusters must be at least 2")


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    return run_stage(WordClusterSettings, cluster_words, lambda settings: {"vectors": settings.vectors}, argv)


def cluster_words(settings: WordClusterSettings, stage: Stage) -> None:
    """The stage: from vectors to a path for each word."""
    kmeans = import_kmeans()
    stage.seeds = [settings.seed]
    counts = read_counts(settings.vectors / "counts.txt")
    words, vectors_WD = read_vectors(settings.vectors / "vectors.vec")
    if missing := next((word for word in words if word not in counts), None):
        raise InputError(f"{settings.vectors}: counts.txt lacks {missing!r} of vectors.vec. Make the folder again.")
    if len(words) < settings.clusters:
        raise InputError(
            f"{settings.vectors}: has {len(words)} words, fewer than --clusters {settings.clusters}. Ask for fewer clusters."
        )
    vectors_WD /= np.linalg.norm(vectors_WD, axis=1, keepdims=True).clip(1e-12)  # by angle: length tells how frequent

    def split(members_WD: np.ndarray) -> np.ndarray:
        return kmeans(2, n_init=1, random_state=settings.seed).fit_predict(members_WD)

    with stage.progress(None, "splits", total=settings.clusters - 1, unit="split") as progress:
        paths = tree_paths(vectors_WD, settings.clusters, split, progress.update)

    order = sorted(range(len(words)), key=lambda place: (paths[place], place))  # the most frequent first
    lines = (f"{paths[place]}\t{words[place]}\t{counts[words[place]]}\n" for place in order)
    write_text_whole(stage.folder / "paths.tsv", "".join(lines))
    stage.rows.taken = stage.rows.kept = len(words)
    lengths = [len(path) for path in set(paths)]
    stage.facts["clusters"] = {
        "method": "bisecting k-means on unit vectors, the cluster with the largest sum of squares first",
        "leaves": len(lengths),
        "shortest_path": min(lengths),
        "mean_path_of_a_word": round(sum(map(len, paths)) / len(paths), 2),
        "longest_path": max(lengths),
        "words_of_the_largest": max(Counter(paths).values()),
    }


def tree_paths(vectors_WD: np.ndarray, leaves: int, split: Split, tell: Callable[[], object]) -> list[str]:
    """The path of each vector in a tree of so many leaves, or fewer where no cluster can be split any more.

    ``tell`` is called after each split.
    """
    waiting = [(0.0, "", np.arange(len(vectors_WD)))]  # minus the sum of squares, path, members
    done: list[tuple[str, np.ndarray]] = []
    while waiting and len(waiting) + len(done) < leaves:
        _, path, members = heapq.heappop(waiting)
        vectors = vectors_WD[members]
        side = split(vectors) if (vectors != vectors[0]).any() else np.zeros(len(members))
        if (side == side[0]).all():
            done.append((path, members))
            continue
        for bit in (0, 1):
            chosen = members[side == bit]
            heapq.heappush(waiting, (-sum_of_squares(vectors_WD[chosen]), f"{path}{bit}", chosen))
        tell()
    paths = [""] * len(vectors_WD)
    for path, members in [*done, *((path, members) for _, path, members in waiting)]:
        for member in members:
            paths[member] = path
    return paths


def sum_of_squares(vectors_WD: np.ndarray) -> float:
    """Squared distances of vectors to their mean, added up."""
    return float(np.square(vectors_WD - vectors_WD.mean(axis=0)).sum())


def import_kmeans() -> Any:
    """scikit-learn's k-means; InputError where it is not installed."""
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise InputError("scikit-learn clusters words, and is not installed. pip install 'msb-ner[features]'") from None
    return KMeans


def read_counts(path: Path) -> dict[str, int]:
    """A word and its count of each line."""
    counts = {}
    for number, line in enumerate(read_lines(path), start=1):
        word, _, count = line.rpartition(" ")
        if not word or not count.isdigit():
            raise InputError.at(path, number, "is not a word and its count", "Make the word vectors again.")
        counts[word] = int(count)
    return counts


def read_vectors(path: Path) -> tuple[list[str], np.ndarray]:
    """Words [W] and vectors [W, D] of word2vec's text format."""
    first, *lines = read_lines(path) or [""]
    header = first.split(" ")
    if len(header) != 2 or not all(field.isdigit() for field in header) or int(header[0]) != len(lines):
        remedy = "Make the word vectors again."
        raise InputError.at(path, 1, f"is not how many rows follow ({len(lines)}), and how wide they are", remedy)
    words, vectors_WD = [], np.empty([int(size) for size in header], np.float32)
    for number, line in enumerate(lines, start=2):
        word, *numbers = line.split(" ")
        try:
            vectors_WD[number - 2] = [float(text) for text in numbers]
        except ValueError:
            raise InputError.at(
                path, number, f"is not a word and {header[1]} numbers", "Make the word vectors again."
            ) from None
        words.append(word)
    return words, vectors_WD


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; InputError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Give a folder of pretrain/word_vectors.py.") from None


if __name__ == "__main__":
    raise SystemExit(main())
