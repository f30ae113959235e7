import io
import random
import struct
import zlib

import PIL.Image
import pytest

from data_prep import images
from data_prep.images import read_image


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def encoded(file_format: str, size=(40, 30)) -> bytes:
    noise = random.Random(0).randbytes(size[0] * size[1] * 3)
    buffer = io.BytesIO()
    PIL.Image.frombytes("RGB", size, noise).save(buffer, file_format)
    return buffer.getvalue()


@pytest.mark.parametrize(("file_format", "name"), [("JPEG", "7.jpg"), ("PNG", "7.png"), ("WEBP", "7.webp")])
def test_bytes_stay_as_they_are(folder, file_format, name):
    (folder / name).write_bytes(encoded(file_format))
    assert read_image(folder, "7") == ({"bytes": encoded(file_format), "path": name}, None)


@pytest.mark.parametrize(
    "image_id", ["../secret", "..", ".", "", "/etc/secret", "a/b", "a\\b", "a\0b", ".hidden", "7\n"]
)
def test_ids_cannot_leave_the_folder(folder, image_id):
    (folder.parent / "secret.jpg").write_bytes(encoded("JPEG"))
    assert read_image(folder, image_id) == (None, "the id cannot be a file name")


def test_missing(folder):
    assert read_image(folder, "7") == (None, "no such file")


@pytest.mark.parametrize("content", [b"", b"text", encoded("JPEG")[:-400], encoded("PNG")[:-400], encoded("BMP")])
def test_broken_files(folder, content):
    (folder / "7.jpg").write_bytes(content)
    assert read_image(folder, "7") == (None, "it cannot be decoded")


def test_huge_files(folder, monkeypatch):
    (folder / "7.jpg").write_bytes(encoded("JPEG"))
    monkeypatch.setattr(images, "MAXIMUM_PIXELS", 40 * 30 - 1)
    assert "pixels" in read_image(folder, "7")[1]
    monkeypatch.setattr(images, "MAXIMUM_BYTES", 100)
    assert "MB" in read_image(folder, "7")[1]


@pytest.mark.parametrize("side", [8_000, 60_000])
def test_a_decompression_bomb_is_not_unpacked(folder, side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    (folder / "7.png").write_bytes(bomb)
    assert "pixels" in read_image(folder, "7")[1]
