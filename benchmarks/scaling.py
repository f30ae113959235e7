"""Masked language modelling on more cores: tokens per second of `pretrain/mlm.py` by processes and threads.

    python benchmarks/scaling.py --tweets DATA/tweets --encoder BERT_TINY --size tiny --repeats 3

The same run (same tokens per optimizer step) on one process with one thread, one with two, and two with one (DDP over
gloo), interleaved; start, tokenization and compilation are not counted. Beside it, how long two processes take to sum
as many fp32 numbers as the model has gradients: what DDP adds to a step where it hides none of it behind the backward
pass. Efficiency is the rate over that of one core, per core. The last line is a JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlm import SIZES, TOKENS_PER_STEP, flags_of_stage, prepare

PROJECT = Path(__file__).resolve().parent.parent
SIDES = {"1 process x 1 thread": (1, 1), "1 process x 2 threads": (1, 2), "2 processes x 1 thread": (2, 1)}
BYTES_OF_GRADIENT = 4
LOGGED_ROWS, WARM_UP_ROWS = 6, 2


def main() -> None:
    arguments = parse_arguments()
    if arguments.numbers:
        all_reduce(arguments.numbers)
        return
    with tempfile.TemporaryDirectory() as work:
        arguments.work = arguments.work or work
        prepare(arguments)
        parameters = count_parameters(Path(arguments.work) / arguments.size)
        rates: dict[str, list[float]] = {side: [] for side in SIDES}
        sums: list[float] = []
        for repeat in range(arguments.repeats):
            for side, (processes, threads) in SIDES.items():
                rates[side].append(tokens_per_second(arguments, processes, threads))
                print(f"{arguments.size}, repeat {repeat + 1}, {side}: {rates[side][-1]:,.0f} tokens/s", flush=True)
            sums.append(seconds_of_all_reduce(parameters))
            print(f"{arguments.size}, repeat {repeat + 1}, all-reduce: {1000 * sums[-1]:.1f} ms", flush=True)
    one, threads, processes = (statistics.median(rates[side]) for side in SIDES)
    ratios = {
        f"{arguments.size}: 1 process x 2 threads, efficiency": threads / one / 2,
        f"{arguments.size}: 2 processes x 1 thread, efficiency": processes / one / 2,
        f"{arguments.size}: 2 processes x 1 thread over 1 process x 2 threads": processes / threads,
    }
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    result = {
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "tokens_per_second": rates,
        "seconds_per_step": {side: round(TOKENS_PER_STEP / statistics.median(rates[side]), 4) for side in SIDES},
        "parameters": parameters,
        "gradient_bytes": BYTES_OF_GRADIENT * parameters,
        "all_reduce_seconds": sums,
    }
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tweets", type=Path, help="folder of .txt.gz files, a tweet a line")
    parser.add_argument("--encoder", type=Path, help="folder of a BERT; its tokenizer serves both sizes")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None, help="measured optimizer steps of each run")
    parser.add_argument("--compile", choices=("true", "false"), default="true", help="`--run.compile` of the stage")
    parser.add_argument("--work", default=None, help="folder for corpus and models; kept if given")
    parser.add_argument("--numbers", type=int, default=None, help="sum this many over the processes of torchrun")
    arguments = parser.parse_args()
    if not arguments.numbers and not (arguments.tweets and arguments.encoder):
        parser.error("--tweets and --encoder are needed")
    return arguments


def count_parameters(model: Path) -> int:
    from transformers import AutoModelForMaskedLM

    return sum(parameter.numel() for parameter in AutoModelForMaskedLM.from_pretrained(model).parameters())


def tokens_per_second(arguments: argparse.Namespace, processes: int, threads: int) -> float:
    """The rate in the stage's own metrics, after the first rows of them."""
    from launch.stage import iterate_jsonl

    log_steps = max(1, (arguments.steps or {"tiny": 48, "small": 12}[arguments.size]) // (LOGGED_ROWS - WARM_UP_ROWS))
    with tempfile.TemporaryDirectory() as folder:
        told = flags_of_stage(
            arguments, Path(folder) / "encoder", LOGGED_ROWS * log_steps, log_steps, compiled=arguments.compile
        )
        start([str(PROJECT / "pretrain/mlm.py"), *told], processes, threads)
        rows = [row for row in iterate_jsonl(Path(folder) / "encoder/metrics.jsonl") if row["event"] == "train"]
    return statistics.median(row["tokens_per_second"] for row in rows[WARM_UP_ROWS:])


def seconds_of_all_reduce(numbers: int) -> float:
    return float(start([__file__, f"--numbers={numbers}"], processes=2, threads=1).splitlines()[-1])


def start(command: list[str], processes: int, threads: int) -> str:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run(
        [sys.executable, *launcher, *command], capture_output=True, text=True, env=environment, cwd=PROJECT
    )
    if result.returncode:
        raise SystemExit(f"{command[0]} failed:\n{result.stdout}\n{result.stderr}")
    return result.stdout


def all_reduce(numbers: int, repeats: int = 20) -> None:
    """Print the median seconds of summing ``numbers`` fp32 numbers over all processes."""
    import torch

    torch.distributed.init_process_group("gloo")
    gradients = torch.ones(numbers)
    seconds = []
    for _ in range(repeats):
        torch.distributed.barrier()
        started_at = time.perf_counter()
        torch.distributed.all_reduce(gradients)
        seconds.append(time.perf_counter() - started_at)
    if torch.distributed.get_rank() == 0:
        print(statistics.median(seconds))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
