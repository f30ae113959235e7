"""The report and the score tables, on small synthetic stage folders."""

from __future__ import annotations

import ast
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import launch.report as report
from launch.charts import Bar, Line, Node, bar_chart, chain_diagram, line_chart, thin_out, ticks
from launch.errors import InputError
from launch.gallery import build_gallery, spans
from launch.paper_tables import TABLE_4, msb_system, table_4_row
from launch.results import Mean, StageFolder, best_on_dev, configurations, encoder_lineage, find_stages

TYPES = ["PER", "LOC", "ORG", "MISC"]
ATTACK = "<script>alert('x')</script>"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Scripts, attributes and texts of a page; raises where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.text += data


class Run:
    """Builds finished stage folders under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def stage(self, name: str, stage: str, inputs: dict | None = None, settings: dict | None = None, **entries) -> dict:
        self.count += 1
        manifest = {
            "stage": stage,
            "settings": {"output": f"/secret/place/{name}", "resume": "auto", **(settings or {})},
            "inputs": inputs or {},
            "seeds": [settings["seed"]] if settings and "seed" in settings else [],
            "rows": None,
            "facts": {},
            "git_commit": "0123456789abcdef",
            "versions": {"python": "3.11.2"},
            "machine": {"processor": "Some CPU", "cores": 2},
            "wall_seconds": 75.0,
            "finished_at": f"2026-05-01T10:{self.count:02d}:00+00:00",
            "fingerprint": f"fingerprint-{name}",
            **entries,
        }
        (self.folder / name).mkdir(parents=True)
        (self.folder / name / "manifest.json").write_text(json.dumps(manifest))
        return {"path": f"/secret/place/{name}", "sha256": f"sha-{name}", "manifest": manifest}

    def metrics(self, name: str, rows: list[dict]) -> None:
        (self.folder / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def data(self) -> dict:
        rows = {"taken": 100, "kept": 90, "rejected": {"not_english": 7, ATTACK: 3}}
        facts = {"orphans_repaired": {"train": 186}, "image_words": "five <b>words</b> of a table"}
        return self.stage("tmn", "data_prep/tmn", {"annotations": source("/secret/raw/tmn")}, rows=rows, facts=facts)

    def mlm(self) -> dict:
        corpus = self.stage("tweets", "data_prep/clean", {"posts": source("/secret/raw/posts.jsonl")})
        inputs = {"corpus": corpus, "encoder": source("hub:google/bert-tiny@abc")}
        stage = self.stage("mlm_tweets", "pretrain/mlm", inputs, {"seed": 0})
        self.metrics(
            "mlm_tweets",
            [
                {"event": "train", "step": 10, "loss": 8.0, "tokens_per_second": 1000},
                {"event": "train", "step": 20, "loss": 7.0, "tokens_per_second": 3000},
                {"event": "evaluate", "split": "validation", "step": 20, "loss": 6.5, "perplexity": 665.14},
            ],
        )
        return stage

    def ner(
        self, name: str, data: dict, encoder: dict, f1: float, seed: int, image_words: str = "given", head: str = "crf",
        predictions: list[dict] | None = None, tweets: int = 3257, **settings,
    ) -> None:  # fmt: skip
        settings = {"head": head, "scheme": "BIO", "image_words": image_words, "seed": seed, **settings}
        settings |= {"data": data["path"], "encoder": encoder["path"]}
        self.stage(name, "finetune/ner", {"data": data, "encoder": encoder}, settings)
        folder = self.folder / name
        (folder / "config.json").write_text('{"encoder": {"num_hidden_layers": 2, "hidden_size": 128}}')
        self.metrics(
            name,
            [
                {
                    "event": "evaluate",
                    "split": "validation",
                    "step": 10 * e,
                    "epoch": e,
                    "f1_conlleval": f1 - 0.1 / e,
                }
                for e in (1, 2, 3)
            ],
        )
        scores = {
            split: {
                "conlleval": counts(f1 + shift),
                "strict": counts(f1 + shift - 0.01),
                "confusion": {
                    "labels": [*TYPES, "none"],
                    "matrix": [[i * 5 + j for j in range(5)] for i in range(5)],
                },
                "words_truncated": 2,
                "tweets": tweets,
            }
            for split, shift in (("validation", 0.02), ("test", 0.0))
        }
        (folder / "scores.json").write_text(json.dumps(scores))
        if predictions is not None:
            (folder / "predictions").mkdir()
            lines = "".join(json.dumps(row) + "\n" for row in predictions)
            (folder / "predictions" / "test.jsonl").write_text(lines)

    @property
    def stages(self) -> list[Path]:
        return find_stages(self.folder)

    def page(self) -> str:
        output = report.write_report(self.folder, self.stages, self.folder / "report.html", "A title")
        return output.read_text(encoding="utf-8")


def source(path: str) -> dict:
    return {"path": path, "sha256": f"sha-{path}", "manifest": None}


def counts(f1: float) -> dict:
    one = {"precision": f1 + 0.03, "recall": f1 - 0.03, "f1": f1, "gold": 10, "predicted": 10, "correct": 5}
    return {"micro": one, "by_type": {kind: one | {"f1": f1 - 0.1 * i} for i, kind in enumerate(TYPES)}}


def tweet(identity: str, predicted: str, words: tuple[str, ...] = ("basketball",)) -> dict:
    tokens, gold = ["Jordan", "at", "last", ATTACK], ["B-PER", "O", "O", "O"]
    tags = [predicted, "O", "O", "O"]
    return {
        "id": identity,
        "tokens": tokens,
        "gold": gold,
        "predicted": tags,
        "image_id": "1",
        "image_words": [*words],
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "my_run")


@pytest.fixture
def full(run: Run) -> Run:
    """Two seeds with given, shuffled and no image words on an MLM encoder, one softmax run, one without MLM."""
    data, encoder = run.data(), run.mlm()
    given = [tweet("a", "B-PER", ("ball", ATTACK)), tweet("b", "B-LOC"), tweet("c", "B-PER"), tweet("d", "O")]
    without = [tweet("a", "B-LOC"), tweet("b", "B-PER"), tweet("c", "B-PER"), tweet("d", "O")]
    for seed, shift in ((1, 0.0), (2, 0.02)):
        run.ner(f"ner_given_{seed}", data, encoder, 0.70 + shift, seed, predictions=given)
        run.ner(f"ner_shuffled_{seed}", data, encoder, 0.65 + shift, seed, "shuffled", predictions=without)
        run.ner(f"ner_none_{seed}", data, encoder, 0.66, seed, "none", predictions=without)
    run.ner("ner_softmax", data, encoder, 0.60, 1, head="softmax", scheme="BIOES")
    run.ner("ner_only", data, source("hub:google/bert-tiny@abc"), 0.50, 1)
    return run


def test_seeds_are_grouped_with_mean_and_sample_sd(full: Run):
    found = configurations(map(StageFolder, full.stages))
    assert [(one.chain, one.head_text, one.image_words, len(one.runs)) for one in found] == [
        ("NER only", "CRF", "given", 1),
        ("MLM on tweets → NER", "CRF", "given", 2),
        ("MLM on tweets → NER", "CRF", "shuffled", 2),
        ("MLM on tweets → NER", "CRF", "none", 2),
        ("MLM on tweets → NER", "softmax, BIOES", "given", 1),
    ]
    score = found[1].score("conlleval", "micro", "f1")
    assert score.mean == pytest.approx(71) and score.sd == pytest.approx(2**0.5) and score.n == 2
    assert found[0].score("strict", "by_type", "MISC", "f1") == Mean(pytest.approx(19), None, 1)
    assert found[1].encoder == "bert-tiny"
    assert best_on_dev(found) is found[1]


def test_differences_pair_the_seeds(full: Run):
    _, given, shuffled, none, _ = configurations(map(StageFolder, full.stages))
    assert given.minus(shuffled, "conlleval", "micro", "f1") == Mean(pytest.approx(5), pytest.approx(0, abs=1e-9), 2)
    assert given.minus(none, "conlleval", "micro", "f1").sd == pytest.approx(2**0.5)
    assert set(given.siblings) == {"given", "shuffled", "none"}


def test_other_settings_split_configurations_and_are_named(run: Run):
    data, encoder = run.data(), source("hub:google/bert-tiny@abc")
    run.ner("a", data, encoder, 0.5, 1, optimizer={"learning_rate": 1e-4})
    run.ner("b", data, encoder, 0.6, 1, optimizer={"learning_rate": 3e-4})
    labels = [one.label for one in configurations(map(StageFolder, run.stages))]
    assert len(labels) == 2 and "optimizer.learning_rate=0.0001" in labels[0] and "0.0003" in labels[1]


def test_a_setting_that_older_runs_did_not_have_had_its_default(run: Run):
    """Seeds of one configuration stay one, and are told from others, when the toolkit has got another setting."""
    data, encoder = run.data(), source("hub:google/bert-tiny@abc")
    for seed, name, settings in ((1, "old", {}), (2, "new", {"decay": 1.0}), (1, "other", {"decay": 0.8})):
        run.ner(name, data, encoder, 0.5, seed, **settings)
        path = run.folder / name / "manifest.json"
        if name != "old":
            path.write_text(json.dumps(json.loads(path.read_text()) | {"defaults": {"decay": 1.0}}))
    found = configurations(map(StageFolder, run.stages))
    assert sorted((len(one.runs), one.suffix) for one in found) == [(1, "decay=0.8"), (2, "")]


def test_other_data_splits_configurations_even_at_the_same_path(run: Run):
    data, encoder = run.data(), source("hub:google/bert-tiny@abc")
    run.ner("a", data, encoder, 0.5, 1)
    run.ner("b", data | {"sha256": "other"}, encoder, 0.6, 2)
    assert len(configurations(map(StageFolder, run.stages))) == 2


def test_lineage_names_the_first_encoder_and_the_steps(full: Run):
    manifest = json.loads((full.folder / "ner_given_1" / "manifest.json").read_text())
    assert encoder_lineage(manifest) == ("bert-tiny", ["MLM on tweets"])
    assert encoder_lineage({"stage": "finetune/ner", "inputs": {}}) == ("new", [])


def test_paper_rows_agree_with_themselves_but_for_the_noted_one():
    for row in TABLE_4:
        f1 = 2 * row.precision * row.recall / (row.precision + row.recall)
        assert (abs(f1 - row.f1) < 0.02) == (not row.note), row
    assert len(TABLE_4) == 11


@pytest.mark.parametrize(
    ("layers", "hidden", "head", "system"),
    [
        (2, 128, "crf", "MSB-Tiny + CRF"),
        (2, 128, "softmax", "MSB-Tiny"),
        (4, 512, "crf", "MSB-Small + CRF"),
        (4, 384, "softmax", "MSB-Small"),
        (6, 384, "crf", "MSB 6 x 384 + CRF"),
        (12, 768, "softmax", "MSB 12 x 768"),
    ],
)
def test_msb_is_named_by_size_and_head(layers, hidden, head, system):
    assert msb_system(layers, hidden, head) == system
    row = table_4_row(system)
    assert row.system == system if layers < 6 else row is None


def test_spans_follow_conlleval():
    assert spans(["I-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-ORG"]) == [
        (0, 2, "PER"), (3, 4, "LOC"), (4, 5, "LOC"), (5, 6, "ORG"),
    ]  # fmt: skip
    assert spans(["B-PER", "E-PER", "S-LOC", "I-LOC", "O"]) == [(0, 2, "PER"), (2, 3, "LOC"), (3, 4, "LOC")]
    assert spans([]) == [] == spans(["O"])


def test_spans_equal_seqeval_on_tag_soup():
    seqeval = pytest.importorskip("seqeval.metrics.sequence_labeling")
    from random import Random

    random = Random(0)
    tags = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC"))]
    for _ in range(500):
        soup = random.choices(tags, k=random.randrange(9))
        expected = sorted((start, end + 1, kind) for kind, start, end in seqeval.get_entities(soup))
        assert spans(soup) == expected, soup


def test_gallery_tells_what_the_image_words_decided(full: Run):
    gallery = build_gallery(configurations(map(StageFolder, full.stages)))
    assert gallery.configuration.image_words == "given"
    assert [lane.name for lane in gallery.lanes] == ["image words given", "shuffled", "no image words"]
    assert {kind: gallery.counts[kind] for kind in ("helped", "misled", "right", "wrong")} == {
        "helped": 1, "misled": 1, "right": 1, "wrong": 1,
    }  # fmt: skip
    assert (gallery.counts["all right"], gallery.counts["all wrong"], gallery.total) == (2, 2, 4)
    misled = next(shown for shown in gallery.tweets if shown.kind == "misled")
    assert misled.gold[0].label == "PER" and not misled.gold[0].wrong
    assert misled.lanes[0][0].label == "LOC" and misled.lanes[0][0].wrong and not misled.lanes[1][0].wrong
    assert misled.marked == [True, False, False, False]
    assert len(build_gallery(configurations(map(StageFolder, full.stages)), most=2).tweets) == 2


def test_page_shows_every_part(full: Run):
    page = Page(full.page())
    for text in (
        "A title", "my_run", "2026-05-01", "Some CPU, 2 cores", "01234567", "71.00 ± 1.41", "conlleval", "strict",
        "MSB-Tiny + CRF", "71.10", "+5.00", "given − none", "perplexity 665.14", "2,000 tokens/s",
        "100 rows taken, 90 kept", "not english", "orphans repaired", "186", "right only with its image words",
    ):  # fmt: skip
        assert text in re.sub(r"\s+", " ", page.text), text
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert len(charts) == 1 + 1 + 1 + 2 * 5  # chain, image words, MLM, curve and bars of five configurations
    assert all(charts)
    assert sum(tag == "table" and "confusion" in a.get("class", "") for tag, a in page.tags) == 5


def test_page_is_self_contained_and_hides_folders(full: Run):
    html = full.page()
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object")
        assert "src" not in attributes
        link = attributes.get("href", "#")
        assert link.startswith("#") or (full.folder / link).is_file()  # else it leads to an error page beside it
    assert "url(" not in html and "@import" not in html and "http://" not in html
    assert "/secret/" not in html


def test_texts_from_strangers_are_escaped(full: Run):
    output = report.write_report(full.folder, full.stages, full.folder / "r.html", ATTACK)
    html = output.read_text(encoding="utf-8")
    page = Page(html)
    assert page.scripts == [report.SCRIPT]
    assert "alert('x')</script>" not in html
    assert page.text.count(ATTACK) >= 4  # heading, tokens, an image word, a reason: all as text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_policy_allows_only_the_pages_own_script(full: Run):
    import base64
    import hashlib

    html = full.page()
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html and "default-src 'none'" in html


def test_half_an_emoji_does_not_stop_the_page(run: Run):
    row = tweet("a", "B-PER") | {"tokens": ["Jordan", "\ud83d", "\u202egnp", "ok"]}
    run.ner("ner", run.data(), source("hub:x"), 0.5, 1, predictions=[row])
    assert "Jordan" in run.page()


def test_missing_pieces_are_said(run: Run):
    run.data()
    text = Page(run.page()).text
    assert "No NER stage is finished yet" in text and "No MLM stage is finished" in text
    assert "No predictions on the test split yet" in text
    assert report.print_table(run.stages) == "No finished NER stage yet: no scores."
    assert report.markdown_table(run.stages).count("\n") == 2


def test_no_stage_at_all_still_gives_a_page(run: Run):
    run.folder.mkdir()
    assert "No stage is finished yet" in Page(run.page()).text


def test_recognizer_without_scores_or_metrics_is_shown_as_such(run: Run):
    run.ner("ner", run.data(), source("hub:x"), 0.5, 1)
    for name in ("scores.json", "metrics.jsonl", "config.json"):
        (run.folder / "ner" / name).unlink()
    text = Page(run.page()).text
    assert "no scores.json" in text and "No confusion was recorded" in text
    assert "–" in report.print_table(run.stages)


def test_other_test_data_is_not_passed_off_as_the_papers(run: Run):
    run.ner("ner", run.data(), source("hub:x"), 0.9, 1, tweets=60)
    html = run.page()
    text = re.sub(r"\s+", " ", Page(html).text)
    assert "in the paper" not in text and 'class="reference"' not in html
    assert "this run's test split has 60, so it is other data" in text
    assert "other data" in report.print_table(run.stages)


def test_small_without_crf_carries_the_papers_misprint(run: Run):
    run.ner("ner", run.data(), source("hub:x"), 0.6, 1, head="softmax")
    (run.folder / "ner" / "config.json").write_text('{"num_hidden_layers": 4, "hidden_size": 384}')
    text = Page(run.page()).text
    assert "71.47" in text and "4 layers × 384" in text
    assert "71.47" in report.print_table(run.stages)


def test_terminal_table_names_conventions_and_the_paper(full: Run):
    table = report.print_table(full.stages)
    assert "n = 2" in table and "71.00 ± 1.41" in table
    assert len(re.findall(r"^conlleval ", table, re.M)) == len(re.findall(r"^strict ", table, re.M)) == 5
    # Once after each encoder, chain and head, not after each setting of image words.
    assert len(re.findall(r"^MSB-Tiny \+ CRF \(paper\)", table, re.M)) == 2


def test_markdown_rows_hold_a_run_of_each_convention(full: Run):
    lines = report.markdown_table(full.stages).splitlines()
    assert len(lines) == 2 + 2 * 5
    assert len({line.count("|") for line in lines}) == 1
    cells = [cell.strip() for cell in lines[4].split("|")]
    assert cells[1:9] == [
        "2026-05-01",
        "01234567",
        "bert-tiny",
        "MLM on tweets → NER",
        "CRF",
        "given",
        "1, 2",
        "conlleval",
    ]
    assert cells[15] == "71.00 ± 1.41"


def test_command_writes_the_page_and_prints_the_table(full: Run, capsys):
    (full.folder / "ner_x.partial").mkdir()
    (full.folder / "not_a_stage").mkdir()
    assert report.main([str(full.folder)]) == 0
    assert (full.folder / "report.html").is_file()
    assert "71.00 ± 1.41" in capsys.readouterr().out
    assert report.main([str(full.folder), "--output", str(full.folder / "deep" / "r.html")]) == 0
    assert (full.folder / "deep" / "r.html").is_file()


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda folder: (folder / "ner_only" / "scores.json").write_text("{"), "scores.json"),
        (lambda folder: (folder / "ner_only" / "metrics.jsonl").write_text("x\n"), "metrics.jsonl"),
        (lambda folder: (folder / "ner_only" / "manifest.json").write_text("{"), "manifest.json"),
        (lambda folder: (folder / "ner_only" / "manifest.json").write_text("[]"), "manifest.json"),
    ],
)
def test_broken_files_are_named(full: Run, capsys, break_it, told):
    break_it(full.folder)
    assert report.main([str(full.folder)]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not (full.folder / "report.html").exists()


def test_folders_without_stages_are_refused(tmp_path: Path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert report.main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("error:") == 2
    with pytest.raises(InputError):
        report.write_report(tmp_path, [tmp_path], tmp_path / "r.html", "t")


def test_ticks_are_round_and_inside():
    assert ticks(0, 100) == [0, 25, 50, 75, 100]
    assert ticks(2.9, 4.6) == [3, 3.5, 4, 4.5]
    assert ticks(5, 5) == [5]
    assert all(0.1 <= tick <= 0.35 for tick in ticks(0.1, 0.35))


def test_thinning_keeps_the_mean_and_the_length():
    points = [(float(i), float(i % 7)) for i in range(1000)]
    thin = thin_out(points, 100)
    assert len(thin) == 100 and thin_out(points[:50], 100) == points[:50]
    assert sum(y for _, y in thin) / 100 == pytest.approx(sum(y for _, y in points) / 1000, rel=0.01)


def test_charts_bear_odd_values_and_escape():
    nan = float("nan")
    assert "Nothing was recorded" in line_chart([Line([(1, nan)], "c1")], "x", "y", "d")
    one = line_chart([Line([(1, 2.0), (2, nan)], "c1", ATTACK)], ATTACK, "y", ATTACK)
    assert "<script" not in one and "nan" not in one and "<circle" in one
    bars = bar_chart([Bar(ATTACK, 0.0, "c1", "0")], "d")
    assert "<script" not in bars and "nan" not in bars
    assert "Nothing was recorded" in bar_chart([], "d")


def test_chain_puts_the_longest_line_on_top_and_readers_to_the_right():
    nodes = [
        Node("ner", "NER", [], "weights", [("data", False), ("mlm", True)]),
        Node("data", "data", [], "data"),
        Node("mlm", "MLM", [], "weights", [("corpus", False)]),
        Node("corpus", "corpus", [], "data", []),
    ]
    svg = chain_diagram(nodes, "d")
    place = {
        title: (float(x), float(y))
        for x, y, title in re.findall(r'class="node-title" x="([\d.]+)" y="([\d.]+)">(\w+)', svg)
    }
    assert place["corpus"][0] < place["MLM"][0] == place["data"][0] < place["NER"][0]
    assert place["corpus"][1] == place["MLM"][1] == place["NER"][1] < place["data"][1]
    assert svg.count('class="edge') == 3


def test_launch_imports_nothing_of_the_stages():
    folder = Path(report.__file__).parent
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(part.split(".")[0] in ("finetune", "pretrain", "data_prep") for part in imported)


def test_systems_without_an_encoder_have_their_name(tmp_path):
    run = Run(tmp_path)
    data = run.data()
    for seed in (1, 2):
        run.stage(
            f"cwi-{seed}", "finetune/word_ner", {"data": data}, {"seed": seed, "image_words": "given"},
            facts={"system": "CWI"},
        )  # fmt: skip
        (tmp_path / f"cwi-{seed}" / "scores.json").write_text(json.dumps({"test": {"conlleval": counts(0.7)}}))
    run.stage("crf", "finetune/feature_ner", {"data": data}, facts={"system": "T-NER style"})
    (tmp_path / "crf" / "scores.json").write_text(json.dumps({"test": {"conlleval": counts(0.6)}}))
    cwi, crf = configurations(map(StageFolder, run.stages))
    assert cwi.label == "CWI · NER only · image words given" and cwi.paper.f1 == 71.61 and len(cwi.runs) == 2
    assert crf.label == "T-NER style · NER only · image words none" and crf.paper.system == "T-NER"
    assert Page(run.page())


def test_a_comparison_is_not_drawn_as_a_part_of_the_chain(tmp_path):
    run = Run(tmp_path)
    data = run.data()
    run.ner("ner-1", data, run.mlm(), 0.7, 1)
    before = report._diagram([StageFolder(folder) for folder in run.stages])
    manifest = json.loads((tmp_path / "ner-1" / "manifest.json").read_text())
    run.stage("table4", "finetune/compare", {"data": data, "run_1": {"path": "x", "sha256": "y", "manifest": manifest}})
    assert report._diagram([StageFolder(folder) for folder in run.stages]) == before
    assert "table4" in Page(run.page()).text
