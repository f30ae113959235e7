"""Images labelled per second, decoding included: the stage's way against the plain one, InceptionV3 with random weights.

    python benchmarks/label_images.py --images IMAGES [--lite2 efficientnet-lite2-9656183e.pth]

The plain way: open with Pillow, torchvision's transform, the fp32 model, on all cores, at its best batch size. The stage's:
as `data_prep/label_images.py` does it, in fp32 and in half precision where the processor has a fast one. Random weights
make all images alike, so here half precision is timed without its second look at close calls; with `--lite2`, real
weights, it is timed with it, and the labels are compared with those of the plain way at batch 1. Ratios are medians of
interleaved repeats. The last line is a JSON object.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL.Image
import torch
import torchvision
from torch import Tensor

from data_prep.image_classifier import Classifier, Precision, choose_precision, fast_half_type
from data_prep.images import SUFFIXES, open_rgb
from data_prep.label_images import PROCESSOR_BATCH, TRIAL_IMAGES, cores_of_this_process, one_thread_for_each_worker
from data_prep.labellers import Labeller, make_labeller
from launch.stage import machine, versions

PLAIN_BATCHES = (1, 8, 32)
TRIED_IMAGES = 64
"""Images on which the plain way's batch sizes are compared."""
TOP = 5
PROCESSOR = torch.device("cpu")


def main() -> None:
    options = parse_options()
    files = sorted(path for folder in options.images for path in folder.iterdir() if path.suffix in SUFFIXES)
    result = {"images": len(files), "machine": machine(), "versions": versions()}
    result |= speed(random_inception(), files, options.repeats, options.compile)
    if options.lite2:
        lite2 = make_labeller("data_prep.efficientnet_lite:efficientnet_lite2", options.lite2)
        result["efficientnet_lite2"] = agreement(lite2, files)
    print(json.dumps(result))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of image files")
    parser.add_argument("--lite2", type=Path, help="file of EfficientNet-Lite2's weights")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also time the compiled model")
    return parser.parse_args()


def random_inception() -> Labeller:
    torch.manual_seed(0)
    model = torchvision.models.inception_v3(weights=None, init_weights=False)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.pt"
        torch.save(model.state_dict(), file)
        return make_labeller("inception_v3", file)


def speed(labeller: Labeller, files: list[Path], repeats: int, compiled: bool) -> dict[str, object]:
    """Images per second of each way, and its ratio to the plain one."""
    tried = {
        size: rate(lambda size=size: plain(labeller, files[:TRIED_IMAGES], size), TRIED_IMAGES)
        for size in PLAIN_BATCHES
    }
    best = max(tried, key=tried.get)
    print(f"plain, batch {best}: the best of " + ", ".join(f"{size}: {value:.1f}/s" for size, value in tried.items()))
    half = fast_half_type(PROCESSOR)
    ways: dict[str, Callable[[], object]] = {"plain": lambda: plain(labeller, files, best)}
    for name in ["fp32", *([half] if half else [])]:
        for suffix in ["", *(["_compiled"] if compiled else [])]:
            classifier = Classifier(labeller, TOP, PROCESSOR, Precision(name, margin=0.0), compiled=bool(suffix))
            ways[name + suffix] = lambda classifier=classifier: staged(classifier, files)
            started_at = time.perf_counter()
            staged(classifier, files[:PROCESSOR_BATCH])
            print(f"{name}{suffix}: first batch after {time.perf_counter() - started_at:.1f} s")
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name, way in ways.items():
            rates[name].append(rate(way, len(files)))
            print(f"repeat {repeat + 1}, {name}: {rates[name][-1]:.1f} images/s", flush=True)
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(rates[name], rates["plain"], strict=True)), 2)
        for name in ways
        if name != "plain"
    }
    if not half:
        print("no bf16: this processor computes it no faster than fp32")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio} times plain")
    return {"plain_batch": best, "ratios": ratios, "images_per_second": rates}


def agreement(labeller: Labeller, files: list[Path]) -> dict[str, object]:
    """Shares of images with the plain way's first label, set of labels and order of labels, by precision."""
    expected = torch.cat(plain(labeller, files, 1))
    trial = Classifier(labeller, TOP, PROCESSOR, Precision())
    images = [open_rgb(file.read_bytes()) for file in files[:TRIAL_IMAGES]]
    batches = [
        trial.batch(images[i : i + PROCESSOR_BATCH], PROCESSOR_BATCH) for i in range(0, len(images), PROCESSOR_BATCH)
    ]
    result: dict[str, object] = {"auto": choose_precision("auto", labeller, TOP, PROCESSOR, batches).reason}
    half = fast_half_type(PROCESSOR) or "bf16"
    chosen = choose_precision(half, labeller, TOP, PROCESSOR, batches)
    cases = {"fp32": Precision(), f"{half}_without_second_look": Precision(half), half: chosen}
    for name, precision in cases.items():
        classifier = Classifier(labeller, TOP, PROCESSOR, precision)
        found: list[Tensor] = []
        images_per_second = rate(
            lambda classifier=classifier, found=found: found.extend(staged(classifier, files)), len(files)
        )
        classes = torch.cat(found)[: len(files)]
        shares = {
            "same_first": (classes[:, 0] == expected[:, 0]).float().mean().item(),
            "same_set": (classes.sort(dim=1).values == expected.sort(dim=1).values).all(dim=1).float().mean().item(),
            "same_order": (classes == expected).all(dim=1).float().mean().item(),
        }
        result[name] = {share: round(value, 4) for share, value in shares.items()} | {
            "images_per_second": images_per_second
        }
        print(f"EfficientNet-Lite2, {name}: {result[name]}")
    return result


def plain(labeller: Labeller, files: list[Path], size: int) -> list[Tensor]:
    """The classes of images, ``size`` at a time, as a few lines of torchvision give them."""
    classes = []
    with torch.inference_mode():
        for start in range(0, len(files), size):
            images = [PIL.Image.open(file).convert("RGB") for file in files[start : start + size]]
            inputs = torch.stack([labeller.preprocessing(image) for image in images])
            classes.append(labeller.model(inputs).softmax(dim=1).topk(TOP).indices)
    return classes


def staged(classifier: Classifier, files: list[Path]) -> list[Tensor]:
    """The classes of images, as the stage computes them."""

    def classify(batch: list[Path]) -> Tensor:
        images = [open_rgb(file.read_bytes()) for file in batch]
        return classifier.classify(classifier.batch(images, PROCESSOR_BATCH))[0]

    with one_thread_for_each_worker(), ThreadPoolExecutor(cores_of_this_process()) as pool:
        batches = [files[start : start + PROCESSOR_BATCH] for start in range(0, len(files), PROCESSOR_BATCH)]
        return list(pool.map(classify, batches))


def rate(function: Callable[[], object], images: int) -> float:
    """Images per second."""
    started_at = time.perf_counter()
    function()
    return round(images / (time.perf_counter() - started_at), 2)


if __name__ == "__main__":
    main()
