import random

import pytest

from data_prep import dataset_texts
from data_prep.dataset_texts import Texts, compare
from data_prep.layout import CORPUS_FEATURES, write_dataset
from data_prep.near_duplicates import SIMILAR, words_of
from data_prep.similar_texts import Matches, Overlap, TextIndex, find_overlap, find_twins


def texts_of(name: str, lines: list[str]) -> list[tuple[str, tuple[str, ...]]]:
    return [(f"{name}:{number}", words_of(line)) for number, line in enumerate(lines)]


def similarity(a: tuple[str, ...], b: tuple[str, ...]) -> float:
    return len({*a} & {*b}) / len({*a} | {*b}) if a and b else 0.0


def best_by_hand(texts, others, skip_itself: bool = False) -> Matches:
    """Matches of ``texts``, each compared with each of ``others``."""
    found = Matches(len(texts))
    for place, (_, words) in enumerate(texts):
        values = [similarity(words, other) for at, (_, other) in enumerate(others) if not (skip_itself and at == place)]
        if max(values, default=0.0) >= SIMILAR:
            found.count(max(values))
    return found


@pytest.fixture
def drawn() -> tuple[list, list]:
    """Short texts over few words, so that many are equal, many are similar, and some have no word."""
    draw = random.Random(3)

    def lines(count: int) -> list[str]:
        return [" ".join(draw.choices("abcdefgh", k=draw.choice([0, 1, 5, 6, 7, 9]))) for _ in range(count)]

    return texts_of("one", lines(150)), texts_of("two", lines(90))


def test_overlap_equals_comparing_each_with_each(drawn):
    one, two = drawn
    overlap = find_overlap(one, two)
    assert overlap.indexed == best_by_hand(one, two)
    assert overlap.others == best_by_hand(two, one)
    assert overlap.indexed.equal and overlap.indexed.near
    assert overlap.pairs == sum(similarity(a, b) >= SIMILAR for _, a in one for _, b in two)


def test_twins_equal_comparing_each_with_each(drawn):
    texts, _ = drawn
    found, examples = find_twins(TextIndex(texts), texts)
    assert found == best_by_hand(texts, texts, skip_itself=True)
    words = dict(texts)
    assert len({frozenset(pair[:2]) for pair in examples}) == len(examples) == 5
    assert all(SIMILAR <= round(similarity(words[a], words[b]), 3) == value < 1 for a, b, value in examples)


def test_a_text_that_is_there_many_times_gives_each_of_its_pairs():
    overlap = Overlap(TextIndex(texts_of("a", ["Jordan at last", "no", "RT @x: jordan at LAST http://t.co/a"])))
    overlap.add("b", words_of("At last: Jordan!"))
    overlap.add("c", ())
    assert overlap.examples == [("a:0", "b", 1.0), ("a:2", "b", 1.0)]
    assert (overlap.pairs, overlap.indexed, overlap.others) == (2, Matches(3, 2, 0), Matches(2, 1, 0))


def write_texts(folder, name: str, lines: list[str]) -> Texts:
    rows = [{"id": f"{name}:{number}", "text": line} for number, line in enumerate(lines)]
    write_dataset(folder / name, {"train": rows}, CORPUS_FEATURES, name)
    return Texts(name, folder / name, {"train": len(rows)}, "text")


def test_which_set_is_held_does_not_change_what_is_found(tmp_path, monkeypatch):
    draw = random.Random(4)
    lines = [" ".join(draw.choices("abcdefghij", k=6)) for _ in range(160)]
    large, small = write_texts(tmp_path, "large", lines[:140]), write_texts(tmp_path, "small", lines[130:])
    in_small, in_large = compare([large], small)[0], compare([small], large)[0]
    expected = [texts_of(name, part) for name, part in (("large", lines[:140]), ("small", lines[130:]))]
    assert in_small.matches == best_by_hand(*expected) and in_large.matches == best_by_hand(*reversed(expected))
    assert all(one.startswith("large:") and other.startswith("small:") for one, other, _ in in_small.examples)
    assert all(one.startswith("small:") and other.startswith("large:") for one, other, _ in in_large.examples)

    monkeypatch.setattr(dataset_texts, "SAMPLE_ROWS", 20)  # now both are large
    large, small = (Texts(one.name, one.folder, one.rows, "text") for one in (large, small))
    sampled = compare([large], small)[0]
    assert sampled.is_sampled and 5 < sampled.matches.texts < 60
    sample = [(text_id, words_of(text)) for text_id, text in large.sample]
    assert sampled.matches == best_by_hand(sample, expected[1])
    again = Texts(large.name, large.folder, large.rows, "text")
    assert again.sample == large.sample
