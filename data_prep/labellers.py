"""What a labeller is (preprocessing, a classifier, names of its classes), and where they come from.

Either the name of a torchvision classifier (`inception_v3`, `resnet50`, …), or `module:function`, a function that takes
the file of weights (or None) and returns preprocessing, model and, where they are not ImageNet's, the class names.
`data_prep/efficientnet_lite.py` is an example.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from launch.errors import InputError, first_line

# Both were trained on other pixel values than torchvision's presets give, and convert them when told to.
MODEL_OPTIONS = {
    "inception_v3": {"transform_input": True, "aux_logits": True, "init_weights": False},
    "googlenet": {"transform_input": True, "aux_logits": True, "init_weights": False},
}
AUXILIARY_HEADS = ("AuxLogits.", "aux1.", "aux2.")
"""Parameters used in training only."""

NAMED_AT_MOST = 5


@dataclass(frozen=True)
class Preprocessing:
    """What torchvision's classification presets do, in two halves, so that images travel between them as bytes.

    The shorter side is resized to ``resize`` pixels, a square of ``side`` is cut out of the middle, and its pixels, from
    0 to 1, are normalized.
    """

    resize: int
    side: int
    mean: tuple[float, float, float]
    """Of red, green and blue, subtracted from pixels of 0 to 1."""
    deviation: tuple[float, float, float]
    """They are then divided by this."""
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def __call__(self, image: PIL.Image.Image) -> Tensor:
        """The model's input, float32, shape (3, side, side)."""
        return self.normalize(self.crop(image)[None])[0]

    def crop(self, image: PIL.Image.Image) -> Tensor:
        """The pixels of an RGB image that the model sees, uint8, shape (3, side, side)."""
        image = F.resize(image, [self.resize], interpolation=self.interpolation)
        return F.pil_to_tensor(F.center_crop(image, [self.side]))

    def normalize(self, pixels_N3HW: Tensor) -> Tensor:
        """Images of :meth:`crop`, on any device, as the model's input: float32, same shape."""
        mean, deviation = (
            torch.tensor(values, device=pixels_N3HW.device)[:, None, None] for values in (self.mean, self.deviation)
        )
        return pixels_N3HW.to(torch.float32).div_(255).sub_(mean).div_(deviation)


@dataclass(frozen=True)
class Labeller:
    """A classifier of images, and what goes with it."""

    name: str
    preprocessing: Callable[[PIL.Image.Image], Tensor]
    """An RGB image becomes the model's input, shape (3, height, width); all images the same."""
    model: nn.Module
    """In evaluation mode, fp32: inputs (images, 3, height, width) become logits (images, classes)."""
    class_names: Sequence[str]
    weights: str
    """What the weights are, for people to read."""


def make_labeller(name: str, weights: Path | None = None) -> Labeller:
    """The labeller of this name, with weights from a file, or those that its author published.

    InputError says what is wrong with name, file or network.
    """
    preprocessing, model, class_names, published = (
        _from_function(name, weights) if ":" in name else _from_torchvision(name, weights)
    )
    return Labeller(name, preprocessing, model.eval(), class_names, weights.name if weights else published)


def first_synonym(class_name: str) -> str:
    """The word of a class: "Great White Shark, man-eater" gives "great white shark"."""
    return class_name.split(",")[0].strip().lower()


def imagenet_class_names() -> list[str]:
    """ImageNet's 1,000 classes by the first synonym of each, as torchvision spells them: twins get a second word."""
    return torchvision.models.Inception_V3_Weights.DEFAULT.meta["categories"]


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a `.safetensors` file, or a state dict that `torch.save` wrote; nothing in it is ever executed.

    InputError names what is missing, unknown or of another shape. Heads that only training uses may be missing.
    """
    try:
        state = _read_state_dict(path)
    except Exception as error:  # the readers raise whatever a broken file provokes
        problem = f"no weights can be read from it ({first_line(error)})"
        raise InputError.at(path, None, problem, "Give a .safetensors file or a plain state dict.") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        problem = "not a state dict (parameter names and tensors)"
        raise InputError.at(path, None, problem, "Save the model's `state_dict()` alone.")
    expected = model.state_dict()
    problems = {
        "missing": [key for key in expected if key not in state and not _is_dispensable(key)],
        "unknown": [key for key in state if key not in expected],
        "of another shape": [key for key in state if key in expected and state[key].shape != expected[key].shape],
    }
    if any(problems.values()):
        told = "; ".join(f"{_some(keys)} {problem}" for problem, keys in problems.items() if keys)
        raise InputError.at(path, None, f"not this model's weights: {told}", "Give --weights of this model.")
    model.load_state_dict(state, strict=False)


def _from_torchvision(name: str, weights: Path | None) -> tuple[Preprocessing, nn.Module, list[str], str]:
    names = torchvision.models.list_models(torchvision.models)
    if name not in names:
        similar = difflib.get_close_matches(name, names) or ["inception_v3", "resnet50"]
        raise InputError(
            f"labeller {name!r}: torchvision has no classifier of this name. "
            f"Perhaps {' or '.join(similar)}; or a `module:function` of your own."
        )
    published = torchvision.models.get_model_weights(name).DEFAULT
    if weights is None:
        model = _with_published_weights(name, published)
    else:
        model = torchvision.models.get_model(name, weights=None, **MODEL_OPTIONS.get(name, {}))
        load_weights(model, weights)
    return _preprocessing_of(published.transforms()), model, published.meta["categories"], published.name


def _with_published_weights(name: str, published: torchvision.models.WeightsEnum) -> nn.Module:
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # torchvision would unpickle whatever the file holds
    try:
        return torchvision.models.get_model(name, weights=published)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:  # no network, another file than was published
        place = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"labeller {name}: its published weights could not be had ({first_line(error)}). "
            f"Without a network, get {published.url} elsewhere and put it into {place}, or name it by --weights."
        ) from None


def _preprocessing_of(preset: nn.Module) -> Preprocessing:
    return Preprocessing(
        resize=preset.resize_size[0],
        side=preset.crop_size[0],
        mean=tuple(preset.mean),
        deviation=tuple(preset.std),
        interpolation=preset.interpolation,
    )


def _from_function(
    name: str, weights: Path | None
) -> tuple[Callable[[PIL.Image.Image], Tensor], nn.Module, Sequence[str], str]:
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # of a script started by its path, only the script's folder is there
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"labeller {name!r}: {error}. Give `module:function` of a module that can be imported from here."
        ) from None
    made = function(weights)
    if not (isinstance(made, tuple) and len(made) in (2, 3) and callable(made[0]) and isinstance(made[1], nn.Module)):
        raise InputError(f"labeller {name!r}: returned {made!r:.80}. It must return (preprocessing, model[, names]).")
    return made[0], made[1], made[2] if len(made) == 3 else imagenet_class_names(), "its own weights"


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_dispensable(key: str) -> bool:
    # Old batch normalizations did not count their batches, and the count is not used here.
    return key.startswith(AUXILIARY_HEADS) or key.endswith(".num_batches_tracked")


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - NAMED_AT_MOST} more" if len(keys) > NAMED_AT_MOST else ""
    return ", ".join(keys[:NAMED_AT_MOST]) + more
