"""BERT's layers in C++, in bf16 on processors with AVX512-BF16: `fused_bert.cpp`, compiled when it is first used.

A step of 16 tweets takes torch a thousand operations, whose start costs more than what they do. Here it is one call forward and
one backward, without padding. Where there is no such processor or no compiler,
:class:`finetune.lean_bert.LeanBert` does without.

Without gradients it can be done in eight bits, where products are twice as fast: :meth:`FusedBert.use_eight_bits`.

What is computed does not depend on the number of threads and, but for dropout's masks, not on what else is in the batch. Of
torch's generator, one number a pass is drawn for dropout. Several Python threads may predict at once, where no weight changes;
training is for one.

Shapes: B tweets, T word pieces of the longest, W words of the longest, H hidden size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import BertModel

from finetune.dropout import SixteenBitDropout
from launch import native

SOURCE = Path(__file__).with_suffix(".cpp")
INSTRUCTIONS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni", "fma")
MULTIPLE = 32
"""The kernels compute so many columns at once: sizes must be multiples of it."""
MULTIPLE_IN_EIGHT_BITS = 64
"""The same of the sizes of linear layers' inputs, where these are bytes."""


class Sizes(ctypes.Structure):
    """Of a pass, as in the source."""

    _fields_ = [
        *((name, ctypes.c_long) for name in ("tweets", "pieces", "words", "hidden", "heads", "inner", "layers")),
        *((name, ctypes.c_long) for name in ("labels", "places", "types", "vocabulary")),
        *((name, ctypes.c_long) for name in ("threads", "training", "eight_bits")),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_float) for name in ("hidden_rate", "attention_rate", "label_rate", "epsilon")),
    ]


class Inputs(ctypes.Structure):
    """Of a pass, as in the source: addresses of contiguous tensors, fp32 and four of int64; ``ids_BT`` may be None."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("embedded", "ids_BT", "attention_mask_BT", "token_type_ids_BT", "first_piece_BW")
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled source, with the types of its functions; None where this machine cannot compile or run it.

    Processors with AMX are left to torch, whose products are faster with it.
    """
    lib = None if native.processor_has("amx_bf16") else native.library(SOURCE, INSTRUCTIONS)
    if lib is None:
        return None
    pointer, sizes, inputs, long = ctypes.c_void_p, ctypes.POINTER(Sizes), ctypes.POINTER(Inputs), ctypes.c_long
    lib.fused_bert_bytes.argtypes = [sizes, *[ctypes.POINTER(long)] * 3]
    lib.fused_bert_pack.argtypes = [sizes, pointer, pointer, pointer]
    lib.fused_bert_forward.argtypes = [sizes, inputs, *[pointer] * 4]
    lib.fused_bert_backward.argtypes = [sizes, inputs, *[pointer] * 7]
    lib.fused_bert_gelu.argtypes = [long, pointer, pointer]
    lib.fused_bert_dropout.argtypes = [ctypes.c_uint64, long, ctypes.c_float, long, pointer]
    lib.fused_bert_forward.restype = ctypes.c_int
    for name in ("bytes", "pack", "backward", "dropout", "gelu"):
        getattr(lib, f"fused_bert_{name}").restype = None
    return lib


class Pool:
    """Memory that is used again: new pages of the system cost more than what is done in them."""

    def __init__(self) -> None:
        self.free: list[Tensor] = []

    def take(self, size: int) -> Tensor:
        """Memory of at least this size, in bytes. Smaller memory that is free is given up."""
        while True:
            try:
                memory = self.free.pop()
            except IndexError:  # asked for so, since another thread may take the last
                return torch.empty(size, dtype=torch.uint8, device="cpu")
            if len(memory) >= size:
                return memory

    def __deepcopy__(self, memo: dict[int, Any]) -> Pool:
        """A new one: what is free here is of no use elsewhere."""
        return Pool()


class Lent:
    """Memory of a pool, which goes back to it when nothing refers to this any more."""

    def __init__(self, pool: Pool, size: int) -> None:
        self.pool, self.memory = pool, pool.take(size)

    def __del__(self) -> None:
        if hasattr(self, "memory"):  # else there was none to be had
            self.pool.free.append(self.memory)

    @property
    def address(self) -> int:
        """Where it begins."""
        return self.memory.data_ptr()


class TableRows(NamedTuple):
    """Pieces as rows [B, T] of a table of embeddings [V, H]: read where they are needed; with gradients, looked up before."""

    ids_BT: Tensor
    table_VH: Tensor

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the embeddings."""
        return *self.ids_BT.shape, self.table_VH.shape[1]

    def embedded(self) -> Tensor:
        """The embeddings [B, T, H]."""
        return functional.embedding(self.ids_BT, self.table_VH)


class LabelLayer(NamedTuple):
    """The linear layer behind the hidden states [L, H] and [L], and the rate of the dropout between."""

    weight: Tensor
    bias: Tensor
    rate: float

    @classmethod
    def of(cls, dropout: nn.Module, classifier: nn.Module) -> LabelLayer | None:
        """That of two modules, or None where they are others than a plain dropout and a linear layer in fp32."""
        if type(classifier) is not nn.Linear or type(dropout) not in (nn.Dropout, SixteenBitDropout):
            return None
        parameters = classifier.weight, classifier.bias
        if any(parameter is None or not native.is_plain(parameter) for parameter in parameters):
            return None
        return cls(*parameters, dropout.p if dropout.training else 0.0)


class Packed(NamedTuple):
    """Weights as the forward pass reads them; and the encoder's parameters, by their addresses and so that they live on."""

    panels: Lent
    addresses: list[int]
    parameters: list[Tensor]

    def __reduce__(self) -> tuple[type, tuple]:
        """Nothing, in a copy: it has parameters of its own."""
        return type(None), ()


class FusedBert:
    """A ``BertModel``'s computation; made by :meth:`of`. Like ``LeanBert`` it is no module and has no parameters."""

    def __init__(self, bert: BertModel) -> None:
        self.bert = bert
        embeddings = bert.embeddings
        self.tables = [embeddings.position_embeddings, embeddings.token_type_embeddings]
        self.modules = [embeddings.LayerNorm, *(module for layer in bert.encoder.layer for module in modules_of(layer))]
        self.panels, self.activations, self.scratch = Pool(), Pool(), Pool()
        self.kept: Packed | None = None
        self.eight_bits = False

    @classmethod
    def of(cls, bert: BertModel) -> FusedBert | None:
        """That of a plain ``BertModel``, or None where its sizes, or this machine, are not made for it."""
        config = bert.config
        sizes = (config.hidden_size, config.intermediate_size, config.hidden_size // config.num_attention_heads)
        return None if any(size % MULTIPLE for size in sizes) or library() is None else cls(bert)

    def serves(self, dtype: torch.dtype) -> bool:
        """Whether it computes in this type: bf16, from parameters in fp32. What is compiled is left to the compiler."""
        if dtype != torch.bfloat16 or torch.compiler.is_compiling():
            return False
        return self.kept is not None or all(native.is_plain(parameter) for parameter in self.parameters())

    def use_eight_bits(self, wanted: bool) -> bool:
        """Whether from now on passes without gradients compute the linear layers' products in eight bits: not with all sizes.

        Weights are rounded to 255 values for each output, what a layer reads to 256 for each word piece.
        """
        config = self.bert.config
        sizes = (config.hidden_size, config.intermediate_size)
        self.eight_bits = wanted and not any(size % MULTIPLE_IN_EIGHT_BITS for size in sizes)
        self.kept = None
        return self.eight_bits

    def __call__(
        self,
        pieces: Tensor | TableRows,
        attention_mask_BT: Tensor,
        token_type_ids_BT: Tensor,
        first_piece_BW: Tensor,
        unchanged: bool = False,
        labels: LabelLayer | None = None,
    ) -> Tensor:
        """The last hidden states [B, W, H], fp32, at each word's first piece; with ``labels`` their scores [B, W, L].

        The pieces are given as their embeddings [B, T, H], or as rows of a table. At padding, whose first piece is 0, states
        and scores are 0. ``unchanged`` says that the weights are packed once and kept. Dropout is on where the ``BertModel``
        is in training. ValueError for a mask with holes, for pieces and token types that there are not, for a first piece
        beyond its tweet.
        """
        given = [x.to(torch.int64).contiguous() for x in (attention_mask_BT, token_type_ids_BT, first_piece_BW)]
        if not attention_mask_BT.shape == token_type_ids_BT.shape == pieces.shape[:2]:
            raise ValueError("an attention mask or token types of another shape than the pieces")
        of_labels = labels[:2] if labels else ()
        if torch.is_grad_enabled():
            embedded_BTH = (pieces.embedded() if isinstance(pieces, TableRows) else pieces).float().contiguous()
            parameters = [*self.parameters(), *of_labels]
            if any(x.requires_grad for x in (embedded_BTH, *parameters)):
                sizes = self.sizes(pieces, first_piece_BW, True, labels)
                return Layers.apply(self, sizes, embedded_BTH, *given, *parameters)
        sizes = self.sizes(pieces, first_piece_BW, False, labels)
        packed = self.kept if unchanged else None
        if packed is None:
            parameters = [parameter.detach() for parameter in self.parameters()]
            places = addresses(parameters)
            packed = Packed(self.packed(sizes, places)[0], places, parameters)
        if unchanged:
            self.kept = packed
        return self.computed(sizes, pieces, given, packed.addresses + addresses(of_labels), packed.panels)[0]

    def parameters(self) -> list[Tensor]:
        """In the order of the source."""
        first, *others = self.modules
        rest = [parameter for module in others for parameter in (module.weight, module.bias)]
        return [first.weight, first.bias, *(table.weight for table in self.tables), *rest]

    def sizes(
        self, pieces: Tensor | TableRows, first_piece_BW: Tensor, training: bool, labels: LabelLayer | None = None
    ) -> Sizes:
        """Of a pass, with a seed for dropout. ``training`` says whether there will be a backward pass."""
        config = self.bert.config
        label_rate = labels.rate if labels else 0.0
        rates = (config.hidden_dropout_prob, config.attention_probs_dropout_prob) if self.bert.training else (0.0, 0.0)
        return Sizes(
            *pieces.shape[:2],
            first_piece_BW.shape[1],
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            config.num_hidden_layers,
            len(labels.weight) if labels else 0,
            config.max_position_embeddings,
            config.type_vocab_size,
            len(pieces.table_VH) if isinstance(pieces, TableRows) else 0,
            torch.get_num_threads(),
            training,
            self.eight_bits and not training,
            int(torch.empty((), dtype=torch.int64).random_()) if any((*rates, label_rate)) else 0,
            *rates,
            label_rate,
            config.layer_norm_eps,
        )

    def packed(self, sizes: Sizes, parameters: list[int]) -> tuple[Lent, Lent | None]:
        """The weights in bf16 or bytes, as the forward pass reads them, and for training as the backward pass does."""
        size = bytes_of(sizes)[0]
        forward, backward = Lent(self.panels, size), Lent(self.panels, size) if sizes.training else None
        library().fused_bert_pack(sizes, array(parameters), forward.address, backward.address if backward else None)
        return forward, backward

    def computed(
        self,
        sizes: Sizes,
        pieces: Tensor | TableRows,
        given: Sequence[Tensor],
        parameters: list[int],
        panels: Lent,
    ) -> tuple[Tensor, Lent]:
        """The output, and what the backward pass needs of the forward pass."""
        activations = Lent(self.activations, bytes_of(sizes)[1])
        output = torch.empty(sizes.tweets, sizes.words, sizes.labels or sizes.hidden, dtype=torch.float32, device="cpu")
        embedded, ids_BT = (pieces.table_VH, pieces.ids_BT) if isinstance(pieces, TableRows) else (pieces, None)
        embedded, ids_BT = (
            embedded.float().contiguous(),
            None if ids_BT is None else ids_BT.to(torch.int64).contiguous(),
        )
        inputs = Inputs(embedded.data_ptr(), None if ids_BT is None else ids_BT.data_ptr(), *addresses(given))
        problem = library().fused_bert_forward(
            sizes, inputs, array(parameters), panels.address, activations.address, output.data_ptr()
        )
        if problem:
            raise ValueError(
                "a tweet that is longer than the encoder's places, an attention mask with holes or without a piece, "
                "pieces or token types that the encoder has not, or a first piece beyond its tweet"
            )
        return output, activations


def modules_of(layer: nn.Module) -> tuple[nn.Module, ...]:
    """A layer's modules with parameters, in the order of the source."""
    attention = layer.attention
    of_attention = (attention.self.query, attention.self.key, attention.self.value, attention.output.dense)
    return (
        *of_attention,
        attention.output.LayerNorm,
        layer.intermediate.dense,
        layer.output.dense,
        layer.output.LayerNorm,
    )


class Layers(torch.autograd.Function):
    """All layers as one function of the embedded pieces and the parameters."""

    @staticmethod
    def forward(
        ctx: Any, fused: FusedBert, sizes: Sizes, embedded_BTH: Tensor, *given_and_parameters: Tensor
    ) -> Tensor:
        """The last hidden states [B, W, H] or the labels' scores [B, W, L]; ``given`` are mask, types and first pieces."""
        given, parameters = given_and_parameters[:3], given_and_parameters[3:]
        places = addresses(parameters)
        panels, ctx.panels = fused.packed(sizes, places)
        output, ctx.activations = fused.computed(sizes, embedded_BTH, given, places, panels)
        ctx.fused, ctx.sizes = fused, sizes
        ctx.save_for_backward(*given_and_parameters)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_output: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, in fp32."""
        given, parameters = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
        sizes, of_output = ctx.sizes, of_output.contiguous()
        scratch = Lent(ctx.fused.scratch, bytes_of(sizes)[2])
        of_embedded_BTH = of_output.new_empty(sizes.tweets, sizes.pieces, sizes.hidden)
        gradients = [torch.empty_like(parameter) for parameter in parameters]
        for of_places_or_types in gradients[2:4]:
            of_places_or_types.zero_()
        library().fused_bert_backward(
            sizes,
            Inputs(None, None, *addresses(given)),
            array(addresses(parameters)),
            ctx.panels.address,
            ctx.activations.address,
            scratch.address,
            of_output.data_ptr(),
            of_embedded_BTH.data_ptr(),
            array(addresses(gradients)),
        )
        return None, None, of_embedded_BTH, None, None, None, *gradients


def bytes_of(sizes: Sizes) -> tuple[int, int, int]:
    """Of the packed weights, of the forward pass's memory, of what the backward pass needs beside."""
    numbers = [ctypes.c_long() for _ in range(3)]
    library().fused_bert_bytes(sizes, *numbers)
    return tuple(number.value for number in numbers)


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Where each tensor's data begin."""
    return [tensor.data_ptr() for tensor in tensors]


def array(places: list[int]) -> ctypes.Array:
    """Addresses as the source takes them."""
    return (ctypes.c_void_p * len(places))(*places)


def gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    """gelu of ``x`` and its slope there."""
    y = functional.pad(x.flatten(), (0, -x.numel() % MULTIPLE))
    slope = torch.empty_like(y)
    library().fused_bert_gelu(len(y), y.data_ptr(), slope.data_ptr())
    return tuple(z[: x.numel()].view(x.shape) for z in (y, slope))


def dropped(x: Tensor, seed: int, place: int, rate: float) -> Tensor:
    """``x`` as dropout leaves it in a pass with this seed, at a place: 0 is behind the embeddings, then come three of each
    layer (the attention's shares, what it gives, what the two linear layers give), last the one before the labels. The elements
    of ``x`` are numbered in a row.
    """
    y = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % MULTIPLE))
    library().fused_bert_dropout(seed, place, rate, len(y), y.data_ptr())
    return y[: x.numel()].view(x.shape)
