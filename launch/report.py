"""One self-contained HTML page of a pipeline run: scores beside the paper's, curves, confusions, tweets, data.

    python -m launch.report RUN_FOLDER [--output report.html]

RUN_FOLDER holds one finished stage folder per sub-folder. The page loads nothing from elsewhere, and whatever it quotes
(tweets, image words, settings) is escaped: texts come from strangers. Stages that are missing are said to be missing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from launch.charts import Bar, Line, Node, bar_chart, chain_diagram, line_chart, thin_out
from launch.error_page import ErrorPage, error_pages
from launch.errors import InputError
from launch.gallery import build_gallery
from launch.page import hash_of_script, write_page
from launch.paper_tables import SOURCE, TEST_TWEETS
from launch.results import (
    CONVENTIONS,
    ENTITY_TYPES,
    IMAGE_WORDS,
    Configuration,
    StageFolder,
    best_on_dev,
    configurations,
    ends_family,
    families,
    find_stages,
    is_weights,
    short_name,
)
from launch.score_table import COLUMNS, markdown_table, print_table, short_commit

__all__ = ["main", "markdown_table", "print_table", "write_report"]

IMAGE_WORDS_COLOURS = {"given": "c1", "shuffled": "c2", "none": "c3"}
COMPARE_STAGE = "finetune/compare"
STAGE_TITLES = {
    "clean": "Clean posts",
    "conll2003": "CoNLL-2003",
    "label_images": "Image words",
    "mlm": "MLM",
    "ner": "NER",
    "tmn": "TMN",
}

SCRIPT = """
for (const bar of document.querySelectorAll('.filters')) {
  bar.hidden = false;
  bar.addEventListener('click', event => {
    const button = event.target.closest('button');
    if (!button) return;
    for (const other of bar.querySelectorAll('button')) other.setAttribute('aria-pressed', other === button);
    for (const tweet of document.querySelectorAll('.tweet'))
      tweet.hidden = button.value !== 'all' && !tweet.dataset.kinds.split(' ').includes(button.value);
  });
}
"""


def write_report(run_folder: Path, stages: list[Path], output: Path, title: str) -> Path:
    """Write the page and return ``output``; the error browser's pages go into a folder ``<name>_errors`` beside it.

    Args:
        run_folder: the pipeline run that the page is named after.
        stages: finished stage folders; any of the chain may be missing.
        output: the HTML file to write, whole or not at all.
        title: heading of the page.

    Raises:
        InputError: a stage folder lacks a readable manifest, or one of its files is broken.

    """
    found = [StageFolder(folder) for folder in stages]
    output = Path(output)
    errors = output.with_name(f"{output.stem}_errors")
    groups = configurations(found)
    pages = error_pages(groups)
    context = _context(found, groups) | {"title": title, "run_name": Path(run_folder).resolve().name}
    context |= {"error_pages": _addresses(pages, errors.name), "error_folder": errors.name}
    written = {page.write(errors, output) for page in pages}
    write_page(output, "report_template.html", context)
    for page in errors.glob("*.html"):
        if page not in written:  # of a run that is gone
            page.unlink()
    return output


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code, 2 for a folder that cannot be reported."""
    parser = argparse.ArgumentParser(prog="python -m launch.report", description=__doc__.partition("\n")[0])
    parser.add_argument("run_folder", type=Path, help="holds one finished stage folder per sub-folder")
    parser.add_argument("--output", type=Path, help="HTML file to write (default: RUN_FOLDER/report.html)")
    parser.add_argument("--title", help="heading of the page (default: the folder's name)")
    arguments = parser.parse_args(argv)
    try:
        stages = find_stages(arguments.run_folder)
        if not stages:
            raise InputError(
                f"{arguments.run_folder}: no finished stage in it. Its sub-folders must hold a manifest.json each."
            )
        output = arguments.output or arguments.run_folder / "report.html"
        title = arguments.title or arguments.run_folder.resolve().name
        write_report(arguments.run_folder, stages, output, title)
        print(print_table(stages))
    except InputError as error:
        print(f"launch.report: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"launch.report: error: {error.filename}: {error.strerror}. Choose another --output.", file=sys.stderr)
        return 2
    print(f"\nReport: {output}")
    return 0


def _addresses(pages: list[ErrorPage], folder: str) -> dict[str, list[tuple[str, str]]]:
    """Name and address of each configuration's error pages, by its label."""
    found: dict[str, list[tuple[str, str]]] = {}
    for page in pages:
        found.setdefault(page.context["label"], []).append((page.run.name, f"{quote(folder)}/{page.address}"))
    return found


def _context(stages: list[StageFolder], found: list[Configuration]) -> dict[str, Any]:
    best = best_on_dev(found)
    family_views = [_family(family) for family in families(found)]
    return {
        "script": Markup(SCRIPT),
        "script_hash": hash_of_script(SCRIPT),
        "run": _run(stages),
        "diagram": _diagram(stages),
        "columns": COLUMNS,
        "configurations": [
            _configuration(one, best) | {"ends_family": ends_family(found, place)} for place, one in enumerate(found)
        ],
        "best": _headline(best, family_views),
        "paper_source": SOURCE,
        "paper_tweets": TEST_TWEETS,
        "paper_notes": sorted(
            {f"{one.paper.system}: {one.paper.note}" for one in found if one.paper and one.paper.note}
        ),
        "has_paper": any(one.paper for one in found),
        "has_paper_ticks": any(one.paper and one.is_papers_data for one in found),
        "other_data": sorted({one.test_tweets or 0 for one in found if not one.is_papers_data}),
        "several_seeds": any(len(one.runs) > 1 for one in found),
        "stand_in": any(one.encoder_size == (4, 384) for one in (c.first for c in found)),
        "image_words_facts": _distinct_facts(stages, "image_words"),
        "encoder_facts": _unique(map(_encoder_in_words, _distinct_facts(stages, "encoder"))),
        "families": family_views,
        "mlm": [_mlm(stage) for stage in stages if stage.is_mlm],
        "gallery": build_gallery(found),
        "data": _data_stages(stages),
        "stages": [_stage_row(stage) for stage in stages],
    }


def _run(stages: list[StageFolder]) -> dict[str, Any]:
    manifests = [stage.manifest for stage in stages]
    finished = sorted(str(m["finished_at"]) for m in manifests if m.get("finished_at"))
    machines = _unique(_machine(m.get("machine")) for m in manifests)
    versions: dict[str, set[str]] = {}
    for manifest in manifests:
        for package, version in (manifest.get("versions") or {}).items():
            versions.setdefault(package, set()).add(str(version))
    return {
        "first": _when(finished[0]) if finished else "",
        "last": _when(finished[-1]) if finished else "",
        "wall": _duration(sum(m.get("wall_seconds") or 0 for m in manifests)),
        "stages": len(stages),
        "machines": machines,
        "commits": _unique(short_commit(m.get("git_commit")) for m in manifests),
        "versions": [f"{package} {', '.join(sorted(v))}" for package, v in versions.items()],
    }


def _diagram(stages: list[StageFolder]) -> Markup:
    """The chain, from the inputs that the manifests nest. NER runs that read the same inputs share a box."""
    nodes: dict[str, Node] = {}
    runs: dict[str, list[StageFolder]] = {}

    def add(manifest: dict[str, Any], name: str, scored: StageFolder | None = None) -> str:
        inputs = manifest.get("inputs") or {}
        stage = str(manifest.get("stage", "?"))
        kind = stage.rpartition("/")[2]
        digests = sorted(str(entry.get("sha256")) for entry in inputs.values())
        key = f"ner {digests}" if scored else f"{stage} {manifest.get('fingerprint') or name}"
        if scored:
            runs.setdefault(key, []).append(scored)
        if key in nodes:
            return key
        node = nodes[key] = Node(
            key,
            STAGE_TITLES.get(kind, kind),
            [name, _node_fact(manifest)],
            "weights" if stage.startswith(("pretrain/", "finetune/")) else "data",
        )
        for input_name, entry in inputs.items():
            path = short_name(str(entry.get("path", "?")))
            if entry.get("manifest"):
                source = add(entry["manifest"], path)
            else:
                # A source of its own for each reader: no line has to cross the diagram.
                source = f"source {entry.get('sha256') or path} for {key}"
                nodes.setdefault(source, Node(source, path, [input_name.replace("_", " ")], "source"))
            node.inputs.append((source, is_weights(input_name, entry)))
        return key

    for stage in stages:
        if stage.stage != COMPARE_STAGE:  # it reads every recognizer, and makes neither data nor weights
            add(stage.manifest, stage.name, stage if stage.is_ner else None)
    for key, members in runs.items():
        groups = configurations(members)
        best = best_on_dev(groups)
        score = best.score("conlleval", "micro", "f1") if best else None
        count = f"{len(members)} {_plural('run', members)}, {len(groups)} {_plural('configuration', groups)}"
        nodes[key].lines = [count, f"best on dev: test F1 {score.mean:.1f}" if score else "no scores"]
    return chain_diagram(
        list(nodes.values()), "How the stages follow from each other, from the sources to the recognizers"
    )


def _node_fact(manifest: dict[str, Any]) -> str:
    rows = manifest.get("rows") or {}
    if rows.get("taken"):
        return f"{rows['kept']:,} of {rows['taken']:,} rows"
    facts = manifest.get("facts") or {}
    for key in ("perplexity", "validation_perplexity"):
        if isinstance(facts.get(key), int | float):
            return f"perplexity {facts[key]:.2f}"
    return _duration(manifest.get("wall_seconds") or 0)


def _configuration(one: Configuration, best: Configuration | None) -> dict[str, Any]:
    paper = one.paper
    return {
        "label": one.label,
        "encoder": one.encoder,
        "chain": one.chain,
        "head": one.head_text,
        "image_words": one.image_words,
        "suffix": one.suffix,
        "seeds": ", ".join(str(seed) for seed in one.seeds),
        "n": len(one.runs),
        "is_best": one is best,
        "lines": [
            {"convention": convention, "cells": one.table_row(convention)}
            for convention in CONVENTIONS
            if one.score(convention, "micro", "f1")
        ],
        "paper": {
            "system": paper.system,
            "cells": [*paper.by_type.values(), paper.precision, paper.recall, paper.f1],
            "note": bool(paper.note),
            "other_data": not one.is_papers_data,
        }
        if paper
        else None,
        "curve": _f1_curve(one),
        "by_type": _by_type(one),
        "confusion": _confusion(one),
        "truncated": _truncated(one),
    }


def _headline(best: Configuration | None, family_views: list[dict[str, Any]]) -> dict[str, Any] | None:
    if best is None:
        return None
    effect = next((f for f in family_views if best.label in f["labels"]), None)
    return {
        "label": best.label,
        "n": len(best.runs),
        "scores": [(name, best.score(name, "micro", "f1")) for name in CONVENTIONS],
        "paper": best.paper if best.is_papers_data else None,
        "effect": effect["differences"][0] if effect and effect["differences"] else None,
    }


def _family(family: dict[str, Configuration]) -> dict[str, Any]:
    """Given against shuffled against none: bars of test F1 and the differences by type."""
    bars = []
    for name, one in family.items():
        score = one.score("conlleval", "micro", "f1")
        if score:
            bars.append(Bar(name, score.mean, IMAGE_WORDS_COLOURS.get(name, "muted"), score.text(), score.sd))
    given = family.get("given")
    differences = []
    for other in IMAGE_WORDS[1:]:
        if given and other in family:
            cells = [given.minus(family[other], "conlleval", "by_type", kind, "f1") for kind in ENTITY_TYPES]
            overall = given.minus(family[other], "conlleval", "micro", "f1")
            differences.append({"name": f"given − {other}", "overall": overall, "cells": cells})
    label = next(iter(family.values())).family_name
    return {
        "label": label,
        "labels": [member.label for member in family.values()],
        "chart": bar_chart(
            bars,
            f"Test F1 by image words, {label}",
            high=100,
            axis_label="test F1, conlleval (%), from 0 to 100",
        ),
        "differences": [d for d in differences if d["overall"]],
    }


def _mlm(stage: StageFolder) -> dict[str, Any]:
    train = _points(stage, "train", "step", "loss")
    validation = _points(stage, "evaluate", "step", "loss")
    last = next((row for row in reversed(stage.metrics) if row.get("event") == "evaluate"), {})
    perplexity = last.get("perplexity")
    lines = [
        Line(thin_out(train), "muted", "training", 1.2, 0.8),
        Line(validation, "c1", f"validation {validation[-1][1]:.2f}" if validation else "", 2),
    ]
    speeds = [row["tokens_per_second"] for row in stage.metrics if row.get("tokens_per_second")]
    return {
        "name": stage.name,
        "seed": stage.seed,
        "perplexity": f"{perplexity:.2f}" if isinstance(perplexity, int | float) else None,
        "speed": f"{statistics.median(speeds):,.0f}" if speeds else None,
        "wall": _duration(stage.manifest.get("wall_seconds") or 0),
        "chart": line_chart(
            lines, "optimizer step", "loss (nats per masked piece)", f"Loss of {stage.name} by optimizer step"
        ),
    }  # fmt: skip


def _f1_curve(one: Configuration) -> Markup:
    """Dev F1 of each seed, the best epoch ringed."""
    lines = []
    for run in one.runs:
        key = "epoch" if any("epoch" in row for row in run.metrics) else "step"
        points = [(x, 100 * y) for x, y in _points(run, "evaluate", key, "f1_conlleval")]
        mark = max(points, key=lambda p: p[1], default=None)
        lines.append(Line(points, "c1", "", 1.3 if len(one.runs) > 1 else 2, 0.75, mark))
    marks = [line.mark[1] for line in lines if line.mark]
    return line_chart(
        lines,
        "epoch",
        "dev F1, conlleval (%)",
        f"Dev F1 by epoch of {one.label}, best {max(marks):.1f}" if marks else f"Dev F1 of {one.label}",
        size=(300, 180),
    )


def _by_type(one: Configuration) -> Markup:
    bars = []
    for kind in ENTITY_TYPES:
        score = one.score("conlleval", "by_type", kind, "f1")
        if score:
            reference = one.paper.by_type[kind] if one.paper and one.is_papers_data else None
            bars.append(Bar(kind, score.mean, "c1", score.text(), score.sd, reference))
    return bar_chart(
        bars,
        f"Test F1 by entity type of {one.label}",
        high=100,
        width=300,
        axis_label="test F1, conlleval (%), from 0 to 100",
        reference_label="paper" if one.paper and one.is_papers_data else "",
    )


def _confusion(one: Configuration) -> dict[str, Any] | None:
    found = one.confusion()
    if not found:
        return None
    labels, matrix = found
    rows = []
    for row, (label, counts) in enumerate(zip(labels, matrix, strict=True)):
        total = sum(counts)
        cells = [
            None if label == labels[column] == "none" else (count, count / total if total else 0.0, row == column)
            for column, count in enumerate(counts)
        ]
        rows.append((label, cells))
    return {"labels": labels, "rows": rows}


def _truncated(one: Configuration) -> int:
    return sum((run.scores.get("test") or {}).get("words_truncated") or 0 for run in one.runs)


def _points(stage: StageFolder, event: str, x: str, y: str) -> list[tuple[float, float]]:
    return [
        (float(row[x]), float(row[y]))
        for row in stage.metrics
        if row.get("event") == event and isinstance(row.get(x), int | float) and isinstance(row.get(y), int | float)
    ]


def _distinct_facts(stages: list[StageFolder], key: str) -> list[Any]:
    """What stages anywhere in the chain recorded under ``key``, each thing once."""
    return _unique(
        _without_folders(m["facts"][key]) for m in _all_manifests(stages).values() if (m.get("facts") or {}).get(key)
    )


def _encoder_in_words(fact: Any) -> Any:
    """The shape of an encoder in one line; what is not described as `launch.training_stage` does stays as it is."""
    if not isinstance(fact, dict) or "architecture" not in fact:
        return fact
    shape = f"{fact['layers']} layers × {fact['hidden size']}, {fact['attention heads']} heads"
    return f"{fact['architecture']}, {shape}, vocabulary {int(fact['vocabulary size']):,}"


def _all_manifests(stages: list[StageFolder]) -> dict[str, dict[str, Any]]:
    """Every manifest of the chain by the name of its folder, nested ones included, inputs before what reads them."""
    found: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()

    def add(manifest: dict[str, Any], name: str) -> None:
        key = str(manifest.get("fingerprint") or name)
        if key in seen:
            return
        seen.add(key)
        for entry in (manifest.get("inputs") or {}).values():
            if entry.get("manifest"):
                add(entry["manifest"], short_name(str(entry.get("path", "?"))))
        while name in found:
            name += "'"
        found[name] = manifest

    for stage in stages:
        add(stage.manifest, stage.name)
    return found


def _data_stages(stages: list[StageFolder]) -> list[dict[str, Any]]:
    """Stages that made data: rows in, out and rejected, and what they recorded."""
    views = []
    for name, manifest in _all_manifests(stages).items():
        if str(manifest.get("stage", "")).startswith(("pretrain/", "finetune/")):
            continue
        rows = manifest.get("rows") or {}
        taken = rows.get("taken") or 0
        reasons = sorted((rows.get("rejected") or {}).items(), key=lambda pair: -pair[1])
        views.append(
            {
                "name": name,
                "stage": manifest.get("stage"),
                "rows": rows,
                "kept_share": rows["kept"] / taken if taken else None,
                "rejected": sum(count for _, count in reasons),
                "reasons": [(reason, count, count / taken if taken else 0) for reason, count in reasons],
                "facts": _without_folders(manifest.get("facts") or {}),
            }
        )
    return views


def _stage_row(stage: StageFolder) -> dict[str, Any]:
    manifest = stage.manifest
    return {
        "name": stage.name,
        "stage": stage.stage,
        "seed": stage.seed,
        "finished": _when(str(manifest.get("finished_at") or "")),
        "wall": _duration(manifest.get("wall_seconds") or 0),
        "commit": short_commit(manifest.get("git_commit")),
        "settings": _without_folders(stage.settings),
    }


def _without_folders(value: Any) -> Any:
    """Settings or facts with paths cut to their last part: a report is passed on, a machine's folders are not."""
    if isinstance(value, dict):
        return {_words(key): _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~", "./", "../")):
        return f"…/{short_name(value)}"
    return value


def _machine(machine: dict[str, Any] | None) -> str:
    if not machine:
        return ""
    machine = dict(machine)
    parts = [str(machine.pop("processor", ""))]
    if "cores" in machine:
        parts.append(f"{machine['cores']} {_plural('core', machine.pop('cores'))}")
    if "processes" in machine:
        parts.append(f"{machine['processes']} {_plural('process', machine.pop('processes'), 'processes')}")
    return ", ".join(part for part in [*parts, *(str(value) for value in machine.values() if value)] if part)


def _plural(noun: str, count: Any, plural: str | None = None) -> str:
    many = (count if isinstance(count, int) else len(count)) != 1
    return (plural or noun + "s") if many else noun


def _unique(values: Iterable[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if value not in found and value not in ("", None):
            found.append(value)
    return found


def _words(key: str) -> str:
    return str(key).replace("_", " ")


def _when(moment: str) -> str:
    """``2026-05-01T10:20:30+00:00`` -> ``2026-05-01 10:20 UTC``; other text as it is."""
    date, t, time = moment.partition("T")
    if not t:
        return moment
    zone = " UTC" if time.endswith(("+00:00", "Z")) else ""
    return f"{date} {time[:5]}{zone}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


if __name__ == "__main__":
    raise SystemExit(main())
