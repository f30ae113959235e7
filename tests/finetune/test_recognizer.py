"""The recognizer: entities in raw posts with their places and scores, tags of tokens, and folders that are none."""

import dataclasses
import itertools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_ner import bert_config, make_tokenizer
from transformers import BertForTokenClassification

from finetune.features import InputFormat, PieceReader
from finetune.fused_bert import library
from finetune.post_words import PostWords
from finetune.recognizer import Entity, Recognizer
from finetune.systems.msb import MSBConfig, MSBForTokenClassification
from finetune.tagger import PieceTagger
from finetune.tags import TagScheme
from launch.errors import InputError

KINDS = [("crf", "BIO"), ("crf", "BIOES"), ("softmax", "BIO"), ("softmax", "BIOES")]


@pytest.fixture(scope="module", params=KINDS, ids=["-".join(kind) for kind in KINDS])
def folder(request, trained):
    return trained(*request.param)


@pytest.fixture(scope="module")
def recognizer(folder):
    return Recognizer.from_pretrained(folder)


def random_recognizer(
    head: str, scheme: TagScheme, reads_image_words: bool = True, precision: str = "fp32", **sizes: int
) -> Recognizer:
    """A recognizer of random weights, so large that it finds something everywhere."""
    tokenizer = make_tokenizer()
    torch.manual_seed(1)
    config = bert_config(len(tokenizer), num_labels=len(scheme.labels))
    config.update(sizes)
    if head == "crf":
        config = MSBConfig(config.to_diff_dict() | {"model_type": "bert"}, scheme.name, scheme.types)
    model = (MSBForTokenClassification if head == "crf" else BertForTokenClassification)(config)
    torch.nn.init.normal_(model.base_model.get_input_embeddings().weight)
    torch.nn.init.normal_(model.classifier.weight, std=0.3)
    if head == "crf":
        torch.nn.init.normal_(model.crf.transitions)
    reader = PieceReader(tokenizer, InputFormat(24, 6))
    return Recognizer(PieceTagger(model), reader, scheme, reads_image_words, precision=precision)


def found(entities: list[Entity]) -> list[tuple[str, str]]:
    return [(entity.text, entity.type) for entity in entities]


def test_entities_of_raw_text(recognizer):
    texts = [
        "RT @friend: saw Maria\u00a0Lee,met acme corp!!! 🎉",
        "",
        "today\nParis http://t.co/abc",
        "http://t.co/abc",
    ]
    entities = recognizer.entities(texts)
    assert found(entities[0]) == [("Maria\u00a0Lee", "PER"), ("acme corp", "ORG")]
    assert found(entities[2]) == [("Paris", "LOC")]
    assert entities[1] == entities[3] == []
    for text, in_text in zip(texts, entities, strict=True):
        for entity in in_text:
            assert text[entity.start : entity.end] == entity.text
            assert 0 < entity.score <= 1


def test_bf16_finds_the_same_where_the_model_is_sure_with_scores_a_little_off(folder, recognizer):
    rounded = Recognizer.from_pretrained(folder, precision="bf16")
    texts = ["RT @friend: saw Maria Lee,met acme corp!!!", "today\nParis http://t.co/abc"]
    exact, near = recognizer.entities(texts), rounded.entities(texts)
    assert [found(entities) for entities in near] == [found(entities) for entities in exact]
    pairs = [(a.score, b.score) for x, y in zip(exact, near, strict=True) for a, b in zip(x, y, strict=True)]
    assert all(abs(a - b) < 0.05 for a, b in pairs) and any(a != b for a, b in pairs)


@pytest.mark.skipif(library() is None, reason="no processor with AVX512-BF16 (and without AMX), or no compiler")
def test_eight_bits_find_nearly_the_same():
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    texts = [" ".join(words) for words in itertools.permutations("RT saw Maria Lee, acme Paris".split(), 4)]
    tags, scores = {}, {}
    for precision in ("fp32", "bf16", "int8"):
        recognizer = random_recognizer("crf", TagScheme(), precision=precision, **sizes)
        results = recognizer.recognize([PostWords.of_text(text) for text in texts])
        tags[precision] = [tag for result in results for tag in result.tags]
        scores[precision] = [entity.score for result in results for entity in result.entities]
    same = sum(a == b for a, b in zip(tags["fp32"], tags["int8"], strict=True)) / len(tags["fp32"])
    assert 0.9 < same and scores["fp32"] != scores["int8"] != scores["bf16"] and len(set(tags["fp32"])) > 3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_several_threads_at_once(precision):
    if precision == "int8" and library() is None:
        pytest.skip("no processor with AVX512-BF16 (and without AMX), or no compiler")
    recognizer = random_recognizer("crf", TagScheme(), precision=precision, hidden_size=64, intermediate_size=128)
    posts = [list(words) for words in itertools.permutations("RT saw Maria Lee, acme Paris".split(), 3)]
    texts = [[" ".join(words)] * (1 + number % 3) for number, words in enumerate(posts)]
    one_by_one = [recognizer.entities(some) for some in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(recognizer.entities, texts)) == one_by_one


def test_eight_bits_are_refused_where_they_cannot_be_had(folder):
    with pytest.raises(InputError, match="precision int8: cannot be had here"):
        Recognizer.from_pretrained(folder, precision="int8")  # heads of 16


def test_an_entity_does_not_reach_across_a_url(recognizer):
    [entities] = recognizer.entities(["saw Maria http://t.co/abc Lee"])
    assert ("Maria", "PER") in found(entities)
    assert not any("http" in entity.text for entity in entities)


def test_tags_equal_what_the_stage_predicted(recognizer, folder):
    """Also for posts with URLs, with words of no pieces and with words that do not fit."""
    rows = [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]
    tags = recognizer.tag([row["tokens"] for row in rows], [row["image_words"] for row in rows])
    assert tags == [row["predicted"] for row in rows]


def test_words_cut_off_are_counted(recognizer):
    [found] = recognizer.recognize([PostWords.of_text("a " * 100 + "paris")])
    assert found.words_truncated == 101 - 61
    assert found.tags == ["O"] * 101
    assert recognizer.entities(["a" * 10_000, "\u200d" * 100]) == [[], []]


@pytest.mark.parametrize("head, scheme", KINDS)
def test_scores_are_the_probability_of_the_entity_by_enumeration(head, scheme):
    """Over all label sequences of four words, the share of those that hold the entity and end it there."""
    recognizer = random_recognizer(head, TagScheme(scheme, ("PER", "LOC")))
    labels, crf = recognizer.scheme.labels, getattr(recognizer.tagger.model, "crf", None)
    checked = 0
    for words in itertools.product(["saw", "maria", "paris"], repeat=4):
        post = PostWords.of_tokens(words)
        [result] = recognizer.recognize([post])
        if not result.entities or checked > 12:
            continue
        checked += 1
        inputs = recognizer.reader.tokenizer(" ".join(words), return_tensors="pt")
        with torch.no_grad():
            emissions_WL = recognizer.tagger.model(**inputs).logits[0, 1:-1].double()
        paths = torch.tensor(list(itertools.product(range(len(labels)), repeat=4)))
        scores = emissions_WL[torch.arange(4), paths].sum(1)
        if crf is not None:
            scores = -crf(emissions_WL.expand(len(paths), 4, -1), paths).detach()
        probabilities = scores.softmax(0)
        decoded = recognizer.tagger.decode(emissions_WL[None].float(), torch.ones(1, 4, dtype=torch.bool))[0]
        for entity in result.entities:
            first = [start for start, _ in post.slots].index(entity.start)
            end = [stop for _, stop in post.slots].index(entity.end) + 1
            holds = (paths[:, first:end] == torch.tensor(decoded[first:end])).all(1)
            goes_on = [i for i, name in enumerate(labels) if name in (f"I-{entity.type}", f"E-{entity.type}")]
            is_open = labels[decoded[end - 1]][0] in "BI"
            if end < 4 and is_open and decoded[end] not in goes_on:
                holds &= ~torch.isin(paths[:, end], torch.tensor(goes_on))
            assert entity.score == pytest.approx(float(probabilities[holds].sum()), abs=1e-4)
    assert checked > 5


@pytest.mark.parametrize("head, scheme", KINDS)
def test_posts_together_are_as_posts_alone(head, scheme, monkeypatch):
    recognizer = random_recognizer(head, TagScheme(scheme))
    texts = ["saw maria", "", "acme corp in oslo today, with jordan smith " * 3, "the", "lee! lee? lee.", "paris"]
    images = [["sea"], None, "a face", [], ["", "court"], None]
    together = recognizer.entities(texts, images)
    assert sum(map(len, together)) > 5
    monkeypatch.setattr("finetune.recognizer.READ_AT_ONCE", 2)
    for alone in (
        recognizer.entities(texts, images),
        [recognizer.entities([text], [image])[0] for text, image in zip(texts, images, strict=True)],
    ):
        assert [found(entities) for entities in alone] == [found(entities) for entities in together]
        for one, other in zip(itertools.chain(*alone), itertools.chain(*together), strict=True):
            assert (one.start, one.end) == (other.start, other.end)
            assert one.score == pytest.approx(other.score, abs=1e-4)


ANYTHING = random_recognizer("crf", TagScheme("BIO"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.text(st.one_of(st.characters(), st.sampled_from("ab \u200d\ufe0f🎉é#@\u202e")), max_size=30)))
def test_any_text_is_read(texts):
    """Half surrogate pairs, marks, other scripts: entities are in order, apart, and spelled as in the text."""
    for text, entities in zip(texts, ANYTHING.entities(texts, texts), strict=True):
        end = 0
        for entity in entities:
            assert end <= entity.start < entity.end <= len(text)
            assert entity.text == text[entity.start : entity.end]
            assert 0 <= entity.score <= 1
            end = entity.end


def test_image_words_are_read_by_models_that_were_trained_with_them():
    texts, images = ["saw maria in oslo"] * 2, ["sea, court", ["face", "face", "face"]]
    reads, does_not = (random_recognizer("crf", TagScheme(), reads) for reads in (True, False))
    one, other = reads.entities(texts, images)
    assert one != other
    alone = reads.entities(texts[:1], [["sea", "court"]])[0]  # a list is joined as in training
    assert rounded(one) == rounded(alone)
    one, other = does_not.entities(texts, images)
    assert one == other and rounded(one) == rounded(does_not.entities(texts[:1])[0])


def rounded(entities: list) -> list:
    """Scores to what a batch of another size leaves alike."""
    return [dataclasses.replace(entity, score=round(entity.score, 6)) for entity in entities]


def test_image_words_must_be_as_many_as_posts():
    with pytest.raises(ValueError, match="2 posts, but image words for 1"):
        ANYTHING.entities(["a", "b"], ["sea"])
    assert ANYTHING.entities([]) == []


def test_other_types_than_the_papers(tmp_path):
    """The types are those of the model's labels."""
    recognizer = random_recognizer("softmax", TagScheme("BIO", ("DRUG", "DOSE-UNIT")))
    model = recognizer.tagger.model
    model.config.id2label = dict(enumerate(recognizer.scheme.labels))
    model.config.label2id = {label: i for i, label in model.config.id2label.items()}
    model.config.msb_input, model.config.msb_scheme = {"maximum_length": 24, "image_length": 6}, "BIO"
    model.save_pretrained(tmp_path)
    recognizer.reader.tokenizer.save_pretrained(tmp_path)
    loaded = Recognizer.from_pretrained(tmp_path)
    assert loaded.scheme == recognizer.scheme and not loaded.reads_image_words
    types = {entity.type for entity in loaded.entities(["saw maria in oslo with the acme corp"])[0]}
    assert types and types <= {"DRUG", "DOSE-UNIT"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"msb_input": None}, "its config.json has no msb_input"),
        ({"msb_input": {"longest": 3}}, "msb_input in its config.json is not understood"),
        ({"msb_input": {"maximum_length": 10}}, "msb_input in its config.json is not understood"),
        ({"msb_scheme": "IOB3"}, "labels are not understood .*unknown tag scheme 'IOB3'"),
        ({"msb_scheme": "BIOES"}, "are not those of BIOES"),
        ({"id2label": {str(i): f"LABEL_{i}" for i in range(9)}}, "labels .*are not"),
        ({"model_type": "rubbish"}, "its model cannot be loaded"),
        ({"num_hidden_layers": 3}, "parameters are not in its weights"),
    ],
)
def test_folders_that_are_refused(trained, tmp_path, change, message):
    folder = tmp_path / "model"
    shutil.copytree(trained("softmax"), folder)
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps({name: x for name, x in config.items() if x is not None}))
    with pytest.raises(InputError, match=message) as error:
        Recognizer.from_pretrained(folder)
    assert str(folder) in str(error.value) and "Give " in str(error.value)


def test_places_that_hold_no_recognizer(tmp_path, encoder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, message in [
        (tmp_path / "nothing", "there is no such folder"),
        (tmp_path, "there is no config.json"),
        (encoder, "has no msb_input"),
    ]:
        with pytest.raises(InputError, match=f"{name}: not a recognizer: .*{message}.*finetune/ner.py"):
            Recognizer.from_pretrained(name)
    with pytest.raises(InputError, match="device thermometer: cannot be used"):
        Recognizer(ANYTHING.tagger, ANYTHING.reader, TagScheme(), True, "thermometer")


def test_code_beside_the_weights_is_not_run(trained, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained("crf"), folder)
    (folder / "msb.py").write_text("raise SystemExit('ran')")
    assert found(Recognizer.from_pretrained(folder).entities(["saw maria lee"])[0]) == [("maria lee", "PER")]
