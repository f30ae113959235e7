"""Pictures beside their image words: a labelled data set as one HTML page that loads nothing from elsewhere.

python -m data_prep.image_gallery data/tmn_labelled --images TMN/images --output words.html
"""

import argparse
import base64
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.images import ImageProblem, open_rgb
from data_prep.layout import iterate_rows, splits_of
from data_prep.row_images import ImageSurvey
from launch.errors import InputError
from launch.page import write_page
from launch.stage import read_manifest

THUMBNAIL_PIXELS = 360
"""Longest side of a picture in the page."""


def main(argv: list[str] | None = None) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="output of data_prep/label_images.py")
    parser.add_argument("--images", type=Path, help="the folder of images by id that was labelled, if there was one")
    parser.add_argument("--output", type=Path, required=True, help="HTML file to write")
    parser.add_argument("--most", type=int, default=60, help="pictures to show at the most (default: 60)")
    options = parser.parse_args(argv)
    try:
        write_gallery(options.dataset, options.images, options.output, options.most)
    except InputError as error:
        print(f"data_prep/image_gallery: error: {error}", file=sys.stderr)
        return 2
    return 0


def write_gallery(dataset: Path, images: Path | None, output: Path, most: int) -> None:
    """Write the page, with the first ``most`` rows that have image words; InputError if there are none."""
    facts = (read_manifest(dataset) or {}).get("facts", {})
    pictures = [picture for picture, _ in zip(_pictures(dataset, images), range(most), strict=False)]
    if not pictures:
        raise InputError.at(dataset, None, "no row with image words and its image", "Label it with label_images.py.")
    context = {
        "title": dataset.resolve().name,
        "source": facts.get("image_words_source", "image words"),
        "counts": facts.get("image_words", {}),
        "pictures": pictures,
    }
    write_page(output, "image_gallery_template.html", context)


def _pictures(dataset: Path, images: Path | None) -> Iterator[dict[str, Any]]:
    survey = ImageSurvey(dataset, images)
    columns = ["id", "image_words", "image_word_scores", "text" if survey.kind == "posts" else "source_tokens"]
    row_images = (row for rows in survey.rows.values() for row in rows)
    for split in splits_of(dataset):
        for row, found in zip(iterate_rows(dataset, split, columns), row_images, strict=False):
            thumbnail = _thumbnail(survey, [image.sha256 for image in found if image.sha256])
            if row["image_words"] and thumbnail:
                scores = row["image_word_scores"] or [None] * len(row["image_words"])  # captions have none
                yield {
                    "thumbnail": thumbnail,
                    "text": row["text"] if "text" in row else " ".join(row["source_tokens"]),
                    "words": list(zip(row["image_words"], scores, strict=True)),
                }


def _thumbnail(survey: ImageSurvey, digests: list[str]) -> str | None:
    """The first of the images that opens, small, as a `data:` address."""
    for digest in digests:
        try:
            image = open_rgb(survey.places[digest].read(), at_least=THUMBNAIL_PIXELS)
        except ImageProblem:
            continue
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return None


if __name__ == "__main__":
    raise SystemExit(main())
