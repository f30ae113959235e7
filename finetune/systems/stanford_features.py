"""Features in the style of Stanford NER (Finkel et al. 2005 [23], Table 4's first row), for a linear-chain CRF.

The templates are those of the paper's Table 1 for named-entity recognition, as the program makes them
(`NERFeatureFactory.java`) with the settings of its published example (`austen.prop`: `useClassFeature`, `useWord`, `usePrev`,
`useNext`, `useNGrams` with `noMidNGrams` and `maxNGramLeng=6`, `useTypeSeqs` with `wordShape=chris2useLC`, `useDisjunctive`),
and two more of those of its model for CoNLL's four types (`english.conll.4class.nodistsim.prop`: `useLastRealWord`,
`useNextRealWord`). `disjunctionWidth` is 4 in both. The names of the templates are the program's own.

=============================  ==========================================================================================
``###``                        always there: a bias for each label (`useClassFeature`)
``WORD``, ``PW``, ``NW``       the word, the previous one, the next one
``#…#``                        the beginnings and the ends of ``<word>`` of 2 to 6 characters
``TYPE``, ``PTYPE``, ``NTYPE`` shape of the word, of the previous one, of the next one (:func:`word_shape`)
``PCTYPE``, ``CNTYPE``,        shapes of neighbours together
``PCNTYPE``
``PW_CTYPE``, ``NW_CTYPE``     a neighbour with the word's shape
``PPW_CTYPE``, ``NNW_CTYPE``   the word two away with the word's shape, where the one between has at most 3 characters
``DISJP``, ``DISJN``           is among the 4 words to the left, or to the right, wherever it stands there
=============================  ==========================================================================================

Left out, since they need more than a tweet's words: part-of-speech tags and clusters (of Table 1 and of later models), and the
non-local part of the paper, Gibbs sampling over a document. Left out, since CRFsuite has no features of a word and two labels:
the program's `usePrevSequences`, `useTypeSeqs2` and `useTypeySequences`; a pair of labels has one weight, whatever the word.
Left out of the model for CoNLL: parts of any length and the shape `dan2useLC`, in the place of which the example's are taken;
`useTitle`; `useOccurrencePatterns` (names that come again within 150 words, more than a tweet has). The program learns which
words are known in lower case while it reads, tweets to be labelled included; here it is the training tweets, all of them. Its
shapes mark names of Greek letters, for biology; these do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

BIAS = "###"
PAD = ""
"""Stands for the words before the first and after the last one, and for their shapes."""
LONGEST_PART = 6
DISJUNCTION_WIDTH = 4
SHORT_WORD = 3
BOUNDARY = 2
"""Characters at either end of a word that its shape spells out."""


class StanfordFeatures:
    """Features of each word of a tweet. ``training`` tells which words are known in lower case."""

    def __init__(self, training: Iterable[Sequence[str]]) -> None:
        self.known = frozenset(word for words in training for word in words if word[:1].islower())
        self._shape = cache(lambda word: word_shape(word, self.known))

    def __call__(self, words: Sequence[str]) -> list[list[str]]:
        """The features that are there, for each word of a tweet."""
        padding = [PAD] * DISJUNCTION_WIDTH
        padded = [*padding, *words, *padding]
        shapes = [self._shape(word) for word in padded]
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
    """The beginnings and the ends of ``<word>`` of 2 to 6 characters, each once.

    >>> word_parts("Al")
    ('#<A#', '#<Al#', '#<Al>#', '#l>#', '#Al>#')
    """
    marked = f"<{word}>"
    lengths = range(2, min(LONGEST_PART, len(marked)) + 1)
    parts = [*(marked[:length] for length in lengths), *(marked[-length:] for length in lengths)]
    return tuple(dict.fromkeys(f"#{part}#" for part in parts))


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
