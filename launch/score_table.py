"""The score table as plain text for a terminal and as Markdown for RESULTS.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launch.paper_tables import SOURCE
from launch.results import (
    CONVENTIONS,
    ENTITY_TYPES,
    Configuration,
    Mean,
    StageFolder,
    configurations,
    ends_family,
)

COLUMNS = (*ENTITY_TYPES, "P", "R", "F1", "dev F1")
NO_NER = "No finished NER stage yet: no scores."


def print_table(stages: list[Path]) -> str:
    """The score table for a terminal: percent, mean ± sample standard deviation over seeds, both conventions."""
    found = _configurations(stages)
    if not found:
        return NO_NER
    blocks, notes = [], set()
    beside_sd = " " * len(" ± 0.00") if any(len(one.runs) > 1 for one in found) else ""
    for place, one in enumerate(found):
        lines = []
        for convention in CONVENTIONS:
            cells = [_cell(mean) for mean in one.table_row(convention)]
            lines.append([convention, *cells])
        if one.paper and ends_family(found, place):
            row = one.paper
            values = [*row.by_type.values(), row.precision, row.recall, row.f1]
            lines.append([f"{row.system} (paper)", *(f"{value:.2f}{beside_sd}" for value in values), ""])
            notes.add(f"Paper: {SOURCE}; convention not stated, one run.")
            if row.note:
                notes.add(f"Paper, {row.system}: {row.note}.")
            if not one.is_papers_data:
                notes.add("The paper's rows are for the TMN test split (3257 tweets), this table's for other data.")
        blocks.append((f"{one.label} (n = {len(one.runs)})", lines))
    rows = [["test, %", *COLUMNS], *(line for _, lines in blocks for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def text(row: list[str]) -> str:
        cells = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        return "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()

    out = [text(rows[0]), "-" * len(text(rows[0]))]
    for title, lines in blocks:
        out += ["", title, *(text(line) for line in lines)]
    if any(len(one.runs) > 1 for one in found):
        notes.add("± is the sample standard deviation over n seeds.")
    return "\n".join([*out, "", *sorted(notes)]).rstrip()


def markdown_table(stages: list[Path]) -> str:
    """Rows for RESULTS.md, one per configuration and convention, under their header."""
    header = ["date", "commit", "encoder", "chain", "head", "image words", "seeds", "convention", *COLUMNS]
    lines = [markdown_row(header), markdown_row(["---"] * 8 + ["---:"] * len(COLUMNS))]
    for one in _configurations(stages):
        manifests = [run.manifest for run in one.runs]
        date = max((str(m.get("finished_at") or "")[:10] for m in manifests), default="")
        commits = sorted({short_commit(m.get("git_commit")) for m in manifests})
        told = [f"{one.chain} ({one.suffix})" if one.suffix else one.chain, one.head_text, one.image_words]
        seeds = ", ".join(str(seed) for seed in one.seeds)
        for convention in CONVENTIONS:
            cells = [_cell(mean) for mean in one.table_row(convention)]
            lines.append(markdown_row([date, ", ".join(commits), one.encoder, *told, seeds, convention, *cells]))
    return "\n".join(lines) + "\n"


def short_commit(commit: str | None) -> str:
    """Eight digits of a commit, keeping the mark of uncommitted changes."""
    digits, plus, changes = (commit or "no commit").partition("+")
    return (digits[:8] if commit else digits) + plus + changes


def _configurations(stages: list[Path]) -> list[Configuration]:
    return configurations(StageFolder(folder) for folder in stages)


def _cell(mean: Mean | None) -> str:
    return "–" if mean is None else mean.text()


def markdown_row(cells: Sequence[str]) -> str:
    """A line of a Markdown table; what would end a cell or the line is escaped."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
