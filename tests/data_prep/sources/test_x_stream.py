import json
import threading
import time

import pytest
from fake_x import CUT, KEEP_ALIVE, SILENCE, TOKEN, Clock, FakeX, post, problem, stream_line

from data_prep.sources.x_api import XApi
from data_prep.sources.x_stream import FilteredStream
from launch.errors import InputError

RULE = "rain lang:en"
OUR_RULES = json.dumps({"data": [{"id": "7", "value": RULE, "tag": "msb-ner"}], "meta": {}}).encode()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def server(clock):
    fake = FakeX(clock)
    yield fake
    fake.stop()


def stream(server, clock, silence_seconds=5.0, rules=(RULE,)):
    return FilteredStream(XApi(server.address, TOKEN, clock, clock.sleep), list(rules), silence_seconds)


def collect(source, number):
    """The first so many posts of a stream, which is closed then."""
    posts, fetched = [], source.fetch(None)
    for some in fetched:
        posts += some.posts
        if len(posts) >= number:
            fetched.close()
            return posts
    raise AssertionError("the stream ended")


def line(number):
    return stream_line(post(number), "7")


@pytest.fixture
def ruled(server):
    """The server, with our rule as number 7."""
    server.rules = [{"id": "7", "value": RULE, "tag": "msb-ner"}]
    return server


def test_the_stream_gives_posts_as_they_come_and_signs_of_life(ruled, clock):
    ruled.connections.append([KEEP_ALIVE, line(1), line(2), KEEP_ALIVE, line(3)[:20], line(3)[20:], SILENCE])
    fetched = stream(ruled, clock).fetch(None)
    ids = []
    while len(ids) < 3:
        ids += [post.id for post in next(fetched).posts]
    begin = time.monotonic()
    assert next(fetched).posts == []
    assert time.monotonic() - begin < 2
    assert ids == ["1", "2", "3"]
    assert "note_tweet" in ruled.asked("search/stream")[0]["tweet.fields"]


def test_closing_the_stream_closes_the_connection(ruled, clock):
    ruled.connections.append([line(1), SILENCE])
    fetched = stream(ruled, clock, silence_seconds=60).fetch(None)
    next(some for some in fetched if some.posts)
    assert ruled.open_streams == 1
    fetched.close()
    ruled.wait_until_left()
    assert not [thread for thread in threading.enumerate() if thread.name == "X's stream"]


def test_the_stream_sets_its_rules_and_leaves_those_of_others(server, clock, caplog):
    server.rules = [
        {"id": "a", "value": "cats", "tag": "somebody"},
        {"id": "b", "value": "dogs"},
        {"id": "c", "value": "snow", "tag": "msb-ner"},
        {"id": "d", "value": "hail", "tag": "msb-ner"},
    ]
    server.connections.append([stream_line(post(number), rule) for number, rule in enumerate("abd1d")] + [SILENCE])
    source = stream(server, clock, rules=["hail", " rain ", "dogs"])
    posts = collect(source, 4)
    assert [post.id for post in posts] == ["1", "2", "3", "4"]  # not what only the cats' rule matches
    assert [(rule["value"], rule.get("tag")) for rule in server.rules] == [
        ("cats", "somebody"),
        ("dogs", None),
        ("hail", "msb-ner"),
        ("rain", "msb-ner"),
    ]
    assert "rules of others (1)" in caplog.text and source.passed_over.total() == 1


def test_a_rule_that_x_does_not_take_is_an_error(server, clock):
    server.rule_problem = "no viable alternative at input 'lang'"
    with pytest.raises(InputError, match="no viable alternative.*--query"):
        next(stream(server, clock).fetch(None))


def test_a_stream_cut_in_mid_line_goes_on_and_the_rest_of_the_line_is_counted(ruled, clock):
    broken = b'{"data": {"id": "4", "text": "no end\r\n'
    ruled.connections += [[line(1), CUT], [line(2), broken, b'{"other": 1}\r\n'], [line(3)]]
    posts = collect(stream(ruled, clock), 6)
    assert [post.id for post in posts if post.problem is None] == ["1", "2", "3"]
    assert [post.problem for post in posts if post.problem] == ["not JSON", "not JSON", "not a post"]
    assert clock.slept == 0  # X asks to reconnect at once


def test_silence_is_taken_for_a_lost_connection(ruled, clock):
    ruled.connections += [[line(1), SILENCE], [line(2)]]
    assert [post.id for post in collect(stream(ruled, clock, silence_seconds=0.2), 2)] == ["1", "2"]


def test_a_stream_that_x_disconnects_is_connected_again(ruled, clock, caplog):
    gone = {"errors": [problem("operational-disconnect", "for operational reasons", ".../operational-disconnect")]}
    ruled.connections += [[line(1), json.dumps(gone).encode() + b"\r\n", SILENCE], [line(2)]]
    assert [post.id for post in collect(stream(ruled, clock), 2)] == ["1", "2"]
    assert "for operational reasons" in caplog.text


def test_a_used_up_plan_ends_the_stream(ruled, clock):
    capped = {"errors": [problem("UsageCapExceeded", "Monthly product cap", ".../usage-capped")]}
    ruled.connections.append([line(1), json.dumps(capped).encode() + b"\r\n"])
    with pytest.raises(InputError, match="Monthly product cap.*next period"):
        list(stream(ruled, clock).fetch(None))


@pytest.mark.parametrize(
    ("status", "waits"),
    [
        (503, 5 + 10 + 20 + 40 + 80 + 160 + 320 + 320),
        (429, 60 + 120 + 240 + 480 + 4 * 960),
    ],
)
def test_attempts_to_connect_are_as_far_apart_as_x_asks(ruled, clock, status, waits):
    ruled.connections.append([line(1)])
    fetched = stream(ruled, clock).fetch(None)
    ruled.faults += [OUR_RULES]
    ruled.faults += [(status, problem("no"), {})] * 8
    next(some for some in fetched if some.posts)
    assert clock.slept == pytest.approx(waits)
    fetched.close()


def test_a_network_that_fails_is_tried_again_with_linear_waits(ruled, clock):
    fetched = stream(ruled, clock).fetch(None)
    ruled.connections.append([line(1)])
    next(some for some in fetched if some.posts)
    ruled.stop()
    waits = [0.25 * number for number in range(8)]
    while clock.slept < sum(waits):
        next(fetched)
    fetched.close()
    assert clock.slept == pytest.approx(sum(waits))


def test_the_stream_waits_for_the_reset_of_a_limit(ruled, clock):
    ruled.connections.append([line(1)])
    source = stream(ruled, clock)
    ruled.faults += [OUR_RULES]
    ruled.faults.append((429, problem("Too Many Requests"), {"x-rate-limit-reset": int(clock.now) + 700}))
    collect(source, 1)
    assert 700 <= clock.slept <= 702


def test_rules_that_somebody_removed_are_set_again(ruled, clock):
    ruled.connections += [[line(1)], [stream_line(post(2), "1")]]
    fetched = stream(ruled, clock).fetch(None)
    next(some for some in fetched if some.posts)
    ruled.rules = []
    ruled.faults.append((409, problem("ConnectionException", "Stream has no rules"), {}))
    assert next(some for some in fetched if some.posts).posts[0].id == "2"
    assert [rule["value"] for rule in ruled.rules] == [RULE]
    fetched.close()


def test_a_stream_without_access_is_an_error(ruled, clock):
    ruled.faults += [OUR_RULES]
    ruled.faults.append((403, problem("Client Forbidden", "Essential access only"), {}))
    with pytest.raises(InputError, match="403.*Essential access only.*access level"):
        list(stream(ruled, clock).fetch(None))


def test_the_real_streams_items_become_posts(ruled, clock, shared_data):
    lines = (shared_data / "tweet_json/v2_twarc_csv/streaming_output_with_error.jsonl").read_bytes().splitlines(True)
    ruled.rules[0]["id"] = "1377649934414049282"
    ruled.connections.append(lines)
    posts = collect(stream(ruled, clock), 8)
    assert [post.problem for post in posts] == [None] * 7 + ["not JSON"]
    assert sum(len(post.images) for post in posts) >= 1 and all(post.created_at for post in posts[:7])
