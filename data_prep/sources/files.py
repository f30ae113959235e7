"""Posts from files: whatever dump of posts a user has, as `Post` records or as Arrow batches.

Text with a post a line, JSON lines or lists (X's API v1.1 and v2, or objects with a `text`), CSV, TSV and Parquet with
named columns; all but Parquet also compressed (gzip, bzip2, zstandard) or in a tar; or a folder of such files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from data_prep.posts import Post
from data_prep.sources.batches import RAW_SCHEMA, batches_of_posts, read_text, shard_batches, text_batches
from data_prep.sources.json_files import read_json, read_json_lines
from data_prep.sources.live import CrawlSettings
from data_prep.sources.members import BROKEN, ENDINGS, Ending, Member, members_of
from data_prep.sources.tables import PostColumns, read_csv, read_parquet, read_tsv
from launch.errors import InputError
from launch.files import files_below
from launch.settings import NOT_IDENTITY
from launch.stage import MANIFEST_NAME

__all__ = [
    "RAW_SCHEMA",
    "FilesSettings",
    "PostColumns",
    "Reading",
    "files_passed_over",
    "post_files",
    "read_batches",
    "read_posts",
]

BATCH_ROWS = 65_536
USUAL_COLUMNS = PostColumns()

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class FilesSettings(CrawlSettings):
    """Settings of a crawl that reads files."""

    input: Path = field(metadata=NOT_IDENTITY)
    """A file of posts or a folder of them, by their endings: `.txt` (a post a line), `.jsonl`, `.ndjson`, `.json`, `.csv`,
    `.tsv`, each also `.gz`, `.bz2` or `.zst`; `.parquet`; a `.tar` (also compressed) of such files."""
    columns: PostColumns = field(default_factory=PostColumns)
    """The columns of tables."""


@dataclass
class Reading:
    """How far reading has come, and what it left out on the way. The reading functions keep it up to date."""

    bytes_read: int = 0
    """Of the files as they are on disk; their sizes sum up to where it ends."""
    passed_over: list[str] = field(default_factory=list)
    """What is in archives and no file of posts by its name."""


def post_files(path: Path) -> list[Path]:
    """The file, or the files of posts in the folder and those below it, in order.

    InputError if there are none, or if two differ in their endings only. Hidden files are left out. Of the folder of a
    `posts` data set, the files are its shards of usable posts.
    """
    if path.is_file():
        if Ending.of(path.name) is None:
            raise InputError.at(path, None, "not a file of posts by its name", f"Known endings are {ENDINGS}.")
        return [path]
    files = [file for file in _visible_files(path) if Ending.of(file.name)]
    if shards := _shards(path):
        files = shards
    if not files:
        raise InputError.at(path, None, "no files of posts in the folder", f"Known endings are {ENDINGS}.")
    stems: dict[str, Path] = {}
    for file in files:
        other = stems.setdefault(Ending.of(_name_in(path, file)).stem, file)
        if other is not file:
            problem = f"the same name but for its ending as {other.name}"
            raise InputError.at(file, None, problem, "Ids are made of it: rename or remove one.")
    return files


def files_passed_over(path: Path, files: list[Path]) -> list[str]:
    """Names of the files in the folder that are not among ``files``; of a `posts` data set there are none."""
    taken = set(files)
    return [] if _shards(path) else [_name_in(path, file) for file in _visible_files(path) if file not in taken]


def read_posts(
    file: Path,
    columns: PostColumns = USUAL_COLUMNS,
    within: Path | None = None,
    reading: Reading | None = None,
) -> Iterator[Post]:
    """The posts of a file, in order, unusable ones included; InputError if the file itself is broken.

    A post has its own id where the file gives one, else `NAME:LINE`: the file's name without its ending, in the folder
    ``within`` (with what lies between) or alone, and the line, counted from 1. Its source, where it has none of its own,
    is the file's name.
    """
    return _of_members([file], within, reading, lambda member: _posts_of(member, columns))


def read_batches(
    files: Iterable[Path],
    columns: PostColumns = USUAL_COLUMNS,
    within: Path | None = None,
    reading: Reading | None = None,
    rows: int = BATCH_ROWS,
) -> Iterator[pa.RecordBatch]:
    """The posts that :func:`read_posts` gives for the files, as batches of `RAW_SCHEMA` of at most ``rows`` rows.

    Text files are read without a Python object for each post. Memory does not grow with the files.
    """
    return _of_members(files, within, reading, lambda member: _batches_of(member, columns, rows))


def _of_members(
    files: Iterable[Path], within: Path | None, reading: Reading | None, read: Callable[[Member], Iterator[Item]]
) -> Iterator[Item]:
    """What ``read`` gives for the files and the files in archives, one after the other."""
    reading = reading or Reading()
    for path in files:
        before = reading.bytes_read
        try:
            with pa.OSFile(str(path)) as file:
                for member in members_of(path, _name_in(within, path), file, reading.passed_over):
                    for item in read(member):
                        reading.bytes_read = before + file.tell()
                        yield item
                reading.bytes_read = before + file.size()
        except BROKEN as error:
            raise InputError.at(path, None, f"broken, or not to be read ({error})", "Get the file again.") from None


def _posts_of(member: Member, columns: PostColumns) -> Iterator[Post]:
    match member.kind:
        case "txt":
            return read_text(member)
        case "json":
            return read_json(member)
        case "csv":
            return read_csv(member, columns)
        case "tsv":
            return read_tsv(member, columns)
        case "parquet":
            return read_parquet(member, columns)
    return read_json_lines(member)


def _batches_of(member: Member, columns: PostColumns, rows: int) -> Iterator[pa.RecordBatch]:
    if member.kind == "txt":
        return text_batches(member, rows)
    if member.kind == "parquet" and (batches := shard_batches(member, rows)):
        return batches
    return batches_of_posts(_posts_of(member, columns), rows)


def _shards(folder: Path) -> list[Path]:
    """The shards of usable posts, if the folder is a finished data set."""
    return sorted((folder / "data").glob("*.parquet")) if (folder / MANIFEST_NAME).is_file() else []


def _visible_files(folder: Path) -> list[Path]:
    is_hidden = lambda file: any(part.startswith(".") for part in file.relative_to(folder).parts)  # noqa: E731
    return sorted(file for file in files_below(folder) if not is_hidden(file))


def _name_in(folder: Path | None, file: Path) -> str:
    return file.name if folder is None or folder == file else file.relative_to(folder).as_posix()
