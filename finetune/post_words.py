"""Posts as words: raw text split as TMN's (Twitter-2015's) tokens are, URLs left out, places in the text kept.

TMN came tokenized, so a recognizer trained on it reads posts best when they are split the same way: punctuation, each
character by itself, and underscores stand alone, also within words ("U . S .", "don ' t", "@Gabriele _ Corno");
hyphens, slashes and the like within a word do not ("T-Mobile", "9/11"). What differs: hyphens, asterisks and dots at
the edge of a word, and emoji, are split off it, so that they are no part of an entity.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from data_prep.urls import find_urls, remove_urls_from_tokens

Place = tuple[int, int]
"""Start and end, exclusive, in characters (Unicode code points, as Python counts them)."""

# What `_kind` makes of a text: w letter or digit, x mark or joiner that belongs to the character before it, e emoji or
# other symbol, blank, and punctuation as it is.
_WORD = re.compile(
    r"""
    [@#]? w[wx]* (?: [-/&*@#\u2010\u2011] w[wx]* )*     # a word, a mention, a hashtag
  | [ex]+                                               # emoji, however many, as one word
  | ([-/|*&#@\\`\u2026\u2013\u2014]) \1*                # "--", "***"
  | \S                                                  # any other punctuation, each by itself
    """,
    re.VERBOSE,
)
_JOINERS = "\u00ad\u200c\u200d"  # soft hyphen, zero-width non-joiner and joiner
_HTML_ENTITY = re.compile(r"&(?=(?:amp|lt|gt|quot)\b)")  # "&amp" and ";" are tokens of TMN
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class PostWords:
    """A post as the words that a recognizer labels, among the *slots* of the post: its words and its URLs."""

    text: str
    """The post; its tokens, joined by spaces, if it was given as tokens."""
    slots: list[Place]
    """Where in the text each slot is."""
    words: list[str]
    """The words to label: no URLs."""
    slot_of: list[int]
    """The slot of each word. URLs have slots, too, so that an entity does not reach across one."""

    @classmethod
    def of_text(cls, text: str) -> PostWords:
        """A post given as raw text."""
        urls = find_urls(text)
        kinds = _kinds(text)
        for start, end in urls:
            kinds[start:end] = " " * (end - start)
        words = [match.span() for match in _WORD.finditer("".join(kinds))]
        slots = sorted(words + urls)
        is_url = set(urls)
        return cls(
            text,
            slots,
            [encodable(text[start:end]) for start, end in words],
            [slot for slot, place in enumerate(slots) if place not in is_url],
        )

    @classmethod
    def of_tokens(cls, tokens: Sequence[str]) -> PostWords:
        """A post given as tokens, which become slots; URLs go as they went from the training data."""
        left_over = remove_urls_from_tokens(list(tokens))
        slots, start = [], 0
        for token in tokens:
            slots.append((start, start + len(token)))
            start += len(token) + 1
        slot_of = [slot for slot, word in enumerate(left_over) if word]
        return cls(" ".join(tokens), slots, [encodable(left_over[slot]) for slot in slot_of], slot_of)


def encodable(text: str) -> str:
    """``text`` with U+FFFD for half surrogate pairs, which JSON can spell and tokenizers refuse; of the same length."""
    return _SURROGATE.sub("\ufffd", text)


def _kinds(text: str) -> list[str]:
    kinds = [_kind(character) for character in text]
    for match in _HTML_ENTITY.finditer(text):
        kinds[match.start()] = "w"
    return kinds


@lru_cache(maxsize=65536)
def _kind(character: str) -> str:
    if character.isalnum():
        return "w"
    category = unicodedata.category(character)
    if category[0] == "M" or character in _JOINERS or "\U000e0020" <= character <= "\U000e007f":  # tags, as in 🏴󠁧󠁢󠁥󠁮󠁧󠁿
        return "x"
    if category[0] == "Z" or category in ("Cc", "Cf", "Cs"):  # directional marks among them: never seen, never words
        return " "
    if category in ("So", "Co", "Cn") or (category == "Sk" and not character.isascii()):
        return "e"
    return character
