"""BERT computed with few operations: what transformers' ``BertModel`` computes, for training and prediction on processors.

A step of 16 tweets is so small that what it takes is the number of operations, not their size. So here the weights are
rounded to bf16 together, once a pass; queries, keys and values are one product; all masks of dropout are one draw; and
from the last layer's attention on, only the words' first pieces are computed, which are all that a recognizer reads.
The parameters stay those of the ``BertModel``: nothing is stored here, nothing exported. In bf16 what is added up from layer to
layer is bf16, too, as in pretraining; transformers under autocast keeps that in fp32.

Shapes: B tweets, T word pieces of the longest, W words of the longest, H hidden size, A heads, D = H / A, Q pieces that are
computed (T, in the last layer W), L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertModel, PreTrainedModel

from finetune.dropout import drop_mask
from finetune.fused_bert import FusedBert, LabelLayer, TableRows

PARAMETERS_OF_A_LAYER = 12
"""Weight and bias of: queries; keys; values; the attention's output; the two linear layers behind it."""
WEIGHTS_OF_A_LAYER = 8
"""The same, with those of queries, keys and values in one matrix and one vector."""


class LeanBert:
    """A ``BertModel``'s computation; made by :meth:`of`. It is no module: the ``BertModel`` holds the parameters.

    >>> hidden_BWH = LeanBert.of(model)(embedded_BTH, attention_mask_BT, token_type_ids_BT, first_piece_BW)  # doctest: +SKIP
    """

    def __init__(self, bert: BertModel) -> None:
        self.bert = bert
        self.fused = FusedBert.of(bert)
        self.unchanged_depth = 0
        self.kept_weights: list[Tensor] | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> LeanBert | None:
        """That of the encoder in ``model``, or None where it is no plain BERT."""
        bert = model.base_model
        if type(bert) is not BertModel or bert.config.hidden_act != "gelu" or bert.config.is_decoder:
            return None
        plain = [type(module) is nn.Linear for layer in bert.encoder.layer for module in linear_modules(layer)]
        return cls(bert) if plain and all(plain) else None

    def serves(self, device: torch.device) -> bool:
        """Whether it can be used: on a processor, with whole parameters (ZeRO-3 has them in parts)."""
        return device.type == "cpu" and not hasattr(self.bert.embeddings.LayerNorm.weight, "ds_id")

    def __call__(
        self,
        pieces: Tensor | TableRows,
        attention_mask_BT: Tensor,
        token_type_ids_BT: Tensor,
        first_piece_BW: Tensor,
    ) -> Tensor:
        """The last hidden states [B, W, H], fp32, at each word's first piece. Pieces are their embeddings [B, T, H], or rows.

        Computed in autocast's type where that is on, else in fp32. Dropout is on where the ``BertModel`` is in training.
        """
        dtype = computed_type(pieces)
        if fused := self.fused_for(dtype):
            return fused(pieces, attention_mask_BT, token_type_ids_BT, first_piece_BW, self.unchanged_depth > 0)
        embedded_BTH = pieces.embedded() if isinstance(pieces, TableRows) else pieces
        tweets, length, hidden = embedded_BTH.shape
        with torch.autocast("cpu", enabled=False):
            weights = list(in_groups(self.weights(dtype), WEIGHTS_OF_A_LAYER))
            masks = self.masks(tweets, length, first_piece_BW.shape[1], dtype)
            x = self.embed(embedded_BTH, token_type_ids_BT).to(dtype).view(-1, hidden)
            x = dropped(x, next(masks))
            bias_B11T = torch.zeros_like(attention_mask_BT, dtype=dtype).masked_fill_(attention_mask_BT == 0, -1e9)
            bias_B11T = bias_B11T[:, None, None]
            starts_B1 = torch.arange(0, tweets * length, length)[:, None]
            rows = (first_piece_BW + starts_B1).flatten()
            last = len(weights) - 1
            for number, (layer, layer_weights) in enumerate(zip(self.bert.encoder.layer, weights, strict=True)):
                x = self.layer(layer, layer_weights, x, bias_B11T, rows if number == last else None, masks)
        return x.view(tweets, -1, hidden).float()

    def scores(
        self,
        pieces: Tensor | TableRows,
        attention_mask_BT: Tensor,
        token_type_ids_BT: Tensor,
        first_piece_BW: Tensor,
        dropout: nn.Module,
        classifier: nn.Module,
    ) -> Tensor:
        """The labels' scores [B, W, L], fp32: what a dropout and a classifier make of the hidden states."""
        inputs = (pieces, attention_mask_BT, token_type_ids_BT, first_piece_BW)
        labels = LabelLayer.of(dropout, classifier)
        if labels and (fused := self.fused_for(computed_type(pieces))):
            return fused(*inputs, self.unchanged_depth > 0, labels)
        hidden_BWH = self(*inputs)
        with torch.autocast("cpu", enabled=False):  # a few columns: rounding them takes longer
            return classifier(dropout(hidden_BWH))

    def fused_for(self, dtype: torch.dtype) -> FusedBert | None:
        """What computes it in one call, where that can be had in this type."""
        return self.fused if self.fused is not None and self.fused.serves(dtype) else None

    def embed(self, embedded_BTH: Tensor, token_type_ids_BT: Tensor) -> Tensor:
        """Pieces with their places and segments, normalised: [B, T, H]."""
        embeddings = self.bert.embeddings
        places_TH = embeddings.position_embeddings.weight[: embedded_BTH.shape[1]]
        return embeddings.LayerNorm(embedded_BTH + embeddings.token_type_embeddings(token_type_ids_BT) + places_TH)

    def layer(
        self,
        layer: nn.Module,
        weights: Sequence[Tensor],
        x: Tensor,
        bias_B11T: Tensor,
        rows: Tensor | None,
        masks: Iterator[Tensor | None],
    ) -> Tensor:
        """One layer: from hidden states [B T, H] to [B Q, H]; at ``rows`` of them alone, if given."""
        weight_qkv, bias_qkv, weight_out, bias_out, weight_up, bias_up, weight_down, bias_down = weights
        tweets, pieces, hidden = len(bias_B11T), bias_B11T.shape[3], x.shape[1]
        heads = self.bert.config.num_attention_heads
        if rows is None:
            read = x
            query, key, value = heads_of(functional.linear(x, weight_qkv, bias_qkv), 3, tweets, heads)
        else:
            read = x.index_select(0, rows)
            (query,) = heads_of(functional.linear(read, weight_qkv[:hidden], bias_qkv[:hidden]), 1, tweets, heads)
            key, value = heads_of(functional.linear(x, weight_qkv[hidden:], bias_qkv[hidden:]), 2, tweets, heads)
        scores = torch.bmm(query, key.transpose(1, 2)).view(tweets, heads, -1, pieces)
        scale = 1 / math.sqrt(hidden // heads)
        share = torch.softmax(torch.add(bias_B11T, scores, alpha=scale), dim=-1)
        context = torch.bmm(dropped(share, next(masks)).view(tweets * heads, -1, pieces), value)
        context = context.view(tweets, heads, -1, hidden // heads).transpose(1, 2).reshape(-1, hidden)
        attended = functional.linear(context, weight_out, bias_out)
        x = normalised(layer.attention.output.LayerNorm, dropped(attended, next(masks), read))
        changed = functional.linear(functional.gelu(functional.linear(x, weight_up, bias_up)), weight_down, bias_down)
        return normalised(layer.output.LayerNorm, dropped(changed, next(masks), x))

    def masks(self, tweets: int, pieces: int, words: int, dtype: torch.dtype) -> Iterator[Tensor | None]:
        """The masks of dropout in the order of their use: of the embeddings, then three of each layer. None out of training."""
        config = self.bert.config
        layers = config.num_hidden_layers
        if not self.bert.training:
            return iter([None] * (1 + 3 * layers))
        computed = [pieces] * (layers - 1) + [words]
        heads, hidden = config.num_attention_heads, config.hidden_size
        of_shares = drop_mask(
            [(tweets, heads, queries, pieces) for queries in computed], config.attention_probs_dropout_prob, dtype
        )
        of_hidden = drop_mask(
            [(tweets * queries, hidden) for queries in (pieces, *(q for q in computed for _ in range(2)))],
            config.hidden_dropout_prob,
            dtype,
        )
        of_layers = (mask for number in range(layers) for mask in (of_shares[number], *of_hidden[1 + 2 * number :][:2]))
        return iter([of_hidden[0], *of_layers])

    def weights(self, dtype: torch.dtype) -> list[Tensor]:
        """Eight of each layer, in ``dtype``."""
        keeps = self.unchanged_depth > 0 and not torch.is_grad_enabled()
        if keeps and (kept := self.kept_weights) is not None:
            return kept
        modules = [module for layer in self.bert.encoder.layer for module in linear_modules(layer)]
        weights = list(Together.apply(dtype, *(x for module in modules for x in (module.weight, module.bias))))
        if keeps:
            self.kept_weights = weights
        return weights

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Context in which no parameter changes, nor the type: without gradients, the weights are rounded once."""
        self.unchanged_depth += 1
        try:
            yield
        finally:
            self.unchanged_depth -= 1
            if not self.unchanged_depth:
                self.kept_weights = None
                if self.fused is not None:
                    self.fused.kept = None


def computed_type(pieces: Tensor | TableRows) -> torch.dtype:
    """Autocast's type where that is on, else that of the embeddings."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu")
    return pieces.table_VH.dtype if isinstance(pieces, TableRows) else pieces.dtype


def linear_modules(layer: nn.Module) -> tuple[nn.Module, ...]:
    """A layer's linear modules: queries, keys, values, the attention's output, up, down."""
    attention = layer.attention.self
    of_attention = (attention.query, attention.key, attention.value, layer.attention.output.dense)
    return (*of_attention, layer.intermediate.dense, layer.output.dense)


class Together(torch.autograd.Function):
    """The linear parameters of all layers in another type, those of queries, keys and values in one matrix and vector.

    One function for all: rounding them one by one takes as long as a layer's products.
    """

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        """From :data:`PARAMETERS_OF_A_LAYER` a layer to :data:`WEIGHTS_OF_A_LAYER`."""
        rounded, targets = [], []
        for of_layer in in_groups(parameters, PARAMETERS_OF_A_LAYER):
            hidden = len(of_layer[0])
            weight_qkv = of_layer[0].new_empty(3 * hidden, hidden, dtype=dtype)
            bias_qkv = of_layer[0].new_empty(3 * hidden, dtype=dtype)
            for part in range(3):
                targets += [weight_qkv[part * hidden :][:hidden], bias_qkv[part * hidden :][:hidden]]
            others = [torch.empty_like(parameter, dtype=dtype) for parameter in of_layer[6:]]
            targets += others
            rounded += [weight_qkv, bias_qkv, *others]
        torch._foreach_copy_(targets, list(parameters))
        return tuple(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, in fp32, of what was given."""
        parts: list[Tensor] = []
        for weight_qkv, bias_qkv, *others in in_groups(gradients, WEIGHTS_OF_A_LAYER):
            for weight, bias in zip(weight_qkv.chunk(3), bias_qkv.chunk(3), strict=True):
                parts += [weight, bias]
            parts += others
        return (None, *(part.float() for part in parts))


def in_groups(items: Sequence[Tensor], size: int) -> Iterator[Sequence[Tensor]]:
    """The items, ``size`` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def heads_of(x: Tensor, parts: int, tweets: int, heads: int) -> tuple[Tensor, ...]:
    """Each of the ``parts`` that lie side by side in the columns of ``x`` [B Q, parts H], as [B A, Q, D]."""
    size = x.shape[1] // (parts * heads)
    together = x.view(tweets, -1, parts, heads, size).permute(2, 0, 3, 1, 4)
    return together.reshape(parts, tweets * heads, -1, size).unbind(0)


def dropped(x: Tensor, mask: Tensor | None, residual: Tensor | None = None) -> Tensor:
    """``x`` with its mask, if there is one, and added to ``residual``, if there is one."""
    if mask is None:
        return x if residual is None else residual + x
    return x * mask if residual is None else torch.addcmul(residual, x, mask)


def normalised(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Layer normalisation with fp32 weights, whatever the type of ``x``."""
    return functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
