"""A local server that behaves like Mastodon's: timelines over HTTP, and the stream over a WebSocket."""

import json
import socket
import threading
import time
from collections import deque
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

TOKEN = "fake-token-of-the-tests-0123456789"
BEGIN_MS = 1_790_000_000_000


def id_of(number):
    """The id of a status that was made so many seconds after the beginning."""
    return str((BEGIN_MS + int(number * 1000)) << 16)


def status(number, text=None, account=(), **values):
    """A public status, made so many seconds after the beginning."""
    made = datetime.fromtimestamp(BEGIN_MS / 1000, timezone.utc) + timedelta(seconds=number)
    return {
        "id": id_of(number),
        "uri": f"https://home.test/users/ana/statuses/{number}",
        "created_at": made.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "account": {
            "id": "1",
            "url": "https://home.test/@ana",
            "note": "<p>Birds</p>",
            "noindex": False,
            **dict(account),
        },
        "content": f"<p>post {number}</p>" if text is None else text,
        "visibility": "public",
        "spoiler_text": "",
        "language": "en",
        "reblog": None,
        "media_attachments": [],
        "tags": [],
        **values,
    }


def event(name, payload):
    return json.dumps({"stream": ["public"], "event": name, "payload": payload}).encode()


class FakeMastodon(ThreadingHTTPServer):
    """``statuses`` are on the timeline. ``faults``, (status, body, headers), are used up before a timeline is given;
    of status 0, the connection is closed without an answer.

    ``messages`` are sent to the connections that are open then. ``stream_faults`` are used up, one a connection:
    (`refuse`, status), (`cut`, n) closes it after n messages, (`half`, n) in the middle of the next one.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, *statuses, token=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = list(statuses)
        self.token = token
        self.faults = deque()
        self.headers = {"X-RateLimit-Limit": "300", "X-RateLimit-Remaining": "299"}  # of every page
        self.requests = []  # (path, parameters) of the timelines
        self.messages = []
        self.stream_faults = deque()
        self.streams = []  # parameters of each connection
        self.open_streams = 0
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self._stopped = threading.Event()
        self._socket = serve(self._send, "127.0.0.1", 0, process_request=self._refuse, close_timeout=0.1)
        self.stream_address = f"ws://127.0.0.1:{self._socket.socket.getsockname()[1]}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        threading.Thread(target=self._socket.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self.shutdown()
        self.server_close()
        self._socket.shutdown()

    def publish(self, *numbers):
        """Put new statuses on the timeline, and send them through the stream."""
        for number in numbers:
            self.statuses.append(status(number))
            self.messages.append(event("update", json.dumps(status(number))))

    def page(self, asked):
        found = sorted(self.statuses, key=lambda status: int(status["id"]))
        if "min_id" in asked:
            found = [status for status in found if int(status["id"]) > int(asked["min_id"])][: int(asked["limit"])]
        if "max_id" in asked:
            found = [status for status in found if int(status["id"]) < int(asked["max_id"])]
        return found[: -int(asked["limit"]) - 1 : -1]

    def _refuse(self, connection, request):
        self.streams.append(dict(parse_qsl(urlsplit(request.path).query)))
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return connection.respond(401, "no\n")
        if self.stream_faults and self.stream_faults[0][0] == "refuse":
            return connection.respond(self.stream_faults.popleft()[1], "not now\n")
        return None

    def _send(self, connection):
        fault, number = self.stream_faults.popleft() if self.stream_faults else ("", -1)
        place = begin = len(self.messages)
        self.open_streams += 1
        try:
            while not self._stopped.is_set() and not (fault and place - begin == number):
                if place < len(self.messages):
                    connection.send(self.messages[place], text=True)
                    place += 1
                else:
                    time.sleep(0.01)
        except ConnectionClosed:
            return
        finally:
            self.open_streams -= 1
        if fault == "half":
            connection.socket.sendall(b'\x81\x7e\x04\x00{"stream": ["pub')
        if fault:
            connection.socket.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        path, asked = urlsplit(self.path).path, dict(parse_qsl(urlsplit(self.path).query))
        server = self.server
        if path.rstrip("/") == "/api/v2/instance":
            return self._send(200, {"configuration": {"urls": {"streaming": server.stream_address}}})
        if not path.startswith("/api/v1/timelines/"):
            return self._send(404, {"error": "Record not found"})
        server.requests.append((path.removeprefix("/api/v1/timelines/"), asked))
        if server.faults:
            return self._send(*server.faults.popleft())
        if server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
            return self._send(401, {"error": "The access token is invalid"})
        return self._send(200, server.page(asked), server.headers)

    def _send(self, status, body, headers=()):
        if status == 0:
            self.close_connection = True
            return
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)


def reset_in(seconds):
    """Headers of a used-up limit."""
    reset = datetime.fromtimestamp(time.time() + seconds, timezone.utc)
    return {"X-RateLimit-Limit": "300", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset.isoformat()}
