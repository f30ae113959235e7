"""Features in the style of T-NER (Ritter et al. 2011 [24], Table 4's T-NER row), for a linear-chain CRF.

The templates are those of the paper's section 3.1 (orthographic, contextual and dictionary features, Brown clusters, an
informative or uninformative capitalisation), as the published program makes them (`python/ner/Features.py`), with its names.

==============================  =========================================================================================
``word``, ``word_lower``        the word, and in lower case
``prefix``, ``suffix``          its first and its last 1, 2 and 3 characters, in lower case, if it has 4 or more
``INITCAP``, ``ALLCAP``         begins with a capital; is all capitals; each a second time with ``_AND_GOODCAP`` where the
                                tweet's capitalisation is informative
``HASDIGIT``, ``HASDASH``       holds a digit, a dash
``SINGLEDIGIT``,                begins with a digit, with two, with a punctuation mark
``DOUBLEDIGIT``,
``PUNCTUATION``
``DICT``, ``DICTWIN``           a phrase of at most 5 words around the word is in the dictionary of this name; its length, if
                                it is more than one word. (A phrase that the tweet's end cuts short counts as whole.)
``BROWN``                       first 5, 9 and 13 bits of the word's path in a hierarchical clustering
``p1=…``, ``n1=…``              all of these of the previous word and of the next one
``LEFT_WINDOW``                 is among the 3 words to the left, but for the tweet's first
``RIGHT_WINDOW``                is among the 2 words to the right
``BEGIN``                       is the first word
``QUOTED``                      stands between quotation marks
``goodCap``                     whether the tweet's capitalisation is informative
``DOMAIN=Twitter``              always there: a bias for each label
==============================  =========================================================================================

What differs from the original: segmentation and types are one CRF, not a CRF and LabeledLDA over Freebase's types; its
part-of-speech tagger and chunker, and their features, are left out; dictionaries are what the user has, not Freebase's, and
lose the punctuation around a phrase; clusters are those of `pretrain/word_clusters.py`, not Brown's of 20 bits, and a word is
looked up as it is written, then in lower case, not only in lower case. Whether capitalisation is informative is said there by
an SVM trained on labelled tweets; :func:`has_informative_capitals` is a stand-in for it.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from launch.errors import InputError

PREFIX_BITS = (5, 9, 13)
LONGEST_PHRASE = 5
LEFT, RIGHT = 3, 2
SHORTEST_WITH_AFFIXES = 4
FORMS = {
    "INITCAP": re.compile(r"[A-Z]"),
    "ALLCAP": re.compile(r"[A-Z]+\Z"),
    "HASDIGIT": re.compile(r".*[0-9]", re.DOTALL),
    "SINGLEDIGIT": re.compile(r"[0-9]"),
    "DOUBLEDIGIT": re.compile(r"[0-9][0-9]"),
    "HASDASH": re.compile(r".*-", re.DOTALL),
    "PUNCTUATION": re.compile(r"[!-+.,;:?]"),
}
"""What words begin with, by name. The last one has a range, from ``!`` to ``+``, by the program's oversight: ``#`` is in it."""
CAPITALS = ("INITCAP", "ALLCAP")
QUOTATIONS = (re.compile("' ([^']+) '"), re.compile('" ([^"]+) "'))
CAPITALISED_SHARE = 0.5
"""A tweet in which more of the words begin with a capital is a headline, or shouts."""
FREELY_CAPITALISED = re.compile(r"[.?!:\"]|@.+|https?:.+")
"""After such a token a capital says nothing (the program's list)."""


class TNERFeatures:
    """Features of each word of a tweet, by dictionaries (names by phrase) and clusters (bits by word), if there are any."""

    def __init__(self, dictionaries: Mapping[str, Sequence[str]], clusters: Mapping[str, str]) -> None:
        self.dictionaries, self.clusters = dictionaries, clusters
        self._own = cache(self._own_features)

    def __call__(self, words: Sequence[str]) -> list[list[str]]:
        """The features that are there, for each word of a tweet."""
        good = has_informative_capitals(words)
        own = [
            [*self._own(word, good), *found]
            for word, found in zip(words, self._dictionary_features(words), strict=True)
        ]
        features = []
        for place, is_quoted in enumerate(quoted(words)):
            row = [*own[place], f"goodCap={good}", "DOMAIN=Twitter"]
            # The program's window begins after the tweet's first word, and ends a word early on the right.
            row += {f"LEFT_WINDOW={word}": None for word in words[max(1, place - LEFT) : place]}
            row += {f"RIGHT_WINDOW={word}": None for word in words[place + 1 : place + 1 + RIGHT]}
            if is_quoted:
                row.append("QUOTED")
            if place == 0:
                row.append("BEGIN")
            else:
                row += [f"p1={feature}" for feature in own[place - 1]]
            if place + 1 < len(words):
                row += [f"n1={feature}" for feature in own[place + 1]]
            features.append(row)
        return features

    def _own_features(self, word: str, good_capitals: bool) -> list[str]:
        """What a word tells without its neighbours."""
        path = self.clusters.get(word, self.clusters.get(word.lower()))
        bits = () if path is None else dict.fromkeys(path[:length] for length in PREFIX_BITS)
        return [*orthographic_features(word, good_capitals), *(f"BROWN={prefix}" for prefix in bits)]

    def _dictionary_features(self, words: Sequence[str]) -> list[list[str]]:
        """For each word, the dictionaries that have a phrase it is part of."""
        found: list[dict[str, None]] = [{} for _ in words]
        if self.dictionaries:
            for start in range(len(words)):
                for length in range(1, LONGEST_PHRASE + 1):
                    for name in self.dictionaries.get(phrase(" ".join(words[start : start + length])), ()):
                        for features in found[start : start + length]:
                            features[f"DICT={name}"] = None
                            if length > 1:
                                features[f"DICTWIN={length}"] = None
        return [list(features) for features in found]


def orthographic_features(word: str, good_capitals: bool) -> list[str]:
    """Features of a word's form.

    >>> orthographic_features("U2", False)
    ['word=U2', 'word_lower=u2', 'INITCAP', 'HASDIGIT']
    """
    lower = word.lower()
    features = [f"word={word}", f"word_lower={lower}"]
    if len(word) >= SHORTEST_WITH_AFFIXES:
        features += [f"prefix={lower[:length]}" for length in (1, 2, 3)]
        features += [f"suffix={lower[-length:]}" for length in (1, 2, 3)]
    for name, form in FORMS.items():
        if form.match(word):
            features += [name, f"{name}_AND_GOODCAP"] if good_capitals and name in CAPITALS else [name]
    return features


def quoted(words: Sequence[str]) -> list[bool]:
    """Whether each word stands between quotation marks that are words of their own, or end or begin one.

    >>> quoted('saw " Iron Man " today'.split())
    [False, False, True, True, False, False]
    """
    text = " ".join(words)
    spans = [match.span(1) for marks in QUOTATIONS for match in marks.finditer(text)]
    places = itertools.accumulate((len(word) + 1 for word in words[:-1]), initial=0)
    return [any(first <= place < last for first, last in spans) for place, _ in zip(places, words, strict=False)]


def has_informative_capitals(words: Sequence[str]) -> bool:
    """Whether a capital tells a name from another word in this tweet: a stand-in for the original's trained classifier.

    It looks at the share of capitalised words, as the original does, among those where a capital is not owed to the place:
    not first, not after punctuation that ends a sentence, a mention or a URL; mentions and hashtags are left out. Capitals
    are informative unless more than half of these words have one (a headline, or shouting), or the tweet has none at all,
    its first word included (whoever wrote it uses none).

    >>> has_informative_capitals("We met Ann in Oslo".split()), has_informative_capitals("we met ann in oslo".split())
    (True, False)
    """
    spoken = [
        (word, place == 0 or FREELY_CAPITALISED.fullmatch(words[place - 1]) is not None)
        for place, word in enumerate(words)
        if word[:1].isalpha()
    ]
    capitalised = [word[0].isupper() for word, is_free in spoken if not is_free]
    if not any(word[0].isupper() for word, _ in spoken):
        return False
    return sum(capitalised) <= CAPITALISED_SHARE * len(capitalised)


def phrase(text: str) -> str:
    """A phrase as dictionaries have it: in lower case, without punctuation around it."""
    return text.lower().strip(string.punctuation + " ")


def read_dictionaries(folder: Path) -> dict[str, list[str]]:
    """Names of the dictionaries that have a phrase, by phrase. A dictionary is a text file `NAME.txt`, a phrase a line."""
    files = sorted(path for path in folder.glob("*.txt") if path.is_file()) if folder.is_dir() else []
    if not files:
        raise InputError(
            f"{folder}: holds no dictionaries. Give a folder of text files, NAME.txt, with a phrase a line."
        )
    dictionaries: dict[str, list[str]] = {}
    for path in files:
        try:
            phrases = {phrase(line) for line in path.read_text(encoding="utf-8").splitlines()} - {""}
        except UnicodeDecodeError as error:
            raise InputError.at(
                path, None, f"is not UTF-8 ({error})", "Give a text file with a phrase a line."
            ) from None
        if not phrases:
            raise InputError.at(path, None, "has no phrases", "Write a phrase a line, or take the file away.")
        for entry in phrases:
            dictionaries.setdefault(entry, []).append(path.stem)
    return dictionaries


def read_clusters(path: Path) -> dict[str, str]:
    """Each word's path, from a file of bits, word and count with tabs between, as Brown clustering's `paths` and ours are."""
    clusters = {}
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
            fields = line.split("\t")
            if len(fields) == 3 and fields[0] and not fields[0].strip("01"):
                clusters[fields[1]] = fields[0]
            elif line:
                raise InputError.at(
                    path, number, "is not bits, word and count", "Give the paths.tsv of pretrain/word_clusters.py."
                )
    except (OSError, UnicodeDecodeError) as error:
        raise InputError.at(path, None, f"cannot be read ({error})", "Give a paths.tsv.") from None
    if not clusters:
        raise InputError.at(path, None, "has no words", "Give the paths.tsv of pretrain/word_clusters.py.")
    return clusters
