from random import Random

import pytest

from data_prep.sources.waiting import Backoff, read_token, wait_yielding
from launch import scrub
from launch.errors import InputError


class Highest(Random):
    """Draws the upper end each time."""

    def uniform(self, low, high):
        return high


def test_backoff_doubles_up_to_its_most_and_begins_anew():
    backoff = Backoff(first_seconds=1, most_seconds=5, random=Highest())
    assert [backoff.delay() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.delay() == 1


def test_backoff_draws_from_the_whole_range_but_never_below_what_the_server_asks():
    backoff = Backoff(most_seconds=8, random=Random(0))
    delays = [backoff.delay() for _ in range(200)]
    assert min(delays) < 1 < 7 < max(delays) <= 8
    assert backoff.delay(retry_after=30) == 30


def test_waiting_gives_a_sign_of_life_each_second():
    now = 100.0
    slept = []

    def sleep(seconds):
        nonlocal now
        slept.append(seconds)
        now += seconds

    assert len(list(wait_yielding(2.5, clock=lambda: now, sleep=sleep))) == 3
    assert slept == [1, 1, 0.5]
    assert list(wait_yielding(0, clock=lambda: now, sleep=sleep)) == []


def test_token_comes_from_the_file_or_else_the_variable(tmp_path, monkeypatch):
    monkeypatch.setattr(scrub, "_remembered", set())
    monkeypatch.setenv("SOME_TOKEN", " from-variable\n")
    assert read_token(None, "SOME_TOKEN", "the key") == "from-variable"
    file = tmp_path / "token"
    file.write_bytes(b"\xef\xbb\xbffirst-line \r\nsecond-line")
    assert read_token(file, "SOME_TOKEN", "the key") == "first-line"
    assert read_token(file, "SOME_TOKEN", "the key", line=2) == "second-line"
    assert scrub.redact("a first-line b second-line c from-variable") == "a [redacted] b [redacted] c [redacted]"


@pytest.mark.parametrize("content", [None, b"", b"\n\nlater\n", b"\xff\xfe\x00"])
def test_missing_token_names_the_file_and_the_variable(tmp_path, monkeypatch, content):
    monkeypatch.delenv("SOME_TOKEN", raising=False)
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"token.*the key.*SOME_TOKEN"):
        read_token(file, "SOME_TOKEN", "the key")
    with pytest.raises(InputError, match=r"the key is missing.*SOME_TOKEN.*--token_file"):
        read_token(None, "SOME_TOKEN", "the key")
