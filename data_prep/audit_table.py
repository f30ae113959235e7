"""An audit as text: a column for each split, then what is told of the whole data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from data_prep.audit_result import NOT_TOLD, Audit, SplitAudit
from data_prep.dataset_texts import SAMPLE_ROWS, Comparison
from data_prep.near_duplicates import SIMILAR
from data_prep.tag_counts import tag_rows
from data_prep.text_counts import MARKS
from data_prep.text_table import text_table

MOST_NAMES = 12
"""Languages, sources and reasons that are named; the others are summed up."""


def audit_table(audit: Audit) -> str:
    """What the audit found, for a terminal."""
    lines = [text_table(split_rows(audit))]
    lines.append(f"nearly: Jaccard similarity of words at least {SIMILAR}")
    if any(split.is_sampled for split in audit.splits.values()):
        lines.append(f"sample: about {SAMPLE_ROWS} texts of a split, looked for among all of it")
    lines += [f"texts of {comparison_in_words(found)}" for found in audit.leaks + audit.others]
    for name, counts in named_counts(audit).items():
        total = sum(counts.values())
        lines.append(f"{name}: " + ", ".join(f"{key} {share(count, total)}" for key, count in most(counts)))
    return "\n".join(lines)


def split_rows(audit: Audit) -> list[tuple[str, ...]]:
    """The rows of the table: a name, then a cell for each split; rows of which no split has anything are left out."""
    splits = audit.splits.values()
    rows = [("", *audit.splits), ("rows", *(str(len(split.texts)) for split in splits))]

    def add(name: str, count: Callable[[SplitAudit], int], total: Callable[[SplitAudit], int] | None = None) -> None:
        total = total or (lambda split: len(split.texts))
        if any(count(split) for split in splits):
            rows.append((name, *(share(count(split), total(split)) for split in splits)))

    for unit in ("characters", "words"):
        rows.append((f"{unit}: mean, 95 %, most", *(_spread(split.texts.lengths[unit]) for split in splits)))
    if all(split.pieces is not None for split in splits):
        rows.append(("word pieces: mean, 95 %, most", *(_spread(split.pieces) for split in splits)))
    add("copies of an earlier text", lambda split: split.texts.repeats)
    of_sample = " (sample)" if any(split.is_sampled for split in splits) else ""
    add(f"same words as another{of_sample}", lambda split: split.twins.equal, lambda split: split.twins.texts)
    add(f"nearly the same{of_sample}", lambda split: split.twins.near, lambda split: split.twins.texts)
    for mark in MARKS:
        add(mark, lambda split, mark=mark: split.texts.marks[mark])
    for kind in ("with photos", "with a photo's file", "with an image", "with image words"):
        add(kind, lambda split, kind=kind: split.has[kind])
    if audit.kind == "ner":
        rows += tag_rows({name: split.tags.facts() for name, split in audit.splits.items()})
        add("mentions that train has not", lambda split: unseen(split)[0], lambda split: unseen(split)[1])
    return rows


def unseen(split: SplitAudit) -> tuple[int, int]:
    """Mentions, of all types, that are not in `train`, and all."""
    return sum(count for count, _ in split.unseen.values()), sum(total for _, total in split.unseen.values())


def comparison_in_words(found: Comparison) -> str:
    """``validation in train: 4 equal, 1 nearly, of 1000 (0.5 %), as a and b (0.88)``."""
    matches = found.matches
    rate = 100 * (matches.equal + matches.near) / matches.texts if matches.texts else 0
    of = f"a sample of {matches.texts}" if found.is_sampled else f"{matches.texts}"
    examples = "; ".join(f"{a} and {b} ({similarity:.2f})" for a, b, similarity in found.examples)
    return (
        f"{found.texts.name} in {found.others.name}: {matches.equal} equal, {matches.near} nearly, of {of} ({rate:.1f} %)"
        + (f", as {examples}" if examples else "")
    )


def named_counts(audit: Audit) -> dict[str, Counter[str]]:
    """What is counted by name over the whole data set, where there is something."""
    counts = {
        f"languages, {audit.languages_by}": audit.languages,
        "sources": audit.sources,
        "rejected": audit.rejected,
    }
    return {name: counter for name, counter in counts.items() if counter.keys() - {NOT_TOLD}}


def most(counts: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent names and their counts; the others summed up as the last."""
    named = counts.most_common(MOST_NAMES)
    rest = sum(counts.values()) - sum(count for _, count in named)
    return [*named, (f"{len(counts) - len(named)} others", rest)] if rest else named


def share(count: int, total: int) -> str:
    """``5 (0.5 %)``."""
    return f"{count} ({100 * count / total:.1f} %)" if total else "–"


def _spread(lengths: np.ndarray) -> str:
    return f"{lengths.mean():.1f}, {np.percentile(lengths, 95):.0f}, {lengths.max()}"
