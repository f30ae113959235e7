"""Taggers: words in, a label for each word out. What the training loop and the recognizer use of every system's model.

Shapes: B tweets, T word pieces of the longest, W words of the longest, L labels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from finetune.features import PieceInputs
from finetune.fused_bert import TableRows
from finetune.inputs import Inputs
from finetune.lean_bert import LeanBert
from finetune.rows_in_use import RowsInUse
from finetune.systems.msb import MSBForTokenClassification


class Tagger(nn.Module):
    """A model with the loss and the decoding of its head: the CRF it has as ``crf``, or else a softmax for each word.

    The loss is the softmax cross-entropy of the words, or the CRF's negative log-likelihood; both are sums, to be
    divided by the number of words. A subclass says how words come by their scores.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def emissions(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Scores [B, W, L], in fp32, of each label at each word."""
        raise NotImplementedError

    @property
    def computed_by(self) -> dict[str, str]:
        """What the results depend on beside settings and data: a resumed run is told where it changed."""
        return {}

    def use_eight_bits(self, wanted: bool) -> bool:
        """Whether from now on passes in bf16 without gradients multiply in eight bits: where that is wanted and can be had."""
        return False

    def unchanged(self) -> AbstractContextManager[None]:
        """Context in which no parameter changes, nor the type computed in; some taggers have less to do then."""
        return nullcontext()

    def train_rows_in_use(self, inputs: Inputs) -> None:
        """Before training: set aside the rows of embeddings that ``inputs`` do not have. Does nothing for most systems."""

    def forward(self, word_mask_BW: torch.Tensor, labels_BW: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """The loss, summed over the words of the batch."""
        return self.loss(self.emissions(**inputs), word_mask_BW, labels_BW)

    def loss(self, emissions_BWL: torch.Tensor, word_mask_BW: torch.Tensor, labels_BW: torch.Tensor) -> torch.Tensor:
        """The loss of given emissions, summed over the words of the batch."""
        if self.has_crf:
            return self.model.crf(emissions_BWL, labels_BW, word_mask_BW).sum()
        labels_BW = labels_BW.masked_fill(~word_mask_BW, -100)
        return functional.cross_entropy(emissions_BWL.flatten(0, 1), labels_BW.flatten(), reduction="sum")

    def decode(self, emissions_BWL: torch.Tensor, word_mask_BW: torch.Tensor) -> list[list[int]]:
        """The best label ids of each tweet's words."""
        if self.has_crf:
            return self.model.crf.decode(emissions_BWL, word_mask_BW)
        words = word_mask_BW.sum(dim=1).tolist()
        return [row[:n] for row, n in zip(emissions_BWL.argmax(dim=2).tolist(), words, strict=True)]

    def log_probability(
        self, emissions_BWL: torch.Tensor, word_mask_BW: torch.Tensor, labels_BW: torch.Tensor
    ) -> torch.Tensor:
        """Log-probability [B], in nats, of all labels of each tweet."""
        if self.has_crf:
            return -self.model.crf(emissions_BWL, labels_BW, word_mask_BW)
        log_p_BW = emissions_BWL.log_softmax(dim=2).gather(2, labels_BW[:, :, None])[:, :, 0]
        return (log_p_BW * word_mask_BW).sum(dim=1)

    @property
    def has_crf(self) -> bool:
        """Whether a CRF decides the labels."""
        return getattr(self.model, "crf", None) is not None


class PieceTagger(Tagger):
    """Of a model over word pieces (MSB): a word's scores are those of its first piece.

    A plain BERT is computed by :class:`LeanBert` on processors, where ``lean`` is not None.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.lean = LeanBert.of(model)

    @property
    def computed_by(self) -> dict[str, str]:
        """Whose operations compute the layers on a processor."""
        return {} if self.lean is None else {"layers": "torch" if self.lean.fused is None else "fused_bert.cpp"}

    def use_eight_bits(self, wanted: bool) -> bool:
        """Where the layers are computed by :mod:`finetune.fused_bert`."""
        return self.lean is not None and self.lean.fused is not None and self.lean.fused.use_eight_bits(wanted)

    def unchanged(self) -> AbstractContextManager[None]:
        """Context in which the weights are rounded once."""
        return nullcontext() if self.lean is None else self.lean.unchanged()

    def train_rows_in_use(self, inputs: PieceInputs) -> None:
        """Set aside the embeddings of word pieces that ``inputs`` do not have."""
        embedding = self.model.get_input_embeddings()
        self.model.set_input_embeddings(RowsInUse(embedding, inputs.pieces_in_use()))

    def emissions(
        self,
        input_ids_BT: torch.Tensor,
        attention_mask_BT: torch.Tensor,
        token_type_ids_BT: torch.Tensor,
        first_piece_BW: torch.Tensor,
        shape_ids_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Scores [B, W, L], in fp32, of each label at each word's first piece; see :mod:`finetune.features`."""
        if self.lean is not None and self.lean.serves(input_ids_BT.device):
            embedding, own = self.model.get_input_embeddings(), isinstance(self.model, MSBForTokenClassification)
            if own and self.model.embeds_more:
                pieces = self.model.embedded(input_ids_BT, attention_mask_BT, token_type_ids_BT, shape_ids_BT)
            elif type(embedding) is nn.Embedding and not torch.is_grad_enabled():
                pieces = TableRows(input_ids_BT, embedding.weight)
            else:
                pieces = embedding(input_ids_BT)
            inputs = (pieces, attention_mask_BT, token_type_ids_BT, first_piece_BW)
            return self.lean.scores(*inputs, self.model.dropout, self.model.classifier)
        inputs = {"input_ids": input_ids_BT, "attention_mask": attention_mask_BT, "token_type_ids": token_type_ids_BT}
        if shape_ids_BT is not None:
            inputs["shape_ids"] = shape_ids_BT
        logits_BTL = self.model(**inputs).logits.float()
        first_piece_BW = repeated(first_piece_BW, logits_BTL)
        return logits_BTL.gather(1, first_piece_BW[:, :, None].expand(-1, -1, logits_BTL.shape[2]))


class WordTagger(Tagger):
    """Of a model over words, such as CWI: its ``logits`` are the words' scores."""

    def emissions(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Scores [B, W, L], in fp32, of each label at each word."""
        return self.model(**inputs).logits.float()


def repeated(x_BW: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``x_BW`` as often as its batch stands in ``like`` [K B, ...], where a model gives several draws of its dropout."""
    return x_BW.repeat(len(like) // len(x_BW), 1)
