"""An audit as an HTML page with charts. It loads nothing from elsewhere, and whatever it quotes is escaped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from data_prep.audit_result import Audit, SplitAudit
from data_prep.audit_table import most, named_counts, split_rows, unseen
from data_prep.dataset_texts import SAMPLE_ROWS
from data_prep.layout import ENTITY_TYPES
from data_prep.near_duplicates import SIMILAR
from data_prep.similar_texts import Matches
from data_prep.text_counts import MARKS
from launch.charts import Bar, Line, bar_chart, line_chart
from launch.page import write_page

COLOURS = ("c1", "c2", "c3")
BIN_WIDTHS = {"characters": 10, "words": 1, "word pieces": 2}
DRAWN_SHARE = 99.5
"""Percent of the texts that the charts of lengths show: a few very long ones would squeeze the others."""


def write_audit_page(audit: Audit, output: Path) -> None:
    """Write the page."""
    context = {
        "title": audit.name,
        "kind": audit.kind,
        "row_count": _row_count(audit),
        "splits": list(audit.splits),
        "figures": _figures(audit),
        "lengths": [chart for unit in BIN_WIDTHS if (chart := _length_chart(audit, unit))],
        "contents": _contents(audit),
        "entities": [(name, _entity_chart(name, split)) for name, split in audit.splits.items() if split.tags],
        "unseen": [(name, _unseen_chart(name, split)) for name, split in audit.splits.items() if split.unseen],
        "similarity": SIMILAR,
        "is_sampled": any(split.is_sampled for split in audit.splits.values()),
        "sample_rows": SAMPLE_ROWS,
        "repeats": _repeats(audit),
        "quotes": audit.quotes,
        "table": split_rows(audit),
    }
    write_page(output, "audit_template.html", context)


def _row_count(audit: Audit) -> int:
    return sum(len(split.texts) for split in audit.splits.values())


def _figures(audit: Audit) -> list[tuple[str, str]]:
    words = np.concatenate([split.texts.lengths["words"] for split in audit.splits.values()])
    repeats = sum(split.texts.repeats for split in audit.splits.values())
    figures = [
        (f"{_row_count(audit):,}", "rows"),
        (f"{np.median(words):.0f}", "words in the median text"),
        (f"{100 * repeats / _row_count(audit):.1f} %", "copies of an earlier text"),
    ]
    if audit.rejected:
        figures.append((f"{sum(audit.rejected.values()):,}", "rows rejected"))
    for name, split in audit.splits.items():
        new, total = unseen(split)
        if total:
            figures.append((f"{100 * new / total:.1f} %", f"of {name}'s mentions not in train"))
    return figures


def _length_chart(audit: Audit, unit: str) -> Markup | None:
    """Share of a split's texts by length, a line for each split."""
    lines, width = [], BIN_WIDTHS[unit]
    for (name, split), colour in zip(audit.splits.items(), COLOURS * len(audit.splits), strict=False):
        lengths = split.pieces if unit == "word pieces" else split.texts.lengths[unit]
        if lengths is None:
            return None
        bins = np.bincount(lengths // width)[: int(np.percentile(lengths, DRAWN_SHARE)) // width + 1]
        points = [(place * width, 100 * count / len(lengths)) for place, count in enumerate(bins.tolist())]
        lines.append(Line(points, colour, name))
    label = unit if width == 1 else f"{unit}, in steps of {width}"
    return line_chart(lines, label, "texts (%)", f"Share of the texts by number of {unit}")


def _contents(audit: Audit) -> list[tuple[str, Markup]]:
    splits, rows = audit.splits.values(), _row_count(audit)
    held = Counter({mark: sum(split.texts.marks[mark] for split in splits) for mark in MARKS})
    for split in splits:
        held.update(+split.has)
    bars = [_percent_bar(name, count, rows) for name, count in held.items()]
    axis = "percent of all texts, from 0 to 100"
    charts = [("Texts", bar_chart(bars, "What the texts hold", high=100, axis_label=axis))]
    for name, counts in named_counts(audit).items():
        bars = [_percent_bar(key, count, sum(counts.values())) for key, count in most(counts)]
        charts.append((name.capitalize(), bar_chart(bars, name, axis_label="percent")))
    return charts


def _percent_bar(name: str, count: int, total: int) -> Bar:
    percent = 100 * count / total
    return Bar(name, percent, "c1", f"{percent:.1f} % ({count:,})")


def _entity_chart(name: str, split: SplitAudit) -> Markup:
    strict, conlleval = split.tags.strict, split.tags.conlleval
    bars = [
        Bar(kind, conlleval[kind], "c1", f"{conlleval[kind]:,}, strict {strict[kind]:,}", reference=strict[kind])
        for kind in ENTITY_TYPES
    ]
    orphans = f"entities; {split.tags.orphans:,} orphan I- tags"
    return bar_chart(bars, f"Entities of {name} by type", width=330, axis_label=orphans)


def _unseen_chart(name: str, split: SplitAudit) -> Markup:
    bars = [_percent_bar(kind, *split.unseen[kind]) for kind in ENTITY_TYPES if kind in split.unseen]
    axis = "percent of the mentions, from 0 to 100"
    return bar_chart(bars, f"Mentions of {name} that train has not", high=100, width=330, axis_label=axis)


def _repeats(audit: Audit) -> list[dict[str, Any]]:
    found = [(name, "the same, elsewhere", split.twins) for name, split in audit.splits.items()]
    found += [(one.texts.name, one.others.name, one.matches) for one in audit.leaks + audit.others]
    return [_repeat_row(*row) for row in found]


def _repeat_row(of: str, among: str, matches: Matches) -> dict[str, Any]:
    percent = 100 * (matches.equal + matches.near) / matches.texts if matches.texts else 0.0
    return {"of": of, "among": among, "percent": percent} | vars(matches)
