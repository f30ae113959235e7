"""Recipes: YAML files that list a chain of stages with their settings; :mod:`launch.pipeline` runs them.

    name: tmn_tiny                              # the pipeline writes to runs/NAME
    description: ...
    encoder: google/bert_uncased_L-2_H-128_A-2  # what {encoder} stands for; --encoder overrides it
    data_root: "{project}/data_prep/sample"     # what {data_root} stands for; --data_root overrides it
    begins_with: soft_labels.yaml               # a recipe beside this one, whose stages come first
    stages:
      - name: corpus                            # writes OUTPUT/corpus
        run: data_prep/clean.py                 # in the project, beside the recipe, or an absolute path; of a file that
                                                # holds several stages, with its word: data_prep/crawl.py files
        launch: python                          # or accelerate, the default for pretrain/ and finetune/
        settings: {input: "{data_root}/tweets"}
      - name: ner
        run: finetune/ner.py
        for_each: {head: [softmax, crf], seed: [1, 2]}   # one stage for each combination: ner-softmax-1, ...
        settings: {data: "{stages.corpus}", optimizer: {learning_rate: 3e-4}}

Placeholders are ``{data_root}``, ``{encoder}``, ``{output}``, ``{project}`` (the folder that holds ``data_prep/``),
``{stages.NAME}`` (that stage's output) and, within a stage, the names in its ``for_each``; ``{{`` and ``}}`` are plain
braces. In a list, the item ``"{all.NAME}"`` becomes the outputs of all stages that ``for_each`` made of NAME, in their
order: ``runs: ["{all.ner}", "{stages.teacher}"]``. A ``for_each`` name that no setting uses as a placeholder is itself a
setting. A stage reads only stages listed before it. Keys that are not listed here are refused by name.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launch.errors import InputError

PROJECT = Path(__file__).resolve().parent.parent
"""The folder that holds ``data_prep/``, ``pretrain/``, ``finetune/`` and ``launch/``."""

TRAINING_FOLDERS = ("pretrain", "finetune")
LAUNCHERS = ("python", "accelerate")
SET_BY_THE_PIPELINE = ("output", "dry_run")

_RECIPE_KEYS = {
    "name": True,
    "description": False,
    "encoder": False,
    "data_root": False,
    "begins_with": False,
    "stages": True,
}
_STAGE_KEYS = {"name": True, "run": True, "launch": False, "for_each": False, "settings": False}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class RecipeStage:
    """One stage of a resolved recipe."""

    name: str
    group: str
    """The name before ``for_each`` made several of it; otherwise the same as ``name``."""
    script: Path
    launch: str
    """``python`` or ``accelerate``."""
    settings: dict[str, Any]
    """As written, with every placeholder filled but ``{stages.NAME}`` and ``{output}``."""
    reads: tuple[str, ...]
    """Names of the stages whose outputs it reads."""
    command: tuple[str, ...] = ()
    """Which of the script's stages, where it holds several: ``("files",)`` of ``run: data_prep/crawl.py files``."""

    @property
    def run(self) -> str:
        """The script as a recipe names it, within the project or as an absolute path, and its command."""
        inside = self.script.is_relative_to(PROJECT)
        script = self.script.relative_to(PROJECT).as_posix() if inside else str(self.script)
        return " ".join([script, *self.command])

    def settings_in(self, output: Path) -> dict[str, Any]:
        """The settings when the pipeline writes to ``output``: the last placeholders and plain braces filled in."""

        def fill(key: str) -> str:
            return str(output / key.removeprefix("stages.")) if key.startswith("stages.") else str(output)

        return _fill(self.settings, fill, where=f"stage {self.name}", undo_escapes=True)


@dataclass(frozen=True)
class Recipe:
    """A recipe with its ``for_each`` spread out and its placeholders filled."""

    name: str
    description: str
    stages: tuple[RecipeStage, ...]

    def find(self, name: str) -> list[RecipeStage]:
        """The stage of that name, or all that ``for_each`` made of it. Raises InputError for an unknown name."""
        found = [stage for stage in self.stages if name in (stage.name, stage.group)]
        if not found:
            names = dict.fromkeys(name for stage in self.stages for name in (stage.group, stage.name))
            raise InputError(f"recipe {self.name} has no stage {name!r}. {_choices(name, names)}")
        return found

    def to_yaml(self) -> str:
        """The resolved recipe: itself a recipe, which gives the same stages in any output folder."""
        stages = [
            {"name": stage.name, "run": stage.run, "launch": stage.launch, "settings": stage.settings}
            for stage in self.stages
        ]
        whole = {"name": self.name, "description": self.description, "stages": stages}
        return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True, width=120)


@dataclass(frozen=True)
class _Override:
    """One ``--set STAGE.setting=value``."""

    text: str
    stage: str
    setting: str
    value: Any


def read_recipe(
    path: Path, data_root: str | Path | None = None, encoder: str | None = None, overrides: Iterable[str] = ()
) -> Recipe:
    """Read, check and resolve a recipe.

    ``overrides`` are ``STAGE.setting=value``. STAGE may be a name with ``for_each``, for all its stages; the setting
    may then also be one of the ``for_each`` names, with the list of values to take instead.
    Raises InputError for whatever is unknown, missing, ill-typed or circular.
    """
    content, entries = _read_entries(path)
    name = _checked_name(content["name"], f"{path}: recipe")
    parsed = []
    for text in overrides:
        parsed.append(_parse_override(text, entries))
        entries = [_with_override(entry, parsed[-1]) for entry in entries]

    if encoder is not None:
        _check_that_read(entries, path, encoder)
    known = _top_level_values(content, path, data_root, encoder)
    members = {entry["name"]: [*map(_namer(entry), _combinations(entry))] for entry in entries}
    stages = [stage for entry in entries for stage in _spread(entry, path, known, parsed, members)]
    _check_order(stages, path)
    recipe = Recipe(name=name, description=str(content.get("description") or ""), stages=tuple(stages))
    for override in parsed:
        recipe.find(override.stage)  # a later override may have taken the stage of an earlier one out
    return recipe


_PLACES = ("data_root", "encoder")
"""What a recipe may say at its top that placeholders stand for."""


def _read_entries(path: Path, begun_by: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A recipe as it is written, and its stages behind those of the recipe that it begins with, whose `data_root` and
    `encoder` hold where it has none of its own.
    """
    if path in begun_by:
        raise InputError(f"{path}: begins with itself, by way of {', '.join(map(str, begun_by[1:])) or 'no other'}.")
    content = _load(path)
    _check_keys(content, _RECIPE_KEYS, f"{path}: recipe")
    entries = content["stages"]
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: `stages` must be a list of at least one stage, not {entries!r}.")
    for number, entry in enumerate(entries, start=1):
        _check_keys(entry, _STAGE_KEYS, f"{path}: stage {number}")
        _check_stage(entry, f"{path}: stage {_checked_name(entry['name'], f'{path}: stage {number}')}")
    first = content.get("begins_with")
    if first is None:
        return content, entries
    if not isinstance(first, str) or not first or Path(first).name != first:
        raise InputError(f"{path}: `begins_with` must be the name of a recipe beside it, not {first!r}.")
    begun, begun_entries = _read_entries(path.with_name(first), (*begun_by, path))
    inherited = {key: begun[key] for key in _PLACES if begun.get(key) is not None}
    return inherited | content, begun_entries + entries


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error, not a silent choice of the last."""


def _construct_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor`: what stands beside it overrides it
            continue
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not a name", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        bundled = sorted(file.stem for file in (PROJECT / "launch/recipes").glob("*.yaml"))
        raise InputError(f"{path}: no such recipe. Those in launch/recipes are: {', '.join(bundled)}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError.at(path, None, f"cannot be read ({error})", "A recipe is a YAML file in UTF-8.") from None
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise InputError.at(path, mark.line + 1 if mark else None, problem, "Mend the YAML.") from None


def _check_keys(value: Any, keys: dict[str, bool], where: str) -> None:
    if not isinstance(value, dict):
        raise InputError(f"{where} must be a mapping with the keys {', '.join(keys)}, not {value!r}.")
    for key in value:
        if key not in keys:
            raise InputError(f"{where}: unknown key {key!r}. {_choices(key, keys)}")
    for key, required in keys.items():
        if required and value.get(key) is None:
            raise InputError(f"{where}: the key {key!r} is missing.")


RESERVED_NAMES = frozenset({"recipe.yaml", "report.html", "report_errors"})
"""What the pipeline itself puts beside the stages' folders; and, with ``--jobs``, a stage's ``.log``."""


def _checked_name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith(".partial"):
        raise InputError(f"{where}: the name {name!r} must be letters, digits and `_.-`: it names a folder.")
    if name in RESERVED_NAMES or name.endswith(".log"):
        raise InputError(f"{where}: the pipeline itself writes a {name!r}. Choose another name.")
    return name


def _check_stage(entry: dict[str, Any], where: str) -> None:
    settings, for_each = entry.get("settings") or {}, entry.get("for_each") or {}
    if not isinstance(settings, dict):
        raise InputError(f"{where}: `settings` must be a mapping, not {settings!r}.")
    for name in SET_BY_THE_PIPELINE:
        if name in settings or name in for_each:
            raise InputError(f"{where}: the pipeline itself sets `{name}`; take it out of the recipe.")
    if entry.get("launch", "python") not in LAUNCHERS:
        raise InputError(f"{where}: `launch` is {entry['launch']!r}. {_choices(entry['launch'], LAUNCHERS)}")
    if not isinstance(for_each, dict):
        raise InputError(f"{where}: `for_each` must map names to lists of values, not {for_each!r}.")
    for name, values in for_each.items():
        if not isinstance(values, list) or not values or any(isinstance(value, dict | list) for value in values):
            raise InputError(f"{where}: for_each {name} must be a list of plain values, not {values!r}.")


def _top_level_values(
    content: dict[str, Any], path: Path, data_root: str | Path | None, encoder: str | None
) -> dict[str, str | None]:
    """What the placeholders outside ``for_each`` stand for; None for one that nothing defines."""
    known: dict[str, str | None] = {"project": _escaped(PROJECT)}
    for key, given in (("data_root", data_root), ("encoder", encoder)):
        value = content.get(key)
        if value is not None and not isinstance(value, str):
            raise InputError(f"{path}: `{key}` must be text, not {value!r}.")
        if given is not None:
            known[key] = _escaped(given)
        elif value is not None:
            known[key] = _fill(value, _filler(known, path), where=f"{path}: {key}")
        else:
            known[key] = None
    return known


def _check_that_read(entries: list[dict[str, Any]], path: Path, encoder: str) -> None:
    """Refuse an encoder that no stage has a place for: it would be trained from another."""
    if "encoder" in set(_placeholders(entries)):
        return
    named = next((entry["name"] for entry in entries if "encoder" in (entry.get("settings") or {})), None)
    remedy = f" Give --set {named}.encoder={encoder}, or that of another stage." if named else ""
    raise InputError(f"{path}: no stage reads {{encoder}}, so that --encoder {encoder} would do nothing.{remedy}")


def _filler(known: dict[str, str | None], path: Path) -> Callable[[str], str | None]:
    """How a placeholder is filled from ``known``; those that depend on the output folder stay as they are."""
    remedies = {"data_root": "give --data_root DIR", "encoder": "give --encoder with a folder or a hub id"}

    def fill(key: str) -> str | None:
        if key == "output" or key.startswith("stages."):
            return f"{{{key}}}"
        if key in known and known[key] is None:
            raise InputError(f"{path} reads {{{key}}}, and nothing says what that is: {remedies[key]}.")
        return known.get(key)

    return fill


def _parse_override(text: str, entries: list[dict[str, Any]]) -> _Override:
    target, equals, value = text.partition("=")
    if not equals or "." not in target:
        raise InputError(f"--set {text}: write STAGE.setting=value.")
    names = [name for entry in entries for name in (entry["name"], *map(_namer(entry), _combinations(entry)))]
    # The longest name that fits, since names may hold dots themselves.
    stage = max((name for name in names if target.startswith(f"{name}.")), key=len, default=None)
    if stage is None:
        wanted = target.partition(".")[0]
        raise InputError(f"--set {text}: the recipe has no stage {wanted!r}. {_choices(wanted, names)}")
    setting = target.removeprefix(f"{stage}.")
    if setting in SET_BY_THE_PIPELINE:
        raise InputError(f"--set {text}: the pipeline itself sets `{setting}`.")
    try:
        return _Override(text, stage, setting, yaml.load(value, _StrictLoader))
    except yaml.YAMLError as error:
        raise InputError(f"--set {text}: the value is not YAML ({getattr(error, 'problem', error)}).") from None


def _with_override(entry: dict[str, Any], override: _Override) -> dict[str, Any]:
    """The recipe's entry with an override that names the entry itself (not one stage of its ``for_each``)."""
    if override.stage != entry["name"]:
        return entry
    for_each = entry.get("for_each") or {}
    if override.setting in for_each:
        values = override.value if isinstance(override.value, list) else [override.value]
        entry = {**entry, "for_each": {**for_each, override.setting: values}}
        _check_stage(entry, f"--set {override.text}")
        return entry
    return {**entry, "settings": _with_setting(entry.get("settings") or {}, override.setting.split("."), override)}


def _with_setting(settings: dict[str, Any], path: list[str], override: _Override) -> dict[str, Any]:
    head, *rest = path
    if not rest:
        return {**settings, head: override.value}
    inner = settings.get(head) or {}
    if not isinstance(inner, dict):
        raise InputError(f"--set {override.text}: the recipe gives {head!r} the value {inner!r}, with nothing in it.")
    return {**settings, head: _with_setting(inner, rest, override)}


def _combinations(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Every choice of one value for each ``for_each`` name; one empty choice without any."""
    for_each = entry.get("for_each") or {}
    return [dict(zip(for_each, values, strict=True)) for values in itertools.product(*for_each.values())]


def _namer(entry: dict[str, Any]) -> Callable[[dict[str, Any]], str]:
    return lambda values: "-".join([entry["name"], *map(plain_text, values.values())])


def _spread(
    entry: dict[str, Any],
    path: Path,
    known: dict[str, str | None],
    overrides: list[_Override],
    members: dict[str, list[str]],
) -> Iterator[RecipeStage]:
    """One stage for each combination of the entry's ``for_each`` values. ``members``: names by the entry they are of."""
    script, command = _script_and_command(entry["run"], path)
    launch = entry.get("launch") or ("accelerate" if script.parent.name in TRAINING_FOLDERS else "python")
    for values in _combinations(entry):
        name = _checked_name(_namer(entry)(values), f"{path}: stage {entry['name']}")
        where = f"{path}: stage {name}"
        settings = dict(entry.get("settings") or {})
        used = values.keys() & set(_placeholders(settings))
        # These first and alone, so that {stages.NAME-{seed}} works.
        settings = _fill(settings, values.get, where, keep_unknown=True)
        for key in values.keys() - used:
            if key in settings:
                raise InputError(f"{where}: {key!r} is in `settings` and in `for_each`; take it out of one of them.")
        settings.update({key: value for key, value in values.items() if key not in used})
        for override in overrides:
            if override.stage == name != entry["name"]:
                if override.setting in values:
                    raise InputError(
                        f"--set {override.text}: {name} is named by its {override.setting}. "
                        f"--set {entry['name']}.{override.setting}=[…] says which there shall be."
                    )
                settings = _with_setting(settings, override.setting.split("."), override)
        settings = {key: _with_all(value, members, f"{where}: {key}") for key, value in settings.items()}
        settings = {key: _fill(value, _filler(known, path), f"{where}: {key}") for key, value in settings.items()}
        reads = [key.removeprefix("stages.") for key in _placeholders(settings) if key.startswith("stages.")]
        yield RecipeStage(name, entry["name"], script, launch, settings, tuple(dict.fromkeys(reads)), command)


def _with_all(value: Any, members: dict[str, list[str]], where: str) -> Any:
    """The setting with each list's ``{all.NAME}`` made ``{stages.…}`` of all of that name."""
    if isinstance(value, dict):
        return {key: _with_all(item, members, where) for key, item in value.items()}
    if not isinstance(value, list):
        if names := [key for key in _placeholders(value) if key.startswith("all.")]:
            raise InputError(f"{where}: {{{names[0]}}} stands for several folders; write it as an item of a list.")
        return value
    items = []
    for item in value:
        match = _PLACEHOLDER.fullmatch(item) if isinstance(item, str) else None
        if match and (match.group(1) or "").startswith("all."):
            name = match.group(1).removeprefix("all.")
            if name not in members:
                raise InputError(f"{where}: reads {match.group(0)}. {_choices(name, members)}")
            items += [f"{{stages.{member}}}" for member in members[name]]
        else:
            items.append(_with_all(item, members, where))
    return items


def _script_and_command(run: Any, path: Path) -> tuple[Path, tuple[str, ...]]:
    if not isinstance(run, str):
        raise InputError(f"{path}: `run` must be the path of a stage file, not {run!r}.")
    folders = (PROJECT, path.resolve().parent)
    script, _, command = run.partition(".py ")
    for file, words in ((run, ()), (f"{script}.py", tuple(command.split()))):
        for folder in folders:
            if (folder / file).is_file():
                return folder / file, words
    places = " and ".join(str((folder / run).parent) for folder in folders)
    raise InputError(f"{path}: no stage file {run} (looked in {places}).")


def _placeholders(value: Any) -> Iterator[str]:
    """The keys of all placeholders in the strings of a setting."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _placeholders(item)
    elif isinstance(value, str):
        yield from (match.group(1) for match in _PLACEHOLDER.finditer(value) if match.group(1) is not None)


def _fill(
    value: Any, fill: Callable[[str], Any], where: str, keep_unknown: bool = False, undo_escapes: bool = False
) -> Any:
    """Replace the placeholders that ``fill`` knows (it returns None for others) in every string of a setting."""
    if isinstance(value, dict):
        return {key: _fill(item, fill, where, keep_unknown, undo_escapes) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, fill, where, keep_unknown, undo_escapes) for item in value]
    if not isinstance(value, str):
        return value

    def replacement(match: re.Match) -> Any:
        text, key = match.group(0), match.group(1)
        if text in ("{{", "}}"):
            return text[0] if undo_escapes else text
        filled = fill(key) if key is not None else None
        if filled is not None:
            return filled
        if keep_unknown:
            return text
        if key is None:
            raise InputError(f"{where}: a single {text!r} in {value!r}. Write {text * 2!r} for the sign itself.")
        raise InputError(
            f"{where}: unknown placeholder {text} in {value!r}. There are {{data_root}}, {{encoder}}, {{output}}, "
            "{project}, {stages.NAME}, in lists {all.NAME}, and the names in the stage's for_each."
        )

    if (alone := _PLACEHOLDER.fullmatch(value)) and alone.group(1) is not None:
        return replacement(alone)  # keeps a number a number
    return _PLACEHOLDER.sub(lambda match: plain_text(replacement(match)), value)


def _escaped(value: str | Path) -> str:
    return str(value).replace("{", "{{").replace("}", "}}")


def plain_text(value: Any) -> str:
    """A plain YAML value as it is written in YAML."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_order(stages: list[RecipeStage], path: Path) -> None:
    """Refuse names given twice, references to nothing, circles, and references to later stages."""
    by_name: dict[str, RecipeStage] = {}
    for stage in stages:
        if stage.name in by_name:
            raise InputError(f"{path}: two stages are named {stage.name!r}; each writes a folder of its own.")
        by_name[stage.name] = stage
    for stage in stages:
        for read in stage.reads:
            if read not in by_name:
                raise InputError(f"{path}: stage {stage.name} reads {{stages.{read}}}. {_choices(read, by_name)}")
    for stage in stages:
        if circle := _circle(stage.name, by_name):
            raise InputError(f"{path}: the stages {' -> '.join(circle)} read one another in a circle.")
    done: set[str] = set()
    for stage in stages:
        for read in stage.reads:
            if read not in done:
                raise InputError(f"{path}: stage {stage.name} reads {read}, which is listed after it. Move {read} up.")
        done.add(stage.name)


def _circle(start: str, by_name: dict[str, RecipeStage]) -> list[str] | None:
    """A way from a stage along what it reads back to itself, or None."""
    paths = [[start]]
    seen: set[str] = set()
    while paths:
        way = paths.pop()
        for read in by_name[way[-1]].reads:
            if read == start:
                return [*way, start]
            if read not in seen:
                seen.add(read)
                paths.append([*way, read])
    return None


def _choices(wrong: Any, names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    close = difflib.get_close_matches(str(wrong), names, n=1)
    return (f"Did you mean {close[0]!r}? " if close else "") + f"There are: {', '.join(names)}."
