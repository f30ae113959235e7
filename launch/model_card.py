"""The model card of a pushed model, rendered from its manifest and those nested in it.

A manifest holds its inputs' manifests, so the chain (corpus, tweet MLM, CoNLL-2003 MLM, NER) is read from the last
one alone. Nothing is said of the data or the training that the manifests do not record.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData

from launch.scrub import redact, scrub

TEMPLATE = Path(__file__).with_name("model_card_template.md")
NER_STAGE, MLM_STAGE = "finetune/ner", "pretrain/mlm"
CONVENTIONS = {
    "conlleval": "as the CoNLL-2003 script counts: an I- tag that follows nothing of its type begins an entity",
    "strict": "a valid tag sequence is required: an entity begins with B-, an orphan I- tag is no entity",
}
HASH_DIGITS = 12
KEY_SETTINGS_SHOWN = 8
# Substrings of setting names, the telling ones first: what a reader of the chain looks for.
KEY_SETTINGS = (
    "head scheme image_words learning_rate batch epoch step budget mask max_length warmup weight_decay precision "
    "encoder language lang dedup duplicate min_ max_".split()
)
# Settings that say where and how a stage ran, not what it made.
NO_KEY_SETTINGS = frozenset("output resume overwrite dry_run push_to_hub hub_private hub_license seed".split())


@dataclass(frozen=True)
class ChainStage:
    """One stage of the chain that led to the model."""

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


def render_model_card(
    manifest: dict[str, Any],
    scores: dict[str, Any] | None,
    *,
    repo_id: str | None = None,
    license: str = "apache-2.0",
    config: dict[str, Any] | None = None,
) -> str:
    """The card's Markdown, with its YAML header.

    ``manifest`` is the training stage's; ``scores`` the content of ``scores.json`` (NER) or None; ``repo_id`` is where
    the model is going, for the usage snippet; ``license`` that of the weights, by the Hub's name for it; ``config``
    the model's ``config.json``, which tells whether it comes with code of its own (``auto_map``).
    """
    manifest, scores = scrub(manifest), scrub(scores)
    chain = read_chain(manifest)
    is_ner = manifest["stage"] == NER_STAGE
    auto_map = (config or {}).get("auto_map") or {}
    settings = manifest.get("settings") or {}
    default_class = "AutoModelForTokenClassification" if is_ner else "AutoModelForMaskedLM"
    name = (repo_id or chain[-1].artefact).rpartition("/")[2]
    header = ModelCardData(
        language="en",
        license=license,
        library_name="transformers",
        pipeline_tag="token-classification" if is_ner else "fill-mask",
        base_model=base_model(chain),
        tags=_tags(settings, is_ner),
        metrics=["precision", "recall", "f1"] if is_ner and scores else None,
        model_name=name,
        eval_results=_eval_results(chain, scores) or None,
    )
    if not header.eval_results:
        header.model_name = None  # it only names the results
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(cell=_cell, percent=_percent, duration=_duration, yaml=_yaml, number=_number)
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        header=header.to_yaml(),
        name=name,
        model=repo_id or "PATH_OR_REPOSITORY",
        model_class=next((key for key in auto_map if key.startswith("AutoModel")), default_class),
        needs_code=bool(auto_map) or settings.get("head") == "crf",
        is_ner=is_ner,
        settings=settings,
        head=settings.get("head", "softmax"),
        base=base_model(chain),
        chain=chain,
        trainings=[stage for stage in chain if stage.trains],
        rows=[_chain_row(stage) for stage in chain],
        stage_names={stage.name for stage in chain},
        synthetic=any((stage.manifest.get("facts") or {}).get("synthetic") for stage in chain),
        image_words=settings.get("image_words", "none") if is_ner else "none",
        image_word_source=_first_fact(chain, "image_words_source"),
        scores=_splits(scores),
        conventions=CONVENTIONS,
        facts=_scalars(manifest.get("facts") or {}) if not is_ner else {},
        manifest=manifest,
        license=license,
        total_seconds=sum(stage.manifest.get("wall_seconds") or 0 for stage in chain),
    )
    return redact(text)


def read_chain(manifest: dict[str, Any]) -> list[ChainStage]:
    """The stages behind a manifest and its own, each once, in the order in which they can have run."""
    stages: dict[str, ChainStage] = {}

    def visit(node: dict[str, Any], artefact: str, digest: str | None) -> None:
        inputs = [entry for entry in _inputs(node) if entry["manifest"]]
        # The encoder's history comes before the data of the stage that went on with it.
        for entry in sorted(inputs, key=lambda entry: entry["manifest"]["stage"].startswith("data_prep/")):
            visit(entry["manifest"], _folder_name(entry["path"]), entry["sha256"])
        key = node.get("fingerprint") or f"{node['stage']} {artefact} {digest}"
        stages.setdefault(key, ChainStage(node["stage"], artefact, digest, node))

    visit(manifest, _folder_name(str((manifest.get("settings") or {}).get("output") or "model")), None)
    return list(stages.values())


def base_model(chain: list[ChainStage]) -> str | None:
    """The Hub id of the encoder the first training stage started from; None for a folder or a new encoder."""
    for stage in chain:
        for entry in _inputs(stage.manifest):
            if stage.trains and entry["name"] in ("encoder", "model") and entry["path"].startswith("hub:"):
                return entry["path"].removeprefix("hub:").partition("@")[0]
    return None


def _inputs(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The inputs as ``{"name", "path", "sha256", "manifest"}``."""
    return [
        {"name": name, "path": str(entry["path"]), "sha256": entry.get("sha256"), "manifest": entry.get("manifest")}
        for name, entry in (manifest.get("inputs") or {}).items()
        if entry
    ]


def _folder_name(path: str) -> str:
    return PurePosixPath(path).name or path


def _tags(settings: dict[str, Any], is_ner: bool) -> list[str]:
    tags = ["social-media", "tweets", "bert"]
    if is_ner:
        tags = ["named-entity-recognition", *tags]
        tags += ["crf"] if settings.get("head") == "crf" else []
        tags += ["multimodal"] if settings.get("image_words", "none") != "none" else []
    return tags


def _eval_results(chain: list[ChainStage], scores: dict[str, Any] | None) -> list[EvalResult]:
    """One result per split, convention and measure, as fractions. MLM: the recorded perplexity, if any."""
    last = chain[-1].manifest
    data = next((entry for entry in _inputs(last) if entry["name"] == "data"), None)
    data_name = _folder_name(data["path"]) if data else "unknown"
    common: dict[str, Any] = {"dataset_type": data_name, "dataset_name": data_name}
    if data and data["sha256"]:
        common["dataset_args"] = {"sha256": data["sha256"]}
    if last["stage"] != NER_STAGE:
        perplexity = _find_number(last.get("facts") or {}, "perplexity")
        if perplexity is None:
            return []
        task = {"task_type": "fill-mask", "task_name": "Masked language modelling", "dataset_split": "validation"}
        return [EvalResult(metric_type="perplexity", metric_value=round(perplexity, 4), **task, **common)]
    results = []
    for split, by_convention in _splits(scores).items():
        for convention in by_convention:
            for measure in ("f1", "precision", "recall"):
                results.append(
                    EvalResult(
                        task_type="token-classification",
                        task_name="Named-entity recognition",
                        dataset_split=split,
                        metric_type=measure,
                        metric_name=f"{measure.capitalize()} ({convention}, micro)",
                        metric_value=round(by_convention[convention]["micro"][measure], 4),
                        metric_args={"convention": convention},
                        **common,
                    )
                )
    return results


def _splits(scores: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """``scores`` by split, the test split first, with the conventions only."""
    order = sorted(scores or {}, key=lambda split: (split != "test", split))
    return {split: {name: (scores or {})[split][name] for name in CONVENTIONS} for split in order}


def _chain_row(stage: ChainStage) -> dict[str, Any]:
    manifest = stage.manifest
    rows = manifest.get("rows") or {}
    return {
        "stage": stage.name,
        "artefact": stage.artefact,
        "digest": (stage.digest or "")[:HASH_DIGITS],
        "reads": [
            {
                "name": _input_name(entry["path"]),
                "digest": "" if _is_hub(entry) else (entry["sha256"] or "")[:HASH_DIGITS],
            }
            for entry in _inputs(manifest)
        ],
        "taken": rows.get("taken"),
        "kept": rows.get("kept"),
        "rejected": {reason: count for reason, count in (rows.get("rejected") or {}).items() if count},
        "settings": _key_settings(manifest.get("settings") or {}),
        "seeds": manifest.get("seeds") or [],
    }


def _is_hub(entry: dict[str, Any]) -> bool:
    return entry["path"].startswith("hub:")


def _input_name(path: str) -> str:
    return path if path.startswith("hub:") else _folder_name(path)


def _key_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The few settings that a reader of the chain looks for; the card lists all of them further down."""
    flat = {name: value for name, value in _scalars(settings).items() if name not in NO_KEY_SETTINGS}

    def rank(name: str) -> int:
        return next((place for place, part in enumerate(KEY_SETTINGS) if part in name), len(KEY_SETTINGS))

    telling = sorted((name for name in flat if rank(name) < len(KEY_SETTINGS)), key=rank)
    return {name: flat[name] for name in telling[:KEY_SETTINGS_SHOWN]}


def _scalars(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings or facts as ``{"optimizer.learning_rate": 1e-4}``, without lists and empty values."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat.update(_scalars(item, f"{prefix}{key}."))
        elif item is not None and not isinstance(item, list):
            flat[f"{prefix}{key}"] = item
    return flat


def _find_number(facts: dict[str, Any], name: str) -> float | None:
    """The number that ``facts`` holds under ``name``, at the top or the first place further down."""
    for key, value in _scalars(facts).items():
        if key.rpartition(".")[2] == name and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _first_fact(chain: list[ChainStage], name: str) -> str | None:
    return next((str(s.manifest["facts"][name]) for s in chain if (s.manifest.get("facts") or {}).get(name)), None)


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
