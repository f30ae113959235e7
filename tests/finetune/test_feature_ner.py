"""The feature-based systems: features of known words against the templates, a run that learns, what is refused."""

import json
import sys

import pytest
from tiny_ner import ODD, make_ner, make_row, named_tweet

from finetune import feature_ner
from finetune.systems import tner_features
from finetune.systems.stanford_features import StanfordFeatures, word_parts, word_shape
from finetune.systems.tner_features import TNERFeatures, has_informative_capitals, orthographic_features, quoted
from launch.errors import InputError


@pytest.fixture
def crfsuite():
    return pytest.importorskip("pycrfsuite", reason="the extra `features` is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    odd = {split: [make_row(f"{split}: {what}", *rest, []) for what, *rest in ODD] for split in ("train", "test")}
    return make_ner(tmp_path_factory.mktemp("data") / "named", named_tweet, **odd)


def run(data, output, *more):
    return feature_ner.main(["--data", str(data), "--output", str(output), *more])


def values(features, name):
    return [feature.partition("=")[2] for feature in features if feature.startswith(f"{name}=")]


@pytest.mark.parametrize(
    "word, shape",
    [
        ("of", "xx"),
        ("NATO", "XXXX"),
        ("Oslo", "Xxxx"),
        ("Berlin", "Xxxxx"),
        ("B-52s", "X-ddx"),
        ("#MTVawards", "#XXxxx"),
    ],
)
def test_word_shapes(word, shape):
    assert word_shape(word) == shape


def test_shapes_mark_words_known_in_lower_case():
    features = StanfordFeatures([["an", "apple", "iPad"]])(["Apple", "Paris", "apple2", "iPad", "IPAD"])
    assert [values(row, "TYPE") for row in features] == [["Xxxxxk"], ["Xxxxx"], ["xxxxd"], ["xXxx"], ["XXXX"]]


def test_word_parts_are_beginnings_and_ends():
    assert word_parts("abcdefgh") == (
        *("#<a#", "#<ab#", "#<abc#", "#<abcd#", "#<abcde#"),
        *("#h>#", "#gh>#", "#fgh>#", "#efgh>#", "#defgh>#"),
    )
    assert word_parts("a") == ("#<a#", "#<a>#", "#a>#")


def test_stanford_features_of_a_word():
    assert StanfordFeatures([])("we met Ann of the Red Cross".split())[2] == [
        *("###", "WORD=Ann", "PW=met", "NW=of", "TYPE=Xxx", "PTYPE=xxx", "NTYPE=xx"),
        *("PW_CTYPE=met...Xxx", "NW_CTYPE=Xxx...of", "PCTYPE=xxx...Xxx", "CNTYPE=Xxx...xx", "PCNTYPE=xxx...Xxx...xx"),
        *("#<A#", "#<An#", "#<Ann#", "#<Ann>#", "#n>#", "#nn>#", "#Ann>#"),
        *("PPW_CTYPE=we...Xxx", "NNW_CTYPE=the...Xxx"),
        *("DISJP=", "DISJP=we", "DISJP=met", "DISJN=of", "DISJN=the", "DISJN=Red", "DISJN=Cross"),
    ]


def test_stanford_features_at_the_ends_are_those_of_empty_words():
    (row,) = StanfordFeatures([])(["Oslo"])
    assert [values(row, name) for name in ("PW", "NW", "PTYPE", "NTYPE", "DISJP", "DISJN")] == [[""]] * 6
    assert values(row, "PW_CTYPE") == values(row, "PPW_CTYPE") == ["...Xxxx"]
    assert values(row, "NW_CTYPE") == ["Xxxx..."] and values(row, "NNW_CTYPE") == ["...Xxxx"]


def test_long_neighbours_are_not_looked_past():
    row = StanfordFeatures([])("we saw Cross words today".split())[2]
    assert values(row, "PPW_CTYPE") == ["we...Xxxxx"] and values(row, "NNW_CTYPE") == []


@pytest.mark.parametrize(
    "word, names",
    [
        ("Oslo", "INITCAP INITCAP_AND_GOODCAP"),
        ("NASA", "INITCAP INITCAP_AND_GOODCAP ALLCAP ALLCAP_AND_GOODCAP"),
        ("7", "HASDIGIT SINGLEDIGIT"),
        ("42nd", "HASDIGIT SINGLEDIGIT DOUBLEDIGIT"),
        ("b-52", "HASDIGIT HASDASH"),
        ("-", "HASDASH"),
        ("!!", "PUNCTUATION"),
        ("#fun", "PUNCTUATION"),
        ("@ann", ""),
    ],
)
def test_orthographic_features(word, names):
    assert [feature for feature in orthographic_features(word, True) if "=" not in feature] == names.split()
    plain = [feature for feature in orthographic_features(word, False) if "=" not in feature]
    assert plain == [name for name in names.split() if not name.endswith("_AND_GOODCAP")]


def test_affixes_are_those_of_words_of_four_characters():
    affixes = ["prefix=o", "prefix=os", "prefix=osl", "suffix=o", "suffix=lo", "suffix=slo"]
    assert orthographic_features("Oslo", False) == ["word=Oslo", "word_lower=oslo", *affixes, "INITCAP"]
    assert orthographic_features("Rio", False) == ["word=Rio", "word_lower=rio", "INITCAP"]


def test_tner_features_of_a_word():
    features = TNERFeatures({"rio": ["cities"]}, {"rio": "0" * 4 + "1" * 12})
    assert features("we met Ann in Rio on May 1".split())[4] == [
        *("word=Rio", "word_lower=rio", "INITCAP", "INITCAP_AND_GOODCAP"),
        *("BROWN=00001", "BROWN=000011111", "BROWN=0000111111111", "DICT=cities", "goodCap=True", "DOMAIN=Twitter"),
        *("LEFT_WINDOW=met", "LEFT_WINDOW=Ann", "LEFT_WINDOW=in", "RIGHT_WINDOW=on", "RIGHT_WINDOW=May"),
        *("p1=word=in", "p1=word_lower=in", "n1=word=on", "n1=word_lower=on"),
    ]


def test_tner_windows_leave_out_the_first_word():
    first, second, third = TNERFeatures({}, {})("we met Ann".split())
    assert "BEGIN" in first and "BEGIN" not in second
    assert values(first, "LEFT_WINDOW") == values(second, "LEFT_WINDOW") == [] and "p1=word=we" in second
    assert values(third, "LEFT_WINDOW") == ["met"] and values(first, "RIGHT_WINDOW") == ["met", "Ann"]


@pytest.mark.parametrize(
    "tweet, expected",
    [
        ("he said ' oh no ' and left", "oh no"),
        ('saw " Iron Man " and " Up "', "Iron Man Up"),
        ("it 's \" fine", ""),
        ('"Iron Man"', ""),
    ],
)
def test_quoted_words(tweet, expected):
    words = tweet.split()
    assert [word for word, is_so in zip(words, quoted(words), strict=True) if is_so] == expected.split()
    marked = ["QUOTED" in row for row in TNERFeatures({}, {})(words)]
    assert marked == quoted(words)


@pytest.mark.parametrize(
    "tweet, informative",
    [
        ("We met Ann in Oslo today", True),
        ("we met ann in oslo", False),
        ("Ten Ways To Love Oslo", False),
        ("SO HAPPY IN OSLO", False),
        ("@Ann Hello to all", True),
        ("!", False),
    ],
)
def test_informative_capitals(tweet, informative):
    assert has_informative_capitals(tweet.split()) is informative


def test_dictionaries_and_clusters():
    features = TNERFeatures({"red cross": ["org"], "cross": ["words", "verbs"]}, {"cross": "0110" * 6, "red": "01"})
    the, red, cross, _ = features("The Red Cross said".split())
    assert values(red, "DICT") == ["org"] and values(red, "DICTWIN") == ["2"]
    assert values(cross, "DICT") == ["org", "words", "verbs"] and values(cross, "DICTWIN") == ["2"]
    assert values(cross, "BROWN") == [("0110" * 6)[:bits] for bits in (5, 9, 13)]
    assert values(red, "BROWN") == ["01"] and values(the, "BROWN") == []
    assert "n1=DICT=org" in the and "p1=word=The" in red


def test_a_phrase_may_be_cut_short_by_the_end_of_the_tweet():
    (row,) = TNERFeatures({"oslo": ["cities"]}, {})(["Oslo"])
    assert values(row, "DICT") == ["cities"] and values(row, "DICTWIN") == ["2", "3", "4", "5"]


def test_reading_dictionaries_and_clusters(tmp_path):
    (tmp_path / "cities.txt").write_text("Oslo\nNew York\n\n")
    (tmp_path / "teams.txt").write_text("oslo!\n")
    (tmp_path / "paths.tsv").write_text("0110\toslo\t7\n01\tthe\t9\n")
    assert tner_features.read_dictionaries(tmp_path) == {"oslo": ["cities", "teams"], "new york": ["cities"]}
    assert tner_features.read_clusters(tmp_path / "paths.tsv") == {"oslo": "0110", "the": "01"}
    (tmp_path / "paths.tsv").write_text("0110\toslo\t7\n012\tthe\t9\n")
    with pytest.raises(InputError, match="paths.tsv:2: is not bits, word and count"):
        tner_features.read_clusters(tmp_path / "paths.tsv")


@pytest.mark.parametrize("system, name", [("stanford", "Stanford NER style"), ("tner", "T-NER style")])
def test_it_learns_the_names(crfsuite, data, tmp_path, system, name):
    assert run(data, tmp_path / "out", "--system", system, "--crf.c2", "0.01", "--crf.maximum_iterations", "50") == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["validation"]["conlleval"]["micro"]["f1"] > 0.95
    assert scores["test"]["conlleval"]["micro"]["f1"] > 0.9 and scores["test"]["words_truncated"] == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["facts"]["system"] == name
    assert manifest["rows"]["kept"] == 128 + 40 + 40 + 2 * len(ODD)
    assert 0 < manifest["facts"]["crf"]["iterations"] <= 50 and manifest["facts"]["crf"]["loss"] > 0
    iterations = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in iterations] == list(range(1, len(iterations) + 1))

    rows = {row["id"]: row for row in map(json.loads, open(tmp_path / "out" / "predictions" / "test.jsonl"))}
    url = rows["test: a name around a URL"]
    assert url["tokens"][2].startswith("http") and url["predicted"][2] == "O" and len(url["predicted"]) == 4
    assert url["gold"] == ["O", "B-PER", "O", "I-PER"] and url["image_words"] == []


def test_orphans_are_repaired_and_counted(data):
    class Tagger:
        def tag(self, features):
            return ["O", "I-PER", "I-PER"]

    row = {"source_tokens": ["a", "http://t.co", "b", "c"], "source_index": [0, 2, 3]}
    split = feature_ner.Split([row], feature_ner.FeatureInputs([None]))
    assert feature_ner.predict_tags(Tagger(), split) == ([["O", "O", "B-PER", "I-PER"]], 1)


def test_the_same_again(crfsuite, data, tmp_path):
    for name in "ab":
        assert run(data, tmp_path / name, "--system", "stanford", "--crf.maximum_iterations", "5") == 0
    assert (tmp_path / "a" / "model.crfsuite").read_bytes() == (tmp_path / "b" / "model.crfsuite").read_bytes()


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (["--system", "stanford", "--clusters", "{folder}/paths.tsv"], "stanford has no features of clusters"),
        (["--system", "stanford", "--dictionaries", "{folder}"], "stanford has no features of dictionaries"),
        (["--system", "tner", "--dictionaries", "{folder}"], "holds no dictionaries"),
        (["--system", "tner", "--clusters", "{folder}/paths.tsv"], "paths.tsv: has no words"),
    ],
)
def test_refusals(crfsuite, data, tmp_path, capfd, arguments, problem):
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "paths.tsv").write_text("")
    assert run(data, tmp_path / "out", *(argument.format(folder=folder) for argument in arguments)) == 2
    assert problem in capfd.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_penalties_below_zero_are_refused(data, tmp_path):
    with pytest.raises(SystemExit):
        run(data, tmp_path / "out", "--system", "tner", "--crf.c1", "-1")


def test_without_crfsuite(monkeypatch, data, tmp_path, capfd):
    monkeypatch.setitem(sys.modules, "pycrfsuite", None)
    assert run(data, tmp_path / "out", "--system", "tner") == 2
    assert "msb-ner[features]" in capfd.readouterr().err
