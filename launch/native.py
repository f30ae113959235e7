"""Functions in C++ for what torch's operations are too small or too many for: compiled when first used, done without elsewhere.

A source is compiled in some seconds by the compiler that is there, once for each user, into the user's cache; nothing is
fetched. Who uses it has the same in torch, for machines without a compiler or without the processor's instructions.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

from launch.files import default_cache

FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=off", "-fopenmp", "-fPIC", "-shared")

logger = logging.getLogger(__name__)


@cache
def library(source: Path, instructions: tuple[str, ...]) -> ctypes.CDLL | None:
    """The compiled source, which the processor's ``instructions`` (as Linux calls them) may be used in.

    None where the processor has not all of them, and, with a warning, where it cannot be compiled.
    """
    if not processor_has(*instructions):
        return None
    try:
        return ctypes.CDLL(str(compiled(source, instructions)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: there is no home folder
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        logger.warning("%s is not compiled, steps are slower: %s", source.name, reason[-1] if reason else error)
        return None


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it can be read by its address: fp32, in one piece, on a processor."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()


def processor_has(*instructions: str) -> bool:
    """Whether the processor has all of these, as ``/proc/cpuinfo`` names them; False where there is no such file."""
    return processor_flags().issuperset(instructions)


@cache
def processor_flags() -> frozenset[str]:
    """The instructions of the first processor; none where the system is not Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), ()))


def compiled(source: Path, instructions: tuple[str, ...]) -> Path:
    """The library in the user's cache, made where it is not there. It depends on the headers beside the source, too.

    OSError where there is no compiler, or the cache cannot be written or can be by others; CalledProcessError where it fails.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise FileNotFoundError("there is no C++ compiler: g++, or the one that CXX names")
    flags = [*FLAGS, *(f"-m{name.replace('_', '')}" for name in instructions)]
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, text=True, errors="replace", check=True
    ).stdout
    read = [source.read_text(), *(header.read_text() for header in sorted(source.parent.glob("*.h")))]
    name = hashlib.sha256("\0".join([*read, version, *flags]).encode()).hexdigest()[:16]
    folder = default_cache() / "compiled"
    target = folder / f"{source.stem}-{name}.so"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.geteuid() or folder.stat().st_mode & 0o022:
        raise PermissionError(f"{folder} can be written by others, whose code would be run")
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:  # other processes may be at the same
            made = Path(work) / target.name
            subprocess.run(
                [compiler, *flags, str(source), "-o", str(made)],
                capture_output=True,
                text=True,
                errors="replace",
                check=True,
            )
            made.replace(target)
    return target
