import io
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import PIL.Image
import pytest

from data_prep import photos
from data_prep.photos import PhotoDownloader
from data_prep.posts import PostImage


def file_of(file_format: str, colour="red", **options) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), colour).save(buffer, file_format, **options)
    return buffer.getvalue()


PHOTO = file_of("JPEG")
SHA256 = sha256(PHOTO).hexdigest()
PATH = f"images/{SHA256[:2]}/{SHA256}.jpg"


class PhotoServer(ThreadingHTTPServer):
    """A web server of photos, good and bad; counts requests by path and how many run at once."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requested = Counter()
        self.times = {}
        self.authorizations = set()
        self.running = self.most_running = 0
        self.lock = threading.Lock()
        self.stopping = threading.Event()

    def handle_error(self, request, client_address):
        assert isinstance(sys.exc_info()[1], OSError), sys.exc_info()  # the client hung up


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: PhotoServer

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        name = self.name = self.path.partition("?")[0].rpartition("/")[2]  # a proxy is asked for whole addresses
        with self.server.lock:
            self.server.requested[name] += 1
            self.server.authorizations.add(self.headers["Authorization"])
            self.server.times.setdefault(name, []).append(time.monotonic())
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
        try:
            getattr(self, name, self.missing)()
        finally:
            with self.server.lock:
                self.server.running -= 1

    def answer(self, status=200, body=b"", content_type="image/jpeg", length=None, **headers):
        self.send_response(status)
        headers = {"Content-Type": content_type, "Content-Length": len(body) if length is None else length} | headers
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def first_times(self, count: int) -> bool:
        with self.server.lock:
            return self.server.requested[self.name] <= count

    def missing(self):
        self.answer(404, PHOTO)

    def gone(self):
        self.answer(410)

    def nothing(self):
        self.answer(204)

    def photo(self):
        self.answer(body=PHOTO)

    def named_otherwise(self):
        self.answer(body=file_of("PNG"), content_type="text/html")

    def animation(self):
        frames = [PIL.Image.new("P", (8, 8), level) for level in range(3)]
        buffer = io.BytesIO()
        frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
        self.answer(body=buffer.getvalue())

    def moved(self):
        self.answer(302, Location="/photo?large")

    def moved_around(self):
        self.answer(302, Location="/moved_around")

    def moved_to_a_file(self):
        self.answer(302, Location="file:///etc/hostname")

    def moved_to_nowhere(self):
        self.answer(302, Location="http://[broken/")

    def weak(self):
        self.answer(500) if self.first_times(2) else self.answer(body=PHOTO)

    def down(self):
        self.answer(503)

    def busy(self):
        self.answer(429, Retry_After="1") if self.first_times(1) else self.answer(body=PHOTO)

    def closed_today(self):
        self.answer(429, Retry_After="86400")

    def hanging_up(self):
        self.close_connection = True

    def short(self):
        self.answer(body=PHOTO[:-100], length=len(PHOTO))
        self.close_connection = True

    def short_once(self):
        self.short() if self.first_times(1) else self.answer(body=PHOTO)

    def cut(self):
        self.answer(body=PHOTO[:-100])

    def large(self):
        self.answer(body=PHOTO, length=10**9)

    def endless(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not self.server.stopping.is_set():
            self.wfile.write(b"10000\r\n" + bytes(0x10000) + b"\r\n")

    def silent(self):
        self.answer(body=PHOTO[:100], length=len(PHOTO))
        self.server.stopping.wait()

    def dripping(self):
        self.answer(length=len(PHOTO))
        self.drip(PHOTO)

    def dripping_head(self):
        self.drip(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 10_000)

    def drip(self, data: bytes):
        for byte in data:
            self.wfile.write(bytes([byte]))
            if self.server.stopping.wait(0.02):
                return

    def slow(self):
        self.server.stopping.wait(0.05)
        self.answer(body=PHOTO)

    def page(self):
        self.answer(body=b"<!-- sorry -->\n<!DOCTYPE html>\n<html><svg></svg>Not here</html>")

    def drawing(self):
        self.answer(body=b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>')

    def video(self):
        self.answer(body=b"\0\0\0\x20ftypisom" + bytes(100))

    def text(self):
        self.answer(body=b"no photo")

    def empty(self):
        self.answer()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server():
    server = PhotoServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.stopping.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def download(tmp_path, server):
    """Downloads one photo of the server, quick to lose patience, into `tmp_path / "out"`."""

    def run(name: str, **options) -> PostImage:
        options = {"first_wait": 0.01, "retries": 2, "read_seconds": 0.3, "whole_seconds": 0.8} | options
        with PhotoDownloader(tmp_path / "out", **options) as downloader:
            image = downloader.submit(PostImage(f"{server.url}/{name}", alt_text="a photo")).result()
        return image

    return run


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_photo(download, server, tmp_path):
    assert download("photo?name=orig") == PostImage(f"{server.url}/photo?name=orig", "a photo", PATH, SHA256, None)
    assert files_in(tmp_path / "out") == [PATH]
    assert (tmp_path / "out" / PATH).read_bytes() == PHOTO


def test_content_decides_the_kind(download):
    assert download("named_otherwise").path.endswith(".png")
    assert download("animation").path.endswith(".gif")


def test_redirect(download):
    assert download("moved").path == PATH


@pytest.mark.parametrize(
    ("name", "problem", "requests"),
    [
        ("missing", "404", 1),
        ("gone", "410", 1),
        ("nothing", "204", 1),
        ("moved_around", "too many redirects", 6),
        ("moved_to_a_file", "not a web address", 1),
        ("moved_to_nowhere", "not a web address", 1),
        ("down", "503", 3),
        ("closed_today", "429", 1),
        ("hanging_up", "connection failed", 3),
        ("short", "truncated", 3),
        ("cut", "truncated", 1),
        ("large", "larger than 20 MB", 1),
        ("endless", "larger than 20 MB", 1),
        ("silent", "timed out", 3),
        ("page", "an HTML page", 1),
        ("drawing", "an SVG drawing", 1),
        ("video", "a video", 1),
        ("text", "not an image", 1),
        ("empty", "empty file", 1),
    ],
)
def test_problems(download, server, tmp_path, name, problem, requests):
    options = {"read_seconds": 5, "whole_seconds": 5} if name == "endless" else {}
    assert download(name, **options) == PostImage(f"{server.url}/{name}", "a photo", problem=problem)
    if name != "hanging_up":  # a connection that was open before may be tried once more than that
        assert server.requested[name] == requests
    assert files_in(tmp_path / "out") == []


@pytest.mark.parametrize("name", ["weak", "short_once"])
def test_what_passes_is_tried_again(download, name):
    assert download(name).path == PATH


def test_retry_after_is_honoured(download, server):
    assert download("busy").path == PATH
    first, second = server.times["busy"]
    assert second - first >= 1


def test_retry_after_may_be_a_date():
    date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=100), usegmt=True)
    assert photos._seconds_of(date) == pytest.approx(100, abs=5)
    assert photos._seconds_of("Mon, 01 Jan 2024 00:00:00 GMT") == 0
    assert photos._seconds_of("7") == 7
    for value in ("", "soon", "-3", "Mon, 01 Jan 2024 00:00:00 -0000"):
        assert photos._seconds_of(value) == 0


@pytest.mark.parametrize("name", ["dripping", "dripping_head"])
def test_a_server_that_drips_cannot_hold_a_download(download, name):
    assert download(name, retries=0).problem == "timed out"


def test_a_smaller_limit(download):
    assert download("photo", maximum_bytes=len(PHOTO)).path == PATH
    assert download("photo", maximum_bytes=len(PHOTO) - 1).problem.startswith("larger than 0.000")


def test_nobody_listens(server, download):
    server.url = "http://127.0.0.1:1"
    assert download("photo").problem == "connection failed"


def test_the_environment_names_a_proxy(server, download, monkeypatch):
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", server.url.removeprefix("http://"))
    server.url = "http://photos.invalid"
    assert download("photo").path == PATH


def test_passwords_of_this_machine_stay_here(server, download, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert download("photo").path == PATH
    assert server.authorizations == {None}


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/a.jpg",
        "data:image/png;base64,iVBORw0KGgo=",
        "javascript:alert(1)",
        "http://",
        "http://[::1/a.jpg",
        "http://127.0.0.1:99999/a.jpg",
        "https://a..b/a.jpg",
        "http://xn--\udcff/a.jpg",
        "http://" + "a" * 300 + ".invalid/",
        "http://a b/c.jpg",
        "http://\0/",
        "http://127.0.0.1:1\r\nHost: x/",
        "http://%zz/",
    ],
)
def test_odd_addresses_are_problems(tmp_path, url):
    with PhotoDownloader(tmp_path, retries=0) as downloader:
        image = downloader.submit(PostImage(url)).result()
    assert image.problem in ("not a web address", "connection failed")


def test_one_request_for_an_address_and_one_file_for_a_content(tmp_path, server):
    images = [
        PostImage(f"{server.url}/{name}", alt_text=str(i)) for i, name in enumerate(["slow", "slow", "photo"] * 2)
    ]
    with PhotoDownloader(tmp_path) as downloader:
        done = [future.result() for future in [downloader.submit(image) for image in images]]
    assert [(image.url, image.alt_text) for image in done] == [(image.url, image.alt_text) for image in images]
    assert {image.path for image in done} == {PATH}
    assert server.requested == {"slow": 1, "photo": 1}
    assert files_in(tmp_path) == [PATH]


def test_addresses_are_forgotten_at_last(tmp_path, server, monkeypatch):
    monkeypatch.setattr(photos, "REMEMBERED_URLS", 1)
    with PhotoDownloader(tmp_path) as downloader:
        for name in ("photo", "slow", "photo"):
            assert downloader.submit(PostImage(f"{server.url}/{name}")).result().path == PATH
    assert server.requested["photo"] == 2


def test_a_file_that_is_there_is_not_written_again(download, tmp_path):
    download("photo")
    file = tmp_path / "out" / PATH
    before = file.stat()
    download("photo")
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_leftovers_of_a_killed_process_are_removed(download, tmp_path):
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / ".abc.7.partial").write_bytes(b"half")
    download("photo")
    assert files_in(tmp_path / "out") == [PATH]


def test_a_full_disk_is_no_problem_of_the_photo(download, monkeypatch, tmp_path):
    def fail(path):
        raise OSError("no space left")

    monkeypatch.setattr(photos, "sync_to_disk", fail)
    with pytest.raises(OSError, match="no space left"):
        download("photo")
    assert files_in(tmp_path / "out") == []


def test_requests_at_once(tmp_path, server):
    with PhotoDownloader(tmp_path, workers=5, per_host=3) as downloader:
        futures = [downloader.submit(PostImage(f"{server.url}/slow?{i}")) for i in range(12)]
        assert all(future.result().path == PATH for future in futures)
        assert server.most_running == 3
        server.most_running = 0
        other_name = server.url.replace("127.0.0.1", "localhost")
        futures = [
            downloader.submit(PostImage(f"{url}/slow?-{i}")) for i in range(8) for url in (server.url, other_name)
        ]
        assert all(future.result().path == PATH for future in futures)
        assert server.most_running == 5


def test_local_files(tmp_path):
    allowed, out = tmp_path / "photos", tmp_path / "out"
    (allowed / "a b").mkdir(parents=True)
    (allowed / "a b" / "1.jpg").write_bytes(PHOTO)
    (allowed / "fake.jpg").write_bytes(b"text")
    (allowed / "large.jpg").write_bytes(PHOTO + bytes(5000))
    (tmp_path / "secret.jpg").write_bytes(PHOTO)
    (tmp_path / "photos2").mkdir()
    (tmp_path / "photos2" / "1.jpg").write_bytes(PHOTO)
    (allowed / "inside.jpg").symlink_to("a b/1.jpg")
    (allowed / "outside.jpg").symlink_to("../secret.jpg")
    (allowed / "up").symlink_to("..")
    (allowed / "loop.jpg").symlink_to("loop.jpg")
    stored = ["a b/1.jpg", f"{allowed}/a b/1.jpg", f"file://{allowed}/a%20b/1.jpg", f"FILE:{allowed}/inside.jpg"]
    problems = {
        "fake.jpg": "not an image",
        "large.jpg": "larger than",
        "missing.jpg": "no such file",
        "a b": "no such file",
        "": "no such file",
        "nul\0.jpg": "no such file",
        "x" * 5000: "no such file",
        "loop.jpg": "no such file",
        "../secret.jpg": "local files are not allowed",
        "up/secret.jpg": "local files are not allowed",
        "outside.jpg": "local files are not allowed",
        "../photos2/1.jpg": "local files are not allowed",
        "/etc/hostname": "local files are not allowed",
        f"file://{allowed}/../secret.jpg": "local files are not allowed",
        f"file://{allowed}/%2e%2e/secret.jpg": "local files are not allowed",
        f"file://{allowed}/outside.jpg": "local files are not allowed",
        "file:///dev/zero": "local files are not allowed",
    }
    with PhotoDownloader(out, images_from=allowed, maximum_bytes=5000) as downloader:
        for url in stored:
            assert downloader.submit(PostImage(url)).result() == PostImage(url, None, PATH, SHA256)
        found = {url: downloader.submit(PostImage(url)).result().problem for url in problems}
    assert {url: problem[: len(problems[url])] for url, problem in found.items()} == problems
    assert files_in(out) == [PATH]

    with PhotoDownloader(out) as downloader:
        for url in (*stored, "missing.jpg"):
            assert downloader.submit(PostImage(url)).result().problem == "local files are not allowed"


def test_closing_while_downloads_run(tmp_path, server):
    downloader = PhotoDownloader(tmp_path, workers=3)
    whole = downloader.submit(PostImage(f"{server.url}/photo"))
    assert whole.result().path == PATH
    futures = [
        downloader.submit(PostImage(f"{server.url}/{name}?{i}")) for name in ("silent", "down") for i in range(9)
    ]
    while not server.requested["silent"]:
        time.sleep(0.01)
    started = time.monotonic()
    downloader.close()
    assert time.monotonic() - started < 5  # far less than the downloads' patience
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(timeout=0)
    downloader.close()
    assert files_in(tmp_path) == [PATH]
    assert not [thread for thread in threading.enumerate() if "photo" in thread.name]


def test_ctrl_c_ends_the_process(tmp_path, server):
    program = f"""
from pathlib import Path
from data_prep.photos import PhotoDownloader
from data_prep.posts import PostImage

try:
    with PhotoDownloader(Path({str(tmp_path)!r})) as photos:
        future = photos.submit(PostImage({server.url + "/silent"!r}))
        future.result()
except KeyboardInterrupt:
    print(future.cancelled())
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not server.requested["silent"]:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=15) == (b"True\n", b"")  # a download's own patience is longer
    assert process.returncode == 0
