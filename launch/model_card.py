"""The model card of a pushed model, rendered from its manifest and those nested in it."""

from __future__ import annotations

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from launch.card import ChainStage, chain_row, folder_name, inputs_of, read_chain, render, scalars
from launch.scrub import redact, scrub

ENCODER_STAGES = ("finetune/ner", "finetune/distill", "finetune/average")
WORD_STAGES = ("finetune/word_ner", "finetune/word_distill")
"""What trains recognizers, on encoders and on word vectors."""
CONVENTIONS = {
    "conlleval": "as the CoNLL-2003 script counts: an I- tag that follows nothing of its type begins an entity",
    "strict": "a valid tag sequence is required: an entity begins with B-, an orphan I- tag is no entity",
}


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
    is_ner = manifest["stage"] in (*ENCODER_STAGES, *WORD_STAGES)
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
        tags=_tags(manifest, is_ner),
        metrics=["precision", "recall", "f1"] if is_ner and scores else None,
        model_name=name,
        eval_results=_eval_results(chain, scores) or None,
    )
    if not header.eval_results:
        header.model_name = None  # it only names the results
    text = render(
        "model_card_template.md",
        header=header.to_yaml(),
        name=name,
        model=repo_id or "PATH_OR_REPOSITORY",
        model_class=next((key for key in auto_map if key.startswith("AutoModel")), default_class),
        needs_code=bool(auto_map) or _head(manifest) == "crf",
        is_ner=is_ner,
        word_system=_word_system(manifest),
        settings=settings,
        word_shapes=(config or {}).get("word_shapes") or (settings.get("input") or {}).get("word_shapes"),
        head=_head(manifest),
        base=base_model(chain),
        chain=chain,
        trainings=[stage for stage in chain if stage.trains],
        rows=[chain_row(stage) for stage in chain],
        stage_names={stage.name for stage in chain},
        synthetic=any((stage.manifest.get("facts") or {}).get("synthetic") for stage in chain),
        image_words=_image_words(manifest),
        image_side=(manifest.get("facts") or {}).get("image_side"),
        image_word_source=_first_fact(chain, "image_words_source"),
        scores=_splits(scores),
        conventions=CONVENTIONS,
        facts=scalars(manifest.get("facts") or {}) if not is_ner else {},
        manifest=manifest,
        license=license,
        total_seconds=sum(stage.manifest.get("wall_seconds") or 0 for stage in chain),
    )
    return redact(text)


def base_model(chain: list[ChainStage]) -> str | None:
    """The Hub id of the encoder the first training stage started from; None for a folder or a new encoder."""
    for stage in chain:
        for entry in inputs_of(stage.manifest):
            if stage.trains and entry["name"] in ("encoder", "model") and entry["path"].startswith("hub:"):
                return entry["path"].removeprefix("hub:").partition("@")[0]
    return None


def _head(manifest: dict[str, Any]) -> str:
    """What decides the labels: a setting, or of an average a fact."""
    facts, settings = manifest.get("facts") or {}, manifest.get("settings") or {}
    return settings.get("head") or facts.get("head") or "softmax"


def _word_system(manifest: dict[str, Any]) -> str | None:
    """The name of a system on word vectors; None for what has an encoder."""
    return manifest["facts"]["system"] if manifest["stage"] in WORD_STAGES else None


def _image_words(manifest: dict[str, Any]) -> str:
    """``given``, ``shuffled``, or ``none`` where the model reads none."""
    reads_them = (manifest.get("facts") or {}).get("reads_image_words", manifest["stage"] in ENCODER_STAGES)
    return (manifest.get("settings") or {}).get("image_words", "none") if reads_them else "none"


def _tags(manifest: dict[str, Any], is_ner: bool) -> list[str]:
    tags = ["social-media", "tweets", "word-vectors" if _word_system(manifest) else "bert"]
    if is_ner:
        tags = ["named-entity-recognition", *tags]
        tags += ["crf"] if _head(manifest) == "crf" or _word_system(manifest) else []
        tags += ["multimodal"] if _image_words(manifest) != "none" else []
    return tags


def _eval_results(chain: list[ChainStage], scores: dict[str, Any] | None) -> list[EvalResult]:
    """One result per split, convention and measure, as fractions. MLM: the recorded perplexity, if any."""
    last = chain[-1].manifest
    data = next((entry for entry in inputs_of(last) if entry["name"] == "data"), None)
    data_name = folder_name(data["path"]) if data else "unknown"
    common: dict[str, Any] = {"dataset_type": data_name, "dataset_name": data_name}
    if data and data["sha256"]:
        common["dataset_args"] = {"sha256": data["sha256"]}
    if last["stage"] not in (*ENCODER_STAGES, *WORD_STAGES):
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


def _find_number(facts: dict[str, Any], name: str) -> float | None:
    """The number that ``facts`` holds under ``name``, at the top or the first place further down."""
    for key, value in scalars(facts).items():
        if key.rpartition(".")[2] == name and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    return None


def _first_fact(chain: list[ChainStage], name: str) -> str | None:
    return next((str(s.manifest["facts"][name]) for s in chain if (s.manifest.get("facts") or {}).get(name)), None)
