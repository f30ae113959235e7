"""Region features of a folder of images: VGG16's own, every file counted, and nothing written where there is nothing."""

import io

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from safetensors.torch import load_file

from data_prep import image_regions
from data_prep.region_file import RegionFile
from launch.stage import read_manifest


def encoded(seed: int, size=(60, 40), file_format: str = "PNG") -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise).resize(size).save(buffer, file_format)
    return buffer.getvalue()


FILES = {
    "1.png": encoded(1),
    "2.jpg": encoded(2, (300, 100), "JPEG"),
    "2.png": encoded(3),
    "17_06_4705.jpg": encoded(4, (90, 240), "JPEG"),
    "empty.png": b"",
    "text.gif": b"no image at all",
    "cut.jpg": encoded(5, (200, 200), "JPEG")[:900],
    "a name.png": encoded(6),
    "notes.txt": b"hello",
}
LEFT_OUT = {
    "another file has its id": 1,
    "empty file": 1,
    "not an image": 1,
    "truncated": 1,
    "the id cannot be a file name": 1,
    image_regions.NO_IMAGE_NAME: 1,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random ones. Those of the classifier, which is 500 MB, are all one number in the file."""
    torch.manual_seed(0)
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    state = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    for place, (rows, columns) in {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)}.items():
        state[f"classifier.{place}.weight"] = torch.zeros(1).expand(rows, columns)
        state[f"classifier.{place}.bias"] = torch.zeros(1).expand(rows)
    path = tmp_path_factory.mktemp("weights") / "vgg16.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def made(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("regions")
    (folder / "images" / "more").mkdir(parents=True)
    for name, data in FILES.items():
        (folder / "images" / name).write_bytes(data)
    arguments = [f"--images={folder / 'images'}", f"--weights={weights}", f"--output={folder / 'out'}", "--batch=2"]
    assert image_regions.main(arguments) == 0
    return folder


def test_regions_are_those_of_the_last_pooling_layer(made, weights):
    found = load_file(made / "out" / "regions.safetensors")
    assert set(found) == {"1", "2", "17_06_4705"}
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    state = torch.load(weights, weights_only=True)
    features.load_state_dict({name[9:]: x for name, x in state.items() if name.startswith("features.")})
    image = PIL.Image.open(io.BytesIO(FILES["17_06_4705.jpg"])).resize((224, 224), PIL.Image.Resampling.BILINEAR)
    pixels_HW3 = torch.tensor(np.asarray(image)) / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # torchvision's
    with torch.inference_mode():
        (expected_V77,) = features(((pixels_HW3 - mean) / deviation).permute(2, 0, 1)[None])
    regions_RV = found["17_06_4705"]
    assert regions_RV.shape == (49, 512) and regions_RV.dtype == torch.float16 and regions_RV.any()
    for row, column in ((0, 0), (2, 5), (6, 6)):
        torch.testing.assert_close(
            regions_RV[7 * row + column], expected_V77[:, row, column].half(), rtol=1e-2, atol=1e-3
        )


def test_every_file_is_counted(made):
    manifest = read_manifest(made / "out")
    assert manifest["rows"] == {"taken": 9, "kept": 3, "rejected": LEFT_OUT}
    assert manifest["facts"]["network"] == "vgg16 with vgg16.pt"
    assert set(manifest["inputs"]) == {"images", "weights"}


def test_the_file_says_what_it_is_of(made):
    file = RegionFile(made / "out" / "regions.safetensors")
    assert file.source == "vgg16 with vgg16.pt"
    assert "2" in file and "3" not in file and None not in file
    assert file.read("2").dtype == torch.float32


@pytest.mark.parametrize(
    "images, weights_file, problem",
    [
        ("none", "other.pt", "not found"),
        ("file", "other.pt", "not a folder"),
        ("good", "other.pt", "not this model's weights"),
        ("good", "text.pt", "no weights can be read from it"),
    ],
)
def test_what_is_refused(images, weights_file, problem, tmp_path, capsys):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "file").write_text("")
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "1.png").write_bytes(FILES["1.png"])
    places = [f"--images={tmp_path / images}", f"--weights={tmp_path / weights_file}", f"--output={tmp_path / 'out'}"]
    assert image_regions.main(places) == 2
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_a_folder_without_one_image_is_refused(weights, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "empty.png").write_bytes(b"")
    arguments = [f"--images={tmp_path / 'images'}", f"--weights={weights}", f"--output={tmp_path / 'out'}"]
    assert image_regions.main(arguments) == 2
    assert "not one image to read: empty.png (empty file)" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
