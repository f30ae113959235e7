"""Photos of posts, downloaded into the data set's folder: several at once, checked by content, named by content.

    with PhotoDownloader(folder) as photos:
        futures = [photos.submit(image) for image in post.images]
        images = [future.result() for future in futures]

What is wrong with a photo is said in its `problem`; other errors, such as a full disk, are raised by `result`.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from data_prep.images import (
    MAXIMUM_BYTES,
    NOT_AN_IMAGE,
    TRUNCATED,
    UNREADABLE,
    ImageProblem,
    check_image,
    too_many_bytes,
)
from data_prep.posts import PostImage
from data_prep.sources.waiting import Backoff
from launch.files import sync_to_disk

IMAGES_FOLDER = "images"
TIMED_OUT = "timed out"
CONNECTION_FAILED = "connection failed"
NOT_A_WEB_ADDRESS = "not a web address"
TOO_MANY_REDIRECTS = "too many redirects"
LOCAL_NOT_ALLOWED = "local files are not allowed"
NO_SUCH_FILE = "no such file"

REQUEST_HEADERS = {"User-Agent": "msb-ner", "Accept": "image/*", "Accept-Encoding": "identity"}
MAXIMUM_REDIRECTS = 5
LONGEST_WAIT_SECONDS = 60.0
"""A server that asks for more patience than this gets no second request for the photo."""

REMEMBERED_URLS = 100_000
"""Addresses that are known to have been asked for; the oldest are forgotten first. Reposts come close together."""

_MAY_PASS = frozenset({408, 425, 429})
_HTTP = re.compile(r"https?://", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_OTHER_KINDS = {
    "an HTML page": re.compile(rb"<!doctype\s+html|<html\b", re.IGNORECASE),
    "an SVG drawing": re.compile(rb"<svg\b", re.IGNORECASE),
    "a video": re.compile(rb"\A(?:.{4}ftyp(?!hei|hev|mif|msf|avi)|\x1aE\xdf\xa3|RIFF.{4}AVI )", re.DOTALL),
}
"""What comes in a photo's place, by what is found in its first `_BEGINNING` bytes. (`ftyp` also begins HEIF and AVIF.)"""
_BEGINNING = 1024

_Result = TypeVar("_Result")


class PhotoDownloader:
    """Downloads photos into ``folder/images/ab/<sha256>.<ending>``; close it, or use it in a ``with`` block.

    ``images_from`` is the folder that local files (``file://`` addresses and paths; relative ones start there) may
    come from; None forbids them. At most ``workers`` requests run at once, and ``per_host`` to one host. ``connect_seconds``
    and ``read_seconds`` bound each wait for the server, ``whole_seconds`` a request with its redirects. What may pass
    (lost connections, timeouts, 429, 5xx) is tried ``retries`` times more, after waits that begin around ``first_wait``.
    """

    def __init__(
        self,
        folder: Path,
        workers: int = 16,
        images_from: Path | None = None,
        *,
        maximum_bytes: int = MAXIMUM_BYTES,
        per_host: int = 8,
        retries: int = 4,
        first_wait: float = 1.0,
        connect_seconds: float = 10.0,
        read_seconds: float = 20.0,
        whole_seconds: float = 120.0,
    ) -> None:
        self._folder = folder
        self._images_from = images_from.resolve() if images_from else None
        self._maximum_bytes = maximum_bytes
        self._retries = retries
        self._first_wait = first_wait
        self._timeout = aiohttp.ClientTimeout(total=whole_seconds, sock_connect=connect_seconds, sock_read=read_seconds)
        self._outcomes: dict[str, asyncio.Task[PostImage]] = {}
        self._running = asyncio.Semaphore(workers)
        self._hosts: defaultdict[str | None, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(per_host))
        self._file_threads = ThreadPoolExecutor(workers, thread_name_prefix="photo-files")
        for leftover in (folder / IMAGES_FOLDER).glob(".*.partial"):  # of a process that was killed
            leftover.unlink()

        # An event loop, since a thread that waits for a server can neither be given a deadline nor be stopped.
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="photos", daemon=True)
        self._thread.start()
        ready.wait()

    def __enter__(self) -> PhotoDownloader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, image: PostImage) -> Future[PostImage]:
        """Begin the download; the future gives the image with ``path`` (relative to the folder) and ``sha256``, or ``problem``.

        An address is asked for once per run, and content stored once, however often they are submitted.
        """
        return asyncio.run_coroutine_threadsafe(self._settle(image), self._loop)

    def close(self) -> None:
        """Stop at once: futures that are not done are cancelled. What is in the folder is whole."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        self._file_threads.shutdown(cancel_futures=True)

    def _run(self, ready: threading.Event) -> None:
        try:
            self._loop.run_until_complete(self._serve(ready))
        finally:
            self._loop.close()

    async def _serve(self, ready: threading.Event) -> None:
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),  # the semaphores limit: here, queueing would count as connecting
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=REQUEST_HEADERS,
            timeout=self._timeout,
        ) as self._session:
            ready.set()
            await self._stop.wait()
            if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    async def _settle(self, image: PostImage) -> PostImage:
        task = self._outcomes.get(image.url)
        if task is None:
            if len(self._outcomes) >= REMEMBERED_URLS:
                del self._outcomes[next(iter(self._outcomes))]
            task = self._outcomes[image.url] = asyncio.create_task(self._outcome(image.url))
        outcome = await asyncio.shield(task)  # others may wait for it when this one is cancelled
        return replace(outcome, alt_text=image.alt_text)

    async def _outcome(self, url: str) -> PostImage:
        try:
            if _HTTP.match(url):
                data = await self._download(url)
            else:
                data = await self._in_file_thread(_read_local, url, self._images_from, self._maximum_bytes)
            path, digest = await self._in_file_thread(_store, data, self._folder)
        except ImageProblem as problem:
            return PostImage(url, problem=str(problem))
        return PostImage(url, path=path, sha256=digest)

    def _in_file_thread(self, function: Callable[..., _Result], *arguments: Any) -> asyncio.Future[_Result]:
        return self._loop.run_in_executor(self._file_threads, function, *arguments)

    async def _download(self, url: str) -> bytes:
        backoff = Backoff(self._first_wait, LONGEST_WAIT_SECONDS)
        # Waiting for another try keeps the place in the host's queue: a host in trouble is asked less.
        async with self._hosts[_host_of(url)]:
            for retries_left in range(self._retries, -1, -1):
                try:
                    async with self._running:
                        return await self._request(url)
                except _MayPass as problem:
                    if not retries_left or problem.retry_after > LONGEST_WAIT_SECONDS:
                        raise
                    await asyncio.sleep(backoff.delay(problem.retry_after))
        raise AssertionError("the last try returns or raises")

    async def _request(self, url: str) -> bytes:
        try:
            async with self._session.get(url, proxy=_proxy_for(url), max_redirects=MAXIMUM_REDIRECTS + 1) as response:
                return await self._body(response)
        except aiohttp.TooManyRedirects:
            raise ImageProblem(TOO_MANY_REDIRECTS) from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, UnicodeError):
            raise ImageProblem(NOT_A_WEB_ADDRESS) from None
        except asyncio.TimeoutError:
            raise _MayPass(TIMED_OUT) from None
        except aiohttp.ClientPayloadError:
            raise _MayPass(TRUNCATED) from None
        except aiohttp.ClientError:
            raise _MayPass(CONNECTION_FAILED) from None

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status in _MAY_PASS or response.status >= 500:
            raise _MayPass(str(response.status), _seconds_of(response.headers.get("Retry-After", "")))
        if response.status != 200:
            raise ImageProblem(str(response.status))
        too_large = ImageProblem(too_many_bytes(self._maximum_bytes))
        if (response.content_length or 0) > self._maximum_bytes:
            raise too_large
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > self._maximum_bytes:
                raise too_large
        return bytes(data)


class _MayPass(ImageProblem):
    """A problem that another try may not meet, after ``retry_after`` seconds if the server says so."""

    def __init__(self, problem: str, retry_after: float = 0.0) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        raise ImageProblem(NOT_A_WEB_ADDRESS) from None


def _proxy_for(url: str) -> str | None:
    # Not by aiohttp's `trust_env`, which also sends the passwords in `.netrc`: any post can name any host.
    parts = urlsplit(url)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


def _seconds_of(retry_after: str) -> float:
    """Seconds from now that a `Retry-After` header asks for: a number or a date (RFC 9110, 10.2.3); 0 if it is neither."""
    if re.fullmatch(r"[0-9]+", retry_after):
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(timezone.utc)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _read_local(url: str, images_from: Path | None, maximum_bytes: int) -> bytes:
    """The local file that ``url`` names, if it lies inside ``images_from``, symbolic links followed."""
    if _SCHEME.match(url) and not url.lower().startswith("file:"):
        raise ImageProblem(NOT_A_WEB_ADDRESS)
    if images_from is None:
        raise ImageProblem(LOCAL_NOT_ALLOWED)
    try:
        path = unquote(urlsplit(url).path) if _SCHEME.match(url) else url
        file = (images_from / path).resolve()
        is_inside, is_file = file.is_relative_to(images_from), file.is_file()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that is too long, a NUL in it
        raise ImageProblem(NO_SUCH_FILE) from None
    if not is_inside:
        raise ImageProblem(LOCAL_NOT_ALLOWED)
    if not is_file:
        raise ImageProblem(NO_SUCH_FILE)
    try:
        with open(file, "rb") as opened:
            data = opened.read(maximum_bytes + 1)
    except OSError:
        raise ImageProblem(UNREADABLE) from None
    if len(data) > maximum_bytes:
        raise ImageProblem(too_many_bytes(maximum_bytes))
    return data


def _store(data: bytes, folder: Path) -> tuple[str, str]:
    """Check a photo and write it whole, unless it is there; returns its path in ``folder`` and its SHA-256."""
    try:
        ending = check_image(data)
    except ImageProblem as problem:
        if str(problem) != NOT_AN_IMAGE:
            raise
        kinds = (kind for kind, sign in _OTHER_KINDS.items() if sign.search(data[:_BEGINNING]))
        raise ImageProblem(next(kinds, NOT_AN_IMAGE)) from None
    digest = sha256(data).hexdigest()
    path = Path(IMAGES_FOLDER, digest[:2], digest + ending)
    target = folder / path
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder / IMAGES_FOLDER / f".{digest}.{threading.get_ident()}.partial"
        try:
            temporary.write_bytes(data)
            sync_to_disk(temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return path.as_posix(), digest
