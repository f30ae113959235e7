import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from datasets import load_dataset
from tiny_models import PROJECT, environment

from data_prep import image_gallery, label_images
from data_prep.labellers import imagenet_class_names, make_labeller
from data_prep.layout import CORPUS_FEATURES, NER_FEATURES, DatasetWriter, ner_row, read_ner, write_dataset
from data_prep.posts import POSTS_FEATURES, Post, PostImage
from launch.stage import read_manifest

LABELLER = "squeezenet1_1"
PATIENCE_SECONDS = 120


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "random.pt"
    torch.save(torchvision.models.get_model(LABELLER, weights=None).state_dict(), file)
    return file


@pytest.fixture
def label(weights, tmp_path):
    def run(source: Path, output: Path | None = None, *more: str, code: int = 0) -> Path:
        output = output or tmp_path / "out"
        common = [f"--input={source}", f"--output={output}", f"--labeller={LABELLER}", f"--weights={weights}"]
        assert label_images.main([*common, "--workers=1", "--precision=fp32", *more]) == code
        return output

    return run


def picture(seed: int, size=(60, 40)) -> PIL.Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise).resize(size)


def encoded(image: PIL.Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_bomb(side: int = 40_000) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def rotated() -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(5), "JPEG", exif=exif.tobytes(), quality=95)


IMAGES = {
    "plain": encoded(picture(0)),
    "jpeg": encoded(picture(1), "JPEG"),
    "cmyk": encoded(picture(2).convert("CMYK"), "JPEG"),
    "palette": encoded(picture(3).convert("P", palette=PIL.Image.Palette.ADAPTIVE)),
    "animated": encoded(picture(4), "GIF", save_all=True, append_images=[picture(9)]),
    "rotated": rotated(),
    "tiny": encoded(picture(6, (1, 1))),
    "empty": b"",
    "text": b"no image at all",
    "truncated": encoded(picture(7, (200, 200)), "JPEG")[:900],
    "bomb": png_bomb(),
    "elongated": encoded(PIL.Image.new("RGB", (4000, 2))),
}
PROBLEMS = {
    "empty": "empty file",
    "text": "not an image",
    "truncated": "truncated",
    "bomb": "more than 50 million pixels",
    "elongated": "more than 100 times as long as wide",
}


def ner(row_id: str, image: bytes | None = None, image_id: str | None = None) -> dict:
    row = ner_row(row_id, ["Jordan"], ["B-PER"], ["Jordan"], ["B-PER"], [0], image_id)
    return row | {"image": None if image is None else {"bytes": image, "path": None}}


def make_ner_set(folder: Path, splits: dict[str, list[dict]], rejected: list[dict] = ()) -> Path:
    write_dataset(folder, splits, NER_FEATURES, "Tweets", rejected=[(row, "too short") for row in rejected])
    return folder


def rows_of(folder: Path, split: str = "train") -> list[dict]:
    return pq.read_table(folder / f"data/{split}-00000-of-00001.parquet").to_pylist()


def expected_words(weights: Path, image: PIL.Image.Image) -> list[str]:
    """By torchvision alone."""
    preset = torchvision.models.get_model_weights(LABELLER).DEFAULT.transforms()
    with torch.inference_mode():
        logits = make_labeller(LABELLER, weights).model(preset(image)[None])
    return [imagenet_class_names()[number].lower() for number in logits[0].topk(5).indices.tolist()]


def test_every_kind_of_image_is_labelled_or_has_a_reason(label, weights, tmp_path):
    rows = [ner(name, image) for name, image in IMAGES.items()]
    rows += [ner("none"), ner("path only") | {"image": {"bytes": None, "path": "/etc/hostname"}}]
    source = make_ner_set(tmp_path / "in", {"train": rows, "test": [ner("again", IMAGES["jpeg"])]}, [ner("rejected")])
    output = label(source)

    labelled = {row["id"]: row for row in rows_of(output)}
    assert list(labelled) == [row["id"] for row in rows]
    for name, row in labelled.items():
        problem = PROBLEMS.get(name, "no image" if name in ("none", "path only") else None)
        assert row["image_problem"] == problem
        if problem:
            assert (row["image_words"], row["image_word_scores"], row["image_word_ids"]) == ([], None, None)
        else:
            words, scores = row["image_words"], row["image_word_scores"]
            assert words == [imagenet_class_names()[number].lower() for number in row["image_word_ids"]]
            assert len(words) == 5 and scores == sorted(scores, reverse=True) and 0 < sum(scores) < 1
    upright = PIL.Image.open(io.BytesIO(IMAGES["rotated"])).transpose(PIL.Image.Transpose.ROTATE_270)
    first_frame = PIL.Image.open(io.BytesIO(IMAGES["animated"])).convert("RGB")
    assert labelled["plain"]["image_words"] == expected_words(weights, picture(0))
    assert labelled["rotated"]["image_words"] == expected_words(weights, upright)
    assert labelled["animated"]["image_words"] == expected_words(weights, first_frame)
    assert rows_of(output, "test")[0]["image_words"] == labelled["jpeg"]["image_words"]

    manifest = read_manifest(output)
    assert manifest["rows"] == {"taken": len(rows) + 1, "kept": len(rows) + 1, "rejected": {}}
    facts = manifest["facts"]["image_words"]
    assert facts["rows_with_words"] == 8 and facts["rows_without"]["no image"] == 2
    assert facts["distinct_images"] == len(IMAGES) and facts["images_labelled"] == 7
    assert facts["image_problems"] == dict.fromkeys(PROBLEMS.values(), 1)
    assert manifest["facts"]["image_words_source"] == "top-5 labels of squeezenet1_1 (random.pt)"


def test_the_rest_of_the_data_set_stays_as_it_was(label, tmp_path):
    rows = [ner(str(i), IMAGES["plain"]) | {"image_words": ["a caption"]} for i in range(1003)]
    source = make_ner_set(tmp_path / "in", {"validation": rows}, [ner("rejected") | {"image_words": ["kept"]}])
    output = label(source)
    before, after = (read_ner(folder, "validation") for folder in (source, output))
    for column in set(NER_FEATURES) - {"image_words", "image_word_scores"}:
        assert before.data.column(column).equals(after.data.column(column)), column
    rejected = load_dataset(str(output), "rejected", split="rejected", cache_dir=str(tmp_path / "cache"))
    assert rejected.column_names[-1] == "reason"
    assert rejected[0]["image_words"] == ["kept"] and rejected[0]["image_problem"] is None
    assert read_manifest(output)["facts"]["image_words"]["rows_whose_words_were_replaced"] == 1003
    assert sorted(path.name for path in output.iterdir()) == [
        *("README.md", "config.yaml", "data", "manifest.json", "rejected"),
    ]


def test_each_distinct_image_is_classified_once(label, tmp_path, monkeypatch):
    seen = []
    label_batch = label_images.label_batch
    monkeypatch.setattr(
        label_images,
        "label_batch",
        lambda c, s, digests, size: seen.extend(digests) or label_batch(c, s, digests, size),
    )
    rows = [ner(str(i), encoded(picture(i % 3))) for i in range(12)]
    output = label(make_ner_set(tmp_path / "in", {"train": rows, "test": rows[:5]}), None, "--batch=2")
    assert len(seen) == 3 and read_manifest(output)["facts"]["image_words"]["distinct_images"] == 3
    words = [row["image_words"] for row in rows_of(output)]
    assert words == words[:3] * 4 and all(words)


@pytest.mark.parametrize("hostile", ["../secret", "/etc/passwd", "..", "a/b", ".hidden", "7\0", "x" * 5000, ""])
def test_images_in_a_folder_by_id(label, weights, tmp_path, hostile):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "7.png").write_bytes(IMAGES["plain"])
    (tmp_path / "secret.png").write_bytes(IMAGES["jpeg"])
    rows = [ner("a", image_id="7"), ner("b", image_id="8"), ner("c", image_id=hostile), ner("d")]
    output = label(make_ner_set(tmp_path / "in", {"train": rows}), None, f"--images={folder}")
    labelled = rows_of(output)
    assert labelled[0]["image_words"] == expected_words(weights, picture(0))
    assert [row["image_words"] for row in labelled[1:]] == [[], [], []]
    assert [labelled[place]["image_problem"] for place in (1, 3)] == ["no such file", "no image"]
    assert labelled[2]["image_problem"] in ("the id cannot be a file name", "no such file")


def stored(folder: Path, name: str) -> PostImage:
    digest = sha256(IMAGES[name]).hexdigest()
    path = f"images/{digest[:2]}/{digest}.jpg"
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(IMAGES[name])
    return PostImage("https://example.org/1.jpg", path=path, sha256=digest)


def make_posts(folder: Path, images: dict[str, tuple[PostImage, ...]]) -> Path:
    with DatasetWriter(folder, POSTS_FEATURES) as writer:
        for post_id, of_post in images.items():
            writer.add("train", Post(post_id, "Jordan at last", images=of_post).row())
        writer.reject(Post("withheld", "", images=(stored(folder, "palette"),)).row(), "withheld")
    writer.write_card("Posts", {})
    return folder


def test_posts_get_the_words_of_their_first_image_that_can_be_labelled(label, weights, tmp_path):
    source = tmp_path / "in"
    plain, jpeg, text, truncated = (stored(source, name) for name in ("plain", "jpeg", "text", "truncated"))
    (tmp_path / "secret.png").write_bytes(IMAGES["plain"])
    elsewhere = source / "images/link.png"
    elsewhere.symlink_to(tmp_path / "secret.png")
    changed = PostImage("u", path=jpeg.path, sha256="0" * 64)
    images = {
        "first": (plain, jpeg),
        "second": (text, jpeg),
        "third": (PostImage("u", problem="gone"), text, plain),
        "broken": (text, truncated),
        "not downloaded": (PostImage("u", problem="gone"),),
        "none": (),
        "outside": (PostImage("u", path="../secret.png"),),
        "link": (PostImage("u", path="images/link.png"),),
        "absolute": (PostImage("u", path=str(tmp_path / "secret.png")),),
        "missing": (PostImage("u", path="images/no.png", sha256="1" * 64),),
        "without hash": (PostImage("u", path=plain.path),),
        "changed": (changed,),
    }
    output = label(make_posts(source, images))
    rows = {row["id"]: row for row in rows_of(output)}
    assert list(rows) == list(images)
    first, second = expected_words(weights, picture(0)), rows["second"]["image_words"]
    assert [rows[name]["image_words"] for name in ("first", "third", "without hash")] == [first] * 3
    assert second and second != first
    assert {name: row["image_problem"] for name, row in rows.items() if row["image_problem"]} == {
        "broken": "not an image",
        "not downloaded": "not downloaded: gone",
        "none": "no image",
        "outside": "its path leads out of the data set",
        "link": "its path leads out of the data set",
        "absolute": "its path leads out of the data set",
        "missing": "no such file",
        "changed": "not the file that was recorded",
    }
    # The photos came along, and nothing else did.
    copied = {path.relative_to(output).as_posix() for path in (output / "images").rglob("*") if path.is_file()}
    assert copied == {image.path for image in (plain, jpeg, text, truncated, stored(source, "palette"))}


def test_data_sets_and_settings_that_are_refused(label, tmp_path, capsys):
    corpus, posts = tmp_path / "corpus", tmp_path / "posts"
    write_dataset(corpus, {"train": [{"id": "1", "text": "a"}]}, CORPUS_FEATURES, "Texts")
    make_posts(posts, {"1": ()})
    images = tmp_path / "images"
    images.mkdir()
    for source, more, told in [
        (corpus, [], "a corpus, which has no images"),
        (posts, [f"--images={images}"], "posts have no image ids"),
        (posts, ["--top=1001"], "squeezenet1_1 has 1000 classes"),
        (tmp_path / "nothing", [], "not found"),
    ]:
        label(source, None, *more, code=2)
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        label(posts, None, "--batch=0")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_a_model_without_finite_output_gives_no_words(label, tmp_path, weights):
    state = torch.load(weights, weights_only=True)
    state["classifier.1.bias"][3] = float("nan")
    torch.save(state, tmp_path / "broken.pt")
    source = make_ner_set(tmp_path / "in", {"train": [ner("1", IMAGES["plain"])]})
    output = label(source, None, f"--weights={tmp_path / 'broken.pt'}")
    assert rows_of(output)[0]["image_problem"] == "the model's output is not finite"


def test_a_labeller_of_ones_own(label, tmp_path, monkeypatch):
    (tmp_path / "own_labeller.py").write_text(
        "import torch, torchvision\n"
        "class Brightness(torch.nn.Module):\n"
        "    def forward(self, pixels):\n"
        "        light = pixels.mean(dim=(1, 2, 3))\n"
        "        return torch.stack([light, 1 - light], dim=1)\n"
        "def brightness(weights):\n"
        "    transform = torchvision.transforms.Compose([torchvision.transforms.Resize((8, 8)),\n"
        "        torchvision.transforms.ToTensor()])\n"
        "    return transform, Brightness(), ['Light, bright', 'Dark']\n"
    )
    monkeypatch.chdir(tmp_path)
    rows = [ner(str(light), encoded(PIL.Image.new("RGB", (9, 9), (light,) * 3))) for light in (250, 5)]
    output = tmp_path / "out"
    arguments = [f"--input={make_ner_set(tmp_path / 'in', {'train': rows})}", f"--output={output}", "--top=2"]
    assert label_images.main([*arguments, "--labeller=own_labeller:brightness", "--workers=1"]) == 0
    assert [row["image_words"] for row in rows_of(output)] == [["light", "dark"], ["dark", "light"]]


@pytest.fixture
def many(tmp_path) -> Path:
    rows = [ner(str(i), encoded(picture(i))) for i in range(40)] + [ner("broken", b"text")]
    return make_ner_set(tmp_path / "many", {"train": rows})


def command(source: Path, weights: Path, output: Path) -> list[str]:
    common = [f"--input={source}", f"--output={output}", f"--labeller={LABELLER}", f"--weights={weights}"]
    # Shards of two images, so that there are several for each process.
    code = "from data_prep import label_images; label_images.SHARD_IMAGES = 2; raise SystemExit(label_images.main())"
    script = output.parent / "shards_of_two.py"
    script.write_text(code)
    return [str(script), *common, "--workers=1", "--precision=fp32", "--batch=2"]


def test_a_killed_run_goes_on(label, many, weights, tmp_path):
    alone, output = label(many, tmp_path / "alone", "--batch=2"), tmp_path / "killed"
    shards = tmp_path / "killed.partial/labels/0"
    arguments = [sys.executable, *command(many, weights, output)]
    process = subprocess.Popen(arguments, cwd=PROJECT, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(list(shards.glob("*.parquet"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not output.exists()
    done = {path: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    assert 3 <= len(done) < 21
    oldest = min(done)
    os.utime(oldest, ns=(1, 1))
    kept = tmp_path / "kept.parquet"
    os.link(oldest, kept)

    finished = subprocess.run(arguments, cwd=PROJECT, env=environment(), capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "going on with the interrupted run" in finished.stderr
    assert kept.stat().st_mtime_ns == 1, "what was labelled before is not labelled again"
    assert rows_of(output) == rows_of(alone)


def test_two_processes_give_what_one_gives(label, many, weights, tmp_path):
    alone, output = label(many, tmp_path / "alone", "--batch=2"), tmp_path / "two"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finished = subprocess.run(
        [*launcher, *command(many, weights, output)],
        cwd=PROJECT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert finished.returncode == 0, finished.stderr
    assert rows_of(output) == rows_of(alone)
    one, two = (read_manifest(folder) for folder in (alone, output))
    assert two["machine"]["processes"] == 2 and two["facts"] == one["facts"]


def test_gallery(label, tmp_path):
    rows = [ner("<b>", IMAGES["plain"]) | {"source_tokens": ["<script>"]}, ner("none"), ner("2", IMAGES["jpeg"])]
    output = label(make_ner_set(tmp_path / "in", {"train": rows}))
    page = tmp_path / "page.html"
    assert image_gallery.main([str(output), "--output", str(page)]) == 0
    html = page.read_text()
    assert html.count("data:image/jpeg;base64,") == 2 and html.count("<li>") == 2
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert rows_of(output)[0]["image_words"][0] in html
    assert "http:" not in html and "https:" not in html
    empty = make_ner_set(tmp_path / "empty", {"train": [ner("1")]})
    assert image_gallery.main([str(empty), "--output", str(page)]) == 2


def test_real_images_of_tmn(label, shared_data, twitter_2015, tmp_path):
    output = label(twitter_2015, None, f"--images={shared_data / 'tmn/images'}")
    facts = read_manifest(output)["facts"]
    assert facts["image_words"]["rows_with_words"] == facts["image_words"]["images_labelled"] == 15
    assert facts["image_words"]["rows_without"] == {"no such file": 8242}
    assert json.loads((output / "manifest.json").read_text())["rows"]["kept"] == 8257
