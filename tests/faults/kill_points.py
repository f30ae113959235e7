"""Kill -9 at random points, go on by the same command, and compare with the run that nothing disturbed: bit for bit.

    make faults
    python tests/faults/kill_points.py --points 20 --seed 1 --processes 1 2

One run is killed at all points, one after the other: in a step, while evaluating, while writing a checkpoint; of two
processes both at once, or one while the other still runs. After each kill the losses that the run has logged must be
the undisturbed run's, in the end also the weights. The points come from the seed.
"""

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests"), str(PROJECT / "tests/faults")]

from killed_at import PLACES, KillPoint, children  # noqa: E402
from tiny_models import environment, make_corpus, make_encoder  # noqa: E402

from launch.files import sha256_of_file  # noqa: E402
from launch.stage import iterate_jsonl  # noqa: E402

PATIENCE_SECONDS = 300
EVENTS = {"step": 60, "evaluation": 60, "checkpoint": 30}
"""About as many as there are at each place."""
LAST_STEP = 90
"""Of the random points; the run is longer."""


def draw_points(count: int, processes: int, seed: int) -> list[KillPoint]:
    """Points in the order of their steps, as many at each place."""
    draw = random.Random(f"{seed} {processes}")
    steps = sorted(draw.sample(range(1, LAST_STEP), count))
    places = draw.sample(PLACES, len(PLACES)) * count
    return [
        KillPoint(
            place, step, draw.randint(1, EVENTS[place]), rank=draw.randrange(processes), alone=draw.random() < 0.5
        )
        if processes > 1 and place != "checkpoint"  # which the main process writes
        else KillPoint(place, step, draw.randint(1, EVENTS[place]), alone=processes > 1 and draw.random() < 0.5)
        for place, step in zip(places, steps, strict=False)
    ]


class Run:
    """A pretraining run that can be started, killed and started again by the same command."""

    def __init__(
        self, folder: Path, name: str, processes: int, *more: str, launcher: Sequence[str] | None = None
    ) -> None:
        self.output, self.partial = folder / name, folder / f"{name}.partial"
        self.log = folder / f"{name}.log"
        self.processes, self.launcher = processes, launcher
        self.arguments = [
            *(f"--encoder={folder / 'encoder'}", f"--data={folder / 'corpus'}", f"--output={self.output}"),
            *("--row_length=32", "--tokens_per_step=256", "--dropout=0.1", "--schedule.epochs=7", "--evaluate_steps=9"),
            *("--run.log_steps=1", "--run.checkpoint_steps=4", "--run.micro_batch=2", "--run.precision=fp32"),
            *more,
        ]

    def start(self, *script: str, **variables: str) -> subprocess.Popen:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes)]
        launcher = self.launcher or torchrun
        command = [sys.executable, *(launcher if self.processes > 1 else [])]
        command += [*(script or ["pretrain/mlm.py"]), *self.arguments]
        with open(self.log, "a") as log:
            return subprocess.Popen(
                command, cwd=PROJECT, env=environment(PYTHONPATH=str(PROJECT)) | variables, stdout=log, stderr=log
            )

    def finish(self) -> None:
        code = self.start().wait(PATIENCE_SECONDS)
        assert code == 0, f"exit code {code}\n{self.log.read_text()[-3000:]}"

    def die_at(self, point: KillPoint) -> None:
        """Run until the point is reached, and all processes have ended."""
        code = self.start("tests/faults/killed_at.py", point.to_json(), "pretrain/mlm.py").wait(PATIENCE_SECONDS)
        expected = 1 if self.processes > 1 and point.alone else -signal.SIGKILL  # 1: torchrun's, for a dead process
        assert code == expected and not self.output.exists(), f"exit code {code}\n{self.log.read_text()[-3000:]}"

    def wait_for_step(self, step: int, process: subprocess.Popen) -> None:
        """Wait until the started run has taken the step."""
        end = time.monotonic() + PATIENCE_SECONDS
        while max((row[1] for row in self.losses()), default=0) < step:
            assert time.monotonic() < end and process.poll() is None, self.log.read_text()
            time.sleep(0.005)

    def newest_checkpoint(self) -> int:
        """The step of it."""
        return max(int(path.name.removeprefix("step-")) for path in (self.partial / "checkpoints").glob("step-*"))

    def losses(self) -> list[tuple[str, int, float]]:
        folder = self.output if self.output.exists() else self.partial
        path = folder / "metrics.jsonl"
        return [(row["event"], row["step"], row["loss"]) for row in iterate_jsonl(path)] if path.exists() else []

    def weights(self) -> str:
        return sha256_of_file(self.output / "model.safetensors")


def process_of_rank(rank: int, launcher: int) -> int:
    """The id of a process that torchrun has started."""
    variable = f"RANK={rank}"
    (found,) = (
        child
        for child in children(launcher)
        if variable in Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
    )
    return found


def make_inputs(folder: Path) -> None:
    """What the runs in ``folder`` train on."""
    make_encoder(folder / "encoder")
    make_corpus(folder / "corpus", train=300)


def check(folder: Path, points: list[KillPoint], processes: int) -> None:
    """Kill a run at the points, and raise AssertionError unless it stays what the undisturbed one is."""
    undisturbed = Run(folder, f"undisturbed-{processes}", processes)
    reference = undisturbed.start()
    run = Run(folder, f"killed-{processes}", processes)
    for number, point in enumerate(points, start=1):
        started = time.monotonic()
        run.die_at(point)
        assert reference.wait(PATIENCE_SECONDS) == 0, undisturbed.log.read_text()[-3000:]
        expected, losses = undisturbed.losses(), run.losses()
        reached = losses[-1][1] if losses else 0
        print(
            f"{processes} process(es), point {number:2}: {describe(point, processes)}: killed after step {reached}, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
        assert losses == expected[: len(losses)], f"other losses than undisturbed: {run.log}"
    run.finish()
    assert run.losses() == expected, f"other losses than undisturbed: {run.log}"
    assert run.weights() == undisturbed.weights(), f"other weights than undisturbed: {run.log}"
    assert not run.partial.exists() and {path.name for path in run.output.iterdir()} == {
        path.name for path in undisturbed.output.iterdir()
    }
    print(f"{processes} process(es): weights equal the undisturbed run's, bit for bit", flush=True)


def describe(point: KillPoint, processes: int) -> str:
    """The point in words."""
    who = f", process {point.rank}{' alone' if point.alone else ' and the others'}" if processes > 1 else ""
    return f"{point.place} from step {point.step}, event {point.event}{who}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=20, help="for each number of processes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder))
        for processes in arguments.processes:
            check(Path(folder), draw_points(arguments.points, processes, arguments.seed), processes)


if __name__ == "__main__":
    main()
