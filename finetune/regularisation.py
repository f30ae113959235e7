"""Regularisers of a recognizer's training: R-Drop, adversarial training, multi-sample dropout. All are off by default.

Shapes: B tweets, T word pieces of the longest, W words of the longest, L labels, H hidden size; K draws of dropout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from finetune.features import PieceInputs
from finetune.tagger import PieceTagger, repeated


@dataclass(frozen=True)
class Regularisation:
    """What is added to the loss on tags."""

    r_drop: float = 0.0
    """R-Drop (Liang et al., 2021): weight of how far apart the scores are that two draws of dropout give, beside the mean
    of their losses; 0 for none. It is half of the paper's, whose losses are added up."""
    adversarial: float = 0.0
    """Adversarial training (Miyato et al., 2017): how far a tweet's word embeddings are moved, all together, to where its
    loss grows fastest; the loss there counts as much as the loss where they are. 0 for none. Embeddings are not normalised."""
    dropout_samples: int = 1
    """Multi-sample dropout (Inoue, 2019): draws of the dropout before the head; the loss is their mean."""

    def __post_init__(self) -> None:
        """Refuse what is no weight, distance or count."""
        if self.r_drop < 0 or self.adversarial < 0:
            raise ValueError("regularisation: r_drop and adversarial are not negative")
        if self.dropout_samples < 1:
            raise ValueError(f"regularisation: {self.dropout_samples} dropout_samples are none")


class RegularisedPieceTagger(PieceTagger):
    """A tagger over word pieces (MSB) whose loss in training is regularised; outside it, it is a :class:`PieceTagger`."""

    def __init__(self, model: PreTrainedModel, regularisation: Regularisation) -> None:
        super().__init__(model)
        self.regularisation = regularisation
        self.embedded: list[Tensor] = []
        self.moved_by_BTH: Tensor | None = None
        if regularisation.dropout_samples > 1:
            model.dropout = SampledDropout(model.dropout, regularisation.dropout_samples)

    def train_rows_in_use(self, inputs: PieceInputs) -> None:
        """As every tagger of pieces does; and from then on adversarial training reaches the embeddings."""
        super().train_rows_in_use(inputs)
        if self.regularisation.adversarial:
            self.model.get_input_embeddings().register_forward_hook(self._move)

    def forward(self, word_mask_BW: Tensor, labels_BW: Tensor, **inputs: Tensor) -> Tensor:
        """The loss, summed over the words of the batch."""
        if not self.training:
            return super().forward(word_mask_BW, labels_BW, **inputs)
        self.embedded = []
        emissions = self.emissions(**inputs)
        loss, apart = self.loss(emissions, word_mask_BW, labels_BW), 0.0
        if self.regularisation.r_drop:
            again = self.emissions(**inputs)
            loss = (loss + self.loss(again, word_mask_BW, labels_BW)) / 2
            apart = divergence(emissions, again, repeated(word_mask_BW, emissions)) * (len(word_mask_BW) / len(again))
        if self.regularisation.adversarial:
            loss = (loss + self.loss_of_moved(loss, word_mask_BW, labels_BW, inputs)) / 2
        return loss + self.regularisation.r_drop * apart

    def loss_of_moved(self, loss: Tensor, word_mask_BW: Tensor, labels_BW: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The loss where the word embeddings are moved along the gradient of ``loss``."""
        gradient_BTH = sum(torch.autograd.grad(loss, self.embedded, retain_graph=True))
        length_B11 = gradient_BTH.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
        self.embedded, self.moved_by_BTH = [], self.regularisation.adversarial * gradient_BTH / length_B11
        try:
            return self.loss(self.emissions(**inputs), word_mask_BW, labels_BW)
        finally:
            self.moved_by_BTH = None

    def loss(self, emissions: Tensor, word_mask_BW: Tensor, labels_BW: Tensor) -> Tensor:
        """The loss of emissions [K B, W, L], summed over the words of the batch; the mean over the K draws of dropout."""
        word_mask, labels = repeated(word_mask_BW, emissions), repeated(labels_BW, emissions)
        return super().loss(emissions, word_mask, labels) * (len(labels_BW) / len(labels))

    def _move(self, _module: nn.Module, _ids: tuple[Tensor], embedded_BTH: Tensor) -> Tensor:
        """Hook behind the word embeddings: keeps them, or moves them."""
        if self.moved_by_BTH is not None:
            return embedded_BTH + self.moved_by_BTH
        if self.training:
            self.embedded.append(embedded_BTH)
        return embedded_BTH


class SampledDropout(nn.Module):
    """Several draws of a dropout, one behind another along the batch: [B, ...] becomes [K B, ...] in training."""

    def __init__(self, dropout: nn.Module, draws: int) -> None:
        super().__init__()
        self.dropout, self.draws = dropout, draws

    def forward(self, x: Tensor) -> Tensor:
        """All the draws, or outside training ``x``."""
        return torch.cat([self.dropout(x) for _ in range(self.draws)]) if self.training else x


def divergence(first_BWL: Tensor, second_BWL: Tensor, word_mask_BW: Tensor) -> Tensor:
    """How far apart two scores of the same words are: the mean of both Kullback-Leibler divergences of their softmax, in
    nats, summed over words (Liang et al., 2021, equation 2). With a CRF it is that of what the CRF is given.
    """
    first, second = (scores.log_softmax(dim=2) for scores in (first_BWL, second_BWL))
    one, other = (
        functional.kl_div(a, b, reduction="none", log_target=True).sum(dim=2)
        for a, b in ((first, second), (second, first))
    )
    return ((one + other) / 2 * word_mask_BW).sum()
