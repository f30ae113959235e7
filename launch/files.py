"""Files written whole or not at all, and their content hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HASH_BLOCK_BYTES = 1 << 20


def default_cache() -> Path:
    """Where is kept what can be made again, tokenized texts and compiled code: ``$MSB_CACHE``, or ``~/.cache/msb-ner``."""
    return Path(os.environ.get("MSB_CACHE") or Path.home() / ".cache" / "msb-ner")


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of the file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_tree(path: Path, leave_out: frozenset[str] = frozenset()) -> str:
    """Hex SHA-256 of a file, or of a folder's relative file names and contents.

    ``leave_out`` names top-level entries that do not count; hidden entries never do.
    """
    if path.is_file():
        return sha256_of_file(path)
    digest = hashlib.sha256()
    for file in sorted(files_below(path)):
        relative = file.relative_to(path)
        if relative.parts[0] in leave_out or any(part.startswith(".") for part in relative.parts):
            continue
        name = os.fsencode(relative.as_posix())  # which need not be UTF-8
        digest.update(name + f"\0{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


def files_below(folder: Path) -> Iterator[Path]:
    """All files in a folder and its sub-folders, those included that are symbolic links, each of which is gone into once."""
    been_in: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        been_in.add(os.path.realpath(place))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) not in been_in]
        yield from (path for name in files if (path := Path(place, name)).is_file())


def sync_to_disk(path: Path) -> None:
    """Flush a file, or a folder's list of names, so that it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_whole(path: Path, text: str) -> None:
    """Write ``text`` under a temporary name, then rename: a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8")
    sync_to_disk(temporary)
    os.replace(temporary, path)


def write_json_whole(path: Path, value: Any) -> None:
    """``write_text_whole`` of ``value`` as indented JSON."""
    write_text_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
