"""The CRF layer beside pytorch-crf: loss with gradient, and decoding, on batches like TMN's.

    python benchmarks/crf.py [--repeats 15]

64 sentences of 40 words at most (lengths as tweets have them), 9 and 17 labels, the same weights and emissions on both
sides, whose losses and labels are compared first. One thread; medians of interleaved repeats. The last line is a JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torchcrf

from finetune.crf import LinearChainCRF
from launch.stage import machine, versions

SENTENCES, WORDS = 64, 40
LABELS = (9, 17)
CALLS = 20
"""Calls that are timed together."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    ratios, milliseconds = {}, {}
    for labels in LABELS:
        for task, (ours, theirs) in make_tasks(labels).items():
            name = f"{task}, {labels} labels"
            pairs = [(timed(ours), timed(theirs)) for _ in range(repeats)]
            ratios[name] = round(statistics.median(b / a for a, b in pairs), 2)
            milliseconds[name] = {
                "ours": [round(a, 3) for a, _ in pairs],
                "pytorch-crf": [round(b, 3) for _, b in pairs],
            }
            medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
            print(f"{name}: {medians[0]:.2f} ms, pytorch-crf {medians[1]:.2f} ms, ratio {ratios[name]}", flush=True)
    print(json.dumps({"ratios": ratios, "milliseconds": milliseconds, "machine": machine(), "versions": versions()}))


def make_tasks(labels: int) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Ours and theirs, checked to agree."""
    torch.manual_seed(0)
    ours, theirs = LinearChainCRF(labels), torchcrf.CRF(labels, batch_first=True)
    theirs.load_state_dict({name: parameter.detach() for name, parameter in ours.named_parameters()})
    lengths = torch.randint(5, WORDS + 1, (SENTENCES,))
    lengths[0] = WORDS
    mask = torch.arange(WORDS) < lengths[:, None]
    emissions = torch.randn(SENTENCES, WORDS, labels, requires_grad=True)
    gold = torch.randint(labels, (SENTENCES, WORDS))

    def our_loss() -> torch.Tensor:
        loss = ours(emissions, gold, mask).sum()
        loss.backward()
        return loss

    def their_loss() -> torch.Tensor:
        loss = -theirs(emissions, gold, mask, reduction="sum")
        loss.backward()
        return loss

    torch.testing.assert_close(our_loss(), their_loss())
    assert ours.decode(emissions, mask) == theirs.decode(emissions, mask)
    return {
        "loss and gradient": (our_loss, their_loss),
        "decoding": (lambda: ours.decode(emissions, mask), lambda: theirs.decode(emissions, mask)),
    }


def timed(function: Callable[[], object]) -> float:
    """Milliseconds of a call."""
    started_at = time.perf_counter()
    for _ in range(CALLS):
        function()
    return (time.perf_counter() - started_at) / CALLS * 1000


if __name__ == "__main__":
    main()
