import json
import os
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_bluesky import (
    BEGIN_US,
    HANDLE,
    PASSWORD,
    FakeJetstream,
    FakeService,
    commit,
    did_of,
    reset_in,
    spelled,
    view,
)
from live_sources import Waits, take, texts

from data_prep.posts import NOT_A_POST, NOT_JSON, PROTECTED, WITHHELD
from data_prep.sources.bluesky import BlueskySettings, open_source
from data_prep.sources.bluesky_jetstream import Jetstream
from data_prep.sources.bluesky_posts import post_of_commit, post_of_view
from launch.errors import InputError

REPOSITORY = Path(__file__).parents[3]
CDN = "https://cdn.test"
MADE = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("data_prep.sources.messages.STEP_SECONDS", 0.1)


def jetstream(*addresses, **settings):
    return BlueskySettings(output=Path("posts"), jetstream=list(addresses), **settings)


# Records


def blob(content_id):
    return {"$type": "blob", "ref": {"$link": content_id}, "mimeType": "image/jpeg", "size": 1}


def test_record_becomes_a_post():
    embed = {
        "$type": "app.bsky.embed.recordWithMedia",
        "record": {"record": {"uri": "at://other"}},
        "media": {
            "$type": "app.bsky.embed.images",
            "images": [{"image": blob("bafka"), "alt": "a hill"}, {"image": blob("bafkb"), "alt": ""}],
        },
    }
    event = commit(7, langs=["pt-BR", "en"], embed=embed)
    event["commit"]["record"]["text"] = "Jordan &amp; Ana \ud83d"
    post = post_of_commit(event, CDN)
    assert post.id == f"at://{did_of(7)}/app.bsky.feed.post/3k00000000007"
    assert (post.lang, post.author_id, post.source) == ("pt", did_of(7), "bluesky")
    assert post.text == "Jordan & Ana \\ud83d"
    assert post.created_at == datetime.fromtimestamp(BEGIN_US / 1e6 + 7, timezone.utc)
    assert [image.url for image in post.images] == [
        f"{CDN}/img/feed_fullsize/plain/{did_of(7)}/{name}@jpeg" for name in ("bafka", "bafkb")
    ]
    assert [image.alt_text for image in post.images] == ["a hill", None]


@pytest.mark.parametrize(
    ("embed", "photos"),
    [
        ({"$type": "app.bsky.embed.gallery", "items": [{"image": blob("bafka"), "alt": "x"}]}, 1),
        ({"$type": "app.bsky.embed.video", "video": blob("bafka"), "alt": "x"}, 0),
        ({"$type": "app.bsky.embed.external", "external": {"uri": "https://a.test", "thumb": blob("bafka")}}, 0),
        ({"$type": "app.bsky.embed.images", "images": [None, {"image": "bafka"}, {"image": {"ref": None}}]}, 0),
        ("embed", 0),
    ],
)
def test_only_photos_are_taken(embed, photos):
    assert len(post_of_commit(commit(1, embed=embed), CDN).images) == photos


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("2010-05-01T00:00:00.123456+02:00", True),  # imported from elsewhere
        ("2031-01-01T00:00:00Z", False),
        ("0001-01-01T00:00:00Z", False),
        ("yesterday", False),
        (None, False),
    ],
)
def test_a_time_that_cannot_be_is_replaced_by_the_servers(said, kept):
    made = post_of_commit(commit(1, createdAt=said), CDN).created_at
    assert made == (
        datetime(2010, 4, 30, 22, 0, 0, 123456, timezone.utc)
        if kept
        else datetime.fromtimestamp(BEGIN_US / 1e6 + 1, timezone.utc)
    )


@pytest.mark.parametrize(
    ("labels", "author_labels", "problem"),
    [
        ([], ["!no-unauthenticated"], PROTECTED),
        (["!takedown"], ["!no-unauthenticated"], WITHHELD),
        ([], ["!hide"], WITHHELD),
        (["porn"], [], None),
    ],
)
def test_labels_keep_a_post_out(labels, author_labels, problem):
    post = post_of_view(view(1, MADE, labels=labels, author_labels=author_labels), CDN)
    assert post.problem == problem
    assert post.id.startswith("at://")
    assert (post.text, post.author_id) == (("post 1", did_of(1)) if problem is None else ("", None))


def test_withdrawn_label_keeps_nothing_out():
    taken_back = view(1, MADE)
    taken_back["labels"] = [{"val": "!takedown", "neg": True}]
    assert post_of_view(taken_back, CDN).problem is None


def test_what_is_no_post_is_rejected():
    assert post_of_commit(commit(1, text=None) | {"did": None}, CDN).problem == NOT_A_POST
    event = commit(1)
    event["commit"]["record"]["text"] = 5
    assert post_of_commit(event, CDN).problem == NOT_A_POST
    assert post_of_view({"uri": "at://x", "author": "y"}, CDN).problem == NOT_A_POST
    assert post_of_view(view(1, MADE) | {"indexedAt": "?"}, CDN).problem == NOT_A_POST
    assert post_of_view(None, CDN).problem == NOT_A_POST


# Jetstream


def test_jetstream_gives_posts_and_counts_the_rest():
    identity = {"did": "did:plc:x", "time_us": BEGIN_US, "kind": "identity", "identity": {"handle": "x.test"}}
    broken = b'{"did": "did:plc:1", "commi'
    events = [
        commit(1),
        identity,
        commit(2, operation="delete"),
        commit(3, operation="update"),
        broken,
        commit(4, langs=["ja"]),
        commit(5, langs=None),
        b'"a string"',
        commit(6, langs=["en-GB", "ja"]),
    ]
    with FakeJetstream(*events) as server:
        source = open_source(jetstream(server.address, languages=["EN"]))
        posts, position = take(source.fetch(None), 4)
    assert [(post.text, post.problem) for post in posts] == [
        ("post 1", None),
        (broken.decode(), NOT_JSON),
        ('"a string"', NOT_JSON),
        ("post 6", None),
    ]
    assert server.asked == [{"wantedCollections": "app.bsky.feed.post"}]
    assert position == {"time_us": BEGIN_US + 6_000_000}
    assert source.passed_over == {
        "not about a post": 1,
        "delete of a post": 1,
        "update of a post": 1,
        "another language": 2,
    }


def test_jetstream_gives_a_sign_of_life_each_second():
    with FakeJetstream() as server:
        batches = open_source(jetstream(server.address)).fetch(None)
        first, second = next(batches), next(batches)
        batches.close()
    assert first.posts == second.posts == []
    assert first.position is None


@pytest.mark.parametrize("fault", ["cut", "half"])
def test_jetstream_loses_nothing_when_it_is_cut(fault):
    waits = Waits()
    with FakeJetstream(*(commit(number) for number in range(30))) as server:
        server.faults += [(fault, 12), ("refuse", 503), (fault, 10)]
        posts, position = take(open_source(jetstream(server.address), waits).fetch(None), 30 + 2 * 6)
    assert list(dict.fromkeys(texts(posts))) == [f"post {number}" for number in range(30)]
    assert [asked.get("cursor") for asked in server.asked] == [
        None,
        str(BEGIN_US + (11 - 5) * 1_000_000),
        str(BEGIN_US + (11 - 5) * 1_000_000),
        str(BEGIN_US + (15 - 5) * 1_000_000),
    ]
    assert position == {"time_us": BEGIN_US + 29_000_000}
    assert len(waits) == 3
    assert all(seconds <= 2 for seconds in waits)


def test_jetstream_goes_on_at_another_address_and_tells_what_was_lost(caplog):
    waits = Waits()
    with FakeJetstream(commit(1)) as first, FakeJetstream(commit(5000)) as second:
        first.faults.append(("cut", 1))
        posts, _ = take(open_source(jetstream(first.address, second.address), waits).fetch(None), 2)
    assert texts(posts) == ["post 1", "post 5000"]
    assert second.asked[0]["cursor"] == str(BEGIN_US - 4_000_000)
    assert "nothing of 83 minutes" in caplog.text


def test_jetstream_is_left_when_it_falls_silent(caplog):
    with FakeJetstream(commit(1), commit(2)) as server:
        server.faults.append(("silent", 1))
        posts, _ = take(Jetstream(jetstream(server.address), Waits(), silence_seconds=0.5).fetch(None), 3)
    assert texts(posts) == ["post 1", "post 1", "post 2"]
    assert "no message for" in caplog.text


def test_jetstream_resumes_from_a_position():
    with FakeJetstream(*(commit(number) for number in range(30))) as server:
        source = open_source(jetstream(server.address))
        posts, position = take(source.fetch(None), 20)
        more, _ = take(open_source(jetstream(server.address)).fetch(json.loads(json.dumps(position))), 1)
    assert {*texts(posts), *texts(more)} >= {f"post {number}" for number in range(30)}
    assert len(more) < 30


def test_jetstream_that_cannot_be_reached_is_an_input_error():
    waits = Waits()
    with FakeJetstream() as server:
        server.faults.append(("refuse", 403))
        source = open_source(jetstream("ws://127.0.0.1:9/subscribe", server.address), waits)
        with pytest.raises(InputError, match=r"cannot be reached.*403.*--jetstream"):
            list(source.fetch(None))
    with pytest.raises(InputError, match=r"no\.such\.invalid.*--jetstream"):
        list(open_source(jetstream("ws://no.such.invalid/subscribe"), waits).fetch(None))


# Search


@pytest.fixture
def account(monkeypatch):
    monkeypatch.setenv("BLUESKY_HANDLE", f"@{HANDLE}")
    monkeypatch.setenv("BLUESKY_APP_PASSWORD", PASSWORD)


def search(server, **settings):
    return BlueskySettings(output=Path("posts"), endpoint="search", query="rain", service=server.address, **settings)


def views(number, first=0):
    """Posts a second apart, but that each tenth has the time of the one before."""
    return [view(n, MADE + timedelta(seconds=n - (n % 10 == 0))) for n in range(first, first + number)]


def run(server, position=None, waits=None, **settings):
    wait = Waits() if waits is None else waits
    return take(open_source(search(server, **settings), wait).fetch(position), 10_000)


def test_search_walks_back_through_more_than_one_search_gives(account):
    with FakeService(*views(730)) as server:
        server.most_hits = 250
        posts, position = run(server)
        assert set(texts(posts)) == {f"post {number}" for number in range(730)}
        assert texts(posts)[:2] == ["post 729", "post 728"]
        assert len(posts) < 780
        assert position == {"since": spelled(MADE + timedelta(seconds=729)), "before": None, "newest": None}
        assert {name: server.searches()[0].get(name) for name in ("q", "sort", "limit", "until")} == {
            "q": "rain",
            "sort": "latest",
            "limit": "100",
            "until": None,
        }
        assert server.logins == 1


def test_search_takes_what_is_newer_when_it_is_run_again(account):
    with FakeService(*views(120)) as server:
        _, position = run(server)
        server.posts += views(30, first=120)
        asked_before = len(server.searches())
        posts, position = run(server, position)
        assert set(texts(posts)) == {f"post {number}" for number in range(119, 150)}
        assert all("since" in asked for asked in server.searches()[asked_before:])
        posts, again = run(server, position)
        assert set(texts(posts)) == {"post 149"}  # of the very millisecond of the end
        assert again == position


def test_search_that_was_interrupted_is_finished_and_then_brought_up_to_date(account):
    with FakeService(*views(450)) as server:
        source = open_source(search(server, since=spelled(MADE + timedelta(seconds=50))), Waits())
        taken, position = take(source.fetch(None), 200)
        server.posts += views(20, first=450)
        rest, position = run(server, json.loads(json.dumps(position)))
        assert set(texts(taken)) | set(texts(rest)) == {f"post {number}" for number in range(51, 470)}
        assert position["since"] == spelled(MADE + timedelta(seconds=469))


def test_search_keeps_to_its_ends_and_languages(account):
    posts = views(100)
    posts[70]["record"]["langs"] = ["de"]
    with FakeService(*posts) as server:
        ends = {"since": "2026-03-01T12:01:01Z", "before": "2026-03-01T13:01:21+01:00"}
        found, _ = run(server, languages=["en"], **ends)
        assert set(texts(found)) == {f"post {number}" for number in range(61, 81) if number != 70}
        assert server.searches()[0]["lang"] == "en"
        assert server.searches()[0]["until"] == "2026-03-01T12:01:21.000Z"


def test_search_without_a_hit_ends(account):
    with FakeService() as server:
        assert run(server) == ([], {"since": None, "before": None, "newest": None})


def test_search_waits_for_limits_and_failures(account):
    waits = Waits()
    with FakeService(*views(5)) as server:
        server.faults += [
            (429, {"error": "RateLimitExceeded"}, reset_in(40)),
            (502, b"<html>Bad gateway</html>", {}),
            (200, server.session(), {}),
            (200, b'{"posts": [', {}),
            (429, b"", {"Retry-After": "7"}),
        ]
        posts, _ = run(server, waits=waits)
        assert len(posts) >= 5
        limit, gateway, broken, retry = [seconds for seconds in waits if seconds > 0]
        assert (limit, retry) == (40, 7)
        assert 0 < gateway < 4
        assert 0 < broken < 4


def test_search_stops_asking_before_the_limit_is_passed(account):
    waits = Waits()
    with FakeService(*views(5)) as server:
        server.headers = reset_in(25)
        run(server, waits=waits)
    assert any(24 < seconds <= 25 for seconds in waits)


def test_search_renews_its_session_and_logs_in_again_only_if_it_must(account):
    with FakeService(*views(250)) as server:
        batches = open_source(search(server), Waits()).fetch(None)
        posts = [post for _ in range(2) for post in next(batches).posts]
        server.expire_access()
        posts += [post for fetched in (next(batches),) for post in fetched.posts]
        while not any(post.text == "post 149" for post in posts):
            posts += next(batches).posts
        assert server.logins == 1
        server.logins += 1  # now the refresh token is void, too
        server.expire_access()
        posts += [post for fetched in batches for post in fetched.posts]
        assert server.logins == 3
        assert set(texts(posts)) == {f"post {number}" for number in range(250)}


@pytest.mark.parametrize("password", ["wrong-wrong-wrong", PASSWORD])
def test_refused_search_is_an_input_error_without_secrets(account, monkeypatch, password):
    monkeypatch.setenv("BLUESKY_APP_PASSWORD", password)
    with FakeService() as server:
        if password == PASSWORD:
            server.faults += [
                (200, server.session(), {}),
                (403, {"error": "Forbidden", "message": f"access-1 {PASSWORD}"}, {}),
            ]
        with pytest.raises(InputError, match="refuses") as error:
            run(server)
    assert ("app password" in str(error.value)) == (password != PASSWORD)
    assert PASSWORD not in str(error.value)
    assert "wrong-wrong" not in str(error.value)
    assert "access-1" not in str(error.value)


def test_search_of_an_unreachable_server_is_an_input_error(account):
    with FakeService() as server:
        pass
    with pytest.raises(InputError, match=r"cannot be reached.*--service"):
        run(server)


def test_account_comes_from_two_lines_of_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv("BLUESKY_HANDLE", raising=False)
    with FakeService(*views(3)) as server:
        with pytest.raises(InputError, match=r"BLUESKY_HANDLE"):
            open_source(search(server))
        file = tmp_path / "account"
        file.write_text(f"{HANDLE}\n")
        with pytest.raises(InputError, match=r"account:2: empty.*BLUESKY_APP_PASSWORD"):
            open_source(search(server, token_file=file))
        file.write_text(f"{HANDLE}\n{PASSWORD}\n")
        assert len(run(server, token_file=file)[0]) >= 3


# The command


def crawl(tmp_path, *arguments, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, REPOSITORY / "data_prep/crawl.py", "bluesky", *arguments, "--output", tmp_path / "posts"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def stored(tmp_path, split="data"):
    files = sorted((tmp_path / "posts" / split).glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_command_crawls_jetstream_and_goes_on(tmp_path):
    events = [commit(number) for number in range(40)]
    events.insert(5, b"{broken")
    with FakeJetstream(*events) as server:
        server.faults.append(("half", 15))
        arguments = ["--endpoint", "jetstream", "--jetstream", json.dumps([server.address])]
        first = crawl(tmp_path, *arguments, "--limit", "25")
        assert first.returncode == 0, first.stderr
        assert len(stored(tmp_path)) == 25
        second = crawl(tmp_path, *arguments, "--limit", "40")
        assert second.returncode == 0, second.stderr
    rows = stored(tmp_path)
    assert [row["text"] for row in rows] == [f"post {number}" for number in range(40)]
    assert {row["source"] for row in rows} == {"bluesky"}
    assert [row["reason"] for row in stored(tmp_path, "rejected")] == [NOT_JSON]


def test_command_searches_without_showing_secrets(tmp_path):
    with FakeService(*views(120)) as server:
        arguments = ["--endpoint", "search", "--query", "rain", "--service", server.address]
        keys = {"BLUESKY_HANDLE": HANDLE, "BLUESKY_APP_PASSWORD": PASSWORD}
        done = crawl(tmp_path, *arguments, **keys)
        assert done.returncode == 0, done.stderr
        refused = crawl(tmp_path, *arguments, **{**keys, "BLUESKY_APP_PASSWORD": "wrong-wrong"})
    assert refused.returncode == 2
    assert "refuses the log-in" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert {row["text"] for row in stored(tmp_path)} == {f"post {number}" for number in range(120)}
    written = [file.read_text() for file in (tmp_path / "posts").iterdir() if file.is_file()]
    for text in (*written, done.stdout, done.stderr, refused.stdout, refused.stderr):
        assert not any(secret in text for secret in (PASSWORD, "wrong-wrong", "access-1", "refresh-1"))


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"endpoint": "search"}, "query"),
        ({"query": "rain"}, "Jetstream"),
        ({"endpoint": "search", "query": "x", "since": "soon"}, "since"),
        ({"jetstream": []}, "jetstream"),
        ({"jetstream": ["https://a.test"]}, "jetstream"),
        ({"service": "a.test"}, "service"),
        ({"limit": 0}, "limit"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values, word):
    with pytest.raises(ValueError, match=word):
        BlueskySettings(output=Path("posts"), **values)
