"""Files written whole or not at all, and their content hashes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

HASH_BLOCK_BYTES = 1 << 20


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
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        relative = file.relative_to(path)
        if relative.parts[0] in leave_out or any(part.startswith(".") for part in relative.parts):
            continue
        digest.update(f"{relative.as_posix()}\0{sha256_of_file(file)}\n".encode())
    return digest.hexdigest()


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
