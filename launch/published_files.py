"""What of a finished folder may leave this machine: a list of names, not the folder's content.

Of a model: configuration, safetensors weights, tokenizer, records and, where ``config.json`` has an ``auto_map``, its
code. Never checkpoints, pickles, or predictions, which hold posts. Of a data set: the Parquet shards, the images that
its rows name, records; what was rejected only where it is asked for.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import yaml

from launch.errors import InputError
from launch.scrub import known_secrets, scrub

TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.txt vocab.json merges.txt "
    "bpe.codes spiece.model sentencepiece.bpe.model".split()
)
# JSON of ours or of transformers, whose strings may hold paths; a vocabulary is left as it is.
SCRUBBED_JSON = ("manifest.json", "scores.json", "config.json", "tokenizer_config.json")
SINGLE_WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
CONTENT_SUFFIXES = (".safetensors", ".parquet")
# What an earlier push may have left that would shadow this one's files: a shard, an index, a module, a tokenizer.
STALE_MODEL_FILES = ("model*.safetensors", WEIGHTS_INDEX, "*.py", *TOKENIZER_FILES, "scores.json")
STALE_DATASET_FILES = ("data/*.parquet", "rejected/*.parquet", "images/*")
_IMAGE = re.compile(r"images/[0-9a-f]{2}/[0-9a-f]{64}\.\w+")

RepositoryType = Literal["model", "dataset"]


@dataclass(frozen=True)
class PublishedFiles:
    """The files of a finished folder that may be pushed; the card is made anew and not among them."""

    repository_type: RepositoryType
    names: list[str]
    """Relative to the folder."""

    @property
    def stale(self) -> tuple[str, ...]:
        """Patterns of what is taken out of the repository if this push does not bring it."""
        return STALE_MODEL_FILES if self.repository_type == "model" else STALE_DATASET_FILES


def find_published_files(folder: Path, with_rejected: bool = False) -> PublishedFiles:
    """What may be pushed of a model or a data set; :class:`InputError` if the folder is no complete one."""
    remedy = "Give the output folder of a finished stage."
    if not (folder / "manifest.json").is_file():
        raise InputError.at(folder, None, "there is no manifest.json", remedy)
    optional = [name for name in ("config.yaml", "scores.json", *TOKENIZER_FILES) if (folder / name).is_file()]
    if (folder / "config.json").is_file():
        names = ["manifest.json", "config.json", *_weight_files(folder), *_code_files(folder), *optional]
        return PublishedFiles("model", names)
    if not any((folder / "data").glob("*.parquet")):
        problem = "there is no config.json of a model, and no data/*.parquet of a data set"
        raise InputError.at(folder, None, problem, remedy)
    rejected = _shards(folder, "rejected") if with_rejected else []
    shards = _shards(folder, "data") + rejected
    records = ["manifest.json", *(name for name in optional if name == "config.yaml")]
    return PublishedFiles("dataset", [*records, *shards, *_image_files(folder, shards)])


def stage_files(folder: Path, names: list[str], card: str, staging: Path) -> None:
    """Lay out in ``staging`` what is pushed: scrubbed records, the card, the other files as they are.

    Raises :class:`InputError` if one of the texts that are pushed as they are holds a credential of this machine.
    """
    secrets = [secret.encode() for secret in known_secrets()]
    for name in names:
        source, target = folder / name, staging / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in SCRUBBED_JSON:
            text = json.dumps(scrub(read_json(source)), indent=2, ensure_ascii=False) + "\n"
            target.write_text(text, encoding="utf-8")
        elif name == "config.yaml":
            settings = scrub(yaml.safe_load(source.read_text(encoding="utf-8")))
            target.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
        elif name.endswith(CONTENT_SUFFIXES) or _IMAGE.fullmatch(name):
            target.symlink_to(source.resolve())
        else:
            content = source.read_bytes()
            if any(secret in content for secret in secrets):
                raise InputError.at(source, None, "it holds a key of yours", "Take the key out of this file.")
            shutil.copyfile(source, target)
    (staging / "README.md").write_text(card, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; :class:`InputError` with the line where it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError.at(
            path, getattr(error, "lineno", None), "this is not JSON", "Make the folder again."
        ) from None


def _weight_files(folder: Path) -> list[str]:
    if (folder / SINGLE_WEIGHTS).is_file():
        return [SINGLE_WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        raise InputError.at(folder, None, f"there is no {SINGLE_WEIGHTS}", "Only safetensors weights are pushed.")
    shards = sorted(set(read_json(folder / WEIGHTS_INDEX)["weight_map"].values()))
    for shard in shards:
        # The name comes from a file: it must not lead out of the folder, or to a pickle.
        if Path(shard).name != shard or not shard.endswith(".safetensors") or not (folder / shard).is_file():
            raise InputError.at(folder / WEIGHTS_INDEX, None, f"its shard {shard} is not there", "Export again.")
    return [WEIGHTS_INDEX, *shards]


def _code_files(folder: Path) -> list[str]:
    """The model's own modules: all of the folder's ``*.py`` if ``config.json`` has an ``auto_map``, else none."""
    auto_map = read_json(folder / "config.json").get("auto_map") or {}
    references = [r for value in auto_map.values() for r in (value if isinstance(value, list) else [value]) if r]
    for reference in references:
        module = reference.rpartition(".")[0]
        if "--" not in reference and not (folder / f"{module}.py").is_file():  # "--": code of another repository
            raise InputError.at(folder, None, f"config.json names {module}.py, which is not there", "Export again.")
    return sorted(path.name for path in folder.glob("*.py")) if auto_map else []


def _shards(folder: Path, part: str) -> list[str]:
    return sorted(f"{part}/{path.name}" for path in (folder / part).glob("*.parquet"))


def _image_files(folder: Path, shards: list[str]) -> list[str]:
    """The image files that rows of the shards name: those of rejected posts stay here when their rows do."""
    if not (folder / "images").is_dir():
        return []
    named: set[str] = set()
    for shard in shards:
        with pq.ParquetFile(folder / shard) as file:
            if "images" not in file.schema_arrow.names:
                continue
            for batch in file.iter_batches(columns=["images"]):
                named.update(batch["images"].flatten().field("path").to_pylist())
    # The names come from a file: only such as the downloader gives are taken.
    return sorted(name for name in named if name and _IMAGE.fullmatch(name) and (folder / name).is_file())
