"""Features in the style of Stanford NER (Finkel et al. 2005 [23], Table 4's first row), for a linear-chain CRF.

The templates are those of the paper's Table 1 for named-entity recognition, with details of two settings that the program
publishes: its example's (`austen.prop`: `maxNGramLeng=6`, `wordShape=chris2useLC`) and those of its model for CoNLL's four
types (`english.conll.4class.nodistsim.prop`: `disjunctionWidth=4`, `useLastRealWord`, `useNextRealWord`); `useClassFeature`,
`useWord`, `usePrev`, `useNext`, `useNGrams`, `useTypeSeqs` and `useDisjunctive` are in both. It is neither as a whole: both
have `noMidNGrams`, which keeps only parts at either end of a word, and here the middle ones are there, too; the model for
CoNLL has parts of any length and the shape `dan2useLC`. The names of the templates are the program's own.

=============================  ==========================================================================================
``###``                        always there: a bias for each label (`useClassFeature`)
``WORD``, ``PW``, ``NW``       the word, the previous one, the next one
``#…#``                        each part of ``<word>`` of 2 to 6 characters; the marks tell prefixes and suffixes
``TYPE``, ``PTYPE``, ``NTYPE`` shape of the word, of the previous one, of the next one (:func:`word_shape`)
``PCTYPE``, ``CNTYPE``,        shapes of neighbours together
``PCNTYPE``
``PW_CTYPE``, ``NW_CTYPE``     a neighbour with the word's shape
``PPW_CTYPE``, ``NNW_CTYPE``   the word two away with the word's shape, where the one between has at most 3 characters
``DISJP``, ``DISJN``           is among the 4 words to the left, or to the right, wherever it stands there
=============================  ==========================================================================================

Left out, since they need more than a tweet's words: part-of-speech tags and clusters (of Table 1 and of later models), and the
non-local part of the paper, Gibbs sampling over a document. Left out, since CRFsuite has no features of a word and two labels:
the program's `usePrevSequences` and `useTypeSeqs2`; a pair of labels has one weight, whatever the word. Left out of the model
for CoNLL: `useTitle`, `useOccurrencePatterns` (names that come again within 150 words, more than a tweet has).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

BIAS = "###"
PAD = "*BOUNDARY*"
"""Stands for the words before the first and after the last one."""
LONGEST_PART = 6
DISJUNCTION_WIDTH = 4
SHORT_WORD = 3
BOUNDARY = 2
"""Characters at either end of a word that its shape spells out."""


class StanfordFeatures:
    """Features of each word of a tweet. ``training`` tells which words are known in lower case."""

    def __init__(self, training: Iterable[Sequence[str]]) -> None:
        self.known = frozenset(word for words in training for word in words if word.islower())
        self._shape = cache(lambda word: word_shape(word, self.known))

    def __call__(self, words: Sequence[str]) -> list[list[str]]:
        """The features that are there, for each word of a tweet."""
        padding = [PAD] * DISJUNCTION_WIDTH
        padded = [*padding, *words, *padding]
        shapes = [PAD if word is PAD else self._shape(word) for word in padded]
        return [word_features(padded, shapes, place + DISJUNCTION_WIDTH) for place in range(len(words))]


def word_features(words: list[str], shapes: list[str], place: int) -> list[str]:
    """Features of the word at ``place``; there are 4 words or pads to either side of it."""
    two_before, before, word, after, two_after = words[place - 2 : place + 3]
    shape_before, shape, shape_after = shapes[place - 1 : place + 2]
    features = [
        BIAS,
        f"WORD={word}",
        f"PW={before}",
        f"NW={after}",
        f"TYPE={shape}",
        f"PTYPE={shape_before}",
        f"NTYPE={shape_after}",
        f"PW_CTYPE={before}...{shape}",
        f"NW_CTYPE={shape}...{after}",
        f"PCTYPE={shape_before}...{shape}",
        f"CNTYPE={shape}...{shape_after}",
        f"PCNTYPE={shape_before}...{shape}...{shape_after}",
        *word_parts(word),
    ]
    if len(before) <= SHORT_WORD:
        features.append(f"PPW_CTYPE={two_before}...{shape}")
    if len(after) <= SHORT_WORD:
        features.append(f"NNW_CTYPE={two_after}...{shape}")
    features += {f"DISJP={other}": None for other in words[place - DISJUNCTION_WIDTH : place]}
    features += {f"DISJN={other}": None for other in words[place + 1 : place + 1 + DISJUNCTION_WIDTH]}
    return features


@cache
def word_parts(word: str) -> tuple[str, ...]:
    """Each part of ``<word>`` of 2 to 6 characters, once.

    >>> word_parts("Al")
    ('#<A#', '#<Al#', '#<Al>#', '#Al#', '#Al>#', '#l>#')
    """
    marked = f"<{word}>"
    return tuple(
        dict.fromkeys(
            f"#{marked[start:end]}#"
            for start in range(len(marked) - 1)
            for end in range(start + 2, min(len(marked), start + LONGEST_PART) + 1)
        )
    )


def word_shape(word: str, known: frozenset[str] = frozenset()) -> str:
    """The program's shape `chris2useLC`: which kinds of characters a word has, exactly so for the two at either end.

    Lower-case letters are ``x``, others ``X``, digits ``d``; all else stays. What is between the ends is there once each,
    sorted. A ``k`` at the end: the word is all letters, and is in ``known`` when lower-cased.

    >>> word_shape("McDonald's"), word_shape("2015"), word_shape("Paris", frozenset({"paris"}))
    ("XxXx'x", 'dddd', 'Xxxxxk')
    """
    kinds = [character_kind(character) for character in word]
    suffix = "k" if all(kind in "xX" for kind in kinds) and word.lower() in known else ""
    if len(kinds) <= 2 * BOUNDARY:
        return "".join(kinds) + suffix
    middle = sorted(set(kinds[BOUNDARY:-BOUNDARY]))
    return "".join(kinds[:BOUNDARY] + middle + kinds[-BOUNDARY:]) + suffix


def character_kind(character: str) -> str:
    """Lower case, upper case, digit, or the character itself."""
    if character.isdigit():
        return "d"
    if character.islower():
        return "x"
    return "X" if character.isupper() or character.istitle() else character
