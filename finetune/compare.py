"""Compare finished recognizers on one test split: a table beside the paper's, with intervals and tests.

    python finetune/compare.py --runs '[runs/ner-1, runs/ner-2, runs/cwi-1]' --data runs/tmn --output runs/table4
    python finetune/compare.py --runs+ runs/ner-1 --runs+ runs/cwi-1 --data runs/tmn --baseline CWI --output runs/table4

Runs that are equal up to their seed are one system. Both scoring conventions, always named; 95 % bootstrap intervals over
tweets; approximate-randomization tests between systems; the same for mentions that training has not seen, and for tweets
with and without a near-duplicate in training; what the image words give, where a system ran with and without. Written are
table.csv, table.md, table.html, comparison.json and image_tweets.csv. In a recipe: `launch: python`, `runs: ["{all.ner}"]`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from finetune.comparison import make_views, read_systems, tests_between
from finetune.comparison_files import Comparison, write_comparison
from finetune.comparison_page import write_comparison_page
from finetune.image_ablation import find_families
from finetune.tweet_counts import TestSplit
from launch.settings import NOT_IDENTITY
from launch.stage import Stage, StageSettings, run_stage


@dataclass(frozen=True, kw_only=True)
class CompareSettings(StageSettings):
    """Settings of the stage."""

    runs: list[Path] = field(metadata=NOT_IDENTITY)
    """Folders of finished recognizers, of any stage that scores and writes its predictions."""
    data: Path = field(metadata=NOT_IDENTITY)
    """Folder of the `ner` data set that they were trained and tested on."""
    baseline: str | None = None
    """Name of a system: each other is tested against it alone. Null tests all pairs."""
    paper: Literal["table4", "table9", "table10", "none"] = "table4"
    """The table of the paper whose rows stand beside the systems that it has."""
    draws: int = 10_000
    """Samples of the bootstrap, and exchanges of each test."""
    seed: int = 1
    """Decides them."""

    def __post_init__(self) -> None:
        """Refuse nothing to compare, and too few draws for any interval."""
        if not self.runs:
            raise ValueError("runs: give at least one folder")
        if self.draws < 100:
            raise ValueError(f"draws {self.draws}: an interval needs 100 or more")


def main(argv: list[str] | None = None) -> int:
    """The stage as a command."""
    return run_stage(CompareSettings, compare, inputs_of, argv)


def inputs_of(settings: CompareSettings) -> dict[str, Path | str | None]:
    """What the stage reads: the data set, and each run."""
    return {"data": settings.data, **{f"run_{number}": run for number, run in enumerate(settings.runs, start=1)}}


def compare(settings: CompareSettings, stage: Stage) -> None:
    """The stage: from predictions to tables and a page."""
    test = TestSplit.read(settings.data)
    systems = read_systems(settings.runs, test, settings.paper)
    stage.rows.taken = stage.rows.kept = len(settings.runs)
    stage.log(f"{len(settings.runs)} runs of {len(systems)} systems on {len(test.ids)} tweets")
    comparison = Comparison(
        systems,
        make_views(systems, test, settings.draws, settings.seed),
        tests_between(systems, settings.baseline, settings.draws, settings.seed),
        find_families(systems, test, settings.draws, settings.seed),
        settings.draws,
        settings.seed,
    )
    stage.facts |= {
        "systems": {system.name: len(system.configuration.runs) for system in systems},
        "parts": {view.key: {"tweets": view.tweets, **view.mentions} for view in comparison.views},
    }
    stage.seeds = [settings.seed]
    write_comparison(stage.folder, comparison)
    write_comparison_page(stage.folder / "table.html", comparison, settings.paper, len(test.ids))


if __name__ == "__main__":
    raise SystemExit(main())
