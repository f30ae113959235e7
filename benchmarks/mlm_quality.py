"""Masked language modelling: the evaluation loss of `pretrain/mlm.py` beside `Trainer`'s, on the same number of tokens.

    python benchmarks/mlm_quality.py --tweets TWEETS --encoder BERT_TINY [--seeds 1 2 3] [--steps 150] [--figure curves.svg]

Both continue the same encoder on the same tweets with the same tokens for each optimizer step, masking rate, learning rate,
schedule and clipping; `Trainer` with its fastest flags (bf16, blocks of 128, compiled) and the encoder's own dropout, the
stage with its defaults. All weights are evaluated alike: the stage's validation split and masks. Besides the losses, it
is measured how long the stage takes to reach `Trainer`'s final loss, compiling and evaluating on the way included, and
how long `Trainer` takes for its steps, compiling included. The last line is a JSON object.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from mlm import BLOCK, MASKING_RATE, SILENT, TOKENS_PER_STEP, data_of_trainer, write_corpus

EVALUATIONS = 10
LEARNING_RATE = 5e-4
WARMUP_SHARE = 0.06


def main() -> None:
    options = parse_options()
    if options.side:
        print(json.dumps(SIDES[options.side](options)))
        return
    with tempfile.TemporaryDirectory() as work:
        options.work = work
        write_corpus(options.tweets, Path(work) / "corpus")
        curves: dict[str, list[list[list[float]]]] = {side: [] for side in SIDES}
        for seed in options.seeds:
            for side in SIDES:
                curves[side].append(in_a_process_of_its_own(options, side, seed))
                steps, seconds, loss = curves[side][-1][-1]
                print(f"seed {seed}, {side}: loss {loss:.4f} after {steps:.0f} steps, {seconds:.0f} s", flush=True)
    final = {side: [curve[-1][2] for curve in of_side] for side, of_side in curves.items()}
    ratios = [
        stock[-1][1] / time_to(stock[-1][2], ours)
        for stock, ours in zip(curves["trainer"], curves["ours"], strict=True)
    ]
    for side, losses in final.items():
        spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
        print(f"{side}: final evaluation loss {statistics.mean(losses):.4f} ± {spread:.4f}")
    print(f"time to Trainer's final loss: Trainer's over ours {statistics.median(ratios):.1f} (median)")
    if options.figure:
        draw(curves, options.figure)
    result = {"ratios": {"time to Trainer's final loss": round(statistics.median(ratios), 2)}}
    print(json.dumps(result | {"final_losses": final, "curves (step, seconds, loss)": curves}))


def parse_options() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tweets", type=Path, required=True, help="folder of .txt.gz files, a tweet a line")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a BERT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--figure", type=Path, help="SVG file of the curves")
    parser.add_argument("--work", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("trainer", "ours"), help=argparse.SUPPRESS)
    return parser.parse_args()


def in_a_process_of_its_own(options: Namespace, side: str, seed: int) -> list[list[float]]:
    command = [sys.executable, __file__, f"--tweets={options.tweets}", f"--encoder={options.encoder}"]
    command += [f"--seeds={seed}", f"--steps={options.steps}", f"--work={options.work}", f"--side={side}"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{side} failed:\n{result.stdout}\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def settings_of_ours(options: Namespace, output: Path) -> list[str]:
    settings = {
        "encoder": options.encoder,
        "data": Path(options.work) / "corpus",
        "output": output,
        "seed": options.seeds[0],
        "token_cache": Path(options.work) / "tokens",
        "tokens_per_step": TOKENS_PER_STEP,
        "masking_rate": MASKING_RATE,
        "optimizer.learning_rate": LEARNING_RATE,
        "schedule.steps": options.steps,
        "schedule.epochs": "null",
        "schedule.warmup_share": WARMUP_SHARE,
        "evaluate_steps": max(1, options.steps // EVALUATIONS),
        "run.compile": "true",
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def ours(options: Namespace) -> list[list[float]]:
    """Step, seconds and evaluation loss, as the stage logs them."""
    from launch.stage import iterate_jsonl
    from pretrain.mlm import main as mlm

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "encoder"
        assert mlm(settings_of_ours(options, output)) == 0
        rows = [row for row in iterate_jsonl(output / "metrics.jsonl") if row["event"] == "evaluate"]
    return [[row["step"], row["seconds"], row["loss"]] for row in rows]


def trainer(options: Namespace) -> list[list[float]]:
    """The same of `Trainer`: weights are kept on the way, and evaluated at the end as the stage evaluates."""
    import torch
    from transformers import (
        AutoModelForMaskedLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    torch.manual_seed(options.seeds[0])
    model = AutoModelForMaskedLM.from_pretrained(options.encoder)
    data = data_of_trainer(Path(options.work), tokenizer, grouped=True)
    kept: list[tuple[int, float, dict]] = []

    class Keep(TrainerCallback):
        started_at = time.perf_counter()

        def on_step_end(self, _arguments: object, state: object, *_: object, **__: object) -> None:
            if state.global_step % max(1, options.steps // EVALUATIONS) == 0:
                seconds = time.perf_counter() - self.started_at
                kept.append((state.global_step, seconds, {k: v.clone() for k, v in model.state_dict().items()}))

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=TOKENS_PER_STEP // BLOCK,
            max_steps=options.steps,
            learning_rate=LEARNING_RATE,
            weight_decay=0.01,
            warmup_steps=round(WARMUP_SHARE * options.steps),
            seed=options.seeds[0],
            bf16=True,
            torch_compile=True,
            **SILENT,
        )
        collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKING_RATE)
        Keep.started_at = time.perf_counter()
        Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Keep()]).train()
    return [[step, seconds, evaluation_loss(options, state, tokenizer)] for step, seconds, state in kept]


def evaluation_loss(options: Namespace, state: dict, tokenizer: object) -> float:
    """Loss of some weights, as the stage evaluates them."""
    from types import SimpleNamespace

    import torch
    from accelerate import Accelerator
    from tqdm import tqdm

    from launch.precision import RoundedOnce
    from launch.settings import parse_settings
    from pretrain.mlm import TRAINING_SPLITS, MaskedLanguageModelling, MLMSettings, tokenized
    from pretrain.model import PackedMaskedLanguageModel, load_masked_language_model

    settings = parse_settings(MLMSettings, settings_of_ours(options, Path(options.work) / "unused"))
    data = {"path": settings.data, "sha256": "the same"}
    stage = SimpleNamespace(inputs={"data": data}, progress=lambda *_, **__: tqdm(disable=True))
    stores = tokenized(settings, stage, tokenizer, TRAINING_SPLITS)
    stock, _ = load_masked_language_model(str(options.encoder), None)
    stock.load_state_dict(state)
    model = RoundedOnce(PackedMaskedLanguageModel(stock), torch.bfloat16).eval()
    task = MaskedLanguageModelling(settings, stores["train"], stores["validation"], tokenizer, 1)
    with torch.no_grad():
        return task.evaluate(model, Accelerator(cpu=True))["loss"]


def time_to(loss: float, curve: list[list[float]]) -> float:
    """Seconds after which a curve is at or below a loss; infinite if it never is."""
    return next((seconds for _, seconds, value in curve if value <= loss), float("inf"))


def draw(curves: dict[str, list[list[list[float]]]], path: Path) -> None:
    """Loss over training time, all seeds together."""
    from launch.charts import Line, line_chart

    lines = [
        Line(
            [(seconds / 60, loss) for _, seconds, loss in curve],
            label=side if number == 0 else "",
            colour=colour,
        )
        for side, colour in (("trainer", "c2"), ("ours", "c1"))
        for number, curve in enumerate(curves[side])
    ]
    chart = str(line_chart(lines, "minutes", "evaluation loss", "Evaluation loss over time", size=(560, 300)))
    style = "svg{--c1:#0a67a8;--c2:#8f5e00;background:#fff;font:11px sans-serif}.grid{stroke:#e4e6e8}path{fill:none}"
    chart = chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    path.write_text(chart.replace(">", f"><style>{style}</style>", 1), encoding="utf-8")


SIDES = {"trainer": trainer, "ours": ours}

if __name__ == "__main__":
    main()
