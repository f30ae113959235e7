"""The texts of a data set on the Hugging Face Hub, streamed: of one commit, in one order, from any place on.

    hub:OWNER/NAME                      the present commit of its main branch
    hub:OWNER/NAME@REVISION             of a branch, a tag or a commit
    hub:OWNER/NAME:CONFIG@REVISION      of one of several configurations

Nothing but data is read: `datasets` runs no code of the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import IterableDataset, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi, get_token

from data_prep.text_batches import BEGIN, TEXTS_AT_ONCE, Place, ReadingInterrupted, TextBatch, batches_of_texts
from launch.errors import InputError, first_line
from launch.hub import CHECK_SECONDS, TransportError, hub_calls
from launch.scrub import redact
from launch.stage import planned_input

PREFIX = "hub:"
_NAME = re.compile(r"hub:(?P<repository>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.+-]+))?(?:@(?P<revision>[\w./+-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubData:
    """A data set on the Hub, as a setting names it."""

    repository: str
    config: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, name: str) -> HubData:
        """Read `hub:OWNER/NAME:CONFIG@REVISION`; InputError where it is not that."""
        match = _NAME.fullmatch(name)
        if not match:
            raise InputError(f"{name}: not a data set on the Hub. Give hub:OWNER/NAME or hub:OWNER/NAME@REVISION.")
        return cls(**match.groupdict())

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        return f"{PREFIX}{self.repository}{config}" + (f"@{self.revision}" if self.revision else "")


def hub_input(data: str, partial: Path) -> str:
    """The stage input that a data setting names: `hub:OWNER/NAME@COMMIT`.

    A branch or a tag becomes the commit it points to now; that of an interrupted run, which left the folder
    ``partial``, goes on with the run's.
    """
    named = HubData.parse(data)
    if named.revision and _COMMIT.fullmatch(named.revision):
        return data
    planned = planned_input(partial, "data") or ""
    if not named.revision and _NAME.fullmatch(planned) and replace(HubData.parse(planned), revision=None) == named:
        return planned
    with hub_calls(f"cannot read {data}", CHECK_SECONDS, get_token()):
        commit = HfApi().dataset_info(named.repository, revision=named.revision, timeout=CHECK_SECONDS).sha
    return str(replace(named, revision=commit))


def iterate_hub_texts(
    data: HubData, splits: Sequence[str], column: str, validation_share: float, start: Place = BEGIN
) -> Iterator[TextBatch]:
    """The texts in ``column`` of some splits; rows without a text are left out, and counted.

    A split `validation` that is not there is cut from `train`: ``validation_share`` of the texts, picked by their hash.
    InputError names a split or column that is missing, :class:`ReadingInterrupted` a Hub that no longer answers.
    """
    with _stream_errors(data):
        found = load_dataset(data.repository, data.config, revision=data.revision, streaming=True)
    shards = _shards(data, found, splits, column)
    is_cut = "validation" in splits and "validation" not in found
    for number, (split, shard) in enumerate(shards[start.shard :], start.shard):
        row = start.row if number == start.shard else 0
        batches = iter(shard.skip(row).with_format("arrow").iter(TEXTS_AT_ONCE))
        while True:
            with _stream_errors(data):
                batch = next(batches, None)
            if batch is None:
                break
            row += len(batch)
            share = validation_share if is_cut and split == "train" else 0.0
            yield from batches_of_texts(split, batch[column].to_pylist(), share, Place(number, row))


def _shards(
    data: HubData, found: dict[str, IterableDataset], splits: Sequence[str], column: str
) -> list[tuple[str, IterableDataset]]:
    """The shards of the splits in their order, of each its one column."""
    shards = []
    for split in splits:
        if split == "validation" and split not in found:
            continue
        if split not in found:
            raise InputError(f"{data}: no split {split!r}. It has {', '.join(found)}.")
        columns = found[split].column_names or list(next(iter(found[split].take(1)), {}))
        if column not in columns:
            raise InputError(f"{data}: no column {column!r}. It has {', '.join(columns)}: name one with --text_column.")
        texts = found[split].select_columns([column])
        shards += [(split, texts.shard(texts.num_shards, index)) for index in range(texts.num_shards)]
    return shards


@contextmanager
def _stream_errors(data: HubData) -> Iterator[None]:
    """Tell what is wrong with the data set from what is wrong with the network, which may be gone on with later."""
    try:
        yield
    except (FileNotFoundError, DatasetsError, ValueError, RuntimeError) as error:
        raise InputError(f"{data}: cannot be read ({redact(first_line(error))}). Check its name on the Hub.") from None
    except (OSError, TransportError) as error:
        raise ReadingInterrupted(
            f"{data}: the Hub no longer answers ({redact(first_line(error))}). The same command goes on where it stopped."
        ) from None
