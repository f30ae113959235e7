"""Readers of annotated text files with a token a line: TMN's layout (also Twitter-2017's) and CoNLL-2003's.

They refuse what is malformed, with file, line and remedy, and change nothing: tags come as they stand in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launch.errors import InputError

DOCUMENT_START = "-DOCSTART-"
IMAGE_LINE = "IMGID:"


@dataclass
class TaggedText:
    """One tweet or sentence of a column file."""

    line: int
    """Where it begins in the file, counted from 1."""
    image_id: str | None = None
    tokens: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line of a UTF-8 file; InputError where a line's bytes are not UTF-8.

    Lines end at "\\n" or "\\r\\n" only: tweets hold characters, such as U+0085 and U+2028, that `str.splitlines` takes
    for line ends.
    """
    if not path.is_file():
        raise InputError.at(
            path, None, "no such file", "Check the input folder: the file names are part of its layout."
        )
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad = f"byte 0x{line[error.start]:02x} at place {error.start + 1} is not UTF-8"
                raise InputError.at(path, number, bad, "Save the file as UTF-8, or mend the line.") from None


def read_tmn(path: Path, types: tuple[str, ...]) -> list[TaggedText]:
    """The tweets of a file in TMN's layout.

    Each is a line `IMGID:` and the image's id, then lines of token, tab, tag; a blank line ends it, and so does the end
    of the file. Tags are `O`, `B-X` and `I-X` with X of ``types``; orphan `I-` tags pass.
    """
    known_tags = _known_tags(types)
    tweets: list[TaggedText] = []
    tweet: TaggedText | None = None
    for number, line in read_lines(path):
        if line.startswith(IMAGE_LINE) and "\t" not in line:
            _refuse_without_tokens(path, tweet)
            tweet = TaggedText(number, image_id=line.removeprefix(IMAGE_LINE).strip())
            if not tweet.image_id:
                raise InputError.at(path, number, f"{IMAGE_LINE} without an id", "Give the tweet's image id after it.")
            tweets.append(tweet)
        elif not line.strip(" "):
            _refuse_without_tokens(path, tweet)
            tweet = None
        else:
            columns = line.split("\t")
            if len(columns) != 2:
                problem = (
                    f"{len(columns) - 1} tabs in {_shown(line)}" if len(columns) > 2 else f"no tab in {_shown(line)}"
                )
                raise InputError.at(path, number, problem, "A line is a token, one tab and its tag.")
            if tweet is None:
                remedy = f"A tweet begins with a line `{IMAGE_LINE}` and the id of its image; a blank line ends it."
                raise InputError.at(path, number, f"a token without an {IMAGE_LINE} line before it", remedy)
            _append(path, number, tweet, columns[0], columns[1], known_tags)
    _refuse_without_tokens(path, tweet)
    if not tweets:
        raise InputError.at(path, None, "no tweets in it", f"Expected `{IMAGE_LINE}` lines and token-tab-tag lines.")
    return tweets


def read_conll(path: Path, types: tuple[str, ...]) -> tuple[list[TaggedText], int]:
    """The sentences of a file in CoNLL-2003's layout, and the number of its `-DOCSTART-` lines.

    Lines are columns parted by spaces or a tab, the token first, the tag last; a blank line ends a sentence.
    Tags are IOB1 or BIO over ``types``.
    """
    known_tags = _known_tags(types)
    sentences: list[TaggedText] = []
    sentence: TaggedText | None = None
    documents = 0
    for number, line in read_lines(path):
        if not line.strip(" \t"):
            sentence = None
            continue
        columns = re.split(r"[ \t]+", line.rstrip(" \t"))
        if columns[0] == DOCUMENT_START:
            documents += 1
            sentence = None
            continue
        if len(columns) < 2:
            remedy = "A line is a token and its tag, first and last of columns parted by a space."
            raise InputError.at(path, number, f"only one column in {_shown(line)}", remedy)
        if sentence is None:
            sentence = TaggedText(number)
            sentences.append(sentence)
        _append(path, number, sentence, columns[0], columns[-1], known_tags)
    if not sentences:
        raise InputError.at(path, None, "no sentences in it", "Expected lines of a token and its tag.")
    return sentences, documents


def _known_tags(types: tuple[str, ...]) -> list[str]:
    return ["O"] + [f"{prefix}-{entity_type}" for entity_type in types for prefix in "BI"]


def _append(path: Path, number: int, text: TaggedText, token: str, tag: str, known_tags: list[str]) -> None:
    if not token:
        raise InputError.at(path, number, "an empty token", "Give the token before the tag, or remove the line.")
    if tag not in known_tags:
        raise InputError.at(path, number, f"unknown tag {_shown(tag)}", f"Known are {', '.join(known_tags)}.")
    text.tokens.append(token)
    text.tags.append(tag)


def _refuse_without_tokens(path: Path, tweet: TaggedText | None) -> None:
    if tweet is not None and not tweet.tokens:
        problem = f"no tokens for image {tweet.image_id}"
        raise InputError.at(path, tweet.line, problem, "Give the tweet's tokens on the lines after it, or remove it.")


def _shown(text: str, length: int = 40) -> str:
    return repr(text if len(text) <= length else text[:length] + "…")
