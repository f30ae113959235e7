import io
import json

import PIL.Image
import pyarrow.parquet as pq
import pytest

from data_prep import tmn
from data_prep.layout import NER_FEATURES, NER_TAGS, read_ner, with_reason

FILES = {
    "train.txt": """IMGID:7
RT\tO
Dr\tO
.\tO
King\tI-PER
in\tO
New\tB-LOC
http://t.co/abcdefghij\tO
Orleans\tI-LOC
Cup\tB-OTHER
https\tO
:\tO
//t\tO
.\tO
co/abcdefghij\tO

IMGID:8
http://t.co/abcdefghij\tB-ORG
http://t.co/…\tI-ORG

""",
    "valid.txt": "IMGID:9\nRT\tO\nDr\tO\n.\tO\nKing\tB-PER\nin\tO\nNew\tB-LOC\nOrleans\tI-LOC\nCup\tO",
    "test.txt": "IMGID:7\nhello\tO\n\n",
}


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "twitter"
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.tsv"
    path.write_text("image_id\ttext\n7\tball, net\n8\tcat\n9\t\n10\tdog\n")
    return path


def run(source, output, *arguments):
    return tmn.main(["--input", str(source), "--output", str(output), *map(str, arguments)])


def manifest(output):
    return json.loads((output / "manifest.json").read_text(encoding="utf-8"))


def test_rows(source, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(source, output) == 0
    (row,) = read_ner(output, "train").to_list()
    assert row["id"] == "train:1"
    assert row["tokens"] == ["RT", "Dr", ".", "King", "in", "New", "Orleans", "Cup"]
    # the orphan I-LOC behind a URL was an entity of its own and stays one
    assert [NER_TAGS[tag] for tag in row["ner_tags"]] == "O O O B-PER O B-LOC B-LOC B-MISC".split()
    assert row["source_index"] == [0, 1, 2, 3, 4, 5, 7, 8]
    assert row["source_tags"] == "O O O I-PER O B-LOC O I-LOC B-MISC O O O O O".split()
    assert row["source_tokens"][9:] == ["https", ":", "//t", ".", "co/abcdefghij"]
    assert (row["image_id"], row["image"], row["image_words"], row["image_word_scores"]) == ("7", None, [], None)

    (left_out,) = rejected_rows(output)
    assert (left_out["id"], left_out["source_tags"], left_out["reason"]) == (
        "train:17",
        ["B-ORG", "I-ORG"],
        tmn.ONLY_URLS,
    )
    assert manifest(output)["rows"] == {"taken": 4, "kept": 3, "rejected": {tmn.ONLY_URLS: 1}}

    audit = manifest(output)["facts"]["audit"]
    assert audit["splits"]["train"] == {
        "tweets": 2,
        "tokens": 16,
        "url_tokens_removed": 8,
        "urls_cut_from_tokens": 0,
        "strict": {"PER": 0, "LOC": 1, "ORG": 1, "MISC": 1},
        "conlleval": {"PER": 1, "LOC": 2, "ORG": 1, "MISC": 1},
        "orphans_repaired": 2,
    }
    pairs = {pair: found["pairs"] for pair, found in audit["near_duplicates"].items()}
    assert pairs == {"train and validation": 1, "train and test": 0, "validation and test": 0}
    assert audit["near_duplicates"]["train and validation"]["examples"] == [["train:1", "validation:1", 1.0]]
    printed = capsys.readouterr().out
    assert "orphan I- tags repaired" in printed
    assert "train:1 and validation:1 (1.00)" in printed


def rejected_rows(output):
    (file,) = (output / "rejected").iterdir()
    table = pq.read_table(file)
    assert table.column_names == list(with_reason(NER_FEATURES))
    return table.to_pylist()


def test_image_words(source, words, tmp_path):
    assert run(source, tmp_path / "a", "--image_words", words) == 0
    assert read_ner(tmp_path / "a", "train")["image_words"][:] == [["ball, net"]]
    assert read_ner(tmp_path / "a", "validation")["image_words"][:] == [[]]
    facts = manifest(tmp_path / "a")["facts"]["image_words"]
    assert facts == {"table": "words.tsv", "images_without_words": 1, "lines_not_used": 1}
    assert run(source, tmp_path / "b", "--image_words", words, "--image_words_separator", ",") == 0
    assert read_ner(tmp_path / "b", "test")["image_words"][:] == [["ball", "net"]]


def test_the_words_of_a_caption_that_name_something(source, words, tmp_path):
    words.write_text("image_id\ttext\n7\ta man standing next to a dog, a cat and a dog\n8\tit is\n9\tit is\n")
    assert run(source, tmp_path / "a", "--image_words", words, "--content_words", "2") == 0
    found = {name: read_ner(tmp_path / "a", name)["image_words"][:] for name in ("train", "validation", "test")}
    assert [["man", "dog"]] in found.values() and [[]] in found.values()
    with pytest.raises(SystemExit):
        run(source, tmp_path / "b", "--image_words", words, "--content_words", "0")


def test_a_table_that_lacks_ids(source, words, tmp_path, capsys):
    words.write_text("image_id\ttext\n8\tcat\n")
    assert run(source, tmp_path / "a", "--image_words", words) == 2
    assert f"{words}: no line for 2 of 3 image ids: 7, 9. Add them" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert run(source, tmp_path / "a", "--image_words", words, "--missing_image_words", "empty") == 0
    assert read_ner(tmp_path / "a", "train")["image_words"][:] == [[]]
    assert manifest(tmp_path / "a")["facts"]["image_words"]["images_without_words"] == 2


def test_images(source, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (5, 4)).save(buffer, "JPEG")
    (folder / "7.jpg").write_bytes(buffer.getvalue())
    (folder / "8.jpg").write_bytes(b"broken")
    assert run(source, tmp_path / "out", "--images", folder) == 0
    assert read_ner(tmp_path / "out", "train")[0]["image"].size == (5, 4)
    assert read_ner(tmp_path / "out", "validation")[0]["image"] is None
    assert manifest(tmp_path / "out")["facts"]["images_left_out"] == {"not an image": 1, "no such file": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("valid.txt", b"IMGID:1\na O\n", "valid.txt:2: no tab"),
        ("test.txt", b"IMGID:1\n\xff\tO\n", "test.txt:2: byte 0xff"),
        ("test.txt", b"", "test.txt: no tweets"),
        ("train.txt", b"IMGID:1\na\tB-DRUG\n", "train.txt:2: unknown tag 'B-DRUG'"),
        ("train.txt", None, "train.txt: no such file"),
    ],
)
def test_malformed_files_are_refused(source, tmp_path, capsys, name, content, message):
    (source / name).unlink() if content is None else (source / name).write_bytes(content)
    assert run(source, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_real_files(twitter_2015):
    facts = manifest(twitter_2015)["facts"]
    splits = facts["audit"]["splits"].values()
    assert [split["tweets"] for split in splits] == [4000, 1000, 3257]
    assert [sum(split["strict"].values()) for split in splits] == [6166, 1541, 5072]
    assert [sum(split["conlleval"].values()) for split in splits] == [6352, 1594, 5207]
    assert [split["orphans_repaired"] for split in splits] == [186, 53, 135]
    assert [list(split["strict"].values()) for split in splits] == [
        [2217, 2091, 927, 931],
        [552, 522, 247, 220],
        [1816, 1697, 839, 720],
    ]
    assert facts["images_left_out"] == {"no such file": 8257 - 15}
    assert facts["image_words"]["images_without_words"] == 2  # the table has empty captions
    train = read_ner(twitter_2015, "train", columns=["tokens", "ner_tags", "source_tokens", "source_index"])
    assert (
        sum(NER_TAGS[tag][0] == "B" for tags in train["ner_tags"] for tag in tags) == 6352
    )  # no entity lost with a URL
    removed = set()
    for row in train:
        removed |= {t for i, t in enumerate(row["source_tokens"]) if i not in row["source_index"]}
    pieces = {"http", "https", ":", "//t", "."}
    assert {t for t in removed if "http" not in t and not t.startswith("co/")} <= pieces
    assert not any("http" in token.lower() for tokens in train["tokens"] for token in tokens)
