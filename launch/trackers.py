"""Metrics of a training stage shown elsewhere as they come: TensorBoard, Trackio, Weights & Biases, by Accelerate's trackers.

`metrics.jsonl` is written all the same, and is what reports are made of.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from launch.errors import InputError
from launch.stage import TRACKERS_NAME, Stage

PROJECT_NAME = "msb-ner"

TRACKERS = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
"""Trackers and the packages they need."""


def parse_trackers(names: str | None) -> tuple[str, ...]:
    """The names in ``tensorboard,wandb``. ValueError for one that is not known."""
    found = tuple(name.strip() for name in (names or "").split(",") if name.strip())
    for name in found:
        if name not in TRACKERS:
            raise ValueError(f"trackers: {name!r} is not one of {', '.join(TRACKERS)}")
    return found


@contextmanager
def tracking(stage: Stage, names: tuple[str, ...]) -> Iterator[None]:
    """Pass a stage's metrics on to trackers. InputError where a package is not installed."""
    for name in names:
        if find_spec(TRACKERS[name]) is None:
            raise InputError(f"--trackers {name}: not installed. Install it with: pip install {TRACKERS[name]}")
    if not names or not stage.is_main_process:
        yield
        return
    started: list[GeneralTracker] = []

    def pass_on(values: dict[str, Any]) -> None:
        if not started:  # not before the first metrics: Accelerate must have been set up
            started.extend(_start(name, stage) for name in names)
        event, step = values["event"], values["step"]
        shown = {f"{event}/{key}": value for key, value in values.items() if _is_shown(key, value)}
        for tracker in started:
            tracker.log(shown, step=step)

    stage.listeners.append(pass_on)
    try:
        yield
    finally:
        stage.listeners.remove(pass_on)
        for tracker in started:
            tracker.finish()


def _start(name: str, stage: Stage) -> GeneralTracker:
    folder, run_name = stage.folder / TRACKERS_NAME, stage.settings.output.name
    folder.mkdir(exist_ok=True)
    tracker = {
        "tensorboard": lambda kind: kind(run_name, logging_dir=str(folder)),
        "trackio": lambda kind: kind(PROJECT_NAME, name=run_name),
        "wandb": lambda kind: kind(PROJECT_NAME, name=run_name, dir=str(folder)),
    }[name](LOGGER_TYPE_TO_CLASS[name])
    tracker.start()
    tracker.store_init_configuration(_flat(stage.plan["settings"]))
    return tracker


def _is_shown(key: str, value: Any) -> bool:
    return key not in ("event", "step") and isinstance(value, int | float)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Settings by their dotted names, in types that every tracker takes."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return flat
