"""The loss of a wide output layer without all its logits: linear layer and cross-entropy in one, a few rows at a time.

A vocabulary of 30,522 words makes the logits of an optimizer step a matrix that no cache holds; the plain way writes and
reads it half a dozen times. Here a few rows' logits are made, turned into the loss and its gradient while they are in the
cache, multiplied onto the gradients of input and weight, and forgotten. (The idea is in Liger Kernel, Hsu et al. 2024,
and in Cut Your Losses, Wijmans et al. 2024.)

Shapes: M rows (masked tokens), H hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch.nn import functional

LOGITS_AT_ONCE = 1 << 22
"""Logits that are held at once on a CPU: 8 MB in bf16, which the cache holds."""
LOGITS_AT_ONCE_ON_GPU = 1 << 26

NO_LABEL = -100
"""Label of a row that does not count."""


def linear_cross_entropy(
    hidden_MH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor, labels_M: torch.Tensor
) -> torch.Tensor:
    """``cross_entropy(linear(hidden, weight, bias), labels, ignore_index=NO_LABEL, reduction="sum")``, in fp32.

    The products are made in the type of ``hidden_MH`` (or autocast's), the softmax in fp32. The gradient is made in the
    forward pass.
    """
    device = hidden_MH.device.type
    if torch.is_autocast_enabled(device):  # which would choose a type for each product, and not for its output
        with torch.autocast(device, enabled=False):
            return linear_cross_entropy(hidden_MH.to(torch.get_autocast_dtype(device)), weight_VH, bias_V, labels_M)
    weight_VH, bias_V = weight_VH.to(hidden_MH.dtype), bias_V.to(hidden_MH.dtype)
    if not torch.is_grad_enabled():
        return _loss_alone(hidden_MH, weight_VH, bias_V, labels_M)
    return _LinearCrossEntropy.apply(hidden_MH, weight_VH, bias_V, labels_M)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_MH, weight_VH, bias_V, labels_M):
        # Whether this is compiled is known only here: the operator below is a black box to the compiler.
        loss, *gradients = loss_and_gradients(hidden_MH, weight_VH, bias_V, labels_M, torch.compiler.is_compiling())
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx, gradient):
        return *(saved * gradient.to(saved.dtype) for saved in ctx.saved_tensors), None


@torch.library.custom_op("msb_ner::loss_and_gradients", mutates_args=())
def loss_and_gradients(
    hidden_MH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor, labels_M: torch.Tensor, compiled: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, and its gradients with respect to hidden states, weight and bias."""
    softmax = _compiled_softmax_loss if compiled else _softmax_loss
    loss = hidden_MH.new_zeros((), dtype=torch.float32)
    d_hidden_MH = torch.empty_like(hidden_MH)
    d_weight_VH = torch.zeros_like(weight_VH)
    d_bias_V = torch.zeros_like(bias_V, dtype=torch.float32)
    ones_1C = hidden_MH.new_ones(1, len(hidden_MH))
    for rows in _chunks(hidden_MH, weight_VH):
        chunk_loss, d_logits_CV = softmax(hidden_MH[rows] @ weight_VH.t(), bias_V, labels_M[rows])
        loss += chunk_loss
        torch.mm(d_logits_CV, weight_VH, out=d_hidden_MH[rows])
        d_weight_VH.addmm_(d_logits_CV.t(), hidden_MH[rows])
        d_bias_V += (ones_1C[:, : d_logits_CV.shape[0]] @ d_logits_CV)[0]
    return loss, d_hidden_MH, d_weight_VH, d_bias_V.to(bias_V.dtype)


@loss_and_gradients.register_fake
def _(hidden_MH, weight_VH, bias_V, labels_M, compiled):
    loss = hidden_MH.new_empty((), dtype=torch.float32)
    return loss, torch.empty_like(hidden_MH), torch.empty_like(weight_VH), torch.empty_like(bias_V)


def _loss_alone(
    hidden_MH: torch.Tensor, weight_VH: torch.Tensor, bias_V: torch.Tensor, labels_M: torch.Tensor
) -> torch.Tensor:
    loss = hidden_MH.new_zeros((), dtype=torch.float32)
    for rows in _chunks(hidden_MH, weight_VH):
        logits_CV = (hidden_MH[rows] @ weight_VH.t()).float() + bias_V.float()
        loss += functional.cross_entropy(logits_CV, labels_M[rows], ignore_index=NO_LABEL, reduction="sum")
    return loss


def _softmax_loss(
    products_CV: torch.Tensor, bias_V: torch.Tensor, labels_C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of some rows, and its gradient with respect to their logits, in the products' type."""
    logits_CV = products_CV.float() + bias_V.float()
    counts_C1 = (labels_C != NO_LABEL)[:, None]
    labels_C1 = labels_C.clamp(min=0)[:, None]
    normaliser_C1 = torch.logsumexp(logits_CV, dim=1, keepdim=True)
    loss = ((normaliser_C1 - logits_CV.gather(1, labels_C1)) * counts_C1).sum()
    columns_1V = torch.arange(logits_CV.shape[1], device=logits_CV.device)[None]
    probabilities_CV = torch.exp(logits_CV - normaliser_C1)
    d_logits_CV = torch.where(columns_1V == labels_C1, probabilities_CV - 1, probabilities_CV) * counts_C1
    return loss, d_logits_CV.to(products_CV.dtype)


_compiled_softmax_loss = torch.compile(_softmax_loss, dynamic=False)


def _chunks(hidden_MH: torch.Tensor, weight_VH: torch.Tensor) -> list[slice]:
    """Slices of about as many rows as make ``LOGITS_AT_ONCE``, all equal but the last."""
    at_once = LOGITS_AT_ONCE if hidden_MH.device.type == "cpu" else LOGITS_AT_ONCE_ON_GPU
    most = max(1, at_once // weight_VH.shape[0])
    count = -(-hidden_MH.shape[0] // most)
    size = -(-hidden_MH.shape[0] // count) if count else 1
    return [slice(start, start + size) for start in range(0, hidden_MH.shape[0], size)]
