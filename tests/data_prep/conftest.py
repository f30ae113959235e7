"""Fixtures of the data_prep tests."""

from pathlib import Path

import pytest

from data_prep import tmn


@pytest.fixture(scope="session")
def twitter_2015(shared_data, tmp_path_factory) -> Path:
    """The real TMN data set, with captions and the few images there are."""
    source, output = shared_data / "tmn", tmp_path_factory.mktemp("tmn") / "out"
    words = ["--image_words", str(source / "captions_blip2.tsv"), "--images", str(source / "images")]
    assert tmn.main(["--input", str(source), "--output", str(output), *words]) == 0
    return output
