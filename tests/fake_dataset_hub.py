"""A Hub on this machine that has a data set to read, in several commits: the calls that `datasets` makes to stream one."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http, close_session

NAME = "lab/tweets"


class FakeDatasetHub:
    """The server; ``commits`` maps each commit to its files, ``main`` is the newest. Use as a context manager."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.main = ""
        self.requests: list[str] = []
        self.unknown_calls: list[str] = []
        self.answers_left: int | None = None
        """After so many it is down."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeDatasetHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def push(self, files: dict[str, bytes]) -> str:
        """A new commit on main."""
        self.main = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[self.main] = files
        return self.main

    def patch(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """Make this process take it for the Hub, with caches in ``home``."""
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", home / "datasets" / "downloads")
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", self.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 1)
        monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0.01)
        monkeypatch.setattr(
            _http, "time", SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
        )  # between retries
        close_session()


def _handler(hub: FakeDatasetHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def answer_json(self, value: object, status: int = 200, **headers: str) -> None:
            self.answer(status, json.dumps(value).encode(), **headers)

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            hub.requests.append(f"{self.command} {self.path}")
            if hub.answers_left is not None:
                hub.answers_left -= 1
            if hub.answers_left is not None and hub.answers_left < 0:
                return self.answer_json({"error": "down for maintenance"}, 503)
            path = unquote(urlsplit(self.path).path)
            if match := re.fullmatch(rf"/datasets/{NAME}/resolve/([^/]+)/(.+)", path):
                return self.on_file(*match.groups())
            if path == "/api/agent-harnesses":  # what the client fills its User-Agent from
                return self.answer_json({"standardEnvVars": [], "harnesses": {}})
            if not (
                match := re.fullmatch(rf"/api/datasets/{NAME}(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path)
            ):
                hub.unknown_calls.append(f"{self.command} {self.path}")
                return self.answer_json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            call, revision, folder = match.groups()
            commit = hub.main if revision in (None, "main") else revision
            if commit not in hub.commits:
                return self.answer_json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            files = hub.commits[commit]
            if call in (None, "revision"):
                siblings = [{"rfilename": name} for name in files]
                return self.answer_json({"id": NAME, "sha": commit, "private": False, "siblings": siblings, "tags": []})
            if call == "paths-info":
                asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
                return self.answer_json(
                    [entry for name in asked for entry in entries(files, "") if entry["path"] == name]
                )
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
            found = [
                entry for entry in entries(files, folder or "") if recursive or is_directly_in(entry, folder or "")
            ]
            if not found:
                return self.answer_json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            return self.answer_json(found)

        do_HEAD = do_POST = do_GET

        def on_file(self, commit: str, name: str) -> None:
            files = hub.commits[hub.main if commit == "main" else commit]
            if name not in files:
                return self.answer_json({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            content = files[name]
            facts = {"ETag": f'"{oid(content)}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, end = int(match[1]), min(int(match[2] or len(content) - 1), len(content) - 1)
                facts["Content_Range"] = f"bytes {start}-{end}/{len(content)}"
                return self.answer(206, content[start : end + 1], **facts)
            return self.answer(200, content, **facts)

    return Handler


def entries(files: dict[str, bytes], folder: str) -> list[dict]:
    """Files and folders within a folder, as the Hub lists them."""
    folders = {"/".join(name.split("/")[:depth]) for name in files for depth in range(1, name.count("/") + 1)}
    found = [{"type": "directory", "path": name, "oid": oid(name.encode()), "size": 0} for name in sorted(folders)]
    found += [{"type": "file", "path": name, "oid": oid(text), "size": len(text)} for name, text in files.items()]
    return [entry for entry in found if not folder or entry["path"].startswith(f"{folder}/")]


def is_directly_in(entry: dict, folder: str) -> bool:
    return "/" not in entry["path"].removeprefix(f"{folder}/" if folder else "")


def oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
