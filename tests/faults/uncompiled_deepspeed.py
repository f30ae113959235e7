"""Runs a stage under DeepSpeed without its faster communication in C++, which it would first compile, for over a minute.

accelerate launch … uncompiled_deepspeed.py pretrain/mlm.py --encoder …
"""

import importlib
import sys

import deepspeed.ops

if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    stage, *arguments = sys.argv[1:]
    sys.argv = [stage, *arguments]
    raise SystemExit(importlib.import_module(stage.removesuffix(".py").replace("/", ".")).main(arguments))
