"""Raw posts become a `corpus` for language modelling.

    python data_prep/clean.py --input posts/ --output data/posts --exclude data/tmn

Each post loses its URLs, and is otherwise left as it is, but for HTML entities (decoded) and white space (runs of it
become one space). Left out, with the reason, are posts that are too short, that came before, that are also in a data
set a model will be tested on (`--exclude`), or that cannot be read. They lie in `rejected/`: no post vanishes.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from html import unescape
from html.entities import html5
from pathlib import Path

from data_prep.layout import CORPUS_FEATURES, REJECTED, DatasetWriter, read_texts, splits_of
from data_prep.near_duplicates import SIMILAR, NearDuplicates, words_of
from data_prep.posts import count_lines, post_files, read_posts
from data_prep.urls import find_urls, remove_urls
from launch.errors import InputError
from launch.settings import NOT_IDENTITY
from launch.stage import Stage, StageSettings, run_stage

EMPTY = "empty"
TOO_SHORT = "fewer than {} words"
DUPLICATE = "duplicate"
EXCLUDED = "in an excluded data set"
NEARLY_EXCLUDED = "nearly in an excluded data set"
EXAMPLES = 20

# "&amp;lt;" is met in posts that were escaped twice. Entities without their semicolon stay: "R&D", "a=1&copy=2".
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_ESCAPED_AT_MOST = 2


@dataclass(frozen=True, kw_only=True)
class CleanSettings(StageSettings):
    """Settings of the cleaner."""

    input: Path = field(metadata=NOT_IDENTITY)
    """A file of posts, or a folder of them: `.txt` (a post a line), `.jsonl` (`id`, `text`), either also `.gz`."""
    exclude: list[Path] | Path = field(default_factory=list, metadata=NOT_IDENTITY)
    """Data sets (outputs of data_prep stages) whose texts, in any split, must not be in the corpus; one or a list."""
    exclude_similarity: float = SIMILAR
    """Jaccard similarity of word sets from which a post counts as nearly equal to an excluded text; 1 for equal sets."""
    unescape_html: bool = True
    """Decode HTML entities: `&amp;` becomes `&`."""
    minimum_words: int = 3
    """Posts with fewer words (runs of non-space with a letter or digit) are left out; TMN's authors did so below 3."""
    drop_duplicates: bool = True
    """Leave out a post whose cleaned text, case aside, came before."""
    validation_share: float = 0.02
    """Share of the posts in the split `validation`, picked by a hash of the text, so that it stays when posts are added."""


def main(argv: list[str] | None = None) -> int:
    """Run the stage."""
    return run_stage(
        CleanSettings,
        clean,
        inputs=lambda settings: {
            "posts": settings.input,
            **{f"exclude_{number}": folder for number, folder in enumerate(_excluded_folders(settings))},
        },
        argv=argv,
    )


def clean(settings: CleanSettings, stage: Stage) -> None:
    """Read the posts one by one, and put each into the corpus or among the rejected."""
    _check(settings)
    files = post_files(settings.input)
    passed_over = sorted(path.name for path in settings.input.glob("*") if path not in files)
    if passed_over:
        stage.log(f"not files of posts by their names, passed over: {', '.join(passed_over)}")
    excluded = Excluded(_excluded_folders(settings), settings.exclude_similarity)
    seen: set[bytes] = set()
    posts_of_file: Counter[str] = Counter()
    rows, facts = stage.rows, stage.facts
    facts |= {"files_passed_over": passed_over, "posts_with_urls": 0, "excluded_matches": []}

    bar = stage.progress(None, "cleaning", total=sum(map(count_lines, files)), unit="post")
    with DatasetWriter(stage.folder, CORPUS_FEATURES) as writer, bar:
        for file in files:
            for post in read_posts(file):
                bar.update()
                rows.taken += 1
                posts_of_file[file.name] += 1
                text = clean_text(post.text, settings.unescape_html)
                key = blake2b(text.lower().encode(), digest_size=16).digest()
                reason = post.problem or _too_short(text, settings.minimum_words)
                if reason is None and settings.drop_duplicates and key in seen:
                    reason = DUPLICATE
                if reason is None and (match := excluded.find(text)):
                    reason = match[0]
                    if len(facts["excluded_matches"]) < EXAMPLES:
                        facts["excluded_matches"].append([post.id, *match[1:]])
                if reason is not None:
                    rows.rejected[reason] += 1
                    writer.reject({"id": post.id, "text": post.text}, reason)
                    continue
                seen.add(key)
                rows.kept += 1
                facts["posts_with_urls"] += bool(find_urls(post.text))
                split = "validation" if _share_of(key) < settings.validation_share else "train"
                writer.add(split, {"id": post.id, "text": text})

    for split, needed in (("train", True), ("validation", settings.validation_share > 0)):
        if needed and not writer.rows(split):
            counts = ", ".join(f"{count} {reason}" for reason, count in rows.rejected.most_common()) or "none rejected"
            problem = f"no posts for the split {split}: {rows.taken} read, {rows.kept} kept ({counts})"
            raise InputError.at(settings.input, None, problem, "Give more posts, or change --validation_share.")
    facts |= {"posts_of_file": dict(posts_of_file), "excluded_texts": len(excluded.ids)}
    facts["rows_of_split"] = {split: writer.rows(split) for split in ("train", "validation", REJECTED)}
    writer.write_card(
        "Cleaned posts",
        {"posts read": rows.taken, "kept": rows.kept, **{f"rejected, {r}": n for r, n in rows.rejected.most_common()}},
        about="URLs removed, HTML entities decoded, runs of white space made one space; nothing else was changed. "
        f"The config `{REJECTED}` holds the posts left out, as they were, with the reason.",
    )
    stage.log(f"{rows.taken} posts read, {rows.kept} kept; rejected: {dict(rows.rejected.most_common())}")


def clean_text(text: str, unescape_html: bool = True) -> str:
    """The text without URLs, HTML entities decoded, white space made single spaces."""
    if unescape_html:
        for _ in range(_ESCAPED_AT_MOST):
            if "&" not in text:
                break
            text = _ENTITY.sub(_decoded, text)
    return " ".join(remove_urls(text).split())


def _decoded(entity: re.Match[str]) -> str:
    # `unescape` alone would also decode the beginning of an unknown name: "&notit;".
    return unescape(entity[0]) if entity[0][1] == "#" or entity[0][1:] in html5 else entity[0]


class Excluded:
    """The texts that must not be in the corpus."""

    def __init__(self, folders: list[Path], similarity: float) -> None:
        self.ids: list[str] = []
        texts: list[tuple[str, ...]] = []
        for folder in folders:
            for split in splits_of(folder):
                ids, split_texts = read_texts(folder, split)
                self.ids += ids
                texts += map(words_of, split_texts)
        self._index = NearDuplicates(texts, similarity)
        self._place_of = {words: place for place, words in reversed(list(enumerate(texts)))}

    def find(self, text: str) -> tuple[str, str, float] | None:
        """Reason, id of the excluded text and similarity, if the text equals one or nearly does."""
        if not self.ids:
            return None
        words = words_of(text)
        if (place := self._place_of.get(words)) is not None:
            return EXCLUDED, self.ids[place], 1.0
        if match := self._index.find(words):
            return NEARLY_EXCLUDED, self.ids[match[0]], round(match[1], 3)
        return None


def _too_short(text: str, minimum_words: int) -> str | None:
    if not text:
        return EMPTY
    words = sum(word.isalnum() or any(map(str.isalnum, word)) for word in text.split(" "))
    return TOO_SHORT.format(minimum_words) if words < minimum_words else None


def _share_of(key: bytes) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(key[:6], "big") / 2**48


def _excluded_folders(settings: CleanSettings) -> list[Path]:
    return [settings.exclude] if isinstance(settings.exclude, Path) else list(settings.exclude)


def _check(settings: CleanSettings) -> None:
    if not 0 <= settings.validation_share < 1:
        raise InputError(f"validation_share {settings.validation_share}: give a number from 0 to below 1.")
    if not 0 < settings.exclude_similarity <= 1:
        raise InputError(f"exclude_similarity {settings.exclude_similarity}: give a number above 0 and up to 1.")
    if settings.minimum_words < 0:
        raise InputError(f"minimum_words {settings.minimum_words}: give 0 or more.")


if __name__ == "__main__":
    raise SystemExit(main())
