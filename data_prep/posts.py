"""Readers of raw posts: text files with a post a line, gzipped or not, and JSON lines with `id` and `text`."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from launch.errors import InputError

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")

BROKEN_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)

NOT_UTF8 = "not UTF-8"
NOT_A_POST = "not a JSON object with a text"


@dataclass(frozen=True)
class Post:
    """A post as it stands in its file; ``problem`` says why it cannot be used, if it cannot."""

    id: str
    text: str
    problem: str | None = None


def post_files(path: Path) -> list[Path]:
    """The file, or the files of posts in the folder, in the order of their names; InputError if there are none."""
    kinds = ", ".join(SUFFIXES)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InputError.at(path, None, "not a file of posts by its name", f"Known endings are {kinds}.")
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and file.name.endswith(SUFFIXES))
    if not files:
        raise InputError.at(path, None, "no files of posts in the folder", f"Known endings are {kinds}.")
    stems: dict[str, Path] = {}
    for file in files:
        other = stems.setdefault(stem_of(file), file)
        if other is not file:
            problem = f"the same name but for its ending as {other.name}"
            raise InputError.at(file, None, problem, "Ids are made of it: rename or remove one.")
    return files


def stem_of(file: Path) -> str:
    """A file's name without its ending: what the ids of its posts begin with."""
    return next(
        file.name.removesuffix(suffix) for suffix in sorted(SUFFIXES, key=len)[::-1] if file.name.endswith(suffix)
    )


def read_posts(file: Path) -> Iterator[Post]:
    """The posts of a file, one for each line, unusable ones included; InputError if the file itself is broken.

    Ids are `FILE:LINE`, lines counted from 1; JSON lines may have an `id` of their own. Lines end at "\\n" or "\\r\\n".
    """
    stem = stem_of(file)
    read = _post_of_json if ".jsonl" in file.name[len(stem) :] else Post
    try:
        with _open(file) as lines:
            for number, line in enumerate(lines, start=1):
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                post_id = f"{stem}:{number}"
                try:
                    yield read(post_id, line.decode("utf-8"))
                except UnicodeDecodeError:
                    yield Post(post_id, line.decode("utf-8", "backslashreplace"), NOT_UTF8)
    except BROKEN_GZIP as error:
        raise _broken(file, error) from None


def count_lines(file: Path) -> int:
    """Lines of a file of posts, for the progress bar: a quick pass that only reads."""
    try:
        with _open(file) as lines:
            return sum(1 for _ in lines)
    except BROKEN_GZIP as error:
        raise _broken(file, error) from None


def _open(file: Path) -> IO[bytes]:
    return gzip.open(file) if file.suffix == ".gz" else open(file, "rb")


def _broken(file: Path, error: Exception) -> InputError:
    return InputError.at(file, None, f"broken gzip data ({error})", "Get the file again.")


def _post_of_json(post_id: str, line: str) -> Post:
    if not line.strip():
        return Post(post_id, line)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        return Post(post_id, line, NOT_A_POST)
    own_id = value.get("id")
    if isinstance(own_id, str | int) and not isinstance(own_id, bool):
        post_id = _storable(str(own_id))
    text = _storable(value["text"])
    return Post(post_id, text, None if text == value["text"] else NOT_UTF8)


def _storable(text: str) -> str:
    """The text with half surrogate pairs, which JSON can spell and UTF-8 cannot, as backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
