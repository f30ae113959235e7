"""Files of region features: what a convolutional network sees in each part of an image, by image id.

A `.safetensors` file with one tensor for each image, named by the image's id as in the data set, of shape [R, V]: VGG16's
last pooling layer has R = 49 regions (7 x 7, row by row) of V = 512 numbers. Its metadata tell by which `model` and `weights`.
One tensor an image, so that a reader takes from the disk what it needs and no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from launch.errors import InputError

REGIONS, REGION_SIZE = 49, 512
FLOATS = ("F16", "BF16", "F32")
"""Types that are read, by safetensors' names; the first is what is written."""
NAMED_AT_MOST = 3


def write_regions(path: Path, regions_by_id: Mapping[str, torch.Tensor], model: str, weights: str) -> None:
    """Write the region features [R, V] of images, float16."""
    save_file(dict(regions_by_id), path, metadata={"model": model, "weights": weights})


class RegionFile:
    """Region features by image id, read from the file when they are asked for. Safe to read from several threads."""

    def __init__(self, path: Path) -> None:
        """Open the file. InputError if it is none, or if a tensor in it has another shape or type."""
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            self.image_ids = frozenset(self._file.keys())
        except (OSError, SafetensorError) as error:
            raise self._error(f"no region features can be read from it ({error})") from None
        for image_id in sorted(self.image_ids):
            tensor = self._file.get_slice(image_id)
            if tensor.get_shape() != [REGIONS, REGION_SIZE]:
                raise self._error(f"{image_id} is of shape {tensor.get_shape()}, not [{REGIONS}, {REGION_SIZE}]")
            if tensor.get_dtype() not in FLOATS:
                raise self._error(f"{image_id} is of type {tensor.get_dtype()}, not {', '.join(FLOATS)}")

    @property
    def source(self) -> str:
        """The network that the features are of, for people to read."""
        metadata = self._file.metadata() or {}
        told = [metadata[key] for key in ("model", "weights") if key in metadata]
        return " with ".join(told) or f"{self.path.name}, which does not say of what network"

    def __contains__(self, image_id: str | None) -> bool:
        return image_id in self.image_ids

    def read(self, image_id: str) -> torch.Tensor:
        """The regions [R, V] of an image, float32."""
        return self._file.get_tensor(image_id).float()

    def check_holds_some(self, image_ids: Iterable[str | None]) -> None:
        """InputError if it has not one of these images."""
        wanted = sorted({image_id for image_id in image_ids if image_id is not None})
        if self.image_ids.isdisjoint(wanted):
            raise self._error(
                f"none of the {len(wanted)} image ids of the data set's train split is in it: there are "
                f"{_some(wanted)}, and here are {_some(sorted(self.image_ids))}"
            )

    def _error(self, problem: str) -> InputError:
        return InputError.at(self.path, None, problem, "Make the file with data_prep/image_regions.py.")


def _some(ids: list[str]) -> str:
    more = ", …" if len(ids) > NAMED_AT_MOST else ""
    return ", ".join(islice(ids, NAMED_AT_MOST)) + more or "none"
