"""Posts as Arrow record batches: text files at the speed of decompression, all others post by post."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_prep.posts import EMPTY, NOT_UTF8, POSTS_FEATURES, Post, unescape_html
from data_prep.sources.members import Member
from data_prep.sources.tables import is_posts_shard

RAW_SCHEMA = POSTS_FEATURES.arrow_schema.remove_metadata().append(pa.field("problem", pa.string()))
"""Columns of posts as they are read: those of `POSTS_FEATURES`, and `Post.problem`."""

POSTS_AT_ONCE = 4096


def post_of_line(line: bytes, place: str, source: str) -> Post:
    """The post of a line of a text file."""
    try:
        text = unescape_html(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Post(place, line.decode("utf-8", "backslashreplace"), source=source, problem=NOT_UTF8)
    return Post(place, text, source=source, problem=None if text else EMPTY)


def read_text(member: Member) -> Iterator[Post]:
    """The posts of a text file, one a line."""
    number = 0
    for block in member.line_blocks():
        for line in block.split(b"\n")[:-1]:
            number += 1
            yield post_of_line(line, f"{member.stem}:{number}", member.name)


def text_batches(member: Member, rows: int) -> Iterator[pa.RecordBatch]:
    """The posts of :func:`read_text`, a block of the file at a time, without a Python object for each."""
    number = 1
    for block in member.line_blocks():
        batch = _batch_of_lines(block, member.stem, number, member.name)
        number += len(batch)
        for start in range(0, len(batch), rows):
            yield batch.slice(start, rows)


def batches_of_posts(posts: Iterable[Post], rows: int) -> Iterator[pa.RecordBatch]:
    """Posts, in batches of at most ``rows``."""
    posts = iter(posts)
    while some := list(islice(posts, min(rows, POSTS_AT_ONCE))):
        yield pa.RecordBatch.from_pylist([{**post.row(), "problem": post.problem} for post in some], RAW_SCHEMA)


def shard_batches(member: Member, rows: int) -> Iterator[pa.RecordBatch] | None:
    """The rows of a Parquet file that is a shard of a `posts` data set, as they are; None if it is another file."""
    file = pq.ParquetFile(member.stream)
    if not is_posts_shard(file.schema_arrow):
        return None
    return (
        pa.RecordBatch.from_arrays([*batch.columns, pa.nulls(len(batch), pa.string())], schema=RAW_SCHEMA)
        for batch in file.iter_batches(rows)
    )


def _batch_of_lines(block: bytes, stem: str, number: int, source: str) -> pa.RecordBatch:
    """The posts of a block of lines that each end with "\\n", the first of which is the file's ``number``-th."""
    block, broken = _with_escapes(block)
    data = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    count = len(ends)
    offsets = np.zeros(count + 1, np.int32)
    offsets[1:] = ends - np.arange(count)  # in the text below, which has the line ends no more
    text = pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(block.replace(b"\n", b"")))

    problem = pa.nulls(count, pa.string())
    if (offsets[1:] == offsets[:-1]).any():
        problem = pc.if_else(pa.array(offsets[1:] == offsets[:-1]), EMPTY, problem)
    if broken:
        problem = _replaced(problem, broken, [NOT_UTF8] * len(broken))
    lines = np.unique(np.searchsorted(ends, np.flatnonzero(data == ord("&"))))
    lines = np.setdiff1d(lines, broken, assume_unique=True)
    if len(lines):
        text = _replaced(text, lines, [unescape_html(line) for line in text.take(pa.array(lines)).to_pylist()])

    numbers = pa.array(np.arange(number, number + count)).cast(pa.string())
    images = RAW_SCHEMA.field("images").type
    columns = {
        "id": pc.binary_join_element_wise(f"{stem}:", numbers, ""),
        "text": text,
        "source": pa.repeat(source, count),
        "images": pa.ListArray.from_arrays(np.zeros(count + 1, np.int32), pa.array([], images.value_type), images),
        "problem": problem,
    }
    arrays = [columns[field.name] if field.name in columns else pa.nulls(count, field.type) for field in RAW_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=RAW_SCHEMA)


def _with_escapes(block: bytes) -> tuple[bytes, list[int]]:
    """The block as UTF-8, the lines that were not as backslash escapes, and which those are."""
    try:
        block.decode("utf-8")
        return block, []
    except UnicodeDecodeError:
        pass
    lines, broken = block.split(b"\n"), []
    for index, line in enumerate(lines):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            lines[index] = line.decode("utf-8", "backslashreplace").encode("utf-8")
            broken.append(index)
    return b"\n".join(lines), broken


def _replaced(array: pa.Array, places: np.ndarray | list[int], values: list[str]) -> pa.Array:
    mask = np.zeros(len(array), bool)
    mask[places] = True
    return pc.replace_with_mask(array, pa.array(mask), pa.array(values, pa.string()))
