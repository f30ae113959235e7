"""What the texts of a split are like: lengths, mentions, hashtags, URLs, emoji, repeats."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from data_prep.urls import find_urls

_MENTION = re.compile(r"(?<!\w)[@＠]\w")
_HASHTAG = re.compile(r"(?<![\w&])[#＃]\w")  # "&#39;" is none
_RETWEET = re.compile(r"\W{0,8}rt\s{1,4}@", re.IGNORECASE)
_EMOJI = re.compile("[\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff\u2600-\u27bf\u2b50\u2b55\u231a\u231b\u23e9-\u23f3]")

MARKS: dict[str, Callable[[str], object]] = {
    "with a @mention": _MENTION.search,
    "with a #hashtag": _HASHTAG.search,
    "with a URL": find_urls,
    "retweets": _RETWEET.match,
    "with an emoji": _EMOJI.search,
}


class TextCounts:
    """Counts of one split, text by text, in 16 bytes for each."""

    def __init__(self) -> None:
        self.marks: Counter[str] = Counter()
        """Texts by what they have, of `MARKS`."""
        self._characters = array("I")
        self._words = array("I")
        self._hashes = array("Q")

    def __len__(self) -> int:
        return len(self._words)

    def add(self, text: str) -> None:
        """Count a text. Words are runs of non-space characters."""
        words = text.split()
        self._characters.append(len(text))
        self._words.append(len(words))
        same = " ".join(words).lower().encode()
        self._hashes.append(int.from_bytes(blake2b(same, digest_size=8).digest(), "big"))
        for mark, has in MARKS.items():
            if has(text):
                self.marks[mark] += 1

    @property
    def lengths(self) -> dict[str, np.ndarray]:
        """``characters`` and ``words`` of each text."""
        return {"characters": np.asarray(self._characters), "words": np.asarray(self._words)}

    @property
    def repeats(self) -> int:
        """Texts that equal an earlier one but for case and white space."""
        return len(self) - len(np.unique(np.asarray(self._hashes)))
