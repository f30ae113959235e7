"""Tagging as a training task: batches, and predictions put back among the source tokens and scored."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny_ner import bert_config, make_row, make_tokenizer
from transformers import BertForTokenClassification

from data_prep.layout import NER_FEATURES, write_dataset
from finetune import scorer, tagging
from finetune.features import InputFormat, PieceReader
from finetune.tagger import PieceTagger
from finetune.tagging import Split, Tagging, assemble, predict, read_rows, score, tag_problem, write_predictions
from finetune.tags import TagScheme
from launch.errors import InputError

TOKENIZER = make_tokenizer()
LAYOUT = InputFormat(maximum_length=12, image_length=4)
READER = PieceReader(TOKENIZER, LAYOUT)
SCHEME = TagScheme("BIO")

ROWS = [
    # URLs before, in and after; an orphan tag, which is repaired for training and stays to be scored against.
    make_row(
        "urls",
        ["http://t.co/a", "saw", "maria", "http://t.co/b", "lee", "http://t.co/c"],
        ["O", "O", "B-PER", "O", "I-PER", "O"],
        ["sea"],
    ),
    make_row("orphan", ["dr", ".", "lee"], ["O", "O", "I-PER"], ["court", "face"]),
    make_row("long", ["a"] * 12 + ["paris", "oslo"], ["O"] * 12 + ["B-LOC", "B-LOC"], []),
    make_row("plain", ["acme", "corp", "in", "paris"], ["B-ORG", "I-ORG", "O", "B-LOC"], ["sea"]),
]


def make_split(rows=ROWS) -> Split:
    return Split.of(rows, READER)


def make_tagger() -> PieceTagger:
    torch.manual_seed(3)
    model = BertForTokenClassification(bert_config(len(TOKENIZER), num_labels=9))
    torch.nn.init.normal_(model.bert.embeddings.word_embeddings.weight)
    torch.nn.init.normal_(model.classifier.weight)
    return PieceTagger(model).eval()


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


@pytest.fixture
def folder(tmp_path):
    splits = {"train": ROWS, "validation": ROWS, "test": [row | {"image_words": []} for row in ROWS]}
    write_dataset(tmp_path / "ner", splits, NER_FEATURES, "Rows")
    return tmp_path / "ner"


def perfect(split: Split) -> list[tuple[int, list[int]]]:
    """What a tagger gives that knows the training tags, of the words that it reads."""
    return [(i, row["ner_tags"][: len(split.inputs.encoded[i].first_piece)]) for i, row in enumerate(split.rows)]


def test_predictions_are_put_back_among_the_source_tokens(accelerator):
    split = make_split()
    predicted = assemble(split, perfect(split)[::-1], SCHEME, accelerator)  # in any order
    assert predicted[0] == ["O", "O", "B-PER", "O", "B-PER", "O"]
    assert predicted[1] == ["O", "O", "B-PER"]
    assert predicted[2] == ["O"] * 14  # the words that were cut off hold the places
    assert predicted[3] == ["B-ORG", "I-ORG", "O", "B-LOC"]


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
def test_labels_of_a_cut_tweet_are_allowed(scheme):
    """In BIOES an entity that goes on beyond the input's end has to end with the last word that is read."""
    name = make_row("cut", ["a"] * 7 + ["acme"] * 4, ["O"] * 7 + ["B-ORG", *["I-ORG"] * 3], [])
    split = make_split([name])
    assert split.words_truncated == 2
    task = Tagging(split, split, TagScheme(scheme), tweets_per_step=1, seed=1)
    last = {"BIO": "I-ORG", "BIOES": "E-ORG"}[scheme]
    labels = [TagScheme(scheme).labels[label] for label in task.training_labels[0]]
    assert labels == ["O"] * 7 + ["B-ORG", last]
    assert task.validation_labels == task.training_labels


def test_bioes_labels_come_back_as_bio(accelerator):
    scheme = TagScheme("BIOES")
    split = make_split()
    labelled = [(3, scheme.encode(["B-ORG", "I-ORG", "O", "B-LOC"]))]
    assert assemble(split, labelled, scheme, accelerator)[3] == ["B-ORG", "I-ORG", "O", "B-LOC"]


def test_scores_are_taken_against_the_source_tags(accelerator):
    split = make_split()
    assert split.words_truncated == 5
    scores = score(split, assemble(split, perfect(split), SCHEME, accelerator))
    assert scores.keys() == {"conlleval", "strict", "confusion", "words_truncated", "tweets"}
    assert (scores["words_truncated"], scores["tweets"]) == (5, 4)
    # To conlleval, "lee" after the URL and after "dr ." are entities; to strict scorers they are none, so what was
    # found there is wrong. Both count as missed what the model could not read.
    numbers = {c: [scores[c]["micro"][n] for n in ("gold", "predicted", "correct")] for c in ("conlleval", "strict")}
    assert numbers == {"conlleval": [7, 5, 5], "strict": [5, 5, 3]}
    assert scores["conlleval"]["by_type"]["LOC"]["recall"] == 1 / 3
    assert scores["confusion"]["labels"] == ["PER", "LOC", "ORG", "MISC", "none"]
    assert scores["confusion"]["matrix"][1] == [0, 1, 0, 0, 2]
    assert json.loads(json.dumps(scores)) == scores


def test_predict_reads_the_tagger(accelerator):
    """Batches, order and padding do not matter."""
    tagger, split = make_tagger(), make_split()
    together = predict(tagger, split, SCHEME, accelerator)
    assert len({tag for tags in together for tag in tags}) > 2
    for index, row in enumerate(split.rows):
        assert predict(tagger, make_split([row]), SCHEME, accelerator)[0] == together[index]
        for place in set(range(len(row["source_tokens"]))) - set(row["source_index"]):
            assert together[index][place] == "O"


def test_batches_computed_together_are_each_their_own(accelerator, monkeypatch):
    tagger, split = make_tagger(), make_split(make_split().rows * 3)
    task = Tagging(split, split, SCHEME, tweets_per_step=2, seed=1)
    with torch.no_grad():
        at_once = predict(tagger, split, SCHEME, accelerator), task.evaluate(tagger, accelerator)
        for size, together in ((1, 5), (2, 1), (5, 3)):
            monkeypatch.setattr(tagging, "PREDICTED_AT_ONCE", size)
            monkeypatch.setattr(tagging, "BATCHES_AT_ONCE", together)
            assert predict(tagger, split, SCHEME, accelerator) == at_once[0]
            assert task.evaluate(tagger, accelerator) == pytest.approx(at_once[1])


def test_evaluation_equals_plain_loss_and_scores(accelerator):
    tagger, split = make_tagger(), make_split()
    task = Tagging(split, split, SCHEME, tweets_per_step=2, seed=1)
    with torch.no_grad():
        metrics = task.evaluate(tagger, accelerator)
    loss = words = 0
    for row, encoded in zip(split.rows, split.inputs.encoded, strict=True):
        types = [0] * encoded.text_length + [1] * (len(encoded.pieces) - encoded.text_length)
        logits = tagger.model(torch.tensor([encoded.pieces]), token_type_ids=torch.tensor([types])).logits[0]
        for place, label in zip(encoded.first_piece, row["ner_tags"], strict=False):
            loss -= logits[place].log_softmax(0)[label].item()
            words += 1
    assert words == 19
    assert metrics["loss"] == pytest.approx(loss / words, rel=1e-4)
    predicted = predict(tagger, split, SCHEME, accelerator)
    gold = [row["source_tags"] for row in ROWS]
    for convention in scorer.CONVENTIONS:
        micro = scorer.score(gold, predicted, convention)["micro"]
        for name in ("precision", "recall", "f1"):
            assert metrics[f"{name}_{convention}"] == micro[name]


def test_training_batches_hold_the_labels_of_the_words_that_fit():
    task = Tagging(make_split(), make_split(), SCHEME, tweets_per_step=2, seed=1)
    batch = task.collate(np.array([2, 3]), epoch=0)
    # Nine words, padded to twelve.
    assert batch["labels_BW"].tolist() == [[0] * 12, SCHEME.encode(["B-ORG", "I-ORG", "O", "B-LOC"]) + [0] * 8]
    assert int(batch["weight"]) == 9 + 4
    assert task.size([2, 3]) == 2 and task.sample_ids([2, 3]) == ["long", "plain"]


def test_orphans_of_the_source_are_trained_on_as_beginnings():
    task = Tagging(make_split(), make_split(), SCHEME, tweets_per_step=2, seed=1)
    assert task.training_labels[1] == SCHEME.encode(["O", "O", "B-PER"])


def test_plan_takes_every_tweet_once_in_batches_of_like_length():
    rows = [make_row(str(i), ["a"] * (1 + i % 8), ["O"] * (1 + i % 8), []) for i in range(203)]
    split = make_split(rows)
    task = Tagging(split, split, SCHEME, tweets_per_step=5, seed=1)
    plan = task.plan(0)
    assert sorted(index for step in plan for index in step) == list(range(203))
    assert sorted(map(len, plan)) == [3] + [5] * 40
    spread = np.mean([np.ptp(task.lengths[step]) for step in plan])
    assert spread < 1.5 < np.mean([np.ptp(task.lengths[start : start + 5]) for start in range(0, 200, 5)])
    # A function of seed and epoch, and different for each.
    as_lists = lambda plan: [list(step) for step in plan]  # noqa: E731
    assert as_lists(task.plan(0)) == as_lists(plan)
    assert as_lists(task.plan(1)) != as_lists(plan)
    assert as_lists(Tagging(split, split, SCHEME, 5, seed=2).plan(0)) != as_lists(plan)


def test_image_words_given_shuffled_or_none(folder):
    read = lambda mode, seed=1: Split.of(read_rows(folder, "train", mode, seed), READER)  # noqa: E731
    own = [row["image_words"] for row in ROWS]
    given, others, none = read("given"), read("shuffled"), read("none")
    assert [row["image_words"] for row in given.rows] == own
    assert sorted(row["image_words"] for row in others.rows) == sorted(own)
    assert [row["image_words"] for row in none.rows] == [[]] * 4
    # The rows tell what the model reads.
    for split in (given, others, none):
        assert split.inputs == make_split(split.rows).inputs
    assert given.inputs.encoded[1] != others.inputs.encoded[1] != none.inputs.encoded[1]
    assert [row["image_words"] for row in read("shuffled").rows] == [row["image_words"] for row in others.rows]


def test_image_words_that_are_not_there_are_refused(folder):
    for mode in ("given", "shuffled"):
        with pytest.raises(InputError, match=f"no tweet of its test split has image words.*{mode}.*--image_words none"):
            read_rows(folder, "test", mode, 1)
    assert len(read_rows(folder, "test", "none", 1)) == 4


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"ner_tags": [0, 1]}, "other numbers of tokens, ner_tags and source_index"),
        ({"source_index": [0, 1, 2]}, "other numbers of tokens, ner_tags and source_index"),
        ({"source_tags": ["O"]}, "other numbers of source_tokens and source_tags"),
        ({"source_index": [0, 1, 2, 4]}, "a source_index beyond its source_tokens"),
        ({"source_tags": ["O", "O", "O", "B-OTHER"]}, "unknown tag 'B-OTHER' at position 3"),
        ({"ner_tags": [0, 0, -1, 0]}, "ner_tags without a label"),
        ({"ner_tags": [0, 0, 2, 0]}, "orphan tag 'I-PER' at position 2"),
    ],
)
def test_rows_that_are_refused(change, problem):
    assert tag_problem(ROWS[3]) is None
    assert problem in tag_problem(ROWS[3] | change)


def test_predictions_file(tmp_path, accelerator):
    split = make_split()
    predicted = assemble(split, perfect(split), SCHEME, accelerator)
    write_predictions(tmp_path / "predictions" / "test.jsonl", split, predicted)
    rows = [json.loads(line) for line in (tmp_path / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["urls", "orphan", "long", "plain"]
    assert rows[0] == {
        "id": "urls",
        "tokens": ROWS[0]["source_tokens"],
        "gold": ["O", "O", "B-PER", "O", "I-PER", "O"],
        "predicted": ["O", "O", "B-PER", "O", "B-PER", "O"],
        "image_id": "image of urls",
        "image_words": ["sea"],
    }
