"""Texts as token ids on disk: tokenized once for a data set and a tokenizer, and mapped into memory, not read.

    CACHE/0f3c…/train/tokens.bin         uint16 (uint32 for vocabularies above 65,536): all texts one after another
    CACHE/0f3c…/train/kinds.bin          uint8 for each token: begins a word, continues one, or is special and never masked
    CACHE/0f3c…/train/offsets.bin        int64, one more than there are texts: where each begins
    CACHE/0f3c…/train/text_lengths.bin   int32: tokens of each text before its image words; only where there are any
    CACHE/0f3c…/train/store.json         sizes, types and checksums
    CACHE/0f3c…/validation/…             the same of each other split

`pretrain/tokenizing.py` makes them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launch.errors import InputError
from launch.files import sha256_of_file

SPECIAL, BEGINS_WORD, CONTINUES_WORD = 0, 1, 2
"""Kinds of tokens. Special are [CLS] and [SEP], and what joins image words: none of them is ever masked."""


@dataclass(frozen=True)
class TokenStore:
    """``n`` texts, special tokens included; text ``i`` is ``tokens[offsets[i] : offsets[i + 1]]``."""

    tokens: np.ndarray
    """uint16 or uint32."""
    kinds: np.ndarray
    """uint8: `SPECIAL`, `BEGINS_WORD` or `CONTINUES_WORD`."""
    offsets: np.ndarray
    """int64, n + 1 entries."""
    text_lengths: np.ndarray | None = None
    """int32, n entries: tokens of the first segment; what is left of a text are its image words. None without any."""
    truncated: int = 0
    """Texts that were cut at the maximum length, or whose image words were."""
    left_out: int = 0
    """Rows of the data set that have no text, and are not here."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, samples: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Tokens of each of some texts, int64."""
        if isinstance(samples, slice):
            return np.diff(self.offsets)[samples]
        return self.offsets[samples + 1] - self.offsets[samples]


def open_stores(folder: Path, splits: Sequence[str]) -> dict[str, TokenStore]:
    """Map the stores of some splits into memory.

    InputError where a file is missing or is not what was written.
    """
    try:
        return {split: _open(folder / split) for split in splits}
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"damaged ({type(error).__name__}: {error})"
        raise InputError.at(folder, None, problem, "Remove the folder: it is made again.") from None


def _open(folder: Path) -> TokenStore:
    facts = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    arrays = {
        name: _mapped(
            folder / f"{name}.bin", np.dtype(facts["types"][name]), facts["sizes"][name], facts["checksums"][name]
        )
        for name in facts["sizes"]
    }
    return TokenStore(**arrays, truncated=facts["truncated"], left_out=facts["left_out"])


def _mapped(path: Path, dtype: np.dtype, size: int, checksum: str) -> np.ndarray:
    if path.stat().st_size != size * dtype.itemsize:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {size * dtype.itemsize}")
    if sha256_of_file(path) != checksum:
        raise ValueError(f"{path.name} is not what was written")
    return np.memmap(path, dtype, mode="r", shape=(size,))
