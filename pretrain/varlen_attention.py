"""Attention inside each text of packed rows by torch's variable-length kernel, which no mask slows down: for CUDA.

The rows are taken as one sequence of tokens that is cut where a text begins. Registered with transformers as an attention
implementation of its own. It has no dropout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "msb_varlen"
SHORTEST_TEXT = 2
"""Tokens: [CLS] and [SEP]."""


def can_be_used(device: torch.device, dtype: torch.dtype, dropout: float | None) -> bool:
    """Whether the kernel is there for such a model: bf16 on an NVIDIA GPU of compute capability 8 or more, no dropout."""
    if device.type != "cuda" or torch.version.hip or dtype != torch.bfloat16 or dropout != 0:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 8


def text_starts(samples_RT: torch.Tensor) -> torch.Tensor:
    """Where texts begin in the rows laid end to end, and then the end, as often as fills a fixed length; int32.

    Padding at a row's end counts as a text. The length depends on the rows' shape alone, so the kernel's arguments have
    one shape for all batches; texts beyond the last one are empty.
    """
    rows, row_length = samples_RT.shape
    begins_RT = samples_RT != samples_RT.roll(1, dims=1)
    begins_RT[:, 0] = True
    places = torch.arange(rows * row_length, device=samples_RT.device)
    starts = torch.where(begins_RT.flatten(), places, rows * row_length).sort().values
    most_texts = rows * (row_length // SHORTEST_TEXT + 1)
    return nn.functional.pad(starts, (0, 1), value=rows * row_length)[: most_texts + 1].to(torch.int32)


def attention(
    module: nn.Module,
    query_RNTD: torch.Tensor,
    key_RNTD: torch.Tensor,
    value_RNTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    text_starts: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it: R rows, N heads, T tokens, D size of a head; gives ``(R, T, N, D)``."""
    assert not dropout and attention_mask is None
    rows, _heads, row_length, _size = query_RNTD.shape
    query, key, value = (x.transpose(1, 2).flatten(0, 1) for x in (query_RNTD, key_RNTD, value_RNTD))
    out = varlen_attn(query, key, value, text_starts, text_starts, row_length, row_length, scale=scaling)
    return out.unflatten(0, (rows, row_length)), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, _no_mask)
