"""The report's gallery: test tweets with gold above and predictions below, as in the paper's figures 6 and 7."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from launch.results import Configuration, StageFolder, best_on_dev

Span = tuple[int, int, str]
"""First token, token after the last, type."""

LANE_NAMES = {"given": "image words given", "shuffled": "shuffled", "none": "no image words"}


@dataclass(frozen=True)
class Lane:
    """One system's predictions: a line below each tweet."""

    name: str
    run: StageFolder


@dataclass(frozen=True)
class Cell:
    """What one lane says of one token."""

    label: str = ""
    """Type, where a span starts here."""
    inside: bool = False
    continues: bool = False
    """Whether the next token belongs to the same span."""
    wrong: bool = False


@dataclass(frozen=True)
class Tweet:
    """One tweet of the gallery."""

    tokens: list[str]
    image_words: list[str]
    gold: list[Cell]
    lanes: list[list[Cell]]
    marked: list[bool]
    """Whether gold or any lane has a span at the token."""
    kind: str
    """``helped``: right with image words, wrong without; ``misled``: the reverse; else ``right`` or ``wrong``."""
    right: bool
    spoken: list[str]
    """The spans in words, one line for gold and each lane: for screen readers."""


@dataclass(frozen=True)
class Gallery:
    """The chosen tweets, and the counts over the whole test split that they were chosen from."""

    configuration: Configuration
    lanes: list[Lane]
    tweets: list[Tweet]
    counts: dict[str, int]
    total: int


def spans(tags: list[str]) -> list[Span]:
    """Entities of BIO, IOB1 or BIOES tags by conlleval's rules: an orphan ``I-`` starts an entity."""
    found: list[Span] = []
    start, kind, ended = 0, "", True
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, this = tag.partition("-")
        outside = tag == "O"
        if kind and (outside or ended or prefix in "BS" or this != kind):
            found.append((start, place, kind))
            kind = ""
        if not outside and not kind:
            start, kind = place, this
        ended = prefix in ("E", "S")
    return found


def build_gallery(found: list[Configuration], most: int = 48) -> Gallery | None:
    """Choose test tweets of the configuration that is best on dev; None if no run has predictions.

    A configuration with image words that also ran with shuffled or no image words goes before others, so that the
    gallery can show what the words do. The kinds are dealt in turn; within a kind the order is that of a hash of the
    tweet's id, so neither chance nor taste picks.
    """
    able = [one for one in found if _predicted(one)]
    telling = [
        one
        for one in able
        if one.image_words == "given" and any(n != "given" and _predicted(s) for n, s in one.siblings.items())
    ]
    chosen = best_on_dev(telling or able) or next(iter(telling or able), None)
    if chosen is None:
        return None
    main = _predicted(chosen)
    lanes = [Lane(LANE_NAMES.get(chosen.image_words, chosen.image_words), main)]
    for name in ("shuffled", "none"):
        sibling = chosen.siblings.get(name) if chosen.image_words == "given" else None
        if sibling and (run := _predicted(sibling, main.seed)):
            lanes.append(Lane(LANE_NAMES[name], run))

    by_id = [{_identity(row): row for row in lane.run.predictions} for lane in lanes]
    pools: dict[str, list[tuple[str, Tweet]]] = {kind: [] for kind in ("helped", "misled", "wrong", "right")}
    counts = dict.fromkeys(pools, 0)
    all_right = 0
    for row in main.predictions:
        rows = [row, *(rows.get(_identity(row)) for rows in by_id[1:])]
        tweet = _tweet(row, rows, [lane.name for lane in lanes])
        counts[tweet.kind] += 1
        all_right += tweet.right
        if tweet.right and not spans(row["gold"]):
            continue  # nothing to find and nothing found: counted, not worth showing
        pools[tweet.kind].append((hashlib.sha1(_identity(row).encode("utf-8", "replace")).hexdigest(), tweet))
    total = sum(counts.values())
    counts |= {"all right": all_right, "all wrong": total - all_right}
    return Gallery(chosen, lanes, _choose(pools, most), counts, total)


def _choose(pools: dict[str, list[tuple[str, Tweet]]], most: int) -> list[Tweet]:
    """A mix, dealt in turn: helped, wrong, right, misled."""
    queues = {kind: [t for _, t in sorted(pool, key=lambda p: (_plain(p[1]), p[0]))] for kind, pool in pools.items()}
    chosen: list[Tweet] = []
    while len(chosen) < most and any(queues.values()):
        for kind in ("helped", "wrong", "right", "misled"):
            if queues[kind] and len(chosen) < most:
                chosen.append(queues[kind].pop(0))
    return chosen


def _plain(tweet: Tweet) -> bool:
    """Tweets without entities come last in their kind."""
    return not any(cell.inside for cell in tweet.gold)


def _predicted(one: Configuration, seed: int | None = None) -> StageFolder | None:
    """The run with this seed, else the first, that has predictions."""
    runs = [run for run in one.runs if run.predictions]
    return next((run for run in runs if run.seed == seed), next(iter(runs), None))


def _identity(row: dict[str, Any]) -> str:
    return f"{row.get('id')}"


def _tweet(row: dict[str, Any], rows: list[dict[str, Any] | None], names: list[str]) -> Tweet:
    gold = spans(row["gold"])
    predicted = [spans(r["predicted"]) if r and len(r["predicted"]) == len(row["tokens"]) else None for r in rows]
    right = predicted[0] == gold
    others = [p == gold for p in predicted[1:] if p is not None]
    if right and others and not any(others):
        kind = "helped"
    elif not right and others and all(others):
        kind = "misled"
    else:
        kind = "right" if right else "wrong"
    size = len(row["tokens"])
    spoken = [_spoken("Gold", gold, row["tokens"])]
    spoken += [
        _spoken(name, found, row["tokens"]) for name, found in zip(names, predicted, strict=True) if found is not None
    ]
    gold_cells, lanes = _cells(gold, size), [_cells(found or [], size, gold) for found in predicted]
    return Tweet(
        tokens=[str(token) for token in row["tokens"]],
        image_words=[str(word) for word in row.get("image_words") or []],
        gold=gold_cells,
        lanes=lanes,
        marked=[any(cells[place].inside for cells in (gold_cells, *lanes)) for place in range(size)],
        kind=kind,
        right=right,
        spoken=spoken,
    )


def _cells(found: list[Span], size: int, gold: list[Span] | None = None) -> list[Cell]:
    cells = [Cell()] * size
    for start, end, kind in found:
        wrong = gold is not None and (start, end, kind) not in gold
        for place in range(start, min(end, size)):
            label = kind if place == start else ""
            cells[place] = Cell(label, inside=True, continues=place + 1 < end, wrong=wrong)
    return cells


def _spoken(name: str, found: list[Span], tokens: list[str]) -> str:
    told = [f"{' '.join(map(str, tokens[start:end]))}: {kind}" for start, end, kind in found]
    return f"{name}: {'; '.join(told) or 'no entities'}."
