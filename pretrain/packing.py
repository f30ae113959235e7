"""Short texts packed into rows of one length, so that little is padding.

A row holds whole texts one after another. The model sees them apart: attention stays inside a text, and positions
restart with each (Krell et al. 2021, "Efficient sequence packing without cross-contamination").
"""

from __future__ import annotations

import numpy as np

from pretrain.texts import TokenizedTexts


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of ``range(samples)`` that (seed, epoch) decides."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(samples)


def cut_into_steps(order: np.ndarray, lengths: np.ndarray, tokens_per_step: int) -> list[np.ndarray]:
    """Split an order of samples into optimizer steps of about ``tokens_per_step`` tokens each; none is left out."""
    before = np.cumsum(lengths[order]) - lengths[order]
    step_of = before // tokens_per_step
    cuts = np.flatnonzero(np.diff(step_of)) + 1
    return np.split(order, cuts)


def pack(samples: np.ndarray, lengths: np.ndarray, row_length: int) -> list[np.ndarray]:
    """Rows of samples of at most ``row_length`` tokens together: first fit, longest first (stable).

    Raises ValueError for a sample longer than a row.
    """
    longest_first = samples[np.argsort(-lengths[samples], kind="stable")]
    if lengths[longest_first[0]] > row_length:
        raise ValueError(f"a sample of {lengths[longest_first[0]]} tokens does not fit a row of {row_length}")
    space = np.full(len(samples), row_length, dtype=np.int64)
    rows: list[list[int]] = []
    for sample in longest_first.tolist():
        row = int(np.argmax(space >= lengths[sample]))
        if row == len(rows):
            rows.append([])
        rows[row].append(sample)
        space[row] -= lengths[sample]
    return [np.asarray(row) for row in rows]


def lay_out(rows: list[np.ndarray], texts: TokenizedTexts, row_length: int) -> dict[str, np.ndarray]:
    """The rows' tokens and coordinates, each int64 [rows, row_length].

    ``tokens`` (0 in the padding), ``words`` (word starts, -1 special or padding), ``samples`` (sample index, -1
    padding), ``positions`` (in the sample; 0 in the padding).
    """
    shape = (len(rows), row_length)
    laid = {name: np.full(shape, fill, np.int64) for name, fill in LAYOUT_FILL.items()}
    for row_index, row in enumerate(rows):
        start = 0
        for sample in row.tolist():
            begin, end = texts.offsets[sample], texts.offsets[sample + 1]
            place = (row_index, slice(start, start + end - begin))
            laid["tokens"][place] = texts.tokens[begin:end]
            laid["words"][place] = texts.words[begin:end]
            laid["samples"][place] = sample
            laid["positions"][place] = np.arange(end - begin)
            start += end - begin
    return laid


LAYOUT_FILL = {"tokens": 0, "words": -1, "samples": -1, "positions": 0}
