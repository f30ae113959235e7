"""Texts of a data set on the Hub: streamed once, of one commit, gone on with where a reading ended."""

import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_dataset_hub import NAME, FakeDatasetHub
from interrupted import interrupted_at
from tiny_models import make_encoder, make_texts, make_tokenizer

from data_prep import hub_texts, text_batches
from data_prep.hub_texts import HubData, iterate_hub_texts
from data_prep.streamed_texts import data_input
from data_prep.text_batches import BEGIN, Place, ReadingInterrupted
from launch import loop
from launch.errors import InputError
from launch.stage import read_manifest
from pretrain import mlm, tokenizing
from pretrain.cutter import Cutter
from pretrain.tokenizing import tokenize

SPLITS = ("train", "validation")


def parquet(texts: list[str | None], column: str = "text") -> bytes:
    """A shard whose rows lie in several groups."""
    buffer = io.BytesIO()
    numbers = list(range(len(texts)))
    pq.write_table(pa.table({"number": numbers, column: pa.array(texts, pa.string())}), buffer, row_group_size=9)
    return buffer.getvalue()


TRAIN = [make_texts(40, 1), [*make_texts(25, 2), None, "", " "], make_texts(30, 3)]
TEXTS = [text for shard in TRAIN for text in shard if text and text.strip()]
FILES = {f"data/train-{number:05d}-of-00003.parquet": parquet(shard) for number, shard in enumerate(TRAIN)}
VALIDATION = {"data/validation-00000-of-00001.parquet": parquet(make_texts(20, 4))}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(text_batches, "TEXTS_AT_ONCE", 7)
    monkeypatch.setattr(hub_texts, "TEXTS_AT_ONCE", 7)
    with FakeDatasetHub() as server:
        server.patch(monkeypatch, tmp_path / "home")
        server.push(FILES | VALIDATION)
        yield server
        assert not server.unknown_calls


def pinned(hub: FakeDatasetHub) -> HubData:
    return HubData(NAME, None, hub.main)


def read(data: HubData, start: Place = BEGIN, share: float = 0.02) -> list[tuple[str, str, Place | None]]:
    return [
        (batch.split, text, batch.next_place)
        for batch in iterate_hub_texts(data, SPLITS, "text", share, start)
        for text in batch.texts
    ]


@pytest.mark.parametrize(
    "name, parts",
    [
        ("hub:lab/tweets", ("lab/tweets", None, None)),
        ("hub:lab/tweets:en@refs/convert/parquet", ("lab/tweets", "en", "refs/convert/parquet")),
        ("hub:a-b/c.d_e@v1.0", ("a-b/c.d_e", None, "v1.0")),
    ],
)
def test_names(name, parts):
    assert HubData.parse(name) == HubData(*parts) and str(HubData.parse(name)) == name
    for wrong in ("hub:tweets", "hub:a/b/c", "hub:", "hub:a/b@", "hub:a/b c"):
        with pytest.raises(InputError, match="not a data set on the Hub. Give hub:OWNER/NAME"):
            HubData.parse(wrong)


def test_texts_come_shard_by_shard_and_empty_rows_are_counted(hub):
    data = pinned(hub)
    rows = read(data)
    assert [text for split, text, _ in rows if split == "train"] == TEXTS
    assert [text for split, text, _ in rows if split == "validation"] == make_texts(20, 4)
    assert sum(batch.left_out for batch in iterate_hub_texts(data, SPLITS, "text", 0.02)) == 3


@pytest.mark.parametrize("with_validation", [True, False])
def test_a_reading_begins_at_any_place(hub, with_validation):
    if not with_validation:
        hub.push(FILES)
    data = pinned(hub)
    everything = read(data, share=0.3)
    places = [batch.next_place for batch in iterate_hub_texts(data, SPLITS, "text", 0.3) if batch.next_place]
    assert places == sorted(set(places)) and len(places) > 12 and places[-1].shard == (3 if with_validation else 2)
    for place in places[::4]:
        texts_before = len(everything) - len(read(data, place, share=0.3))
        assert [row[:2] for row in read(data, place, share=0.3)] == [row[:2] for row in everything[texts_before:]]
        assert texts_before > 0
    assert read(data, places[-1], share=0.3) == []


def test_validation_is_cut_by_the_texts_alone(hub):
    """Of whatever texts come with them, in whatever shards; both parts together are all."""
    hub.push(FILES)
    rows = read(pinned(hub), share=0.3)
    parts = {split: [text for where, text, _ in rows if where == split] for split in SPLITS}
    assert sorted(parts["train"] + parts["validation"]) == sorted(TEXTS)
    assert 0.15 < len(parts["validation"]) / len(TEXTS) < 0.45
    hub.push({"data/train-00000-of-00001.parquet": parquet([text.upper() for text in TEXTS[::-1]])})
    again = [text for split, text, _ in read(pinned(hub), share=0.3) if split == "validation"]
    assert sorted(again) == sorted(text.upper() for text in parts["validation"])


@pytest.mark.parametrize(
    "files, problem",
    [
        (VALIDATION, "no split 'train'. It has validation"),
        (
            {"data/train-0.parquet": parquet(["a"], "tweet")},
            "no column 'text'. It has number, tweet: name one with --text",
        ),
        ({"tweets.py": b"raise SystemExit('code of the Hub runs')", **FILES}, "cannot be read (Dataset scripts are no"),
        ({"README.md": b"nothing"}, "cannot be read"),
        ({"data/train-0.parquet": b"PAR1 not Parquet PAR1"}, "cannot be read"),
    ],
)
def test_data_sets_that_are_refused(hub, files, problem):
    hub.push(files)
    data = pinned(hub)
    with pytest.raises(InputError, match=re.escape(f"{data}: {problem}")) as raised:
        read(data)
    assert not isinstance(raised.value, ReadingInterrupted) and "\n" not in str(raised.value)


def test_a_name_becomes_that_of_a_commit(hub, tmp_path):
    first, partial = hub.main, tmp_path / "out.partial"
    assert data_input(f"hub:{NAME}", partial) == data_input(f"hub:{NAME}@main", partial) == f"hub:{NAME}@{first}"
    hub.requests.clear()
    assert data_input(f"hub:{NAME}@{first}", partial) == f"hub:{NAME}@{first}" and not hub.requests
    second = hub.push(FILES)
    assert data_input(f"hub:{NAME}", partial) == f"hub:{NAME}@{second}"
    partial.mkdir()
    (partial / ".plan.json").write_text(json.dumps({"inputs": {"data": f"hub:{NAME}@{first}"}}))
    assert data_input(f"hub:{NAME}", partial) == f"hub:{NAME}@{first}", "of the run that is gone on with"
    assert data_input(f"hub:{NAME}@main", partial) == f"hub:{NAME}@{second}", "it was asked for"
    (partial / ".plan.json").write_text(json.dumps({"inputs": {"data": "0" * 64}}))
    assert data_input(f"hub:{NAME}", partial) == f"hub:{NAME}@{second}"
    assert data_input("runs/corpus", partial) == Path("runs/corpus")
    with pytest.raises(InputError, match=f"cannot read hub:{NAME}@gone: the Hub answered 404"):
        data_input(f"hub:{NAME}@gone", partial)


def test_when_the_hub_goes_away_what_was_read_is_kept(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "SAVED_EVERY_SECONDS", 0.0)
    data, cutter, starts = pinned(hub), Cutter(make_tokenizer(), 64), []

    def texts(start):
        starts.append(start)
        return iterate_hub_texts(data, SPLITS, "text", 0.02, start)

    for name in ("first", "second"):  # which asks for less: it has the card
        hub.requests.clear()
        expected = tokenize(texts, SPLITS, "c", cutter, tmp_path / name)
    hub.answers_left = len(hub.requests) - 1
    with pytest.raises(
        ReadingInterrupted, match="the Hub no longer answers .* The same command goes on where it stopped.$"
    ):
        tokenize(texts, SPLITS, "c", cutter, tmp_path / "cache")
    hub.answers_left = None
    stores = tokenize(texts, SPLITS, "c", cutter, tmp_path / "cache")
    assert starts == [BEGIN, BEGIN, BEGIN, Place(2, 30)]
    for split, store in stores.items():
        assert store.tokens.tolist() == expected[split].tokens.tolist() and store.left_out == expected[split].left_out


def arguments(encoder: Path, output: Path, *more: str) -> list[str]:
    common = ["--row_length=64", "--tokens_per_step=256", "--run.precision=fp32", "--schedule.steps=3"]
    return [f"--encoder={encoder}", f"--data=hub:{NAME}", f"--output={output}", *common, *more]


def test_the_stage_trains_on_the_commit_it_began_with(hub, tmp_path, monkeypatch, capsys):
    hub.push(FILES)
    first, encoder, cache = hub.main, make_encoder(tmp_path / "encoder"), f"--token_cache={tmp_path / 'cache'}"
    more = ["--validation_share=0.3", "--run.checkpoint_steps=1", cache]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "seed_dropout", interrupted_at(2))
        assert mlm.main(arguments(encoder, tmp_path / "out", *more)) == 130
    second = hub.push({"data/train-00000-of-00001.parquet": parquet(make_texts(20, 9))})
    hub.requests.clear()
    assert mlm.main(arguments(encoder, tmp_path / "out", *more)) == 0
    assert not any(second in request or "parquet" in request for request in hub.requests)
    manifest = read_manifest(tmp_path / "out")
    assert manifest["inputs"]["data"] == {
        "path": f"hub:{NAME}@{first}",
        "sha256": f"hub:{NAME}@{first}",
        "manifest": None,
    }
    counts = {split: manifest["facts"]["data"][split]["texts"] for split in SPLITS}
    assert sum(counts.values()) == len(TEXTS) and manifest["rows"]["rejected"] == {"empty": 3}
    assert mlm.main(arguments(encoder, tmp_path / "out", *more)) == 2, "of another commit now"
    assert "from other settings or inputs (input data: content changed)" in capsys.readouterr().err
    assert mlm.main([*arguments(encoder, tmp_path / "out", *more), f"--data=hub:{NAME}@{first}"]) == 0, "up to date"
