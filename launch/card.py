"""What the cards of models and of data sets share: the chain behind a manifest, and texts that stand safely in Markdown.

A manifest holds its inputs' manifests, so the chain (posts, corpus, tweet MLM, CoNLL-2003 MLM, NER) is read from the
last one alone. Nothing is said that the manifests do not record.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import yaml

from launch.stage import ELSEWHERE

HASH_DIGITS = 12
KEY_SETTINGS_SHOWN = 8
# Substrings of setting names, the telling ones first: what a reader of the chain looks for.
KEY_SETTINGS = (
    "head scheme image_words learning_rate batch epoch step budget mask max_length warmup weight_decay precision "
    "encoder language lang dedup duplicate query minimum_ maximum_ min_ max_ labeller".split()
)
# Settings that say where and how a stage ran, not what it made.
NO_KEY_SETTINGS = frozenset("output resume overwrite dry_run push_to_hub hub_private license seed".split())


@dataclass(frozen=True)
class ChainStage:
    """One stage of the chain that led to an artefact."""

    name: str
    artefact: str
    """Name of the folder it wrote."""
    digest: str | None
    """Content hash of what it wrote, as the stage that read it recorded it; None for the last one."""
    manifest: dict[str, Any]

    @property
    def trains(self) -> bool:
        """Whether it is a training stage (the others make data)."""
        return not self.name.startswith("data_prep/")


def read_chain(manifest: dict[str, Any]) -> list[ChainStage]:
    """The stages behind a manifest and its own, each once, in the order in which they can have run."""
    stages: dict[str, ChainStage] = {}

    def visit(node: dict[str, Any], artefact: str, digest: str | None) -> None:
        inputs = [entry for entry in inputs_of(node) if entry["manifest"]]
        # The encoder's history comes before the data of the stage that went on with it.
        for entry in sorted(inputs, key=lambda entry: entry["manifest"]["stage"].startswith("data_prep/")):
            visit(entry["manifest"], folder_name(entry["path"]), entry["sha256"])
        key = node.get("fingerprint") or f"{node['stage']} {artefact} {digest}"
        stages.setdefault(key, ChainStage(node["stage"], artefact, digest, node))

    visit(manifest, folder_name(str((manifest.get("settings") or {}).get("output") or manifest["stage"])), None)
    return list(stages.values())


def chain_row(stage: ChainStage) -> dict[str, Any]:
    """A stage as a row of the table in `chain_table.md`."""
    manifest = stage.manifest
    rows = manifest.get("rows") or {}
    return {
        "stage": stage.name,
        "artefact": stage.artefact,
        "digest": (stage.digest or "")[:HASH_DIGITS],
        "reads": [
            {
                "name": _input_name(entry["path"]),
                "digest": "" if entry["path"].startswith(ELSEWHERE) else (entry["sha256"] or "")[:HASH_DIGITS],
            }
            for entry in inputs_of(manifest)
        ],
        "taken": rows.get("taken"),
        "kept": rows.get("kept"),
        "rejected": {reason: count for reason, count in (rows.get("rejected") or {}).items() if count},
        "settings": _key_settings(manifest.get("settings") or {}),
        "seeds": manifest.get("seeds") or [],
    }


def inputs_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The inputs as ``{"name", "path", "sha256", "manifest"}``."""
    return [
        {"name": name, "path": str(entry["path"]), "sha256": entry.get("sha256"), "manifest": entry.get("manifest")}
        for name, entry in (manifest.get("inputs") or {}).items()
        if entry
    ]


def folder_name(path: str) -> str:
    """The last part of a path."""
    return PurePosixPath(path).name or path


def scalars(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings or facts as ``{"optimizer.learning_rate": 1e-4}``, without lists and empty values."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat.update(scalars(item, f"{prefix}{key}."))
        elif item is not None and not isinstance(item, list):
            flat[f"{prefix}{key}"] = item
    return flat


def render(template: str, **values: Any) -> str:
    """A Markdown template of this folder with its ``values``; one that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(cell=_cell, percent=_percent, duration=_duration, yaml=_yaml, number=_number)
    return environment.get_template(template).render(**values)


def _input_name(path: str) -> str:
    return path if path.startswith(ELSEWHERE) else folder_name(path)


def _key_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The few settings that a reader of the chain looks for; the card lists all of them further down."""
    flat = {name: value for name, value in scalars(settings).items() if name not in NO_KEY_SETTINGS}

    def rank(name: str) -> int:
        return next((place for place, part in enumerate(KEY_SETTINGS) if part in name), len(KEY_SETTINGS))

    telling = sorted((name for name in flat if rank(name) < len(KEY_SETTINGS)), key=rank)
    return {name: flat[name] for name in telling[:KEY_SETTINGS_SHOWN]}


def _cell(value: Any) -> str:
    """Text that neither ends a table's cell nor starts a line, an HTML element or code of its own."""
    text = " ".join(str(value).split())
    for character, instead in (("|", "\\|"), ("`", "'"), ("<", "&lt;")):
        text = text.replace(character, instead)
    return text


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not recorded"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).strip()
