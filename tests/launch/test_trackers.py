from pathlib import Path

import pytest
from accelerate.state import PartialState

from launch import trackers
from launch.errors import InputError
from launch.stage import Stage
from launch.trackers import parse_trackers, tracking
from launch.training_stage import TrainingStageSettings


@pytest.fixture
def stage(tmp_path) -> Stage:
    settings = TrainingStageSettings(data=Path("data"), output=tmp_path / "run", trackers="tensorboard")
    stage = Stage("mlm", settings, {})
    stage.folder.mkdir()
    return stage


def test_names():
    assert parse_trackers("tensorboard, wandb") == ("tensorboard", "wandb")
    assert parse_trackers(None) == parse_trackers("") == ()
    with pytest.raises(ValueError, match="'tensorbord' is not one of tensorboard, trackio, wandb"):
        TrainingStageSettings(data=Path("data"), output=Path("run"), trackers="tensorbord")


def test_a_package_that_is_missing_is_named(stage, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(InputError, match="pip install wandb"), tracking(stage, ("tensorboard", "wandb")):
        pass


def test_metrics_reach_tensorboard(stage):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    PartialState(cpu=True)
    with tracking(stage, ("tensorboard",)):
        stage.log_metrics(event="train", step=3, loss=2.5, learning_rate=0.1, note="no number")
        stage.log_metrics(event="evaluate", step=4, loss=1.5)
    stage.log_metrics(event="train", step=5, loss=9.0)  # no longer passed on
    events = EventAccumulator(str(stage.folder / "trackers" / "run")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 2.5)]
    assert [(event.step, event.value) for event in events.Scalars("evaluate/loss")] == [(4, 1.5)]
    assert "train/note" not in events.Tags()["scalars"]
    (hparams,) = (stage.folder / "trackers" / "run").glob("*/hparams.yml")
    assert "optimizer.learning_rate: 0.0005" in hparams.read_text()


def test_a_run_that_fails_before_its_first_metrics_starts_none(stage):
    with pytest.raises(RuntimeError), tracking(stage, ("tensorboard",)):
        raise RuntimeError
    assert not (stage.folder / "trackers").exists()
