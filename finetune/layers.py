"""The paper's layers, standing alone: SineReLU, targeted dropout, and the attention of equations 14 to 16.

Shapes: N rows of whatever is shaped, C channels, P places along which a channel reaches, B tweets, W words of the longest,
T things that are attended to, H size of a thing, M modalities.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SineReLU(nn.Module):
    """Equation 12: x where x > 0, and epsilon (sin x - cos x) elsewhere.

    It jumps by epsilon at 0, where the paper calls it differentiable. Equation 12 is kept as it stands.

        >>> SineReLU(epsilon=0.5)(torch.tensor([2.0, 0.0]))
        tensor([ 2.0000, -0.5000])
    """

    def __init__(self, epsilon: float = 0.0025) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """The function, element by element."""
        return torch.where(x > 0, x, self.epsilon * (x.sin() - x.cos()))

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"epsilon={self.epsilon}"


class TargetedDropout(nn.Module):
    """Targeted dropout of units (Gomez et al., 2018), on the output [N, C, P] of a convolution.

    A unit is a channel; its magnitude is the L2 norm over its P places, for each row by itself, so that what is dropped of a
    word does not depend on the other words. In training, of the ``target`` share of channels of smallest magnitude
    (rounded down, as in the authors' code) each is set to zero with probability ``rate``. As there, what is left is not
    scaled up: the expected sum hardly changes, since the dropped channels are the smallest. In evaluation nothing happens.

    The paper's sentence has it drop the units *above* a threshold; the work that it cites, and this, those below.

        >>> dropout = TargetedDropout(rate=1.0, target=0.5)
        >>> dropout(torch.tensor([[[3.0], [-1.0], [0.5], [-2.0]]])).flatten()
        tensor([ 3.,  0.,  0., -2.])
    """

    def __init__(self, rate: float = 0.25, target: float = 0.4) -> None:
        super().__init__()
        for name, share in (("rate", rate), ("target", target)):
            if not 0 <= share <= 1:
                raise ValueError(f"targeted dropout's {name} is a share between 0 and 1, not {share}")
        self.rate, self.target = rate, target

    def forward(self, x_NCP: Tensor) -> Tensor:
        """The channels, some of them zero."""
        if not self.training:
            return x_NCP
        targeted = int(self.target * x_NCP.shape[1])
        smallest_NT = x_NCP.detach().square().sum(dim=2).argsort(dim=1)[:, :targeted]
        dropped_NT = torch.rand(smallest_NT.shape, device=x_NCP.device) < self.rate
        dropped_NC = torch.zeros(x_NCP.shape[:2], dtype=torch.bool, device=x_NCP.device)
        dropped_NC.scatter_(1, smallest_NT, dropped_NT)
        return x_NCP.masked_fill(dropped_NC[:, :, None], 0.0)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"rate={self.rate}, target={self.target}"


class Attention(nn.Module):
    """Equations 14 to 16: things h_t are summed, each weighted by how well it goes with its own transformation u_t.

    u_t = tanh(W h_t + b)        alpha_t = exp(h_t . u_t) / sum_t exp(h_t . u_t)        beta = sum_t alpha_t h_t
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.transform = nn.Linear(size, size)

    def forward(self, h_NTH: Tensor, mask_NT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The sums beta [N, H] and the weights alpha [N, T].

        ``mask_NT`` is true at what may be attended to; a row without any gets a sum that means nothing.
        """
        scores_NT = (h_NTH * self.transform(h_NTH).tanh()).sum(dim=2, dtype=torch.float32)
        if mask_NT is not None:
            scores_NT = scores_NT.masked_fill(~mask_NT, torch.finfo(scores_NT.dtype).min)
        alpha_NT = scores_NT.softmax(dim=1)
        return (alpha_NT[:, :, None] * h_NTH).sum(dim=1), alpha_NT


class SequenceAttention(nn.Module):
    """Attention over the words of a tweet, after layer 31 and before the CRF (section 4.2): the row of Table 4.

    Equation 16 sums over t to *one* vector for each tweet i, and the CRF after it needs one for each word. So each word's
    h_t is joined by its tweet's beta: the equations stay as printed, and a word keeps what tells it from the others. The
    other way, to leave out the sum and hand on alpha_t h_t, would drop equation 16, and as the weights of a tweet add up to
    1, it would shrink nearly every word to nothing.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.attention = Attention(size)

    def forward(self, h_BWH: Tensor, word_mask_BW: Tensor) -> Tensor:
        """Each word's vector with its tweet's: [B, W, 2 H]."""
        beta_BH, _ = self.attention(h_BWH, word_mask_BW)
        return torch.cat([h_BWH, beta_BH[:, None].expand_as(h_BWH)], dim=2)


class ModalityAttention(nn.Module):
    """Attention over the modalities of a word (section 3.1): "on which modality to increase or decrease focus".

    Here equation 16 gives what is needed, one vector for each word: t counts the modalities. It can only sum vectors of one
    size, so each modality first goes through a linear layer of its own. The sum takes the place of the concatenation of
    layer 28.
    """

    def __init__(self, sizes: Sequence[int], size: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(modality_size, size) for modality_size in sizes)
        self.attention = Attention(size)

    def forward(self, modalities: Sequence[Tensor]) -> Tensor:
        """One vector [B, W, H] for each word, of M tensors [B, W, the modality's size]."""
        projected = [project(x_BWH) for project, x_BWH in zip(self.projections, modalities, strict=True)]
        h_BWMH = torch.stack(projected, dim=2)
        beta_NH, _ = self.attention(h_BWMH.flatten(0, 1))
        return beta_NH.unflatten(0, h_BWMH.shape[:2])
