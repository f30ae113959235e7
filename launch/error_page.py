"""The error browser: for each recognizer run a page of its confusions, its errors by kind, and the tweets they are in.

The pages stand in a folder beside the report. What is in ``predictions/`` is aligned anew (:mod:`launch.span_errors`), by
conlleval's reading of the tags, and put into the page as JSON; ``error_browser.js`` filters it and builds what is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from launch.errors import InputError
from launch.gallery import LANE_NAMES, spans
from launch.page import hash_of_script, write_page
from launch.results import ENTITY_TYPES, IMAGE_WORDS, Configuration, StageFolder, read_rows
from launch.span_errors import (
    CORRECT,
    ERRORS,
    MISSED,
    SPURIOUS,
    WRONG_BOTH,
    WRONG_BOUNDARY,
    WRONG_TYPE,
    Outcome,
    align,
)

SPLITS = ("validation", "test")
PAIRED = (WRONG_TYPE, WRONG_BOUNDARY, WRONG_BOTH)
NONE = "none"
SHORT = {WRONG_TYPE: "type", WRONG_BOUNDARY: "boundary", WRONG_BOTH: "both"}
"""Heads of narrow columns."""


@dataclass(frozen=True)
class Lane:
    """A run whose predictions a page shows."""

    image_words: str
    """``given``, ``shuffled`` or ``none``."""
    run: StageFolder


@dataclass(frozen=True)
class Cell:
    """A count of a table. One of errors tells which: of these kinds, with this type in gold and this one predicted."""

    count: int
    share: float | None = None
    """Of its row; None for a total."""
    kinds: tuple[str, ...] = ()
    gold: str = ""
    """A type, or empty for any."""
    predicted: str = ""


@dataclass(frozen=True)
class Table:
    """Counts by type."""

    title: str
    heads: list[str]
    rows: list[tuple[str, list[Cell | None]]]


class OutcomeCounts:
    """Outcomes of one split counted by kind, gold type and predicted type."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self.counts = Counter(
            (one.kind, one.gold[2] if one.gold else NONE, one.predicted[2] if one.predicted else NONE)
            for one in outcomes
        )

    @cached_property
    def types(self) -> list[str]:
        """The paper's types, then any other that occurs."""
        occurring = {label for _, *labels in self.counts for label in labels}
        return [*ENTITY_TYPES, *sorted(occurring - {*ENTITY_TYPES, NONE})]

    def of(self, kinds: Sequence[str], gold: str = "", predicted: str = "") -> int:
        """How many outcomes there are of these kinds; an empty type stands for any."""
        return sum(
            count
            for (kind, of_gold, of_predicted), count in self.counts.items()
            if kind in kinds and gold in ("", of_gold) and predicted in ("", of_predicted)
        )

    @property
    def f1(self) -> float:
        """F1 in percent, 0 where there are no entities."""
        both = self.of((CORRECT, *PAIRED, MISSED)) + self.of((CORRECT, *PAIRED, SPURIOUS))
        return 200 * self.of((CORRECT,)) / both if both else 0.0

    def tables(self) -> list[Table]:
        """Confusions of entities with the same words, as the scorer counts them; kinds by gold and by predicted type."""
        return [self._confusion(), self._kinds("gold", MISSED), self._kinds("predicted", SPURIOUS)]

    def _confusion(self) -> Table:
        labels = [*self.types, NONE]
        rows = []
        for gold in labels:
            cells = [self._confused(gold, predicted) for predicted in labels]
            total = sum(count for count, _ in cells)
            row: list[Cell | None] = []
            for predicted, (count, kinds) in zip(labels, cells, strict=True):
                both = gold if gold != NONE else "", predicted if predicted != NONE else ""
                row.append(Cell(count, _share(count, total), kinds, *both) if kinds else None)
            rows.append((gold, row))
        return Table("Gold (rows) and predicted, same words", labels, rows)

    def _confused(self, gold: str, predicted: str) -> tuple[int, tuple[str, ...]]:
        """A cell's count, and the kinds in it: what overlaps only is in the row and in the column ``none``."""
        if gold == predicted:
            kinds: tuple[str, ...] = () if gold == NONE else (CORRECT,)
        elif predicted == NONE:
            return self.of(kinds := (MISSED, WRONG_BOUNDARY, WRONG_BOTH), gold=gold), kinds
        elif gold == NONE:
            return self.of(kinds := (SPURIOUS, WRONG_BOUNDARY, WRONG_BOTH), predicted=predicted), kinds
        else:
            kinds = (WRONG_TYPE,)
        return self.of(kinds, gold, predicted), kinds

    def _kinds(self, side: str, alone: str) -> Table:
        kinds = (CORRECT, *PAIRED, alone)
        rows = []
        for label in (*self.types, ""):
            total = self.of(kinds, **{side: label})
            counts = [(kind, self.of((kind,), **{side: label})) for kind in kinds]
            cells = [Cell(count, _share(count, total), (kind,), **{side: label}) for kind, count in counts]
            rows.append((label or "all", [Cell(total), *cells]))
        return Table(f"By {side} type", [side, *(SHORT.get(kind, kind) for kind in kinds)], rows)


@dataclass(frozen=True)
class ErrorPage:
    """One page, ready to be written."""

    run: StageFolder
    file_name: str
    context: dict[str, Any]

    @property
    def address(self) -> str:
        """The file's name as a link holds it."""
        return quote(self.file_name)

    def write(self, folder: Path, report: Path) -> Path:
        """Write it into ``folder``, with a link to ``report``, which stands beside that folder; gives its file."""
        page = folder / self.file_name
        write_page(page, "error_template.html", self.context | {"report": quote(report.name)})
        return page


def error_pages(found: Iterable[Configuration]) -> list[ErrorPage]:
    """A page for each run that has predictions.

    Raises:
        InputError: a row of predictions lacks something, or a run has other tweets than the one it is compared with.

    """
    pages: list[ErrorPage] = []
    for one in found:
        for run in filter(_has_predictions, one.runs):
            taken = {page.file_name for page in pages}
            names = (f"{run.name}{suffix}.html" for suffix in ("", *(f"-{n}" for n in range(2, len(taken) + 3))))
            name = next(name for name in names if name not in taken)
            pages.append(ErrorPage(run, name, _context(one, run)))
    return pages


def _context(one: Configuration, run: StageFolder) -> dict[str, Any]:
    lanes = [Lane(one.image_words, run), *_partners(one, run)]
    tweets: list[dict[str, Any]] = []
    splits = []
    for name in SPLITS:
        if not _path(run, name).is_file():
            continue
        outcomes: list[Outcome] = []
        count = 0
        for row, of_lanes in _read_split(lanes, name):
            count += 1
            outcomes += of_lanes[0].outcomes
            if any(lane is not None and lane.has_errors for lane in of_lanes):
                tweets.append(_tweet(len(splits), row, of_lanes))
        splits.append({"name": name, "tweets": count, "counts": OutcomeCounts(outcomes)})
    script = resources.files("launch").joinpath("error_browser.js").read_text(encoding="utf-8")
    types = list(dict.fromkeys(label for split in splits for label in split["counts"].types))
    lane_views = [
        {"name": _lane_name(lane), "run": lane.run.name, "given": lane.image_words == "given"} for lane in lanes
    ]
    return {
        "title": f"Errors of {run.name}",
        "label": one.label,
        "seed": run.seed,
        "splits": [split | {"tables": split["counts"].tables()} for split in splits],
        "types": types,
        "kinds": ERRORS,
        "correct": CORRECT,
        "lanes": lane_views,
        "script": Markup(script),
        "script_hash": hash_of_script(script),
        "data": {
            "kinds": ERRORS,
            "splits": [{"name": split["name"], "tweets": split["tweets"]} for split in splits],
            "lanes": lane_views,
            "tweets": tweets,
        },
    }


def _partners(one: Configuration, run: StageFolder) -> Iterator[Lane]:
    """Runs of the same system that tell what the image did: the one of the two with the tweets' own words, one without."""
    for name in reversed(IMAGE_WORDS):
        other = one.siblings.get(name)
        if other and (name == "given") != (one.image_words == "given"):
            runs = [candidate for candidate in other.runs if _has_predictions(candidate)]
            same_seed = [candidate for candidate in runs if candidate.seed == run.seed]
            yield from (Lane(name, candidate) for candidate in (same_seed or runs)[:1])


class _LaneOutcomes:
    """What one run did with one tweet."""

    def __init__(self, row: dict[str, Any]) -> None:
        self.gold = spans(row["gold"])
        self.predicted = spans(row["predicted"])
        self.outcomes = align(self.gold, self.predicted)
        self.image_words = [str(word) for word in row.get("image_words") or []]

    @property
    def has_errors(self) -> bool:
        return any(outcome.kind != CORRECT for outcome in self.outcomes)


def _read_split(lanes: Sequence[Lane], split: str) -> Iterator[tuple[dict[str, Any], list[_LaneOutcomes | None]]]:
    """Each tweet's row of the first lane, and what each lane did with it: None where a lane lacks the split."""
    paths = [_path(lane.run, split) for lane in lanes]
    rows = [_rows(path) if path.is_file() else None for path in paths]
    first = rows[0] or []
    for path, others in zip(paths, rows, strict=True):
        if others is not None and len(others) != len(first):
            problem = f"{len(others)} tweets, but {len(first)} in {paths[0]}"
            raise InputError.at(path, None, problem, "Run both stages again on one data set.")
    for place, row in enumerate(first):
        for path, others in zip(paths, rows, strict=True):
            if others is not None and any(others[place].get(key) != row.get(key) for key in ("id", "tokens", "gold")):
                problem = f"not the tweet of the same line of {paths[0]}"
                raise InputError.at(path, place + 1, problem, "Run both stages again on one data set.")
        yield row, [_LaneOutcomes(others[place]) if others is not None else None for others in rows]


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = list(read_rows(path))
    for line, row in enumerate(rows, start=1):
        lengths = {
            len(row[name]) if isinstance(row.get(name), list) else None for name in ("tokens", "gold", "predicted")
        }
        if len(lengths) > 1 or None in lengths:
            problem = "no tokens, gold and predicted of one length"
            raise InputError.at(path, line, problem, "Run the stage again.")
    return rows


def _tweet(split: int, row: dict[str, Any], of_lanes: list[_LaneOutcomes | None]) -> dict[str, Any]:
    """One tweet as ``error_browser.js`` reads it; spans as [first, after the last, type], in outcomes by their place."""
    return {
        "split": split,
        "id": str(row.get("id")),
        "tokens": [str(token) for token in row["tokens"]],
        "gold": spans(row["gold"]),
        "lanes": [
            lane and {"words": lane.image_words, "found": lane.predicted, "errors": _errors(lane)} for lane in of_lanes
        ],
    }


def _errors(lane: _LaneOutcomes) -> list[list[int]]:
    """[kind, gold span or -1, predicted span or -1] of each error."""
    return [
        [
            ERRORS.index(outcome.kind),
            lane.gold.index(outcome.gold) if outcome.gold else -1,
            lane.predicted.index(outcome.predicted) if outcome.predicted else -1,
        ]
        for outcome in lane.outcomes
        if outcome.kind != CORRECT
    ]


def _lane_name(lane: Lane) -> str:
    return LANE_NAMES.get(lane.image_words, lane.image_words)


def _has_predictions(run: StageFolder) -> bool:
    return any(_path(run, split).is_file() for split in SPLITS)


def _path(run: StageFolder, split: str) -> Path:
    return run.folder / "predictions" / f"{split}.jsonl"


def _share(count: int, total: int) -> float:
    return count / total if total else 0.0
