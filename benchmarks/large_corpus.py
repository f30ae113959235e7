"""Memory and time that a large corpus takes: tokenized, an epoch planned, batches made from random places; no model.

    python benchmarks/large_corpus.py [--texts 20000000] [--folder FOLDER]

The texts are made up: 3 to 20 words each, drawn from 50,000 by a law like Zipf's. They lie in Parquet shards in a temporary
folder. Anonymous memory is what a process needs; mapped files are read again from disk where memory is short. The last line
is a JSON object.
"""

import argparse
import json
import random
import resource
import shutil
import tempfile
import time
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerFast

from data_prep.text_batches import iterate_texts
from launch.stage import machine, versions
from pretrain.cutter import Cutter
from pretrain.masking import Masking
from pretrain.mlm import make_batch
from pretrain.new_encoder import NewEncoderSettings, learn_vocabulary
from pretrain.packing import PackedSteps, rows_of_step
from pretrain.tokenizing import tokenize

WORDS, SHORTEST, LONGEST = 50_000, 3, 20
SHARD_TEXTS, GROUP_TEXTS = 2_000_000, 50_000
ROW_LENGTH, TOKENS_PER_STEP, BATCHES = 128, 8192, 50
BYTES_PER_TEXT = 200
"""On disk at the most, as text and as tokens."""
SYLLABLES = [a + b for a in "bcdfghjklmnprstvz" for b in "aeiou"]


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < options.texts * BYTES_PER_TEXT:
            raise SystemExit(f"{folder}: {free / 1e9:.0f} GB are free. Give fewer --texts, or another --folder.")
        print(json.dumps(measure(folder, options.texts) | {"machine": machine(), "versions": versions()}))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=20_000_000)
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    return parser.parse_args()


def measure(folder: Path, texts: int) -> dict[str, object]:
    """Seconds and memory after each part."""
    result: dict[str, object] = {"texts": texts}
    started_at = time.perf_counter()

    def note(part: str) -> None:
        nonlocal started_at
        seconds = time.perf_counter() - started_at
        memory = memory_in_mb()
        result[part] = {"seconds": round(seconds, 2), **memory}
        print(f"{part}: {seconds:,.1f} s; MB: {memory}", flush=True)
        started_at = time.perf_counter()

    tokenizer = make_corpus(folder, texts)
    note("corpus")
    read = lambda start: iterate_texts(folder, ["train"], start=start)  # noqa: E731
    store = tokenize(read, ["train"], "large", Cutter(tokenizer, ROW_LENGTH), folder / "cache")["train"]
    result["tokens"] = len(store.tokens)
    note("tokenized")
    steps = PackedSteps(store, ROW_LENGTH, TOKENS_PER_STEP, seed=1, epoch=0)
    result["steps"] = len(steps)
    note("epoch planned")
    masking = Masking(0.15, True, tokenizer.mask_token_id, len(tokenizer), seed=1)
    rows_at_once = rows_of_step(TOKENS_PER_STEP, ROW_LENGTH)
    for step in random.Random(0).sample(range(len(steps)), min(BATCHES, len(steps))):
        make_batch(steps[step][:rows_at_once], store, ROW_LENGTH, rows_at_once, masking, epoch=0)
    note("batches")
    result["bytes_on_disk"] = sum(file.stat().st_size for file in (folder / "cache").rglob("*.bin"))
    return result


def make_corpus(folder: Path, texts: int) -> PreTrainedTokenizerFast:
    """Write the shards, and learn a vocabulary from some of the texts."""
    draw = random.Random(0)
    words = ["".join(draw.choices(SYLLABLES, k=draw.randint(1, 4))) for _ in range(WORDS)]
    shares = np.array(list(accumulate(1 / (rank + 3) for rank in range(WORDS))))
    shares /= shares[-1]
    vocabulary = pa.array(words)
    generator = np.random.default_rng(0)
    some: list[str] = []
    shards = -(-texts // SHARD_TEXTS)
    (folder / "data").mkdir()
    for shard in range(shards):
        file = folder / "data" / f"train-{shard:05d}-of-{shards:05d}.parquet"
        schema = pa.schema([("id", pa.string()), ("text", pa.string())])
        first, end = shard * SHARD_TEXTS, min(texts, (shard + 1) * SHARD_TEXTS)
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for start in range(first, end, GROUP_TEXTS):
                count = min(GROUP_TEXTS, end - start)
                offsets = np.r_[0, np.cumsum(generator.integers(SHORTEST, LONGEST + 1, count))]
                drawn = vocabulary.take(pa.array(np.searchsorted(shares, generator.random(offsets[-1]))))
                lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), drawn)
                column = pa.compute.binary_join(lists, " ")
                ids = pa.array(np.arange(start, start + count)).cast(pa.string())
                writer.write_table(pa.table({"id": ids, "text": column}), row_group_size=GROUP_TEXTS)
                some = some or column.to_pylist()
    settings = NewEncoderSettings(output=folder, data=folder, vocabulary_size=30522, maximum_length=512)
    return learn_vocabulary(some, settings)


def memory_in_mb() -> dict[str, int]:
    """Peak of all memory so far, and what is held now: anonymous, and of mapped files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    now = {name: int(status[key].split()[0]) for name, key in (("anonymous", "RssAnon"), ("mapped", "RssFile"))}
    return {name: kilobytes // 1024 for name, kilobytes in ({"peak": peak} | now).items()}


if __name__ == "__main__":
    main()
