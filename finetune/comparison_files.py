"""A comparison as files: CSV for machines, Markdown for RESULTS.md, JSON with everything."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.comparison import ALPHA, MEASURES, PairTest, Score, System, View
from finetune.image_ablation import ImageFamily
from launch.files import write_json_whole, write_text_whole
from launch.paper_tables import PaperRow
from launch.score_table import markdown_row

PAPER = "paper (convention not stated)"
DECIDING_COLUMNS = (
    *("system", "kind", "id", "given_right", "none_right", "text"),
    *("image_id", "image_words", "gold", "given", "none"),
)
MULTIPLE_COMPARISONS = (
    f"Among many tests some p fall below {ALPHA} by chance. The adjusted p (Holm) holds for all of them together."
)


@dataclass(frozen=True)
class Comparison:
    """All that was found."""

    systems: list[System]
    views: list[View]
    tests: list[PairTest]
    families: list[ImageFamily]
    draws: int
    seed: int


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write `table.csv`, `table.md`, `comparison.json` and, where image words were compared, `image_tweets.csv`."""
    write_text_whole(folder / "table.csv", _csv(_table_columns(), _table_rows(comparison.views)))
    write_text_whole(folder / "table.md", markdown(comparison))
    write_json_whole(folder / "comparison.json", as_json(comparison))
    if comparison.families:
        tweets = [tweet for family in comparison.families for tweet in family.tweets]
        write_text_whole(folder / "image_tweets.csv", _csv(DECIDING_COLUMNS, tweets))


def paper_cells(row: PaperRow) -> dict[str, float | None]:
    """A row of the paper by measure."""
    return row.by_type | {"P": row.precision, "R": row.recall, "F1": row.f1}


def with_paper(view: View) -> Iterator[tuple[Score, PaperRow | None]]:
    """Each score, and the paper's row where it belongs after it: it is about all tweets, and stands once for equal systems."""
    for score, following in zip(view.scores, [*view.scores[1:], None], strict=True):
        paper = score.system.paper if view.key == "all" else None
        yield score, None if following and following.system.paper is paper else paper


def markdown(comparison: Comparison) -> str:
    """The tables and the tests."""
    seeds = "F1 by type, then P, R, F1 in percent: mean ± sample standard deviation over the n seeds"
    out = [
        f"{seeds}; 95 % bootstrap interval of F1 over tweets ({comparison.draws:,} samples).",
        "",
    ]
    for view in comparison.views:
        counted = ", ".join(f"{count:,} mentions ({name})" for name, count in view.mentions.items())
        tweets = f"{view.tweets:,} tweets" + (" hold one" if view.key == "unseen" else "")
        out += [f"## {view.title}: {tweets}, {counted}", ""]
        out += [markdown_row(["system", "n", "convention", *MEASURES, "95 % interval"])]
        out += [markdown_row(["---"] * 3 + ["---:"] * (len(MEASURES) + 1))]
        for score, paper in with_paper(view):
            cells = ["–" if mean is None else mean.text() for mean in score.cells.values()]
            low, high = score.f1_interval
            runs = str(len(score.system.configuration.runs))
            out.append(markdown_row([score.system.name, runs, score.convention, *cells, f"{low:.2f} – {high:.2f}"]))
            if paper:
                cells = ["–" if value is None else f"{value:.2f}" for value in paper_cells(paper).values()]
                out.append(markdown_row([paper.system, "1", PAPER, *cells, ""]))
        out.append("")
    if comparison.tests:
        out += ["## Differences of F1 (conlleval, points)", "", MULTIPLE_COMPARISONS, ""]
        out += [markdown_row(["first", "second", "first − second", "95 % interval", "p", "adjusted p"])]
        out += [markdown_row(["---"] * 2 + ["---:"] * 4)]
        out += [_test_row(test.first.name, test.second.name, test) for test in comparison.tests]
        out.append("")
    if comparison.families:
        out += ["## Image words (conlleval, points)", "", "p is adjusted over the lines `all` alone.", ""]
        out += [markdown_row(["system", "difference", "type", "points", "95 % interval", "p", "adjusted p"])]
        out += [markdown_row(["---"] * 3 + ["---:"] * 4)]
        for family in comparison.families:
            for (first, second), tests in family.tests.items():
                for kind, test in tests.items():
                    name = f"{first} − {second}"
                    out.append(_test_row(family.label, name, test, kind, has_adjusted=kind == "all"))
        out.append("")
    return "\n".join(out)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, in percent and points."""
    return {
        "draws": comparison.draws,
        "seed": comparison.seed,
        "systems": [
            {
                "name": system.name,
                "system": system.configuration.system,
                "label": system.configuration.label,
                "image_words": system.configuration.image_words,
                "seeds": system.configuration.seeds,
                "runs": [run.name for run in system.configuration.runs],
                "paper": {"row": system.paper.system} | paper_cells(system.paper) if system.paper else None,
            }
            for system in comparison.systems
        ],
        "views": {
            view.key: {
                "title": view.title,
                "tweets": view.tweets,
                "mentions": view.mentions,
                "scores": [
                    {
                        "system": score.system.name,
                        "convention": score.convention,
                        "mean": {name: mean and mean.mean for name, mean in score.cells.items()},
                        "sd": {name: mean and mean.sd for name, mean in score.cells.items()},
                        "f1_interval": score.f1_interval,
                    }
                    for score in view.scores
                ],
            }
            for view in comparison.views
        },
        "tests": [_test_as_json(test) for test in comparison.tests],
        "image_words": [
            {
                "system": family.label,
                "tests": {
                    f"{first} - {second}": {kind: _test_as_json(test) for kind, test in tests.items()}
                    for (first, second), tests in family.tests.items()
                },
                "deciding_tweets": len(family.tweets),
            }
            for family in comparison.families
        ],
    }


def _test_as_json(test: PairTest) -> dict[str, Any]:
    return {
        "first": test.first.name,
        "second": test.second.name,
        "difference": test.difference,
        "interval": test.interval,
        "p": test.p,
        "adjusted_p": test.adjusted,
    }


def p_text(p: float) -> str:
    """Such as ``0.031``, or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def points(value: float) -> str:
    """A difference with its sign."""
    return f"{value:+.2f}".replace("-", "−")


def _test_row(first: str, second: str, test: PairTest, kind: str = "", has_adjusted: bool = True) -> str:
    low, high = test.interval
    numbers = [points(test.difference), f"{points(low)} to {points(high)}", p_text(test.p)]
    numbers.append(p_text(test.adjusted) if has_adjusted else "")
    return markdown_row([first, second, *([kind] if kind else []), *numbers])


def _table_columns() -> list[str]:
    scores = [column for name in MEASURES for column in (name, f"{name}_sd")]
    return ["part", "tweets", "mentions", "system", "seeds", "n", "convention", *scores, "F1_low", "F1_high"]


def _table_rows(views: Sequence[View]) -> Iterator[dict[str, Any]]:
    for view in views:
        for score, paper in with_paper(view):
            runs = score.system.configuration
            row = {"part": view.key, "tweets": view.tweets, "mentions": view.mentions[score.convention]}
            row |= {"system": score.system.name, "seeds": " ".join(map(str, runs.seeds)), "n": len(runs.runs)}
            row |= {"convention": score.convention}
            for name, mean in score.cells.items():
                if mean is not None:
                    row |= {name: f"{mean.mean:.4f}", f"{name}_sd": "" if mean.sd is None else f"{mean.sd:.4f}"}
            low, high = score.f1_interval
            yield row | {"F1_low": f"{low:.4f}", "F1_high": f"{high:.4f}"}
            if paper:
                yield {"part": view.key, "system": paper.system, "n": 1, "convention": PAPER} | paper_cells(paper)


def _csv(columns: Sequence[str], rows: Sequence[dict[str, Any]] | Iterator[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "replace").decode("utf-8")
