"""A step of AdamW with its gradients clipped, on processors: `clipped_adamw.cpp`, in place of a hundred operations of torch.

For a small model it is these operations' start that takes the time, for a larger one that clipping goes over all gradients
twice. It is torch's optimizer all the same, with its state: checkpoints are the same with and without it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from launch import native

SOURCE = Path(__file__).with_suffix(".cpp")
INSTRUCTIONS = ("avx2",)


class Parameter(ctypes.Structure):
    """A parameter's addresses and rates, as in the source."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "average", "square_average", "gradient", "steps")),
        ("count", ctypes.c_long),
        *((name, ctypes.c_double) for name in ("learning_rate", "weight_decay")),
    ]


class Settings(ctypes.Structure):
    """Of the optimizer, as in the source."""

    _fields_ = [(name, ctypes.c_double) for name in ("beta1", "beta2", "epsilon", "maximum_norm")]


class ClippedAdamW:
    """Takes the steps of a ``torch.optim.AdamW``; made by :meth:`of`."""

    def __init__(self, optimizer: torch.optim.AdamW, maximum_norm: float, library: ctypes.CDLL) -> None:
        self.optimizer, self.maximum_norm = optimizer, maximum_norm
        self.function = library.clipped_adamw
        self.function.argtypes = [ctypes.POINTER(Parameter), ctypes.c_long, ctypes.POINTER(Settings), ctypes.c_long]
        self.function.restype = ctypes.c_double

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, maximum_norm: float) -> ClippedAdamW | None:
        """For an optimizer and the norm that all gradients together are clipped to; 0 clips nothing.

        None where it is not to be had: for another optimizer, for parameters that are not fp32 on a processor.
        """
        groups = optimizer.param_groups
        if type(optimizer) is not torch.optim.AdamW or any(group["amsgrad"] or group["maximize"] for group in groups):
            return None
        if len({(*group["betas"], group["eps"]) for group in groups}) != 1:
            return None
        if any(not native.is_plain(parameter) for group in groups for parameter in group["params"]):
            return None
        library = native.library(SOURCE, INSTRUCTIONS)
        return cls(optimizer, maximum_norm, library) if library else None

    def step(self) -> float:
        """Take a step; returns the norm of the gradients, which are left as they are."""
        optimizer = self.optimizer
        entries, gradients, changed = [], [], []
        for group in optimizer.param_groups:
            rates = group["lr"], group["weight_decay"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradients.append(parameter.grad.contiguous())
                state = optimizer.state[parameter]
                if not state:  # as torch begins
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                moments = state["exp_avg"], state["exp_avg_sq"]
                addresses = (x.data_ptr() for x in (parameter, *moments, gradients[-1], state["step"]))
                entries.append(Parameter(*addresses, parameter.numel(), *rates))
                changed += [parameter, *moments, state["step"]]
        group = optimizer.param_groups[0]
        settings = Settings(*group["betas"], group["eps"], self.maximum_norm)
        norm = self.function((Parameter * len(entries))(*entries), len(entries), settings, torch.get_num_threads())
        torch.autograd.graph.increment_version(changed)  # as torch's operations do: others go by it
        return norm
