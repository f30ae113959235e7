"""Image files by image id, taken into a data set as they are, after a check that they are what they say."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import PIL.Image

MAXIMUM_BYTES = 20 << 20
MAXIMUM_PIXELS = 50_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp")
FORMATS = ("JPEG", "PNG", "GIF", "WEBP")

# Ids come from data: this leaves no way to name a file outside the image folder.
_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def read_image(folder: Path, image_id: str) -> tuple[dict[str, Any] | None, str | None]:
    """The file of an image as ``({"bytes", "path"}, None)``, or ``(None, why there is none)``.

    The bytes are those of the file. It must decode, and have at most `MAXIMUM_BYTES` and `MAXIMUM_PIXELS`.
    """
    if not _SAFE_ID.fullmatch(image_id):
        return None, "the id cannot be a file name"
    path = next((path for suffix in SUFFIXES if (path := folder / f"{image_id}{suffix}").is_file()), None)
    if path is None:
        return None, "no such file"
    if path.stat().st_size > MAXIMUM_BYTES:
        return None, f"more than {MAXIMUM_BYTES >> 20} MB"
    try:
        with warnings.catch_warnings(), PIL.Image.open(path, formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            if image.width * image.height > MAXIMUM_PIXELS:
                return None, f"more than {MAXIMUM_PIXELS // 1_000_000} million pixels"
            image.draft("RGB", (64, 64))  # a JPEG decodes at a fraction of its size: enough to see that it is whole
            image.load()
    except PIL.Image.DecompressionBombError:
        return None, f"more than {MAXIMUM_PIXELS // 1_000_000} million pixels"
    except Exception:  # Pillow's decoders raise whatever a broken file provokes
        return None, "it cannot be decoded"
    return {"bytes": path.read_bytes(), "path": path.name}, None
