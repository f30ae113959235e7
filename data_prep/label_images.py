"""Images become words: the classes that a pretrained classifier finds most probable, written beside the texts.

    accelerate launch data_prep/label_images.py --input data/tmn --images TMN/images --output data/tmn_labelled

Takes a `ner` data set, with its images inside or in a folder of files named by `image_id`, or a `posts` data set with
downloaded photos. Gives the same rows with `image_words` (first synonyms of ImageNet's classes, lower case, the most
probable first), `image_word_scores`, `image_word_ids` (class numbers), and `image_problem`: why there are none. A post
gets the words of its first photo that can be labelled. Each distinct image is labelled once.
"""

import json
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import PIL.Image
import torch
from accelerate import Accelerator

from data_prep.image_classifier import Classifier, Precision, PrecisionName, choose_precision
from data_prep.image_labels import Label, LabelShards, Written, unlabelled, write_labelled
from data_prep.images import ImageProblem, open_rgb
from data_prep.labellers import Labeller, make_labeller
from data_prep.layout import write_card
from data_prep.row_images import CHANGED, EmbeddedImage, ImageFile, ImageSurvey
from launch.dataset_stage import DatasetStageSettings, run_dataset_stage
from launch.errors import InputError
from launch.files import write_json_whole
from launch.loop import RunSettings, make_accelerator
from launch.settings import NOT_IDENTITY
from launch.stage import Stage

Item = TypeVar("Item")
Result = TypeVar("Result")

WORK_FOLDER = "labels"
"""In the stage's folder until it is done: what is labelled so far."""
SHARD_IMAGES = 512
"""Images whose labels are written at once: what a kill can cost each process."""
TRIAL_IMAGES = 64
"""Images that half precision is tried on."""
PROCESSOR_BATCH, DEVICE_BATCH = 8, 64
MOST_ELONGATED = 100
"""Longer side by shorter side from which on an image is refused: scaled to the model's height it would fill the memory."""

ELONGATED = f"more than {MOST_ELONGATED} times as long as wide"
NOT_FINITE = "the model's output is not finite"


@dataclass(frozen=True, kw_only=True)
class LabelSettings(DatasetStageSettings):
    """Settings of the image labelling."""

    input: Path = field(metadata=NOT_IDENTITY)
    """A `ner` data set, or a `posts` data set with downloaded photos."""
    images: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Folder of image files named by `image_id` (`27.jpg`), for a `ner` data set whose images are not inside it."""
    labeller: str = "inception_v3"
    """A torchvision classifier, such as `resnet50`; or `module:function`, as `data_prep/efficientnet_lite.py` shows."""
    weights: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """File of the labeller's weights: `.safetensors`, or a state dict. Without it torchvision downloads its published ones."""
    top: int = 5
    """Labels of an image."""
    precision: PrecisionName = "auto"
    """`fp32`; `bf16` or `fp16`, which leave close calls to fp32; or `auto`: what is fastest on this machine and this model."""
    compile: bool = False
    """`torch.compile` the model: some 20 seconds first, then some faster. On a processor this needs a C++ compiler."""
    batch: int | None = field(default=None, metadata=NOT_IDENTITY)
    """Images that go through the model at once; 8 on a processor, 64 on a GPU."""
    workers: int | None = field(default=None, metadata=NOT_IDENTITY)
    """Threads of each process that read and decode, and on a processor classify, too; by default, one for each core it has."""

    def __post_init__(self) -> None:
        """Refuse counts of nothing."""
        for name in ("top", "batch", "workers"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}: {value} is not positive")


def main(argv: list[str] | None = None) -> int:
    """Run the stage."""
    return run_dataset_stage(
        LabelSettings,
        label_images,
        inputs=lambda settings: {
            "rows": settings.input,
            "images": settings.images,
            "weights": settings.weights,
        },
        argv=argv,
        keeps_partial=True,
        several_processes=True,
    )


def label_images(settings: LabelSettings, stage: Stage) -> None:
    """Find the distinct images, label each once, spread over the processes, and write the rows with their words."""
    accelerator = make_accelerator(RunSettings(precision="fp32"))
    labeller = make_labeller(settings.labeller, settings.weights)
    if settings.top > len(labeller.class_names):
        raise InputError(f"--top {settings.top}: {labeller.name} has {len(labeller.class_names)} classes.")
    survey = ImageSurvey(settings.input, settings.images)
    accelerator.wait_for_everyone()  # the main process has made the folder
    work = stage.folder / WORK_FOLDER
    stage.scratch.append(work)

    labels: dict[str, Label] = {}
    with one_thread_for_each_worker():
        precision = agree_on_precision(settings, stage, accelerator, labeller, survey, work)
        classifier = Classifier(labeller, settings.top, accelerator.device, precision, settings.compile)
        # A second round labels the second photo of posts whose first one turned out to be broken, and so on.
        while wanted := unlabelled(survey, labels):
            shards = LabelShards(work / f"{len(labels)}", wanted, SHARD_IMAGES)
            label_shards(settings, stage, accelerator, classifier, survey, shards)
            labels |= shards.read()

    if accelerator.is_main_process:
        written = write_labelled(settings.input, stage.folder, survey, labels, labeller.class_names)
        record(settings, stage, labeller, precision, labels, written)


@contextmanager
def one_thread_for_each_worker() -> Iterator[None]:
    """Operators on one thread each: workers that share cores with each other's threads slow down many times over."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def agree_on_precision(
    settings: LabelSettings,
    stage: Stage,
    accelerator: Accelerator,
    labeller: Labeller,
    survey: ImageSurvey,
    work: Path,
) -> Precision:
    """What the main process chooses, for all processes, and for a later run that goes on with this one's work."""
    file, size = work / "precision.json", batch_size(settings, accelerator)
    if accelerator.is_main_process and not file.exists():
        trial = Classifier(labeller, settings.top, accelerator.device, Precision())
        images = openable_images(survey, TRIAL_IMAGES) if settings.precision != "fp32" else []
        batches = [trial.batch(images[start : start + size], size) for start in range(0, len(images), size)]
        precision = choose_precision(settings.precision, labeller, settings.top, accelerator.device, batches)
        stage.log(f"{precision.name}: {precision.reason}")
        work.mkdir(exist_ok=True)
        write_json_whole(file, asdict(precision))
    accelerator.wait_for_everyone()
    return Precision(**json.loads(file.read_text(encoding="utf-8")))


def openable_images(survey: ImageSurvey, most: int) -> list[PIL.Image.Image]:
    """The first of the data set's images that can be opened."""
    images = []
    for digest, place in survey.places.items():
        with suppress(ImageProblem):
            images.append(open_place(place, digest))
        if len(images) == most:
            break
    return images


def open_place(place: ImageFile | EmbeddedImage, digest: str) -> PIL.Image.Image:
    """The image of this content at this place, RGB. Raises :class:`ImageProblem`."""
    data = place.read()
    if sha256(data).hexdigest() != digest:
        raise ImageProblem(CHANGED)
    image = open_rgb(data)
    if max(image.size) > MOST_ELONGATED * min(image.size):
        raise ImageProblem(ELONGATED)
    return image


def label_shards(
    settings: LabelSettings,
    stage: Stage,
    accelerator: Accelerator,
    classifier: Classifier,
    survey: ImageSurvey,
    shards: LabelShards,
) -> None:
    """Label and write the shards that are missing, those of this process; return when all processes have written theirs."""
    size, missing = batch_size(settings, accelerator), shards.missing()
    accelerator.wait_for_everyone()  # before one of them is written
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    batches = [
        shards.shards[number][start : start + size]
        for number in mine
        for start in range(0, len(shards.shards[number]), size)
    ]
    workers = settings.workers or cores_of_this_process()
    with ThreadPoolExecutor(workers) as pool:
        found = ordered_map(
            pool, lambda batch: label_batch(classifier, survey, batch, size), batches, ahead=2 * workers
        )
        labels = chain.from_iterable(found)
        total = sum(len(batch) for batch in batches)
        labels = iter(stage.progress(labels, "labelling", total=total, unit="image"))
        for number in mine:
            shards.write(number, list(islice(labels, len(shards.shards[number]))))
    accelerator.wait_for_everyone()


def label_batch(classifier: Classifier, survey: ImageSurvey, digests: Sequence[str], size: int) -> list[Label]:
    """Read, decode and classify the images of these hashes, at most ``size``."""
    images: list[PIL.Image.Image | None] = []
    problems: list[str | None] = []
    for digest in digests:
        try:
            image, problem = open_place(survey.places[digest], digest), None
        except ImageProblem as error:
            image, problem = None, str(error)
        images.append(image)
        problems.append(problem)
    if all(problems):
        return [Label(problem=problem) for problem in problems]
    classes, scores = classifier.classify(classifier.batch(images, size))
    labels = zip(problems, classes.tolist(), scores.tolist(), strict=False)  # the batch may have rows left over
    return [
        Label(problem=problem or NOT_FINITE) if problem or not all(map(math.isfinite, row)) else Label(numbers, row)
        for problem, numbers, row in labels
    ]


def ordered_map(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """``function`` of each item, computed by the pool, in the items' order; at most ``ahead`` results wait."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def batch_size(settings: LabelSettings, accelerator: Accelerator) -> int:
    """Images that go through the model at once."""
    return settings.batch or (PROCESSOR_BATCH if accelerator.device.type == "cpu" else DEVICE_BATCH)


def cores_of_this_process() -> int:
    """The machine's cores, shared among its processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def record(
    settings: LabelSettings,
    stage: Stage,
    labeller: Labeller,
    precision: Precision,
    labels: Mapping[str, Label],
    written: Written,
) -> None:
    """Count rows and images, say it, and write the card."""
    stage.rows.taken = stage.rows.kept = written.rows
    problems = Counter(label.problem for label in labels.values() if label.problem)
    labelled = written.rows - sum(written.problems.values())
    stage.facts["image_words_source"] = f"top-{settings.top} labels of {labeller.name} ({labeller.weights})"
    stage.facts["image_words"] = {
        "rows_with_words": labelled,
        "rows_without": dict(written.problems.most_common()),
        "rows_whose_words_were_replaced": written.replaced,
        "distinct_images": len(labels),
        "images_labelled": len(labels) - sum(problems.values()),
        "image_problems": dict(problems.most_common()),
    }
    stage.facts["precision"] = asdict(precision)
    without = ", ".join(f"{count} {problem}" for problem, count in written.problems.most_common())
    stage.log(f"{labelled} of {written.rows} rows have image words" + (f"; without: {without}" if without else ""))
    if written.replaced:
        stage.warn(f"{written.replaced} rows had other image words, which were replaced")
    write_card(
        stage.folder,
        f"{stage.settings.input.resolve().name} with image words",
        {
            "image words": stage.facts["image_words_source"],
            "rows with image words": f"{labelled} of {written.rows}",
            "distinct images": len(labels),
            "computed in": f"{precision.name} ({precision.reason})",
        },
        about="`image_words` are the classes that a pretrained ImageNet classifier finds most probable, the most probable "
        "first, each by its first synonym in lower case; `image_problem` says why a row has none.",
    )


if __name__ == "__main__":
    raise SystemExit(main())
