"""Training only the rows of an embedding that the training data have.

The 4,000 tweets that TMN trains on have 11,151 of the 30,522 pieces of BERT's vocabulary. The gradient of the other rows is
zero in every step; but zeroing it, its norm, and AdamW go over all of them. Here they are set aside while the model is
trained. What is trained is the same, but for weight decay: rows that are set aside stay as they were pretrained.

Shapes: V rows of the whole embedding, R rows in use, H hidden size.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class RowsInUse(nn.Module):
    """An embedding of which only some rows are trained: ``weight`` [R, H]. The others are looked up outside training alone."""

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

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of ids. In training they must be in use."""
        places = self.place_V[ids]
        embedded = functional.embedding(places.clamp(min=0), self.weight, self.padding_row)
        if self.training:
            return embedded
        return torch.where(places[..., None] < 0, functional.embedding(ids, self.whole_VH), embedded)

    def all_rows(self, weight_RH: torch.Tensor) -> torch.Tensor:
        """The whole embedding [V, H], given the trained rows."""
        whole_VH = self.whole_VH.to(weight_RH.device, copy=True)
        whole_VH[self.rows_R.to(weight_RH.device)] = weight_RH
        return whole_VH


def with_all_rows(model: nn.Module, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of a model that holds :class:`RowsInUse` as that of the model with whole embeddings."""
    whole = dict(state_dict)
    for name, module in model.named_modules():
        if isinstance(module, RowsInUse):
            whole[f"{name}.weight"] = module.all_rows(whole[f"{name}.weight"])
    return whole
