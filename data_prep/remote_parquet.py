"""The texts of Parquet files on a web server, streamed: of one version of each file, in one order, from any place on.

    https://HOST/PATH/FILE.parquet              several with spaces between: they are read one after another

A file is read in parts, by HTTP range requests, and of its columns only the one that is asked for. Each answer must be of
the *version* that the first one was of: with the same strong ETag, or where the server gives none the same Last-Modified,
and of the same length.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.utils import httpx

from data_prep.text_batches import BEGIN, Place, ReadingInterrupted, TextBatch, batches_of_texts, read_batches
from launch.errors import InputError, first_line
from launch.scrub import redact
from launch.stage import planned_input

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Where addresses need no https."""

HARMLESS_PARAMETERS = frozenset("dl download raw ref revision version versionId".split())
"""Of an address: what no server takes for a credential. Addresses are written into manifests, credentials must not be."""

BUFFER_BYTES = 8 << 20
"""Size of the parts."""

CONNECT_SECONDS, SILENT_SECONDS = 10.0, 60.0
"""Longest wait for a connection, and for the next bytes."""

WAIT_SECONDS = (1.0, 4.0, 15.0)
"""Before a request is made again that had no answer, or none of use."""

RANGE, PAST_THE_END = 206, 416
"""The answers to a range request."""

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be others a little later."""

_LOCAL = "Download the file, and make a data set of it, as docs/data.md says."
_MAGIC = b"PAR1"
_RANGE = re.compile(r"bytes (?:(?P<start>\d+)-\d+|\*)/(?P<length>\d+)")
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')
_FILE = re.compile(r'(?P<url>\S+) \((?P<version>ETag "\S*"|Last-Modified \S+), (?P<length>\d+) bytes\)')


@dataclass(frozen=True)
class RemoteFile:
    """One version of a file on a web server."""

    url: str
    version: str
    """`ETag "…"`, or `Last-Modified …`."""
    length: int

    @classmethod
    def parse_all(cls, described: str) -> list[RemoteFile]:
        """Read back what :func:`remote_input` gives."""
        return [cls(match["url"], match["version"], int(match["length"])) for match in _FILE.finditer(described)]

    def __str__(self) -> str:
        return f"{self.url} ({self.version}, {self.length} bytes)"


class NoAnswerError(Exception):
    """A server could not be reached, or gave no answer of use."""

    def __init__(self, reason: str, may_pass: bool) -> None:
        super().__init__(reason)
        self.may_pass = may_pass


def remote_input(data: str, partial: Path) -> str:
    """The stage input that addresses name: each with the version of its file as it is now.

    While a server does not answer, an interrupted run, which left the folder ``partial``, goes on with its versions: what
    it has read already it does not need again. InputError where an address or a server will not do.
    """
    urls = data.split()
    for url in urls:
        check_address(url)
    files = []
    with _client() as client:
        for url in urls:
            try:
                files.append(_version_now(client, url))
            except NoAnswerError as problem:
                planned = planned_input(partial, "data") or ""
                if problem.may_pass and [file.url for file in RemoteFile.parse_all(planned)] == urls:
                    return planned
                raise InputError(f"{url}: cannot be read ({problem}). Check the address and the network.") from None
    return " ".join(map(str, files))


def check_address(url: str) -> None:
    """InputError where ``url`` is no address of a file, would be read unprotected, or may hold a credential."""
    try:
        parts = urlsplit(url)
        host, scheme, _ = parts.hostname, httpx.URL(url).scheme, parts.port
    except (ValueError, httpx.InvalidURL):
        host = scheme = None
    if not host or scheme not in ("http", "https"):
        shown = re.split(r"[?#]", url)[0].rpartition("@")[2]  # no more: the rest may be what must not be shown
        raise InputError(f"{shown}: not an address. Give addresses like https://HOST/FILE.parquet.")
    shown = f"{scheme}://{host}{parts.path}"
    if "@" in parts.netloc:
        raise InputError(
            f"{shown}: the address holds a user's name or password, which would be put on record. {_LOCAL}"
        )
    parameters = {part.partition("=")[0] for part in parts.query.split("&") if part}
    if parts.fragment or not parameters <= HARMLESS_PARAMETERS:
        raise InputError(
            f"{shown}: what follows the path in its address may be a credential, and would be put on record. Allowed are "
            f"the parameters {', '.join(sorted(HARMLESS_PARAMETERS))}. {_LOCAL}"
        )
    if not _is_protected(scheme, host):
        raise InputError(f"{shown}: without https what comes from there may be anybody's. Give an https address.")


def iterate_remote_texts(
    files: Sequence[RemoteFile], splits: Sequence[str], column: str, validation_share: float, start: Place = BEGIN
) -> Iterator[TextBatch]:
    """The texts in ``column`` of the files; rows without a text are left out, and counted.

    ``validation_share`` of the texts, picked by their hash, are the split `validation`, all others `train`.
    InputError names what is missing, damaged or no longer the version it was, :class:`ReadingInterrupted` a server that
    no longer answers.
    """
    if not set(splits) <= {"train", "validation"}:
        raise InputError(
            f"{files[0].url}: no split {splits[0]!r}. Files on a server are train, and cut from it validation."
        )
    with _client() as client:
        for number, file in enumerate(files[start.shard :], start.shard):
            first_row = start.row if number == start.shard else 0
            try:
                with pq.ParquetFile(PinnedFile(client, file), buffer_size=BUFFER_BYTES, pre_buffer=False) as parquet:
                    _check_column(file, parquet.schema_arrow, column)
                    for row, batch in read_batches(parquet, [column], first_row):
                        place = Place(number, row + len(batch))
                        yield from batches_of_texts("train", batch[column].to_pylist(), validation_share, place)
            except (pa.ArrowException, OSError) as error:
                raise InputError.at(
                    file.url, None, f"cannot be read ({redact(first_line(error))})", "Make it again."
                ) from None


def _check_column(file: RemoteFile, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        names = ", ".join(schema.names)
        raise InputError(f"{file.url}: no column {column!r}. It has {names}: name one with --text_column.")
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise InputError(
            f"{file.url}: the column {column!r} is of {kind}, not of strings. Name another with --text_column."
        )


class PinnedFile(io.RawIOBase):
    """One version of a remote file, to be read like one that lies here."""

    def __init__(self, client: httpx.Client, file: RemoteFile) -> None:
        self.client, self.file, self.place = client, file, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; nothing is read yet."""
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.file.length}[whence]
        return self.place

    def readinto(self, buffer: memoryview) -> int:
        """Read as much as the buffer holds and the file has."""
        end = min(self.place + len(buffer), self.file.length)
        if end <= self.place:
            return 0
        part = self._part(self.place, end)
        buffer[: len(part)] = part
        self.place = end
        return len(part)

    def _part(self, start: int, end: int) -> bytes:
        for seconds in (*WAIT_SECONDS, None):
            try:
                _, part = _request(self.client, self.file.url, start, end, self.file)
                return part
            except NoAnswerError as problem:
                if seconds is None or not problem.may_pass:
                    raise ReadingInterrupted(
                        f"{self.file.url}: cannot be read on ({problem}). The same command goes on where it stopped."
                    ) from None
            time.sleep(seconds)
        raise AssertionError("the last attempt returns or raises")


def _version_now(client: httpx.Client, url: str) -> RemoteFile:
    """The version of a file that the server gives now; InputError where it does not do what reading needs."""
    file, begin = _request(client, url, 0, len(_MAGIC))
    if begin != _MAGIC:
        raise InputError(f"{url}: not a Parquet file. Give the address of the file itself, not of a page about it.")
    return file


def _request(
    client: httpx.Client, url: str, start: int, end: int, pinned: RemoteFile | None = None
) -> tuple[RemoteFile, bytes]:
    """Bytes ``start`` to ``end`` of a file (as far as it goes), and which version of it they are of.

    InputError where that is not the one ``pinned``, or cannot be told; NoAnswerError where no bytes came.
    """
    headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    try:
        with client.stream("GET", url, headers=headers) as answer:
            status, said = answer.status_code, answer.headers
            described = _RANGE.fullmatch(said.get("Content-Range", ""))
            if status >= 400 and not (status == PAST_THE_END and described):
                raise NoAnswerError(f"the server answered {status} {answer.reason_phrase}".rstrip(), status in PASSING)
            if not described or "Content-Encoding" in said or (status == RANGE) != (described["start"] == str(start)):
                raise InputError(f"{url}: the server gives no parts of it (range requests). {_LOCAL}")
            version = _version(said)
            if not version and not pinned and status == RANGE:
                raise InputError(
                    f"{url}: the server does not tell versions of it apart (by a strong ETag, or Last-Modified), so that "
                    f"a change would go unnoticed. {_LOCAL}"
                )
            file = RemoteFile(url, version or "of no named version", int(described["length"]))
            if pinned not in (None, file):
                raise InputError(
                    f"{url}: the file has changed while it was read: it was {_differs(pinned)}, and is {_differs(file)}. "
                    "Bring back the one that was, or start again to read the one that is."
                )
            content = answer.read() if status == RANGE else b""
    except httpx.HTTPError as error:
        raise NoAnswerError(redact(first_line(error)), may_pass=True) from None
    if len(content) != max(min(end, file.length) - start, 0):
        raise NoAnswerError("the server's answer was cut short", may_pass=True)
    return file, content


def _version(said: httpx.Headers) -> str | None:
    """What tells this version of a file from others, by the headers of an answer."""
    if _STRONG_ETAG.fullmatch(said.get("ETag", "")):
        return f"ETag {said['ETag']}"
    try:
        return f"Last-Modified {parsedate_to_datetime(said['Last-Modified']).isoformat()}"
    except (KeyError, ValueError):
        return None


def _differs(file: RemoteFile) -> str:
    return f"{file.version}, {file.length} bytes"


def _client() -> httpx.Client:
    """Follows redirects, but none that leads to where anybody could answer."""

    def check(request: httpx.Request) -> None:
        if not _is_protected(request.url.scheme, request.url.host):
            raise InputError(f"{request.url.host}: an address led there without https. Give one that does not.")

    timeout = httpx.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS)
    return httpx.Client(follow_redirects=True, timeout=timeout, event_hooks={"request": [check]})


def _is_protected(scheme: str, host: str) -> bool:
    return scheme == "https" or (scheme == "http" and host in LOCAL_HOSTS)
