"""What the stages whose result can go to the Hugging Face Hub have in common: training stages and data stages."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from launch.hub import check_can_push, push_folder, warn_of_terms
from launch.published_files import RepositoryType
from launch.settings import NOT_IDENTITY
from launch.stage import Stage, StageSettings, run_stage


@dataclass(frozen=True, kw_only=True)
class PublishingSettings(StageSettings):
    """Settings of every stage that can publish what it makes."""

    push_to_hub: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Repository on the Hub, `owner/name`, to publish the result to; checked before the work starts."""
    hub_private: bool = field(default=True, metadata=NOT_IDENTITY)
    """Make the repository private where it is new."""
    license: str = field(default="apache-2.0", metadata=NOT_IDENTITY)
    """Licence named on the card, as the Hub names it."""


SettingsType = TypeVar("SettingsType", bound=PublishingSettings)


def run_publishing_stage(
    settings_class: type[SettingsType],
    function: Callable[[SettingsType, Stage], None],
    inputs: Callable[[SettingsType], dict[str, Path | str | None]],
    argv: list[str] | None,
    *,
    repository_type: RepositoryType,
    describe: Callable[[Path], None],
    subcommand: str = "",
    keeps_partial: bool = False,
    grows: bool = False,
    several_processes: bool = False,
) -> int:
    """:func:`launch.stage.run_stage`, whose result is published where `push_to_hub` asks for it.

    That it can be is checked before ``function`` runs. An output that is up to date is published, too.
    """

    def check(settings: SettingsType) -> None:
        if settings.push_to_hub:
            if repository_type == "dataset" and not settings.hub_private:
                warn_of_terms(settings.push_to_hub)
            check_can_push(settings.push_to_hub, settings.hub_private, repository_type)

    def publish(settings: SettingsType) -> None:
        if settings.push_to_hub:
            url = push_folder(
                settings.output, settings.push_to_hub, private=settings.hub_private, license=settings.license
            )
            print(f"published: {url}")

    return run_stage(
        settings_class,
        function,
        inputs,
        argv,
        subcommand=subcommand,
        keeps_partial=keeps_partial,
        grows=grows,
        several_processes=several_processes,
        before=check,
        describe=describe,
        after=publish,
    )
