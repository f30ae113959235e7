"""Dynamic masking for the masked language model, as a pure function of (seed, epoch, sample, position) and the row.

Of each row a fixed share of tokens is chosen, as in the original implementation of BERT (Devlin et al. 2019, section
3.1): so every batch has the same number of them, and the model's output layer the same shape. (Whole words take that share up
as far as they fit: the one on its border is left out, so that longer words are masked less often.) Of the chosen, 80 % become
``[MASK]``, 10 % a random token, 10 % stay. A token's draws come from a counter-based hash, and a row's texts from (seed,
epoch), so neither worker nor process changes them, and whole arrays are masked at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pretrain.draws import uniform
from pretrain.packing import Layout
from pretrain.token_store import BEGINS_WORD, SPECIAL

REPLACED_BY_MASK, REPLACED_AT_RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class Masking:
    """How tokens are chosen and replaced."""

    rate: float
    """Share of a row's tokens to choose, special tokens counted but never chosen."""
    whole_word: bool
    """Choose all tokens of a word or none."""
    mask_token: int
    """Id of ``[MASK]``."""
    vocabulary_size: int
    """Random tokens are drawn from ``range(vocabulary_size)``."""
    seed: int

    def apply(self, rows: Layout, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Masked tokens, and which were chosen (bool): both [rows, row_length]."""
        chosen = self._choose(rows, epoch)
        places = np.nonzero(chosen)
        samples, positions = rows.samples[places], rows.positions[places]
        kind = uniform(self.seed, epoch, samples, positions, "replace")
        other = (uniform(self.seed, epoch, samples, positions, "token") * self.vocabulary_size).astype(np.int64)
        at_random = kind < REPLACED_BY_MASK + REPLACED_AT_RANDOM
        masked = rows.tokens.copy()
        masked[places] = np.where(
            kind < REPLACED_BY_MASK, self.mask_token, np.where(at_random, other, rows.tokens[places])
        )
        return masked, chosen

    def most(self, row_count: int, row_length: int) -> int:
        """Tokens that are chosen of full rows: no batch has more."""
        return row_count * self._quota(np.asarray(row_length)).item()

    def _quota(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens to choose of rows with so many."""
        return np.maximum(1, np.rint(tokens * self.rate)).astype(np.int64) * (tokens > 0)

    def _choose(self, rows: Layout, epoch: int) -> np.ndarray:
        """The tokens with the smallest draws; words with the smallest draws, as long as the quota holds them whole."""
        draws = np.where(rows.kinds == SPECIAL, np.inf, self._draws(rows, epoch))
        quota = self._quota((rows.samples >= 0).sum(axis=1))
        order = np.argsort(draws, axis=1, kind="stable")
        sorted_draws = np.take_along_axis(draws, order, axis=1)
        taken = np.isfinite(sorted_draws) & (np.arange(draws.shape[1]) < quota[:, None])
        if self.whole_word:
            # A word's tokens have one draw, so they stand together; the word on the border is left out.
            border = np.take_along_axis(sorted_draws, np.minimum(quota, draws.shape[1] - 1)[:, None], axis=1)
            cut = (sorted_draws == border) & (quota < draws.shape[1])[:, None]
            taken &= ~cut
        chosen = np.zeros_like(taken)
        np.put_along_axis(chosen, order, taken, axis=1)
        return chosen

    def _draws(self, rows: Layout, epoch: int) -> np.ndarray:
        if not self.whole_word:
            return uniform(self.seed, epoch, rows.samples, rows.positions, "choose")
        columns = np.broadcast_to(np.arange(rows.kinds.shape[1]), rows.kinds.shape)
        word_begins = np.maximum.accumulate(np.where(rows.kinds == BEGINS_WORD, columns, 0), axis=1)
        return uniform(
            self.seed, epoch, rows.samples, np.take_along_axis(rows.positions, word_begins, axis=1), "choose"
        )
