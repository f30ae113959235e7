"""Texts that are streamed from elsewhere: of a data set on the Hub, or of Parquet files on a web server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.hub_texts import PREFIX, HubData, hub_input, iterate_hub_texts
from data_prep.remote_parquet import RemoteFile, iterate_remote_texts, remote_input
from data_prep.text_batches import BEGIN, Place, TextBatch
from launch.stage import ELSEWHERE


def is_streamed(data: str) -> bool:
    """Whether a data setting names something elsewhere, and not a folder."""
    return data.startswith(ELSEWHERE)


def data_input(data: str, partial: Path) -> Path | str:
    """The stage input that a data setting names: its folder, or what is elsewhere with its commit or version.

    ``partial`` is the folder that an interrupted run may have left.
    """
    if data.startswith(PREFIX):
        return hub_input(data, partial)
    return remote_input(data, partial) if is_streamed(data) else Path(data)


def iterate_streamed_texts(
    described: str, splits: Sequence[str], column: str, validation_share: float, start: Place = BEGIN
) -> Iterator[TextBatch]:
    """The texts of what :func:`data_input` has described, from a place on."""
    if described.startswith(PREFIX):
        return iterate_hub_texts(HubData.parse(described), splits, column, validation_share, start)
    return iterate_remote_texts(RemoteFile.parse_all(described), splits, column, validation_share, start)
