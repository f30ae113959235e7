"""How fast a step could be: the time of its matrix products alone, measured on this machine.

What cannot be left out are the products of the encoder's linear layers, for all tokens, and those of the output layer, for
the masked ones: forward, and backward for inputs and weights. Attention, normalisation, the softmax, the optimizer and all
moving of data come on top; the share that is left tells how well a training step uses the machine.
"""

from __future__ import annotations

import statistics
import time

import torch
from transformers import PreTrainedConfig

REPEATS, SECONDS = 5, 0.1
"""Of each product: so many measurements, fewer where they take longer than this together."""


def tokens_per_second_of_products(
    config: PreTrainedConfig, tokens_per_step: int, masking_rate: float, dtype: torch.dtype, device: torch.device
) -> float:
    """Tokens that pass in a second if a step were its matrix products alone; measured in a second or two."""
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    masked = max(1, round(tokens_per_step * masking_rate))
    products = [  # rows, inputs, outputs, how often
        (tokens_per_step, hidden, hidden, 4 * layers),
        (tokens_per_step, hidden, inner, layers),
        (tokens_per_step, inner, hidden, layers),
        (masked, hidden, hidden, 1),
        (masked, hidden, config.vocab_size, 1),
    ]
    seconds = 0.0
    for rows, inputs, outputs, count in products:
        x, weight, gradient = (
            torch.randn(shape, dtype=dtype, device=device)
            for shape in ((rows, inputs), (outputs, inputs), (rows, outputs))
        )
        for left, right in ((x, weight.t()), (gradient, weight), (gradient.t(), x)):
            seconds += count * _median_seconds(left, right)
    return tokens_per_step / seconds


def _median_seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    marks: list[float] = []
    while len(marks) < 2 or (len(marks) <= REPEATS and sum(marks) < SECONDS):
        started_at = time.perf_counter()
        left @ right
        if left.device.type != "cpu":
            torch.accelerator.synchronize()
        marks.append(time.perf_counter() - started_at)
    return statistics.median(marks[1:])
