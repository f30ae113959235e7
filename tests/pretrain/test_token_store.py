"""Token stores: what their arrays hold, when they are made, and what is not taken for one."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_models import PROJECT, environment, make_corpus, make_texts, make_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_prep import layout, text_batches
from data_prep.text_batches import BEGIN, Place, TextBatch, iterate_texts
from launch.errors import InputError
from launch.files import default_cache
from pretrain import tokenizing
from pretrain.cutter import Cutter
from pretrain.token_store import BEGINS_WORD, CONTINUES_WORD, SPECIAL, TokenStore, open_stores

TOKENIZER = make_tokenizer()
PATIENCE_SECONDS = 120


class Texts:
    """Texts in batches, and how often they were asked for."""

    def __init__(self, *batches: list[str]) -> None:
        self.batches, self.read = batches, 0

    def __call__(self, start: Place) -> Iterator[TextBatch]:
        self.read += 1
        return (TextBatch("train", batch) for batch in self.batches)


def tokenize(texts, content: str, tokenizer: PreTrainedTokenizerFast, length: int, cache: Path) -> TokenStore:
    """The store of a single split."""
    return tokenizing.tokenize(texts, ["train"], content, Cutter(tokenizer, length), cache)["train"]


def text(store: TokenStore, index: int, array: str = "tokens") -> list[int]:
    return getattr(store, array)[store.offsets[index] : store.offsets[index + 1]].tolist()


def stores_of(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def by_words(entries: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words w0, w1, …, without special tokens."""
    tokenizer = Tokenizer(models.WordLevel({f"w{number}": number for number in range(entries)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("at_once", [1, 7, 10_000])
def test_texts_are_what_the_tokenizer_makes_of_each_alone(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(tokenizing, "TOKENIZED_AT_ONCE", at_once)
    texts = ["", *make_texts(30), " ", "[MASK] ba [SEP]"]
    store = tokenize(Texts(texts[:9], [], texts[9:]), "c", TOKENIZER, 1000, tmp_path)
    assert len(store) == len(texts) == 33 and store.truncated == 0
    # What a post writes like a special token is text.
    alone = [TOKENIZER(each, split_special_tokens=True)["input_ids"] for each in texts]
    assert [text(store, index) for index in range(33)] == alone
    lengths = list(map(len, alone))
    assert store.lengths().tolist() == lengths and store.lengths(slice(3, 9)).tolist() == lengths[3:9]
    assert store.lengths(np.array([5, 0, 5])).tolist() == [lengths[5], 2, lengths[5]]
    assert store.offsets.dtype == np.int64 and store.kinds.dtype == np.uint8 and store.tokens.dtype == np.uint16


def test_kinds_tell_where_words_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizing, "TOKENIZED_AT_ONCE", 7)
    texts = make_texts(30)
    store = tokenize(Texts(texts), "c", TOKENIZER, 1000, tmp_path)
    seen = set()
    for index, words in enumerate(texts):
        pieces, kinds = TOKENIZER.convert_ids_to_tokens(text(store, index)), text(store, index, "kinds")
        assert kinds[0] == kinds[-1] == SPECIAL, "[CLS] and [SEP]"
        inside = [CONTINUES_WORD if piece.startswith("##") else BEGINS_WORD for piece in pieces[1:-1]]
        assert kinds[1:-1] == inside
        assert kinds.count(BEGINS_WORD) == len(words.split())
        seen |= set(kinds)
    assert seen == {SPECIAL, BEGINS_WORD, CONTINUES_WORD}


def test_without_special_tokens_a_text_does_not_continue_the_one_before(tmp_path):
    store = tokenize(Texts(["w1 w1", "", "w1", "w2", ""]), "c", by_words(9), 10, tmp_path)
    assert store.offsets.tolist() == [0, 2, 2, 3, 4, 4] and store.tokens.tolist() == [1, 1, 1, 2]
    assert store.kinds.tolist() == [BEGINS_WORD] * 4


@pytest.mark.parametrize("side", ["left", "right"])
def test_long_texts_are_cut_and_counted(tmp_path, side):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.truncation_side = side
    texts = ["ba ce di fo gu", "ba", "gu fo di"]
    expected = [tokenizer(each, truncation=True, max_length=5)["input_ids"] for each in texts]
    store = tokenize(Texts(texts), "c", tokenizer, 5, tmp_path)
    assert [text(store, index) for index in range(3)] == expected
    assert store.truncated == 1 and store.lengths().tolist() == [5, 3, 5]
    assert store.tokens[4] == TOKENIZER.sep_token_id, "cut before the closing token, not with it"
    again = tokenize(Texts(), "c", tokenizer, 5, tmp_path)
    assert again.truncated == 1, "also of a store that was there"


@pytest.mark.parametrize("entries, dtype", [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_tokens_take_two_bytes_where_the_vocabulary_allows(tmp_path, entries, dtype):
    store = tokenize(Texts([f"w{entries - 1} w0 w65535"]), "c", by_words(entries), 10, tmp_path)
    assert store.tokens.dtype == dtype and store.tokens.tolist() == [entries - 1, 0, 65535]


def test_a_store_is_made_once(tmp_path):
    texts, cache = Texts(make_texts(5)), tmp_path / "deep" / "cache"
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    first = tokenize(texts, "c", TOKENIZER, 64, cache)
    again = tokenize(texts, "c", PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokenizer"), 64, cache)
    assert texts.read == 1 and len(stores_of(cache)) == 1
    assert np.array_equal(first.tokens, again.tokens) and isinstance(again.tokens, np.memmap)
    assert not again.tokens.flags.writeable


def test_the_tokenizer_stays_as_it_is_and_its_last_use_makes_no_difference(tmp_path):
    """It is saved beside the trained weights: whether the cache had the texts must not show there."""
    tokenizer, texts = copy.deepcopy(TOKENIZER), Texts(make_texts(5))
    before = tokenizer.backend_tokenizer.to_str()
    tokenize(texts, "c", tokenizer, 9, tmp_path)
    assert tokenizer.backend_tokenizer.to_str() == before
    tokenizer(["ba", "ba ce di"], truncation=True, max_length=4, padding=True)
    assert tokenizer.backend_tokenizer.to_str() != before
    tokenize(texts, "c", tokenizer, 9, tmp_path)
    assert texts.read == 1


def test_another_content_tokenizer_or_length_makes_another_store(tmp_path):
    texts, left = Texts(make_texts(5)), copy.deepcopy(TOKENIZER)
    left.truncation_side = "left"
    others = [("c", TOKENIZER, 64), ("d", TOKENIZER, 64), ("c", make_tokenizer(150), 64), ("c", TOKENIZER, 63)]
    for _ in range(2):
        for content, tokenizer, length in [*others, ("c", left, 64)]:
            tokenize(texts, content, tokenizer, length, tmp_path)
    assert texts.read == len(stores_of(tmp_path)) == 5


def test_another_format_makes_another_store(tmp_path, monkeypatch):
    texts = Texts(make_texts(5))
    tokenize(texts, "c", TOKENIZER, 64, tmp_path)
    monkeypatch.setattr(tokenizing, "FORMAT", tokenizing.FORMAT + 1)
    tokenize(texts, "c", TOKENIZER, 64, tmp_path)
    assert texts.read == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name, harm",
    [
        *((f"{name}.bin", harm) for name in ("tokens", "kinds", "offsets") for harm in (cut, flip_a_bit, Path.unlink)),
        ("kinds.bin", lambda path: path.write_bytes(path.read_bytes() + b"\0")),
        ("store.json", Path.unlink),
        ("store.json", lambda path: path.write_text("{")),
        ("store.json", lambda path: path.write_text("[]")),
        ("store.json", lambda path: path.write_bytes(b"\xff")),
        ("store.json", lambda path: path.write_text(path.read_text().replace("uint16", "uint7"))),
        ("store.json", lambda path: path.write_text(path.read_text().replace("truncated", "cut"))),
    ],
)
def test_a_damaged_store_is_refused(tmp_path, name, harm):
    texts = Texts(make_texts(5))
    tokenize(texts, "c", TOKENIZER, 64, tmp_path)
    (folder,) = stores_of(tmp_path)
    harm(folder / "train" / name)
    with pytest.raises(InputError, match=f"{folder}: damaged .* Remove the folder: it is made again.") as raised:
        tokenize(texts, "c", TOKENIZER, 64, tmp_path)
    assert "\n" not in str(raised.value)
    shutil.rmtree(folder)  # the remedy
    assert len(tokenize(texts, "c", TOKENIZER, 64, tmp_path)) == 5 and texts.read == 2


def test_what_a_killed_process_left_is_replaced(tmp_path):
    tokenize(Texts(make_texts(5)), "c", TOKENIZER, 64, tmp_path)
    (folder,) = stores_of(tmp_path)
    partial = folder.with_name(folder.name + ".partial")
    folder.rename(partial)
    cut(partial / "train" / "tokens.bin")
    (partial / "more").mkdir()
    texts = Texts(make_texts(5))
    store = tokenize(texts, "c", TOKENIZER, 64, tmp_path)
    assert texts.read == 1 and stores_of(tmp_path) == [folder]
    assert text(store, 4) == TOKENIZER(make_texts(5)[4])["input_ids"]
    assert {path.name for path in (folder / "train").iterdir()} == {
        "tokens.bin",
        "kinds.bin",
        "offsets.bin",
        "store.json",
    }


@pytest.mark.parametrize("texts", [Texts(), Texts([], []), Texts(["", ""])])
def test_an_empty_split_is_refused_and_leaves_nothing(tmp_path, texts):
    with pytest.raises(InputError, match="the split train is empty"):
        tokenize(texts, "c", by_words(9), 5, tmp_path)
    assert stores_of(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("bad text")])
def test_what_goes_wrong_midway_leaves_nothing(tmp_path, error):
    def texts(start):
        yield TextBatch("train", make_texts(5), next_place=Place(0, 5))
        raise error

    refused = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(refused) as raised:
        tokenize(texts, "c", TOKENIZER, 64, tmp_path)
    if refused is InputError:
        assert "cannot be written (No space left on device)" in str(raised.value)
        assert str(raised.value).endswith("Make room, or give another folder with --token_cache.")
    assert stores_of(tmp_path) == []
    assert len(tokenize(Texts(make_texts(5)), "c", TOKENIZER, 64, tmp_path)) == 5


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for cache in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(InputError, match=f"{cache}/.*: the tokenized texts cannot be written .* --token_cache"):
            tokenize(Texts(make_texts(5)), "c", TOKENIZER, 64, cache)


def test_a_store_that_is_there_needs_no_permission_to_write(tmp_path, monkeypatch):
    tokenize(Texts(make_texts(5)), "c", TOKENIZER, 64, tmp_path)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tokenizing, "_locked", refuse)
    assert len(tokenize(Texts(), "c", TOKENIZER, 64, tmp_path)) == 5
    with pytest.raises(InputError, match="Permission denied"):
        tokenize(Texts(), "d", TOKENIZER, 64, tmp_path)


class Kill(BaseException):
    """What no handler of errors catches, as a signal."""


class Corpus:
    """A corpus of two splits whose reading ends after so many batches, and the places where readings began."""

    def __init__(self, folder: Path, *ends: int | None) -> None:
        self.folder, self.ends, self.starts = folder, iter(ends), []

    def __call__(self, start: Place) -> Iterator[TextBatch]:
        self.starts.append(start)
        end = next(self.ends, None)
        for number, batch in enumerate(iterate_texts(self.folder, ["train", "validation"], start=start)):
            if number == end:
                raise Kill
            yield batch


@pytest.fixture
def small_steps(monkeypatch, tmp_path) -> Path:
    """Shards of 90 rows or so, batches of 7 rows, and each of them put down; a corpus of several shards."""
    for module, name, value in (
        (layout, "BATCH_ROWS", 30),
        (layout, "SHARD_BYTES", 5000),
        (text_batches, "TEXTS_AT_ONCE", 7),
        (tokenizing, "SAVED_EVERY_SECONDS", 0.0),
    ):
        monkeypatch.setattr(module, name, value)
    folder = make_corpus(tmp_path / "corpus", train=250, validation=33)
    assert len(list((folder / "data").glob("train-*"))) > 2
    return folder


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interrupted_tokenization_goes_on_where_it_was_and_makes_the_same(tmp_path, small_steps):
    splits, cutter = ["train", "validation"], Cutter(TOKENIZER, 16)
    expected = tokenizing.tokenize(Corpus(small_steps), splits, "c", cutter, tmp_path / "at once")
    texts, cache = Corpus(small_steps, 0, 1, 12, 3, 0, 20), tmp_path / "cache"
    for _ in range(6):
        with pytest.raises(Kill):
            tokenizing.tokenize(texts, splits, "c", cutter, cache)
        (partial,) = stores_of(cache) or [None]
        if partial:  # what a crash leaves beyond what was put down
            for file in partial.glob("*/*.bin"):
                file.write_bytes(file.read_bytes() + b"more")
    stores = tokenizing.tokenize(texts, splits, "c", cutter, cache)
    assert texts.starts == sorted(texts.starts) and len(set(texts.starts)) == 5, "not always from the beginning"
    assert texts.starts[-1].shard > 1
    assert {split: len(store) for split, store in stores.items()} == {"train": 250, "validation": 33}
    assert stores["train"].truncated == expected["train"].truncated > 0
    (one,), (other,) = stores_of(tmp_path / "at once"), stores_of(cache)
    assert all_bytes(one) == all_bytes(other) and (one.name, len(all_bytes(one))) == (other.name, 8)


@pytest.mark.parametrize(
    "harm",
    [
        lambda partial: cut(partial / "train" / "tokens.bin"),
        lambda partial: (partial / "validation" / "offsets.bin").unlink(),
        lambda partial: (partial / "progress.json").write_text("{"),
        lambda partial: (partial / "progress.json").write_text('{"place": [1, 2]}'),
    ],
)
def test_what_is_not_whole_is_not_gone_on_with(tmp_path, small_steps, harm):
    texts, splits, cutter = Corpus(small_steps, 5), ["train", "validation"], Cutter(TOKENIZER, 64)
    with pytest.raises(Kill):
        tokenizing.tokenize(texts, splits, "c", cutter, tmp_path / "cache")
    harm(stores_of(tmp_path / "cache")[0])
    stores = tokenizing.tokenize(texts, splits, "c", cutter, tmp_path / "cache")
    assert texts.starts == [BEGIN, BEGIN] and len(stores["train"]) == 250


def test_texts_that_are_refused_leave_nothing_to_go_on_with(tmp_path, small_steps):
    (shard, *_) = sorted((small_steps / "data").glob("train-*"))[1:]
    shard.write_bytes(b"")
    with pytest.raises(InputError, match=f"^{shard}: cannot be read"):
        tokenizing.tokenize(
            Corpus(small_steps), ["train", "validation"], "c", Cutter(TOKENIZER, 64), tmp_path / "cache"
        )
    assert stores_of(tmp_path / "cache") == []


def test_a_damaged_data_set_is_not_mistaken_for_a_full_disk(tmp_path):
    folder = make_corpus(tmp_path / "corpus", train=2000)
    shard = next((folder / "data").glob("train-*"))
    content = shard.read_bytes()
    third = len(content) // 3
    for harmed in (content[:third] + bytes(third) + content[2 * third :], content[:100], b""):
        shard.write_bytes(harmed)
        with pytest.raises(InputError, match=f"^{shard}: cannot be read .*Make it again"):
            tokenize(lambda start: iterate_texts(folder, ["train"]), "c", TOKENIZER, 64, tmp_path / "cache")
    assert stores_of(tmp_path / "cache") == []


def test_the_cache_is_where_the_environment_says(monkeypatch, token_cache):
    assert default_cache() == token_cache
    monkeypatch.setenv("MSB_CACHE", "")
    assert default_cache() == Path.home() / ".cache" / "msb-ner"


SCRIPT = """
import sys, time
from hashlib import sha256
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from data_prep.text_batches import TextBatch
from pretrain.cutter import Cutter
from pretrain.tokenizing import tokenize

folder, name = Path(sys.argv[1]), sys.argv[2]
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")

def texts(start):
    (folder / f"made-by-{name}").touch()
    for _ in range(5):
        time.sleep(0.05)
        yield TextBatch("train", ["ba ce di", "fo"])

(folder / f"ready-{name}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.001)
store = tokenize(texts, ["train"], "c", Cutter(tokenizer, 64), folder / "cache")["train"]
print(len(store), sha256(store.tokens.tobytes() + store.kinds.tobytes() + store.offsets.tobytes()).hexdigest())
"""


def test_of_two_processes_one_makes_the_store_and_both_read_it(tmp_path):
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(tmp_path), name],
            cwd=PROJECT,
            env=environment(PYTHONPATH=str(PROJECT)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    ended = [process.communicate(timeout=PATIENCE_SECONDS) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    assert ended[0][0] == ended[1][0] and ended[0][0].startswith("10 ")
    assert len(list(tmp_path.glob("made-by-*"))) == 1
    (folder,) = stores_of(tmp_path / "cache")
    store = open_stores(folder, ["train"])["train"]
    assert text(store, 8) == TOKENIZER("ba ce di")["input_ids"] and len(store) == 10
