"""Which texts of a set equal, or nearly equal, texts of another set, or others of their own."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data_prep.near_duplicates import SIMILAR, NearDuplicates

EXAMPLES = 5
Text = tuple[str, tuple[str, ...]]
"""Id, and words as `near_duplicates.words_of` gives them."""
Pair = tuple[str, str, float]
"""Ids of two texts, and their similarity."""


@dataclass
class Matches:
    """How many of some texts have the words of another text, and how many only nearly."""

    texts: int = 0
    equal: int = 0
    near: int = 0

    def count(self, similarity: float, texts: int = 1) -> None:
        """Count texts whose best match is this similar."""
        if similarity == 1:
            self.equal += texts
        else:
            self.near += texts


class TextIndex:
    """Texts by their sets of words, so that one that is there a thousand times is compared once."""

    def __init__(self, texts: Iterable[Text], similarity: float = SIMILAR) -> None:
        self.ids: list[str] = []
        members: dict[frozenset[str], list[int]] = defaultdict(list)
        for text_id, words in texts:
            members[frozenset(words)].append(len(self.ids))
            self.ids.append(text_id)
        members.pop(frozenset(), None)  # texts without a word equal nothing
        self._word_sets = list(members)
        self._places = list(members.values())
        self._index = NearDuplicates(self._word_sets, similarity)

    def find(self, words: Sequence[str]) -> list[tuple[int, float]]:
        """Groups of texts with the same words that are similar to these words, and their similarity."""
        return self._index.find_all(words)

    def places(self, group: int) -> list[int]:
        """Places of a group's texts among all."""
        return self._places[group]


class Overlap:
    """Compares an index with texts of another set.

    >>> overlap = Overlap(TextIndex([("a", words_of("Jordan at last")), ("b", words_of("what a night"))]))
    >>> overlap.add("c", words_of("RT @x: jordan at last!"))
    >>> overlap.examples, overlap.indexed
    ([('a', 'c', 1.0)], Matches(texts=2, equal=1, near=0))
    """

    def __init__(self, index: TextIndex) -> None:
        self.others = Matches()
        """How many of the other texts have a match in the index."""
        self.pairs = 0
        self.examples: list[Pair] = []
        self._index = index
        self._best: dict[int, float] = {}

    def add(self, other_id: str, words: Sequence[str]) -> None:
        """Look for a text of the other set."""
        self.others.texts += 1
        matches = self._index.find(words)
        if not matches:
            return
        self.others.count(max(similarity for _, similarity in matches))
        for group, similarity in matches:
            self._best[group] = max(self._best.get(group, 0.0), similarity)
            self.pairs += len(self._index.places(group))
        if len(self.examples) < EXAMPLES:
            places = sorted((place, value) for group, value in matches for place in self._index.places(group))
            self.examples += [(self._index.ids[place], other_id, round(value, 3)) for place, value in places]
            del self.examples[EXAMPLES:]

    @property
    def indexed(self) -> Matches:
        """How many of the indexed texts have a match among the others."""
        found = Matches(len(self._index.ids))
        for group, similarity in self._best.items():
            found.count(similarity, len(self._index.places(group)))
        return found


def find_overlap(texts: Iterable[Text], others: Iterable[Text]) -> Overlap:
    """Compare two sets, the first of which is held in memory."""
    overlap = Overlap(TextIndex(texts))
    for other_id, words in others:
        overlap.add(other_id, words)
    return overlap


def find_twins(index: TextIndex, texts: Iterable[Text]) -> tuple[Matches, list[Pair]]:
    """How many of the indexed texts equal, or nearly equal, another of ``texts``, among which they are themselves.

    Also the first pairs that are nearly equal.
    """
    equal: Counter[int] = Counter()
    near: set[int] = set()
    examples: list[Pair] = []
    for text_id, words in texts:
        for group, similarity in index.find(words):
            if similarity == 1:
                equal[group] += 1
                continue
            near.add(group)
            pair = (index.ids[index.places(group)[0]], text_id, round(similarity, 3))
            if len(examples) < EXAMPLES and (pair[1], pair[0], pair[2]) not in examples:
                examples.append(pair)
    found = Matches(len(index.ids))
    for group, count in equal.items():
        if count > 1:
            found.equal += len(index.places(group))
        elif group in near:
            found.near += len(index.places(group))
    return found, examples
