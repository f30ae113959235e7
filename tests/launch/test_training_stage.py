"""Publishing from the training stages: checked before training, done at the end, against a Hub on this machine."""

from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub, fake_hub  # noqa: F401
from huggingface_hub import ModelCard
from tiny_models import make_corpus, make_encoder, make_ner

from finetune import ner
from launch.stage import read_manifest
from pretrain import mlm


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_encoder(folder / "encoder")
    make_corpus(folder / "corpus", train=30)
    make_ner(folder / "ner", 12, 4, 4)
    return folder


def arguments(data: Path, name: str, output: Path, *more: str) -> list[str]:
    own = {
        "mlm": ["--row_length=64", "--tokens_per_step=200", f"--data={data / 'corpus'}"],
        "ner": ["--tweets_per_step=4", "--input.maximum_length=64", "--input.image_length=8", f"--data={data / 'ner'}"],
    }
    return [*own[name], f"--encoder={data / 'encoder'}", f"--output={output}", "--schedule.steps=2", *more]


STAGES = {"mlm": mlm.main, "ner": ner.main}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_publishes_its_export_and_card(name, data, tmp_path, fake_hub: FakeHub, monkeypatch, capfd):  # noqa: F811
    fake_hub.patch(monkeypatch, tmp_path / "home")
    output = tmp_path / "out"
    assert STAGES[name](arguments(data, name, output, "--push_to_hub=lab/model", "--license=mit")) == 0
    files = next(iter(fake_hub.repositories.values())).files
    assert files["model.safetensors"] == (output / "model.safetensors").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit"
    assert ("auto_map" in files["config.json"].decode()) == (name == "ner")  # the CRF's code goes with it
    assert not any("prediction" in file or "checkpoint" in file for file in files)
    printed = "".join(capfd.readouterr())
    assert TOKEN not in printed
    written = [path.read_bytes() for path in output.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in written)

    # A finished output is published again without being trained again.
    finished = read_manifest(output)["finished_at"]
    assert STAGES[name](arguments(data, name, output, "--push_to_hub=lab/model")) == 0
    assert read_manifest(output)["finished_at"] == finished


@pytest.mark.parametrize("name", STAGES)
def test_without_a_network_it_fails_before_training(name, data, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert STAGES[name](arguments(data, name, tmp_path / "out", "--push_to_hub=lab/model")) == 2
    assert "lab/model" in capfd.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing was begun"
