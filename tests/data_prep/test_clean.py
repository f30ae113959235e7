import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import clean
from data_prep.excluded import EXCLUDED, NEARLY_EXCLUDED
from data_prep.layout import CORPUS_FEATURES, NER_FEATURES, ner_row, read_corpus, splits_of, write_dataset
from data_prep.posts import EMPTY
from data_prep.sources.files import read_batches


def run(source, output, *arguments):
    return clean.main(["--input", str(source), "--output", str(output), *map(str, arguments)])


def kept(output):
    return {row["id"]: row["text"] for split in splits_of(output) for row in read_corpus(output, split)}


def rejected(output):
    folder = output / "rejected"
    rows = [row for file in folder.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    return {row["id"]: (row["text"], row["reason"]) for row in rows}


def manifest(output):
    return json.loads((output / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "posts"
    folder.mkdir()
    return folder


ALL_TO_TRAIN = ("--validation_share", "0")


def test_each_post_goes_somewhere_with_a_reason(source, tmp_path):
    lines = [
        "RT @a:  Jordan at last!\thttp://t.co/abcdefghij",
        "rt @a: jordan at LAST!",  # as the one above, case aside
        "",
        "http://t.co/abcdefghij",
        "too short",
        "--- 09:00 :) ---",  # one word
        "R&amp;D &#128514; &amp;lt;3 A&B &notit; e.g. 3.5 and/or",
        "a\x85b\u2028c d",  # one line to us
    ]
    (source / "a.txt").write_bytes("\n".join(lines).encode() + b"\nbad \xff bytes here\r\n")
    output = tmp_path / "out"
    assert run(source, output, *ALL_TO_TRAIN) == 0
    assert kept(output) == {
        "a:1": "RT @a: Jordan at last!",
        "a:7": "R&D 😂 <3 A&B &notit; e.g. 3.5 and/or",
        "a:8": "a b c d",
    }
    assert rejected(output) == {
        "a:2": (lines[1], clean.DUPLICATE),
        "a:3": ("", EMPTY),
        "a:4": (lines[3], EMPTY),
        "a:5": ("too short", "fewer than 3 words"),
        "a:6": (lines[5], "fewer than 3 words"),
        "a:9": ("bad \\xff bytes here", "not UTF-8"),
    }
    rows = manifest(output)["rows"]
    assert (rows["taken"], rows["kept"]) == (9, 3)
    assert rows["rejected"] == {"duplicate": 1, "empty": 2, "fewer than 3 words": 2, "not UTF-8": 1}
    assert splits_of(output) == ["train"]


def test_settings_switch_the_rules_off(source, tmp_path):
    (source / "a.txt").write_text("R&D\nR&D\n")
    output = tmp_path / "out"
    rules = ("--minimum_words", 0, "--drop_duplicates", "false")
    assert run(source, output, *rules, *ALL_TO_TRAIN) == 0
    assert kept(output) == {"a:1": "R&D", "a:2": "R&D"}


def test_files(source, tmp_path):
    (source / "b.txt.gz").write_bytes(gzip.compress(b"from a gzip file\n"))
    (source / "a.txt").write_text("from a text file")
    posts = [
        {"id": 17, "text": "from JSON\nlines, you see"},
        {"text": "without any id here"},
        {"id": "x"},
        ["a", "list"],
        {"id": "h", "text": "half a pair: \ud83d"},
    ]
    (source / "c.jsonl").write_text("\n".join(map(json.dumps, posts)) + "\n{broken\n\n")
    (source / "README.md").write_text("no posts in here")
    output = tmp_path / "out"
    assert run(source, output, *ALL_TO_TRAIN) == 0
    assert kept(output) == {
        "a:1": "from a text file",
        "b:1": "from a gzip file",
        "17": "from JSON lines, you see",
        "c:2": "without any id here",
    }
    reasons = {post_id: reason for post_id, (_, reason) in rejected(output).items()}
    assert reasons == {"c:3": "not a post", "c:4": "not a post", "h": "not UTF-8", "c:6": "not JSON", "c:7": "empty"}
    facts = manifest(output)["facts"]
    assert facts["files_passed_over"] == ["README.md"]
    assert facts["posts_of_source"] == {"a.txt": 1, "b.txt.gz": 1, "c.jsonl": 7}
    assert run(source / "a.txt", tmp_path / "single", *ALL_TO_TRAIN) == 0
    assert kept(tmp_path / "single") == {"a:1": "from a text file"}


def test_excluded_data_sets(source, tmp_path):
    def ner(row_id, text):
        words = text.split()
        return ner_row(row_id, words, ["O"] * len(words), words, ["O"] * len(words), range(len(words)))

    tweets = {
        "train": [ner("train:1", "RT @a_b : one two three four five . http://t.co/a")],
        "test": [ner("test:1", "alpha beta gamma delta epsilon")],
    }
    write_dataset(tmp_path / "ner", tweets, NER_FEATURES, "Tweets")
    corpus = {"validation": [{"id": "v", "text": "red green blue yellow"}]}
    write_dataset(tmp_path / "corpus", corpus, CORPUS_FEATURES, "Posts")
    posts = [
        "One two, three four five!",  # equal
        "RT @someone: one two three four five",  # its retweet
        "alpha beta gamma delta zeta",  # 4 of 6 words: 0.67
        "alpha beta gamma delta epsilon eta",  # 5 of 6 words: 0.83
        "alpha beta gamma delta",  # 4 of 5 words: 0.8
        "yellow blue green red",  # same words
        "red green blue",  # 3 of 4 words: 0.75
    ]
    (source / "a.txt").write_text("\n".join(posts))
    output = tmp_path / "out"
    both = f"[{tmp_path / 'ner'},{tmp_path / 'corpus'}]"
    assert run(source, output, *ALL_TO_TRAIN, "--exclude", both) == 0
    reasons = {post_id: reason for post_id, (_, reason) in rejected(output).items()}
    assert reasons == {
        "a:1": EXCLUDED,
        "a:2": EXCLUDED,
        "a:4": NEARLY_EXCLUDED,
        "a:5": NEARLY_EXCLUDED,
        "a:6": NEARLY_EXCLUDED,
    }
    assert manifest(output)["facts"]["excluded_matches"][2:4] == [["a:4", "test:1", 0.833], ["a:5", "test:1", 0.8]]
    assert sorted(manifest(output)["inputs"]) == ["exclude_0", "exclude_1", "posts"]

    # Names and numbers that are masked in the corpus are those of the excluded texts all the same.
    write_dataset(tmp_path / "names", {"test": [ner("n", "@jay @kim @bob see you in Oslo")]}, NER_FEATURES, "Tweets")
    (source / "a.txt").write_text("@jay @kim @bob see you in Oslo http://t.co/abc\nsee you in my own town\n")
    for mentions in ("keep", "replace", "remove"):
        masked = tmp_path / mentions
        options = ("--exclude", tmp_path / "names", "--mentions", mentions)
        assert run(source, masked, *ALL_TO_TRAIN, *options) == 0
        assert {post_id: reason for post_id, (_, reason) in rejected(masked).items()} == {"a:1": EXCLUDED}
    (source / "a.txt").write_text("\n".join(posts))

    strict = tmp_path / "strict"  # one folder, without brackets
    assert run(source, strict, *ALL_TO_TRAIN, "--exclude", tmp_path / "corpus", "--exclude_similarity", 1) == 0
    assert list(rejected(strict)) == ["a:6"]


def test_validation_posts_stay_when_others_are_added(source, tmp_path):
    lines = [f"post number {number} says hello" for number in range(1000)]
    (source / "b.txt").write_text("\n".join(lines))
    assert run(source, tmp_path / "one", "--validation_share", "0.1") == 0
    (source / "a.txt").write_text("\n".join(f"another {line}" for line in lines))
    assert run(source, tmp_path / "two", "--validation_share", "0.1") == 0
    before = read_corpus(tmp_path / "one", "validation")["text"][:]
    after = read_corpus(tmp_path / "two", "validation")["text"][:]
    assert 70 < len(before) < 130
    assert before == [text for text in after if not text.startswith("another")]


def test_runs_are_repeatable(source, tmp_path):
    (source / "a.txt").write_text("\n".join(f"post number {number} says hello" for number in range(300)))
    for name in "ab":
        assert run(source, tmp_path / name) == 0
    for path in ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"):
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({}, (), "no files of posts in the folder"),
        ({"a.txt": b""}, (), "no posts for the split train: 0 read"),
        ({"a.txt": b"a b c\n"}, ("--validation_share", "0.000001"), "no posts for the split validation"),
        ({"a.txt": b"one\n"}, (), "1 read, 0 kept (1 fewer than 3 words)"),
        ({"a.txt": b"a b c", "a.txt.gz": b""}, (), "the same name but for its ending"),
        ({"a.txt.gz": b"not gzip"}, (), "a.txt.gz: broken, or not to be read"),
        ({"a.txt.gz": gzip.compress(b"a b c\n" * 99)[:-9]}, (), "a.txt.gz: broken, or not to be read"),
        ({"a.txt": b"a b c\n"}, ("--validation_share", "1"), "validation_share 1.0: give"),
        ({"a.txt": b"a b c\n"}, ("--exclude_similarity", "0"), "exclude_similarity 0.0: give"),
        ({"a.txt": b"a b c\n"}, ("--minimum_words", "-1"), "minimum_words -1: give"),
        ({"a.txt": b"a b c\n"}, ("--exclude", "nowhere"), "nowhere: not found"),
    ],
)
def test_refusals(source, tmp_path, capsys, files, arguments, message):
    for name, content in files.items():
        (source / name).write_bytes(content)
    try:
        code = run(source, tmp_path / "out", *arguments)
    except SystemExit as stop:  # a setting without a meaning ends the process before the stage begins
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_a_folder_to_exclude_must_be_a_data_set(source, tmp_path, capsys):
    (source / "a.txt").write_text("a b c\n")
    assert run(source, tmp_path / "out", "--exclude", source) == 2
    assert "not a data set" in capsys.readouterr().err


pieces = st.sampled_from(
    [b"a", b" b", b" c", b"d e f", b" http://t.co/x", b"\n", b"\r\n", b"\xff", b"\xc2\x85", b"&amp;", b"\0"]
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.lists(pieces, max_size=60).map(b"".join))
def test_no_line_vanishes(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("case")
    (folder / "a.txt").write_bytes(content + b"\nthis one is kept")
    output = folder / "out"
    assert run(folder / "a.txt", output, *ALL_TO_TRAIN) == 0
    lines = content.count(b"\n") + 2
    rows = manifest(output)["rows"]
    reasons = Counter(reason for _, reason in rejected(output).values())
    assert rows["taken"] == lines == rows["kept"] + sum(rows["rejected"].values())
    assert rows["kept"] == len(kept(output))
    assert rows["rejected"] == dict(reasons)
    assert kept(output).keys() | rejected(output).keys() == {f"a:{number}" for number in range(1, lines + 1)}


def test_runs_as_a_command(source, tmp_path):
    (source / "a.txt").write_text("one two three\n")
    script = Path(clean.__file__)
    command = [sys.executable, str(script), "--input", str(source), "--output", str(tmp_path / "out"), *ALL_TO_TRAIN]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert kept(tmp_path / "out") == {"a:1": "one two three"}
    again = subprocess.run([*command, "--minimum_words", "2"], capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 2
    assert "setting minimum_words: was 3, now 2" in again.stderr


def test_finds_tmn_tweets_among_real_posts(shared_data, twitter_2015, source, tmp_path):
    with gzip.open(shared_data / "tweets" / "davidson_hate.txt.gz") as lines:
        (source / "a.txt").write_bytes(b"".join(list(lines)[15_000:19_100]))
    output = tmp_path / "out"
    assert run(source, output, "--exclude", twitter_2015) == 0
    assert manifest(output)["rows"]["taken"] == 4100
    assert manifest(output)["facts"]["excluded_matches"] == [
        ["a:231", "train:64695", 1.0],
        ["a:3834", "train:58141", 0.857],
        ["a:3847", "train:64695", 1.0],
        ["a:4030", "train:23182", 0.909],
    ]
    assert not any("http" in text and "://" in text for text in kept(output).values())


def test_settings_beyond_the_default(source, tmp_path):
    posts = [
        {"id": "1", "text": "RT @jordan: what a night in @chicago http://t.co/a", "lang": "en", "author_id": "x"},
        {"id": "2", "text": "write to me@mail.example.org or call 030 1234 5678, since 1999", "lang": "en"},
        {"id": "3", "text": "quelle nuit à chicago", "lang": "fr"},
        {"id": "4", "text": "this post sells cheap Watches to you", "lang": "en"},
        {"id": "5", "text": "another post of one author", "lang": "en", "author_id": "x"},
        {"id": "6", "text": "one two three four five six seven eight nine", "lang": "en"},
        {"id": "7", "text": "one two three four five six seven eight ten", "lang": "en"},
    ]
    (source / "a.jsonl").write_text("\n".join(map(json.dumps, posts)))
    (tmp_path / "blocked.txt").write_text("cheap watches\n")
    more = ["--mentions=replace", "--remove_retweet_prefix=true", "--mask_sensitive=true", "--language=en"]
    more += [f"--block_list={tmp_path / 'blocked.txt'}", "--posts_per_author=1", "--near_duplicates=0.8"]
    output = tmp_path / "out"
    assert run(source, output, *ALL_TO_TRAIN, *more) == 0
    assert kept(output) == {
        "1": "what a night in @user",
        "2": "write to [email] or call [phone], since 1999",
        "6": posts[5]["text"],
    }
    assert {post_id: reason for post_id, (_, reason) in rejected(output).items()} == {
        "3": "not in the language en",
        "4": "on the block list",
        "5": "more than 1 posts of its author",
        "7": clean.NEAR_DUPLICATE,
    }


def test_the_language_is_found_where_the_platform_has_none(source, tmp_path):
    (source / "a.txt").write_text("what a beautiful night in the city\nquelle belle nuit dans la ville\n")
    assert run(source, tmp_path / "out", *ALL_TO_TRAIN, "--language=en") == 0
    assert list(kept(tmp_path / "out")) == ["a:1"]


def test_a_ray_cluster_gives_what_this_machine_gives(source, tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'msb-ner[ray]'")
    for name in "ab":
        (source / f"{name}.txt").write_text("\n".join(f"{name} post number {i % 40} says hello" for i in range(99)))
    assert run(source, tmp_path / "native") == 0
    command = [sys.executable, clean.__file__, f"--input={source}", f"--output={tmp_path / 'ray'}", "--runner=ray"]
    subprocess.run(command, check=True, timeout=120)
    for path in ("data/train-00000-of-00001.parquet", "rejected/rejected-00000-of-00001.parquet"):
        assert (tmp_path / "native" / path).read_bytes() == (tmp_path / "ray" / path).read_bytes()


def test_a_reader_that_fails_is_never_taken_for_the_end(source, tmp_path, monkeypatch):
    def failing(files, **options):
        for file in files:
            yield from read_batches([file], **options)
            if file.name == "b.txt":
                raise OSError("the disk is gone")

    for name in "abc":
        (source / f"{name}.txt").write_text("".join(f"{name} post number {i} says hello\n" for i in range(50)))
    monkeypatch.setattr("data_prep.post_frame.read_batches", failing)
    for attempt in range(5):
        with pytest.raises(OSError, match="the disk is gone"):
            run(source, tmp_path / "out", "--minimum_words", attempt)
        assert not (tmp_path / "out").exists()
