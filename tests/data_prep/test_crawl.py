"""Crawls, run as users run them: ended in every way there is, killed, and gone on with."""

import json
import random
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import datasets
import fake_crawl
import PIL.Image
import pyarrow.parquet as pq
import pytest

from data_prep import crawl
from data_prep.layout import read_split
from data_prep.post_store import STORED_BEFORE
from data_prep.posts import POSTS_FEATURES, WITHHELD
from launch.stage import read_manifest


class Crawl:
    """A crawl of the fake platform into a folder."""

    def __init__(self, folder: Path) -> None:
        self.output, self.partial = folder / "posts", folder / "posts.partial"

    def arguments(self, **settings) -> list[str]:
        settings = {"output": self.output, "shard_posts": 20} | settings
        return ["fake", *(f"--{name}={value}" for name, value in settings.items())]

    def run(self, **settings) -> int:
        return fake_crawl.main(self.arguments(**settings))

    def start(self, **settings) -> subprocess.Popen:
        """A process of its own."""
        command = [sys.executable, fake_crawl.__file__, *self.arguments(**settings)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @property
    def manifest(self) -> dict:
        return read_manifest(self.output)

    def numbers(self, folder: str = "data") -> list[int]:
        """What the shards hold, finished or not."""
        root = self.output if self.output.exists() else self.partial
        shards = sorted((root / folder).glob("*.parquet"))
        return [int(number) for shard in shards for number in pq.read_table(shard)["id"].to_pylist()]

    def check(self, end: int, missing: int = 0) -> None:
        """All posts before ``end`` are there, once, but for the last ``missing``."""
        rejected = self.numbers("rejected")
        found = sorted(self.numbers() + rejected)
        assert len(found) >= end - missing
        assert found == list(range(len(found)))
        assert rejected == [number for number in found if number % 10 == 9]


@pytest.fixture
def fake(tmp_path):
    return Crawl(tmp_path)


def wait_until_at(process: subprocess.Popen, number: int) -> int:
    for line in process.stdout:
        if int(line) >= number:
            return int(line)
    raise AssertionError(process.stderr.read())


def test_takes_what_there_is_and_the_same_command_takes_what_is_new(fake, capsys):
    assert fake.run(posts=30) == 0
    fake.check(30)
    assert capsys.readouterr().out.splitlines()[-1] == "closed"
    manifest = fake.manifest
    assert manifest["stage"] == "data_prep/crawl fake"
    assert manifest["rows"] == {"taken": 30, "kept": 27, "rejected": {WITHHELD: 3}}
    assert manifest["facts"] == {
        "last_post_made_at": "2026-03-01T00:29:00+00:00",
        "ended_by": "source",
        "position": {"next": 30},
    }
    fingerprint = manifest["fingerprint"]
    assert fake.run(posts=43) == 0
    fake.check(43)
    assert fake.manifest["fingerprint"] == fingerprint, "it does not tell how far a crawl came"
    assert fake.manifest["rows"]["taken"] == 43
    assert read_split(fake.output, "train", POSTS_FEATURES).features["created_at"].dtype == "timestamp[us, tz=UTC]"
    assert not fake.partial.exists()


def test_killed_at_any_moment_it_goes_on_and_no_post_is_lost_or_there_twice(fake):
    """Writes are going on nearly all the time: a shard after each three batches."""
    chance, end = random.Random(5), 0
    for _ in range(4):
        process = fake.start(pause=0.001)
        end = wait_until_at(process, end + chance.randrange(70, 200))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL and not fake.output.exists()
        state = json.loads((fake.partial / "crawl_state.json").read_text())
        fake.check(end, missing=20 + 2 * fake_crawl.BATCH)
        fake.check(state["position"]["next"])
    assert fake.run(posts=end + 100) == 0
    fake.check(end + 100)
    rows = fake.manifest["rows"]
    assert rows["taken"] == end + 100 == rows["kept"] + sum(rows["rejected"].values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_finished_data_set_and_the_same_command_goes_on(fake, tmp_path, capsys, number):
    process = fake.start(pause=0.001)
    wait_until_at(process, 50)
    assert fake.run() == 2 and "another process is writing it" in capsys.readouterr().err
    process.send_signal(number)
    out, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert out.endswith("closed\n") and "once more interrupts at once" in errors
    assert fake.manifest["facts"]["ended_by"] == number.name
    end = fake.manifest["facts"]["position"]["next"]
    fake.check(end)
    loaded = datasets.load_dataset(str(fake.output), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(loaded) == fake.manifest["rows"]["kept"]
    assert fake.run(posts=end + 30) == 0
    fake.check(end + 30)


def test_a_second_signal_interrupts_at_once_and_the_same_command_goes_on(fake):
    process = fake.start(fault="deaf")
    wait_until_at(process, 10 * fake_crawl.BATCH)
    process.send_signal(signal.SIGINT)
    while "stopping" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and "the same command goes on" in errors and "Traceback" not in errors
    fake.check(10 * fake_crawl.BATCH, missing=20 + fake_crawl.BATCH)
    assert fake.run(posts=100) == 0
    fake.check(100)


def test_the_limit_is_exact_and_counts_what_is_there(fake, capsys):
    assert fake.run(limit=25) == 0
    assert fake.manifest["rows"]["kept"] == 25 and fake.manifest["facts"]["ended_by"] == "limit"
    capsys.readouterr()
    assert fake.run(limit=25) == 0
    assert capsys.readouterr().out == "", "nothing was asked for"
    assert fake.run(limit=60) == 0
    assert fake.manifest["rows"]["kept"] == 60
    fake.check(66)


def test_the_duration_ends_a_stream(fake):
    assert fake.run(duration="0.2s", pause=0.02) == 0
    assert fake.manifest["facts"]["ended_by"] == "duration"
    fake.check(fake_crawl.BATCH)


def test_until_ends_a_stream_at_its_moment(fake):
    until = datetime.now(timezone.utc) + timedelta(seconds=0.3)
    assert fake.run(until=until.isoformat(), pause=0.02) == 0
    assert fake.manifest["facts"]["ended_by"] == "until" and datetime.now(timezone.utc) >= until
    fake.check(fake_crawl.BATCH)


@pytest.mark.parametrize("posts", ["null", 200])
def test_no_post_made_after_until_is_taken_and_a_later_run_may_take_it(fake, posts):
    assert fake.run(until="2026-03-01T00:30Z", posts=posts) == 0
    fake.check(31)
    assert len(fake.numbers()) == fake.manifest["rows"]["kept"] == 28
    assert fake.manifest["facts"]["ended_by"] == ("until" if posts == "null" else "source")
    assert fake.run(until="2026-03-01 01:00", posts=posts) == 0
    fake.check(61)
    rows = fake.manifest["rows"]
    assert rows["rejected"][STORED_BEFORE] == 3, "of the batch that was not taken whole"
    assert rows["taken"] == rows["kept"] + sum(rows["rejected"].values())


def test_a_quiet_stream_ends_where_it_began_after_until(fake, monkeypatch):
    monkeypatch.setattr(crawl, "QUIET_SECONDS", 0.2)
    assert fake.run(limit=5) == 0
    assert fake.run(limit=20, until="2026-03-01T00:30Z", fault="quiet") == 0
    assert fake.manifest["facts"]["ended_by"] == "until"


def test_another_query_is_refused_and_another_end_is_not(fake, capsys):
    assert fake.run(limit=5) == 0
    before = fake.manifest
    assert fake.run(query="dogs") == 2
    assert "setting query: was 'cats', now 'dogs'" in capsys.readouterr().err
    assert fake.manifest == before and not fake.partial.exists()
    assert fake.run(limit=6, token_file="key", shard_posts=7) == 0
    assert fake.run(query="dogs", overwrite="true", posts=8) == 0
    assert fake.numbers() == list(range(8))


def test_a_refusal_on_the_way_leaves_what_was_taken(fake, capsys):
    assert fake.run(fault="refuse") == 2
    assert "the key is no longer valid" in capsys.readouterr().err
    assert fake.manifest["facts"]["ended_by"] == "refusal"
    fake.check(fake_crawl.BATCH)
    assert fake.run(fault="no package", posts=20) == 2
    assert "the package fakeclient is missing. Install it: pip install 'msb-ner[crawl]'" in capsys.readouterr().err
    fake.check(fake_crawl.BATCH)
    assert fake.run(posts=20) == 0
    fake.check(20)


def test_without_a_post_there_is_no_data_set_and_nothing_in_the_next_runs_way(fake, capsys):
    assert fake.run(until="2026-02-01T00:00Z") == 2
    assert "no posts to keep (ended by until; 7 were taken)" in capsys.readouterr().err
    assert fake.run(fault="no package") == 2
    assert not fake.output.exists() and not fake.partial.exists()
    assert fake.run(query="dogs", posts=5) == 0


def test_files_become_a_data_set_whole_or_not_at_all(tmp_path, capsys):
    dump, output = tmp_path / "dump", tmp_path / "posts"
    dump.mkdir()
    (dump / "a.jsonl").write_text(
        '{"id": "1", "text": "R&amp;D"}\n{"id": "2", "text": "b"}\n{"id": "1", "text": "R&D"}\n'
    )
    (dump / "b.csv").write_text("tweet,when\nrain,2026-03-01\n")
    (dump / "notes.md").write_text("not posts")
    command = ["files", f"--input={dump}", f"--output={output}", "--columns.created_at=when"]
    assert crawl.main(command) == 0
    assert [(row["id"], row["text"]) for row in read_split(output, "train", POSTS_FEATURES)] == [
        ("1", "R&D"),
        ("2", "b"),
        ("b:2", "rain"),
    ]
    assert read_split(output, "train", POSTS_FEATURES)[2]["created_at"] == datetime(2026, 3, 1, tzinfo=timezone.utc)
    manifest = read_manifest(output)
    assert manifest["stage"] == "data_prep/crawl files"
    assert manifest["rows"] == {"taken": 4, "kept": 3, "rejected": {STORED_BEFORE: 1}}
    assert manifest["facts"] == {"files": 2, "files_passed_over": 1, "examples_passed_over": ["notes.md"]}
    assert sorted(path.name for path in output.iterdir()) == ["README.md", "config.yaml", "data", "manifest.json"]

    assert crawl.main(command) == 0 and read_manifest(output) == manifest, "up to date"
    (dump / "b.csv").write_text("tweet,when\nsnow,2026-03-01\n")
    assert crawl.main(command) == 2 and "input posts: content changed" in capsys.readouterr().err
    (dump / "a.jsonl.gz").write_bytes(b"\x1f\x8b not gzip")
    (dump / "a.jsonl").unlink()
    assert crawl.main([*command, "--overwrite=true"]) == 2 and "a.jsonl.gz" in capsys.readouterr().err
    assert read_manifest(output) == manifest and not output.with_name("posts.partial").exists()


def test_photos_lie_in_the_data_set(fake, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in (0, 1):
        PIL.Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    assert fake.run(posts=9, images="true", images_from=tmp_path / "photos") == 0
    images = [image for images in read_split(fake.output, "train", POSTS_FEATURES)["images"] for image in images]
    assert [image["problem"] for image in images] == [None, None, "no such file"] * 3
    assert {PIL.Image.open(fake.output / image["path"]).getpixel((0, 0)) for image in images if image["path"]} == {
        (0, 0, 0), (1, 0, 0),
    }  # fmt: skip
    assert fake.manifest["facts"]["photos"] == {"downloaded": 6, "no such file": 3}


@pytest.mark.parametrize(
    "argument, told",
    [
        ("--limit=0", "limit: 0 is not positive"),
        ("--until=tomorrow", "until: 'tomorrow' is not a moment such as"),
        ("--duration=90", "duration: '90' is not a time such as"),
        ("--shard_posts=0", "shard_posts: 0 is not positive"),
        ("--qurey=x", "qurey"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fake, capsys, argument, told):
    with pytest.raises(SystemExit, match="2"):
        fake_crawl.main([*fake.arguments(), argument])
    assert told in capsys.readouterr().err


def test_help_lists_the_sources_and_each_tells_its_settings(capsys, monkeypatch):
    for argv, told in ((["--help"], "bluesky "), (["fake", "--help"], "What to look for.")):
        with pytest.raises(SystemExit, match="0"):
            fake_crawl.main(argv)
        assert told in capsys.readouterr().out
    for argv in ([], ["twitter"]):
        with pytest.raises(SystemExit, match="2"):
            crawl.main(argv)
        assert "usage: crawl.py SOURCE" in capsys.readouterr().err
    code = "import sys; sys.modules['requests'] = None; from data_prep import crawl; crawl.main(['bluesky', '--help'])"
    subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL
    )  # an extra, for the crawl itself
    monkeypatch.setitem(sys.modules, "data_prep.sources.x", None)  # as if what it imports were not there
    assert crawl.main(["x"]) == 2
    assert "pip install 'msb-ner[crawl]'" in capsys.readouterr().err
