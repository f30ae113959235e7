"""A local server that behaves like the X API v2: searches, the filtered stream, its rules, limits and failures."""

import json
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import parse_qsl, urlsplit

TOKEN = "AAAAfaketoken%2Fof-the-tests%3D"
EPOCH_MS = 1288834974657
KEEP_ALIVE = b"\r\n"
CUT = "cut"  # close the connection in mid-chunk
SILENCE = "silence"  # send no more, but keep the connection


def id_at(seconds):
    """The first id of that time."""
    return (int(seconds * 1000) - EPOCH_MS) << 22


def post(number):
    return {"id": str(number), "text": f"post {number}"}


def stream_line(item, *rule_ids):
    item = {"data": item, "includes": {}, "matching_rules": [{"id": rule_id, "tag": ""} for rule_id in rule_ids]}
    return json.dumps(item).encode() + b"\r\n"


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self):
        self.now = 1_790_000_000.0
        self.slept = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.slept += seconds


class FakeX(ThreadingHTTPServer):
    """Posts are dicts with `id` and `text`. ``faults`` are used up before anything is answered as it should be."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, now=time.time):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.now = now
        self.posts = []
        self.faults = deque()  # (status, body, headers), CUT, or bytes to answer with 200
        self.headers = {}  # of every answer to a search
        self.empty_pages = 0  # to be given, with a token, before the next page
        self.may_search_archive = True
        self.requests = []  # (method and path, parameters or body)
        self.rules = []
        self.rule_problem = None
        self.connections = deque()  # of the stream: what each sends, bytes, CUT or SILENCE; then keep-alives
        self.open_streams = 0
        self._tokens = {}
        self._numbers = count(1)
        self.stopped = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add_posts(self, number, first=None):
        """So many posts, a second apart, the newest of which is 100 s old unless ``first`` says when they begin."""
        begin = self.now() - 100 - number if first is None else first
        new = [{"id": str(id_at(begin + n) + n), "text": f"post {n}"} for n in range(number)]
        self.posts += new
        return [post["id"] for post in new]

    def expire_tokens(self):
        self._tokens.clear()

    def asked(self, path):
        return [parameters for route, parameters in self.requests if route.endswith(path)]

    def wait_until_left(self):
        """Wait until no stream has a reader any more."""
        end = time.monotonic() + 5
        while self.open_streams:
            assert time.monotonic() < end
            time.sleep(0.01)

    def stop(self):
        self.stopped.set()
        self.shutdown()
        self.server_close()

    def search(self, endpoint, asked):
        """Status and body of a page."""
        ends = {name: asked[name] for name in ("since_id", "until_id") if name in asked}
        if {"start_time", "end_time"} & asked.keys() and ends:
            return 400, invalid(
                "Invalid use of 'since_id' or 'until_id' in conjunction with 'start_time' or 'end_time'."
            )
        reach = id_at(self.now() - 7 * 24 * 3600)
        for name, value in ends.items():
            if endpoint == "recent" and int(value) < reach:
                hint = f"'{name}' must be a tweet id created after [TIME]. Please use a '{name}' that is larger than"
                return 400, invalid(f"{hint} {reach}", **{name: value})
        below = int(ends.get("until_id", id_at(self.now() - 30)))
        if "next_token" in asked:
            search, below = self._tokens.get(asked["next_token"], (None, 0))
            if search != ends | {"query": asked["query"]}:
                return 400, invalid(
                    "The `next_token` query parameter value is not valid", next_token=asked["next_token"]
                )
        above = max(int(ends.get("since_id", 0)), reach if endpoint == "recent" else 0)
        found = sorted((post for post in self.posts if above < int(post["id"]) < below), key=lambda p: -int(p["id"]))
        size = int(asked["max_results"])
        if self.empty_pages:
            self.empty_pages -= 1
            return 200, {"meta": {"result_count": 0, "next_token": self._token_for(asked, ends, below)}}
        page, more = found[:size], len(found) > size
        meta = {"result_count": len(page)}
        if page:
            meta |= {"newest_id": page[0]["id"], "oldest_id": page[-1]["id"]}
        if more:
            meta["next_token"] = self._token_for(asked, ends, int(page[-1]["id"]))
        return 200, ({"data": page} if page else {}) | {"meta": meta}

    def change_rules(self, body):
        if "delete" in body:
            ids = body["delete"]["ids"]
            self.rules = [rule for rule in self.rules if rule["id"] not in ids]
            return 200, {"meta": {"summary": {"deleted": len(ids), "not_deleted": 0}}}
        if self.rule_problem:
            error = {"value": body["add"][0]["value"], "details": [self.rule_problem], "title": "UnprocessableEntity"}
            return 201, {"meta": {"summary": {"created": 0, "invalid": 1}}, "errors": [error]}
        added = [rule | {"id": str(next(self._numbers))} for rule in body["add"]]
        self.rules += added
        return 201, {"data": added, "meta": {"summary": {"created": len(added)}}}

    def _token_for(self, asked, ends, below):
        token = f"token{next(self._numbers)}"
        self._tokens[token] = (ends | {"query": asked["query"]}, below)
        return token


def invalid(message, **parameters):
    error = {"parameters": {name: [value] for name, value in parameters.items()}, "message": message}
    return {
        "errors": [error],
        "title": "Invalid Request",
        "detail": "One or more parameters to your request was invalid.",
        "type": "https://api.twitter.com/2/problems/invalid-request",
    }


def problem(title, detail=None, kind="about:blank", **more):
    return {"title": title, "detail": detail or title, "type": kind, **more}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        parts = urlsplit(self.path)
        self._serve(parts.path, dict(parse_qsl(parts.query)))

    def do_POST(self):
        self._serve(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, path, asked):
        server = self.server
        server.requests.append((f"{self.command} {path}", asked))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, problem("Unauthorized"))
        if server.faults:
            return self._fail(server.faults.popleft())
        if path == "/2/tweets/search/stream":
            return self._stream()
        if path == "/2/tweets/search/stream/rules":
            if self.command == "POST":
                return self._answer(*server.change_rules(asked))
            return self._answer(200, ({"data": server.rules} if server.rules else {}) | {"meta": {"sent": "now"}})
        endpoint = path.removeprefix("/2/tweets/search/")
        if endpoint == "all" and not server.may_search_archive:
            detail = "When authenticating requests to this endpoint, you must have a higher access level."
            return self._answer(403, problem("Client Forbidden", detail, ".../client-forbidden"))
        return self._answer(*server.search(endpoint, asked), server.headers)

    def _answer(self, status, body, headers=()):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def _fail(self, fault):
        if fault == CUT:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"data": [{"id": "1", "te')
            self.close_connection = True
        elif isinstance(fault, bytes):
            self._answer(200, fault)
        else:
            self._answer(*fault)

    def _stream(self):
        self.server.open_streams += 1
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = self.server.connections.popleft() if self.server.connections else [SILENCE]
        try:
            for part in sent:
                if part == CUT:
                    self.wfile.write(b"10\r\n" + b'{"data": {"id": ' + b'\r\nff\r\n"77", "te')
                    break
                if part == SILENCE:
                    while not self.server.stopped.wait(0.02) and not self._is_closed():
                        pass
                    break
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            else:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:
            pass
        self.server.open_streams -= 1
        self.close_connection = True

    def _is_closed(self):
        """Whether the client closed the connection: then there is an end to read."""
        self.connection.settimeout(0.02)
        try:
            return self.connection.recv(1) == b""
        except TimeoutError:
            return False

    def log_message(self, *_):
        pass
