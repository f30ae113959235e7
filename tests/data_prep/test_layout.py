import io
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import layout
from data_prep.layout import (
    CORPUS_FEATURES,
    NER_FEATURES,
    DatasetWriter,
    ner_row,
    read_corpus,
    read_ner,
    shard_files,
    write_dataset,
)
from launch.errors import InputError


def jpeg(color: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 6), color).save(buffer, "JPEG")
    return buffer.getvalue()


def ner_rows() -> list[dict]:
    with_image = ner_row("a", ["Jordan"], ["B-PER"], ["Jordan", "http://t.co/a"], ["I-PER", "O"], [0], "7")
    with_image |= {"image": {"bytes": jpeg("red"), "path": "7.jpg"}, "image_words": ["ball", "net"]}
    return [with_image, ner_row("b", ["at", "last"], ["O", "O"], ["at", "last"], ["O", "O"], [0, 1])]


def corpus_rows(count: int) -> list[dict]:
    return [{"id": f"posts:{number}", "text": f"post {number} \x85 \u2028 😀"} for number in range(count)]


def load(folder: Path, tmp_path: Path, *args, **kwargs):
    return datasets.load_dataset(str(folder), *args, cache_dir=str(tmp_path / "cache"), **kwargs)


def test_load_dataset_opens_a_corpus(tmp_path):
    rejected = [({"id": "posts:9", "text": ""}, "empty")]
    splits = {"train": corpus_rows(3), "validation": corpus_rows(1)}
    write_dataset(tmp_path / "d", splits, CORPUS_FEATURES, "Posts", rejected=rejected)
    loaded = load(tmp_path / "d", tmp_path)
    assert loaded["train"].features == CORPUS_FEATURES
    assert {split: rows.to_list() for split, rows in loaded.items()} == splits
    left_out = load(tmp_path / "d", tmp_path, "rejected")
    assert left_out["rejected"].to_list() == [{"id": "posts:9", "text": "", "reason": "empty"}]


def test_load_dataset_opens_ner(tmp_path):
    rows = ner_rows()
    write_dataset(tmp_path / "d", {"train": rows, "validation": rows[1:], "test": rows}, NER_FEATURES, "Tweets")
    loaded = load(tmp_path / "d", tmp_path)
    assert list(loaded) == ["train", "validation", "test"]
    assert loaded["train"].features == NER_FEATURES
    assert loaded["train"].features["ner_tags"].feature.names == list(layout.NER_TAGS)
    assert loaded["train"][0]["image"].size == (8, 6)
    assert loaded["validation"]["image"][:] == [None]  # a column without any image is still one of images
    undecoded = loaded["train"].cast_column("image", datasets.Image(decode=False))
    assert undecoded.to_list() == rows  # bytes of the image as they were


def test_without_rejected_rows_there_is_no_such_config(tmp_path):
    write_dataset(tmp_path / "d", {"train": corpus_rows(1)}, CORPUS_FEATURES, "Posts")
    assert datasets.get_dataset_config_names(str(tmp_path / "d")) == ["default"]
    assert not (tmp_path / "d" / "rejected").exists()


def test_readers_give_what_was_written(tmp_path):
    write_dataset(tmp_path / "c", {"train": corpus_rows(5)}, CORPUS_FEATURES, "Posts")
    assert read_corpus(tmp_path / "c", "train").to_list() == corpus_rows(5)
    write_dataset(tmp_path / "n", {"train": ner_rows()}, NER_FEATURES, "Tweets")
    ner = read_ner(tmp_path / "n", "train")
    assert ner.features == NER_FEATURES
    assert ner[0]["image"].size == (8, 6)
    some = read_ner(tmp_path / "n", "train", columns=["ner_tags", "id"])
    assert some.to_list() == [{"ner_tags": [1], "id": "a"}, {"ner_tags": [0, 0], "id": "b"}]
    assert layout.read_texts(tmp_path / "n", "train") == (["a", "b"], ["Jordan http://t.co/a", "at last"])
    assert layout.read_texts(tmp_path / "c", "train")[1][1] == "post 1 \x85 \u2028 😀"


def test_same_rows_give_same_bytes_and_shards_join(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "BATCH_ROWS", 10)
    monkeypatch.setattr(layout, "SHARD_BYTES", 500)
    for name in "ab":
        write_dataset(tmp_path / name, {"train": corpus_rows(95)}, CORPUS_FEATURES, "Posts", {"posts": 95})
    contents = [
        {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    assert contents[0] == contents[1]
    shards = sorted(path.name for path in (tmp_path / "a" / "data").iterdir())
    assert len(shards) > 1
    assert shards[0] == f"train-00000-of-{len(shards):05d}.parquet"
    assert read_corpus(tmp_path / "a", "train").to_list() == corpus_rows(95)
    assert load(tmp_path / "a", tmp_path)["train"].to_list() == corpus_rows(95)
    (tmp_path / "a" / "data" / shards[1]).unlink()
    with pytest.raises(InputError, match="shards of split 'train' are missing"):
        read_corpus(tmp_path / "a", "train")


def test_ids_are_read_by_their_places(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "BATCH_ROWS", 10)
    monkeypatch.setattr(layout, "SHARD_BYTES", 500)
    write_dataset(tmp_path, {"train": corpus_rows(95)}, CORPUS_FEATURES, "Posts")
    assert len(list((tmp_path / "data").iterdir())) > 1
    places = np.array([94, 0, 50, 50, 9, 10])
    ids, _ = layout.read_texts(tmp_path, "train")
    assert layout.read_ids(tmp_path, "train", places) == [ids[place] for place in places]


def test_an_error_leaves_no_shard(tmp_path):
    with pytest.raises(KeyError), DatasetWriter(tmp_path, CORPUS_FEATURES) as writer:
        writer.add("train", corpus_rows(1)[0])
        raise KeyError
    assert not list(tmp_path.rglob("*.parquet"))


def test_wrong_folders_and_columns_are_named(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        read_corpus(tmp_path / "none", "train")
    with pytest.raises(InputError, match="not a data set"):
        read_corpus(tmp_path, "train")
    write_dataset(tmp_path / "c", {"train": corpus_rows(1)}, CORPUS_FEATURES, "Posts")
    with pytest.raises(InputError, match=r"no split 'test'. It has train"):
        read_corpus(tmp_path / "c", "test")
    with pytest.raises(InputError, match=r"no column tokens, ner_tags \(it has id, text\)"):
        read_ner(tmp_path / "c", "train", columns=["id", "tokens", "ner_tags"])
    (tmp_path / "x" / "data").mkdir(parents=True)
    file = tmp_path / "x" / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pa.table({"id": [1], "text": ["a"]}), file)
    with pytest.raises(InputError, match=r"column id is int64. Needed is string"):
        read_corpus(tmp_path / "x", "train")
    file.write_bytes(b"not parquet")
    with pytest.raises(InputError, match="not a Parquet file"):
        read_corpus(tmp_path / "x", "train")


def test_a_split_that_is_not_there_is_told_of_with_those_that_are(tmp_path):
    write_dataset(tmp_path, {"train": [{"id": "1", "text": "a"}]}, CORPUS_FEATURES, "Posts")
    with pytest.raises(InputError, match="has no split 'validation'; it has train"):
        shard_files(tmp_path, "validation")


def test_card_counts_rows(tmp_path):
    write_dataset(tmp_path / "d", {"train": corpus_rows(2)}, CORPUS_FEATURES, "Posts", {"posts read": 7}, "About.")
    card = (tmp_path / "d" / "README.md").read_text(encoding="utf-8")
    assert "# Posts\n\nAbout." in card
    assert "| train | 2 |" in card
    assert "- posts read: 7" in card
