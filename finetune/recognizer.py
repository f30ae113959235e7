"""A trained recognizer, loaded from its folder: entities in texts, with character offsets, types and scores."""

from __future__ import annotations

import json
from pathlib import Path

CODE_FILES = ("systems/msb.py", "crf.py", "tags.py")
"""What a model with a CRF needs to load with ``trust_remote_code``, without this toolkit."""


def add_model_code(folder: Path) -> None:
    """Put the code of a model class of ours beside its weights, so that the folder loads anywhere.

    Does nothing for stock models. The modules become siblings, so their imports of one another become relative.
    """
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    if config["model_type"] != "msb":
        return
    for name in CODE_FILES:
        source = (Path(__file__).parent / name).read_text(encoding="utf-8")
        (folder / Path(name).name).write_text(source.replace("from finetune.", "from ."), encoding="utf-8")
    config["auto_map"] = {
        "AutoConfig": "msb.MSBConfig",
        "AutoModelForTokenClassification": "msb.MSBForTokenClassification",
    }
    config_path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
