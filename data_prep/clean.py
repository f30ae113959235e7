"""Raw posts become a `corpus` for language modelling.

    python data_prep/clean.py --input posts/ --output data/posts --exclude data/tmn

Each post loses its URLs, and is otherwise left as it is, but for white space (runs of it become one space); more is done
where settings ask for it. Left out, with the reason, are posts that are too short, that came before, that are also in a
data set a model will be tested on (`--exclude`), or that cannot be read. They lie in `rejected/`: no post vanishes.

The work on each post alone is done by Daft, on all cores or on a Ray cluster, a batch at a time; what needs the posts
before it is decided here, in their order. Kept in memory of each kept post are hashes (8 bytes; with near-duplicates some
250), no texts.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.column_files import read_lines
from data_prep.excluded import Excluded, ExcludeSettings
from data_prep.layout import CORPUS_FEATURES, REJECTED, DatasetWriter
from data_prep.post_frame import TextSettings, iterate_posts, read_frame, use_runner, with_text_work
from data_prep.repeats import BLOCK_POSTS, SIGNATURE_HASHES, NearRepeats, WordSets, bands_of
from data_prep.sources.files import files_passed_over, post_files
from data_prep.urls import remove_urls
from launch.dataset_stage import DatasetStageSettings, run_dataset_stage
from launch.errors import InputError
from launch.settings import NOT_IDENTITY
from launch.stage import Stage

DUPLICATE = "duplicate"
NEAR_DUPLICATE = "nearly a duplicate"
AUTHOR_HAS_ENOUGH = "more than {} posts of its author"


@dataclass(frozen=True, kw_only=True)
class CleanSettings(TextSettings, ExcludeSettings, DatasetStageSettings):
    """Settings of the cleaner."""

    input: Path = field(metadata=NOT_IDENTITY)
    """A `posts` data set, or raw posts: a file or a folder of them, as `data_prep/crawl.py files` reads them."""
    block_list: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """File with a word or phrase on each line; posts that hold one, as whole words and case aside, are left out."""
    drop_duplicates: bool = True
    """Leave out a post whose cleaned text, case aside, came before."""
    near_duplicates: float | None = None
    """Leave out a post whose set of words has at least this Jaccard similarity to one that came before, e.g. 0.8."""
    posts_per_author: int | None = None
    """Keep so many posts of an author at the most, the first ones."""
    validation_share: float = 0.02
    """Share of the posts in the split `validation`, picked by a hash of the text, so that it stays when posts are added."""
    runner: Literal["native", "ray"] = field(default="native", metadata=NOT_IDENTITY)
    """Work on this machine, or on a Ray cluster whose machines see the input under the same path."""
    ray_address: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Address of the cluster (`host:port`, `ray://host:port`, `auto`); null starts Ray on this machine."""

    def __post_init__(self) -> None:
        """Refuse settings without a meaning."""
        super().__post_init__()
        for name in ("near_duplicates", "language_confidence"):
            if (value := getattr(self, name)) is not None and not 0 < value <= 1:
                raise ValueError(f"{name} {value}: give a number above 0 and up to 1")
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share {self.validation_share}: give a number from 0 to below 1")
        if self.minimum_words < 0:
            raise ValueError(f"minimum_words {self.minimum_words}: give 0 or more")
        if self.posts_per_author is not None and self.posts_per_author < 1:
            raise ValueError(f"posts_per_author {self.posts_per_author}: give 1 or more")


def main(argv: list[str] | None = None) -> int:
    """Run the stage."""
    return run_dataset_stage(
        CleanSettings,
        clean,
        inputs=lambda settings: {
            "posts": settings.input,
            "block_list": settings.block_list,
            **settings.excluded_inputs(),
        },
        argv=argv,
    )


def clean(settings: CleanSettings, stage: Stage) -> None:
    """Read the posts in batches, and put each into the corpus or among the rejected."""
    use_runner(settings.runner, settings.ray_address)
    files = post_files(settings.input)
    passed_over = files_passed_over(settings.input, files)
    if passed_over:
        stage.log(f"not files of posts by their names, passed over: {', '.join(passed_over)}")
    blocked = _block_list(settings.block_list) if settings.block_list else ()
    signature_hashes = SIGNATURE_HASHES if settings.near_duplicates else 0
    frame = with_text_work(read_frame(files, settings.input), settings, blocked, signature_hashes)
    if settings.runner == "ray":
        frame = frame.sort("place")  # a cluster gives batches as they become ready
    decisions = Decisions(settings)
    rows, facts = stage.rows, stage.facts
    facts |= {"files_passed_over": passed_over, "posts_with_urls": 0, "excluded_matches": decisions.excluded.matches}
    posts_of_source: Counter[str] = Counter()

    bar = stage.progress(None, "cleaning", unit="post")
    with DatasetWriter(stage.folder, CORPUS_FEATURES) as writer, bar:
        for batch in iterate_posts(frame, files, settings.input):
            bar.update(len(batch))
            reasons = decisions.reasons(batch)
            is_kept = np.fromiter((reason is None for reason in reasons), bool, len(batch))
            is_validation = _shares(batch) < settings.validation_share
            kept = pa.table({"id": batch["id"], "text": batch["clean"]})
            for split, chosen in (("train", is_kept & ~is_validation), ("validation", is_kept & is_validation)):
                writer.add_table(split, kept.filter(pa.array(chosen)))
            rejected = pa.table({"id": batch["id"], "text": batch["text"], "reason": pa.array(reasons, pa.string())})
            writer.reject_table(rejected.filter(pa.array(~is_kept)))

            rows.taken += len(batch)
            rows.kept += int(is_kept.sum())
            rows.rejected.update(reason for reason in reasons if reason is not None)
            facts["posts_with_urls"] += int(np.sum(is_kept & batch["had_url"].to_numpy(False)))
            posts_of_source.update(
                {entry["values"]: entry["counts"] for entry in batch["source"].value_counts().to_pylist()}
            )

    for split, needed in (("train", True), ("validation", settings.validation_share > 0)):
        if needed and not writer.rows(split):
            counts = ", ".join(f"{count} {reason}" for reason, count in rows.rejected.most_common()) or "none rejected"
            problem = f"no posts for the split {split}: {rows.taken} read, {rows.kept} kept ({counts})"
            raise InputError.at(settings.input, None, problem, "Give more posts, or change --validation_share.")
    facts |= {"posts_of_source": dict(posts_of_source), "excluded_texts": len(decisions.excluded.ids)}
    facts["rows_of_split"] = {split: writer.rows(split) for split in ("train", "validation", REJECTED)}
    writer.write_card(
        "Cleaned posts",
        {"posts read": rows.taken, "kept": rows.kept, **{f"rejected, {r}": n for r, n in rows.rejected.most_common()}},
        about=f"URLs removed, runs of white space made one space{_more_in_words(settings)}; nothing else was changed.",
    )
    stage.log(f"{rows.taken} posts read, {rows.kept} kept; rejected: {dict(rows.rejected.most_common())}")


class Decisions:
    """Which posts are kept, where that depends on those before them and on other data sets."""

    def __init__(self, settings: CleanSettings) -> None:
        self.settings = settings
        self.excluded = Excluded(settings.excluded_folders, settings.exclude_similarity)
        self.masks = settings.mask_sensitive or settings.mentions != "keep"
        self._seen: set[int] = set()
        self._near = NearRepeats(settings.near_duplicates) if settings.near_duplicates else None
        self._posts_of_author: Counter[str] = Counter()

    def reasons(self, batch: pa.RecordBatch) -> list[str | None]:
        """Why each post of the next batch is left out; None for those that are kept."""
        reasons: list[str | None] = []
        for start in range(0, len(batch), BLOCK_POSTS):
            reasons += self._reasons_of_block(batch.slice(start, BLOCK_POSTS))
        return reasons

    def _reasons_of_block(self, block: pa.RecordBatch) -> list[str | None]:
        reasons = block["reason"].to_pylist()
        keys = block["key"].to_pylist()
        ids, texts = (block[name].to_pylist() if self.excluded.ids else None for name in ("id", "clean"))
        # What is to be kept out has its names and numbers still.
        unmasked = block["text"].to_pylist() if texts and self.masks else None
        authors = block["author_id"].to_pylist() if self.settings.posts_per_author else None
        near = (
            self._near.look_up(*_words_and_bands(block), block["reason"].is_null().to_numpy(False))
            if self._near
            else None
        )
        for row, key in enumerate(keys):
            if reasons[row] is not None:
                continue
            if self.settings.drop_duplicates and key in self._seen:
                reasons[row] = DUPLICATE
            elif texts and (reason := self.excluded.reason(ids[row], texts[row])):
                reasons[row] = reason
            elif unmasked and (reason := self.excluded.reason(ids[row], remove_urls(unmasked[row]))):
                reasons[row] = reason
            elif authors and self._has_enough(authors[row]):
                reasons[row] = AUTHOR_HAS_ENOUGH.format(self.settings.posts_per_author)
            elif near and (near.came_before[row] or any(reasons[other] is None for other in near.earlier.get(row, ()))):
                reasons[row] = NEAR_DUPLICATE
            else:
                self._seen.add(key)
                if authors and authors[row] is not None:
                    self._posts_of_author[authors[row]] += 1
        if self._near:
            self._near.keep(near, np.fromiter((reason is None for reason in reasons), bool, len(reasons)))
        return reasons

    def _has_enough(self, author: str | None) -> bool:
        return author is not None and self._posts_of_author[author] >= self.settings.posts_per_author


def _block_list(path: Path) -> tuple[str, ...]:
    phrases = tuple(phrase for _, line in read_lines(path) if (phrase := " ".join(line.split())))
    if not phrases:
        raise InputError.at(
            path, None, "no words in it", "Give a word or phrase on each line, or leave out --block_list."
        )
    return phrases


def _shares(batch: pa.RecordBatch) -> np.ndarray:
    """Numbers in [0, 1), one for each post, that depend on its text alone."""
    return (batch["key"].to_numpy() >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _words_and_bands(block: pa.RecordBatch) -> tuple[WordSets, np.ndarray]:
    """What near-duplicates are found by, of posts that `post_frame.with_text_work` gave signatures."""
    sizes = pc.list_value_length(block["word_hashes"]).to_numpy()
    words = WordSets(block["word_hashes"].flatten().to_numpy(), np.concatenate([[0], np.cumsum(sizes)]))
    return words, bands_of(block["signature"].flatten().to_numpy().reshape(len(block), SIGNATURE_HASHES))


def _more_in_words(settings: CleanSettings) -> str:
    done = {
        ", leading `RT @name:` removed": settings.remove_retweet_prefix,
        ", e-mail addresses and phone numbers masked": settings.mask_sensitive,
        ", mentions made `@user`": settings.mentions == "replace",
        ", mentions removed": settings.mentions == "remove",
    }
    return "".join(words for words, is_done in done.items() if is_done)


if __name__ == "__main__":
    raise SystemExit(main())
