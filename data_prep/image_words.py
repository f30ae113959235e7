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
    "a about above across after against along also an and another any are around as at away be been behind being below "
    "beside between both but by can down during each for from front group has have he her here him his holding i in inside "
    "into is it its looking many me more most my near next no not of off on one onto or other out outside over past she "
    "side sitting so some standing such than that the their them there these they this those three through to together "
    "too top toward towards two under up upon various very wearing was we were what when where which while who with you "
    "your".split()
)
"""Words of captions that name nothing that is to be seen: articles, prepositions, and what people do in most pictures."""


def content_words(texts: list[str], most: int) -> list[str]:
    """The first words of an image's texts that name something, each once, at the most so many.

    >>> content_words(["a man standing next to a man with a dog"], 5)
    ['man', 'dog']
    """
    words = dict.fromkeys(word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower()))
    return [word for word in words if word not in FUNCTION_WORDS and len(word) > 1][:most]


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
