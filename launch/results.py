"""What finished stage folders say, read and summed up for the report and the score tables.

Nothing here trains or scores: the numbers are those in ``manifest.json``, ``metrics.jsonl``, ``scores.json`` and
``predictions/``. A piece that a folder lacks is None or empty, so a half-run pipeline can be reported, too.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from launch.errors import InputError
from launch.paper_tables import TABLE_9, TABLE_10, TEST_TWEETS, PaperRow, msb_system, table_4_row
from launch.stage import ELSEWHERE, MANIFEST_NAME, METRICS_NAME, iterate_jsonl, read_manifest

ENTITY_TYPES = ("PER", "LOC", "ORG", "MISC")
CONVENTIONS = ("conlleval", "strict")
IMAGE_WORDS = ("given", "shuffled", "none")
WEIGHT_INPUTS = frozenset({"encoder", "model", "weights", "init"})
"""Names of a stage's inputs that hold weights, perhaps numbered (``model_1``); all others hold data."""

LAST_STEPS = {"distill": "distillation", "word_distill": "distillation", "average": "average"}
"""What recognizers' stages other than those of NER do, as a chain names it."""

NOT_CONFIGURATION = frozenset({"output", "resume", "overwrite", "dry_run", "push_to_hub", "seed"})
"""Settings by which two runs may differ and still be the same configuration."""


class StageFolder:
    """One finished stage folder; ``manifest.json`` is read at once, the rest when asked for."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        if manifest is None:
            raise InputError(f"{folder}: no manifest.json. Give folders of finished stages.")
        if not isinstance(manifest, dict) or "stage" not in manifest:
            raise InputError.at(folder / "manifest.json", None, "not a stage's manifest", "Make the folder again.")
        self.folder = folder
        self.manifest: dict[str, Any] = manifest

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def stage(self) -> str:
        """Which stage made it, such as ``pretrain/mlm``."""
        return str(self.manifest["stage"])

    @property
    def is_mlm(self) -> bool:
        """Whether this is masked language modelling."""
        return self.stage.endswith("/mlm")

    @property
    def is_ner(self) -> bool:
        """Whether this is a trained recognizer."""
        return self.stage.endswith("/ner") or (self.folder / "scores.json").is_file()

    @property
    def settings(self) -> dict[str, Any]:
        """The stage's resolved settings."""
        return self.manifest.get("settings") or {}

    @property
    def facts(self) -> dict[str, Any]:
        """What the stage recorded of itself."""
        return self.manifest.get("facts") or {}

    @property
    def seed(self) -> int | None:
        """The run's seed."""
        return self.settings.get("seed", next(iter(self.manifest.get("seeds") or []), None))

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Rows of ``metrics.jsonl``."""
        return list(read_rows(self.folder / METRICS_NAME))

    @cached_property
    def scores(self) -> dict[str, Any]:
        """``scores.json``: split -> convention -> counts; see the stage contract."""
        return _json(self.folder / "scores.json") or {}

    @cached_property
    def predictions(self) -> list[dict[str, Any]]:
        """Rows of ``predictions/test.jsonl``."""
        return list(read_rows(self.folder / "predictions" / "test.jsonl"))

    @cached_property
    def model_config(self) -> dict[str, Any]:
        """``config.json`` of the model."""
        return _json(self.folder / "config.json") or {}

    @property
    def system(self) -> str | None:
        """The system's name, Table 4's if it is there: as recorded; of a run that did not, by encoder size and head."""
        layers, hidden_size = self.encoder_size
        named = msb_system(layers, hidden_size, str(self.settings.get("head"))) if layers and hidden_size else None
        return self.facts.get("system") or named

    @cached_property
    def encoder_size(self) -> tuple[int | None, int | None]:
        """(layers, hidden size) of the encoder, from ``config.json`` or the recorded facts."""
        for place in (self.model_config, self.facts):
            layers, hidden = _find(place, "num_hidden_layers"), _find(place, "hidden_size")
            if layers and hidden:
                return int(layers), int(hidden)
        return None, None


@dataclass(frozen=True)
class Mean:
    """Mean over seeds, with the sample standard deviation where there are two or more, in the unit of the values."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Mean | None:
        """Of the values that are there; None of none."""
        found = [value for value in values if value is not None]
        if not found:
            return None
        return cls(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))

    def text(self, signed: bool = False) -> str:
        """Such as ``70.12 ± 0.31``; ``signed`` writes a plus or a proper minus first."""
        mean = f"{self.mean:+.2f}".replace("-", "−") if signed else f"{self.mean:.2f}"
        return mean if self.sd is None else f"{mean} ± {self.sd:.2f}"


@dataclass
class Configuration:
    """NER runs that are equal up to their seed, and their scores in percent."""

    runs: list[StageFolder]
    suffix: str = ""
    """Settings that tell this configuration from another of the same name, such as ``learning_rate=0.0001``."""
    siblings: dict[str, Configuration] = field(default_factory=dict)
    """Configurations equal up to ``image_words``, by that setting; this one included."""

    @property
    def first(self) -> StageFolder:
        """The run of the lowest seed."""
        return self.runs[0]

    @cached_property
    def lineage(self) -> tuple[str, list[str]]:
        """The encoder that the chain starts from and the training steps since, as of :func:`encoder_lineage`."""
        return encoder_lineage(self.first.manifest)

    @property
    def system(self) -> str:
        """The system's name; encoder and head where a run tells none."""
        return self.first.system or " + ".join(part for part in (self.encoder, self.head_text) if part)

    @property
    def encoder(self) -> str:
        """Name of the encoder that the chain starts from; of a system without one, the system's."""
        has_none = self.lineage[0] == "new" and not self.first.settings.get("encoder")
        return (has_none and self.first.system) or self.lineage[0]

    @property
    def chain(self) -> str:
        """The training steps, such as ``MLM on tweets → NER``; a student's last is ``distillation``, of a mean ``average``."""
        kind = self.first.stage.rpartition("/")[2]
        last = LAST_STEPS.get(kind, "NER")
        return " → ".join([*self.lineage[1], last]) if self.lineage[1] else f"{last} only"

    @property
    def head(self) -> str:
        """``softmax`` or ``crf``; empty for a system that has no choice of it."""
        return str(self.first.settings.get("head", ""))

    @property
    def head_text(self) -> str:
        """The head, with its tagging scheme where that is not BIO."""
        scheme = self.first.settings.get("scheme", "BIO")
        name = "CRF" if self.head == "crf" else self.head
        return ", ".join(part for part in (name, "" if scheme == "BIO" else scheme) if part)

    @property
    def image_words(self) -> str:
        """``given``, ``shuffled`` or ``none``, which is also said of a system that cannot read any."""
        if self.first.facts.get("reads_image_words") is False:
            return "none"
        return str(self.first.settings.get("image_words", "none"))

    @property
    def seeds(self) -> list[int | None]:
        """Seeds of the runs."""
        return [run.seed for run in self.runs]

    @property
    def family_name(self) -> str:
        """Encoder, chain and head: what stays when only the image words change."""
        return " · ".join(part for part in (self.encoder, self.chain, self.head_text, self.suffix) if part)

    @property
    def label(self) -> str:
        """One line that tells this configuration from the others."""
        return f"{self.family_name} · image words {self.image_words}"

    @property
    def test_tweets(self) -> int | None:
        """Tweets in the test split, as scored."""
        return (self.first.scores.get("test") or {}).get("tweets")

    @property
    def paper(self) -> PaperRow | None:
        """Table 4's row of this system."""
        return table_4_row(self.system)

    def row_of(self, table: str) -> PaperRow | None:
        """The row of the paper's ``table4``, ``table9`` or ``table10`` (``none``: of none) that this is a run of."""
        if table == "table4":
            return self.paper
        config = self.first.model_config
        if config.get("model_type") != "cwi" or config.get("attention") != "none":
            return None
        if table == "table9":
            return TABLE_9.get(config.get("vector_size")) if config.get("regularised") else None
        return TABLE_10.get(config.get("regularised")) if table == "table10" else None

    @property
    def is_papers_data(self) -> bool:
        """Whether the test split has as many tweets as the paper's."""
        return self.test_tweets == TEST_TWEETS

    def score(self, convention: str, *keys: str, split: str = "test") -> Mean | None:
        """Mean over the runs of one score, in percent: ``score("strict", "by_type", "PER", "f1")``."""
        return Mean.of(
            None if value is None else 100 * value
            for value in (_at(run.scores, split, convention, *keys) for run in self.runs)
        )

    def table_row(self, convention: str) -> list[Mean | None]:
        """PER, LOC, ORG, MISC, precision, recall, F1 on test, and F1 on dev, in percent."""
        return [
            *(self.score(convention, "by_type", kind, "f1") for kind in ENTITY_TYPES),
            *(self.score(convention, "micro", key) for key in ("precision", "recall", "f1")),
            self.score(convention, "micro", "f1", split="validation"),
        ]

    def minus(self, other: Configuration, convention: str, *keys: str) -> Mean | None:
        """This one's test score minus the other's, in points: seed by seed where both have the seeds."""
        own = {run.seed: _at(run.scores, "test", convention, *keys) for run in self.runs}
        others = {run.seed: _at(run.scores, "test", convention, *keys) for run in other.runs}
        pairs = [(own[s], others[s]) for s in own if s in others and own[s] is not None and others[s] is not None]
        if pairs:
            return Mean.of(100 * (a - b) for a, b in pairs)
        a, b = self.score(convention, *keys), other.score(convention, *keys)
        return Mean(a.mean - b.mean, None, 1) if a and b else None

    def confusion(self, split: str = "test") -> tuple[list[str], list[list[int]]] | None:
        """Labels and the confusion counts summed over the runs: rows gold, columns predicted."""
        found = [run.scores[split]["confusion"] for run in self.runs if _at(run.scores, split, "confusion")]
        if not found:
            return None
        labels = found[0]["labels"]
        size = range(len(labels))
        return labels, [[sum(c["matrix"][row][column] for c in found) for column in size] for row in size]


def find_stages(run_folder: Path) -> list[Path]:
    """The finished stage folders right under ``run_folder``, in the order in which they were finished."""
    if not run_folder.is_dir():
        raise InputError(f"{run_folder}: no such folder. Give the folder that holds the finished stages.")
    folders = [path for path in run_folder.iterdir() if path.suffix != ".partial"]
    found = [StageFolder(path) for path in folders if (path / MANIFEST_NAME).is_file()]
    return [one.folder for one in sorted(found, key=lambda s: (str(s.manifest.get("finished_at", "")), s.name))]


def encoder_lineage(manifest: dict[str, Any]) -> tuple[str, list[str]]:
    """Name of the encoder that a manifest's chain starts from, and its training steps before this stage."""
    steps: list[str] = []
    current = manifest
    while True:
        weights = [(name, entry) for name, entry in (current.get("inputs") or {}).items() if is_weights(name, entry)]
        if not weights:
            return ("new" if steps else str(current.get("settings", {}).get("encoder") or "new")), steps
        entry = weights[0][1]
        if not entry.get("manifest"):
            return short_name(entry.get("path", "?")), steps
        current = entry["manifest"]
        data = [
            short_name(other.get("path", "?"))
            for name, other in (current.get("inputs") or {}).items()
            if not is_weights(name, other)
        ]
        kind = current.get("stage", "?").rpartition("/")[2]
        kind = kind.upper() if kind in ("mlm", "ner") else kind
        steps.insert(0, f"{kind} on {data[0]}" if data else kind)


def is_weights(name: str, entry: dict[str, Any]) -> bool:
    """Whether a manifest's input holds weights (else it holds data)."""
    stage = (entry.get("manifest") or {}).get("stage", "")
    return re.sub(r"_\d+$", "", name) in WEIGHT_INPUTS or stage.startswith("pretrain/")


def short_name(path: str) -> str:
    """Last part of a path, hub id or address, without version: nothing of the machine's folders belongs in a report."""
    place = path.partition(" ")[0] if path.startswith(ELSEWHERE) else path
    name = place.removeprefix("hub:").partition("@")[0].rstrip("/\\")
    return name.replace("\\", "/").rpartition("/")[2] or name


def configurations(stages: Iterable[StageFolder]) -> list[Configuration]:
    """NER runs grouped into configurations, sorted by encoder, chain, head and image words."""
    groups: dict[str, list[StageFolder]] = {}
    runs = [stage for stage in stages if stage.is_ner]
    defaults = _defaults(runs)
    for run in runs:
        groups.setdefault(_key(run, defaults, leave_out=NOT_CONFIGURATION), []).append(run)
    found = [
        Configuration(sorted(group, key=lambda run: (run.seed is None, run.seed, run.name)))
        for group in groups.values()
    ]
    families: dict[str, dict[str, Configuration]] = {}
    for one in found:
        family = families.setdefault(_key(one.first, defaults, NOT_CONFIGURATION | {"image_words"}), {})
        family[one.image_words] = one
        one.siblings = family
    _tell_apart(found, defaults)
    order = {name: place for place, name in enumerate(IMAGE_WORDS)}
    return sorted(
        found,
        key=lambda c: (c.encoder, len(c.lineage[1]), c.chain, c.head, c.suffix, order.get(c.image_words, 9)),
    )


def families(found: list[Configuration]) -> list[dict[str, Configuration]]:
    """Configurations that differ in their image words only, where there are two or more."""
    unique = {id(one.siblings): one.siblings for one in found}
    return [
        {name: family[name] for name in IMAGE_WORDS if name in family} for family in unique.values() if len(family) > 1
    ]


def ends_family(found: list[Configuration], place: int) -> bool:
    """Whether the one at ``place`` of the sorted list is the last with its encoder, chain and head."""
    this = found[place]
    return place + 1 == len(found) or found[place + 1].family_name != this.family_name


def best_on_dev(found: Iterable[Configuration]) -> Configuration | None:
    """The configuration with the highest mean dev F1 (conlleval); test has no say."""
    scored = [(one.score("conlleval", "micro", "f1", split="validation"), one) for one in found]
    return max(((s.mean, i, one) for i, (s, one) in enumerate(scored) if s), default=(0, 0, None))[2]


def _defaults(runs: list[StageFolder]) -> dict[str, dict[str, Any]]:
    """The defaults of each stage's settings, as its newest run knows them: what older runs did without such a setting."""
    by_age = sorted(runs, key=lambda run: str(run.manifest.get("finished_at", "")))
    return {run.stage: run.manifest["defaults"] for run in by_age if "defaults" in run.manifest}


def _key(stage: StageFolder, defaults: dict[str, dict[str, Any]], leave_out: frozenset[str]) -> str:
    """What decides a run, as text. An input's path does not: its content hash does."""
    plan = stage.manifest.get("plan") or {}
    inputs = stage.manifest.get("inputs") or {}
    paths = {entry.get("path") for entry in inputs.values()}
    kept = {
        name: value
        for name, value in (defaults.get(stage.stage, {}) | (plan.get("settings") or stage.settings)).items()
        if name not in leave_out and not (isinstance(value, str) and value in paths)
    }
    digests = {name: entry.get("sha256") for name, entry in inputs.items()}
    return json.dumps([stage.stage, kept, digests], sort_keys=True, default=str)


def _tell_apart(found: list[Configuration], defaults: dict[str, dict[str, Any]]) -> None:
    """Where labels coincide, name the settings that differ, but not those at their default."""
    by_label: dict[str, list[Configuration]] = {}
    for one in found:
        by_label.setdefault(one.label, []).append(one)
    for same in by_label.values():
        if len(same) == 1:
            continue
        flat = [defaults.get(one.first.stage, {}) | _flat(one.first.settings) for one in same]
        names = sorted({name for settings in flat for name in settings} - NOT_CONFIGURATION)
        differing = [name for name in names if len({repr(settings.get(name)) for settings in flat}) > 1]
        for one, settings in zip(same, flat, strict=True):
            usual = defaults.get(one.first.stage, {})
            told = [name for name in differing if name not in usual or settings.get(name) != usual[name]]
            one.suffix = ", ".join(f"{name}={_told(settings.get(name))}" for name in told)
        suffixes = [one.suffix for one in same]
        for one in same:
            if suffixes.count(one.suffix) > 1:  # they differ in what their inputs hold
                one.suffix = ", ".join(filter(None, [one.suffix, one.first.name]))


def _told(value: Any) -> str:
    """A setting's value, without the folders of paths."""
    if isinstance(value, list):
        return " + ".join(map(_told, value))
    return short_name(value) if isinstance(value, str) else str(value)


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _find(value: Any, key: str) -> Any:
    """First value of ``key`` in nested dicts, the outermost first."""
    if not isinstance(value, dict):
        return None
    if value.get(key):
        return value[key]
    return next((found for item in value.values() if (found := _find(item, key))), None)


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError.at(path, None, f"not JSON ({error})", "Run the stage again.") from None


def read_rows(path: Path) -> Iterable[dict[str, Any]]:
    """Rows of a file of JSON lines; none where there is no such file. InputError names a file with a broken one."""
    try:
        yield from iterate_jsonl(path)
    except FileNotFoundError:
        return
    except ValueError as error:
        raise InputError.at(path, None, f"a row is not JSON ({error})", "Run the stage again.") from None
