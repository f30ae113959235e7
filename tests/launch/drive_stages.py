"""Runs stages one after another in each of the processes that a launcher starts: imports are paid for once.

    torchrun … drive_stages.py '[["pretrain.mlm", ["--encoder=…", …], null], …]'

The third of each entry is the step at which all processes are interrupted, or null. A fourth, where there is one, is the
DeepSpeed configuration from there on, as `accelerate launch` would give it.
"""

import importlib
import json
import os
import sys

from accelerate.state import AcceleratorState

from launch import loop

seed_dropout = loop.seed_dropout


def interrupted_at(step: int | None):
    def seed(device, *key: int) -> None:
        if key[1] == step:
            raise KeyboardInterrupt
        seed_dropout(device, *key)

    return seed


if "ACCELERATE_USE_DEEPSPEED" in os.environ:
    import deepspeed.ops

    # Faster communication in C++, which DeepSpeed would first compile, for a minute and a half.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

for module, arguments, step, *deepspeed_config in json.loads(sys.argv[1]):
    if deepspeed_config:
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = deepspeed_config[0]
        AcceleratorState._reset_state()
    loop.seed_dropout = interrupted_at(step)
    code = importlib.import_module(module).main(arguments)
    if code != (0 if step is None else 130):
        raise SystemExit(f"{module} gave exit code {code}")
    if "ACCELERATE_USE_DEEPSPEED" in os.environ and os.environ["RANK"] == "0":
        zero = AcceleratorState().deepspeed_plugin.deepspeed_config["zero_optimization"]
        offloaded = ", offloaded" if "offload_optimizer" in zero else ""
        print(f"{arguments[-1]} ran under ZeRO-{zero['stage']}{offloaded}", file=sys.stderr)
