"""The bundled sample is what its generator writes, is well formed, and shows what it is meant to show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from data_prep import make_sample

SPLITS = ("train", "valid", "test")
FILES = {"posts.txt", "image_words.tsv", "README.md", "eng.train", "eng.testa", "eng.testb"}


def read_tmn(split: str) -> list[tuple[str, list[tuple[str, str]]]]:
    posts = []
    for block in (make_sample.SAMPLE / f"{split}.txt").read_text("utf-8").removesuffix("\n\n").split("\n\n"):
        header, *lines = block.split("\n")
        posts.append((header.removeprefix("IMGID:"), [tuple(line.split("\t")) for line in lines]))
    return posts


def text_of(tagged: list[tuple[str, str]]) -> str:
    return " ".join(token for token, _ in tagged if not token.startswith("http"))


def entities_of(tagged: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """List (name, type), an orphan I- opening an entity."""
    entities, before = [], "O"
    for token, tag in tagged:
        if tag.startswith("B-") or (tag != "O" and before[2:] != tag[2:]):
            entities.append([token, tag[2:]])
        elif tag != "O":
            entities[-1][0] += f" {token}"
        before = tag
    return [tuple(entity) for entity in entities]


def twins_of(split: str) -> dict[str, list[tuple[str, list[tuple[str, str]]]]]:
    """Group the posts that share their text."""
    groups = defaultdict(list)
    for image_id, tagged in read_tmn(split):
        groups[text_of(tagged)].append((image_id, tagged))
    return {text: posts for text, posts in groups.items() if len(posts) > 1}


def read_image_words() -> dict[str, list[str]]:
    header, *rows = (make_sample.SAMPLE / "image_words.tsv").read_text("utf-8").splitlines()
    assert header == "image_id\timage_words"
    pairs = [row.split("\t") for row in rows]
    assert len(dict(pairs)) == len(pairs)
    return {image_id: words.split(", ") for image_id, words in pairs}


@pytest.fixture(scope="module")
def splits() -> dict[str, list[make_sample.Post]]:
    return make_sample.make_ner(make_sample.Draw(make_sample.SEED))


def test_bundled_files_are_what_the_command_writes(tmp_path: Path) -> None:
    command = [sys.executable, make_sample.__file__, "--output", str(tmp_path / "sample")]
    # Another hash seed than this process has: the order of sets must not matter.
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True)
    written = {path.name: path.read_bytes() for path in (tmp_path / "sample").iterdir()}
    bundled = {path.name: path.read_bytes() for path in make_sample.SAMPLE.iterdir()}
    assert written.keys() == bundled.keys() == FILES | {f"{split}.txt" for split in SPLITS}
    assert [name for name in written if written[name] != bundled[name]] == []
    assert sum(map(len, bundled.values())) < 1_500_000


def test_another_seed_writes_another_sample(tmp_path: Path) -> None:
    make_sample.main(["--output", str(tmp_path), "--seed", "8"])
    for name in FILES | {"train.txt"}:
        assert (tmp_path / name).read_bytes() != (make_sample.SAMPLE / name).read_bytes()


def test_python_still_draws_the_numbers_the_sample_was_made_with() -> None:
    draw = make_sample.Draw(7)
    assert [draw.below(1000) for _ in range(5)] == [323, 150, 650, 72, 535]


@pytest.mark.parametrize("split", SPLITS)
def test_tmn_files_are_well_formed(split: str) -> None:
    plan = make_sample.PLANS[split]
    pairs = plan.twins + plan.two_name_twins + plan.new_twins
    assert len(twins_of(split)) == pairs
    assert 0.55 < 2 * pairs / len(read_tmn(split)) < 0.65
    orphans = links = 0
    for image_id, tagged in read_tmn(split):
        assert re.fullmatch(r"\d+", image_id)
        assert tagged
        for token, tag in tagged:
            assert re.fullmatch(r"\S+", token)
            assert tag == "O" or re.fullmatch(r"[BI]-(PER|LOC|ORG|OTHER)", tag)
            links += token.startswith("http://")
        orphans += sum(b.startswith("I-") and a[2:] != b[2:] for (_, a), (_, b) in pairwise(tagged))
    assert orphans == plan.orphan
    assert links > 0.25 * len(read_tmn(split))


def test_every_post_has_five_image_words_of_its_own() -> None:
    words = read_image_words()
    posts = [image_id for split in SPLITS for image_id, _ in read_tmn(split)]
    assert sorted(posts) == sorted(words)
    assert all(len(set(labels)) == 5 for labels in words.values())


@pytest.mark.parametrize("split", SPLITS)
def test_twins_balance_the_types_so_that_their_text_says_nothing(split: str) -> None:
    kinds = {n: set(g.types) for g in make_sample.AMBIGUOUS for n in g.train + g.valid_only + g.test_only}
    by_name = defaultdict(Counter)
    for posts in twins_of(split).values():
        (_, first), (_, second) = posts
        names = [name for name, _ in entities_of(first)]
        assert names == [name for name, _ in entities_of(second)]
        for (name, one_type), (_, other_type) in zip(entities_of(first), entities_of(second), strict=True):
            assert {one_type, other_type} == {t.replace("MISC", "OTHER") for t in kinds[name]}
            by_name[name].update([one_type, other_type])
    for counts in by_name.values():
        assert len(set(counts.values())) == 1
    if split == "train":
        assert len(by_name) >= 36
        assert min(min(counts.values()) for counts in by_name.values()) >= 8


def test_a_reader_of_text_alone_types_half_of_the_twins() -> None:
    """The best one there can be: it has learnt each test text's most common type by heart."""
    total = right = 0
    for posts in twins_of("test").values():
        types = [[entity_type for _, entity_type in entities_of(tagged)] for _, tagged in posts]
        for column in zip(*types, strict=True):
            total += len(column)
            right += Counter(column).most_common(1)[0][1]
    assert right * 2 == total > 200


def test_a_reader_of_the_image_words_types_most_twins_but_not_all() -> None:
    """It has counted the training split's words by type; no table of single words is enough for certainty."""
    words, counts = read_image_words(), defaultdict(Counter)
    for posts in twins_of("train").values():
        for image_id, tagged in posts:
            for word in words[image_id]:
                counts[word][entities_of(tagged)[0][1]] += 1
    right, misled = [], 0
    for posts in twins_of("test").values():
        candidates = sorted({entities_of(tagged)[0][1] for _, tagged in posts})
        for image_id, tagged in posts:
            score = {t: sum(counts[w][t] / counts[w].total() for w in words[image_id]) for t in candidates}
            truth = entities_of(tagged)[0][1]
            right.append(max(candidates, key=score.get) == truth)
            misled += any(counts[w][truth] < max(counts[w].values()) / 4 for w in words[image_id])
    assert 0.85 < sum(right) / len(right) < 0.995
    assert misled > 0.2 * len(right)


def test_no_text_is_in_two_splits() -> None:
    texts = [{text_of(tagged) for _, tagged in read_tmn(split)} for split in SPLITS]
    assert sum(map(len, texts)) == len(set().union(*texts))


def test_test_split_has_ambiguous_names_that_train_has_not() -> None:
    def names(split: str) -> Counter:
        return Counter(name for _, tagged in read_tmn(split) for name, _ in entities_of(tagged))

    new = [name for group in make_sample.AMBIGUOUS for name in group.test_only]
    train, test = names("train"), names("test")
    assert all(test[name] >= 4 and train[name] == 0 for name in new)
    posts = (make_sample.SAMPLE / "posts.txt").read_text("utf-8")
    assert all(posts.count(name) >= 20 for name in new)


def test_each_kind_of_post_is_there(splits: dict[str, list[make_sample.Post]]) -> None:
    kinds = Counter(post.kind for posts in splits.values() for post in posts)
    assert set(kinds) == {"twin", "cued", "several", "orphan", "plain"}
    sizes = Counter(len(entities_of(tagged)) for _, tagged in read_tmn("train"))
    assert sizes[0] == make_sample.PLANS["train"].plain
    assert min(sizes[2], sizes[3]) > 0


def test_raw_posts_have_what_cleaning_is_for() -> None:
    text = (make_sample.SAMPLE / "posts.txt").read_text("utf-8")
    posts = text.removesuffix("\n").split("\n")
    assert 3000 <= len(posts) <= 4000
    assert all(post.strip() for post in posts)
    assert 50 < len(posts) - len(set(posts)) < 300
    assert 50 < sum(len(post.split()) <= 2 for post in posts) < 300
    for piece in ("http://t.co/", "@", "#", "&amp;", "&lt;3", "RT @"):
        assert text.count(piece) > 50, piece


def test_raw_posts_have_every_word_of_the_images_and_of_the_ner_set() -> None:
    """A vocabulary made from the raw posts serves the rest of the chain."""
    text = (make_sample.SAMPLE / "posts.txt").read_text("utf-8").lower()
    known = Counter(re.findall(r"\w+", text))
    labels = {part for words in read_image_words().values() for label in words for part in label.split()}
    assert [label for label in sorted(labels) if known[label] < 8] == []
    posts = [tagged for split in SPLITS for _, tagged in read_tmn(split)]
    tokens = {token.lower() for tagged in posts for token, _ in tagged if token.isalpha()}
    assert [token for token in sorted(tokens) if known[token] < 3] == []


@pytest.mark.parametrize("name", ["eng.train", "eng.testa", "eng.testb"])
def test_news_is_iob1_in_four_columns(name: str) -> None:
    blocks = (make_sample.SAMPLE / name).read_text("utf-8").removesuffix("\n\n").split("\n\n")
    sentences = [[line.split(" ") for line in block.split("\n")] for block in blocks]
    assert sentences[0] == [["-DOCSTART-", "-X-", "O", "O"]]
    sentences = [rows for rows in sentences if rows[0][0] != "-DOCSTART-"]
    assert len(sentences) == make_sample.NEWS_SENTENCES[name] < len(blocks)
    seen_b = Counter()
    for rows in sentences:
        assert {len(row) for row in rows} == {4}
        for column, kinds in ((2, {"NP", "VP", "PP", "ADJP"}), (3, set(make_sample.TYPES))):
            tags = ["O", *(row[column] for row in rows)]
            for before, tag in pairwise(tags):
                assert tag == "O" or (tag[:2] in {"I-", "B-"} and tag[2:] in kinds)
                # In IOB1 a B- only parts what would else run together.
                assert not tag.startswith("B-") or before[2:] == tag[2:]
                seen_b[column] += tag.startswith("B-")
    assert seen_b[2] and seen_b[3]
