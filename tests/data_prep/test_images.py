import io
import random
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy
import PIL.Image
import PIL.ImageOps
import pytest

from data_prep import images
from data_prep.images import ImageProblem, check_image, image_file, open_rgb, read_image

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def noise(size=(40, 30)) -> PIL.Image.Image:
    return PIL.Image.frombytes("RGB", size, random.Random(0).randbytes(size[0] * size[1] * 3))


def file_of(image: PIL.Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def encoded(file_format: str, size=(40, 30)) -> bytes:
    return file_of(noise(size), file_format)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, depth: int, colour_type: int, rows: bytes, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + png_chunk(b"IEND", b"")


def problem_of(data: bytes) -> str:
    with pytest.raises(ImageProblem) as caught:
        open_rgb(data)
    with pytest.raises(ImageProblem, match=str(caught.value)):
        check_image(data)
    return str(caught.value)


def assert_close(image: PIL.Image.Image, expected: PIL.Image.Image, tolerance: float) -> None:
    assert (image.mode, image.size) == ("RGB", expected.size)
    difference = numpy.asarray(image, dtype=float) - numpy.asarray(expected.convert("RGB"), dtype=float)
    assert abs(difference).mean() <= tolerance


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


def test_endings_in_capitals(folder):
    (folder / "9.JPG").write_bytes(b"picture")
    assert image_file(folder, "9").name == "9.JPG"


def test_missing(folder):
    assert read_image(folder, "7") == (None, "no such file")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty file"),
        (b"text", "not an image"),
        (encoded("BMP"), "not an image"),
        (encoded("TIFF"), "not an image"),
        (b"\xff\xd8\xff\xd9", "it cannot be decoded"),
        (encoded("JPEG")[:-400], "truncated"),
        (encoded("PNG")[:-400], "truncated"),
        (encoded("PNG").replace(b"IHDR", b"IHDX"), "it cannot be decoded"),
    ],
)
def test_broken_files(folder, content, problem):
    (folder / "7.jpg").write_bytes(content)
    assert read_image(folder, "7") == (None, problem)
    assert problem_of(content) == problem


def test_huge_files(folder, monkeypatch):
    (folder / "7.jpg").write_bytes(encoded("JPEG"))
    monkeypatch.setattr(images, "MAXIMUM_PIXELS", 40 * 30)
    assert read_image(folder, "7")[1] is None
    monkeypatch.setattr(images, "MAXIMUM_PIXELS", 40 * 30 - 1)
    assert "pixels" in read_image(folder, "7")[1]
    monkeypatch.setattr(images, "MAXIMUM_BYTES", 100)
    assert "MB" in read_image(folder, "7")[1]
    assert "MB" in problem_of(encoded("JPEG"))


@pytest.mark.parametrize("side", [8_000, 60_000])
def test_a_decompression_bomb_is_not_unpacked(folder, side, monkeypatch):
    monkeypatch.setattr(PIL.Image.Image, "load", lambda image: pytest.fail("decoded"))
    bomb = png_of(side, side, 8, 2, b"\0" * 1000)
    (folder / "7.png").write_bytes(bomb)
    assert read_image(folder, "7")[1] == problem_of(bomb) == "more than 50 million pixels"


def test_a_jpeg_that_passes_over_its_picture_again_and_again_is_not_decoded():
    data = file_of(noise(), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert open_rgb(data[:-2] + 50 * scan + data[-2:]).size == (40, 30)
    assert problem_of(data[:-2] + 200 * scan + data[-2:]) == "it cannot be decoded"
    # What follows the picture (phones append a film) is not counted.
    assert open_rgb(data + 200 * b"\xff\xda\0\0").size == (40, 30)


def test_an_image_without_pixels():
    screen = struct.pack("<HHBBB", 0, 0, 0, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 0, 0, 0) + b"\x02\x02\x4c\x01\0"
    assert problem_of(b"GIF89a" + screen + frame + b";") == "it cannot be decoded"


@pytest.mark.parametrize("file_format", ["JPEG", "progressive JPEG", "PNG", "GIF", "WEBP", "AVIF"])
def test_truncated_anywhere(file_format):
    options = {"progressive": True} if file_format.startswith("progressive") else {}
    whole = file_of(noise(), file_format.split()[-1], **options)
    problems = set()
    end = len(whole) - 40  # what is cut off the end proper, such as PNG's last check sum, hides no pixels
    for length in {0, 1, 2, *range(3, 200, 7), *range(200, end, end // 40), end}:
        problems.add(problem_of(whole[:length]))
    assert problems - {"it cannot be decoded"} == {"empty file", "not an image", "truncated"}
    assert problem_of(whole[:end]) == "truncated"
    assert open_rgb(whole).size == (40, 30)


def test_kinds_by_content():
    names = [check_image(encoded(file_format)) for file_format in ("JPEG", "PNG", "GIF", "WEBP", "AVIF")]
    assert names == [".jpg", ".png", ".gif", ".webp", ".avif"]
    two_pictures = file_of(noise(), "MPO", save_all=True, append_images=[noise((20, 20))])
    assert (check_image(two_pictures), open_rgb(two_pictures).size) == (".jpg", (40, 30))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_modes_without_alpha(mode, file_format):
    picture = noise().convert(mode)
    assert_close(open_rgb(file_of(picture, file_format)), picture, 30 if (mode, file_format) == ("RGB", "GIF") else 0)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_modes_of_jpeg(mode):
    picture = PIL.Image.new("RGB", (32, 32), (200, 80, 40)).convert(mode)
    assert_close(open_rgb(file_of(picture, "JPEG", quality=95)), picture, 3)


def test_adobe_marks_cmyk_as_inverted():
    # The levels of a file with Adobe's marker mean the absence of ink; Pillow writes such files, marker included.
    data = file_of(PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert b"Adobe" in data
    assert_close(open_rgb(data), PIL.Image.new("RGB", (16, 16), RED), 3)


@pytest.mark.parametrize(("file_format", "mode"), [("PNG", "LA"), ("PNG", "RGBA"), ("WEBP", "RGBA"), ("AVIF", "RGBA")])
def test_transparency_is_white(file_format, mode):
    picture = PIL.Image.new("RGBA", (32, 16), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 8, 16))
    picture.paste((0, 0, 0, 128), (8, 0, 16, 16))
    options = {"quality": 100} if file_format == "AVIF" else {"lossless": True}
    image = open_rgb(file_of(picture.convert(mode), file_format, **options))
    levels = [image.getpixel((x, 8))[1] for x in (2, 12, 24)]
    assert levels == pytest.approx([0, 127, 255], abs=2)


def test_transparent_entry_of_a_palette():
    picture = PIL.Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 255, *RED])
    picture.putpixel((0, 0), 0)
    for data in (
        file_of(picture, "GIF", transparency=0),
        file_of(picture, "PNG", transparency=0),
        file_of(picture, "PNG", transparency=bytes([0, 255])),
    ):
        image = open_rgb(data)
        assert [image.getpixel((0, 0)), image.getpixel((1, 0))] == [WHITE, RED]


def test_transparent_colour_of_a_png():
    rows = b"\0" + bytes([*RED, 0, 0, 255])
    image = open_rgb(png_of(2, 1, 8, 2, rows, png_chunk(b"tRNS", struct.pack(">HHH", 0, 0, 255))))
    assert [image.getpixel((0, 0)), image.getpixel((1, 0))] == [RED, WHITE]


def test_sixteen_bits():
    grey = numpy.arange(0, 65536, 256, dtype=numpy.uint16).reshape(16, 16)
    image = open_rgb(file_of(PIL.Image.fromarray(grey), "PNG"))
    assert numpy.array_equal(numpy.asarray(image)[..., 1].ravel(), numpy.arange(256))
    with_transparent_level = open_rgb(file_of(PIL.Image.fromarray(grey), "PNG", transparency=512))
    assert numpy.array_equal(numpy.asarray(with_transparent_level), numpy.asarray(image))
    colour = open_rgb(png_of(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0)))
    assert colour.getpixel((0, 0)) == (255, 128, 0)
    with_alpha = open_rgb(png_of(1, 1, 16, 6, b"\0" + struct.pack(">HHHH", 0xFFFF, 0, 0, 0)))
    assert with_alpha.getpixel((0, 0)) == WHITE


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(file_format):
    frames = [PIL.Image.new("RGB", (16, 16), colour) for colour in (RED, "blue", "green")]
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = file_of(frames[0], file_format, save_all=True, append_images=frames[1:], duration=50, **options)
    assert_close(open_rgb(data), frames[0], 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(orientation, file_format):
    picture = PIL.Image.new("RGB", (64, 32), WHITE)
    picture.paste(RED, (0, 0, 32, 16))
    picture.paste("blue", (0, 16, 32, 32))
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = file_of(picture, file_format, exif=exif, quality=95)
    expected = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB")
    assert expected.size == ((64, 32) if orientation < 5 else (32, 64))
    assert_close(open_rgb(data), expected, 0)
    assert_close(open_rgb(data, at_least=10), expected.resize(open_rgb(data, at_least=10).size), 10)


def test_broken_metadata_is_no_reason_to_refuse():
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\xff\xff" * 5
    data = file_of(noise(), "JPEG", exif=exif, icc_profile=b"no profile")
    assert_close(open_rgb(data), noise(), 100)


def test_at_least_decodes_a_jpeg_smaller():
    data = encoded("JPEG", (1000, 640))
    for at_least, size in ((1, (125, 80)), (80, (125, 80)), (81, (250, 160)), (299, (500, 320)), (321, (1000, 640))):
        assert open_rgb(data, at_least=at_least).size == size
    assert open_rgb(data, at_least=5000).size == open_rgb(data).size == (1000, 640)
    assert open_rgb(encoded("PNG"), at_least=1).size == (40, 30)


def test_many_threads_at_once():
    files = [encoded(file_format) for file_format in ("JPEG", "PNG", "GIF", "WEBP")] + [encoded("JPEG")[:-400]]
    expected = [open_rgb(data).tobytes() for data in files[:-1]] + ["truncated"]
    barrier = threading.Barrier(4)

    def open_all(_: int) -> list:
        barrier.wait()
        return [open_rgb(data).tobytes() for data in files[:-1]] + [problem_of(files[-1])]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(open_all, range(4))) == [expected] * 4


def test_real_photos(shared_data):
    photos = sorted((shared_data / "mvsa_single" / "images").iterdir())[:60]
    for photo in photos:
        data = photo.read_bytes()
        with PIL.Image.open(photo) as plain:
            assert open_rgb(data).tobytes() == PIL.ImageOps.exif_transpose(plain).convert("RGB").tobytes()
        assert min(open_rgb(data, at_least=299).size) >= min(299, *open_rgb(data).size)
    assert photos
