"""Tweets with words predicted from their images, of the multimodal sarcasm data set, become a corpus with image words.

    python data_prep/mmsarcasm.py --input tweets_with_5_image_words.jsonl.gz --output data/mmsarcasm --exclude data/tmn

Reads JSON lines (perhaps gzipped) with `id`, `split` (`train`, `valid2` or `test2`), `text` and `image_words`. Placeholders
of URLs (`<url>`) are removed, as URLs are from all text here; nothing else is changed. What is said of sarcasm is not read.
`--exclude` leaves out tweets that are also, or nearly, in a data set that a model will be tested on.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.excluded import Excluded, ExcludeSettings
from data_prep.layout import PAIRS_FEATURES, DatasetWriter
from data_prep.posts import storable
from launch.dataset_stage import DatasetStageSettings, run_dataset_stage
from launch.errors import InputError
from launch.settings import NOT_IDENTITY
from launch.stage import Stage

SPLITS = {"train": "train", "valid2": "validation", "test2": "test"}
URL = "<url>"
EMPTY, REPEATED = "empty", "id came before"
_FORMAT = "Expected is a JSON object with `id`, `split`, `text` (strings) and `image_words` (a list of strings)."


@dataclass(frozen=True, kw_only=True)
class MMSarcasmSettings(ExcludeSettings, DatasetStageSettings):
    """Settings of the reader of the multimodal sarcasm data set."""

    input: Path = field(metadata=NOT_IDENTITY)
    """File of JSON lines, gzipped where its name ends in `.gz`."""


def main(argv: list[str] | None = None) -> int:
    """Run the stage."""
    inputs = lambda settings: {"tweets": settings.input, **settings.excluded_inputs()}  # noqa: E731
    return run_dataset_stage(MMSarcasmSettings, make_mmsarcasm, inputs, argv)


def make_mmsarcasm(settings: MMSarcasmSettings, stage: Stage) -> None:
    """Read the tweets and put each into its split, or among the rejected."""
    excluded = Excluded(settings.excluded_folders, settings.exclude_similarity)
    stage.facts |= {"language": "en", "tweets_with_urls": 0}
    stage.facts |= {"excluded_texts": len(excluded.ids), "excluded_matches": excluded.matches}
    seen: set[str] = set()
    with DatasetWriter(stage.folder, PAIRS_FEATURES) as writer:
        for line, tweet in stage.progress(_read(settings.input), "reading", unit="tweet"):
            split = _check(settings.input, line, tweet)
            words = tweet["text"].split()
            left = [word for word in words if word != URL]
            row = {"id": tweet["id"], "text": " ".join(left), "image_words": tweet["image_words"]}
            stage.rows.taken += 1
            reason = EMPTY if not left else REPEATED if tweet["id"] in seen else excluded.reason(row["id"], row["text"])
            if reason:
                writer.reject(row, reason)
                stage.rows.rejected[reason] += 1
                continue
            seen.add(tweet["id"])
            writer.add(split, row)
            stage.rows.kept += 1
            stage.facts["tweets_with_urls"] += len(left) < len(words)
    for split in ("train", "validation"):
        if not writer.rows(split):
            raise InputError.at(settings.input, None, f"no tweets for the split {split}", "Give the whole file.")
    stage.facts["rows_of_split"] = {split: writer.rows(split) for split in SPLITS.values()}
    writer.write_card(
        "Tweets with image words (multimodal sarcasm data set)",
        {"tweets": stage.facts["rows_of_split"]},
        about="`image_words` are five words that a model predicted from the tweet's image, from a vocabulary of 1,000.",
    )
    stage.log(f"{stage.rows.taken} tweets read: {stage.facts['rows_of_split']}, rejected {dict(stage.rows.rejected)}")


def _read(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and content of each line."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, json.loads(line)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError.at(path, number + 1, f"cannot be read ({error})", "Get the file again.") from None
    except ValueError as error:
        raise InputError.at(path, number, f"not JSON ({error})", _FORMAT) from None


def _check(path: Path, line: int, tweet: Any) -> str:
    """The split of a tweet; InputError where it is none."""
    texts = [tweet.get(name) for name in ("id", "text")] if isinstance(tweet, dict) else [None]
    words = tweet.get("image_words") if isinstance(tweet, dict) else None
    if not all(isinstance(text, str) for text in texts) or not isinstance(words, list):
        raise InputError.at(path, line, "not a tweet with image words", _FORMAT)
    if any(text != storable(text) for text in (*texts, *words) if isinstance(text, str)):
        raise InputError.at(path, line, "half of a pair of surrogates, such as an emoji that was cut", "Mend the text.")
    if not all(isinstance(word, str) and word.strip() for word in words):
        raise InputError.at(path, line, "image words that are no words", _FORMAT)
    if tweet.get("split") not in SPLITS:
        raise InputError.at(path, line, f"split {tweet.get('split')!r}", f"Known are {', '.join(SPLITS)}.")
    return SPLITS[tweet["split"]]


if __name__ == "__main__":
    raise SystemExit(main())
