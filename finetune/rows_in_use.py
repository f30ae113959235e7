"""Training only the rows of an embedding that the training data have.

The 4,000 tweets that TMN trains on have 11,151 of the 30,522 pieces of BERT's vocabulary. The gradient of the other rows is
zero in every step; but zeroing it, its norm, and AdamW go over all of them. Here they are set aside while the model is
trained. What is trained is the same, but for weight decay: rows that are set aside stay as they were pretrained.

Shapes: V rows of the whole embedding, R rows in use, H hidden size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class RowsInUse(nn.Module):
    """An embedding of which only some rows are trained: ``weight`` [R, H]. The others are looked up outside training alone.

    In one process its gradient is kept between the steps, and cleared at the rows that the last step had, a few hundred of
    the thousands there are; so the weight is for looking up alone, and between steps its ``grad`` is None. Several
    processes exchange gradients, which must come anew each time.
    """

    def __init__(self, embedding: nn.Embedding, rows: np.ndarray) -> None:
        super().__init__()
        whole_VH = embedding.weight.detach()
        rows_R = torch.from_numpy(np.unique(rows)).to(whole_VH.device)
        place_V = torch.full((len(whole_VH),), -1, device=whole_VH.device)
        place_V[rows_R] = torch.arange(len(rows_R), device=whole_VH.device)
        self.weight = nn.Parameter(whole_VH[rows_R].clone())
        for name, tensor in (("whole_VH", whole_VH.clone()), ("rows_R", rows_R), ("place_V", place_V)):
            self.register_buffer(name, tensor, persistent=False)
        padding = embedding.padding_idx
        self.padding_row = None if padding is None or place_V[padding] < 0 else int(place_V[padding])
        self.gradient = KeptGradient()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of ids. In training they must be in use."""
        places = self.place_V.index_select(0, ids.flatten()).view(ids.shape)  # as place_V[ids], in a fifth of the time
        if self.training and torch.is_grad_enabled() and not torch.distributed.is_initialized():
            return LookUp.apply(self.weight, places, self.padding_row, self.gradient)
        embedded = functional.embedding(places.clamp(min=0), self.weight, self.padding_row)
        if self.training:
            return embedded
        return torch.where(places[..., None] < 0, functional.embedding(ids, self.whole_VH), embedded)

    def all_rows(self, weight_RH: torch.Tensor) -> torch.Tensor:
        """The whole embedding [V, H], given the trained rows."""
        whole_VH = self.whole_VH.to(weight_RH.device, copy=True)
        whole_VH[self.rows_R.to(weight_RH.device)] = weight_RH
        return whole_VH


class KeptGradient:
    """The gradient of a weight [R, H], kept between the steps, and the rows of it that are not zero."""

    def __init__(self) -> None:
        self.gradient_RH: torch.Tensor | None = None
        self.rows: list[torch.Tensor] = []

    def add(self, weight_RH: nn.Parameter, rows: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add to the weight's gradient at ``rows`` [N] those given, [N, H]; first in a step, it replaces what was."""
        if self.gradient_RH is None:
            self.gradient_RH = torch.zeros_like(weight_RH)
        if weight_RH.grad is not self.gradient_RH:  # the last step's was taken away
            assert weight_RH.grad is None, "a gradient that does not come from looking up"
            for filled in self.rows:
                self.gradient_RH.index_fill_(0, filled, 0.0)
            self.rows = []
            weight_RH.grad = self.gradient_RH
        self.gradient_RH.index_add_(0, rows, gradient)
        self.rows.append(rows)


class LookUp(torch.autograd.Function):
    """Rows of a weight whose gradient is a :class:`KeptGradient`; ``functional.embedding`` would make a new one each time."""

    @staticmethod
    def forward(
        ctx: Any, weight_RH: nn.Parameter, places: torch.Tensor, padding_row: int | None, kept: KeptGradient
    ) -> torch.Tensor:
        """The rows at ``places`` [...]: [..., H]."""
        ctx.weight_RH, ctx.places, ctx.padding_row, ctx.kept = weight_RH, places.flatten(), padding_row, kept
        return weight_RH.index_select(0, ctx.places).view(*places.shape, -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, ...]:
        """Adds to the weight's ``grad`` itself, so that autograd has nothing to add."""
        ctx.kept.add(ctx.weight_RH, ctx.places, gradient.reshape(len(ctx.places), -1))
        if ctx.padding_row is not None:
            ctx.weight_RH.grad[ctx.padding_row] = 0.0
        return None, None, None, None


def with_all_rows(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of a model that holds :class:`RowsInUse` as that of the model with whole embeddings."""
    whole = dict(state_dict)
    for name, module in model.named_modules():
        if isinstance(module, RowsInUse):
            whole[f"{name}.weight"] = module.all_rows(whole[f"{name}.weight"])
    return whole
