"""Tweets cleaned per second: the stage's way against the same steps by `datasets.map` and `filter` with two processes.

    python benchmarks/clean.py --input TWEETS [--repeats 3] [--recall 100000]

Both read the same files of one post a line, remove URLs, collapse white space, leave out posts of fewer than three words
and exact duplicates, case aside, cut off the validation split and write Parquet; each run is a process of its own, timed
from its first read, imports aside. The stage is also timed with near-duplicates, and with those and the language. With
`--recall`, near-duplicates among so many posts are found exactly, too, and those that the stage misses are counted.
Ratios are medians of interleaved repeats. The last line is a JSON object.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep import text_rules
from data_prep.clean import NEAR_DUPLICATE, CleanSettings, Decisions
from data_prep.clean import main as clean_main
from data_prep.near_duplicates import NearDuplicates
from data_prep.post_frame import TextSettings, iterate_posts, read_frame, with_text_work
from data_prep.repeats import SIGNATURE_HASHES
from data_prep.sources.files import post_files
from data_prep.urls import remove_urls
from launch.stage import machine, versions

SIMILARITY = 0.8
PROCESSES = 2
STAGE_WAYS = {
    "default": [],
    "near_duplicates": [f"--near_duplicates={SIMILARITY}"],
    "near_duplicates_and_language": [f"--near_duplicates={SIMILARITY}", "--language=en"],
}


def main() -> None:
    options = parse_options()
    if options.way:
        print(json.dumps(timed(options.way, options.input)))
        return
    runs: dict[str, list[dict]] = {name: [] for name in ("datasets", *STAGE_WAYS)}
    for repeat in range(options.repeats):
        for name, done in runs.items():
            command = [sys.executable, __file__, "--input", str(options.input), "--way", name]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            done.append(json.loads(output.splitlines()[-1]))
            print(f"repeat {repeat + 1}, {name}: {done[-1]}", flush=True)
    rates = {name: [run["posts"] / run["seconds"] for run in done] for name, done in runs.items()}
    ratios = {
        f"{name} over datasets": round(
            statistics.median(a / b for a, b in zip(rates[name], rates["datasets"], strict=True)), 2
        )
        for name in STAGE_WAYS
    }
    for name, values in rates.items():
        print(f"{name}: {statistics.median(values):,.0f} posts/s (median)")
    print(f"default: {ratios['default over datasets']} times datasets")
    result = {
        "ratios": ratios,
        "posts_per_second": rates,
        "kept": {name: done[0]["kept"] for name, done in runs.items()},
    }
    if options.recall:
        result["near_duplicates"] = recall(options.input, options.recall)
    print(json.dumps(result | {"machine": machine(), "versions": versions()}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder of text files, one post a line")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--recall", type=int, default=0, help="posts among which near-duplicates are found exactly, too"
    )
    parser.add_argument("--way", choices=["datasets", *STAGE_WAYS], help="time this way alone")
    return parser.parse_args()


def timed(way: str, source: Path) -> dict[str, float]:
    """Seconds that a way takes, and the posts it reads and keeps."""
    with tempfile.TemporaryDirectory() as folder:
        work: Callable[[], tuple[int, int]] = (
            with_datasets(source, Path(folder)) if way == "datasets" else with_stage(source, Path(folder), way)
        )
        started_at = time.perf_counter()
        posts, kept = work()
        return {"seconds": round(time.perf_counter() - started_at, 3), "posts": posts, "kept": kept}


def with_stage(source: Path, folder: Path, way: str) -> Callable[[], tuple[int, int]]:
    """The stage, by its `main`."""

    def work() -> tuple[int, int]:
        clean_main(["--input", str(source), "--output", str(folder / "corpus"), *STAGE_WAYS[way]])
        rows = json.loads((folder / "corpus" / "manifest.json").read_text())["rows"]
        return rows["taken"], rows["kept"]

    return work


def with_datasets(source: Path, folder: Path) -> Callable[[], tuple[int, int]]:
    """The same steps as people write them with `datasets`."""
    import datasets

    datasets.disable_progress_bars()

    def without_urls(batch: dict[str, list]) -> dict[str, list]:
        cleaned = [" ".join(remove_urls(text).split()) for text in batch["text"]]
        digests = [hashlib.blake2b(text.lower().encode(), digest_size=8).digest() for text in cleaned]
        return {"text": cleaned, "key": [int.from_bytes(digest, "little", signed=True) for digest in digests]}

    def long_enough(batch: dict[str, list]) -> list[bool]:
        return [sum(any(map(str.isalnum, word)) for word in text.split()) >= 3 for text in batch["text"]]

    def work() -> tuple[int, int]:
        files = [str(file) for file in post_files(source)]
        posts = datasets.load_dataset("text", data_files=files, split="train", cache_dir=str(folder / "cache"))
        cleaned = posts.map(without_urls, batched=True, num_proc=PROCESSES).filter(
            long_enough, batched=True, num_proc=PROCESSES
        )
        seen: set[int] = set()

        def is_first(batch: dict[str, list]) -> list[bool]:  # knows those before: one process
            firsts = [not (key in seen or seen.add(key)) for key in batch["key"]]
            return firsts

        kept = cleaned.filter(is_first, batched=True)
        for split, part in kept.train_test_split(test_size=CleanSettings.validation_share, seed=0).items():
            part.remove_columns("key").to_parquet(folder / f"{split}.parquet")
        return len(posts), len(kept)

    return work


def recall(source: Path, count: int) -> dict[str, float]:
    """Of the posts that an exact search finds to be near-duplicates of one kept before, the share that the stage finds."""
    files = post_files(source)
    frame = with_text_work(read_frame(files, source), TextSettings(), (), SIGNATURE_HASHES)
    batches = [batch.filter(batch["reason"].is_null()) for batch in iterate_posts(frame, files, source) if len(batch)]
    posts = pa.Table.from_batches(batches)
    chosen = np.sort(np.random.default_rng(0).permutation(len(posts))[:count])
    posts = posts.take(pa.array(chosen)).combine_chunks()

    started_at = time.perf_counter()
    settings = CleanSettings(input=source, output=Path("unused"), near_duplicates=SIMILARITY, drop_duplicates=False)
    reasons = Decisions(settings).reasons(posts.to_batches()[0])
    found = np.array([reason == NEAR_DUPLICATE for reason in reasons])
    seconds = time.perf_counter() - started_at

    started_at = time.perf_counter()
    word_lists = [text.split() for text in text_rules.words(posts["clean"].combine_chunks()).to_pylist()]
    index = NearDuplicates(word_lists, SIMILARITY)
    exact = np.zeros(len(posts), bool)
    for row, words in enumerate(word_lists):
        exact[row] = any(other < row and not exact[other] for other, _ in index.find_all(words))
    result = {
        "posts": len(posts),
        "exact": int(exact.sum()),
        "found": int(found.sum()),
        "recall": round(float((found & exact).sum() / max(exact.sum(), 1)), 5),
        "seconds": round(seconds, 2),
        "seconds_exact": round(time.perf_counter() - started_at, 2),
    }
    print(f"near-duplicates: {result}", flush=True)
    return result


if __name__ == "__main__":
    main()
