"""A comparison as an HTML page with charts. It loads nothing from elsewhere, and whatever it quotes is escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.comparison import ALPHA, MEASURES, TESTED, PairTest, System, View
from finetune.comparison_files import MULTIPLE_COMPARISONS, Comparison, p_text, paper_cells, points, with_paper
from finetune.image_ablation import HELPED, MISLED, OVERALL, ImageFamily
from launch.charts import Interval, interval_chart
from launch.page import write_page
from launch.paper_tables import TABLES, TEST_TWEETS
from launch.results import short_name

AXIS = "F1, conlleval (%): mean over seeds, 95 % interval over tweets"


def write_comparison_page(output: Path, comparison: Comparison, paper: str, tweets: int) -> None:
    """Write the page. ``paper``: the table beside it; ``tweets``: those of the test split."""
    rows = TABLES.get(paper, ())
    found = {system.paper.system for system in comparison.systems if system.paper}
    context = {
        "measures": MEASURES,
        "systems": [_system(system, number) for number, system in enumerate(comparison.systems, start=1)],
        "run_count": sum(len(system.configuration.runs) for system in comparison.systems),
        "views": [_view(view, comparison) for view in comparison.views],
        "draws": comparison.draws,
        "seed": comparison.seed,
        "matrix": _matrix(comparison),
        "tested": len(comparison.tests),
        "below": sum(test.adjusted < ALPHA for test in comparison.tests),
        "alpha": ALPHA,
        "multiple": MULTIPLE_COMPARISONS,
        "families": [_family(family) for family in comparison.families],
        "paper_table": {"table4": "Table 4", "table9": "Table 9", "table10": "Table 10"}.get(paper),
        "paper_tweets": TEST_TWEETS,
        "is_other_data": tweets != TEST_TWEETS,
        "missing": [row.system for row in rows if row.system not in found],
        "notes": sorted({f"{row.system}: {row.note}" for row in rows if row.note and row.system in found}),
    }
    write_page(output, "comparison_template.html", context)


def _system(system: System, number: int) -> dict[str, Any]:
    one = system.configuration
    return {
        "number": number,
        "name": system.name,
        "label": one.label,
        "seeds": ", ".join(str(seed) for seed in one.seeds),
        "n": len(one.runs),
        "runs": ", ".join(short_name(str(run.folder)) for run in one.runs),
    }


def _view(view: View, comparison: Comparison) -> dict[str, Any]:
    number_of = {id(system): number for number, system in enumerate(comparison.systems, start=1)}
    lines, rows = [], []
    for score, paper in with_paper(view):
        lines.append(
            {
                "system": None if lines and lines[-1]["of"] is score.system else score.system.name,
                "of": score.system,
                "number": number_of[id(score.system)],
                "n": len(score.system.configuration.runs),
                "convention": score.convention,
                "cells": list(score.cells.values()),
                "interval": score.f1_interval,
                "paper": paper and (paper.system, list(paper_cells(paper).values()), bool(paper.note)),
            }
        )
        if score.convention == TESTED:
            low, high = score.f1_interval
            mean = score.cells["F1"]
            text = f"{mean.mean:.1f}  [{low:.1f}, {high:.1f}]"
            label = f"{number_of[id(score.system)]}. {score.system.name}"
            reference = score.system.paper.f1 if score.system.paper and view.key == "all" else None
            rows.append(Interval(_short(label), mean.mean, low, high, text, reference=reference))
    return {
        "key": view.key,
        "title": view.title,
        "tweets": view.tweets,
        "mentions": view.mentions,
        "lines": lines,
        "chart": interval_chart(rows, f"F1 of each system with its interval: {view.title}", axis_label=AXIS),
    }


def _short(label: str, most: int = 56) -> str:
    return label if len(label) <= most else f"{label[: most // 3]} … {label[-most * 2 // 3 :]}"


def _matrix(comparison: Comparison) -> list[dict[str, Any]]:
    """A line for each system, a cell for each other one that it was tested against."""
    systems = comparison.systems
    found: dict[tuple[int, int], PairTest] = {}
    for test in comparison.tests:
        found[id(test.first), id(test.second)] = test
    return [
        {
            "number": number,
            "name": row.name,
            "cells": [_cell(found.get((id(row), id(column))), found.get((id(column), id(row)))) for column in systems],
        }
        for number, row in enumerate(systems, start=1)
    ]


def _cell(test: PairTest | None, reverse: PairTest | None) -> dict[str, Any] | None:
    """What one test says, seen from the row."""
    one = test or reverse
    if one is None:
        return None
    sign = 1 if test else -1
    low, high = sorted(sign * bound for bound in one.interval)
    return {
        "difference": points(sign * one.difference),
        "interval": f"{points(low)} to {points(high)}",
        "p": p_text(one.p),
        "adjusted": p_text(one.adjusted),
        "differs": one.adjusted < ALPHA,
    }


def _family(family: ImageFamily) -> dict[str, Any]:
    charts = []
    for (first, second), tests in family.tests.items():
        rows = []
        for kind, test in tests.items():
            p = f"p {p_text(test.p)}" + (f", adjusted {p_text(test.adjusted)}" if kind == OVERALL else "")
            low, high = test.interval
            text = f"{points(test.difference)}  [{points(low)}, {points(high)}]  {p}"
            rows.append(Interval(kind, test.difference, low, high, text, "c1" if kind == OVERALL else "c3"))
        description = f"Difference of F1, image words {first} minus {second}, {family.label}"
        axis = "points of F1, conlleval; 95 % interval over tweets"
        charts.append((f"{first} − {second}", interval_chart(rows, description, axis_label=axis, zero=True)))
    return {
        "label": family.label,
        "n": {name: len(system.configuration.runs) for name, system in family.systems.items()},
        "charts": charts,
        "has_tweets": {"given", "none"} <= family.systems.keys(),
        "helped": family.count(HELPED),
        "misled": family.count(MISLED),
    }
