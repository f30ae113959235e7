"""Image files from anywhere, opened safely: checked for size and kind before they are decoded, and always RGB in the end."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import PIL.features
import PIL.Image
from PIL.ExifTags import Base

MAXIMUM_BYTES = 20 << 20
MAXIMUM_PIXELS = 50_000_000
MAXIMUM_SCANS = 100
"""Passes over the picture in a JPEG file. Some ten are usual; each of a hostile file's takes seconds and a few bytes."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".avif")

# What social sites serve. A decoder that is not needed is one less to be attacked.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", *(["AVIF"] if PIL.features.check("avif") else []))
_SUFFIX_OF_FORMAT = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "GIF": ".gif", "WEBP": ".webp", "AVIF": ".avif"}
_SIGNATURE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF.{4}WEBP|.{4}ftypavi[fs]", re.DOTALL)

EMPTY = "empty file"
NOT_AN_IMAGE = "not an image"
TRUNCATED = "truncated"
UNDECODABLE = "it cannot be decoded"
NO_FILE = "no such file"
UNREADABLE = "it cannot be read"

_WHITE = (255, 255, 255)
_ORIENTATIONS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
"""How to turn a picture upright, by its EXIF orientation (EXIF 2.32, tag 0x0112)."""

# JPEG markers, without those that stand inside a scan: stuffed zeros, restarts, fill bytes.
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"

# Ids come from data: this leaves no way to name a file outside the image folder.
_SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")

# Here, since `warnings.catch_warnings` is not safe with threads. Sizes are checked below, metadata does not matter.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class ImageProblem(ValueError):
    """Why an image file cannot be used. The message is short and one of few: it names a row of a table."""


def open_rgb(data: bytes, *, at_least: int | None = None) -> PIL.Image.Image:
    """The picture in an image file's bytes: mode RGB, upright, transparency on white, an animation's first frame.

    With ``at_least`` a JPEG may come at 1/2, 1/4 or 1/8 of its size, its shorter side still ``at_least`` pixels: several
    times faster. Colour profiles are ignored. Safe to call from several threads. Raises :class:`ImageProblem`.
    """
    image = _decoded(data, at_least)
    try:
        orientation = _ORIENTATIONS.get(image.getexif().get(Base.Orientation))
    except Exception:  # a broken EXIF block provokes anything, and is no reason to refuse the picture
        orientation = None
    try:
        image = _on_white(image)
        return image if orientation is None else image.transpose(orientation)
    except Exception:
        raise ImageProblem(UNDECODABLE) from None


def check_image(data: bytes) -> str:
    """Check that an image file's bytes decode, and return the file name ending of its kind, such as ``.jpg``.

    Raises :class:`ImageProblem`, as :func:`open_rgb` does.
    """
    image = _decoded(data, at_least=64)  # of a JPEG, a fraction of the size is enough to see that it is whole
    return _SUFFIX_OF_FORMAT[image.format]


def image_file(folder: Path, image_id: str) -> Path:
    """The file of an image in a folder of files named by image id. Raises :class:`ImageProblem` where there is none."""
    if not _SAFE_ID.fullmatch(image_id):
        raise ImageProblem("the id cannot be a file name")
    for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES)):
        if (path := folder / f"{image_id}{suffix}").is_file():
            return path
    raise ImageProblem(NO_FILE)


def read_image_file(path: Path) -> bytes:
    """The bytes of a file. Raises :class:`ImageProblem` where it is too large, or cannot be read."""
    try:
        if path.stat().st_size > MAXIMUM_BYTES:
            raise ImageProblem(too_many_bytes(MAXIMUM_BYTES))
        return path.read_bytes()
    except OSError:
        raise ImageProblem(UNREADABLE) from None


def read_image(folder: Path, image_id: str) -> tuple[dict[str, Any] | None, str | None]:
    """The file of an image as ``({"bytes", "path"}, None)``, or ``(None, why there is none)``.

    The bytes are those of the file, after the checks of :func:`check_image`.
    """
    try:
        path = image_file(folder, image_id)
        data = read_image_file(path)
        check_image(data)
    except ImageProblem as problem:
        return None, str(problem)
    return {"bytes": data, "path": path.name}, None


def too_many_bytes(maximum: int) -> str:
    """What is said of a file of more than ``maximum`` bytes."""
    return f"larger than {maximum / (1 << 20):g} MB"


def _decoded(data: bytes, at_least: int | None) -> PIL.Image.Image:
    """The image as Pillow decodes it, in whatever mode, after all checks."""
    if not data:
        raise ImageProblem(EMPTY)
    if len(data) > MAXIMUM_BYTES:
        raise ImageProblem(too_many_bytes(MAXIMUM_BYTES))
    if not _SIGNATURE.match(data):
        raise ImageProblem(NOT_AN_IMAGE)
    too_many_pixels = f"more than {MAXIMUM_PIXELS // 1_000_000} million pixels"
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header only
        pixels = image.width * image.height
        if 0 < pixels <= MAXIMUM_PIXELS and not _has_too_many_scans(data):
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            image.load()
            return image
    except PIL.Image.DecompressionBombError:
        raise ImageProblem(too_many_pixels) from None
    except Exception as error:  # Pillow's decoders raise whatever a broken file provokes
        cut_short = "truncated" in str(error).lower() or _lacks_its_end(data)
        raise ImageProblem(TRUNCATED if cut_short else UNDECODABLE) from None
    raise ImageProblem(too_many_pixels if pixels > MAXIMUM_PIXELS else UNDECODABLE)


def _has_too_many_scans(data: bytes) -> bool:
    if not data.startswith(b"\xff\xd8") or data.count(_START_OF_SCAN) <= MAXIMUM_SCANS:
        return False
    # The quick count also sees thumbnails, and a film that phones append: follow the segments of the picture itself.
    scans, position = 0, 2
    while scans <= MAXIMUM_SCANS and (marker := _JPEG_MARKER.search(data, position)) and marker[0] != _END_OF_IMAGE:
        scans += marker[0] == _START_OF_SCAN
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans > MAXIMUM_SCANS


def _lacks_its_end(data: bytes) -> bool:
    """Whether a file that did not decode lacks the end that its format prescribes."""
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"GIF"):
        return not data.endswith(b";")
    end = {b"\xff\xd8": _END_OF_IMAGE, b"\x89P": b"IEND"}.get(data[:2])
    return end is not None and end not in data[-64:]


def _on_white(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey levels, which Pillow would clip to 255
        image = image.point(lambda level: level / 256).convert("L")
        image.info.pop("transparency", None)  # one of 65,536 levels: it has no equal among 256
    if image.has_transparency_data:
        image = image.convert("RGBA")
        background = PIL.Image.new("RGB", image.size, _WHITE)
        background.paste(image, mask=image.getchannel("A"))
        return background
    return image.convert("RGB")
