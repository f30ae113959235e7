"""Token stores are made: once for a data set and a tokenizer, by one process while the others wait for it.

A store is written under a temporary name and renamed. Every few seconds what is written is put down in
`0f3c….partial/progress.json`, with the place in the data set that it reaches: from there an interrupted tokenization
goes on, and comes to the same bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from data_prep.text_batches import BEGIN, Place, ReadingInterrupted, TextBatch
from launch.errors import InputError
from launch.files import sha256_of_file, sync_to_disk, write_json_whole
from pretrain.cutter import Cut, Cutter
from pretrain.token_store import TokenStore, open_stores

FORMAT = 4
"""Part of the key: raise it when the files change their meaning."""

TOKENIZED_AT_ONCE = 10_000
"""Texts. The tokenizer spreads them over the cores."""

SAVED_EVERY_SECONDS = 10.0
"""What a killed process loses at the most."""

PROGRESS_NAME = "progress.json"


def tokenize(
    texts: Callable[[Place], Iterable[TextBatch]],
    splits: Sequence[str],
    content: str,
    cutter: Cutter,
    cache: Path,
    progress: Callable[[Iterable[TextBatch]], Iterable[TextBatch]] = iter,
) -> dict[str, TokenStore]:
    """The stores of ``splits``, made unless the cache has them.

    ``texts`` gives the texts of all of them from a place on. ``content`` stands for what they are: a hash of the data
    set, and what is read of it. InputError where a split has no text, or the cache cannot be written.
    """
    key = sha256(json.dumps([FORMAT, content, list(splits), cutter.identity]).encode()).hexdigest()[:32]
    folder = cache / key
    try:
        if not folder.exists():  # a store that is there can also be read where nothing can be written
            cache.mkdir(parents=True, exist_ok=True)
            with _locked(cache / f"{key}.lock"):
                if not folder.exists():
                    _write(folder, texts, splits, cutter, progress)
    except OSError as error:
        raise InputError(
            f"{folder}: the tokenized texts cannot be written ({error.strerror or error}). "
            "Make room, or give another folder with --token_cache."
        ) from error
    return open_stores(folder, splits)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _write(
    folder: Path,
    texts: Callable[[Place], Iterable[TextBatch]],
    splits: Sequence[str],
    cutter: Cutter,
    progress: Callable[[Iterable[TextBatch]], Iterable[TextBatch]],
) -> None:
    """Make the stores under a temporary name, going on from what an interrupted run left there, and rename them."""
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        reached = _progress(partial, splits, cutter.token_type)
        if reached is None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            reached = Progress(BEGIN, {split: Written() for split in splits})
        _write_files(partial, texts, reached, cutter, progress)
        (partial / PROGRESS_NAME).unlink(missing_ok=True)
        for file in partial.rglob("*.*"):
            sync_to_disk(file)
        os.replace(partial, folder)
    except BaseException as error:
        # Texts that are refused will not come again as they are; all else may be gone on with.
        is_refused = isinstance(error, InputError) and not isinstance(error, ReadingInterrupted)
        if is_refused or not (partial / PROGRESS_NAME).exists():
            shutil.rmtree(partial, ignore_errors=True)
        raise


@dataclass
class Written:
    """How much of a split is in its files."""

    texts: int = 0
    tokens: int = 0
    pairs: int = 0
    """Texts with image words."""
    truncated: int = 0
    left_out: int = 0

    def sizes(self) -> dict[str, int]:
        """Entries of each array."""
        return {"tokens": self.tokens, "kinds": self.tokens, "offsets": self.texts + 1, "text_lengths": self.texts}


@dataclass
class Progress:
    """Where a reading stands, and what came of it."""

    place: Place
    written: dict[str, Written]

    def save(self, folder: Path) -> None:
        """Put it down, whole or not at all."""
        written = {split: asdict(written) for split, written in self.written.items()}
        write_json_whole(folder / PROGRESS_NAME, {"place": self.place, "written": written})


def _progress(folder: Path, splits: Sequence[str], token_type: np.dtype) -> Progress | None:
    """What an interrupted run left, its files cut to what it had put down; None where that is nothing whole."""
    try:
        saved = json.loads((folder / PROGRESS_NAME).read_text(encoding="utf-8"))
        progress = Progress(Place(*saved["place"]), {split: Written(**saved["written"][split]) for split in splits})
        for split, written in progress.written.items():
            for name, size in written.sizes().items():
                path, wanted = folder / split / f"{name}.bin", size * _types(token_type)[name].itemsize
                if path.stat().st_size < wanted:
                    return None
                os.truncate(path, wanted)
        return progress
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _types(token_type: np.dtype) -> dict[str, np.dtype]:
    others = {"kinds": np.uint8, "offsets": np.int64, "text_lengths": np.int32}
    return {"tokens": token_type} | {name: np.dtype(other) for name, other in others.items()}


def _write_files(
    folder: Path,
    texts: Callable[[Place], Iterable[TextBatch]],
    reached: Progress,
    cutter: Cutter,
    progress: Callable[[Iterable[TextBatch]], Iterable[TextBatch]],
) -> None:
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(_SplitWriter(folder / split, written, cutter.token_type))
            for split, written in reached.written.items()
        }

        saved_at = time.monotonic()
        for batch in progress(texts(reached.place)):
            writer = writers[batch.split]
            for start in range(0, len(batch.texts), TOKENIZED_AT_ONCE):
                part = slice(start, start + TOKENIZED_AT_ONCE)
                images = batch.image_words[part] if batch.image_words is not None else None
                writer.append(cutter.cut(list(batch.texts[part]), images))
            writer.written.left_out += batch.left_out
            reached.place = batch.next_place or reached.place
            if batch.next_place is not None and time.monotonic() - saved_at >= SAVED_EVERY_SECONDS:
                for each in writers.values():
                    each.sync()
                reached.save(folder)
                saved_at = time.monotonic()
        for writer in writers.values():
            writer.finish()


class _SplitWriter:
    """The files of a split, to which texts are appended. Use it as a context manager."""

    def __init__(self, folder: Path, written: Written, token_type: np.dtype) -> None:
        self.folder, self.written, self.types = folder, written, _types(token_type)

    def __enter__(self) -> _SplitWriter:
        self.folder.mkdir(exist_ok=True)
        self.files = {name: open(self.folder / f"{name}.bin", "ab") for name in self.types}
        if not self.written.texts:
            self.files["offsets"].truncate(0)
            self._append("offsets", np.zeros(1))
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()

    def append(self, cut: Cut) -> None:
        written = self.written
        self._append("tokens", cut.tokens)
        self._append("kinds", cut.kinds)
        self._append("offsets", written.tokens + np.cumsum(cut.lengths))
        self._append("text_lengths", cut.text_lengths)
        written.texts += len(cut.lengths)
        written.tokens += len(cut.tokens)
        written.pairs += int(np.count_nonzero(cut.text_lengths < cut.lengths))
        written.truncated += cut.truncated

    def sync(self) -> None:
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Close the files and say what is in them; InputError where nothing is."""
        written = self.written
        if not written.tokens:
            raise InputError(f"there is no text to work on: the split {self.folder.name} is empty.")
        for file in self.files.values():
            file.close()
        sizes = written.sizes()
        if not written.pairs:
            del sizes["text_lengths"]
            (self.folder / "text_lengths.bin").unlink()
        facts = {
            "types": {name: self.types[name].name for name in sizes},
            "sizes": sizes,
            "checksums": {name: sha256_of_file(self.folder / f"{name}.bin") for name in sizes},
            "truncated": written.truncated,
            "left_out": written.left_out,
        }
        write_json_whole(self.folder / "store.json", facts)

    def _append(self, name: str, array: np.ndarray) -> None:
        self.files[name].write(np.ascontiguousarray(array, self.types[name]).tobytes())
