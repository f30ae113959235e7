"""Texts that say the same: an exact search for all pairs whose word sets have a Jaccard similarity of at least t.

Sets are compared by *prefix filtering* (Chaudhuri et al., "A primitive operator for similarity joins in data
cleaning", ICDE 2006): with each set's words sorted from rare to frequent, two sets x and y can reach similarity t only
if their first |x| - ceil(t |x|) + 1 words and those of y share one. An inverted index over these few rare words leaves
a handful of candidates per text, which are then compared in full. Nothing is approximate.
"""

from __future__ import annotations

import html
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from data_prep.urls import remove_urls

SIMILAR = 0.8
"""Jaccard similarity of word sets from which two posts count as near-duplicates."""

# Tokenizers part names at underscores: "rt @sn _ ohio :".
_RETWEET = re.compile(r"^\W{0,8}rt\s{1,4}@(?:\w|\s(?=_)|(?<=_)\s){1,40}\s?:")
_WORD = re.compile(r"[^\W_]+")
_ROUNDING = 1e-9


def words_of(text: str) -> tuple[str, ...]:
    """The words of a post for comparison: lower-cased runs of letters and digits, without URLs and HTML entities.

    So a post equals its tokenized copy ("@Jay_: don't" and "@Jay _ : don 't"), and its retweets: a leading "RT @name:"
    is no part of what it says. A post without any letter or digit is its characters instead, so that two different
    rows of emoji stay different.
    """
    if "&" in text:
        text = html.unescape(text)
    text = _RETWEET.sub("", remove_urls(text).lower())
    return tuple(_WORD.findall(text)) or tuple(character for character in text if not character.isspace())


class NearDuplicates:
    """An index of texts that finds those nearly equal to another text.

    >>> index = NearDuplicates([words_of("Jordan at last, what a night in Chicago")])
    >>> index.find(words_of("RT Jordan at last , what a night in Chicago !"))
    (0, 0.888...)
    """

    def __init__(self, texts: Sequence[Sequence[str]], similarity: float = SIMILAR) -> None:
        """``texts``: the words of each text; ``similarity``: Jaccard threshold in (0, 1]."""
        if not 0 < similarity <= 1:
            raise ValueError(f"similarity {similarity}: give a number above 0 and up to 1")
        self.similarity = similarity
        self.word_sets = [frozenset(words) for words in texts]
        frequency = Counter(word for words in self.word_sets for word in words)
        self._rank = {word: rank for rank, word in enumerate(sorted(frequency, key=lambda w: (frequency[w], w)))}
        self._places: dict[str, list[int]] = defaultdict(list)
        for place, words in enumerate(self.word_sets):
            for word in sorted(words, key=self._rank.__getitem__)[: self._prefix_length(len(words))]:
                self._places[word].append(place)

    def find(self, words: Sequence[str]) -> tuple[int, float] | None:
        """The most similar indexed text (the first of equals) as ``(place, similarity)``, or None below the threshold."""
        found = self.find_all(words)
        return max(found, key=lambda match: (match[1], -match[0])) if found else None

    def find_all(self, words: Sequence[str]) -> list[tuple[int, float]]:
        """All indexed texts at or above the threshold, as ``(place, similarity)`` in the order of the index."""
        query = frozenset(words)
        rank = self._rank
        known = [word for word in query if word in rank]
        # Words that no indexed text has are the rarest of all: they take the first places of the query's prefix.
        prefix_length = self._prefix_length(len(query)) - (len(query) - len(known))
        if prefix_length <= 0:
            return []
        known.sort(key=rank.__getitem__)
        candidates = {place for word in known[:prefix_length] for place in self._places.get(word, ())}
        found = []
        for place in sorted(candidates):
            other = self.word_sets[place]
            common = len(query & other)
            similarity = common / (len(query) + len(other) - common)
            if similarity >= self.similarity - _ROUNDING:
                found.append((place, similarity))
        return found

    def _prefix_length(self, size: int) -> int:
        return size - math.ceil(self.similarity * size - _ROUNDING) + 1 if size else 0
