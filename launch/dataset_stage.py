"""What the stages that make data sets (those of `data_prep/`) have in common: a card, and a way to the Hub."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from launch.dataset_card import DEFAULT_LICENSE, render_again
from launch.files import write_text_whole
from launch.interruption import stopping_when_asked
from launch.publishing import PublishingSettings, SettingsType, run_publishing_stage
from launch.settings import NOT_IDENTITY
from launch.stage import CARD_NAME, Stage, read_manifest


@dataclass(frozen=True, kw_only=True)
class DatasetStageSettings(PublishingSettings):
    """Settings of every stage that makes a data set."""

    license: str = field(default=DEFAULT_LICENSE, metadata=NOT_IDENTITY)
    """Licence named on the card, as the Hub names it; `other` where the data set has none of its own, as posts have not."""


def run_dataset_stage(
    settings_class: type[SettingsType],
    function: Callable[[SettingsType, Stage], None],
    inputs: Callable[[SettingsType], dict[str, Path | str | None]],
    argv: list[str] | None = None,
    *,
    subcommand: str = "",
    keeps_partial: bool = False,
    grows: bool = False,
    several_processes: bool = False,
) -> int:
    """:func:`launch.stage.run_stage` for a stage that makes a data set: with a full card, published where asked.

    What was rejected is not published. With ``keeps_partial`` it stops when it is asked to; one that ``grows`` ends then.
    """

    def describe(folder: Path) -> None:
        license = read_manifest(folder)["settings"]["license"]
        write_text_whole(folder / CARD_NAME, render_again(folder, license))

    with stopping_when_asked() if keeps_partial else nullcontext():
        return run_publishing_stage(
            settings_class,
            function,
            inputs,
            argv,
            repository_type="dataset",
            describe=describe,
            subcommand=subcommand,
            keeps_partial=keeps_partial,
            grows=grows,
            several_processes=several_processes,
        )
