"""What a system promises of the way it reads tweets, so that training, scoring and prediction are the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch


class Inputs(Protocol):
    """Tweets as a system reads them."""

    @property
    def lengths(self) -> Sequence[int]:
        """How long each tweet is to the system: tweets of like length are batched together."""

    @property
    def words_truncated(self) -> Sequence[int]:
        """Words of each tweet that the system does not read, always its last; they are predicted ``O``."""

    def batch(self, tweets: Sequence[int], labels: Sequence[Sequence[int]] | None = None) -> dict[str, torch.Tensor]:
        """Tensors of some of the tweets, padded to the longest or a little more: what the tagger's ``emissions`` takes,
        and ``word_mask_BW``.

        With ``labels``, the ids of all words of each of these tweets, there are ``labels_BW``, too, and ``weight``, the
        number of words that are read.
        """


def longest_first(inputs: Inputs) -> list[int]:
    """All tweets, sorted so that those of like length are neighbours, and a batch of neighbours holds little padding."""
    return np.argsort(-np.asarray(inputs.lengths, np.int64), kind="stable").tolist()


class Reader(Protocol):
    """Makes inputs; part of a recognizer."""

    def read(self, words: Sequence[Sequence[str]], image_words: Sequence[Sequence[str]]) -> Inputs:
        """Tweets given as words, each with the words of its image, which may be none."""

    def save(self, folder: Path) -> None:
        """Write what it needs to be made again beside the model."""
