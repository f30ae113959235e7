"""Local servers that behave like Bluesky's: Jetstream (a WebSocket), and an account's server with search (HTTP)."""

import json
import socket
import threading
import time
from collections import deque
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

HANDLE = "reader.test"
PASSWORD = "abcd-efgh-ijkl-mnop"
BEGIN_US = 1_790_000_000_000_000


def did_of(number):
    return f"did:plc:{number:024d}"


def commit(number, text="post", operation="create", time_us=None, **record):
    """The event of a post, made a second after the one before."""
    time_us = BEGIN_US + number * 1_000_000 if time_us is None else time_us
    seen = datetime.fromtimestamp(time_us / 1e6, timezone.utc)
    body = {"$type": "app.bsky.feed.post", "text": f"{text} {number}", "langs": ["en"], "createdAt": spelled(seen)}
    event = {"rev": "3l", "operation": operation, "collection": "app.bsky.feed.post", "rkey": f"3k{number:011d}"}
    if operation != "delete":
        event["record"] = {**body, **record}
    return {"did": did_of(number), "time_us": time_us, "kind": "commit", "commit": event}


def view(number, made, text="post", labels=(), author_labels=(), **record):
    """A post as searches give it, seen by the server when it was made."""
    did = did_of(number)
    body = {"$type": "app.bsky.feed.post", "text": f"{text} {number}", "langs": ["en"], "createdAt": spelled(made)}
    return {
        "uri": f"at://{did}/app.bsky.feed.post/3k{number:011d}",
        "cid": "bafy",
        "author": {"did": did, "handle": "a.test", "labels": [{"src": did, "val": label} for label in author_labels]},
        "record": {**body, **record},
        "indexedAt": spelled(made),
        "labels": [{"src": "did:plc:moderation", "val": label} for label in labels],
    }


def spelled(moment):
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class FakeJetstream:
    """Sends ``events`` (dicts, or bytes as they are) from a connection's cursor on, then those that are added.

    ``faults`` are used up, one a connection: (`refuse`, status), (`cut`, n) closes it after n messages, (`half`, n) in the
    middle of the next one, (`silent`, n) sends no more.
    """

    def __init__(self, *events):
        self.events = list(events)
        self.faults = deque()
        self.asked = []  # parameters of each connection
        self._stopped = threading.Event()
        self._server = serve(self._send, "127.0.0.1", 0, process_request=self._refuse, close_timeout=0.1)
        self.address = f"ws://127.0.0.1:{self._server.socket.getsockname()[1]}/subscribe"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._server.shutdown()

    def _refuse(self, connection, request):
        self.asked.append(dict(parse_qsl(urlsplit(request.path).query)))
        if self.faults and self.faults[0][0] == "refuse":
            return connection.respond(self.faults.popleft()[1], "not now\n")
        return None

    def _send(self, connection):
        cursor = int(self.asked[-1].get("cursor", 0))
        fault, number = self.faults.popleft() if self.faults else ("", -1)
        sent = 0
        place = 0
        while not self._stopped.is_set():
            if fault and sent == number:
                break
            if place == len(self.events):
                time.sleep(0.01)
                continue
            event = self.events[place]
            place += 1
            if isinstance(event, dict) and event["time_us"] < cursor:
                continue
            try:
                connection.send(event if isinstance(event, bytes) else json.dumps(event), text=True)
            except ConnectionClosed:
                return
            sent += 1
        if fault == "silent":
            self._stopped.wait(20)
        if fault == "half":
            connection.socket.sendall(b'\x81\x7e\x04\x00{"did": "did:plc:')
        if fault in ("half", "cut"):
            connection.socket.shutdown(socket.SHUT_RDWR)


class FakeService(ThreadingHTTPServer):
    """An account's server. Posts are `postView`s. ``faults``, (status, body, headers), are used up before any answer."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *posts):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.posts = list(posts)
        self.faults = deque()
        self.headers = {}  # of every answer to a search
        self.most_hits = 10_000
        self.requests = []  # (name, parameters or body)
        self.logins = 0
        self.tokens = 0
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def expire_access(self):
        self.tokens += 1

    def searches(self):
        return [asked for name, asked in self.requests if name == "app.bsky.feed.searchPosts"]

    def session(self):
        self.tokens += 1
        return {"accessJwt": f"access-{self.tokens}", "refreshJwt": f"refresh-{self.logins}", "did": did_of(0)}

    def search(self, asked):
        def sort_at(post):
            return min(post["record"]["createdAt"], post["indexedAt"])

        found = [
            post
            for post in sorted(self.posts, key=sort_at, reverse=True)
            if asked.get("since", "") <= sort_at(post) < asked.get("until", "9")
        ]
        begin = int(asked.get("cursor", 0))
        end = min(begin + int(asked["limit"]), self.most_hits)
        page = {"posts": found[begin:end]}
        return page | ({"cursor": str(end)} if end < min(len(found), self.most_hits) else {})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        name, asked = urlsplit(self.path).path.removeprefix("/xrpc/"), dict(parse_qsl(urlsplit(self.path).query))
        self._answer(name, asked)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer(urlsplit(self.path).path.removeprefix("/xrpc/"), json.loads(body) if body else {})

    def _answer(self, name, asked):
        server = self.server
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        server.requests.append((name, asked))
        if server.faults:
            return self._send(*server.faults.popleft())
        if name == "com.atproto.server.createSession":
            if asked != {"identifier": HANDLE, "password": PASSWORD}:
                return self._send(401, {"error": "AuthenticationRequired", "message": "Invalid identifier or password"})
            server.logins += 1
            return self._send(200, server.session())
        if name == "com.atproto.server.refreshSession":
            if token != f"refresh-{server.logins}":
                return self._send(400, {"error": "ExpiredToken", "message": "Token has been revoked"})
            return self._send(200, server.session())
        if token != f"access-{server.tokens}":
            return self._send(400, {"error": "ExpiredToken", "message": "Token has expired"})
        return self._send(200, server.search(asked), server.headers)

    def _send(self, status, body, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response_only(status)  # without a date of its own
        self.send_header("Content-Length", str(len(data)))
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)


def reset_in(seconds):
    """Headers of a used-up limit, by a clock that is an hour off."""
    now = datetime.now(timezone.utc) + timedelta(hours=1)
    return {
        "Date": format_datetime(now, usegmt=True),
        "ratelimit-remaining": "0",
        "ratelimit-reset": str(int(now.timestamp()) + seconds),
    }
