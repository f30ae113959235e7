"""Texts and tokens a second that become a token store, against `datasets.map` with the same tokenizer and two processes.

    python benchmarks/tokenizing.py --input TWEETS [--vocabulary_size 30522] [--repeats 3]

Both read the same corpus from Parquet, cut at 128 tokens and leave arrays on disk that training reads: the store, and the
Arrow file of `datasets`. Each run is a process of its own with empty caches, timed from its first read, imports aside.
The tokenizer's vocabulary is learnt from the texts. Ratios are medians of interleaved repeats. The last line is a JSON object.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import pyarrow as pa
from transformers import PreTrainedTokenizerFast

from data_prep.layout import CORPUS_FEATURES, DatasetWriter
from data_prep.text_batches import iterate_texts
from launch.stage import machine, versions
from pretrain.cutter import Cutter
from pretrain.new_encoder import NewEncoderSettings, learn_vocabulary
from pretrain.tokenizing import tokenize

MAXIMUM_LENGTH = 128
PROCESSES = 2
VOCABULARY_TEXTS = 100_000


def main() -> None:
    options = parse_options()
    if options.way:
        print(json.dumps({"store": by_store, "datasets": by_datasets}[options.way](options.input)))
        return
    runs: dict[str, list[dict]] = {"store": [], "datasets": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(options.input, folder, options.vocabulary_size)
        for repeat in range(options.repeats):
            for way, done in runs.items():
                command = [sys.executable, __file__, "--input", str(folder), "--way", way]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                done.append(json.loads(output.splitlines()[-1]))
                print(f"repeat {repeat + 1}, {way}: {done[-1]}", flush=True)
    assert len({(run["texts"], run["tokens"]) for done in runs.values() for run in done}) == 1, "not the same tokens"
    rates = {
        unit: {way: [run[unit] / run["seconds"] for run in done] for way, done in runs.items()}
        for unit in ("texts", "tokens")
    }
    texts = rates["texts"]
    ratio = statistics.median(a / b for a, b in zip(texts["store"], texts["datasets"], strict=True))
    for way in runs:
        texts_rate, tokens_rate = (statistics.median(rates[unit][way]) for unit in ("texts", "tokens"))
        print(f"{way}: {texts_rate:,.0f} texts/s, {tokens_rate:,.0f} tokens/s (medians)")
    print(f"store: {ratio:.2f} times datasets")
    result = {
        "ratios": {"store over datasets": round(ratio, 2)},
        "texts_per_second": rates["texts"],
        "tokens_per_second": rates["tokens"],
        "texts": runs["store"][0]["texts"],
    }
    print(json.dumps(result | {"machine": machine(), "versions": versions()}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder of .txt.gz files, one text a line")
    parser.add_argument("--vocabulary_size", type=int, default=30522)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", choices=("store", "datasets"), help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(source: Path, folder: Path, vocabulary_size: int) -> None:
    """Write the corpus, and a tokenizer that learnt from it."""
    texts = [
        text
        for file in sorted(source.glob("*.txt.gz"))
        for text in gzip.open(file).read().decode("utf-8", "replace").split("\n")
        if text.strip()
    ]
    table = pa.table({"id": [str(number) for number in range(len(texts))], "text": texts})
    with DatasetWriter(folder / "corpus", CORPUS_FEATURES) as writer:
        writer.add_table("train", table)
    writer.write_card("Tweets", {})
    settings = NewEncoderSettings(output=folder, data=folder, vocabulary_size=vocabulary_size, maximum_length=512)
    learn_vocabulary(islice(texts, 0, None, max(1, len(texts) // VOCABULARY_TEXTS)), settings).save_pretrained(
        folder / "tokenizer"
    )


def by_store(folder: Path) -> dict[str, float]:
    """As `pretrain/mlm.py` does it."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        started_at = time.perf_counter()
        texts = lambda start: iterate_texts(folder / "corpus", ["train"], start=start)  # noqa: E731
        store = tokenize(texts, ["train"], "benchmark", Cutter(tokenizer, MAXIMUM_LENGTH), Path(cache))["train"]
        seconds = time.perf_counter() - started_at
        return {"texts": len(store), "tokens": len(store.tokens), "seconds": seconds}


def by_datasets(folder: Path) -> dict[str, float]:
    """As the example scripts of transformers do it."""
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        corpus = load_dataset(str(folder / "corpus"), split="train", cache_dir=cache)
        started_at = time.perf_counter()
        mapped = corpus.map(
            lambda rows: tokenizer(
                rows["text"], truncation=True, max_length=MAXIMUM_LENGTH, return_special_tokens_mask=True
            ),
            batched=True,
            num_proc=PROCESSES,
            remove_columns=corpus.column_names,
        )
        seconds = time.perf_counter() - started_at
        tokens = sum(len(chunk.flatten()) for chunk in mapped.data["input_ids"].chunks)
        return {"texts": len(mapped), "tokens": tokens, "seconds": seconds}


if __name__ == "__main__":
    main()
