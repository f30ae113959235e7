"""Data stages: a card made of the manifest, and publishing, against a Hub on this machine."""

from pathlib import Path

import datasets
import pytest
from fake_hub import TOKEN, FakeHub, fake_hub  # noqa: F401
from huggingface_hub import DatasetCard

from data_prep import conll2003, tmn
from launch.stage import read_manifest

SAMPLE = Path(tmn.__file__).parent / "sample"


@pytest.fixture
def client(fake_hub: FakeHub, monkeypatch, tmp_path: Path) -> FakeHub:  # noqa: F811
    fake_hub.patch(monkeypatch, tmp_path / "home")
    return fake_hub


def run(stage, output: Path, *more: str) -> int:
    return stage.main([f"--input={SAMPLE}", f"--output={output}", *more])


def warnings_in(caplog) -> list[str]:
    return [record.message for record in caplog.records if "X's terms" in record.message]


def test_a_stage_publishes_its_data_set_and_card(client, tmp_path, capfd, caplog):
    output = tmp_path / "out"
    assert run(tmn, output, "--push_to_hub=lab/tweets", "--license=mit") == 0
    repository = client.repositories["datasets/lab/tweets"]
    assert repository.private
    shards = {f"data/{path.name}" for path in (output / "data").iterdir()}
    assert set(repository.files) == {"README.md", "manifest.json", "config.yaml", ".gitattributes", *shards}
    card = DatasetCard(repository.files["README.md"].decode())
    assert (card.data.license, card.data.language, card.data.task_categories) == (
        "mit",
        ["en"],
        ["token-classification"],
    )
    assert 'load_dataset("lab/tweets")' in card.text
    printed = "".join(capfd.readouterr())
    assert f"published: {client.url}/datasets/lab/tweets/commit/" in printed and TOKEN not in printed
    assert warnings_in(caplog) == []

    # A finished output is published again, with what is asked for now, without being made again.
    finished = read_manifest(output)["finished_at"]
    again = ["--push_to_hub=lab/open", "--license=cc0-1.0", "--hub_private=false"]
    assert run(tmn, output, *again) == 0
    assert read_manifest(output)["finished_at"] == finished
    assert not client.repositories["datasets/lab/open"].private
    assert b"license: cc0-1.0" in client.repositories["datasets/lab/open"].files["README.md"]
    (warning,) = warnings_in(caplog)
    assert "lab/open is to be public" in warning


def test_what_cannot_be_published_is_refused_before_the_work(client, tmp_path, capfd):
    assert run(tmn, tmp_path / "out", "--push_to_hub=stranger/tweets") == 2
    assert "may not write there" in capfd.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_the_card_of_a_finished_stage_tells_how_it_was_made(tmp_path):
    output = tmp_path / "news"
    assert run(conll2003, output) == 0
    card = DatasetCard.load(output / "README.md")
    assert (card.data.license, card.data.tags) == ("other", ["news", "named-entity-recognition"])
    assert card.data.size_categories == ["n<1K"]
    assert "| `data_prep/conll2003` | news | sample `" in card.text
    assert "Reuters" in card.text and "X's terms" not in card.text
    assert str(tmp_path) not in card.text
    loaded = datasets.load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 400, "validation": 80, "test": 80}
