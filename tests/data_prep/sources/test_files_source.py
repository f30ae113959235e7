import bz2
import csv
import gzip
import io
import json
import tarfile
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.layout import DatasetWriter
from data_prep.posts import EMPTY, NOT_A_POST, NOT_JSON, NOT_UTF8, POSTS_FEATURES, Post, PostImage
from data_prep.sources import members
from data_prep.sources.files import (
    RAW_SCHEMA,
    USUAL_COLUMNS,
    FilesSettings,
    PostColumns,
    Reading,
    files_passed_over,
    post_files,
    read_batches,
    read_posts,
)
from data_prep.sources.post_fields import ROUNDED_ID
from data_prep.sources.tables import BAD_QUOTES, BAD_ROW
from launch.errors import InputError
from launch.settings import identity_of, parse_settings

PACKERS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def tar(path, contents, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def read(path, columns=USUAL_COLUMNS, reading=None):
    """All posts of a file or a folder, which the batches must equal."""
    posts = [post for file in post_files(path) for post in read_posts(file, columns, path, reading)]
    batches = list(read_batches(post_files(path), columns, path))
    assert all(batch.schema.equals(RAW_SCHEMA) for batch in batches)
    for batch in batches:
        batch.validate(full=True)
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert rows == [{**post.row(), "problem": post.problem} for post in posts]
    return posts


def brief(posts):
    return [(post.id, post.text, post.problem) for post in posts]


def tweet(own_id, text="hello", **more):
    return {"id_str": str(own_id), "text": text, "user": {"id_str": "1", "screen_name": "ann"}, **more}


def lines(*values):
    return "".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values)


# ---------------------------------------------------------------- text


def test_text_lines(tmp_path):
    content = (
        b"\xef\xbb\xbfone\r\n\ntwo &amp;lt;3 R&D\na\x85b \x0b\x0c\x1c c\r d\xe2\x80\xa8e\nbad \xff &amp;\r\nlast\r"
    )
    content = content.replace(b"\x85", "\x85".encode())
    posts = read(write(tmp_path / "a.txt", content))
    assert brief(posts) == [
        ("a:1", "one", None),
        ("a:2", "", EMPTY),
        ("a:3", "two <3 R&D", None),
        ("a:4", "a\x85b \x0b\x0c\x1c c\r d\u2028e", None),
        ("a:5", "bad \\xff &amp;", NOT_UTF8),
        ("a:6", "last", None),
    ]
    assert posts[0] == Post("a:1", "one", source="a.txt")


pieces = st.sampled_from(
    [
        b"a",
        b"\n",
        b"\r",
        b"\r\n",
        b"\xff",
        b"\xc3",
        b"\xa4",
        b"&amp;",
        b"&#10;",
        b"&",
        b"\0",
        b"\xc2\x85",
        "😂".encode(),
    ]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.lists(pieces, max_size=60).map(b"".join), block=st.integers(1, 9), rows=st.integers(1, 5))
def test_batches_equal_posts(tmp_path, monkeypatch, content, block, rows):
    """Wherever blocks end; and both equal what Python makes of the lines."""
    monkeypatch.setattr(members, "BLOCK_BYTES", block + 3)  # a byte-order mark fits
    file = write(tmp_path / "a.txt", b"x" + content)
    posts = list(read_posts(file))
    plain = [line.removesuffix(b"\n").removesuffix(b"\r") for line in io.BytesIO(b"x" + content)]
    assert [post.id for post in posts] == [f"a:{number}" for number in range(1, len(plain) + 1)]
    for post, line in zip(posts, plain, strict=True):
        if post.problem == NOT_UTF8:
            with pytest.raises(UnicodeDecodeError):
                line.decode()
        else:
            assert post.text == line.decode().replace("&amp;", "&").replace("&#10;", "\n")
    batches = list(read_batches([file], rows=rows))
    assert all(0 < len(batch) <= rows for batch in batches)
    found = [row for batch in batches for row in batch.to_pylist()]
    assert found == [{**post.row(), "problem": post.problem} for post in posts]


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".json", ".ndjson", ".csv", ".tsv"])
@pytest.mark.parametrize("packing", PACKERS)
def test_empty_files(tmp_path, ending, packing):
    for content in (b"", b"\xef\xbb\xbf"):
        assert read(write(tmp_path / f"a{ending}{packing}", PACKERS[packing](content))) == []


@pytest.mark.parametrize("packing", PACKERS)
def test_compressed(tmp_path, packing):
    pack = PACKERS[packing]
    parts = pack(b"one\ntw") + pack(b"o\nthree")  # as `cat` or a parallel packer joins them
    posts = read(write(tmp_path / f"a.TXT{packing}", parts))
    assert brief(posts) == [("a:1", "one", None), ("a:2", "two", None), ("a:3", "three", None)]


def test_a_line_without_an_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(members, "LONGEST_LINE", 1000)
    monkeypatch.setattr(members, "BLOCK_BYTES", 64)
    assert len(read(write(tmp_path / "a.txt", "x" * 999 + "\n" + "y" * 999))) == 2
    with pytest.raises(InputError, match="b.txt: a line of more than"):
        list(read_posts(write(tmp_path / "b.txt", "one\n" + "x" * 2000 + "\n")))


# ---------------------------------------------------------------- JSON


def test_json_lines_of_all_kinds(tmp_path):
    page = {"data": [{"id": "5", "text": "five"}, "no tweet", {"id": "6"}], "meta": {}}
    content = lines(
        {"id": 17, "text": "R&amp;D\nlines", "lang": "EN", "author_id": 3, "images": ["https://a/b.jpg"]},
        {"text": "no id", "created_at": "2020-01-02T03:04:05Z", "source": "bluesky"},
        tweet(1, "RT @bob: lo…", retweeted_status=tweet(2, "long")),
        {"id": "4", "text": "shor…", "note_tweet": {"text": "whole"}, "edit_history_tweet_ids": ["4"]},
        page,
        {"delete": {"status": {"id": 1, "id_str": "1"}}},
        {"meta": {"result_count": 0}},
        {"errors": [{"title": "operational-disconnect"}]},
        ["a", "list"],
        {"id": "x"},
        '{"broken',
        "",
        {"id": "h", "text": "half a pair: \ud83d"},
        '{"id": 1.5392860337197876e+17, "text": "rounded"}',
        '{"id": 153928603371978755.0, "text": "exact"}',
        '{"id": 1e99999999999999999999, "text": "too large"}',
    )
    posts = read(write(tmp_path / "a.jsonl", content.encode() + b'{"text": "\xff"}\n{"id": "cut off", "te'))
    assert brief(posts) == [
        ("17", "R&D\nlines", None),
        ("a:2", "no id", None),
        ("1", "RT @bob: long", None),
        ("4", "whole", None),
        ("5", "five", None),
        ("a:5.2", '"no tweet"', NOT_A_POST),
        ("a:5.3", '{"id": "6"}', NOT_A_POST),
        ("a:6", '{"delete": {"status": {"id": 1, "id_str": "1"}}}', "stream message: delete"),
        ("a:8", '{"errors": [{"title": "operational-disconnect"}]}', NOT_A_POST),
        ("a:9", '["a", "list"]', NOT_A_POST),
        ("a:10", '{"id": "x"}', NOT_A_POST),
        ("a:11", '{"broken', NOT_JSON),
        ("a:12", "", EMPTY),
        ("h", "half a pair: \\ud83d", NOT_UTF8),
        ("a:14", "rounded", ROUNDED_ID),
        ("153928603371978755", "exact", None),
        ("a:16", '{"id": 1e99999999999999999999, "text": "too large"}', NOT_JSON),
        ("a:17", '{"text": "\\xff"}', NOT_UTF8),
        ("a:18", '{"id": "cut off", "te', NOT_JSON),
    ]
    assert (posts[0].lang, posts[0].author_id, posts[0].images) == ("en", "3", (PostImage("https://a/b.jpg"),))
    assert posts[1].created_at == datetime(2020, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    assert [post.source for post in posts[:5]] == ["a.jsonl", "bluesky", "x", "x", "x"]


@pytest.mark.parametrize("block", [*range(3, 12), 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_lists_pages_and_indented_objects(tmp_path, monkeypatch, indent, block):
    monkeypatch.setattr(members, "BLOCK_BYTES", block)
    values = [
        {"id": "a", "text": "ä [1, 2], 😂"},
        tweet(1),
        {"data": [{"id": "5", "text": "five"}]},
        {"text": "b"},
        123456,
    ]
    exact = '{"id": 153928603371978755.0, "text": "exact"}'
    expected = [("a", None), ("1", None), ("5", None), ("a:4", None), ("a:5", NOT_A_POST), ("153928603371978755", None)]
    encoded = [*(json.dumps(value, indent=indent, ensure_ascii=False) for value in values), exact]
    for content in ("\n [" + ", ".join(encoded) + "]\n", "\n".join(encoded)):
        posts = read(write(tmp_path / "a.json", content))
        assert [(post.id, post.problem) for post in posts] == expected
        assert posts[0].text == "ä [1, 2], 😂"
    assert read(write(tmp_path / "a.json", "[ ]")) == []


@pytest.mark.parametrize(
    "content", ['[{"text": "a"}, {"te', '[{"text": "a"}, {"text": "b"}', '{\n "text": "a"}\n{\n"text"']
)
def test_broken_json_lists_are_refused(tmp_path, content):
    with pytest.raises(InputError, match="a.json: .*value"):
        list(read_posts(write(tmp_path / "a.json", content)))


def test_a_broken_list_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.sources.json_files.LONGEST_LINE", 1000)
    monkeypatch.setattr(members, "BLOCK_BYTES", 100)
    reading = Reading()
    file = write(tmp_path / "a.json", '[{"text": "a"}, {"text" "b"}' + ', {"text": "c"}' * 9999)
    with pytest.raises(InputError, match="broken JSON in value 2"):
        list(read_posts(file, reading=reading))
    assert reading.bytes_read < 5000


# ---------------------------------------------------------------- tables


def test_csv(tmp_path):
    rows = [
        ["Tweet_ID", "Text", "language", "date", "user_id", "image_url", "likes"],
        ["17", 'a "quoted", R&amp;D', "EN", "2020-01-02", "3", "https://a/b.jpg https://a/c.jpg", "5"],
        ["18", "two\nlines", "", "", "", "", ""],
        ["1.5392860337197876e+17", "rounded", "", "", "1.5e9", "", ""],
        ["19.0", "not rounded", "", "", "12.0", "", ""],
        ["", "no id", "", "", "", "", ""],
        ["20", "", "", "", "", "", ""],
    ]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    content = "\ufeff" + text.getvalue() + '21,cut off\n22,"x"y,,,,,\n\n23,fine,,,,,\n'
    posts = read(write(tmp_path / "a.csv", content.encode() + b'24,b\xffd,,,,,\n25,"never closed,,,,,\nanother'))
    assert brief(posts) == [
        ("17", 'a "quoted", R&D', None),
        ("18", "two\nlines", None),
        ("a:5", "rounded", ROUNDED_ID),
        ("19", "not rounded", None),
        ("a:7", "no id", None),
        ("20", "", EMPTY),
        ("a:9", "21,cut off", BAD_ROW),
        ("a:10", '22,"x"y,,,,,\n', BAD_QUOTES),
        ("23", "fine", None),
        ("a:13", "b\\xffd", NOT_UTF8),
        ("a:14", '25,"never closed,,,,,\nanother\n', BAD_QUOTES),
    ]
    first = posts[0]
    assert (first.lang, first.author_id, first.source) == ("en", "3", "a.csv")
    assert first.created_at == datetime(2020, 1, 2, tzinfo=timezone.utc)
    assert [image.url for image in first.images] == ["https://a/b.jpg", "https://a/c.jpg"]
    assert posts[3].author_id == "12"


def test_a_quote_that_is_never_closed_costs_a_bounded_part(tmp_path):
    rows = "".join(f"{number},post {number}\n" for number in range(30_000))
    posts = read(write(tmp_path / "a.csv", 'id,text\nx,"open\n' + rows))
    assert posts[0].problem == BAD_QUOTES and posts[0].text.startswith('x,"open\n0,post 0\n1,post 1\n')
    assert [post.text for post in posts if not post.problem][-1] == "post 29999"
    assert sum(post.text.count("post") for post in posts) == 30_000


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_utf_16_is_refused_by_name(tmp_path, name, encoding):
    mark = b"" if encoding == "utf-16" else b"\xfe\xff"
    path = write(tmp_path / name, mark + "id,text\n1,hello\n".encode(encoding))
    with pytest.raises(InputError, match=f"{name}.*UTF-16.*Save it as UTF-8"):
        read(path)


def test_objects_that_are_no_page_are_counted(tmp_path):
    values = [{"id": 1, "content": "hello", "meta": {"a": 1}}, {"id": 2, "title": "x", "data": None}]
    posts = read(write(tmp_path / "a.jsonl", lines(*values)))
    assert [post.problem for post in posts] == [NOT_A_POST] * 2


def test_languages_of_tables(tmp_path):
    codes = ["en_US", "und", "EN", "", "qme", "pt-BR"]
    rows = "".join(f"{number},hello,{code}\n" for number, code in enumerate(codes))
    posts = read(write(tmp_path / "a.csv", "id,text,lang\n" + rows))
    assert [post.lang for post in posts] == ["en-us", None, "en", None, None, "pt-br"]


def test_linked_folders_are_read(tmp_path):
    write(tmp_path / "elsewhere" / "b.txt", "second\n")
    write(tmp_path / "dumps" / "a.txt", "first\n")
    (tmp_path / "dumps" / "2017").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "dumps")  # is gone into once
    assert sorted(post.text for post in read(tmp_path / "dumps")) == ["first", "second"]


def test_tsv(tmp_path):
    content = 'id\ttext\n1\t"Hello" he said\n2\t"quoted ""whole"""\n3\t"open\n4\ta\tb\n\n5\tfine'
    assert brief(read(write(tmp_path / "a.tsv", content))) == [
        ("1", '"Hello" he said', None),
        ("2", 'quoted "whole"', None),
        ("3", '"open', None),
        ("a:5", "4,a,b", BAD_ROW),
        ("5", "fine", None),
    ]


def test_parquet(tmp_path):
    moment = datetime(2020, 1, 2, 3, 4, 5, 678, timezone.utc)
    table = pa.table(
        {
            "content": pa.array(["R&amp;D", None, "c"]).dictionary_encode(),
            "tweet_id": pa.array([153928603371978755, 2, None], pa.int64()),
            "timestamp": pa.array([1577934245000678999] * 3, pa.timestamp("ns")),
            "photos": pa.array([["https://a/b.jpg"], [], None], pa.list_(pa.string())),
            "other": [1.0, 2.0, 3.0],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    posts = read(tmp_path / "a.parquet")
    assert brief(posts) == [("153928603371978755", "R&D", None), ("2", "", EMPTY), ("a:3", "c", None)]
    assert posts[0].created_at == moment
    assert posts[0].images == (PostImage("https://a/b.jpg"),)
    posts = read(tmp_path / "a.parquet", PostColumns(text="other"))
    assert [post.problem for post in posts] == [NOT_A_POST] * 3


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (PostColumns(), r"no column is named as one with the text would be \(it has id, words\).*--columns.text"),
        (PostColumns(text="word"), r"no column 'word' \(it has id, words\).*--columns.text"),
        (PostColumns(text="words", lang="lang"), r"no column 'lang' .*--columns.lang"),
    ],
)
def test_missing_columns(tmp_path, columns, message):
    write(tmp_path / "a.csv", "id,words\n1,a\n")
    write(tmp_path / "a.tsv", "id\twords\n1\ta\n")
    pq.write_table(pa.table({"id": ["1"], "words": ["a"]}), tmp_path / "a.parquet")
    for file in tmp_path.iterdir():
        with pytest.raises(InputError, match=f"{file.name}: {message}"):
            list(read_posts(file, columns))
        assert brief(read(file, PostColumns(text="words"))) == [("1", "a", None)]


def test_a_posts_data_set_is_read_as_it_is(tmp_path):
    post = Post(
        "1",
        "already decoded: &amp;",
        "en",
        datetime(2020, 1, 2, tzinfo=timezone.utc),
        "mastodon:example.org",
        "2",
        (PostImage("https://a/b.jpg", "alt", "images/ab/ab.jpg", "ab"),),
    )
    with DatasetWriter(tmp_path, POSTS_FEATURES) as writer:
        writer.add("train", post.row())
        writer.reject(Post("2", "rejected").row(), "empty")
    writer.write_card("Posts", {})
    write(tmp_path / "manifest.json", "{}")
    write(tmp_path / "images/ab/ab.jpg", b"")
    assert read(tmp_path) == [post]
    assert files_passed_over(tmp_path, post_files(tmp_path)) == []


# ---------------------------------------------------------------- folders and archives


def test_a_folder(tmp_path):
    for minute in ("30", "31"):
        content = lines(tweet(f"1{minute}"), {"delete": {}}).encode()
        write(tmp_path / f"2017/11/01/00/{minute}.json.bz2", bz2.compress(content))
    write(tmp_path / "b.txt", "from text")
    write(tmp_path / "2017/README.md", "no posts in here")
    write(tmp_path / ".cache/c.txt", "hidden")
    write(tmp_path / ".json", "hidden")
    reading = Reading()
    posts = read(tmp_path, reading=reading)
    files = post_files(tmp_path)
    assert [post.id for post in posts] == ["130", "2017/11/01/00/30:2", "131", "2017/11/01/00/31:2", "b:1"]
    assert [post.source for post in posts] == ["x"] * 4 + ["b.txt"]
    assert files_passed_over(tmp_path, files) == ["2017/README.md"]
    assert reading.bytes_read == sum(file.stat().st_size for file in files)
    assert [post.id for post in read(files[0])] == ["130", "30:2"]


@pytest.mark.parametrize(
    ("name", "mode"), [("d.tar", "w"), ("d.tar.gz", "w:gz"), ("d.tar.bz2", "w:bz2"), ("d.tgz", "w:gz")]
)
def test_archives(tmp_path, name, mode):
    contents = {
        "./2017/30.json.bz2": bz2.compress(lines(tweet(1), "{").encode()),
        "2017/31.json.gz": gzip.compress(b"{"),
        "../../escape.txt": b"never a path",
        "/etc/absolute.txt": b"nor this",
        "2017/a.txt.zst": zstandard.compress(b"one\ntwo &amp; \xff\n" * 3),
        "big.txt": b"line\n" * 20_000,
        "t.csv": b"text\nfrom a table\n",
        "photo.jpg": b"\xff\xd8",
        "._2017/30.json": b"what some systems add",
        "inner.tar": b"",
        "p.parquet": b"",
    }
    tar(tmp_path / name, contents, mode)
    before = sorted(tmp_path.parent.rglob("*"))
    reading = Reading()
    posts = read(tmp_path / name, reading=reading)
    ids = [post.id for post in posts if not post.id.startswith(f"{name}/big")]
    assert ids == [
        "1",
        f"{name}/./2017/30:2",
        f"{name}/2017/31:1",
        f"{name}/../../escape:1",
        f"{name}//etc/absolute:1",
        *(f"{name}/2017/a:{number}" for number in range(1, 7)),
        f"{name}/t:2",
    ]
    assert len(posts) == len(ids) + 20_000
    assert posts[3].source == f"{name}/../../escape.txt"
    assert reading.passed_over == [f"{name}/{x}" for x in ("photo.jpg", "._2017/30.json", "inner.tar", "p.parquet")]
    assert reading.bytes_read == (tmp_path / name).stat().st_size
    assert sorted(tmp_path.parent.rglob("*")) == before  # nothing was unpacked


def test_links_in_an_archive_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("secret.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    reading = Reading()
    assert read(tmp_path / "a.tar", reading=reading) == []
    assert reading.passed_over == ["a.tar/secret.txt"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no files of posts in the folder"),
        (["a.md"], "no files of posts in the folder"),
        (["a.txt", "a.txt.gz"], "a.txt.gz: the same name but for its ending as a.txt"),
        (["b/a.csv", "b/a.json.bz2"], "the same name but for its ending"),
    ],
)
def test_folders_refused(tmp_path, names, message):
    for name in names:
        write(tmp_path / name, "")
    with pytest.raises(InputError, match=message):
        post_files(tmp_path)


def test_equal_names_apart(tmp_path):
    write(tmp_path / "a/x.txt", "one")
    write(tmp_path / "b/x.txt", "two")
    tar(tmp_path / "a.tar", {"x.txt": b"three"})
    assert [post.id for post in read(tmp_path)] == ["a/x:1", "a.tar/x:1", "b/x:1"]
    tar(tmp_path / "b.tar", {"x.txt": b"one", "x.json": b"{}"})
    with pytest.raises(InputError, match="b.tar: holds two files b.tar/x"):
        list(read_posts(tmp_path / "b.tar"))
    with pytest.raises(InputError, match="not a file of posts by its name"):
        post_files(write(tmp_path / "a.md", ""))


TEXT = b"".join(b"line %d of a text\n" % (number**3) for number in range(3000))


def archive_of(*texts, ending=".txt"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number, text in enumerate(texts):
            info = tarfile.TarInfo(f"{number}{ending}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return file.getvalue()


WHOLE = archive_of(TEXT, TEXT)
SECOND = WHOLE.index(b"1.txt")
BROKEN = {
    "cut.txt.gz": gzip.compress(TEXT)[:-9],
    "half.txt.gz": gzip.compress(TEXT)[: len(gzip.compress(TEXT)) // 2],
    "cut.txt.bz2": bz2.compress(TEXT)[:-9],
    "cut.txt.zst": zstandard.compress(TEXT)[:-9],
    "not.txt.gz": b"not gzip",
    "not.txt.bz2": b"not bzip2",
    "not.jsonl.zst": b"not zstandard",
    "rubbish.txt.gz": gzip.compress(TEXT) + b"rubbish",
    "not.tar": b"not a tar file" * 99,
    "none.tar": b"",
    "in a member.tar": WHOLE[: SECOND + 3000],
    "in a header.tar": WHOLE[: SECOND + 300],
    "between members.tar": WHOLE[:SECOND],
    "header overwritten.tar": WHOLE[:SECOND] + b"#" * 512 + WHOLE[SECOND + 512 :],
    "cut.tar.gz": gzip.compress(WHOLE)[:-2000],
    "member.tar": archive_of(gzip.compress(TEXT)[:-9], ending=".txt.gz"),
    "not.parquet": b"PAR1 or not",
    "empty.parquet": b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path, name):
    file = write(tmp_path / name, BROKEN[name])
    for reader in (lambda: read_posts(file), lambda: read_batches([file])):
        with pytest.raises(InputError, match=f"{name}: broken"):
            for _ in reader():
                pass


def test_a_file_that_is_gone(tmp_path):
    with pytest.raises(InputError, match="gone.txt"):
        list(read_posts(tmp_path / "gone.txt"))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, 511) | st.integers(SECOND, SECOND + 511) | st.integers(0, len(WHOLE) - 1),
    byte=st.integers(0, 255),
)
def test_a_byte_overwritten_loses_nothing_in_silence(tmp_path, place, byte):
    data = bytearray(WHOLE)
    data[place] = byte
    file = write(tmp_path / "a.tar", bytes(data))
    reading = Reading()
    try:
        posts = list(read_posts(file, reading=reading))
    except InputError:
        return
    renamed = len(reading.passed_over)
    assert len(posts) >= (2 - renamed) * 3000 - 1  # the byte may have been a line's end


# ---------------------------------------------------------------- settings and real files


def test_settings(tmp_path):
    made = parse_settings(FilesSettings, ["--input", "posts", "--output", "out", "--columns.text", "words"])
    assert made.columns == PostColumns(text="words")
    identity = identity_of(made)
    assert identity["columns.text"] == "words" and "input" not in identity


def test_real_tweets_v1(shared_data):
    file = shared_data / "tweet_json/v1_btc/a.no-labels.json.gz"
    posts = read(file)
    with gzip.open(file) as source:
        tweets = [json.loads(line) for line in source]
    assert [post.id for post in posts] == [tweet["id_str"] for tweet in tweets] and len(posts) == 774
    assert [post.lang for post in posts] == [None if t["lang"] == "und" else t["lang"] for t in tweets]
    assert [post.author_id for post in posts] == [str(tweet["user"]["id"]) for tweet in tweets]
    photos = [[m["media_url_https"] for m in t.get("extended_entities", {}).get("media", [])] for t in tweets]
    assert [[image.url for image in post.images] for post in posts] == photos
    assert sum(map(bool, photos)) == 13
    moments = {post.created_at.strftime("%a %b %d %H:%M:%S +0000 %Y") for post in posts}
    assert moments == {tweet["created_at"] for tweet in tweets}
    assert not any(post.problem for post in posts)
    changed = [(t["text"], post.text) for t, post in zip(tweets, posts, strict=True) if t["text"] != post.text]
    assert ("Fresh sheets &lt;3", "Fresh sheets <3") in changed
    assert all("&" in before for before, _ in changed)


def test_real_pages_v2(shared_data):
    folder = shared_data / "tweet_json/v2_twarc_csv"
    posts = read(folder)
    sources = [json.loads(line) for file in post_files(folder) for line in file.open() if line.startswith('{"data": [')]
    streamed = {line for line in (folder / "streaming_output_with_error.jsonl").open() if line.endswith("}\n")}
    expected = [item["id"] for page in sources for item in page["data"]]
    expected += [json.loads(line)["data"]["id"] for line in streamed]
    assert Counter(post.id for post in posts if not post.problem) == Counter(expected)
    assert len(expected) == 109
    [cut_off] = [post for post in posts if post.problem]
    assert (cut_off.id, cut_off.problem) == ("streaming_output_with_error:8", NOT_JSON)
    assert cut_off.text == '{"data": {"author_id": "1021159080151404544"'
    assert sum(bool(post.images) for post in posts) == 7
    assert files_passed_over(folder, post_files(folder)) == ["LICENSE"]


def test_real_text(shared_data):
    folder = shared_data / "tweets"
    reading = Reading()
    batches = list(read_batches(post_files(folder), within=folder, reading=reading))
    assert sum(map(len, batches)) == 535_528
    assert reading.bytes_read == sum(file.stat().st_size for file in Path(folder).glob("*.txt.gz"))
    file = folder / "wnut17_conll.txt.gz"
    read(file)
