"""A labeller's model at work: batch normalizations folded in, in half precision where that pays, the same labels.

Half precision moves logits a little, and where two classes are nearly as probable that is enough to swap them. So images
whose five most probable classes, or whose first, are too close to call are classified again in fp32. How close that is,
is measured on the first images.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import PIL.Image
import torch
import torch.fx.experimental.optimization
from torch import Tensor, nn

from data_prep.labellers import Labeller, Preprocessing
from launch.errors import InputError
from launch.loop import best_precision

HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]

MOVES_COVERED = 0.95
"""Share of the differences between neighbouring logits that move by less than the margin when computed in half precision."""
MOST_SECOND_LOOKS = 0.5
"""Share of images classified twice from which on fp32 alone is faster: half precision takes about half its time."""


@dataclass(frozen=True)
class Precision:
    """How a classifier computes."""

    name: Literal["fp32", "bf16", "fp16"] = "fp32"
    margin: float = 0.0
    """Logits closer than this, in half precision, are computed again in fp32."""
    reason: str = ""
    """Why so, for people to read."""


class Classifier:
    """Gives the ``top`` most probable classes of images. Safe to call from several threads."""

    def __init__(
        self,
        labeller: Labeller,
        top: int,
        device: torch.device,
        precision: Precision,
        compiled: bool = False,
    ) -> None:
        self.labeller = labeller
        self.top = top
        self.device = device
        self.precision = precision
        self.exact = folded(labeller.model).to(device, memory_format=torch.channels_last)
        self.fast = self.exact
        if precision.name != "fp32":
            self.fast = copy.deepcopy(self.exact).to(HALF_TYPES[precision.name])
        if compiled:
            self.fast = torch.compile(self.fast, dynamic=False, options={"freezing": True})
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
        # Threads would interleave their kernels, and hold all their activations at once.
        self.lock = threading.Lock() if device.type != "cpu" else None

    def batch(self, images: Sequence[PIL.Image.Image | None], size: int) -> Tensor:
        """RGB images as :meth:`classify` takes them; None, and what ``size`` has more, become zeros. At least one is none.

        Always of the same shape, so that an image's numbers do not depend on how many others there are, and compiled
        code fits. Channels last; in pinned memory where the device is not the processor.
        """
        preprocessing = self.labeller.preprocessing
        step = preprocessing.crop if isinstance(preprocessing, Preprocessing) else preprocessing
        inputs = {place: step(image) for place, image in enumerate(images) if image is not None}
        shape, dtype = next((one.shape, one.dtype) for one in inputs.values())
        on_processor = self.device.type == "cpu"
        batch_N3HW = torch.empty(
            (size, *shape), dtype=dtype, memory_format=torch.channels_last, pin_memory=not on_processor
        ).zero_()
        for place, one in inputs.items():
            if one.shape != shape:
                raise InputError(
                    f"labeller {self.labeller.name}: its preprocessing gives images of shapes {tuple(shape)} and "
                    f"{tuple(one.shape)}. They must all be of one."
                )
            batch_N3HW[place] = one
        return batch_N3HW

    def classify(self, batch_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Classes and probabilities of the most probable ones, falling: int64 and float32, (images, top), on the CPU.

        The softmax is eq. 13's x, over all classes, in float32.
        """
        with torch.inference_mode(), self.lock or nullcontext():
            probabilities = self.logits(batch_N3HW).softmax(dim=1)
            if probabilities.shape[1] != len(names := self.labeller.class_names):
                raise InputError(
                    f"labeller {self.labeller.name}: its model tells {probabilities.shape[1]} classes apart, "
                    f"and there are {len(names)} class names."
                )
            scores, classes = probabilities.topk(self.top, dim=1)
        return classes.cpu(), scores.cpu()

    def logits(self, batch_N3HW: Tensor) -> Tensor:
        """Of all classes, float32; in half precision with a second look at what is too close to call."""
        inputs = self.normalized(batch_N3HW)
        if self.precision.name == "fp32":
            return self.fast(inputs)
        logits = self.fast(inputs.to(HALF_TYPES[self.precision.name])).float()
        close = too_close(logits, self.top, self.precision.margin)
        if close.any():
            logits[close] = self.exact(inputs[close])
        return logits

    def normalized(self, batch_N3HW: Tensor) -> Tensor:
        """The batch on the device, float32, as the model was trained on."""
        batch_N3HW = batch_N3HW.to(self.device, non_blocking=True)
        preprocessing = self.labeller.preprocessing
        return preprocessing.normalize(batch_N3HW) if isinstance(preprocessing, Preprocessing) else batch_N3HW.float()


def choose_precision(
    wanted: PrecisionName, labeller: Labeller, top: int, device: torch.device, batches: Sequence[Tensor]
) -> Precision:
    """The precision to compute in; ``batches`` (see :meth:`Classifier.batch`) are what half precision is tried on."""
    name = fast_half_type(device) if wanted == "auto" else wanted
    if name is None:
        return Precision(reason="neither bf16 nor fp16 is fast on this processor")
    if name == "fp32" or not batches:
        return Precision(reason="as asked for" if name == "fp32" else "no images to try half precision on")
    classifier = Classifier(labeller, top, device, Precision(name))
    with torch.inference_mode():
        exact, half = [], []
        for batch in batches:
            inputs = classifier.normalized(batch)
            exact.append(classifier.exact(inputs))
            half.append(classifier.fast(inputs.to(HALF_TYPES[name])).float())
        margin, share = measure_margin(torch.cat(exact), torch.cat(half), top)
    told = f"{share:.0%} of the labels are too close to call in {name}"
    if wanted == "auto" and share > MOST_SECOND_LOOKS:
        return Precision(reason=f"{told}: fp32 is faster")
    return Precision(name, margin, f"{told} and computed again in fp32")


def fast_half_type(device: torch.device) -> Literal["bf16", "fp16"] | None:
    """The half-precision type in which the device is fast; of two the one with more digits, fp16."""
    if device.type == "cuda":
        return "fp16"
    return "bf16" if device.type == "cpu" and best_precision() == "bf16" else None


def measure_margin(exact_NC: Tensor, half_NC: Tensor, top: int) -> tuple[float, float]:
    """The margin that covers `MOVES_COVERED` of half precision's errors, and the share of images closer than that."""
    order = half_NC.argsort(dim=1, descending=True)[:, : top + 1]
    gaps, exact_gaps = (_gaps(logits.gather(1, order)) for logits in (half_NC, exact_NC))
    margin = (gaps - exact_gaps).abs().flatten().quantile(MOVES_COVERED)
    return float(margin), float(too_close(half_NC, top, float(margin)).float().mean())


def too_close(logits_NC: Tensor, top: int, margin: float) -> Tensor:
    """Whether the first class, or the set of the ``top``, is decided by less than ``margin``, or by no number; (images,)."""
    falling = logits_NC.topk(min(top + 1, logits_NC.shape[1]), dim=1).values
    return ~(_gaps(falling) >= margin).all(dim=1)


def folded(model: nn.Module) -> nn.Module:
    """A copy of the model with its batch normalizations folded into the convolutions before them, where it can be traced."""
    try:
        return torch.fx.experimental.optimization.fuse(model)
    except Exception:  # code that depends on its input fails to trace in any way; the model works as it is
        return copy.deepcopy(model)


def _gaps(falling: Tensor) -> Tensor:
    """Distance of the first logit to the second, and of the last but one to the last."""
    return torch.stack([falling[:, 0] - falling[:, 1], falling[:, -2] - falling[:, -1]], dim=1)
