"""Word vectors from files, for the words of a data set: GloVe's text files, and fastText's text and binary ones.

A text file has a word and its numbers on each line, perhaps after a line with how many there are of both. It is read line by
line, and only the rows that are asked for are kept. A word that a file lacks is looked up in lower case, then drawn.

Shapes: V words, D numbers of a vector.
"""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launch.errors import InputError

DRAWN_FROM = 0.25
"""Out-of-vocabulary words are uniform between minus this and this (section 3.1)."""
EXAMPLES = 20
"""Most frequent out-of-vocabulary words that the report names."""


@dataclass(frozen=True)
class VectorFile:
    """The rows of a file of vectors that were asked for."""

    path: Path
    width: int
    rows: dict[str, np.ndarray]
    """Vector [D] of each word that the file has, as it is written there."""
    composed: frozenset[str] = frozenset()
    """Words among them that the file lacks, and fastText made of their subwords."""


def word_vectors(
    paths: Sequence[Path], counts: Mapping[str, int], seed: int, every_word: bool = False
) -> tuple[list[str], np.ndarray, list[dict[str, Any]]]:
    """Vectors of the words that ``counts`` has, each file's beside the others', and what was found in each file.

    Returns the words [V], in order; their vectors [V, D], D being the sum of the files' widths; and a report on each file.
    With ``every_word`` the files' other words are there, too. Raises InputError for a file that is not as it should be, or
    has none of the words.
    """
    if not paths:
        raise InputError("no vectors were given. Name files of word vectors with --vectors.")
    with_lower_case = {form for word in counts for form in (word, word.lower())}
    files = [read_vectors(path, with_lower_case, every_word) for path in paths]
    words = set(counts).union(*(file.rows for file in files)) if every_word else set(counts)
    words = sorted(word for word in words if is_entry(word))
    random = np.random.Generator(np.random.Philox(key=[seed, 0x0EC7]))
    blocks = []
    for file in files:
        block_VD = random.uniform(-DRAWN_FROM, DRAWN_FROM, (len(words), file.width)).astype(np.float32)
        for place, word in enumerate(words):
            row = file.rows.get(word, file.rows.get(word.lower()))
            if row is not None:
                block_VD[place] = row
        blocks.append(block_VD)
    return words, np.concatenate(blocks, axis=1), [describe(file, counts) for file in files]


def is_entry(text: str) -> bool:
    """Whether a text can stand on a line of its own in a vocabulary's file."""
    return bool(text) and "\n" not in text


def describe(file: VectorFile, counts: Mapping[str, int]) -> dict[str, Any]:
    """How many of the words a file has, of distinct ones and of all, and the most frequent ones that it lacks.

    Raises InputError where it has none: it is of another language, or no file of vectors.
    """
    lacking = Counter({word: n for word, n in counts.items() if not {word, word.lower()} & file.rows.keys()})
    if counts and len(lacking) == len(counts):
        raise InputError(f"{file.path}: has none of the data's words. Give vectors of words of its language.")
    return {
        "file": file.path.name,
        "width": file.width,
        "words": len(counts),
        "as_written": sum(word in file.rows and word not in file.composed for word in counts),
        "in_lower_case": sum(word not in file.rows and word.lower() in file.rows for word in counts),
        "of_subwords": sum(word in file.composed for word in counts),
        "out_of_vocabulary": len(lacking),
        "out_of_vocabulary_rate": len(lacking) / max(1, len(counts)),
        "out_of_vocabulary_rate_in_text": sum(lacking.values()) / max(1, sum(counts.values())),
        "examples": [word for word, _ in lacking.most_common(EXAMPLES)],
    }


def read_vectors(path: Path, words: Collection[str], every_word: bool = False) -> VectorFile:
    """The vectors of ``words``, or of all that the file has, too: of a `.bin` by gensim, else of text, gzipped or not."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file. Give a file of word vectors.")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".bin"]:
        return read_fasttext(path, words, every_word)
    if (suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:]) not in ([".txt"], [".vec"]):
        raise InputError(f"{path}: is not known as vectors by its name. Give a .txt, .vec, .txt.gz, .vec.gz or .bin.")
    return read_text(path, None if every_word else words)


def read_text(path: Path, words: Collection[str] | None) -> VectorFile:
    """The vectors of a text file; InputError, with the line, for a row that is not as wide as the first, or no numbers."""
    wanted = None if words is None else {word.encode() for word in words}
    rows: dict[str, np.ndarray] = {}
    width = 0
    for number, line in numbered_lines(path):
        if number == 1 and (header := header_of(line)):
            width = header
            continue
        gaps = line.count(b" ")
        width = width or gaps
        if gaps != width or not width:
            if gaps > width and not is_number(line.split(b" ")[gaps - width]):
                continue  # a word with spaces in it, as GloVe's largest files have some; no data set's word has any
            remedy = "Give a file whose rows are all of one width, or a whole one."
            raise InputError.at(path, number, f"{gaps} numbers beside the word, but the rows are of {width}", remedy)
        word, *numbers = line.split(b" ") if wanted is None else line.split(b" ", 1)
        if wanted is None or word in wanted:
            text = word.decode("utf-8", "replace")
            if text not in rows:  # where a word is there twice, the first is the more frequent one
                rows[text] = vector_of(path, number, numbers if wanted is None else numbers[0].split(b" "))
    if not width:
        raise InputError(f"{path}: is empty. Give a file of word vectors.")
    return VectorFile(path, width, rows)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, counted from 1, without spaces at their ends."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.rstrip(b" \r\n")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}). Give the whole file, unharmed.") from None


def header_of(line: bytes) -> int | None:
    """The width that the first line gives, if it is that of word2vec's format: how many rows, and how wide."""
    fields = line.split(b" ")
    return int(fields[1]) if len(fields) == 2 and all(field.isdigit() for field in fields) else None


def is_number(field: bytes) -> bool:
    """Whether a field is a number as a vector has them, not a word such as ``1999``."""
    try:
        float(field)
    except ValueError:
        return False
    return True


def vector_of(path: Path, number: int, fields: list[bytes]) -> np.ndarray:
    """The vector [D] that a row's fields spell."""
    try:
        vector_D = np.array([float(field) for field in fields], np.float32)
    except ValueError as error:
        raise InputError.at(path, number, str(error), "Give a file of a word and numbers on each line.") from None
    if not np.isfinite(vector_D).all():
        raise InputError.at(path, number, "a number is not finite", "Give vectors without NaN and infinity.")
    return vector_D


def read_fasttext(path: Path, words: Collection[str], every_word: bool) -> VectorFile:
    """The vectors of fastText's binary format, by gensim. One of ``words`` that it lacks is composed of its subwords."""
    try:
        from gensim.models.fasttext import load_facebook_vectors
    except ImportError:
        raise InputError(
            f"{path}: a .bin is read by gensim, which is not installed. pip install 'msb-ner[vectors]', or give a .vec."
        ) from None
    try:
        vectors = load_facebook_vectors(str(path))
    except Exception as error:  # whatever gensim makes of bytes that are something else
        raise InputError(
            f"{path}: is not fastText's binary format ({error}). Give a .bin that fastText wrote."
        ) from None
    known = vectors.key_to_index
    rows = {word: vectors[word] for word in (known if every_word else words) if word in known}
    composed = {}
    for word in words:
        if not {word, word.lower()} & known.keys() and vectors.bucket:
            vector_D = vectors[word]
            if vector_D.any():  # else it is too short for any subword
                composed[word] = vector_D
    return VectorFile(path, vectors.vector_size, rows | composed, frozenset(composed))
