"""Ask one stage file what several commands of it would do: one start of Python for all, since imports take seconds.

    echo '{"ner-1": ["--seed", "1", ...], "ner-2": [...]}' | python launch/ask.py finetune/ner.py

answers ``{"ner-1": "up to date", "ner-2": "would run: its output is not there"}``: what each command with
``--dry_run true`` says, or ``would fail: ...`` where it ends with an error.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path


def ask(script: Path, commands: dict[str, list[str]]) -> dict[str, str]:
    """The answers of the stage in ``script``, by the names of ``commands``."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        spec = importlib.util.spec_from_file_location(f"asked_{script.stem}", script)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return {name: _answer(module, arguments) for name, arguments in commands.items()}


def _answer(module, arguments: list[str]) -> str:
    out, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            code = module.main([*arguments, "--dry_run", "true"])
        except SystemExit as ended:  # the command line was refused
            code = ended.code
    lines = (out if code == 0 else errors).getvalue().strip().splitlines() or [f"exit code {code}"]
    # A stage begins with its own name, "finetune/ner: up to date"; a refused command line with "error: ".
    return lines[-1].partition(": ")[2] if code == 0 else f"would fail: {lines[-1].removeprefix('error: ')}"


if __name__ == "__main__":
    asked = Path(sys.argv[1])
    sys.path[0] = str(asked.resolve().parent)  # as when the stage itself is run
    print(json.dumps(ask(asked, json.load(sys.stdin))))
