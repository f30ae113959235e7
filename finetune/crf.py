"""Linear-chain conditional random field over the words of a sentence (Lafferty et al., 2001).

    p(y | x) = exp(start[y_1] + sum_t emissions[t, y_t] + sum_t transitions[y_t-1, y_t] + end[y_n]) / Z(x)

Transitions that a tag scheme forbids get a finite penalty instead of their score, in the partition function
and in decoding alike, so the model is normalized over what it can emit. Vectorized over sentences and labels;
the loop is over words. Never computed in less than float32, autocast or not: the sums over a long sentence
differ by less than bfloat16 resolves, and float16 overflows.

The partition function is summed in double precision as products of probabilities, scaled at each word (Rabiner, "A
tutorial on hidden Markov models", 1989, section V.A), and its gradient is that of the forward-backward algorithm, so
that a word costs a few small operations. Sums that leave even that range are taken in the log domain.

Shape suffixes: B sentences, W words of the longest sentence, L labels; P and N are L, too, where a previous
and a next label meet.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PENALTY = -1e4
"""Score of a forbidden transition. Far below the scores of any real sentence, yet so near to zero that
float32 keeps three decimals beside it. With minus infinity, gradients are NaN where all paths are forbidden."""

Scores = tuple[Tensor, Tensor, Tensor]
"""Of a start [L], of transitions [L, L] and of an end [L], with the penalty at what is forbidden."""


class Counts(NamedTuple):
    """How often each label, and each label after another, is expected in some sentences."""

    labels_BWL: Tensor
    """Probability of each label at each word; zeros at padding."""
    start_L: Tensor
    """Sentences that begin with each label."""
    transitions_PN: Tensor
    """Pairs of neighbouring words with each two labels."""
    end_L: Tensor
    """Sentences that end with each label."""


class LinearChainCRF(nn.Module):
    """A CRF layer: emissions in, negative log-likelihood, best labels or marginals out.

    Parameters are named and initialized as in pytorch-crf: `start_transitions` [L], `transitions` [L, L] from
    the row's label to the column's, `end_transitions` [L]. At an encoder's learning rate they hardly move;
    give them one of their own.

    In a `transformers.PreTrainedModel`, let `_init_weights` call `reset_parameters` on this module: models
    are built on the meta device there, and what a checkpoint lacks is filled in by that method only.

        >>> from finetune.tags import TagScheme
        >>> scheme = TagScheme("BIO", ("PER", "LOC"))
        >>> crf = LinearChainCRF(len(scheme.labels), scheme.allowed_transitions(), scheme.allowed_start())
        >>> emissions_BWL = torch.tensor([[[0.0, 0, 9, 0, 0], [0, 0, 0, 0, 8]]])  # I-PER, I-LOC: forbidden
        >>> loss = crf(emissions_BWL, torch.tensor([scheme.encode(["B-PER", "I-PER"])])).mean()
        >>> [scheme.decode(ids) for ids in crf.decode(emissions_BWL)]
        [['B-LOC', 'I-LOC']]

    Args:
        num_labels: L.
        allowed_transitions: bool [L, L], whether the column's label may follow the row's; None allows all.
        allowed_start: bool [L], whether a sentence may begin with the label; None allows all.
        allowed_end: bool [L], whether a sentence may end with the label; None allows all.
    """

    def __init__(
        self,
        num_labels: int,
        allowed_transitions: np.ndarray | Sequence[Sequence[bool]] | None = None,
        allowed_start: np.ndarray | Sequence[bool] | None = None,
        allowed_end: np.ndarray | Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        if num_labels < 1:
            raise ValueError(f"a CRF needs at least one label, not {num_labels}")
        self.num_labels = num_labels
        # Kept outside the tensors as well, because tensors made on the meta device forget their values.
        self._allowed = {}
        for name, allowed, shape in (
            ("transitions", allowed_transitions, (num_labels, num_labels)),
            ("start", allowed_start, (num_labels,)),
            ("end", allowed_end, (num_labels,)),
        ):
            allowed = np.ones(shape, dtype=bool) if allowed is None else np.array(allowed, dtype=bool)
            if allowed.shape != shape:
                raise ValueError(f"allowed {name} has shape {allowed.shape}, but {num_labels} labels need {shape}")
            self._allowed[name] = allowed
            # Persistent, so that a checkpoint says what its model may emit.
            self.register_buffer(f"allowed_{name}", torch.ones(shape, dtype=torch.bool))
        self.start_transitions = nn.Parameter(torch.empty(num_labels))
        self.transitions = nn.Parameter(torch.empty(num_labels, num_labels))
        self.end_transitions = nn.Parameter(torch.empty(num_labels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the scores from ±0.1 uniformly and set the constraints."""
        for scores in (self.start_transitions, self.transitions, self.end_transitions):
            nn.init.uniform_(scores, -0.1, 0.1)
        for name, allowed in self._allowed.items():
            getattr(self, f"allowed_{name}").copy_(torch.from_numpy(allowed))

    def forward(self, emissions_BWL: Tensor, labels_BW: Tensor, mask_BW: Tensor | None = None) -> Tensor:
        """Negative log-likelihood [B] of each sentence's labels, in nats; 0 for a sentence without words.

        Args:
            emissions_BWL: scores of each word's labels, of any floating type.
            labels_BW: label ids; what stands at padding does not matter.
            mask_BW: true or non-zero at words, which come before the padding. None: no padding.

        Raises ValueError for shapes that do not fit, a mask with holes, and ids of words outside 0 .. L - 1.
        """
        if labels_BW.shape != emissions_BWL.shape[:2]:
            raise ValueError(f"labels {tuple(labels_BW.shape)} do not fit emissions {tuple(emissions_BWL.shape)}")
        with torch.autocast(emissions_BWL.device.type, enabled=False):
            emissions_BWL, mask_BW = self._prepare(emissions_BWL, mask_BW)
            if labels_BW.shape[1] == 0:
                labels_BW = labels_BW.new_zeros(mask_BW.shape)
            labels_BW = labels_BW.masked_fill(~mask_BW, 0)
            if not torch.compiler.is_compiling() and ((labels_BW < 0) | (labels_BW >= self.num_labels)).any():
                raise ValueError(f"a word has a label id outside 0 .. {self.num_labels - 1}")
            # Taken once, so that gradients reach the parameters in one order whatever the batch is: of processes that
            # differ in it, ZeRO-2 would add up the gradients of different parameters.
            scores = self.scores()
            log_partition_B = log_partition(scores, emissions_BWL, mask_BW)
            nll_B = log_partition_B - self._score(scores, emissions_BWL, labels_BW, mask_BW)
            return torch.where(mask_BW[:, 0], nll_B, 0.0)

    def decode(self, emissions_BWL: Tensor, mask_BW: Tensor | None = None) -> list[list[int]]:
        """The most probable label ids of each sentence (Viterbi), as many as it has words."""
        labels_BW = self.best_labels(emissions_BWL, mask_BW)
        words_B = [labels_BW.shape[1]] * len(labels_BW) if mask_BW is None else mask_BW.bool().sum(dim=1).tolist()
        return [row[:words] for row, words in zip(labels_BW.tolist(), words_B, strict=True)]

    @torch.no_grad()
    def best_labels(self, emissions_BWL: Tensor, mask_BW: Tensor | None = None) -> Tensor:
        """The most probable label ids [B, W] of each sentence (Viterbi); 0 at padding.

        ``torch.export`` takes it, for any number of sentences and as many words as in its example.
        """
        words = emissions_BWL.shape[1]
        with torch.autocast(emissions_BWL.device.type, enabled=False):
            emissions_BWL, mask_BW = self._prepare(emissions_BWL, mask_BW)
            start_L, transitions_PN, end_L = self.scores()
            # Sentences last: the maximum over the label before goes over whole rows of them.
            emissions = emissions_BWL.permute(1, 2, 0).contiguous().unbind(0)
            transitions_PN1 = transitions_PN[:, :, None]
            best = [start_L[:, None] + emissions[0]]
            for emissions_NB in emissions[1:]:
                best.append((best[-1][:, None] + transitions_PN1).amax(dim=0).add_(emissions_NB))
            best_BWL = torch.stack(best).permute(2, 0, 1)
            # Back from each sentence's last word. Which label came before is asked for of the best path's label alone.
            best_BWL = _backwards(best_BWL, mask_BW)
            path, transitions_NP = [(best_BWL[:, 0] + end_L).argmax(dim=1)], transitions_PN.t().contiguous()
            for best_BP in best_BWL.unbind(1)[1:]:
                path.append(transitions_NP[path[-1]].add_(best_BP).argmax(dim=1))
            labels_BW1 = _backwards(torch.stack(path, dim=1)[:, :, None], mask_BW)
        return labels_BW1[:, :words, 0].masked_fill(~mask_BW[:, :words], 0)

    def marginals(self, emissions_BWL: Tensor, mask_BW: Tensor | None = None) -> Tensor:
        """Probability [B, W, L] of each label at each word, all others summed out; zeros at padding."""
        words = emissions_BWL.shape[1]
        with torch.autocast(emissions_BWL.device.type, enabled=False):
            emissions_BWL, mask_BW = self._prepare(emissions_BWL, mask_BW)
            scores = _, transitions_PN, end_L = self.scores()
            emissions, mask = emissions_BWL.unbind(1), mask_BW.unbind(1)
            forward_BWL = torch.stack(_forward_scores(scores, emissions, mask), dim=1)
            backward_BL = end_L.expand_as(emissions[0])
            backward = [backward_BL]
            for emissions_BN, mask_B in zip(emissions[:0:-1], mask[:0:-1], strict=True):
                previous_BP = torch.logsumexp(transitions_PN + (emissions_BN + backward_BL)[:, None, :], dim=2)
                backward_BL = torch.where(mask_B[:, None], previous_BP, backward_BL)
                backward.append(backward_BL)
            log_BWL = forward_BWL + torch.stack(backward[::-1], dim=1)
            return (torch.softmax(log_BWL, dim=2) * mask_BW[:, :, None])[:, :words]

    def expected_counts(self, emissions_BWL: Tensor, mask_BW: Tensor | None = None) -> Counts:
        """What this CRF expects of the sentences' labels: its marginals, and those of pairs summed over the batch.

        They are the gradient of log Z: computed by the forward-backward algorithm, without a gradient of their own.
        """
        words = emissions_BWL.shape[1]
        with torch.autocast(emissions_BWL.device.type, enabled=False), torch.enable_grad():
            emissions_BWL, mask_BW = self._prepare(emissions_BWL.detach(), mask_BW)
            potentials = [tensor.detach().requires_grad_() for tensor in (emissions_BWL, *self.scores())]
            log_z_B = log_partition(tuple(potentials[1:]), potentials[0], mask_BW)
            # A sentence without words has a label in log Z, but is none.
            labels_BWL, start_L, transitions_PN, end_L = torch.autograd.grad(
                torch.where(mask_BW[:, 0], log_z_B, 0.0).sum(), potentials
            )
        return Counts(labels_BWL[:, :words], start_L, transitions_PN, end_L)

    def cross_entropy(self, emissions_BWL: Tensor, expected: Counts, mask_BW: Tensor | None = None) -> Tensor:
        """Minus the expected log-probability of the labels, in nats, summed over the batch.

        ``expected`` is of whatever the expectation is taken over, such as another CRF, on the same sentences: then it is
        the cross-entropy of the two distributions over label sequences (structural knowledge distillation; Wang et al.,
        "Structure-level knowledge distillation for multilingual sequence labeling", 2020), and smallest where they are one.
        Nothing may be expected of what this CRF forbids.
        """
        with torch.autocast(emissions_BWL.device.type, enabled=False):
            emissions_BWL, mask_BW = self._prepare(emissions_BWL, mask_BW)
            scores = start_L, transitions_PN, end_L = self.scores()
            log_z_B = log_partition(scores, emissions_BWL, mask_BW)
            return (
                torch.where(mask_BW[:, 0], log_z_B, 0.0).sum()
                - (emissions_BWL[:, : expected.labels_BWL.shape[1]] * expected.labels_BWL).sum()
                - (start_L * expected.start_L).sum()
                - (transitions_PN * expected.transitions_PN).sum()
                - (end_L * expected.end_L).sum()
            )

    def _prepare(self, emissions_BWL: Tensor, mask_BW: Tensor | None) -> tuple[Tensor, Tensor]:
        """Check the arguments; widen the emissions, zero them at padding; at least one column."""
        if emissions_BWL.dim() != 3 or emissions_BWL.shape[2] != self.num_labels:
            raise ValueError(f"emissions have shape {tuple(emissions_BWL.shape)}, not [B, W, {self.num_labels}]")
        if mask_BW is None:
            mask_BW = torch.ones(emissions_BWL.shape[:2], dtype=torch.bool, device=emissions_BWL.device)
        if mask_BW.shape != emissions_BWL.shape[:2]:
            raise ValueError(f"mask {tuple(mask_BW.shape)} does not fit emissions {tuple(emissions_BWL.shape)}")
        mask_BW = mask_BW.bool()
        # Skipped under torch.compile, where asking for a value would split the graph.
        if not torch.compiler.is_compiling() and (mask_BW[:, 1:] & ~mask_BW[:, :-1]).any():
            raise ValueError("the mask has holes: a sentence's words must come first, padding after them")
        if emissions_BWL.shape[1] == 0:  # one column of padding, so that the rest needs no special case
            emissions_BWL = emissions_BWL.new_zeros(emissions_BWL.shape[0], 1, self.num_labels)
            mask_BW = mask_BW.new_zeros(mask_BW.shape[0], 1)
        return _at_least_float32(emissions_BWL).masked_fill(~mask_BW[:, :, None], 0.0), mask_BW

    def scores(self) -> Scores:
        """The parameters, with the penalty at what is forbidden."""
        return tuple(
            _at_least_float32(scores).masked_fill(~allowed, PENALTY)
            for scores, allowed in (
                (self.start_transitions, self.allowed_start),
                (self.transitions, self.allowed_transitions),
                (self.end_transitions, self.allowed_end),
            )
        )

    def _score(self, scores: Scores, emissions_BWL: Tensor, labels_BW: Tensor, mask_BW: Tensor) -> Tensor:
        """Unnormalized log-probability [B] of the labels."""
        start_L, transitions_PN, end_L = (tensor.to(emissions_BWL) for tensor in scores)
        # Sums over one-hot labels instead of indexing: the gradient of indexing adds up in no fixed order.
        labels_BWL = nn.functional.one_hot(labels_BW, self.num_labels).to(emissions_BWL) * mask_BW[:, :, None]
        counts_BPN = labels_BWL[:, :-1].transpose(1, 2) @ labels_BWL[:, 1:]
        ends_BW = mask_BW & ~nn.functional.pad(mask_BW[:, 1:], (0, 1))
        return (
            (emissions_BWL * labels_BWL).sum(dim=(1, 2))
            + (transitions_PN * counts_BPN).sum(dim=(1, 2))
            + labels_BWL[:, 0] @ start_L
            + (labels_BWL * ends_BW[:, :, None]).sum(dim=1) @ end_L
        )


def log_partition(scores: Scores, emissions_BWL: Tensor, mask_BW: Tensor) -> Tensor:
    """log Z [B], for at least one column of words; sentences without words have that of one word without scores."""
    if torch.compiler.is_compiling():  # which makes the plain way fast, and cannot look whether sums stayed in range
        return log_partition_in_logs(scores, emissions_BWL, mask_BW)
    result_B, in_range = _LogPartition.apply(*scores, emissions_BWL, mask_BW)
    if in_range:
        return result_B
    wide = widest(emissions_BWL.device)
    scores = tuple(tensor.to(wide) for tensor in scores)
    return log_partition_in_logs(scores, emissions_BWL.to(wide), mask_BW).to(emissions_BWL.dtype)


def log_partition_in_logs(scores: Scores, emissions_BWL: Tensor, mask_BW: Tensor) -> Tensor:
    """:func:`log_partition`, the plain way: differentiated by autograd."""
    sums = _forward_scores(scores, emissions_BWL.unbind(1), mask_BW.unbind(1))
    return torch.logsumexp(sums[-1] + scores[2], dim=1)


def _forward_scores(scores: Scores, emissions: Sequence[Tensor], mask: Sequence[Tensor]) -> list[Tensor]:
    """For each word, log of the summed weight [B, L] of all paths to each label; unchanged at padding."""
    start_L, transitions_PN, _ = scores
    sums = [start_L + emissions[0]]
    for emissions_BN, mask_B in zip(emissions[1:], mask[1:], strict=True):
        next_BN = torch.logsumexp(sums[-1][:, :, None] + transitions_PN, dim=1) + emissions_BN
        sums.append(torch.where(mask_B[:, None], next_BN, sums[-1]))
    return sums


class _LogPartition(torch.autograd.Function):
    """log Z and whether all sums stayed in range, by scaled products; the gradient by the forward-backward algorithm.

    What is computed at padding is garbage that nothing reads: so no word has to look whether it is one.
    """

    @staticmethod
    def forward(ctx, start_L, transitions_PN, end_L, emissions_BWL, mask_BW):
        ctx.mask_BW, dtype = mask_BW, emissions_BWL.dtype
        wide = widest(emissions_BWL.device)
        # Everything is scaled to at most 1 first, so that nothing can overflow.
        highest_BW1 = emissions_BWL.amax(dim=2, keepdim=True)
        highest_start, highest_transition, highest_end = start_L.amax(), transitions_PN.amax(), end_L.amax()
        emitted_BWL = (emissions_BWL.to(wide) - highest_BW1).exp_()
        moved_PN = (transitions_PN.to(wide) - highest_transition).exp_()
        ended_L = (end_L.to(wide) - highest_end).exp_()
        weights = [(start_L.to(wide) - highest_start).exp_() * emitted_BWL[:, 0]]
        scales, scaled_at = [], []
        for word, emitted_BN in enumerate(emitted_BWL.unbind(1)[1:], start=1):
            weights.append(_scaled(weights[-1], word, scales, scaled_at) @ moved_PN)
            weights[-1].mul_(emitted_BN)
        weights_BWL = torch.stack(weights, dim=1)
        last_B = (mask_BW.sum(dim=1) - 1).clamp_(min=0)
        last_BL = weights_BWL.gather(1, last_B[:, None, None].expand(-1, 1, weights_BWL.shape[2]))[:, 0]
        sums = [(last_BL @ ended_L)[:, None]]
        log_B = highest_start + highest_end + last_B * highest_transition.to(wide)
        log_B += (highest_BW1[:, :, 0] * mask_BW).sum(dim=1, dtype=wide)
        if scales:
            counts_BS = torch.tensor(scaled_at, device=last_B.device) <= last_B[:, None]
            sums.append(torch.cat(scales, dim=1).masked_fill_(~counts_BS, 1.0))
        sums_BS = torch.cat(sums, dim=1)
        log_B += sums_BS.log().sum(dim=1)
        ctx.save_for_backward(weights_BWL, emitted_BWL, moved_PN, ended_L)
        return log_B.to(dtype), bool((sums_BS > SMALLEST_SUM).all())

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient_B, _):
        weights_BWL, emitted_BWL, moved_PN, ended_L = ctx.saved_tensors
        mask_BW, moved_NP = ctx.mask_BW, moved_PN.t()
        weights_BWL, emitted_BWL = _backwards(weights_BWL, mask_BW), _backwards(emitted_BWL, mask_BW)
        after, arrived = [ended_L.expand_as(weights_BWL[:, 0])], []
        for word, emitted_BN in enumerate(emitted_BWL.unbind(1)[:-1], start=1):
            arrived.append(emitted_BN * _scaled(after[-1], word))
            after.append(arrived[-1] @ moved_NP)
        # Sums of weights, made probabilities: of each label at each word, and of the pairs of labels at each two words.
        gradient_B11 = gradient_B.to(weights_BWL.dtype)[:, None, None]
        is_word_BW1 = mask_BW[:, :, None].clone()  # backwards as forwards
        is_word_BW1[:, 0] = True
        labels_BWL = weights_BWL * torch.stack(after, dim=1)
        labels_BWL = (labels_BWL / labels_BWL.sum(dim=2, keepdim=True) * gradient_B11).masked_fill_(~is_word_BW1, 0.0)
        d_transitions_PN = torch.zeros_like(moved_PN)
        if arrived:
            arrived_BVN, before_BVP = torch.stack(arrived, dim=1), weights_BWL[:, 1:]
            total_BV1 = ((before_BVP @ moved_PN) * arrived_BVN).sum(dim=2, keepdim=True)
            before_BVP = (before_BVP / total_BV1 * gradient_B11).masked_fill_(~is_word_BW1[:, 1:], 0.0)
            arrived_BVN = arrived_BVN.masked_fill_(~is_word_BW1[:, 1:], 0.0)
            d_transitions_PN = before_BVP.flatten(0, 1).t() @ arrived_BVN.flatten(0, 1) * moved_PN
        d_emissions_BWL = _backwards(labels_BWL, mask_BW)
        return d_emissions_BWL[:, 0].sum(dim=0), d_transitions_PN, labels_BWL[:, 0].sum(dim=0), d_emissions_BWL, None


SMALLEST_SUM = 1e-150
"""A sum of weights below this may hang on numbers too small to be exact; the gradient's reach twice as far."""
SCALED_EVERY = 4
"""Words after which weights are made to sum to 1 again. In double precision many more would do."""


def _scaled(
    weights_BL: Tensor, word: int, scales: list[Tensor] | None = None, scaled_at: list[int] | None = None
) -> Tensor:
    """The weights, at every few words scaled to a sum of 1; by what, and for which words on, is put into the lists."""
    if word % SCALED_EVERY:
        return weights_BL
    scale_B1 = weights_BL.sum(dim=1, keepdim=True)
    if scales is not None:
        scales.append(scale_B1)
        scaled_at.append(word)
    return weights_BL / scale_B1


def _backwards(x_BWL: Tensor, mask_BW: Tensor) -> Tensor:
    """Each sentence's words in reverse order, its last one first; padding stays behind them."""
    words_B1 = mask_BW.sum(dim=1, keepdim=True).clamp_(min=1)
    places_W = torch.arange(mask_BW.shape[1], device=mask_BW.device)
    places_BW = torch.where(places_W < words_B1, words_B1 - 1 - places_W, places_W)
    return x_BWL.gather(1, places_BW[:, :, None].expand_as(x_BWL))


def widest(device: torch.device) -> torch.dtype:
    """The most precise type of numbers that a device has."""
    return torch.float32 if device.type == "mps" else torch.float64


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
