"""Texts of Parquet files on a web server: streamed once, of one version, gone on with where a reading ended."""

import io
import os
import re
import signal
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_file_server import LAST_MODIFIED, FakeFileServer, etag
from interrupted import interrupted_at
from tiny_models import make_encoder, make_texts, make_tokenizer

from data_prep import remote_parquet, text_batches
from data_prep.remote_parquet import RemoteFile, check_address, iterate_remote_texts, remote_input
from data_prep.text_batches import BEGIN, Place, ReadingInterrupted
from launch import loop
from launch.errors import InputError
from launch.interruption import Interrupted, stopping_when_asked
from launch.stage import read_manifest
from pretrain import mlm, tokenizing
from pretrain.cutter import Cutter
from pretrain.tokenizing import tokenize

SPLITS = ("train", "validation")
BOTH = [make_texts(40, 1), [*make_texts(25, 2), None, "", " "]]
TEXTS = [text for values in BOTH for text in values if text and text.strip()]


def parquet(texts: list[str | None], column: str = "text", kind: pa.DataType | None = None) -> bytes:
    """A file whose rows lie in several groups, with a column beside that is much larger."""
    buffer = io.BytesIO()
    others = [f"{number:04d}" * 500 for number in range(len(texts))]
    table = pa.table({"other": others, column: pa.array(texts, kind or pa.string())})
    pq.write_table(table, buffer, row_group_size=9, compression="none", use_dictionary=False)
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(text_batches, "TEXTS_AT_ONCE", 7)
    monkeypatch.setattr(remote_parquet, "WAIT_SECONDS", (0.01, 0.01))
    with FakeFileServer() as server:
        server.patch(monkeypatch)
        server.files |= {f"/{name}.parquet": parquet(texts) for name, texts in zip("ab", BOTH, strict=True)}
        yield server


def addresses(server: FakeFileServer) -> str:
    return f"{server.url}/a.parquet {server.url}/b.parquet"


def pinned(server: FakeFileServer, data: str | None = None) -> list[RemoteFile]:
    return RemoteFile.parse_all(remote_input(data or addresses(server), Path("none")))


def read(files: list[RemoteFile], start: Place = BEGIN, share: float = 0.3) -> list[tuple[str, str, Place | None]]:
    return [
        (batch.split, text, batch.next_place)
        for batch in iterate_remote_texts(files, SPLITS, "text", share, start)
        for text in batch.texts
    ]


def test_each_address_is_pinned_by_the_version_of_its_file(server):
    length = len(server.files["/a.parquet"])
    tag = etag(server.files["/a.parquet"])
    (file,) = pinned(server, f"{server.url}/a.parquet")
    assert file == RemoteFile(f"{server.url}/a.parquet", f"ETag {tag}", length)
    assert server.requests == ["/a.parquet bytes=0-3"]
    described = remote_input(addresses(server), Path("none"))
    assert " ".join(map(str, RemoteFile.parse_all(described))) == described and len(pinned(server)) == 2
    server.headers = lambda content: {"ETag": 'W/"weak"', "Last-Modified": LAST_MODIFIED}
    assert pinned(server)[0].version == "Last-Modified 2026-11-24T16:45:01+00:00"


def test_texts_come_file_by_file_and_only_their_column_is_fetched(server):
    files = pinned(server)
    server.requests.clear()
    rows = read(files, share=1e-9)
    assert [text for _, text, _ in rows] == TEXTS and {split for split, *_ in rows} == {"train"}
    assert sum(batch.left_out for batch in iterate_remote_texts(files, SPLITS, "text", 0.02)) == 3
    ranges = [tuple(map(int, re.findall(r"\d+", request))) for request in server.requests]
    fetched = sum(end + 1 - start for start, end in ranges if end + 1 - start < 50_000)
    assert len(ranges) > 8 and fetched < 0.2 * sum(map(len, server.files.values()))
    parts = {split: [text for where, text, _ in read(files) if where == split] for split in SPLITS}
    assert sorted(sum(parts.values(), [])) == sorted(TEXTS) and 10 < len(parts["validation"]) < 35


def test_a_reading_begins_at_any_place_and_fetches_no_groups_before_it(server):
    files = pinned(server)
    everything = read(files)
    places = [batch.next_place for batch in iterate_remote_texts(files, SPLITS, "text", 0.3) if batch.next_place]
    assert places == sorted(set(places)) and len(places) > 8 and places[-1] == Place(1, 28)
    for place in places[::3]:
        server.requests.clear()
        rest = read(files, place)
        assert len(rest) < len(everything)
        for split in SPLITS:
            texts, later = ([text for where, text, _ in rows if where == split] for rows in (everything, rest))
            assert later == texts[len(texts) - len(later) :]
        assert place.shard == 0 or not any("/a.parquet" in request for request in server.requests)
    assert read(files, places[-1]) == []


@pytest.mark.parametrize(
    "address, problem",
    [
        ("http://example.org/a.parquet", "http://example.org/a.parquet: without https"),
        ("https://me:hunter2@example.org/a.parquet", "https://example.org/a.parquet: the address holds a user's name"),
        ("https://hunter2@example.org/a.parquet", "https://example.org/a.parquet: the address holds a user's name"),
        ("https://example.org/a?download=1&sig=hunter2", "https://example.org/a: what follows the path in its"),
        ("https://example.org/a?hunter2", "https://example.org/a: what follows the path in its"),
        ("https://example.org/a#hunter2", "https://example.org/a: what follows the path in its"),
        ("https:///a.parquet", "https:///a.parquet: not an address"),
        ("hub:lab/tweets", "hub:lab/tweets: not an address"),
        ("https://hunter2@[1/a?hunter2", "[1/a: not an address"),
        ("https://example.org:x/a", "not an address"),
    ],
)
def test_addresses_that_are_refused(address, problem):
    with pytest.raises(InputError) as raised:
        check_address(address)
    assert problem in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_addresses_that_are_taken():
    for address in (
        "https://example.org/a.parquet",
        "https://example.org/a?download=true&version=2",
        "http://localhost:8/a",
    ):
        check_address(address)
    check_address("http://[::1]:8000/a.parquet")


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda server: server.files.clear(), "cannot be read (the server answered 404 Not Found). Check the address"),
        (lambda server: server.statuses.update({0: 403}), "cannot be read (the server answered 403 Forbidden)"),
        (lambda server: setattr(server, "gives_parts", False), "the server gives no parts of it (range requests)"),
        (lambda server: setattr(server, "headers", lambda _: {}), "the server does not tell versions of it apart"),
        (lambda server: setattr(server, "headers", lambda _: {"ETag": 'W/"a"'}), "the server does not tell versions"),
        (
            lambda server: setattr(server, "headers", lambda _: {"ETag": '"a"', "Content-Encoding": "br"}),
            "the server gives no parts",
        ),
        (lambda server: server.files.update({"/a.parquet": b"<html>"}), "not a Parquet file. Give the address of the"),
        (lambda server: server.files.update({"/a.parquet": b""}), "not a Parquet file. Give the address of the file"),
    ],
)
def test_servers_that_are_refused(server, change, problem):
    change(server)
    with pytest.raises(InputError, match=re.escape(f"{server.url}/a.parquet: {problem}")) as raised:
        remote_input(addresses(server), Path("none"))
    assert not isinstance(raised.value, ReadingInterrupted) and "\n" not in str(raised.value)


def test_redirects_are_followed_but_not_to_where_anybody_could_answer(server):
    server.redirects["/moved"] = "/a.parquet"
    (file,) = pinned(server, f"{server.url}/moved")
    assert file.url == f"{server.url}/moved" and len(read([file])) == 40
    server.redirects["/moved"] = "http://example.org/a.parquet?sig=hunter2"
    with pytest.raises(InputError, match="^example.org: an address led there without https") as raised:
        pinned(server, f"{server.url}/moved")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "content, problem",
    [
        (parquet(["a"], "tweet"), "no column 'text'. It has other, tweet: name one with --text_column."),
        (parquet([["a"]], kind=pa.list_(pa.string())), "the column 'text' is of list<"),
        (b"PAR1 not Parquet PAR1", "cannot be read ("),
    ],
)
def test_files_that_are_refused(server, content, problem):
    server.files["/a.parquet"] = content
    with pytest.raises(InputError, match=re.escape(f"{server.url}/a.parquet: {problem}")) as raised:
        read(pinned(server))
    assert not isinstance(raised.value, ReadingInterrupted) and "\n" not in str(raised.value)


def test_other_splits_are_not_there(server):
    with pytest.raises(InputError, match="no split 'test'"):
        next(iterate_remote_texts(pinned(server), ["test"], "text", 0.3))


def test_a_connection_that_drops_is_made_again(server):
    files = pinned(server)
    first = len(server.requests)
    server.cut_short |= {first, first + 1, first + 4}
    server.statuses |= {first + 6: 503}
    assert [text for _, text, _ in read(files, share=1e-9)] == TEXTS
    assert server.requests[first] == server.requests[first + 1] == server.requests[first + 2]


@pytest.mark.parametrize("status, attempts", [(503, 3), (404, 1)])
def test_a_server_that_goes_away_interrupts(server, status, attempts):
    files = pinned(server)
    first = len(server.requests)
    server.statuses |= {number: status for number in range(first + 3, first + 100)}
    with pytest.raises(
        ReadingInterrupted, match=rf"cannot be read on \(the server answered {status} .*The same command"
    ):
        read(files)
    assert len(server.requests) == first + 3 + attempts


@pytest.mark.parametrize("shorter", [True, False])
@pytest.mark.parametrize("after", [0, 4])
def test_a_file_that_changes_stops_the_reading(server, shorter, after):
    files = pinned(server)
    first = len(server.requests)
    changed = parquet(make_texts(3 if shorter else 90, 8))

    def change(number: int) -> None:
        if number == first + after:
            server.files["/a.parquet"] = changed

    server.before = change
    with pytest.raises(InputError, match="a.parquet: the file has changed while it was read: it was ETag") as raised:
        read(files)
    assert not isinstance(raised.value, ReadingInterrupted)


def test_a_version_by_its_date_and_length_is_watched_too(server):
    server.headers = lambda _: {"Last-Modified": LAST_MODIFIED}
    files = pinned(server)
    assert len(read(files)) == len(TEXTS)
    server.headers = lambda _: {"Last-Modified": LAST_MODIFIED.replace("16:45:01", "16:45:02")}
    with pytest.raises(InputError, match="it was Last-Modified 2026-11-24T16:45:01.00:00, .* and is Last-Modified"):
        read(files)
    server.headers = lambda _: {}
    with pytest.raises(InputError, match="the file has changed while it was read"):
        read(files)


def test_when_the_server_goes_away_what_was_read_is_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "SAVED_EVERY_SECONDS", 0.0)
    files, cutter, starts = pinned(server), Cutter(make_tokenizer(), 64), []

    def texts(start):
        starts.append(start)
        return iterate_remote_texts(files, SPLITS, "text", 0.3, start)

    first = len(server.requests)
    expected = tokenize(texts, SPLITS, "c", cutter, tmp_path / "expected")
    last = len(server.requests) - first - 1
    first = len(server.requests)
    server.statuses |= {number: 503 for number in range(first + last, first + last + 3)}
    with pytest.raises(ReadingInterrupted):
        tokenize(texts, SPLITS, "c", cutter, tmp_path / "cache")
    stores = tokenize(texts, SPLITS, "c", cutter, tmp_path / "cache")
    assert starts[:2] == [BEGIN, BEGIN] and starts[2].shard == 1 and starts[2].row > 0
    for split, store in stores.items():
        assert store.tokens.tolist() == expected[split].tokens.tolist() and store.left_out == expected[split].left_out


def test_a_signal_is_heard_while_a_server_keeps_the_reading_waiting(server):
    files, heard = pinned(server), threading.Event()
    first = len(server.requests)

    def hang(number: int) -> None:
        if number == first + 4:
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard.wait(30)

    server.before = hang
    with stopping_when_asked(), pytest.raises(Interrupted):
        read(files)
    heard.set()


def arguments(encoder: Path, data: str, output: Path) -> list[str]:
    common = ["--row_length=64", "--tokens_per_step=256", "--run.precision=fp32", "--schedule.steps=3"]
    common += ["--validation_share=0.3", "--run.checkpoint_steps=1", f"--token_cache={output.with_name('cache')}"]
    return [f"--encoder={encoder}", f"--data={data}", f"--output={output}", *common]


def test_the_stage_trains_on_the_version_it_began_with(server, tmp_path, monkeypatch, capsys):
    command = arguments(make_encoder(tmp_path / "encoder"), addresses(server), tmp_path / "out")
    described = remote_input(addresses(server), Path("none"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "seed_dropout", interrupted_at(2))
        assert mlm.main(command) == 130
    original = server.files["/b.parquet"]
    server.files["/b.parquet"] = parquet(make_texts(20, 9))
    assert mlm.main(command) == 2, "of another version now"
    assert "from other settings or inputs (input data: content changed)" in capsys.readouterr().err
    server.files["/b.parquet"] = original

    server.requests.clear()
    server.statuses |= {0: 503}
    assert mlm.main(command) == 0, "all texts are there already"
    assert server.requests == ["/a.parquet bytes=0-3"]
    server.statuses.clear()
    manifest = read_manifest(tmp_path / "out")
    assert manifest["inputs"]["data"] == {"path": described, "sha256": described, "manifest": None}
    counts = {split: manifest["facts"]["data"][split]["texts"] for split in SPLITS}
    assert sum(counts.values()) == len(TEXTS) and manifest["rows"]["rejected"] == {"empty": 3}
    assert mlm.main(command) == 0, "up to date"
    assert mlm.main([*command, "--dry_run=true"]) == 0 and "up to date" in capsys.readouterr().out
    assert "a.parquet" in (tmp_path / "out/README.md").read_text()


def test_the_stage_tells_of_a_server_that_is_not_there_and_leaves_nothing(server, tmp_path, capsys):
    encoder = make_encoder(tmp_path / "encoder")
    server.__exit__()
    assert mlm.main(arguments(encoder, f"{server.url}/a.parquet", tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "/a.parquet: cannot be read (" in error and "Check the address and the network." in error
    assert "Traceback" not in error and not list(tmp_path.glob("out*"))
