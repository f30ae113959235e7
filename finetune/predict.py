"""Find the named entities of posts with a trained recognizer.

    python -m finetune.predict --model RECOGNIZER --input posts.jsonl --output entities.jsonl

Input: JSON lines with `text` or `tokens`, and if wanted `id` and `image_words` (a list of words, or one text); or a `.txt`
file with a post a line; either also `.gz`. Output: a JSON line for each post, in their order,

    {"id": "7", "entities": [{"text": "Jordan", "type": "LOC", "start": 0, "end": 6, "score": 0.93}], "words_truncated": 0}

`start` and `end` count characters (Unicode code points) of the post as it was given, or of its tokens joined by spaces;
then there is also `tags`, a BIO tag for each token. `score` is the model's probability of exactly this entity.
"""

import gzip
import json
import os
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from tqdm import tqdm

from finetune.post_words import PostWords
from finetune.recognizer import Recognized, Recognizer, RecognizerPrecision
from launch.errors import InputError
from launch.files import sync_to_disk
from launch.settings import parse_settings
from launch.stage import collect_garbage_rarely

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
SHOWN = 5
"""Malformed lines that are named in the log."""


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Settings of `finetune.predict`."""

    model: str
    """Folder or Hub id of a recognizer: what `finetune/ner.py` wrote."""
    input: Path
    """File of posts: `.jsonl` or `.txt`, either also `.gz`."""
    output: Path
    """File to write, JSON lines; complete or not there at all. A file that is there already is replaced."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do at a line that is no post: stop and say where, or leave it out and count it."""
    posts_at_once: int = 1024
    """Posts held in memory at a time."""
    device: str | None = None
    """Torch's name of the device to compute on; null takes the GPU if there is one."""
    precision: RecognizerPrecision = "auto"
    """`fp32`, `bf16`, or `auto`: bf16 where the GPU or the processor computes it fast, else fp32. `int8`: products in eight
    bits, on processors with AVX512-BF16 and without AMX."""

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        if self.posts_at_once < 1:
            raise ValueError(f"posts_at_once: {self.posts_at_once} is not positive")


@dataclass(frozen=True)
class InputPost:
    """A post of the input file."""

    id: str
    words: PostWords
    image_words: list[str] = field(default_factory=list)
    has_tokens: bool = False


@dataclass
class Counts:
    """What became of the lines."""

    lines: int = 0
    posts: int = 0
    entities: Counter = field(default_factory=Counter)
    """By type."""
    posts_truncated: int = 0
    words_truncated: int = 0
    posts_with_image_words: int = 0
    skipped: Counter = field(default_factory=Counter)
    """Malformed lines by what is wrong with them."""
    skipped_lines: list[str] = field(default_factory=list)
    """Where the first of them are."""


class NoPostError(ValueError):
    """A line that is no post. The message says what is wrong, ``remedy`` what to do."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.remedy = remedy


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0, or 2 with the reason on standard error."""
    settings = parse_settings(PredictSettings, argv, description=__doc__)
    collect_garbage_rarely()
    started_at = time.monotonic()
    try:
        counts, reads_image_words = predict_file(settings)
    except InputError as error:
        print(f"finetune/predict: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a file that may not be read
        place = error.filename or settings.output
        print(f"finetune/predict: error: {place}: {error.strerror or error}. Nothing was written.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("finetune/predict: interrupted, nothing written", file=sys.stderr)
        return 130
    for line in report(counts, reads_image_words, time.monotonic() - started_at):
        print(f"finetune/predict: {line}", file=sys.stderr)
    return 0


def predict_file(settings: PredictSettings) -> tuple[Counts, bool]:
    """Read posts, write what is found in them; returns counts, and whether the model reads image words.

    Raises InputError for a model that is none, a file that is none, and, unless told to skip them, malformed lines.
    """
    _check_files(settings)
    recognizer = Recognizer.from_pretrained(settings.model, settings.device, settings.precision)
    counts = Counts()
    with (
        open_whole(settings.output) as output,
        tqdm(
            desc="finetune/predict",
            total=count_lines(settings.input),
            unit=" posts",
            mininterval=0.2 if sys.stderr.isatty() else 15,
            dynamic_ncols=True,
        ) as bar,
    ):
        posts = read_input(settings.input, settings.on_error, counts)
        while batch := list(islice(posts, settings.posts_at_once)):
            found = recognizer.recognize([post.words for post in batch], [post.image_words for post in batch])
            for post, recognized in zip(batch, found, strict=True):
                output.write(to_line(output_row(post, recognized)))
                counts.posts += 1
                counts.entities.update(entity.type for entity in recognized.entities)
                counts.posts_truncated += recognized.words_truncated > 0
                counts.words_truncated += recognized.words_truncated
                counts.posts_with_image_words += bool(post.image_words)
            bar.update(counts.lines - bar.n)  # lines that are no post included
    return counts, recognizer.reads_image_words


def report(counts: Counts, reads_image_words: bool, seconds: float) -> Iterator[str]:
    """What to tell the user at the end, by lines."""
    by_type = ", ".join(f"{count} {name}" for name, count in counts.entities.most_common())
    yield (
        f"{counts.posts} posts in {seconds:.1f} s, {counts.entities.total()} entities"
        + (f" ({by_type})" if by_type else "")
        + (f", {counts.posts_with_image_words} posts with image words" if counts.posts_with_image_words else "")
    )
    if counts.words_truncated:
        yield (
            f"{counts.words_truncated} words of {counts.posts_truncated} posts did not fit the model's input: "
            "no entities were looked for in them"
        )
    if counts.posts_with_image_words and not reads_image_words:
        yield "the model was trained without image words, so those of the input were not read"
    if counts.skipped:
        reasons = ", ".join(f"{count} with {problem}" for problem, count in counts.skipped.most_common())
        more = ", …" if counts.skipped.total() > len(counts.skipped_lines) else ""
        yield f"{counts.skipped.total()} lines skipped: {reasons} ({', '.join(counts.skipped_lines)}{more})"


def read_input(path: Path, on_error: str, counts: Counts) -> Iterator[InputPost]:
    """The posts of a file; malformed lines are raised as InputError, or counted (``on_error`` is ``skip``)."""
    is_json = path.name.removesuffix(".gz").endswith(".jsonl")
    stem = path.name.removesuffix(".gz").rpartition(".")[0]
    for number, line in _lines(path):
        counts.lines = number
        try:
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise NoPostError("bytes that are not UTF-8", f"Mend the line: {_shorten(str(error))}.") from None
            post_id = f"{stem}:{number}"
            if is_json and text.strip():  # blank lines hold no JSON, but may end a file
                yield post_of_json(post_id, text)
            elif not is_json:
                yield InputPost(post_id, PostWords.of_text(text))
        except NoPostError as error:
            if on_error == "fail":
                remedy = f"{error.remedy} Or leave such lines out with --on_error skip."
                raise InputError.at(path, number, str(error), remedy) from None
            counts.skipped[str(error)] += 1
            if len(counts.skipped_lines) < SHOWN:
                counts.skipped_lines.append(f"line {number}")


def post_of_json(post_id: str, line: str) -> InputPost:
    """The post of a JSON line; ``post_id`` is its id if it has none of its own. Other keys are passed over."""
    expected = 'Expected is an object such as {"id": "7", "text": "Jordan at last"}.'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise NoPostError("no JSON", expected) from None
    if not isinstance(row, dict):
        raise NoPostError("JSON that is no object", expected)
    text, tokens, image_words = row.get("text"), row.get("tokens"), row.get("image_words")
    if (text is None) == (tokens is None):
        both = "both `text` and `tokens`" if text is not None else "neither `text` nor `tokens`"
        raise NoPostError(both, "Give one of them.")
    if text is not None and not isinstance(text, str):
        raise NoPostError("a `text` that is no string", expected)
    if tokens is not None and not _is_list_of_strings(tokens):
        raise NoPostError(
            "`tokens` that are no list of strings", 'Expected is a list such as ["Jordan", "at", "last"].'
        )
    if isinstance(image_words, str):
        image_words = [image_words]
    if image_words is not None and not _is_list_of_strings(image_words):
        remedy = "Expected is a list of strings, or one string such as a caption."
        raise NoPostError("`image_words` that are neither strings nor a string", remedy)
    own_id = row.get("id")
    if own_id is not None:
        if isinstance(own_id, bool) or not isinstance(own_id, str | int):
            raise NoPostError("an `id` that is neither string nor integer", expected)
        post_id = str(own_id)
    words = PostWords.of_text(text) if tokens is None else PostWords.of_tokens(tokens)
    return InputPost(post_id, words, [word for word in image_words or [] if word], tokens is not None)


def output_row(post: InputPost, recognized: Recognized) -> dict[str, Any]:
    """The output's row of a post."""
    entities = [asdict(entity) | {"score": round(entity.score, 4)} for entity in recognized.entities]
    row = {"id": post.id, "entities": entities, "words_truncated": recognized.words_truncated}
    return row | {"tags": recognized.tags} if post.has_tokens else row


def to_line(row: dict[str, Any]) -> bytes:
    """The row as a line of UTF-8; with escapes where it holds a half surrogate pair, which UTF-8 has no bytes for."""
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode("ascii") + b"\n"


@contextmanager
def open_whole(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that gets its name when all is written; after an error nothing is left, and an old file stays."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(temporary, "wb")
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}). Choose another --output.") from None
    try:
        with file:
            yield file
        sync_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def count_lines(path: Path) -> int:
    """How many lines a file has, for the progress bar."""
    return sum(1 for _ in _lines(path))


def _check_files(settings: PredictSettings) -> None:
    source, target = settings.input, settings.output
    if not source.is_file():
        raise InputError(f"{source}: no such file. Give --input a file of posts.")
    if not source.name.endswith(SUFFIXES):
        raise InputError(f"{source}: not a file of posts by its name. Known endings are {', '.join(SUFFIXES)}.")
    if target.is_dir():
        raise InputError(f"{target}: is a folder. Give --output the name of a file.")
    if target.exists() and target.samefile(source):
        raise InputError(f"{target}: is the input, too. Choose another --output.")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and bytes of each line, which ends at "\\n" or "\\r\\n" only; InputError for broken gzip data."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError.at(path, number + 1, f"broken gzip data ({error})", "Get the file again.") from None


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _shorten(text: str, length: int = 120) -> str:
    return text if len(text) <= length else text[:length] + "…"


if __name__ == "__main__":
    raise SystemExit(main())
