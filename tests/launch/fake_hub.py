"""A Hub on this machine: a real HTTP server that speaks the calls ``huggingface_hub`` makes to push a model or a data set.

It keeps repositories in memory and records each request. Uploads go by Git LFS, not Xet, whose client is no HTTP we
could answer; :meth:`FakeHub.environment` and :meth:`FakeHub.patch` switch Xet off on the client's side.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

TOKEN = "hf_" + "TestOnlyNoRealToken" + "0123456789abcde"
LFS_SUFFIXES = (".safetensors", ".parquet", ".jpg", ".bin", ".pt", ".pkl")


@dataclass
class Request:
    """One request as it came in."""

    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes


@dataclass
class Repository:
    """What the Hub keeps of one model or data set."""

    private: bool = False
    writable: bool = True
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    lfs_paths: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)


class FakeHub:
    """The server and its state; tests set the state before, and read it after. Use as a context manager."""

    def __init__(self) -> None:
        self.user, self.token, self.role, self.organisations = "tester", TOKEN, "write", ["lab"]
        self.repositories: dict[str, Repository] = {}
        """By id; those of data sets as ``datasets/namespace/name``."""
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: dict[str, tuple[int, str]] = {}
        """Route name -> (status, body) to answer with instead. ``{authorization}`` stands for the request's header."""
        self.delay_seconds = 0.0
        self.unknown_calls: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: os.PathLike | str, token: str | None = TOKEN) -> dict[str, str]:
        """Environment for a process that is to take this for the Hub; ``home`` holds its caches and no login."""
        dropped = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
        kept |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        return kept | ({"HF_TOKEN": token} if token else {})

    def patch(
        self,
        monkeypatch: pytest.MonkeyPatch,
        home: os.PathLike | str,
        token: str | None = TOKEN,
        url: str | None = None,
    ) -> None:
        """Make ``huggingface_hub`` in this process take this (or ``url``) for the Hub.

        It reads its environment when it is imported, so what it made of it is changed instead.
        """
        from huggingface_hub import constants
        from huggingface_hub.utils import close_session

        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE", "HF_OIDC_ID_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(constants, "ENDPOINT", url or self.url)
        monkeypatch.setattr(constants, "HF_URL_HOSTS", constants.HF_URL_HOSTS | {"127.0.0.1"})
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.path.join(home, "token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", os.path.join(home, "stored_tokens"))
        if hasattr(constants, "AGENT_HARNESSES_PATH"):
            monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", os.path.join(home, "registry.json"))
        close_session()  # its client remembers the proxies of an earlier environment

    def texts_outside_authorization(self) -> list[str]:
        """All a request carried, but for the Authorization header: where a token must not be."""
        texts = []
        for request in self.requests:
            texts.append(request.path)
            texts += [f"{key}: {value}" for key, value in request.headers.items() if key != "authorization"]
            texts.append(request.body.decode("latin-1"))
        for repository in self.repositories.values():
            texts += [content.decode("latin-1") for content in repository.files.values()]
            texts += repository.messages
        return texts


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    in_api = r"(?:models/)?((?:(?<=models/)|datasets/)[^/]+/[^/]+)"  # leaves "datasets/" in the id
    routes = [
        ("client_registry", "GET", r"/api/agent-harnesses"),
        ("whoami", "GET", r"/api/whoami-v2"),
        ("create", "POST", r"/api/repos/create"),
        ("validate_yaml", "POST", r"/api/validate-yaml"),
        ("auth_check", "GET", rf"/api/{in_api}/auth-check/write"),
        ("tree", "GET", rf"/api/{in_api}/tree/main"),
        ("preupload", "POST", rf"/api/{in_api}/preupload/main"),
        ("commit", "POST", rf"/api/{in_api}/commit/main"),
        ("info", "GET", rf"/api/{in_api}(?:/revision/main)?"),
        ("lfs_batch", "POST", r"/((?:datasets/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch"),
        ("lfs_upload", "PUT", r"/lfs-storage/([0-9a-f]{64})"),
        ("lfs_verify", "POST", r"/lfs-verify"),
    ]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing: the test's output is not for access logs."""

        def answer(self, status: int, value: object, code: str | None = None) -> None:
            body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(value, str) else "application/json")
            self.send_header("Content-Length", str(len(body)))
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            self.wfile.write(body)

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = self.read_chunks()
            path = urlsplit(self.path).path
            headers = {key.lower(): value for key, value in self.headers.items()}
            hub.requests.append(Request(self.command, self.path, headers, body))
            time.sleep(hub.delay_seconds)
            matches = (
                (name, re.fullmatch(pattern, path)) for name, method, pattern in routes if method == self.command
            )
            name, match = next(((name, match) for name, match in matches if match), ("", None))
            if match is None:
                hub.unknown_calls.append(f"{self.command} {self.path}")
                return self.answer(404, {"error": "no such route in the fake Hub"})
            authorization = self.headers.get("Authorization", "")
            if name in hub.faults:
                status, text = hub.faults[name]
                return self.answer(status, text.replace("{authorization}", authorization))
            # The storage behind the Hub is another host: its addresses are signed, and it gets no token.
            if name == "lfs_upload":
                assert not authorization, "the Hub's token was sent to the storage"
            elif name != "client_registry" and authorization != f"Bearer {hub.token}":
                return self.answer(401, {"error": "Invalid username or password."})
            return getattr(self, f"on_{name}")(body, *match.groups())

        do_GET = do_POST = do_PUT = handle_request

        def read_chunks(self) -> bytes:
            content = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content

        def on_client_registry(self, _: bytes) -> None:  # what the client fills its User-Agent from
            self.answer(200, {"standardEnvVars": [], "harnesses": {}})

        def on_whoami(self, _: bytes) -> None:
            access = {"displayName": "test", "role": hub.role}
            organisations = [{"name": name, "type": "org"} for name in hub.organisations]
            auth = {"type": "access_token", "accessToken": access}
            self.answer(200, {"name": hub.user, "type": "user", "orgs": organisations, "auth": auth})

        def on_create(self, body: bytes) -> None:
            asked = json.loads(body)
            namespace = asked["organization"] or hub.user
            kind = asked.get("type") or "model"
            repo_id = ("datasets/" if kind == "dataset" else "") + f"{namespace}/{asked['name']}"
            if namespace not in (hub.user, *hub.organisations):
                problem = f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"'
                return self.answer(403, {"error": problem})
            if repo_id in hub.repositories:
                return self.answer(
                    409, {"error": f"You already created this {kind} repo", "url": f"{hub.url}/{repo_id}"}
                )
            hub.repositories[repo_id] = Repository(private=asked.get("visibility") == "private")
            return self.answer(200, {"url": f"{hub.url}/{repo_id}", "name": repo_id})

        def repository(self, repo_id: str) -> Repository | None:
            if repo_id not in hub.repositories:
                self.answer(404, {"error": "Repository not found"}, code="RepoNotFound")
            return hub.repositories.get(repo_id)

        def on_info(self, _: bytes, repo_id: str) -> None:
            if repository := self.repository(repo_id):
                self.answer(200, {"id": repo_id, "modelId": repo_id, "private": repository.private, "sha": "a" * 40})

        def on_auth_check(self, _: bytes, repo_id: str) -> None:
            if repository := self.repository(repo_id):
                if repository.writable:
                    self.answer(200, {})
                else:
                    self.answer(403, {"error": "Forbidden"})

        def on_validate_yaml(self, body: bytes) -> None:
            from huggingface_hub.repocard import RepoCard

            try:
                RepoCard(json.loads(body)["content"])
            except ValueError as error:
                return self.answer(400, {"errors": [{"message": str(error)}], "warnings": []})
            return self.answer(200, {"errors": [], "warnings": []})

        def on_tree(self, _: bytes, repo_id: str) -> None:
            if repository := self.repository(repo_id):
                entries = [
                    {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}
                    for path, content in repository.files.items()
                ]
                self.answer(200, entries)

        def on_preupload(self, body: bytes, repo_id: str) -> None:
            if repository := self.repository(repo_id):
                files = []
                for asked in json.loads(body)["files"]:
                    mode = "lfs" if asked["path"].endswith(LFS_SUFFIXES) else "regular"
                    entry = {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
                    if (content := repository.files.get(asked["path"])) is not None:
                        is_lfs = mode == "lfs"
                        entry["oid"] = hashlib.sha256(content).hexdigest() if is_lfs else _git_hash(content)
                    files.append(entry)
                self.answer(200, {"files": files})

        def on_lfs_batch(self, body: bytes, repo_id: str) -> None:
            if self.repository(repo_id) is None:
                return
            objects = []
            for asked in json.loads(body)["objects"]:
                entry = {"oid": asked["oid"], "size": asked["size"]}
                if asked["oid"] not in hub.blobs:
                    href = f"{hub.url}/lfs-storage/{asked['oid']}?X-Amz-Signature=0123456789abcdef"
                    entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{hub.url}/lfs-verify"}}
                objects.append(entry)
            self.answer(200, {"transfer": "basic", "objects": objects})

        def on_lfs_upload(self, body: bytes, oid: str) -> None:
            if hashlib.sha256(body).hexdigest() != oid:
                return self.answer(400, {"error": "the content is not what its hash says"})
            hub.blobs[oid] = body
            return self.answer(200, {})

        def on_lfs_verify(self, body: bytes) -> None:
            asked = json.loads(body)
            there = len(hub.blobs.get(asked["oid"], b"")) == asked["size"]
            self.answer(200 if there else 404, {})

        def on_commit(self, body: bytes, repo_id: str) -> None:
            if (repository := self.repository(repo_id)) is None:
                return
            if not repository.writable:
                return self.answer(403, {"error": "Forbidden"})
            files = dict(repository.files)
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "header":
                    repository.messages.append(value["summary"])
                elif item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = hub.blobs[value["oid"]]
                    repository.lfs_paths.add(value["path"])
                elif item["key"] == "deletedFile":
                    del files[value["path"]]
                else:
                    return self.answer(400, {"error": f"unknown operation {item['key']}"})
            repository.files = files
            oid = hashlib.sha1(body).hexdigest()
            return self.answer(200, {"commitUrl": f"{hub.url}/{repo_id}/commit/{oid}", "commitOid": oid})

    return Handler


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def fake_hub():
    """A running :class:`FakeHub`; fails the test if a call came that it does not know."""
    with FakeHub() as hub:
        yield hub
        assert not hub.unknown_calls, hub.unknown_calls
