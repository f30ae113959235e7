"""Texts as token ids on disk: tokenized once for a data set and a tokenizer, and mapped into memory, not read.

    CACHE/0f3c…/tokens.bin    uint16 (uint32 for vocabularies above 65,536): all texts one after another
    CACHE/0f3c…/kinds.bin     uint8 for each token: does it begin a word, continue one, or is it special?
    CACHE/0f3c…/offsets.bin   int64, one more than there are texts: where each begins
    CACHE/0f3c…/store.json    what it was made of, and its sizes

A store is made under a temporary name and renamed, by whichever process gets the lock first; the others wait for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from launch.errors import InputError
from launch.files import sync_to_disk, write_json_whole

FORMAT = 1
"""Part of the key: raise it when the files change their meaning."""

SPECIAL, BEGINS_WORD, CONTINUES_WORD = 0, 1, 2
"""Kinds of tokens."""

TOKENIZED_AT_ONCE = 10_000
"""Texts. The tokenizer spreads them over the cores."""


def default_cache() -> Path:
    """Where stores are kept: ``$MSB_CACHE``, or ``~/.cache/msb-ner``."""
    return Path(os.environ.get("MSB_CACHE") or Path.home() / ".cache" / "msb-ner")


@dataclass(frozen=True)
class TokenStore:
    """``n`` texts, special tokens included; text ``i`` is ``tokens[offsets[i] : offsets[i + 1]]``."""

    tokens: np.ndarray
    """uint16 or uint32."""
    kinds: np.ndarray
    """uint8: `SPECIAL`, `BEGINS_WORD` or `CONTINUES_WORD`."""
    offsets: np.ndarray
    """int64, n + 1 entries."""
    truncated: int = 0
    """Texts that were cut at the maximum length."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, samples: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Tokens of each of some texts, int64."""
        if isinstance(samples, slice):
            return np.diff(self.offsets)[samples]
        return self.offsets[samples + 1] - self.offsets[samples]


def tokenize(
    texts: Callable[[], Iterable[Sequence[str]]],
    content: str,
    tokenizer: PreTrainedTokenizerBase,
    maximum_length: int,
    cache: Path,
    progress: Callable[[Iterable[Sequence[str]]], Iterable[Sequence[str]]] = iter,
) -> TokenStore:
    """The store of ``texts`` (batches of them), made unless the cache has it.

    ``content`` stands for what the texts are: a hash of the data set and the split's name. Texts get special tokens and
    are cut at ``maximum_length`` tokens. InputError where there is no text, or the cache cannot be written.
    """
    cutter = _cutter(tokenizer, maximum_length)
    key = sha256(json.dumps([FORMAT, content, cutter.to_str()]).encode()).hexdigest()[:32]
    folder = cache / key
    try:
        if not folder.exists():  # a store that is there can also be read where nothing can be written
            cache.mkdir(parents=True, exist_ok=True)
            with _locked(cache / f"{key}.lock"):
                if not folder.exists():
                    _write(folder, texts(), cutter, progress)
    except OSError as error:
        raise InputError(
            f"{folder}: the tokenized texts cannot be written ({error.strerror or error}). "
            "Make room, or give another folder with --token_cache."
        ) from error
    return open_store(folder)


def open_store(folder: Path) -> TokenStore:
    """Map a store into memory. InputError where a file is missing or has not the size it was written with."""
    try:
        facts = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        arrays = {
            name: _mapped(folder / f"{name}.bin", np.dtype(facts["types"][name]), facts["sizes"][name])
            for name in ("tokens", "kinds", "offsets")
        }
        return TokenStore(**arrays, truncated=facts["truncated"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"damaged ({type(error).__name__}: {error})"
        raise InputError.at(folder, None, problem, "Remove the folder: it is made again.") from None


def _cutter(tokenizer: PreTrainedTokenizerBase, maximum_length: int) -> Tokenizer:
    """What cuts and does not pad, so that ``tokenizer`` stays as it is: it is saved with the encoder."""
    cutter = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    cutter.enable_truncation(maximum_length, direction=tokenizer.truncation_side)
    cutter.no_padding()
    cutter.encode_special_tokens = tokenizer.split_special_tokens
    return cutter


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _write(
    folder: Path,
    texts: Iterable[Sequence[str]],
    cutter: Tokenizer,
    progress: Callable[[Iterable[Sequence[str]]], Iterable[Sequence[str]]],
) -> None:
    """Make the store under a temporary name, and rename it."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write_files(partial, progress(texts), cutter)
        for file in partial.iterdir():
            sync_to_disk(file)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_files(folder: Path, batches: Iterable[Sequence[str]], cutter: Tokenizer) -> None:
    token_type = np.dtype(np.uint16 if cutter.get_vocab_size() <= 1 << 16 else np.uint32)
    texts = tokens = truncated = 0
    with (
        open(folder / "tokens.bin", "wb") as tokens_file,
        open(folder / "kinds.bin", "wb") as kinds_file,
        open(folder / "offsets.bin", "wb") as offsets_file,
    ):
        _append(offsets_file, np.zeros(1, np.int64))
        for batch in batches:
            for start in range(0, len(batch), TOKENIZED_AT_ONCE):
                encodings = cutter.encode_batch(list(batch[start : start + TOKENIZED_AT_ONCE]))
                lengths = np.fromiter((len(encoding) for encoding in encodings), np.int64, len(encodings))
                _append(tokens_file, np.concatenate([np.asarray(e.ids, token_type) for e in encodings]))
                _append(kinds_file, _kinds(encodings, lengths))
                _append(offsets_file, tokens + np.cumsum(lengths))
                texts += len(encodings)
                tokens += int(lengths.sum())
                truncated += sum(bool(encoding.overflowing) for encoding in encodings)
    if not tokens:
        raise InputError("there is no text to train on: the split is empty.")
    facts = {
        "types": {"tokens": token_type.name, "kinds": "uint8", "offsets": "int64"},
        "sizes": {"tokens": tokens, "kinds": tokens, "offsets": texts + 1},
        "truncated": truncated,
    }
    write_json_whole(folder / "store.json", facts)


def _kinds(encodings: Sequence[Encoding], lengths: np.ndarray) -> np.ndarray:
    """Kinds of the tokens of some texts, one text after another, from the number of each token's word in its text."""
    word_ids = chain.from_iterable(encoding.word_ids for encoding in encodings)
    words = np.array(list(word_ids), dtype=np.float32)  # None becomes NaN, which equals nothing
    continues = np.r_[False, words[1:] == words[:-1]]
    continues[(np.cumsum(lengths) - lengths)[lengths > 0]] = False  # also where no special token is between two texts
    return np.where(np.isnan(words), SPECIAL, np.where(continues, CONTINUES_WORD, BEGINS_WORD)).astype(np.uint8)


def _append(file: IO[bytes], array: np.ndarray) -> None:
    file.write(np.ascontiguousarray(array).tobytes())


def _mapped(path: Path, dtype: np.dtype, size: int) -> np.ndarray:
    if path.stat().st_size != size * dtype.itemsize:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes instead of {size * dtype.itemsize}")
    return np.memmap(path, dtype, mode="r", shape=(size,))
