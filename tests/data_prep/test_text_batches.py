"""Texts in batches: in the order of the rows, from any place on, and what cannot be read."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import layout, text_batches
from data_prep.layout import CORPUS_FEATURES, NER_FEATURES, PAIRS_FEATURES, ner_row, read_texts, write_dataset
from data_prep.text_batches import BEGIN, Place, batches_of_texts, iterate_texts
from launch.errors import InputError


def corpus_rows(count: int) -> list[dict]:
    return [{"id": f"posts:{number}", "text": f"post {number} \x85 \u2028 😀"} for number in range(count)]


def ner_rows(count: int) -> list[dict]:
    rows = [
        ner_row(
            str(number), ["Jordan", str(number)], ["B-PER", "O"], ["Jordan", "http://t.co/a"], ["I-PER", "O"], [0, 1]
        )
        for number in range(count)
    ]
    return [row | {"image_words": ["ball", "net"][: number % 3]} for number, row in enumerate(rows)]


@pytest.fixture
def small(monkeypatch) -> None:
    for module, name, value in (
        (layout, "BATCH_ROWS", 10),
        (layout, "SHARD_BYTES", 500),
        (text_batches, "TEXTS_AT_ONCE", 7),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("small")
def test_texts_come_in_batches_in_the_order_of_the_rows(tmp_path):
    write_dataset(tmp_path / "c", {"train": corpus_rows(95)}, CORPUS_FEATURES, "Posts")
    write_dataset(tmp_path / "n", {"train": ner_rows(95)}, NER_FEATURES, "Tweets")
    for name in "cn":
        assert len(list((tmp_path / name / "data").iterdir())) > 1
        for words in ("tokens", "source_tokens"):
            batches = list(iterate_texts(tmp_path / name, ["train"], words))
            assert all(1 <= len(batch.texts) <= 7 and batch.split == "train" for batch in batches)
            assert [text for batch in batches for text in batch.texts] == read_texts(tmp_path / name, "train", words)[1]
    assert batches[0].texts[0] == "Jordan http://t.co/a"
    assert next(iterate_texts(tmp_path / "n", ["train"])).texts == batches[0].texts, "source_tokens, unless told"


@pytest.mark.usefixtures("small")
def test_image_words_come_with_the_texts_where_there_are_any(tmp_path):
    rows = [row | {"image_words": [f"w{row['id']}", "x y"]} for row in corpus_rows(30)]
    write_dataset(tmp_path / "p", {"train": rows}, PAIRS_FEATURES, "Posts")
    write_dataset(tmp_path / "n", {"train": ner_rows(30)}, NER_FEATURES, "Tweets")
    write_dataset(tmp_path / "c", {"train": corpus_rows(30)}, CORPUS_FEATURES, "Posts")
    for name, expected in (("p", rows), ("n", ner_rows(30))):
        batches = list(iterate_texts(tmp_path / name, ["train"]))
        assert [words for batch in batches for words in batch.image_words] == [row["image_words"] for row in expected]
        assert all(batch.image_words is None for batch in iterate_texts(tmp_path / name, ["train"], image_words=False))
    assert all(batch.image_words is None for batch in iterate_texts(tmp_path / "c", ["train"]))


@pytest.mark.usefixtures("small")
def test_a_reading_begins_at_any_place(tmp_path):
    splits = {"train": corpus_rows(65), "validation": corpus_rows(23)}
    write_dataset(tmp_path, splits, CORPUS_FEATURES, "Posts")
    read = lambda start: [  # noqa: E731
        (batch.split, text, batch.next_place)
        for batch in iterate_texts(tmp_path, ["train", "validation"], start=start)
        for text in batch.texts
    ]
    everything = read(BEGIN)
    assert [text for _, text, _ in everything] == [row["text"] for split in splits.values() for row in split]
    places = sorted({place for *_, place in everything})
    assert len({place.shard for place in places}) > 3 and len(places) > 10
    for place in places:
        done = sum(reached <= place for *_, reached in everything)
        assert [(split, text) for split, text, _ in read(place)] == [row[:2] for row in everything[done:]]
    assert read(Place(places[-1].shard + 1, 0)) == []
    # Within a batch, too, whatever the batches were before.
    assert [text for _, text, _ in read(Place(0, 3))] == [text for _, text, _ in everything[3:]]


def test_texts_that_cannot_be_read_are_told_by_file(tmp_path):
    write_dataset(tmp_path / "c", {"train": corpus_rows(5000)}, CORPUS_FEATURES, "Posts")
    with pytest.raises(InputError, match="has no split 'test'; it has train"):
        next(iterate_texts(tmp_path / "c", ["train", "test"]))
    (file,) = (tmp_path / "c" / "data").iterdir()
    content = file.read_bytes()
    third = len(content) // 3
    text = pq.read_metadata(file).row_group(0).column(1)
    page = text.dictionary_page_offset
    for harmed in (
        content[: page + 60] + bytes(100) + content[page + 160 :],  # a page that does not decompress
        content[:third] + bytes(third) + content[2 * third :],  # pages without a head
        content[:third],
        b"",
    ):
        file.write_bytes(harmed)
        with pytest.raises(InputError, match=f"^{file}: cannot be read .*Make it again.$"):
            list(iterate_texts(tmp_path / "c", ["train"]))
    pq.write_table(pa.table({"id": ["a"], "text": [1]}), file)
    with pytest.raises(InputError, match="column text is int64. Needed is string"):
        list(iterate_texts(tmp_path / "c", ["train"]))
    pq.write_table(pa.table({"id": ["a"]}), file)
    with pytest.raises(InputError, match="no column tokens"):
        list(iterate_texts(tmp_path / "c", ["train"], "tokens"))


@pytest.mark.parametrize("value", [["a"], [], 0])
def test_a_column_that_holds_no_texts_is_refused(value):
    with pytest.raises(InputError, match=f"holds no texts but {type(value).__name__}"):
        list(batches_of_texts("train", ["a", None, value], 0.0, BEGIN))
