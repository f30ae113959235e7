"""Settings: one frozen dataclass makes a stage's command line, its ``--help``, its YAML and its record."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

NOT_IDENTITY = {"identity": False}
"""Metadata of a setting that changes how a stage runs but not what it makes (where to push, how many workers)."""

Settings = TypeVar("Settings")

jsonargparse.set_docstring_parse_options(attribute_docstrings=True)


def parse_settings(
    settings_class: type[Settings],
    argv: list[str] | None = None,
    description: str | None = None,
    program: str | None = None,
) -> Settings:
    """Read ``settings_class`` from the command line and the YAML files that ``--config`` names.

    Later arguments win over earlier ones, files included. An unknown, missing or ill-typed setting, or one that the
    class itself refuses with a ValueError, ends the process with code 2 and its name; ``--help`` documents each
    setting, ``--print_config`` prints the resolved YAML. ``program`` is what they call the command, if not by its file.
    """
    parser = jsonargparse.ArgumentParser(prog=program, description=description, parser_mode="yaml")
    parser.add_argument("--config", action="config", help="YAML file with settings; later arguments override it")
    parser.add_class_arguments(settings_class, as_group=False)
    namespace = parser.parse_args(argv)
    try:
        values = dict(vars(parser.instantiate_classes(namespace)))
        return settings_class(**{field.name: values[field.name] for field in dataclasses.fields(settings_class)})
    except ValueError as error:  # a __post_init__ that refuses a value
        parser.error(str(error))


def to_plain(value: Any) -> Any:
    """Settings as plain dicts, lists, strings and numbers, fit for YAML and JSON."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def identity_of(settings: Any) -> dict[str, Any]:
    """The part of the settings that decides what a stage makes, as a flat ``{"optimizer.learning_rate": value}``."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        if field.metadata.get("identity", True):
            flat |= _flat(field.name, getattr(settings, field.name))
    return flat


def defaults_of(kind: type) -> dict[str, Any]:
    """The defaults of a dataclass of settings, those of :func:`identity_of` that have one."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if not field.metadata.get("identity", True):
            continue
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            value = field.default
        else:
            continue
        flat |= _flat(field.name, value)
    return flat


def _flat(name: str, value: Any) -> dict[str, Any]:
    """A setting by its name; a group of settings by theirs."""
    if dataclasses.is_dataclass(value):
        return {f"{name}.{inner}": item for inner, item in identity_of(value).items()}
    return {name: to_plain(value)}


def to_yaml(settings: Any) -> str:
    """The settings as YAML that ``--config`` reads back."""
    return yaml.safe_dump(to_plain(settings), sort_keys=False, allow_unicode=True)
