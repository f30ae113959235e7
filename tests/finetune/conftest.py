"""Fixtures of the finetune tests: a tiny encoder, a `ner` data set, and recognizers trained on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_ner import ODD, STAGE, make_encoder, make_ner, make_row, make_tokenizer, named_tweet, write_vectors

from finetune import ner


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("tiny") / "encoder")


@pytest.fixture(scope="session")
def named(tmp_path_factory) -> Path:
    """A data set in which a name has the same type wherever it stands, and the image tells nothing."""
    splits = ("train", "validation", "test")
    odd = {split: [make_row(f"{split}: {what}", *row, ["sea"]) for what, *row in ODD] for split in splits}
    return make_ner(tmp_path_factory.mktemp("tiny") / "named", named_tweet, **odd)


@pytest.fixture(scope="session")
def vectors(tmp_path_factory) -> Path:
    """Random vectors of all words but one name and one filler."""
    words = "the a in at with and saw met likes ! , maria lee paris oslo bay acme corp nasa iliad jordan".split()
    return write_vectors(tmp_path_factory.mktemp("words") / "tiny.vec", words)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, encoder, named) -> Callable[[str, str], Path]:
    """A recognizer's folder by head and scheme, made by the stage when it is first asked for."""
    folder = tmp_path_factory.mktemp("trained")

    def train(head: str, scheme: str = "BIO") -> Path:
        output = folder / f"{head}-{scheme}"
        if not output.exists():
            epochs = "12" if (head, scheme) == ("softmax", "BIOES") else "6"
            arguments = ["--encoder", str(encoder), "--data", str(named), "--output", str(output), "--head", head]
            assert ner.main([*arguments, *STAGE, "--scheme", scheme, "--schedule.epochs", epochs]) == 0
        return output

    return train
