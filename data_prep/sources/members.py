"""Dumps opened: files as they are, compressed ones, and what is in tar archives, read as streams and never unpacked.

Decompression is pyarrow's, which reads files of several parts (`cat a.gz b.gz`), and says when one ends too early.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from data_prep.posts import storable
from launch.errors import InputError

KINDS = ("txt", "jsonl", "ndjson", "json", "csv", "tsv", "parquet")
CODECS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd"}
ENDINGS = ", ".join(f".{kind}" for kind in KINDS) + ", each but Parquet also .gz, .bz2 or .zst, and .tar, .tar.gz, …"
"""The known endings, for messages."""

BLOCK_BYTES = 4 << 20
LONGEST_LINE = 64 << 20
"""Bytes of a line, or of a JSON value, that are held in memory at most."""
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
"""What UTF-16 begins with."""

BROKEN = (OSError, EOFError, OverflowError, UnicodeDecodeError, tarfile.TarError, pa.ArrowException)
"""What reading a broken file raises."""

_ENDING = re.compile(
    r"\.(?:parquet|(?P<kind>txt|jsonl|ndjson|json|csv|tsv|tar)(?:\.(?P<codec>gz|bz2|zst))?|t(?P<short>gz|bz2))$", re.I
)


class Ending(NamedTuple):
    """What a file's name says of it."""

    stem: str
    kind: str
    codec: str | None

    @classmethod
    def of(cls, name: str) -> Ending | None:
        """The ending of a name, or None if it is not one of a file of posts. An archive keeps it as part of the stem."""
        match = _ENDING.search(name)
        if not match or match.start() == 0 or name[match.start() - 1] == "/":
            return None
        codec = (match["codec"] or match["short"] or "").lower()
        kind = "tar" if match["short"] else (match["kind"] or "parquet").lower()
        return cls(name if kind == "tar" else name[: match.start()], kind, CODECS.get(codec))


@dataclass(frozen=True)
class Member:
    """A file of posts, on disk or in an archive."""

    path: Path
    """The file on disk: this one, or the archive."""
    name: str
    """Within the input, with "/" between folders, the archive being one: `2017.tar/11/01/30.json.bz2`."""
    kind: str
    stem: str
    """The name without its ending: what the ids of its posts begin with."""
    stream: BinaryIO

    def error(self, line: int | None, problem: str, remedy: str) -> InputError:
        """The error of a place in this file."""
        inside = "" if self.path.name == self.name.rpartition("/")[2] else f" ({self.name})"
        return InputError.at(f"{self.path}{inside}", line, problem, remedy)

    def blocks(self) -> Iterator[bytes]:
        """The content, in blocks of up to `BLOCK_BYTES`, without a byte-order mark. InputError where that is UTF-16's."""
        block = self.stream.read(BLOCK_BYTES).removeprefix(b"\xef\xbb\xbf")
        if block.startswith(UTF_16_MARKS):
            raise self.error(1, "UTF-16, by its first two bytes", "Save it as UTF-8.")
        while block:
            yield block
            block = self.stream.read(BLOCK_BYTES)

    def line_blocks(self, blocks: Iterator[bytes] | None = None) -> Iterator[bytes]:
        """The content, or ``blocks`` of it, in blocks of whole lines, each with an end that is "\\n", the last as well.

        Lines end at "\\n" or "\\r\\n", and at nothing else.
        """
        begun: list[bytes] = []
        for block in blocks or self.blocks():
            cut = block.rfind(b"\n") + 1
            if cut:
                yield b"".join([*begun, block[:cut]]).replace(b"\r\n", b"\n")
                begun = []
            begun.append(block[cut:])
            if sum(map(len, begun)) > LONGEST_LINE:
                problem = f"a line of more than {LONGEST_LINE >> 20} MB"
                raise self.error(None, problem, "Is it a text file with a post a line?")
        if last := b"".join(begun):
            yield (last + b"\n").replace(b"\r\n", b"\n")


def members_of(path: Path, name: str, file: pa.NativeFile, passed_over: list[str]) -> Iterator[Member]:
    """The file itself, or the files of posts in the archive that it is, each to be read before the next is asked for.

    Names of other files in an archive are added to ``passed_over``. Names are only read, and decide no place on disk.
    """
    ending = Ending.of(name)
    content = pa.CompressedInputStream(file, ending.codec) if ending.codec else file
    if ending.kind != "tar":
        yield Member(path, name, ending.kind, ending.stem, content)
        return
    watched = _Watched(content)
    stems: set[str] = set()
    with tarfile.open(fileobj=watched, mode="r|", bufsize=1 << 20) as archive:
        for info in archive:
            member_name = f"{name}/{storable(info.name)}"
            ending = Ending.of(member_name)
            hidden = any(part.startswith(".") and part.strip(".") for part in info.name.split("/"))
            if not info.isfile() or hidden or ending is None or ending.kind in ("tar", "parquet"):
                if not info.isdir():
                    passed_over.append(member_name)
                continue
            if ending.stem in stems:
                problem = f"holds two files {ending.stem} with equal names, endings aside"
                raise InputError.at(path, None, problem, "Ids are made of them: give them different ones.")
            stems.add(ending.stem)
            content = archive.extractfile(info)
            if ending.codec:
                content = pa.CompressedInputStream(pa.PythonFile(content, mode="r"), ending.codec)
            yield Member(path, member_name, ending.kind, ending.stem, content)
        watched.check_end(archive.offset)


class _Watched:
    """The bytes of a tar file, watched for its end: to `tarfile`, rubbish is the end as well as the blocks of zeros."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.bytes_read = 0
        self.end_of_content = 0

    def read(self, size: int) -> bytes:
        block = self.stream.read(size)
        if content := len(block.rstrip(b"\0")):
            self.end_of_content = self.bytes_read + content
        self.bytes_read += len(block)
        return block

    def check_end(self, end: int) -> None:
        """Raise unless there is a block of zeros at ``end``, and nothing but zeros after it."""
        while self.read(BLOCK_BYTES):
            pass
        if self.end_of_content > end or self.bytes_read < end + tarfile.BLOCKSIZE:
            raise tarfile.ReadError(f"no end of the archive where it should be, at byte {end}")
