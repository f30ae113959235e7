"""The card of a data set: what it says at each time of the set's life, in YAML that `load_dataset` and the Hub read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from data_prep.layout import CORPUS_FEATURES, NER_FEATURES, ner_row, write_card, write_dataset
from data_prep.posts import POSTS_FEATURES, Post
from launch import dataset_card
from launch.dataset_card import KEPT_ABOVE, read_shards, render_again, render_dataset_card
from launch.errors import InputError
from launch.files import write_json_whole

POST = Post("1", "Jordan at last", lang="en", source="x", author_id="7").row()


def manifest(stage: str, output: str, inputs: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "stage": stage,
        "settings": {"output": f"/scratch/jane/{output}", "push_to_hub": None, "license": "other"},
        "inputs": inputs or {},
        "seeds": [],
        "rows": {"taken": 1000, "kept": 880, "rejected": {"near | duplicate": 1, "empty": 119}},
        "facts": {},
        "git_commit": "f" * 40,
        "versions": {"python": "3.11.7"},
        "fingerprint": output * 9,
    } | changes


def made_of(inner: dict[str, Any]) -> dict[str, Any]:
    return {"posts": {"path": inner["settings"]["output"], "sha256": "ab" * 32, "manifest": inner}}


def write_corpus(folder: Path, about: str = "Cleaned, as posted.") -> Path:
    posts = [{"id": str(number), "text": f"post {number}"} for number in range(1200)]
    rejected = [({"id": "x", "text": ""}, "empty")]
    splits = {"validation": posts[:200], "train": posts}
    write_dataset(folder, splits, CORPUS_FEATURES, "Some posts", {"posts read": 1201}, about, rejected)
    return folder


def table_rows(card: str, section: str) -> list[list[str]]:
    text = card.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|--")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_what_a_finished_corpus_says(tmp_path):
    folder = write_corpus(tmp_path / "corpus")
    crawl = manifest("data_prep/crawl x", "posts", settings={"output": "/scratch/jane/posts", "query": "from:nasa"})
    clean = manifest("data_prep/clean", "corpus", made_of(crawl))
    clean["settings"] |= {"language": "en", "minimum_words": 3}
    write_json_whole(folder / "manifest.json", clean)
    text = render_again(folder)
    card = DatasetCard(text)
    assert (card.data.pretty_name, card.data.license, card.data.language) == ("Some posts", "other", ["en"])
    assert (card.data.task_categories, card.data.size_categories) == (["fill-mask"], ["1K<n<10K"])
    assert card.data.tags == ["social-media", "posts"]
    assert "# Some posts\n\nCleaned, as posted.\n\n- posts read: 1,201\n\n<!--" in text
    assert table_rows(text, "Splits")[1:] == [["train", "1,200"], ["validation", "200"], ["rejected", "1"]]
    assert table_rows(text, "Columns")[2] == ["`text`", "string", "of the post"]
    made = table_rows(text, "How it was made")
    assert made[1][:2] == ["`data_prep/crawl x`", "posts `abababababab`"] and made[1][6] == "query = from:nasa"
    assert made[2][:6] == [
        "`data_prep/clean`",
        "corpus",
        "posts `abababababab`",
        "1,000",
        "880",
        "near \\| duplicate: 1; empty: 119",
    ]
    assert made[2][6] == "language = en; minimum_words = 3"
    assert made[-2:] == [["near \\| duplicate", "1"], ["empty", "119"]]
    assert "Of 1,000 rows taken, 880 were kept. The others were left out:" in text
    for said in ("X's terms", "taken out", "python 3.11.7", "f" * 40):
        assert said in text
    assert "jane" not in text and "\n\n\n" not in text


def test_the_snippet_loads_what_the_card_names(tmp_path, monkeypatch, capsys):
    folder = write_corpus(tmp_path / "corpus")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    card = render_dataset_card(folder, "Some posts", "", repo_id=str(folder))
    (snippet,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    scope: dict[str, Any] = {}
    exec(compile(snippet, "card", "exec"), scope)
    assert capsys.readouterr().out == "{'id': '0', 'text': 'post 0'}\n"
    assert scope["left_out"]["rejected"]["reason"] == ["empty"]


def test_a_card_is_valid_while_the_data_set_grows(tmp_path):
    folder = tmp_path / "posts"
    (folder / "data").mkdir(parents=True)
    write_card(folder, "Posts", {})  # the first post was rejected: there is no shard yet
    assert "configs" not in DatasetCard.load(folder / "README.md").data.to_dict()
    for number in range(2):
        table = pa.Table.from_pylist([POST] * (number + 1), schema=POSTS_FEATURES.arrow_schema)
        pq.write_table(table, folder / "data" / f"train-{number:05d}.parquet")
        (folder / "data" / "train-00009.partial").write_text("half a shard")
        write_card(folder, "Posts", {"posts taken": number + 1}, "As posted.")
        card = DatasetCard.load(folder / "README.md")
        loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / f"cache{number}"))
        assert len(loaded["train"]) == (1, 3)[number]
        assert f"| train | {(1, 3)[number]} |" in card.text and "There is no `manifest.json` yet" in card.text
    assert card.data.tags == ["social-media", "posts"] and card.data.task_categories is None
    photos = "list of (url: string, path: string, sha256: string, alt_text: string, problem: string)"
    assert [row[1] for row in table_rows(card.text, "Columns") if row[0] == "`images`"] == [photos]


def test_what_is_written_above_the_line_stays(tmp_path):
    folder = write_corpus(tmp_path / "corpus")
    write_json_whole(folder / "manifest.json", manifest("data_prep/clean", "corpus"))
    card = (folder / "README.md").read_text(encoding="utf-8")
    mine = card.replace("# Some posts", "# Cats 🐈").replace(
        "Cleaned,", "To have a post removed, write to us.\n\nCleaned,"
    )
    (folder / "README.md").write_text(mine, encoding="utf-8")
    for _ in range(2):
        (folder / "README.md").write_text(render_again(folder, "cc-by-4.0"), encoding="utf-8")
    card = DatasetCard.load(folder / "README.md")
    assert (card.data.pretty_name, card.data.license) == ("Cats 🐈", "cc-by-4.0")
    assert (
        "# Cats 🐈\n\nTo have a post removed, write to us.\n\nCleaned, as posted.\n\n- posts read: 1,201" in card.text
    )
    assert card.text.count(KEPT_ABOVE) == 1
    (folder / "README.md").write_text("no card of ours")
    assert DatasetCard(render_again(folder)).data.pretty_name == "corpus"


def test_kinds_and_sizes(tmp_path):
    row = ner_row("a", ["Jordan"], ["B-PER"], ["Jordan"], ["B-PER"], [0])
    write_dataset(tmp_path / "ner", {"test": [row]}, NER_FEATURES, "Tweets")
    write_dataset(tmp_path / "posts", {"train": [POST]}, POSTS_FEATURES, "Posts")
    assert [read_shards(tmp_path / kind).kind for kind in ("ner", "posts")] == ["ner", "posts"]
    with_words = manifest("data_prep/tmn", "ner", settings={"output": "ner", "image_words": "labels.tsv"})
    card = DatasetCard(render_dataset_card(tmp_path / "ner", "Tweets", "", manifest=with_words))
    assert card.data.tags == ["social-media", "posts", "named-entity-recognition", "multimodal"]
    assert [dataset_card._size(rows) for rows in (0, 999, 1000, 99_999, 100_000, 10**12)] == [
        "n<1K",
        "n<1K",
        "1K<n<10K",
        "10K<n<100K",
        "100K<n<1M",
        "1B<n<10B",
    ]


def test_texts_of_strangers_stay_in_their_place(tmp_path):
    folder = tmp_path / "posts"
    hostile = {"a | b\n# heading": "<script>x</script>", "path": "/scratch/jane/keys", "token": "hf_" + "q" * 34}
    write_dataset(folder, {"train": [POST]}, POSTS_FEATURES, "Posts", hostile)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "- a \\| b # heading: &lt;script>x&lt;/script>\n- path: keys\n- token: [redacted]\n" in card
    assert "jane" not in card and "q" * 34 not in card


def test_a_broken_shard_is_named(tmp_path):
    folder = write_corpus(tmp_path / "corpus")
    (folder / "data" / "train-00000-of-00001.parquet").write_bytes(b"not parquet")
    with pytest.raises(InputError, match=r"train-00000-of-00001\.parquet: not a Parquet file"):
        render_again(folder)
