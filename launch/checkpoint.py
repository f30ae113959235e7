"""Checkpoints: written whole or not at all, checked by content when read, the last few kept. No pickle.

A checkpoint is a folder ``step-00000123`` with ``model.safetensors``, ``optimizer.safetensors``, ``state.json`` (the
position) and ``checksums.json``. Under DeepSpeed the engine writes its own shards into ``deepspeed/`` instead.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_file, save_model

from launch.files import sha256_of_file, sync_to_disk, write_json_whole

PREFIX = "step-"
STATE_NAME = "state.json"
CHECKSUMS_NAME = "checksums.json"


def write_checkpoint(
    folder: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> Path:
    """Write ``folder/step-N`` and return it. Call on the main process only."""
    temporary = begin_checkpoint(folder, step)
    save_model(model, str(temporary / "model.safetensors"))
    save_file(dict(_optimizer_entries(model, optimizer)), str(temporary / "optimizer.safetensors"))
    return finish_checkpoint(temporary, state)


def begin_checkpoint(folder: Path, step: int) -> Path:
    """An empty temporary folder for the checkpoint of ``step``."""
    temporary = folder / f".{PREFIX}{step:08d}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def finish_checkpoint(temporary: Path, state: dict[str, Any]) -> Path:
    """Add the position and the checksums, flush all to disk, and give the folder its name."""
    write_json_whole(temporary / STATE_NAME, state)
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    checksums = {path.relative_to(temporary).as_posix(): sha256_of_file(path) for path in files}
    for path in files:
        sync_to_disk(path)
    write_json_whole(temporary / CHECKSUMS_NAME, checksums)
    final = temporary.with_name(temporary.name.removeprefix(".").removesuffix(".partial"))
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    sync_to_disk(final.parent)
    return final


def checkpoints_newest_first(folder: Path) -> list[Path]:
    """The finished checkpoints of a run."""
    return sorted((p for p in folder.glob(f"{PREFIX}*") if p.is_dir()), reverse=True)


def set_aside(checkpoint: Path) -> Path:
    """Give a damaged checkpoint another name, so that it counts as none, and return its new place."""
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(checkpoint, aside)
    return aside


def keep_newest(folder: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints, and what crashes left half-written."""
    for path in checkpoints_newest_first(folder)[keep:]:
        shutil.rmtree(path)
    remove_half_written(folder)


def remove_half_written(folder: Path) -> None:
    """Remove what was not written to its end: checkpoints and weights."""
    for path in folder.glob(".*.partial"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None where all are as they were written."""
    try:
        checksums = json.loads((checkpoint / CHECKSUMS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{CHECKSUMS_NAME} cannot be read ({type(error).__name__})"
    if not isinstance(checksums, dict) or STATE_NAME not in checksums:
        return f"{CHECKSUMS_NAME} is not what was written"
    for name, checksum in checksums.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if sha256_of_file(path) != checksum:
            return f"{name} is not what was written"
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The position that a checkpoint holds."""
    return json.loads((checkpoint / STATE_NAME).read_text(encoding="utf-8"))


def restore_checkpoint(checkpoint: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put the weights and the optimizer's state back, in place."""
    load_model(model, str(checkpoint / "model.safetensors"))
    names = {parameter: name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index_of = {names[parameter]: index for index, parameter in enumerate(parameters)}
    entries: dict[int, dict[str, torch.Tensor]] = {}
    with safe_open(str(checkpoint / "optimizer.safetensors"), framework="pt") as file:
        for key in file.keys():
            name, _, entry = key.rpartition(".")
            entries.setdefault(index_of[name], {})[entry] = file.get_tensor(key)
    # Not assigned here: the optimizer knows which entries belong on the parameter's device (fused: all; else not `step`).
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def save_weights(path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """Write a state dict as safetensors, whole or not at all; a tied tensor is stored under each of its names."""
    temporary = path.with_name(f".{path.name}.partial")
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in state_dict.items()}, str(temporary))
    sync_to_disk(temporary)
    os.replace(temporary, path)


def _optimizer_entries(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        for entry, value in optimizer.state.get(parameter, {}).items():
            tensor = value if torch.is_tensor(value) else torch.tensor(float(value))
            yield f"{name}.{entry}", tensor.detach().cpu().contiguous()
