"""Annotated tweets in the public file layout of TMN (Twitter-2015, Twitter-2017) become a `ner` data set.

    python data_prep/tmn.py --input TWITTER2015 --image_words captions.tsv --output data/tmn

Reads `train.txt`, `valid.txt` and `test.txt`. `OTHER` becomes MISC, orphan `I-` tags become `B-`, URL tokens go together
with their tags; the tokens and tags as they were stay beside the new ones, to score against. Ends with an audit.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from data_prep.column_files import TaggedText, read_tmn
from data_prep.image_words import content_words, read_image_words
from data_prep.images import read_image
from data_prep.layout import ENTITY_TYPES, NER_FEATURES, DatasetWriter, ner_row
from data_prep.near_duplicates import SIMILAR, words_of
from data_prep.similar_texts import find_overlap
from data_prep.tag_counts import TagCounts, tag_rows
from data_prep.tag_repair import tags_without_tokens
from data_prep.text_table import text_table
from data_prep.urls import remove_urls_from_tokens
from launch.dataset_stage import DatasetStageSettings, run_dataset_stage
from launch.errors import InputError
from launch.settings import NOT_IDENTITY
from launch.stage import Stage

SPLIT_FILES = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}
FILE_TYPES = (*ENTITY_TYPES, "OTHER")
ONLY_URLS = "no tokens left without URLs"
EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class TmnSettings(DatasetStageSettings):
    """Settings of the TMN reader."""

    input: Path = field(metadata=NOT_IDENTITY)
    """Folder with `train.txt`, `valid.txt` and `test.txt`: `IMGID:` lines, token-tab-tag lines, blank lines."""
    images: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Folder of image files named by image id (`27.jpg`). Without it the column `image` stays empty."""
    image_words: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Table of image words or captions: a header line, then on each line an image id, a tab, its text."""
    image_words_separator: str | None = None
    """Split the table's texts here into several image words, e.g. `,`. Without it a text is one entry, as fits captions."""
    content_words: int | None = None
    """Of an image's text take its first words that name something, up to this many, as image words; null takes all."""
    missing_image_words: Literal["error", "empty"] = "error"
    """What to do when the table lacks ids of the data: refuse, or give those tweets no image words and count them."""

    def __post_init__(self) -> None:
        """Refuse to keep no words."""
        if self.content_words is not None and self.content_words < 1:
            raise ValueError(f"content_words: {self.content_words} is not positive; null takes all words")
        if self.content_words is not None and self.image_words is None:
            raise ValueError("content_words: there are no --image_words to take them from")


def main(argv: list[str] | None = None) -> int:
    """Run the stage."""
    return run_dataset_stage(
        TmnSettings,
        make_tmn,
        inputs=lambda settings: {
            "tweets": settings.input,
            "images": settings.images,
            "image_words": settings.image_words,
        },
        argv=argv,
    )


def make_tmn(settings: TmnSettings, stage: Stage) -> None:
    """Read, clean and audit the tweets, and write them with what goes with their images."""
    tweets = {split: read_tmn(settings.input / name, FILE_TYPES) for split, name in SPLIT_FILES.items()}
    for tweet in (tweet for split in tweets.values() for tweet in split):
        tweet.tags = [tag.replace("OTHER", "MISC") for tag in tweet.tags]
    words_by_id = _image_words(settings, stage, tweets)
    images_left_out: Counter[str] = Counter()

    with DatasetWriter(stage.folder, NER_FEATURES) as writer:
        for split, split_tweets in tweets.items():
            for tweet in stage.progress(split_tweets, f"writing {split}", unit="tweet"):
                row = _row(f"{Path(SPLIT_FILES[split]).stem}:{tweet.line}", tweet)
                row["image_words"] = words_by_id.get(tweet.image_id, [])
                if settings.images is not None:
                    row["image"], problem = read_image(settings.images, tweet.image_id)
                    if problem:
                        images_left_out[problem] += 1
                stage.rows.taken += 1
                if row["tokens"]:
                    stage.rows.kept += 1
                    writer.add(split, row)
                else:
                    stage.rows.rejected[ONLY_URLS] += 1
                    writer.reject(row, ONLY_URLS)

    stage.facts["language"] = "en"
    stage.facts["audit"] = audit(tweets)
    if settings.images is not None:
        stage.facts["images_left_out"] = dict(images_left_out)
        stage.log(f"images left out: {dict(images_left_out) or 'none'}")
    print(audit_table(stage.facts["audit"]))
    writer.write_card(
        "Tweets with named entities and image words",
        {
            "image words": "none" if settings.image_words is None else f"from {settings.image_words.name}",
            "images": "none" if settings.images is None else "embedded",
            **{f"entities in {split}": _in_words(facts) for split, facts in stage.facts["audit"]["splits"].items()},
        },
        about="`tokens` and `ner_tags` are for training: URLs removed, orphan `I-` tags made `B-`. Scores are taken against "
        "`source_tags`, over `source_tokens`: the file's own, but for `OTHER`, which is MISC.",
    )


def audit(tweets: dict[str, list[TaggedText]]) -> dict[str, Any]:
    """Counts of what the files hold, by split, and the near-duplicates between splits (ids, no texts)."""
    splits = {}
    for split, split_tweets in tweets.items():
        counts = TagCounts()
        for tweet in split_tweets:
            counts.add(tweet.tokens, tweet.tags)
        splits[split] = {"tweets": len(split_tweets), **counts.facts()}
    return {"splits": splits, "near_duplicates": _near_duplicates(tweets)}


def audit_table(facts: dict[str, Any]) -> str:
    """The audit as text: a column for each split."""
    splits = facts["splits"]
    tweets = ("tweets", *(str(split["tweets"]) for split in splits.values()))
    lines = [text_table([("", *splits), tweets, *tag_rows(splits)])]
    lines.append(f"near-duplicates across splits (Jaccard similarity of words at least {SIMILAR}):")
    for pair, found in facts["near_duplicates"].items():
        examples = "; ".join(f"{a} and {b} ({similarity:.2f})" for a, b, similarity in found["examples"])
        lines.append(f"  {pair}: {found['pairs']}" + (f", as {examples}" if examples else ""))
    return "\n".join(lines)


def _row(row_id: str, tweet: TaggedText) -> dict[str, Any]:
    """The tweet without its URLs and their tags, the rest of the tags repaired, its source beside it."""
    left_over = remove_urls_from_tokens(tweet.tokens)
    kept = [position for position, token in enumerate(left_over) if token]
    return ner_row(
        row_id,
        tokens=[left_over[position] for position in kept],
        tags=tags_without_tokens(tweet.tags, kept),
        source_tokens=tweet.tokens,
        source_tags=tweet.tags,
        source_index=kept,
        image_id=tweet.image_id,
    )


def _near_duplicates(tweets: dict[str, list[TaggedText]]) -> dict[str, Any]:
    texts = {
        split: [(f"{split}:{tweet.line}", words_of(" ".join(tweet.tokens))) for tweet in split_tweets]
        for split, split_tweets in tweets.items()
    }
    found = {}
    for first, second in combinations(tweets, 2):
        overlap = find_overlap(texts[first], texts[second])
        found[f"{first} and {second}"] = {"pairs": overlap.pairs, "examples": [list(pair) for pair in overlap.examples]}
    return found


def _image_words(settings: TmnSettings, stage: Stage, tweets: dict[str, list[TaggedText]]) -> dict[str, list[str]]:
    """Image words by image id; the ids of the data that the table lacks are refused or counted."""
    if settings.image_words is None:
        return {}
    words_by_id = read_image_words(settings.image_words, settings.image_words_separator)
    if settings.content_words is not None:
        words_by_id = {name: content_words(texts, settings.content_words) for name, texts in words_by_id.items()}
    needed = dict.fromkeys(tweet.image_id for split in tweets.values() for tweet in split)
    missing = [image_id for image_id in needed if image_id not in words_by_id]
    if missing and settings.missing_image_words == "error":
        more = ", …" if len(missing) > EXAMPLES else ""
        problem = f"no line for {len(missing)} of {len(needed)} image ids: {', '.join(missing[:EXAMPLES])}{more}"
        remedy = "Add them, or give those tweets none with --missing_image_words empty."
        raise InputError.at(settings.image_words, None, problem, remedy)
    stage.facts["image_words"] = {
        "table": settings.image_words.name,
        "images_without_words": len(missing) + sum(not words_by_id[i] for i in needed if i in words_by_id),
        "lines_not_used": sum(image_id not in needed for image_id in words_by_id),
    }
    facts = stage.facts["image_words"]
    stage.log(f"image words: {facts['images_without_words']} of {len(needed)} images have none")
    return words_by_id


def _in_words(facts: dict[str, Any]) -> str:
    return f"{sum(facts['strict'].values())} (strict), {sum(facts['conlleval'].values())} (conlleval)"


if __name__ == "__main__":
    raise SystemExit(main())
