"""Tables of image words: what a machine says an image shows, by image id."""

from __future__ import annotations

import re
from pathlib import Path

from data_prep.column_files import read_lines
from launch.errors import InputError

ID_HEADERS = ("image_id", "id")
_FORMAT = (
    "A table of image words is a header line `image_id<TAB>text`, then on each line an image id, a tab and its text."
)


FUNCTION_WORDS = frozenset(
    "a about above across after against all along also am an and another any are around as at away back be because been "
    "before behind being below beside between both but by can could did do does down during each eight five for four from "
    "front group had has have he her here hers him his holding i if in inside into is it its just looking lot lots many may "
    "me might mine more most much must my near next nine no none not of off on one only onto or other our out outside over "
    "past seven several shall she should side sitting six so some standing such ten than that the their them then there "
    "these they this those three through to together too top toward towards two under up upon us various very was we wearing "
    "were what when where which while who will with would you your".split()
)
"""Words of captions that name nothing to be seen: articles, pronouns, prepositions, conjunctions, auxiliaries, small
numbers, and what people do in most pictures."""
APOSTROPHES = "'\u2019"


def content_words(texts: list[str], most: int) -> list[str]:
    """The first words of an image's texts that name something, each once, at the most so many.

    >>> content_words(["a man standing next to a man with a dog"], 5)
    ['man', 'dog']
    """
    letters = rf"[^\W\d_]+(?:[{APOSTROPHES}][^\W\d_]+)*"
    words = dict.fromkeys(word for text in texts for word in re.findall(letters, text.lower()))
    return [
        word for word in words if len(word) > 1 and word not in FUNCTION_WORDS and not set(APOSTROPHES) & set(word)
    ][:most]


def read_image_words(path: Path, separator: str | None = None) -> dict[str, list[str]]:
    """Image words by image id, from a table of two columns parted by a tab, with a header line.

    Without ``separator`` the text of an image is one entry, as fits a caption; with it, the text is split there, as
    fits labels ("basketball, scoreboard" with a comma). An image without text has no entries. InputError names the line.
    """
    words_by_id: dict[str, list[str]] = {}
    line_of: dict[str, int] = {}
    for number, line in read_lines(path):
        image_id, tab, text = line.partition("\t")
        if number == 1:
            if image_id.lower() not in ID_HEADERS or not tab:
                raise InputError.at(path, 1, f"not a header line: {line[:60]!r}", _FORMAT)
            continue
        if not line:
            continue
        if not tab or not image_id:
            raise InputError.at(path, number, "no tab" if not tab else "no image id", _FORMAT)
        if "\t" in text and separator != "\t":
            raise InputError.at(path, number, "more than two columns", _FORMAT)
        if image_id in line_of:
            problem = f"image id {image_id} again (first on line {line_of[image_id]})"
            raise InputError.at(path, number, problem, "Give each image one line.")
        parts = [text] if separator is None else text.split(separator)
        words_by_id[image_id] = [part.strip() for part in parts if part.strip()]
        line_of[image_id] = number
    if not words_by_id:
        raise InputError.at(path, None, "no image words in it", _FORMAT)
    return words_by_id
