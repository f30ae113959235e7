"""A web server on this machine that gives files, in whole or in part, and can be told to misbehave."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

LAST_MODIFIED = "Tue, 24 Nov 2026 16:45:01 GMT"


class FakeFileServer:
    """``files`` by their paths. Use as a context manager."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        """Path and range of each."""
        self.headers: Callable[[bytes], dict[str, str]] = lambda content: {"ETag": etag(content)}
        """What names the version of a file."""
        self.gives_parts = True
        self.cut_short: set[int] = set()
        """Numbers of the requests whose answer breaks off in the middle."""
        self.statuses: dict[int, int] = {}
        """Of requests by their number: another answer."""
        self.redirects: dict[str, str] = {}
        self.before: Callable[[int], None] = lambda number: None
        """Called with the number of each request, counted from 0."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeFileServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make this process reach it without a proxy."""
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")


def etag(content: bytes) -> str:
    return f'"{hashlib.sha1(content).hexdigest()}"'


def _handler(server: FakeFileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def answer(self, status: int, body: bytes, sent: int | None = None, **headers: str) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body[:sent])
            if sent is not None:
                self.close_connection = True

        def do_GET(self) -> None:
            number, wanted = len(server.requests), self.headers.get("Range", "")
            server.requests.append(f"{self.path} {wanted}")
            server.before(number)
            path = self.path.partition("?")[0]
            if number in server.statuses:
                return self.answer(server.statuses[number], b"")
            if path in server.redirects:
                return self.answer(302, b"", Location=server.redirects[path])
            if path not in server.files:
                return self.answer(404, b"no such file")
            content = server.files[path]
            headers = server.headers(content)
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
            if not match or not server.gives_parts:
                return self.answer(200, content, **headers)
            start, end = int(match[1]), min(int(match[2]), len(content) - 1)
            if start > end:
                return self.answer(416, b"", Content_Range=f"bytes */{len(content)}")
            part = content[start : end + 1]
            sent = len(part) // 2 if number in server.cut_short else None
            self.answer(206, part, sent, Content_Range=f"bytes {start}-{end}/{len(content)}", **headers)

    return Handler
