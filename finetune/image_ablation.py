"""What a tweet's image words give: systems that ran with them, with another tweet's, and with none.

Shapes: S runs of a system, T test tweets, K entity types; 3: gold, predicted, correct.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_prep.layout import ENTITY_TYPES
from finetune.comparison import TESTED, PairTest, System, compare_pairs
from finetune.scorer import spans
from finetune.significance import holm
from finetune.tweet_counts import TestSplit
from launch.results import families

OVERALL = "all"
COMPARED = (("given", "none"), ("given", "shuffled"), ("shuffled", "none"))
HELPED, MISLED = "given right, none wrong", "given wrong, none right"


@dataclass(frozen=True)
class ImageFamily:
    """Systems that differ in their image words alone."""

    label: str
    systems: dict[str, System]
    """By image words: ``given``, ``shuffled``, ``none``; two or three of them."""
    tests: dict[tuple[str, str], dict[str, PairTest]]
    """By the two settings, then by entity type and `OVERALL`; only the overall tests' p are adjusted, over all families."""
    tweets: list[dict[str, Any]]
    """Rows of `image_tweets.csv`."""

    def count(self, kind: str) -> int:
        """How many of the tweets are of a kind."""
        return sum(tweet["kind"] == kind for tweet in self.tweets)


def find_families(systems: Sequence[System], test: TestSplit, draws: int, seed: int) -> list[ImageFamily]:
    """Compare the members of each family, overall and by type."""
    of = {id(system.configuration): system for system in systems}
    found = []
    for family in families([system.configuration for system in systems]):
        members = {name: of[id(one)] for name, one in family.items()}
        label = next(iter(family.values())).family_name
        tests = _test_family(members, draws, seed)
        tweets = list(_deciding_tweets(label, members, test))
        found.append(ImageFamily(label, members, tests, tweets))
    return _adjusted(found)


def _test_family(members: dict[str, System], draws: int, seed: int) -> dict[tuple[str, str], dict[str, PairTest]]:
    compared = [pair for pair in COMPARED if set(pair) <= members.keys()]
    pairs = [(members[a], members[b]) for a, b in compared]
    tests: dict[tuple[str, str], dict[str, PairTest]] = {pair: {} for pair in compared}
    for kind in (OVERALL, *ENTITY_TYPES):
        counts = [(system, _counts_of(system, kind)) for system in members.values()]
        for pair, test in zip(compared, compare_pairs(pairs, counts, draws, seed), strict=True):
            tests[pair][kind] = test
    return tests


def _counts_of(system: System, kind: str) -> np.ndarray:
    counts_STK3 = system.counts[TESTED].all_STK3
    return counts_STK3.sum(axis=2) if kind == OVERALL else counts_STK3[:, :, ENTITY_TYPES.index(kind)]


def _adjusted(found: list[ImageFamily]) -> list[ImageFamily]:
    """With the overall p-values adjusted together; those of types stay as they are."""
    overall = [tests[OVERALL] for family in found for tests in family.tests.values()]
    adjusted = iter(holm([test.p for test in overall]))
    return [
        replace(
            family,
            tests={
                pair: {
                    kind: replace(test, adjusted=next(adjusted) if kind == OVERALL else test.p)
                    for kind, test in tests.items()
                }
                for pair, tests in family.tests.items()
            },
        )
        for family in found
    ]


def _deciding_tweets(label: str, members: dict[str, System], test: TestSplit) -> Iterator[dict[str, Any]]:
    """Tweets that most runs with their own image words get right and most runs without get wrong, or the reverse.

    The tags shown of each are those of its first run that is on the side of most.
    """
    if not {"given", "none"} <= members.keys():
        return
    runs = {name: members[name].configuration.runs for name in ("given", "none")}
    right_ST = {name: members[name].counts[TESTED].right_ST for name in runs}
    right = {name: right_ST[name].sum(axis=0) for name in runs}
    most = {name: 2 * right[name] > len(runs[name]) for name in runs}
    mostly_wrong = {name: 2 * right[name] < len(runs[name]) for name in runs}
    for kind, chosen in (
        (HELPED, most["given"] & mostly_wrong["none"]),
        (MISLED, mostly_wrong["given"] & most["none"]),
    ):
        for tweet in np.flatnonzero(chosen):
            # Of the runs that are as most are, the first.
            shown = {name: int(np.argmax(right_ST[name][:, tweet] == most[name][tweet])) for name in runs}
            rows = {name: runs[name][shown[name]].predictions[tweet] for name in runs}
            yield {
                "system": label,
                "kind": kind,
                "id": test.ids[tweet],
                "given_right": f"{right['given'][tweet]} of {len(runs['given'])}",
                "none_right": f"{right['none'][tweet]} of {len(runs['none'])}",
                "text": " ".join(test.tokens[tweet]),
                "image_id": rows["given"].get("image_id"),
                "image_words": " ".join(rows["given"].get("image_words") or []),
                "gold": _in_words(test, tweet, test.gold[tweet]),
                "given": _in_words(test, tweet, rows["given"]["predicted"]),
                "none": _in_words(test, tweet, rows["none"]["predicted"]),
            }


def _in_words(test: TestSplit, tweet: int, tags: list[str]) -> str:
    tokens = test.tokens[tweet]
    return "; ".join(f"{kind}: {' '.join(tokens[start:end])}" for kind, start, end in spans(tags, TESTED))
