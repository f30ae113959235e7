import json
import logging
import os
import subprocess
import sys
import time
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

import pyarrow.parquet
import pytest
from fake_x import CUT, SILENCE, TOKEN, Clock, FakeX, post, problem, stream_line

from data_prep.sources.x import XSettings, open_source
from launch.errors import InputError

DAY = 24 * 3600
QUERY = "rain lang:en"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def server(clock, monkeypatch):
    monkeypatch.setenv("X_BEARER_TOKEN", TOKEN)
    fake = FakeX(clock)
    yield fake
    fake.stop()


def settings(server, **values):
    values = {"query": QUERY, "page_size": 10, "output": Path("posts"), "address": server.address} | values
    return XSettings(**values)


def fetch(server, clock, position=None, **values):
    return open_source(settings(server, **values), clock, clock.sleep).fetch(position)


def ids_of(fetched):
    return [post.id for some in fetched for post in some.posts]


def at(seconds):
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def test_a_search_gives_all_pages_newest_first_and_asks_for_the_fields(server, clock):
    ids = server.add_posts(25)
    fetched = list(fetch(server, clock))
    assert ids_of(fetched) == ids[::-1]
    assert fetched[-1].position["since_id"] == ids[-1]
    asked = server.asked("search/recent")
    assert len(asked) == 3
    fields = set(",".join(asked[0][name] for name in asked[0] if name.endswith((".fields", "expansions"))).split(","))
    assert {"lang", "created_at", "note_tweet", "edit_history_tweet_ids", "referenced_tweets", "withheld"} <= fields
    assert {"attachments.media_keys", "referenced_tweets.id", "alt_text", "url", "protected"} <= fields


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("pages", [1, 2, 3])
def test_an_interrupted_search_goes_on_and_then_takes_what_is_newer(server, clock, pages, expired):
    old = server.add_posts(35)
    first = list(islice(fetch(server, clock), pages))
    clock.now += 3600
    new = server.add_posts(15)
    if expired:
        server.expire_tokens()
    position = json.loads(json.dumps(first[-1].position))
    second = list(fetch(server, clock, position))
    assert ids_of(first) + ids_of(second) == old[::-1] + new[::-1]
    assert len(server.asked("recent")) == pages + (4 - pages) + 2 + expired


def test_a_search_interrupted_again_while_it_takes_what_is_newer_leaves_no_gap(server, clock):
    had, position = server.add_posts(12)[::-1], None
    position = list(fetch(server, clock))[-1].position
    expected = list(had)
    for _ in range(3):
        clock.now += 600
        expected += server.add_posts(25)[::-1]
        some = list(islice(fetch(server, clock, position), 2))
        had += ids_of(some)
        position = some[-1].position
    had += ids_of(fetch(server, clock, position))
    assert sorted(had) == sorted(expected)


def test_a_finished_search_asks_once_for_what_is_newer(server, clock):
    ids = server.add_posts(5)
    position = list(fetch(server, clock))[-1].position
    server.requests.clear()
    again = list(fetch(server, clock, position))
    assert ids_of(again) == [] and again[-1].position == position
    assert [asked["since_id"] for asked in server.asked("recent")] == [ids[-1]]


def test_empty_pages_do_not_end_a_search(server, clock):
    ids = server.add_posts(15)
    server.empty_pages = 2
    assert ids_of(fetch(server, clock)) == ids[::-1]


def test_a_search_interrupted_at_an_empty_page_goes_on_below_the_oldest_post(server, clock):
    ids = server.add_posts(25)
    fetched = fetch(server, clock)
    first = [next(fetched)]
    server.empty_pages = 1
    first.append(next(fetched))
    server.expire_tokens()
    assert ids_of(first) + ids_of(fetch(server, clock, first[-1].position)) == ids[::-1]


def test_recent_search_goes_on_after_more_than_seven_days_and_tells_of_the_gap(server, clock, caplog):
    server.add_posts(5)
    position = list(fetch(server, clock))[-1].position
    clock.now += 10 * DAY
    new = server.add_posts(15)
    assert ids_of(fetch(server, clock, position)) == new[::-1]
    assert sum("reaches back 7 days" in record.message for record in caplog.records) == 1


def test_an_interrupted_recent_search_ends_where_its_rest_is_out_of_reach(server, clock):
    server.add_posts(25)
    (some,) = islice(fetch(server, clock), 1)
    clock.now += 10 * DAY
    new = server.add_posts(5)
    assert ids_of(fetch(server, clock, some.position)) == new[::-1]


def test_a_search_keeps_to_since_and_before(server, clock):
    ids = server.add_posts(30, first=clock.now - 1000)
    some = fetch(server, clock, since=at(clock.now - 990), before=at(clock.now - 980), endpoint="all")
    assert ids_of(some) == ids[10:20][::-1]


def test_a_search_asks_for_nothing_after_until_and_goes_on_with_a_later_one(server, clock):
    ids = server.add_posts(30, first=clock.now - 1000)
    first = list(fetch(server, clock, until=at(clock.now - 990)))
    assert ids_of(first) == ids[:11][::-1]
    position = first[-1].position
    assert list(fetch(server, clock, position, until=at(clock.now - 995))) == []
    assert ids_of(fetch(server, clock, position, until=at(clock.now - 985))) == ids[11:16][::-1]


def test_the_full_archive_goes_back_thirty_days_at_one_request_a_second(server, clock):
    server.add_posts(3, first=clock.now - 31 * DAY)
    ids = server.add_posts(25, first=clock.now - 29 * DAY)
    assert ids_of(fetch(server, clock, endpoint="all", page_size=10)) == ids[::-1]
    assert clock.slept >= len(server.asked("all")) == 3


@pytest.mark.parametrize("name", ["x-rate-limit", "x-app-limit-24hour"])
def test_a_rate_limit_is_waited_out_with_signs_of_life(server, clock, name):
    ids = server.add_posts(5)
    begin = clock.now
    server.faults.append(
        (429, problem("Too Many Requests"), {f"{name}-reset": int(begin + 300), f"{name}-remaining": 0})
    )
    fetched = list(fetch(server, clock))
    assert ids_of(fetched) == ids[::-1]
    assert 300 <= clock.now - begin <= 303
    assert len(fetched) >= 300
    assert len(server.requests) == 2


def test_a_rate_limit_that_only_says_how_long_is_waited_out(server, clock):
    ids = server.add_posts(5)
    server.faults.append((429, b"", {"Retry-After": 40}))
    assert ids_of(fetch(server, clock)) == ids[::-1]
    assert 40 <= clock.slept <= 42


def test_a_used_up_limit_is_waited_out_before_the_next_request(server, clock):
    server.add_posts(15)
    begin = clock.now
    server.headers = {"x-rate-limit-remaining": 0, "x-rate-limit-reset": int(begin + 60)}
    first, *_, last = fetch(server, clock)
    assert len(first.posts) == 10 and len(last.posts) == 5
    assert 60 <= clock.now - begin <= 62
    assert len(server.requests) == 2


def test_passing_failures_are_tried_again(server, clock, caplog):
    ids = server.add_posts(15)
    server.faults += [
        (503, b"<html>", {}),
        CUT,
        b'{"data": [{',
        b'{"data": []}',
        (500, problem("Internal Server Error"), {}),
    ]
    assert ids_of(fetch(server, clock)) == ids[::-1]
    said = [record.message for record in caplog.records if record.name == "msb_ner"]
    assert len(said) == 5 and "503" in said[0] and "IncompleteRead" in said[1]


def test_a_server_that_is_not_there_is_waited_for(server, clock):
    address = f"http://127.0.0.1:{server.server_address[1]}"
    server.stop()
    waiting = fetch(server, clock, address=address)
    assert [some.posts for some in islice(waiting, 20)] == [[]] * 20


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ((400, {"errors": [{"message": "There were errors: no viable alternative"}]}, {}), "no viable.*Mend"),
        ((402, problem("CreditsDepleted", "No credits"), {}), "No credits.*Add credits"),
        ((403, problem("Client Forbidden", "not attached to a Project"), {}), "not attached.*access level"),
        ((404, b"no such page", {}), "404.*Not Found.*--address"),
        ((429, problem("UsageCapExceeded", "Monthly product cap", ".../problems/usage-capped"), {}), "Monthly.*period"),
    ],
)
def test_what_waiting_does_not_mend_is_an_error(server, clock, fault, words):
    server.faults.append(fault)
    with pytest.raises(InputError, match=words):
        list(fetch(server, clock))
    assert clock.slept == 0


def test_the_full_archive_may_be_closed(server, clock):
    server.may_search_archive = False
    with pytest.raises(InputError, match="403.*must have a higher access level.*--endpoint recent"):
        list(fetch(server, clock, endpoint="all"))


def test_a_wrong_key_is_an_error_and_is_not_shown(server, clock, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("X_BEARER_TOKEN", "AAAA-not-the-key")
    server.faults.append((503, problem("wrong: AAAA-not-the-key"), {}))
    with pytest.raises(InputError, match="401.*X_BEARER_TOKEN") as error:
        list(fetch(server, clock))
    assert "AAAA-not-the-key" not in f"{error.value}{caplog.text}" and "[redacted]" not in str(error.value)


def test_a_key_that_cannot_be_one_is_not_shown(server, clock, tmp_path):
    (tmp_path / "key").write_text("not really a key\n")
    with pytest.raises(InputError, match="bearer token") as error:
        fetch(server, clock, token_file=tmp_path / "key")
    assert "really" not in str(error.value)


def test_the_key_is_in_no_log_and_no_position(server, clock, caplog):
    caplog.set_level(logging.DEBUG)
    server.add_posts(15)
    server.faults += [(503, problem(TOKEN), {}), CUT]
    fetched = list(fetch(server, clock))
    assert len(caplog.records) > 3
    assert TOKEN not in caplog.text + repr(fetched)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"query": " "}, "query is empty"),
        ({"query": ["a", "b"]}, "one query"),
        ({"endpoint": "stream", "since": "2026-01-01"}, "from now on"),
        ({"since": "yesterday"}, "not a moment"),
        ({"since": "2009-01-01"}, "2010-11-05"),
        ({"since": "2026-01-02", "before": "2026-01-01T00:00:00Z"}, "is not before"),
        ({"page_size": 500}, "10 to 100"),
        ({"address": "api.x.com"}, "https://"),
        ({"limit": 0}, "limit"),
    ],
)
def test_settings_that_x_would_refuse_are_refused(server, values, words):
    with pytest.raises(ValueError, match=words):
        settings(server, **values)


def crawl(server, folder, *arguments, key=TOKEN):
    """`crawl.py x` as a process of its own."""
    command = [sys.executable, "data_prep/crawl.py", "x", "--query", QUERY, "--output", str(folder / "posts")]
    environment = os.environ | {"X_BEARER_TOKEN": key, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "--address", server.address, "--page_size", "10", *arguments],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )


def stored(folder):
    table = pyarrow.parquet.ParquetDataset(sorted((folder / "posts/data").glob("train-*.parquet"))).read()
    return table["id"].to_pylist()


@pytest.fixture
def real_time_server():
    fake = FakeX()
    yield fake
    fake.stop()


def test_crawls_of_a_search_add_to_one_data_set_without_gaps(real_time_server, tmp_path):
    server = real_time_server
    old = server.add_posts(45)
    server.faults += [(503, problem("over capacity"), {}), CUT]
    server.headers = {"x-rate-limit-remaining": 0, "x-rate-limit-reset": int(time.time()) + 2}
    run = crawl(server, tmp_path, "--limit", "25")
    assert run.returncode == 0, run.stderr
    assert stored(tmp_path) == old[:-26:-1]
    server.expire_tokens()
    new = server.add_posts(15, first=time.time() - 90)
    again = crawl(server, tmp_path)
    assert again.returncode == 0, again.stderr
    assert sorted(stored(tmp_path)) == old + new
    written = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert TOKEN not in run.stderr + run.stdout + again.stderr + again.stdout and TOKEN.encode() not in written


def test_a_crawl_of_the_stream_ends_at_its_limit(real_time_server, tmp_path):
    server = real_time_server
    server.connections += [[stream_line(post(1), "1"), CUT], [stream_line(post(n), "1") for n in (1, 2, 3)] + [SILENCE]]
    run = crawl(server, tmp_path, "--endpoint", "stream", "--limit", "3")
    assert run.returncode == 0, run.stderr
    assert stored(tmp_path) == ["1", "2", "3"]
    server.wait_until_left()


def test_a_crawl_with_a_wrong_key_says_so_in_a_line(real_time_server, tmp_path):
    run = crawl(real_time_server, tmp_path, key="AAAA-not-the-key")
    assert run.returncode == 2
    assert "401" in run.stderr and "X_BEARER_TOKEN" in run.stderr and "Traceback" not in run.stderr
    assert "AAAA-not-the-key" not in run.stderr and not (tmp_path / "posts").exists()
