"""Embedding tables whose gradient is torch's own kernel in a compiled model, too.

The compiler adds each token's gradient to the table atomically; where thousands of tokens share a row (the first
positions, the one token type), processor cores wait for each other, longer than the encoder's attention takes. torch's own
kernel parts the table between the cores instead.
"""

from __future__ import annotations

import torch
from torch import nn


class OperatorEmbedding(nn.Embedding):
    """`nn.Embedding`, as one operator that the compiler leaves as it is."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of the table."""
        padding = -1 if self.padding_idx is None else self.padding_idx
        return embedding(self.weight, ids, padding)


def use_operator(module: nn.Module) -> None:
    """Make the embeddings within a module such operators; their parameters stay the same."""
    for inner in module.modules():
        if type(inner) is nn.Embedding and not inner.sparse and inner.max_norm is None and not inner.scale_grad_by_freq:
            inner.__class__ = OperatorEmbedding


@torch.library.custom_op("msb_ner::embedding", mutates_args=())
def embedding(weight_VH: torch.Tensor, ids: torch.Tensor, padding: int) -> torch.Tensor:
    """`torch.embedding`."""
    return torch.embedding(weight_VH, ids, padding)


@embedding.register_fake
def _(weight_VH, ids, padding):
    return weight_VH.new_empty((*ids.shape, weight_VH.shape[1]))


@torch.library.custom_op("msb_ner::embedding_gradient", mutates_args=())
def embedding_gradient(gradient: torch.Tensor, ids: torch.Tensor, rows: int, padding: int) -> torch.Tensor:
    """The gradient of :func:`embedding` with respect to its table of so many rows."""
    return torch.ops.aten.embedding_dense_backward(gradient.contiguous(), ids, rows, padding, False)


@embedding_gradient.register_fake
def _(gradient, ids, rows, padding):
    return gradient.new_empty((rows, gradient.shape[-1]))


def _keep(ctx, inputs, output) -> None:
    weight_VH, ids, ctx.padding = inputs
    ctx.rows = weight_VH.shape[0]
    ctx.save_for_backward(ids)


def _backward(ctx, gradient):
    (ids,) = ctx.saved_tensors
    return embedding_gradient(gradient, ids, ctx.rows, ctx.padding), None, None


embedding.register_autograd(_backward, setup_context=_keep)
