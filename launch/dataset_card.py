"""The card of a data set: rendered from its Parquet files, from what its stage says of it, and from its manifest.

A stage writes the card with what it knows (title, some lines about the data). When the manifest is there the card is
rendered again, with the chain of stages, and once more when it is pushed; what the stage, or a person, wrote above
`KEPT_ABOVE` stays. So the card is whole at any time: also while a crawl goes on and there is no manifest yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features, Image, List
from huggingface_hub import DatasetCardData

from launch.card import ChainStage, chain_row, read_chain, render
from launch.errors import InputError
from launch.scrub import redact, scrub
from launch.stage import CARD_NAME, read_manifest

DEFAULT_LICENSE = "other"
REJECTED = "rejected"
KEPT_ABOVE = "<!-- What stands between the title and this line is kept when the card is rendered again. -->"
SHARDS = "{}-*.parquet"
_SHARD_NAME = re.compile(r"(\w+)-\d.*\.parquet")
_SPLIT_ORDER = ("train", "validation", "test")
_SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")

MEANINGS = {
    "id": "of the row, unique within its split",
    "text": "of the post",
    "lang": "the language, as the platform says; null where it does not know",
    "created_at": "when it was posted",
    "source": "the platform, or the file, that it comes from",
    "author_id": "the author's id on the platform",
    "images": "the photos, in the order of the post; `path` is that of the file within this data set",
    "tokens": "the words that models read: URLs removed",
    "ner_tags": "tags of `tokens`, valid BIO",
    "source_tokens": "the words as they stand in the source",
    "source_tags": "tags of `source_tokens` as they stand in the source: what scores are taken against",
    "source_index": "place in `source_tokens` of each of `tokens`",
    "image_id": "the image's name in the source",
    "image": "the image, its file's bytes unchanged",
    "image_words": "text that comes from the image: labels, or a caption",
    "image_word_scores": "the probability of each of `image_words`",
    "image_word_ids": "the number of each of `image_words` among the classifier's classes",
    "image_problem": "why there are no image words",
    "reason": "why the row was left out",
}
"""What the columns of this toolkit's data sets hold."""


@dataclass(frozen=True)
class Shards:
    """What the Parquet files of a data-set folder say of it."""

    rows: dict[str, int]
    """By split, ``train``, ``validation``, ``test`` first; splits without rows are left out."""
    rejected: int
    features: Features

    @property
    def kind(self) -> str:
        """``posts``, ``corpus`` or ``ner``."""
        if "ner_tags" in self.features:
            return "ner"
        return "posts" if {"images", "source"} <= self.features.keys() else "corpus"


def render_dataset_card(
    folder: Path,
    title: str,
    about: str,
    *,
    manifest: dict[str, Any] | None = None,
    license: str = DEFAULT_LICENSE,
    repo_id: str | None = None,
    with_rejected: bool = True,
) -> str:
    """The card's Markdown, with the YAML header by which `datasets.load_dataset` finds configs and splits.

    ``about`` is Markdown; ``manifest`` the stage's, None while there is none; ``license`` by the Hub's name for it;
    ``repo_id`` where the data set is going, for the usage snippet; ``with_rejected``: whether `rejected/` goes there too.
    InputError if a file is no Parquet.
    """
    shards = read_shards(folder)
    chain = read_chain(scrub(manifest)) if manifest else []
    names = {stage.name for stage in chain}
    rejected = shards.rejected if with_rejected else 0
    header = DatasetCardData(
        pretty_name=" ".join(title.split()),
        language=_languages([stage.manifest for stage in reversed(chain)]),
        license=license,
        task_categories={"ner": ["token-classification"], "corpus": ["fill-mask"]}.get(shards.kind),
        tags=_tags(shards, chain),
        size_categories=[_size(sum(shards.rows.values()))],
        configs=_configs(shards, rejected) or None,
    )
    text = render(
        "dataset_card_template.md",
        header=header.to_yaml(),
        title=title,
        about=about,
        kept_above=KEPT_ABOVE,
        shards=shards,
        rejected=rejected,
        columns=[(name, type_in_words(feature), MEANINGS.get(name, "")) for name, feature in shards.features.items()],
        place=repo_id or "PATH_OR_REPOSITORY",
        is_published=repo_id is not None,
        license=license,
        chain=chain,
        rows=[chain_row(stage) for stage in chain],
        manifest=chain[-1].manifest if chain else {},
        has_news="data_prep/conll2003" in names,
        has_posts=names != {"data_prep/conll2003"},
    )
    return redact(text)


def render_again(
    folder: Path, license: str = DEFAULT_LICENSE, repo_id: str | None = None, with_rejected: bool = True
) -> str:
    """The card of a finished data set, from its manifest and from what its present card says about it."""
    title, about = _written_by_hand(folder)
    return render_dataset_card(
        folder,
        title,
        about,
        manifest=read_manifest(folder),
        license=license,
        repo_id=repo_id,
        with_rejected=with_rejected,
    )


def facts_as_list(facts: Mapping[str, Any]) -> str:
    """``facts`` as a Markdown list, fit for a card's ``about``."""
    return render("fact_list.md", facts=scrub(dict(facts))).strip()


def read_shards(folder: Path) -> Shards:
    """Splits, rows and columns of a data-set folder, from the footers of its Parquet files."""
    rows: dict[str, int] = {}
    features = Features()
    for file in sorted((folder / "data").glob("*.parquet")):
        if match := _SHARD_NAME.fullmatch(file.name):
            metadata, features = _footer(file)
            rows[match[1]] = rows.get(match[1], 0) + metadata.num_rows
    rejected = sum(_footer(file)[0].num_rows for file in (folder / REJECTED).glob(SHARDS.format(REJECTED)))
    splits = [split for split in (*_SPLIT_ORDER, *sorted(rows.keys() - set(_SPLIT_ORDER))) if rows.get(split)]
    return Shards({split: rows[split] for split in splits}, rejected, features)


def type_in_words(feature: Any) -> str:
    """A column's type, as a card and an error message tell it."""
    if isinstance(feature, List):
        return f"list of {type_in_words(feature.feature)}"
    if isinstance(feature, ClassLabel):
        return f"label ({', '.join(feature.names)})"
    if isinstance(feature, dict):
        return f"({', '.join(f'{name}: {type_in_words(part)}' for name, part in feature.items())})"
    return "image" if isinstance(feature, Image) else str(getattr(feature, "dtype", feature))


def _footer(file: Path) -> tuple[pq.FileMetaData, Features]:
    try:
        metadata = pq.read_metadata(file)
        return metadata, Features.from_arrow_schema(metadata.schema.to_arrow_schema())
    except (pa.ArrowInvalid, ValueError, KeyError, TypeError) as error:
        raise InputError.at(file, None, f"not a Parquet file of a data set ({error})", "Make it again.") from None


def _written_by_hand(folder: Path) -> tuple[str, str]:
    """Title and text of the folder's card, above `KEPT_ABOVE`; the folder's name where it has no such card."""
    card = folder / CARD_NAME
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    found = re.search(rf"^# ([^\n]+)\n(.*?){re.escape(KEPT_ABOVE)}", text, re.MULTILINE | re.DOTALL)
    return (found[1].strip(), found[2].strip()) if found else (folder.resolve().name, "")


def _configs(shards: Shards, rejected: int) -> list[dict[str, Any]]:
    folders = [("default", "data", list(shards.rows))] + ([(REJECTED, REJECTED, [REJECTED])] if rejected else [])
    return [
        {
            "config_name": name,
            "data_files": [{"split": split, "path": f"{folder}/{SHARDS.format(split)}"} for split in splits],
        }
        for name, folder, splits in folders
        if splits
    ]


def _languages(manifests: list[dict[str, Any]]) -> list[str] | None:
    """What the latest stage that knows the language of its texts says; codes only, as the Hub takes no others."""
    for manifest in manifests:
        said = (manifest.get("facts") or {}).get("language") or (manifest.get("settings") or {}).get("language")
        codes = [code for code in ([said] if isinstance(said, str) else said or []) if re.fullmatch("[a-z]{2,3}", code)]
        if codes:
            return codes
    return None


def _tags(shards: Shards, chain: list[ChainStage]) -> list[str]:
    names = {stage.name for stage in chain}
    settings = (chain[-1].manifest.get("settings") or {}) if chain else {}
    has_images = settings.get("images") or settings.get("image_words") or "data_prep/label_images" in names
    tags = ["news"] if names == {"data_prep/conll2003"} else ["social-media", "posts"]
    tags += ["named-entity-recognition"] if shards.kind == "ner" else []
    return tags + (["multimodal"] if has_images else [])


def _size(rows: int) -> str:
    """The Hub's size category."""
    return _SIZES[min(max(len(str(rows)) - 3, 0), len(_SIZES) - 1)]
