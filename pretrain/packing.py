"""Short texts packed into rows of one length, so that little is padding and every step has the same shape.

A row holds whole texts one after another. The model sees them apart: attention stays inside a text, and positions
restart with each (Krell et al. 2021, "Efficient sequence packing without cross-contamination").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pretrain.permutation import permuted
from pretrain.token_store import SPECIAL, TokenStore

FILL = 0.985
"""Share of a step's rows that its texts may take. First-fit decreasing packs tweets tighter than this."""

SAMPLES_AT_ONCE = 1 << 20
"""Samples whose lengths are looked up at once while an epoch is cut into steps."""


class PackedSteps(Sequence):
    """The optimizer steps of an epoch, each a list of rows, each an array of samples; made when they are asked for.

    Nothing of the size of the corpus is kept: the order is computed, and of each step only where it begins.
    """

    def __init__(self, store: TokenStore, row_length: int, tokens_per_step: int, seed: int | None, epoch: int) -> None:
        """``seed`` None keeps the order of the store."""
        self.store, self.row_length = store, row_length
        self.seed, self.epoch = seed, epoch
        self.starts = self._cut(tokens_per_step)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, step: int) -> list[np.ndarray]:
        if not 0 <= step < len(self):
            raise IndexError(step)
        samples = self._samples(self.starts[step], self.starts[step + 1])
        return pack(samples, self.store.lengths(samples), self.row_length)

    def _samples(self, start: int, end: int) -> np.ndarray:
        places = np.arange(start, end)
        return places if self.seed is None else permuted(places, len(self.store), self.seed, self.epoch)

    def _cut(self, tokens_per_step: int) -> np.ndarray:
        """Places at which steps begin, and the end: each step has as many samples as fit ``tokens_per_step``."""
        starts, tokens_before = [np.zeros(1, np.int64)], 0
        for start in range(0, len(self.store), SAMPLES_AT_ONCE):
            end = min(start + SAMPLES_AT_ONCE, len(self.store))
            ends = tokens_before + np.cumsum(self.store.lengths(self._samples(start, end)))
            # A step ends with the token that fills it. (A text without tokens stays in the step it stands in.)
            steps = np.maximum(np.r_[tokens_before, ends] - 1, 0) // tokens_per_step
            starts.append(start + np.flatnonzero(steps[1:] > steps[:-1]))
            tokens_before = ends[-1]
        return np.concatenate([*starts, [len(self.store)]])


def rows_of_step(tokens_per_step: int, row_length: int) -> int:
    """Rows that the texts of a step fit, with few exceptions."""
    return int(np.ceil(tokens_per_step / (FILL * row_length)))


def pack(samples: np.ndarray, lengths: np.ndarray, row_length: int) -> list[np.ndarray]:
    """Rows of samples of at most ``row_length`` tokens together: first fit, longest first (stable).

    Raises ValueError for a sample longer than a row.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    if lengths[longest_first[0]] > row_length:
        raise ValueError(f"a sample of {lengths[longest_first[0]]} tokens does not fit a row of {row_length}")
    space = np.full(len(samples), row_length, dtype=np.int64)
    rows: list[list[int]] = []
    for place, length in zip(longest_first.tolist(), lengths[longest_first].tolist(), strict=True):
        row = int((space[: len(rows) + 1] >= length).argmax())
        if row == len(rows):
            rows.append([])
        rows[row].append(place)
        space[row] -= length
    return [samples[row] for row in rows]


@dataclass(frozen=True)
class Layout:
    """Packed rows as arrays [rows, row_length]; in the padding, tokens and positions are 0, the rest as said."""

    tokens: np.ndarray
    """int64."""
    samples: np.ndarray
    """int64, sample index; -1 in the padding."""
    positions: np.ndarray
    """int64, place in the sample."""
    kinds: np.ndarray
    """uint8, of `pretrain.token_store`; `SPECIAL` in the padding."""
    segments: np.ndarray | None = None
    """int64: 1 in image words, else 0; None where the store has none."""


def lay_out(rows: Sequence[np.ndarray], store: TokenStore, row_length: int, row_count: int | None = None) -> Layout:
    """The arrays of packed rows, with empty rows at the end up to ``row_count``."""
    samples = np.concatenate(rows)
    lengths = store.lengths(samples)
    row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    before = np.cumsum(lengths) - lengths
    row_begins = np.r_[0, np.flatnonzero(np.diff(row_of)) + 1]
    start = before - np.repeat(before[row_begins], np.diff(np.r_[row_begins, len(samples)])) + row_of * row_length

    positions = np.arange(lengths.sum()) - np.repeat(before, lengths)
    target = np.repeat(start, lengths) + positions
    source = np.repeat(store.offsets[samples], lengths) + positions
    shape = (row_count or len(rows), row_length)

    def spread(values: np.ndarray, fill: int, dtype: type = np.int64) -> np.ndarray:
        array = np.full(shape[0] * shape[1], fill, dtype)
        array[target] = values
        return array.reshape(shape)

    segments = None
    if store.text_lengths is not None:
        segments = spread(positions >= np.repeat(store.text_lengths[samples], lengths), 0)
    return Layout(
        tokens=spread(store.tokens[source], 0),
        samples=spread(np.repeat(samples, lengths), -1),
        positions=spread(positions, 0),
        kinds=spread(store.kinds[source], SPECIAL, np.uint8),
        segments=segments,
    )
