"""Posts in tables with named columns: CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.posts import NOT_UTF8, POSTS_FEATURES, Post, PostImage
from data_prep.sources.members import Member
from data_prep.sources.post_fields import post_of_fields

BAD_ROW = "not as many columns as the header"
BAD_QUOTES = "quotes that do not match"

PARQUET_ROWS = 10_000

USUAL_NAMES = {
    "text": ("text", "full_text", "tweet", "tweet_text", "content", "body", "message"),
    "id": ("id", "id_str", "tweet_id", "status_id", "post_id"),
    "lang": ("lang", "language"),
    "created_at": ("created_at", "date", "datetime", "timestamp", "time"),
    "author_id": ("author_id", "user_id", "user_id_str", "author", "user"),
    "images": ("images", "image", "image_url", "image_urls", "media_url", "media_urls", "photo", "photos"),
}


@dataclass(frozen=True)
class PostColumns:
    """Which columns of CSV, TSV and Parquet files hold what; null takes the first of the usual names that is there."""

    text: str | None = None
    """The text. Usual: `text`, `full_text`, `tweet`, `content`, `body`, `message`."""
    id: str | None = None
    """The post's id; without one it is made of the file's name and the line. Usual: `id`, `id_str`, `tweet_id`."""
    lang: str | None = None
    """The language as the platform says. Usual: `lang`, `language`."""
    created_at: str | None = None
    """When it was posted: ISO 8601, or as in X's API v1.1. Usual: `created_at`, `date`, `timestamp`."""
    author_id: str | None = None
    """Who posted it. Usual: `author_id`, `user_id`, `author`, `user`."""
    images: str | None = None
    """Addresses of its photos: one, several apart by spaces, or a JSON list. Usual: `images`, `image_url`, `photos`."""


def read_csv(member: Member, columns: PostColumns) -> Iterator[Post]:
    """The posts of a CSV file: commas, double quotes around fields that need them, names in the first row.

    Ids are made of the line at which a row begins. A row whose quotes do not match gives a post with a ``problem``, which
    has all lines that were taken to be the row.
    """
    taken: list[str] = []
    rows = csv.reader(_noted(_lines(member), taken), strict=True)
    header: list[str] | None = None
    while True:
        number = rows.line_num + 1
        taken.clear()
        try:
            row = next(rows, None)
        except csv.Error:
            text = "".join(taken).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            yield Post(f"{member.stem}:{number}", text, source=member.name, problem=BAD_QUOTES)
            continue
        if row is None:
            return
        if header is None and row:
            header, places = row, _places(member, row, columns)
        elif row:
            yield _post_of_row(member, number, row, header, places)


def read_tsv(member: Member, columns: PostColumns) -> Iterator[Post]:
    """The posts of a TSV file: a row a line, tabs between the fields, names in the first line.

    A quote opens nothing, since tweets may begin with one; but a field that is quoted as a whole loses its quotes.
    """
    header: list[str] | None = None
    for number, line in enumerate(_lines(member), start=1):
        row = [_unquoted(field) for field in line[:-1].split("\t")]
        if header is None and line[:-1]:
            header, places = row, _places(member, row, columns)
        elif line[:-1]:
            yield _post_of_row(member, number, row, header, places)


def read_parquet(member: Member, columns: PostColumns) -> Iterator[Post]:
    """The posts of a Parquet file. Ids are made of the row's number; a shard of a `posts` data set is read as it is."""
    file = pq.ParquetFile(member.stream)
    names = file.schema_arrow.names
    if is_posts_shard(file.schema_arrow):
        for batch in file.iter_batches(PARQUET_ROWS):
            for row in batch.to_pylist():
                yield Post(**{**row, "images": tuple(PostImage(**image) for image in row["images"] or [])})
        return
    places = _places(member, names, columns)
    number = 0
    for batch in file.iter_batches(PARQUET_ROWS, columns=[names[place] for place in places.values()]):
        for row in _with_utc(batch).to_pylist():
            number += 1
            values = {field: row[names[place]] for field, place in places.items()}
            values["text"] = "" if values["text"] is None else values["text"]
            yield post_of_fields(values, f"{member.stem}:{number}", member.name)


def is_posts_shard(schema: pa.Schema) -> bool:
    """Whether a Parquet file is a shard of a `posts` data set of ours, whose texts are decoded already."""
    return schema.remove_metadata().equals(POSTS_FEATURES.arrow_schema.remove_metadata())


def _with_utc(batch: pa.RecordBatch) -> pa.Table:
    """The batch with its times in whole microseconds, the most that Python's hold, and UTC."""
    moment = pa.timestamp("us", "UTC")
    types = [moment if pa.types.is_timestamp(field.type) else field.type for field in batch.schema]
    return pa.Table.from_batches([batch]).cast(pa.schema(zip(batch.schema.names, types, strict=True)), safe=False)


def _lines(member: Member) -> Iterator[str]:
    """Lines with their "\\n"; bytes that are not UTF-8 as half surrogates, until it is known whose text they are in."""
    for block in member.line_blocks():
        for line in block.split(b"\n")[:-1]:
            yield line.decode("utf-8", "surrogateescape") + "\n"


def _noted(lines: Iterator[str], taken: list[str]) -> Iterator[str]:
    for line in lines:
        taken.append(line)
        yield line


def _places(member: Member, header: Sequence[str], columns: PostColumns) -> dict[str, int]:
    """The place in the header of each of `PostColumns` that is there; InputError if a named one, or the text, is not."""
    found = ", ".join(header) or "none"
    lower = [name.strip().lower() for name in header]
    places = {}
    for field in fields(PostColumns):
        wanted = getattr(columns, field.name)
        if wanted is not None and wanted not in header:
            problem = f"no column {wanted!r} (it has {found})"
            raise member.error(None, problem, f"Correct --columns.{field.name}.")
        names = [name for name in USUAL_NAMES[field.name] if name in lower]
        if wanted is not None or names:
            places[field.name] = header.index(wanted) if wanted is not None else lower.index(names[0])
    if "text" not in places:
        problem = f"no column is named as one with the text would be (it has {found})"
        raise member.error(None, problem, "Name it with --columns.text.")
    return places


def _post_of_row(member: Member, number: int, row: list[str], header: list[str], places: dict[str, int]) -> Post:
    place = f"{member.stem}:{number}"
    raw = [field.encode("utf-8", "surrogateescape") for field in row]
    try:
        row = [field.decode("utf-8") for field in raw]
        problem = None
    except UnicodeDecodeError:
        row = [field.decode("utf-8", "backslashreplace") for field in raw]
        problem = NOT_UTF8
    if problem or len(row) != len(header):
        text = row[places["text"]] if len(row) == len(header) else ",".join(row)
        return Post(place, text, source=member.name, problem=problem or BAD_ROW)
    values: dict[str, Any] = {name: row[index] for name, index in places.items()}
    for name in values.keys() & {"id", "author_id"}:
        values[name] = _number_of(values[name])
    return post_of_fields(values, place, member.name)


_FLOAT = re.compile(r"[0-9]+\.0+|[0-9]\.[0-9]+[eE]\+?[0-9]{1,2}")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')


def _number_of(cell: str) -> str | Decimal:
    """A cell with an id; as a number if a program that took it for one has written it: `153.0`, `1.53929E+17`."""
    return Decimal(cell) if _FLOAT.fullmatch(cell) else cell


def _unquoted(field: str) -> str:
    match = _QUOTED.fullmatch(field) if field.startswith('"') else None
    return match[1].replace('""', '"') if match else field
