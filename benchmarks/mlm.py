"""Masked language modelling: tokens per second of `pretrain/mlm.py` beside Hugging Face's `run_mlm.py` way.

    python benchmarks/mlm.py --tweets DATA/tweets --encoder BERT_TINY --size tiny --repeats 3

Both sides train the same model with the same tokenizer, masking rate and tokens per optimizer step on the same tweets;
optimizer, clipping and schedule are included, start, tokenization and warm-up are not; only real tokens count, no padding.

* `line_by_line`: `Trainer` as `run_mlm.py --line_by_line` sets it up: fp32, each batch padded to its longest tweet;
* `grouped`: the same with texts concatenated to blocks of 128 (`group_texts`), its default;
* `best_flags`: such blocks, with `bf16` and `torch_compile`;
* `ours`: `pretrain/mlm.py` with `--run.compile true`;
* `limit`: the step's matrix products alone (encoder, and output layer at masked positions; forward and backward; bf16).

Every measurement is a process of its own, one at a time, interleaved. The last line is a JSON object.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path

TOKENS_PER_STEP = 8192
BLOCK = 128
MASKING_RATE = 0.15
SIDES = ("line_by_line", "grouped", "best_flags", "ours", "limit")
SILENT = {
    "use_cpu": True,
    "report_to": [],
    "logging_strategy": "no",
    "save_strategy": "no",
    "disable_tqdm": True,
}
"""What `Trainer` is told on both sides of a comparison: a CPU, and nothing but training."""
SIZES = {  # layers, hidden size, heads
    "tiny": (2, 128, 2),
    "small": (4, 512, 8),
}


def main() -> None:
    arguments = parse_arguments()
    if arguments.side:
        print(json.dumps({"tokens_per_second": SIDE_FUNCTIONS[arguments.side](arguments)}))
        return
    with tempfile.TemporaryDirectory() as work:
        arguments.work = arguments.work or work
        prepare(arguments)
        found = {side: [] for side in SIDES}
        for repeat in range(arguments.repeats):
            for side in SIDES:
                found[side].append(in_a_process_of_its_own(arguments, side))
                print(f"{arguments.size}, repeat {repeat + 1}, {side}: {found[side][-1]:,.0f} tokens/s", flush=True)
    medians = {side: statistics.median(rates) for side, rates in found.items()}
    ratios = {
        f"{arguments.size}: ours over line by line": medians["ours"] / medians["line_by_line"],
        f"{arguments.size}: ours over grouped": medians["ours"] / medians["grouped"],
        f"{arguments.size}: ours over best flags": medians["ours"] / medians["best_flags"],
        f"{arguments.size}: ours, share of the GEMM limit": medians["ours"] / medians["limit"],
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    print(json.dumps({"ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}, "tokens_per_second": found}))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tweets", type=Path, required=True, help="folder of .txt.gz files, a tweet a line")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a BERT; its tokenizer serves both sizes")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None, help="measured optimizer steps of each run")
    parser.add_argument("--work", default=None, help="folder for corpus and models; kept if given")
    parser.add_argument("--side", choices=SIDES, default=None, help="measure one side in this process")
    return parser.parse_args()


def in_a_process_of_its_own(arguments: argparse.Namespace, side: str) -> float:
    command = [sys.executable, __file__, f"--tweets={arguments.tweets}", f"--encoder={arguments.encoder}"]
    command += [f"--size={arguments.size}", f"--work={arguments.work}", f"--side={side}"]
    command += [f"--steps={arguments.steps}"] if arguments.steps else []
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{side} failed:\n{result.stdout}\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])["tokens_per_second"]


def prepare(arguments: argparse.Namespace) -> None:
    """The corpus and the model, the same for all sides."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    work = Path(arguments.work)
    if not (work / "corpus").exists():
        write_corpus(arguments.tweets, work / "corpus")
    layers, hidden, heads = SIZES[arguments.size]
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=4 * hidden
    )
    BertForMaskedLM(config).save_pretrained(work / arguments.size)
    AutoTokenizer.from_pretrained(arguments.encoder).save_pretrained(work / arguments.size)


def write_corpus(tweets: Path, folder: Path) -> None:
    """Every eighth tweet, without its URLs."""
    from data_prep.layout import CORPUS_FEATURES, write_dataset
    from data_prep.urls import remove_urls

    texts = []
    for file in sorted(tweets.glob("*.txt.gz")):
        with gzip.open(file, "rt", encoding="utf-8", errors="replace", newline="\n") as lines:
            texts += [" ".join(remove_urls(line).split()) for number, line in enumerate(lines) if number % 8 == 0]
    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts) if len(text.split()) >= 3]
    splits = {"train": rows[500:], "validation": rows[:500]}
    write_dataset(folder, splits, CORPUS_FEATURES, "Tweets for a benchmark")


def ours(arguments: argparse.Namespace) -> float:
    """The rate in the stage's own metrics, after the first rows of them."""
    from launch.stage import iterate_jsonl
    from pretrain.mlm import main as mlm

    steps = arguments.steps or {"tiny": 120, "small": 24}[arguments.size]
    log_steps = max(1, steps // 6)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "encoder"
        assert mlm(flags_of_stage(arguments, output, steps + 2 * log_steps, log_steps)) == 0
        rows = [row for row in iterate_jsonl(output / "metrics.jsonl") if row["event"] == "train"]
    return statistics.median(row["tokens_per_second"] for row in rows[2:])


def flags_of_stage(
    arguments: argparse.Namespace, output: Path, steps: int, log_steps: int, compiled: str = "true"
) -> list[str]:
    """What `pretrain/mlm.py` is told."""
    settings = {
        "encoder": Path(arguments.work) / arguments.size,
        "data": Path(arguments.work) / "corpus",
        "output": output,
        "token_cache": Path(arguments.work) / "tokens",
        "tokens_per_step": TOKENS_PER_STEP,
        "row_length": BLOCK,
        "masking_rate": MASKING_RATE,
        "schedule.steps": steps,
        "run.compile": compiled,
        "run.log_steps": log_steps,
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def line_by_line(arguments: argparse.Namespace) -> float:
    """`run_mlm.py --line_by_line`: fp32, a tweet a sample, padded to the longest of the batch."""
    return trainer(arguments, grouped=False, steps={"tiny": 8, "small": 4})


def grouped(arguments: argparse.Namespace) -> float:
    """`run_mlm.py` as it is by default: fp32, texts grouped to blocks of 128."""
    return trainer(arguments, grouped=True, steps={"tiny": 8, "small": 4})


def best_flags(arguments: argparse.Namespace) -> float:
    """`run_mlm.py` with its fastest flags: bf16, texts grouped to blocks of 128, compiled."""
    return trainer(arguments, grouped=True, steps={"tiny": 16, "small": 6}, bf16=True, torch_compile=True)


def trainer(arguments: argparse.Namespace, grouped: bool, steps: dict[str, int], **flags: bool) -> float:
    """Real tokens per second of `Trainer`, after two steps of warm-up."""
    from transformers import (
        AutoModelForMaskedLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    work = Path(arguments.work)
    tokenizer = AutoTokenizer.from_pretrained(work / arguments.size)
    model = AutoModelForMaskedLM.from_pretrained(work / arguments.size)
    data = data_of_trainer(work, tokenizer, grouped)
    if grouped:
        samples = TOKENS_PER_STEP // BLOCK
    else:
        mean_length = sum(map(len, data[:20_000]["input_ids"])) / min(20_000, len(data))
        samples = round(TOKENS_PER_STEP / mean_length)

    class Clock(TrainerCallback):
        marks: list[float] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.marks.append(time.perf_counter())

    tokens: list[int] = []
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKING_RATE)

    def counting(rows: list) -> dict:
        batch = collate(rows)
        tokens.append(int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel())
        return batch

    warm_up, measured = 2, arguments.steps or steps[arguments.size]
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            model=model,
            args=TrainingArguments(
                folder,
                per_device_train_batch_size=samples,
                max_steps=warm_up + measured,
                **SILENT,
                **flags,
            ),
            train_dataset=data,
            data_collator=counting,
            callbacks=[Clock()],
        ).train()
    # Batches may be fetched one ahead: those of the measured steps are counted from the front.
    return sum(tokens[warm_up : warm_up + measured]) / (Clock.marks[-1] - Clock.marks[warm_up - 1])


def data_of_trainer(work: Path, tokenizer: "PreTrainedTokenizerBase", grouped: bool) -> "Dataset":  # noqa: F821
    """The corpus as the example script tokenizes it: a text a sample, or all texts cut into blocks."""
    from datasets import load_dataset

    data = load_dataset("parquet", data_files=str(work / "corpus/data/train-*.parquet"), cache_dir=str(work / "hf"))
    data = data["train"].map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=BLOCK, return_special_tokens_mask=True),
        batched=True,
        remove_columns=["id", "text"],
    )
    return data.map(group_texts, batched=True) if grouped else data


def group_texts(rows: dict) -> dict:
    """As in `run_mlm.py`: all texts one after another, cut into blocks."""
    joined = {name: list(chain(*values)) for name, values in rows.items()}
    length = len(joined["input_ids"]) // BLOCK * BLOCK
    return {name: [values[i : i + BLOCK] for i in range(0, length, BLOCK)] for name, values in joined.items()}


def limit(arguments: argparse.Namespace) -> float:
    """Tokens per second if a step were its matrix products alone."""
    import torch
    from transformers import AutoConfig

    from pretrain.limit import tokens_per_second_of_products

    config = AutoConfig.from_pretrained(Path(arguments.work) / arguments.size)
    device, repeats = torch.device("cpu"), 5
    return statistics.median(
        tokens_per_second_of_products(config, TOKENS_PER_STEP, MASKING_RATE, torch.bfloat16, device)
        for _ in range(repeats)
    )


SIDE_FUNCTIONS = {
    "line_by_line": line_by_line,
    "grouped": grouped,
    "best_flags": best_flags,
    "ours": ours,
    "limit": limit,
}

if __name__ == "__main__":
    main()
