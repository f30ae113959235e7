"""Images become regions: VGG16's last pooling layer, 7 x 7 vectors of 512 numbers, which the co-attention network [11] reads.

    python data_prep/image_regions.py --images TMN/images --output data/regions

Takes a folder of image files named by image id (`27.jpg`), and writes `regions.safetensors` (`data_prep/region_file.py` says
what is in it) for `finetune/word_ner.py --system coattention --regions data/regions/regions.safetensors`. Images that cannot
be opened are left out and counted. An image takes 50 kB, in memory too, where all are held until the file is written.

Shapes: N images of a batch, 3 colours, H and W pixels, R regions, V numbers of a region.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import PIL.Image
import torch
from torch import Tensor, nn
from torchvision.transforms import functional as F

from data_prep.images import SUFFIXES, ImageProblem, image_file, open_rgb
from data_prep.label_images import NOT_FINITE
from data_prep.labellers import Preprocessing, make_labeller
from data_prep.region_file import write_regions
from data_prep.row_images import ImageFile
from launch.errors import InputError
from launch.settings import NOT_IDENTITY
from launch.stage import Stage, StageSettings, run_stage

NETWORK = "vgg16"
FILE = "regions.safetensors"

NO_IMAGE_NAME = f"its name does not end in {', '.join(SUFFIXES)}"
ID_TAKEN = "another file has its id"
EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class RegionSettings(StageSettings):
    """Settings of `data_prep/image_regions.py`."""

    images: Path = field(metadata=NOT_IDENTITY)
    """Folder of image files named by image id."""
    weights: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """File of VGG16's weights: `.safetensors`, or a state dict. Without it torchvision downloads its published ones."""
    batch: int = field(default=8, metadata=NOT_IDENTITY)
    """Images that go through the network at once."""

    def __post_init__(self) -> None:
        """Refuse batches of nothing."""
        if self.batch < 1:
            raise ValueError(f"batch: {self.batch} is not positive")


def main(argv: list[str] | None = None) -> int:
    """Run the stage."""
    return run_stage(
        RegionSettings,
        image_regions,
        inputs=lambda settings: {"images": settings.images, "weights": settings.weights},
        argv=argv,
    )


def image_regions(settings: RegionSettings, stage: Stage) -> None:
    """Find the images, put each through the network, and write what its last pooling layer gives."""
    left_out: dict[str, str] = {}
    files = find_images(settings.images, left_out)
    labeller = make_labeller(NETWORK, settings.weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = labeller.model.features.to(device)

    regions_by_id: dict[str, Tensor] = {}
    opened = openable(stage.progress(files.items(), "regions", unit="image"), left_out)
    while images := dict(islice(opened, settings.batch)):
        regions_by_id |= regions_of(network, labeller.preprocessing, images, device)
    for image_id in [image_id for image_id, regions in regions_by_id.items() if not regions.isfinite().all()]:
        del regions_by_id[image_id]
        left_out[files[image_id].name] = NOT_FINITE

    stage.rows.taken, stage.rows.kept = len(regions_by_id) + len(left_out), len(regions_by_id)
    stage.rows.rejected.update(left_out.values())
    told = ", ".join(f"{name} ({problem})" for name, problem in islice(left_out.items(), EXAMPLES))
    if not regions_by_id:
        raise InputError.at(settings.images, None, f"not one image to read: {told or 'it is empty'}", "Give others.")
    if left_out:
        stage.warn(f"{len(left_out)} of {stage.rows.taken} files left out, such as {told}")
    stage.facts["network"] = f"{NETWORK} with {labeller.weights}"
    write_regions(stage.folder / FILE, regions_by_id, NETWORK, labeller.weights)


def find_images(folder: Path, left_out: dict[str, str]) -> dict[str, Path]:
    """The image files of a folder by image id, those that data stages would find; others by name and reason in ``left_out``."""
    if not folder.is_dir():
        raise InputError.at(folder, None, "not a folder", "Give a folder of image files named by image id.")
    files = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if path.suffix not in SUFFIXES:
            left_out[path.name] = NO_IMAGE_NAME
            continue
        try:
            found = image_file(folder, path.stem)
        except ImageProblem as problem:
            left_out[path.name] = str(problem)
            continue
        if found == path:
            files[path.stem] = path
        else:
            left_out[path.name] = ID_TAKEN
    return files


def openable(files: Iterable[tuple[str, Path]], left_out: dict[str, str]) -> Iterator[tuple[str, PIL.Image.Image]]:
    """The images among the files, RGB, by id; the names of the others go to ``left_out``, with the reason."""
    for image_id, path in files:
        try:
            yield image_id, open_rgb(ImageFile(path).read())
        except ImageProblem as problem:
            left_out[path.name] = str(problem)


@torch.inference_mode()
def regions_of(
    network: nn.Module,
    preprocessing: Preprocessing,
    images: Mapping[str, PIL.Image.Image],
    device: torch.device,
) -> dict[str, Tensor]:
    """Regions [R, V] of each image, float16, by id.

    The whole image is resized to a square, as in [11], where classification would cut one out of its middle.
    """
    square = [preprocessing.side, preprocessing.side]
    resized = (F.resize(image, square, interpolation=preprocessing.interpolation) for image in images.values())
    pixels_N3HW = torch.stack([F.pil_to_tensor(image) for image in resized]).to(device)
    features_NV77 = network(preprocessing.normalize(pixels_N3HW))
    regions_NRV = features_NV77.flatten(2).transpose(1, 2).to(torch.float16).cpu()
    # Copies, or each would keep the memory of its whole batch.
    copies = (regions_RV.clone(memory_format=torch.contiguous_format) for regions_RV in regions_NRV)
    return dict(zip(images, copies, strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
