import json
import os
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_mastodon import BEGIN_MS, TOKEN, FakeMastodon, event, id_of, reset_in, status
from live_sources import Waits, take, texts

from data_prep.posts import EMPTY, NOT_A_POST, NOT_JSON, PROTECTED, WITHHELD
from data_prep.sources.mastodon import MastodonSettings, open_source
from data_prep.sources.mastodon_posts import OPTED_OUT, plain_text, post_of_status
from launch.errors import InputError

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("data_prep.sources.messages.STEP_SECONDS", 0.1)
    monkeypatch.delenv("MASTODON_ACCESS_TOKEN", raising=False)


def source(server, waits=None, **settings):
    settings = {"instance": server.address, "output": Path("posts"), **settings}
    return open_source(MastodonSettings(**settings), Waits() if waits is None else waits)


def posts_of(*numbers):
    return {f"post {number}" for number in numbers}


# Statuses


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One<br />two</p><p>three</p>", "One\ntwo\n\nthree"),
        ("no paragraph &amp; &lt;3", "no paragraph & <3"),
        (
            '<p>See <a href="https://example.com/a/long/path?x=1&amp;y=2"><span class="invisible">https://</span>'
            '<span class="ellipsis">example.com/a/long/pa</span><span class="invisible">th?x=1&amp;y=2</span></a>!</p>',
            "See https://example.com/a/long/path?x=1&y=2!",
        ),
        ('<a href="https://example.com/a/long">example.com/a/lo…</a>', "https://example.com/a/long"),
        ('<a href="https://example.com/story">the whole story</a>', "the whole story"),
        (
            '<p><span class="h-card"><a href="https://x.test/@ana" class="u-url mention">@<span>ana</span></a></span> hi</p>',
            "@ana hi",
        ),
        ('<a href="https://x.test/@ana" class="mention">@ana@x.test</a>', "@ana@x.test"),
        ('<a href="https://x.test/tags/rain" class="mention hashtag" rel="tag">#<span>Rain</span></a>', "#Rain"),
        ("<ul><li>one</li><li>two</li></ul><blockquote>three</blockquote>", "one\ntwo\n\nthree"),
        ('<p class="quote-inline">RE: <a href="https://x.test/1">https://x.test/1</a></p><p>Mine</p>', "Mine"),
        ('<span class="quote-inline"><br><span>RE: x</span></span>Mine', "Mine"),
        ("<p>never <b>closed <a href='https://x.test/1'>x.test</p>", "never closed x.test"),
        ("", ""),
    ],
)
def test_html_becomes_plain_text(html, text):
    assert plain_text(html) == text


def test_status_becomes_a_post():
    photo = {"type": "image", "url": "https://files.test/1.jpg", "description": "a hill"}
    only_remote = {"type": "image", "url": None, "remote_url": "https://far.test/2.jpg", "description": None}
    media = [photo, {"type": "gifv", "url": "https://files.test/1.mp4"}, only_remote, None]
    post = post_of_status(status(5, media_attachments=media, language="pt-BR"), "home.test")
    assert (post.id, post.source) == ("https://home.test/users/ana/statuses/5", "mastodon:home.test")
    assert (post.text, post.lang, post.author_id) == ("post 5", "pt", "https://home.test/@ana")
    assert post.created_at == datetime.fromtimestamp(BEGIN_MS / 1000 + 5, timezone.utc)
    assert [(image.url, image.alt_text) for image in post.images] == [
        ("https://files.test/1.jpg", "a hill"),
        ("https://far.test/2.jpg", None),
    ]


def test_copies_at_two_servers_have_one_id():
    first, second = status(5), {**status(5), "id": "99"}
    assert post_of_status(first, "a.test").id == post_of_status(second, "b.test").id


def test_boost_becomes_its_original():
    assert post_of_status({**status(9), "content": "", "reblog": status(5)}, "home.test").text == "post 5"


def test_content_warning_stands_first():
    assert post_of_status(status(5, spoiler_text="Ana in Lima"), "home.test").text == "Ana in Lima\n\npost 5"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"visibility": "unlisted"}, PROTECTED),
        ({"visibility": "private"}, PROTECTED),
        ({"local_only": True}, PROTECTED),
        ({"account": {"suspended": True}}, WITHHELD),
        ({"account": {"noindex": True}}, OPTED_OUT),
        ({"account": {"note": '<p>Birds. <a href="https://x.test/tags/NoBot">#<span>NoBot</span></a></p>'}}, OPTED_OUT),
        ({"account": {"note": "<p>#NoIndexing of #notebooks</p>"}}, None),
        ({"text": "<p></p>"}, EMPTY),
        ({"text": None, "content": None}, NOT_A_POST),
        ({"uri": None}, NOT_A_POST),
    ],
)
def test_what_is_left_out_has_a_reason_and_no_text(values, problem):
    post = post_of_status(status(5, **values), "home.test")
    assert post.problem == problem
    if problem in (PROTECTED, WITHHELD, OPTED_OUT):
        assert (post.text, post.author_id, post.images) == ("", None, ())


@pytest.mark.parametrize("item", [None, "text", [], {"account": "ana"}, {"reblog": "x"}, {"reblog": 5, "account": {}}])
def test_what_is_no_status_is_rejected(item):
    assert post_of_status(item, "home.test").problem == NOT_A_POST


# Timelines


def test_timeline_is_walked_to_its_end():
    with FakeMastodon(*map(status, range(100))) as server:
        posts, position = take(source(server).fetch(None))
        assert texts(posts) == [f"post {number}" for number in reversed(range(100))]
        assert position == {"newest": id_of(99), "oldest": None}
        assert {path for path, _ in server.requests} == {"public"}
        assert len(server.requests) == 4
        assert server.requests[1] == ("public", {"limit": "40", "max_id": id_of(60)})


def test_timeline_grows_at_both_ends():
    with FakeMastodon(*map(status, range(200, 400))) as server:
        first, position = take(source(server).fetch(None), 80)
        server.statuses += map(status, range(400, 520))
        second, position = take(source(server).fetch(json.loads(json.dumps(position))))
        assert set(texts(first)) | set(texts(second)) == posts_of(*range(200, 520))
        assert position == {"newest": id_of(519), "oldest": None}
        late = status(470.5)  # of another server, and come late
        server.statuses += [late, status(600)]
        third, position = take(source(server).fetch(position))
        assert set(texts(third)) == posts_of(*range(460, 520), 470.5, 600)
        assert position == {"newest": id_of(600), "oldest": None}


def test_empty_timeline_ends_and_is_begun_again():
    with FakeMastodon() as server:
        posts, position = take(source(server).fetch(None))
        assert (posts, position) == ([], {"newest": None, "oldest": None})
        server.statuses.append(status(1))
        assert texts(take(source(server).fetch(position))[0]) == ["post 1"]


def test_hashtag_and_other_choices_are_asked_for():
    with FakeMastodon(status(1), status(2, language="de"), status(3, visibility="unlisted", language="de")) as server:
        timeline = source(server, endpoint="hashtag", hashtag="#Rain", posts_of="local", languages=["en"])
        posts, _ = take(timeline.fetch(None))
        assert server.requests[0] == ("tag/Rain", {"limit": "40", "local": "1"})
        assert [post.problem for post in posts] == [PROTECTED, None]
        assert timeline.passed_over == {"another language": 1}


def test_timeline_waits_for_limits_and_failures():
    waits = Waits()
    with FakeMastodon(*map(status, range(5))) as server:
        server.faults += [
            (429, {"error": "Too many requests"}, reset_in(50)),
            (503, b"<html>", {}),
            (200, b'[{"id": "1", ', {}),
            (200, {"no": "list"}, {}),
            (200, [None], {}),
            (429, b"", {}),
        ]
        posts, _ = take(source(server, waits).fetch(None))
        assert len(posts) == 5
    limit, *failures, limit_without_headers = [seconds for seconds in waits if seconds]
    assert 48 < limit < 52
    assert len([seconds for seconds in failures if 0 < seconds <= 32]) == 4
    assert 48 < limit_without_headers < 52


def test_timeline_stops_asking_before_the_limit_is_passed():
    waits = Waits()
    with FakeMastodon(*map(status, range(5))) as server:
        server.headers = reset_in(30)
        take(source(server, waits).fetch(None))
    assert len(waits) == 1  # before the second page
    assert 28 < waits[0] < 32


def test_broken_items_of_a_page_are_rejected():
    with FakeMastodon(status(1)) as server:
        server.faults.append((200, [status(3), None, {"id": id_of(2)}, "x"], {}))
        posts, _ = take(source(server).fetch(None))
    assert [post.problem for post in posts] == [None, NOT_A_POST, NOT_A_POST, NOT_A_POST, None]


def test_key_is_used_and_a_wrong_one_is_an_input_error(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    with FakeMastodon(status(1), token=TOKEN) as server:
        assert len(take(source(server, token_file=file).fetch(None))[0]) == 1
        with pytest.raises(InputError, match=r"401.*MASTODON_ACCESS_TOKEN.*There is none now"):
            take(source(server).fetch(None))
        monkeypatch.setenv("MASTODON_ACCESS_TOKEN", "another-token-of-the-tests")
        with pytest.raises(InputError, match="401") as error:
            take(source(server).fetch(None))
    assert "another-token" not in str(error.value)


@pytest.mark.parametrize("endpoint", ["public", "stream"])
def test_unreachable_server_is_an_input_error_at_the_beginning_only(endpoint):
    with pytest.raises(InputError, match=r"no\.such\.invalid cannot be reached.*--instance"):
        settings = MastodonSettings(instance="no.such.invalid", endpoint=endpoint, output=Path("posts"))
        take(open_source(settings, Waits()).fetch(None))
    with FakeMastodon(*map(status, range(60))) as server:
        batches = source(server).fetch(None)
        assert len(next(batches).posts) == 40
        server.faults += [(0, b"", {})] * 3
        assert [len(fetched.posts) for fetched in batches] == [0, 0, 0, 20, 0]


# The stream


def test_stream_gives_what_comes(monkeypatch):
    monkeypatch.setenv("MASTODON_ACCESS_TOKEN", TOKEN)
    with FakeMastodon(*map(status, range(3)), token=TOKEN) as server:
        stream = source(server, endpoint="stream", hashtag="rain", posts_of="local")
        batches = stream.fetch(None)
        posts = [*next(batches).posts, *next(batches).posts]
        server.publish(10)
        server.messages += [
            event("delete", "01HZZZ"),
            event("status.update", json.dumps(status(10, text="edited"))),
            b'{"event": "upd',
            event("update", '{"id": '),
            event("update", json.dumps({"id": "7"})),
            event("filters_changed", None),
        ]
        server.publish(11)
        more, position = take(batches, 5)
        assert server.streams == [{"stream": "hashtag:local", "tag": "rain"}]
    assert texts(posts) == ["post 2", "post 1", "post 0"]
    assert {post.text for post in more if not post.problem} == posts_of(10, 11)
    assert sorted(post.problem for post in more if post.problem) == [NOT_JSON, NOT_JSON, NOT_A_POST]
    assert stream.passed_over == {"event delete": 1, "event status.update": 1, "event filters_changed": 1}
    assert position == {"newest": id_of(11)}


@pytest.mark.parametrize("fault", ["cut", "half"])
def test_stream_gets_what_it_missed(fault):
    waits = Waits()
    with FakeMastodon(*map(status, range(3))) as server:
        server.stream_faults += [(fault, 2), ("refuse", 502)]
        batches = source(server, waits, endpoint="stream").fetch(None)
        posts = [*next(batches).posts, *next(batches).posts]
        server.publish(10, 11, 12)
        while not waits:
            posts += next(batches).posts
        server.statuses += map(status, range(100, 200))  # while nobody listens
        while "post 199" not in texts(posts):
            posts += next(batches).posts
        server.publish(300)
        while "post 300" not in texts(posts):
            posts += next(batches).posts
        batches.close()
    assert set(texts(posts)) == posts_of(0, 1, 2, 10, 11, 12, *range(100, 200), 300)
    assert len(server.streams) == 3
    assert len(waits) == 2


def test_stream_goes_on_from_a_position_while_new_posts_come():
    with FakeMastodon(*map(status, range(1000, 1500))) as server:
        batches = source(server, endpoint="stream").fetch({"newest": id_of(1099)})
        posts, number, position = [], 2000, None
        asked = 0
        while len(server.requests) < 40:
            fetched = next(batches)
            posts += fetched.posts
            position = fetched.position or position
            server.publish(number, number + 1, number + 2)  # never a page without new posts
            number += 3
            if asked == len(server.requests):
                break
            asked = len(server.requests)
        batches.close()
    assert asked < 20
    wanted = posts_of(*range(1040, 1500), *range(2000, number - 6))
    assert set(texts(posts)) >= wanted
    assert int(position["newest"]) >= int(id_of(number - 7))


def test_stream_gives_signs_of_life_and_is_closed():
    with FakeMastodon() as server:
        batches = source(server, endpoint="stream").fetch(None)
        assert [next(batches).posts for _ in range(4)] == [[]] * 4
        assert server.open_streams == 1
        batches.close()
        server.publish(1)
        for _ in range(100):
            if not server.open_streams:
                break
            time.sleep(0.02)
        assert server.open_streams == 0


def test_refused_stream_is_an_input_error():
    with FakeMastodon(status(1)) as server:
        server.stream_faults.append(("refuse", 401))
        with pytest.raises(InputError, match=r"401.*There is none now"):
            take(source(server, endpoint="stream").fetch(None))
        batches = source(server, endpoint="stream").fetch(None)
        next(batches), next(batches)
        server.messages.append(b'{"error": "Unknown stream type", "status": 400}')
        with pytest.raises(InputError, match="Unknown stream type"):
            take(batches)


# Settings and the command


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"instance": "mastodon social"}, "instance"),
        ({"instance": "https://a.test/api"}, "instance"),
        ({"endpoint": "hashtag"}, "hashtag"),
        ({"hashtag": "rain"}, "hashtag"),
        ({"endpoint": "hashtag", "hashtag": "../rain"}, "hashtag"),
        ({"endpoint": "stream", "hashtag": "rain", "posts_of": "remote"}, "posts_of"),
        ({"duration": "soon"}, "duration"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values, word):
    with pytest.raises(ValueError, match=word):
        MastodonSettings(**{"instance": "a.test", "output": Path("posts"), **values})


def crawl(tmp_path, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTODON_ACCESS_TOKEN": TOKEN}
    command = [
        sys.executable,
        REPOSITORY / "data_prep/crawl.py",
        "mastodon",
        *arguments,
        "--output",
        tmp_path / "posts",
    ]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_command_crawls_and_goes_on(tmp_path):
    with FakeMastodon(*map(status, range(30)), token=TOKEN) as server:
        arguments = ["--instance", server.address, "--endpoint", "stream"]
        first = crawl(tmp_path, *arguments, "--limit", "30")
        assert first.returncode == 0, first.stderr
        server.statuses += map(status, range(100, 130))
        second = crawl(tmp_path, *arguments, "--limit", "60")
        assert second.returncode == 0, second.stderr
    rows = [row for file in (tmp_path / "posts/data").glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert sorted(row["text"] for row in rows) == sorted(posts_of(*range(30), *range(100, 130)))
    assert {row["source"] for row in rows} == {f"mastodon:{server.address.removeprefix('http://')}"}
    written = [file.read_text() for file in (tmp_path / "posts").iterdir() if file.is_file()]
    assert not any(TOKEN in text for text in (*written, first.stdout, first.stderr, second.stdout, second.stderr))
