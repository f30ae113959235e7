"""Systems side by side: scores with their intervals, over all test tweets and parts of them, and tests between systems.

Scores are in percent and differences in points. Shapes: S runs of a system, T test tweets, K entity types; 3: gold, predicted,
correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from data_prep.layout import ENTITY_TYPES
from finetune.scorer import CONVENTIONS
from finetune.significance import bootstrap_f1, f1_of, holm, interval, mean_f1, randomization_tests
from finetune.tweet_counts import SystemCounts, TestSplit, count_system, read_predictions
from launch.errors import InputError
from launch.paper_tables import TABLES, PaperRow
from launch.results import Configuration, Mean, StageFolder, configurations

MEASURES = (*ENTITY_TYPES, "P", "R", "F1")
TESTED = "conlleval"
"""The convention whose F1 the tests are about."""
ALPHA = 0.05


@dataclass(frozen=True)
class System:
    """Runs that are equal up to their seed, and what they did."""

    name: str
    configuration: Configuration
    counts: dict[str, SystemCounts]
    """By convention."""
    paper: PaperRow | None


@dataclass(frozen=True)
class Score:
    """A system's score by one convention."""

    system: System
    convention: str
    cells: dict[str, Mean | None]
    """By measure, with the standard deviation over the runs; None for F1 of a type without gold mentions."""
    f1_interval: tuple[float, float]
    """Bootstrap 95 % interval, by other tweets, not by other seeds."""


@dataclass(frozen=True)
class View:
    """The systems' scores on a part of the test split."""

    key: str
    title: str
    tweets: int
    mentions: dict[str, int]
    """Gold mentions by convention."""
    scores: list[Score]
    """Of each system in turn, by each convention."""


@dataclass(frozen=True)
class PairTest:
    """Two systems' difference of F1, first minus second, by `TESTED`."""

    first: System
    second: System
    difference: float
    interval: tuple[float, float]
    """Bootstrap 95 % interval."""
    p: float
    adjusted: float
    """p by Holm, over all pairs tested."""


PARTS: dict[str, tuple[str, Callable[[SystemCounts, np.ndarray], np.ndarray]]] = {
    "all": ("All test tweets", lambda counts, _: counts.all_STK3),
    "unseen": ("Unseen mentions only", lambda counts, _: counts.unseen_STK3),
    "near-duplicate": ("Tweets with a near-duplicate in training", lambda counts, near: counts.all_STK3[:, near]),
    "new": ("Tweets without a near-duplicate in training", lambda counts, near: counts.all_STK3[:, ~near]),
}
"""What the views are of: title, and the counts of a system, given which tweets have a near-duplicate (bool [T])."""


def read_systems(folders: Sequence[Path], test: TestSplit, paper: str) -> list[System]:
    """The runs as systems: in the order of the paper's table, then of their F1.

    ``paper``: the table whose rows stand beside them, ``table4``, ``table9``, ``table10`` or ``none``. InputError for a run
    given twice, one that is no recognizer, and what :func:`read_predictions` refuses.
    """
    places: dict[Path, Path] = {}
    for folder in folders:
        if (other := places.setdefault(folder.resolve(), folder)) is not folder:
            raise InputError(f"{folder} is given twice (also as {other}). Name each run once.")
    runs = [StageFolder(folder) for folder in folders]
    for run in runs:
        if not run.scores:
            raise InputError(f"{run.folder}: no scores.json. Give folders of finished recognizer stages.")
    found = configurations(runs)
    for one in found:
        for first, second in combinations(one.runs, 2):
            if first.seed == second.seed:
                raise InputError(
                    f"{first.folder} and {second.folder} are one run twice: equal settings, inputs and seed. "
                    "Leave one out."
                )
    systems = []
    for one, name in zip(found, unique_names(found, paper), strict=True):
        predicted = [read_predictions(run, test) for run in one.runs]
        counts = {convention: count_system(test, predicted, convention) for convention in CONVENTIONS}
        systems.append(System(name, one, counts, one.row_of(paper)))
    order = {row.system: place for place, row in enumerate(TABLES.get(paper, ()))}

    def rank(system: System) -> tuple[float, float]:
        place = order[system.paper.system] if system.paper else len(order)
        return place, mean_f1(system.counts[TESTED].all_STK3.sum(axis=2))

    return sorted(systems, key=rank)


def unique_names(found: Sequence[Configuration], paper: str) -> list[str]:
    """The shortest names that tell the configurations apart: system, with its image words, or all there is to say.

    Rows of the paper's Tables 9 and 10 have more telling names than the system's, CWI.
    """
    rows = [one.row_of(paper) if paper != "table4" else None for one in found]
    names = [row.system if row else one.system for one, row in zip(found, rows, strict=True)]
    ways = [
        names,
        [f"{name}, image words {one.image_words}" for one, name in zip(found, names, strict=True)],
        [one.label for one in found],
    ]
    return [next((names[i] for names in ways if names.count(names[i]) == 1), ways[-1][i]) for i in range(len(found))]


def make_views(systems: Sequence[System], test: TestSplit, draws: int, seed: int) -> list[View]:
    """All systems' scores on all the parts; those without a mention are left out."""
    near = test.has_near_duplicate
    views = []
    for key, (title, part_of) in PARTS.items():
        lines = [(system, convention) for system in systems for convention in CONVENTIONS]
        counts = [part_of(system.counts[convention], near) for system, convention in lines]
        mentions = {
            convention: int(counts[place][0, :, :, 0].sum()) for place, convention in enumerate(CONVENTIONS)
        }  # of the first system: the gold mentions are everybody's
        if not any(mentions.values()):
            continue
        samples = bootstrap_f1([one.sum(axis=2) for one in counts], draws, seed)
        scores = [
            Score(system, convention, measures_of(one), in_percent(interval(values)))
            for (system, convention), one, values in zip(lines, counts, samples, strict=True)
        ]
        holding = (counts[0][0, :, :, 0].sum(axis=1) > 0).sum() if key == "unseen" else counts[0].shape[1]
        views.append(View(key, title, int(holding), mentions, scores))
    return views


def measures_of(counts_STK3: np.ndarray) -> dict[str, Mean | None]:
    """F1 by type, precision, recall and F1, in percent, as means over the runs; None for a type without gold mentions."""
    sums_SK3 = counts_STK3.sum(axis=1)
    gold, predicted, correct = np.moveaxis(sums_SK3.sum(axis=1), -1, 0)
    by_type_SK = f1_of(np.stack([sums_SK3[..., 2], sums_SK3[..., 0] + sums_SK3[..., 1]], axis=-1))
    has_gold_K = sums_SK3[0, :, 0] > 0
    values = [
        *(f1_S if has_gold else None for f1_S, has_gold in zip(by_type_SK.T, has_gold_K, strict=True)),
        correct / np.maximum(predicted, 1),
        correct / np.maximum(gold, 1),
        f1_of(np.stack([correct, gold + predicted], axis=-1)),
    ]
    return {
        name: None if runs is None else Mean.of((100 * runs).tolist())
        for name, runs in zip(MEASURES, values, strict=True)
    }


def tests_between(systems: Sequence[System], baseline: str | None, draws: int, seed: int) -> list[PairTest]:
    """Tests of all pairs of systems, or of each against the one that ``baseline`` names. InputError for another name."""
    if baseline is None:
        pairs = list(combinations(range(len(systems)), 2))
    else:
        place = _place_of(baseline, systems)
        pairs = [(other, place) for other in range(len(systems)) if other != place]
    return compare_pairs(
        [(systems[a], systems[b]) for a, b in pairs],
        [(system, system.counts[TESTED].all_STK3.sum(axis=2)) for system in systems],
        draws,
        seed,
    )


def compare_pairs(
    pairs: Sequence[tuple[System, System]],
    counts: Sequence[tuple[System, np.ndarray]],
    draws: int,
    seed: int,
) -> list[PairTest]:
    """Differences, intervals and p of pairs of systems, by counts [S, T, 3] of each system that is in a pair."""
    arrays = [counts_ST3 for _, counts_ST3 in counts]
    place_of = {id(system): place for place, (system, _) in enumerate(counts)}
    places = [(place_of[id(a)], place_of[id(b)]) for a, b in pairs]
    samples = bootstrap_f1(arrays, draws, seed)
    p_values = randomization_tests(arrays, places, draws, seed)
    return [
        PairTest(
            first,
            second,
            100 * (mean_f1(arrays[a]) - mean_f1(arrays[b])),
            in_percent(interval(samples[a] - samples[b])),
            p,
            adjusted,
        )
        for (first, second), (a, b), p, adjusted in zip(pairs, places, p_values, holm(p_values), strict=True)
    ]


def in_percent(bounds: tuple[float, float]) -> tuple[float, float]:
    """Fractions as percent."""
    return 100 * bounds[0], 100 * bounds[1]


def _place_of(baseline: str, systems: Sequence[System]) -> int:
    for names in ([one.name for one in systems], [one.configuration.system for one in systems]):
        if names.count(baseline) == 1:
            return names.index(baseline)
    names = "; ".join(one.name for one in systems)
    raise InputError(f"--baseline {baseline}: no system has that name, or several have. There are: {names}.")
