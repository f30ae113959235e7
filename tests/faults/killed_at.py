"""Runs a training stage that kills itself without warning at a point of its work.

    python tests/faults/killed_at.py '{"place": "step", "step": 17, "event": 5}' pretrain/mlm.py --encoder …

Also under ``torchrun``: then ``rank`` says which process dies, and ``alone`` whether the others still run.
"""

import importlib
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from launch import loop

PLACES = ("step", "evaluation", "checkpoint")


@dataclass(frozen=True)
class KillPoint:
    """The ``event``-th thing that happens in a step, an evaluation or a checkpoint.

    Things are modules' forward and backward passes and the optimizer's, and openings and renamings of files.
    """

    place: str
    step: int
    """The first step, counted from 1, at which it may be: an evaluation or a checkpoint comes when it is due."""
    event: int
    rank: int = 0
    alone: bool = False
    """Whether the other processes still run afterwards."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class Killer:
    """Counts what happens at the point's place, and kills when its time has come."""

    def __init__(self, point: KillPoint) -> None:
        self.point = point
        self.place, self.step, self.events = "", 0, 0

    def count(self) -> None:
        here = self.place == self.point.place and self.step >= self.point.step
        self.events += here
        if here and self.events == self.point.event:
            self.kill()

    def kill(self) -> None:
        if not self.point.alone and "LOCAL_RANK" in os.environ:
            launcher = os.getppid()
            for process in [launcher, *children(launcher)]:
                if process != os.getpid():
                    os.kill(process, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def enter(self, place: str, step: int) -> None:
        self.place, self.step = place, step

    def install(self) -> None:
        """Follow the loop from place to place by what it calls there."""
        seed_dropout, evaluate, save = loop.seed_dropout, loop.evaluate, loop.save

        def seed(device, *key):
            self.enter("step", key[1] + 1)
            seed_dropout(device, *key)

        def within(place, function):
            def watched(*arguments):
                (position,) = (each for each in arguments if isinstance(each, loop.Position))
                self.enter(place, position.step)
                function(*arguments)
                self.enter("", position.step)

            return watched

        def on_work(*_):
            if self.place in ("step", "evaluation"):
                self.count()

        def on_module(_module, _inputs, output):
            on_work()
            if torch.is_tensor(output) and output.requires_grad:
                output.register_hook(on_work)

        def on_file(event: str, _):
            if self.place == "checkpoint" and event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"):
                self.count()

        loop.seed_dropout = seed
        loop.evaluate, loop.save = within("evaluation", evaluate), within("checkpoint", save)
        torch.nn.modules.module.register_module_forward_hook(on_module)
        register_optimizer_step_pre_hook(on_work)
        register_optimizer_step_post_hook(on_work)
        sys.addaudithook(on_file)


def children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


if __name__ == "__main__":
    described, stage, *arguments = sys.argv[1:]
    point = KillPoint(**json.loads(described))
    if point.rank == int(os.environ.get("RANK", "0")):
        Killer(point).install()
    sys.argv = [stage, *arguments]
    raise SystemExit(importlib.import_module(stage.removesuffix(".py").replace("/", ".")).main(arguments))
