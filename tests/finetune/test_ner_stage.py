"""The stage `finetune/ner.py` end to end: it learns, records what it did, and refuses what cannot work."""

import json
import re
import shutil
import warnings

import pytest
import torch
import transformers
from datasets import ClassLabel, Features, List
from safetensors.torch import load_file
from seqeval.metrics import sequence_labeling, v1
from seqeval.scheme import IOB2
from tiny_ner import ODD, STAGE, ambiguous_tweet, bert_config, make_ner, make_rows, make_tokenizer, named_tweet

from data_prep.layout import NER_FEATURES, write_dataset
from finetune import ner
from finetune.tags import TagScheme

KINDS = [("crf", "BIO"), ("crf", "BIOES"), ("softmax", "BIO"), ("softmax", "BIOES")]


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("head, scheme", KINDS)
def test_it_learns_the_names(trained, head, scheme):
    scores = read_json(trained(head, scheme) / "scores.json")
    for split in ("validation", "test"):
        assert scores[split]["conlleval"]["micro"]["f1"] > 0.9
        assert scores[split]["conlleval"]["micro"]["recall"] < 1  # a name beyond the input's end
        assert scores[split]["tweets"] == 40 + len(ODD)
        assert scores[split]["words_truncated"] == 71 - (64 - 3 - 1)


@pytest.mark.parametrize("head, scheme", KINDS)
def test_scores_are_those_of_the_predictions_file_by_seqeval(trained, head, scheme):
    scores = read_json(trained(head, scheme) / "scores.json")
    for split in ("validation", "test"):
        rows = read_lines(trained(head, scheme) / "predictions" / f"{split}.jsonl")
        gold, predicted = [row["gold"] for row in rows], [row["predicted"] for row in rows]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # types that were never predicted
            both = {
                "conlleval": sequence_labeling.precision_recall_fscore_support(gold, predicted, average="micro"),
                "strict": v1.precision_recall_fscore_support(gold, predicted, average="micro", scheme=IOB2),
            }
        for convention, (precision, recall, f1, support) in both.items():
            micro = scores[split][convention]["micro"]
            assert [micro["precision"], micro["recall"], micro["f1"]] == pytest.approx([precision, recall, f1])
            assert micro["gold"] == support
            assert scores[split][convention]["by_type"].keys() == {"PER", "LOC", "ORG", "MISC"}
        # The orphan tags are scored as they are in the file.
        assert scores[split]["conlleval"]["micro"]["gold"] == scores[split]["strict"]["micro"]["gold"] + 2
        matrix = scores[split]["confusion"]["matrix"]
        assert sum(map(sum, matrix[:4])) == scores[split]["conlleval"]["micro"]["gold"]


@pytest.mark.parametrize("head", ["crf", "softmax"])
def test_what_the_folder_holds(trained, head):
    folder = trained(head, "BIO")
    names = {path.name for path in folder.iterdir()}
    records = {"README.md", "config.yaml", "manifest.json", "metrics.jsonl", "scores.json", "predictions"}
    code = {"msb.py", "crf.py", "tags.py", "word_shapes.py"} if head == "crf" else set()
    assert names == records | code | {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    config = read_json(folder / "config.json")
    assert [config["id2label"][str(i)] for i in range(9)] == TagScheme("BIO").labels
    assert config["msb_input"] == {
        "maximum_length": 64,
        "image_length": 8,
        "image_words_joiner": ", ",
        "word_shapes": False,
    }
    assert (config["msb_scheme"], config["msb_image_words"]) == ("BIO", True)
    assert ("auto_map" in config) == (head == "crf")

    manifest = read_json(folder / "manifest.json")
    assert manifest["stage"] == "finetune/ner"
    assert manifest["settings"]["head"] == head and manifest["seeds"] == [3]
    assert manifest["rows"] == {"taken": 220, "kept": 220, "rejected": {}}
    assert manifest["facts"]["data"]["test"] == {"tweets": 44, "words_truncated": 11}
    assert set(manifest["facts"]["encoder"]["new_parameters"]) >= {"classifier.weight", "classifier.bias"}

    evaluations = [row for row in read_lines(folder / "metrics.jsonl") if row["event"] == "evaluate"]
    assert {row["split"] for row in evaluations} == {"validation"}  # the test split is scored once, at the end
    assert len(evaluations) == 6
    best = max(row["f1_conlleval"] for row in evaluations)
    assert manifest["facts"]["training"]["best_f1_conlleval"] == best
    # The weights that were best are the ones that were scored.
    assert read_json(folder / "scores.json")["validation"]["conlleval"]["micro"]["f1"] == best


def test_predictions_tell_what_the_model_read(trained):
    rows = {row["id"]: row for row in read_lines(trained("crf", "BIO") / "predictions" / "test.jsonl")}
    url = rows["test: a name around a URL"]
    assert url["tokens"] == ["saw", "maria", "http://t.co/abc", "lee"]
    assert url["gold"] == ["O", "B-PER", "O", "I-PER"] and url["predicted"][2] == "O"
    assert url["image_words"] == ["sea"] and url["image_id"] == "image of test: a name around a URL"
    assert rows["test: too long"]["predicted"][-11:] == ["O"] * 11


def run(tmp_path, encoder, data, *more):
    """Exit code and folder of a short run of the stage."""
    output = tmp_path / "out"
    return ner.main(["--encoder", str(encoder), "--data", str(data), "--output", str(output), *STAGE, *more]), output


def test_image_words_matter(tmp_path, encoder):
    """Where only the image tells the type, a model that reads it types right, others guess."""
    data = make_ner(tmp_path / "data", ambiguous_tweet)
    f1 = {}
    for image_words in ("given", "shuffled", "none"):
        code, output = run(
            tmp_path / image_words, encoder, data, "--image_words", image_words, "--schedule.epochs", "6"
        )
        assert code == 0
        f1[image_words] = read_json(output / "scores.json")["test"]["conlleval"]["micro"]["f1"]
        assert read_json(output / "config.json")["msb_image_words"] == (image_words != "none")
        read = {tuple(row["image_words"]) for row in read_lines(output / "predictions" / "test.jsonl")}
        assert read == ({()} if image_words == "none" else {("sea",), ("face",)})
    assert f1["given"] > 0.95
    assert f1["shuffled"] < 0.8 and f1["none"] < 0.8


def test_patience_ends_training_early(tmp_path, encoder, named):
    code, output = run(tmp_path, encoder, named, "--patience", "1", "--schedule.epochs", "30")
    assert code == 0
    evaluations = [row["f1_conlleval"] for row in read_lines(output / "metrics.jsonl") if row["event"] == "evaluate"]
    assert len(evaluations) < 30
    assert evaluations[-1] <= max(evaluations[:-1])


def test_a_finished_run_is_not_repeated_and_changes_are_refused(trained, encoder, named, capsys):
    folder = trained("crf", "BIO")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    same = ["--encoder", str(encoder), "--data", str(named), "--output", str(folder), *STAGE, "--schedule.epochs", "6"]
    assert ner.main(same) == 0
    assert ner.main([*same, "--head", "softmax"]) == 2
    assert "setting head: was 'crf', now 'softmax'" in capsys.readouterr().err
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def save(folder, model):
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def other_encoder(tmp_path, encoder, trained, kind, head="crf"):
    """An encoder that cannot be used, by what is wrong with it."""
    folder, vocabulary = tmp_path / "encoder", len(make_tokenizer())
    if kind == "recognizer of other labels":
        return trained(head, "BIOES")
    if kind == "recognizer with another head":
        return trained({"crf": "softmax", "softmax": "crf"}[head], "BIO")
    if kind == "one segment":
        return save(folder, transformers.BertModel(bert_config(vocabulary, type_vocab_size=1)))
    if kind == "DistilBERT":
        config = transformers.DistilBertConfig(vocab_size=vocabulary, dim=8, n_layers=1, n_heads=1, hidden_dim=8)
        return save(folder, transformers.DistilBertModel(config))
    if kind == "few embeddings":
        return save(folder, transformers.BertModel(bert_config(50)))
    shutil.copytree(encoder, folder)
    if kind == "no configuration":
        (folder / "config.json").unlink()
    elif kind == "no weights":
        (folder / "model.safetensors").unlink()
    elif kind == "few weights":
        config = read_json(folder / "config.json") | {"num_hidden_layers": 3}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("head", ["crf", "softmax"])
@pytest.mark.parametrize(
    "kind, message",
    [
        ("recognizer of other labels", "is a recognizer of other labels .*S-PER"),
        ("recognizer with another head", "is a recognizer with the head .*give --head"),
        ("one segment", "knows one segment only.*--image_words none"),
        ("DistilBERT", "distilbert is not BERT-like"),
        ("few embeddings", "tokenizer has .* entries but the encoder only 50"),
        ("no configuration", "config.json cannot be read"),
        ("no weights", "model cannot be loaded"),
        ("few weights", "encoder parameters are not in its weights"),
    ],
)
def test_encoders_that_are_refused(tmp_path, encoder, trained, named, capsys, head, kind, message):
    code, output = run(tmp_path, other_encoder(tmp_path, encoder, trained, kind, head), named, "--head", head)
    assert code == 2 and not output.exists()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("finetune/ner: error: ")
    assert re.search(message, error)


@pytest.mark.parametrize("head", ["crf", "softmax"])
def test_a_recognizer_is_trained_on_with_its_head(tmp_path, trained, named, head):
    options = ("--head", head, "--schedule.steps", "1", "--optimizer.learning_rate", "0", "--head_learning_rate", "0")
    code, output = run(tmp_path, trained(head, "BIO"), named, *options, "--dropout", "0.25")
    assert code == 0
    assert read_json(output / "manifest.json")["facts"]["encoder"]["new_parameters"] == []
    before, after = (load_file(folder / "model.safetensors") for folder in (trained(head, "BIO"), output))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = read_json(output / "config.json")
    assert config.get("encoder", config)["hidden_dropout_prob"] == 0.25
    assert read_json(output / "scores.json")["test"]["conlleval"]["micro"]["f1"] > 0.9


@pytest.mark.parametrize("head", ["crf", "softmax"])
def test_dropout_is_that_before_the_head_too(tmp_path, encoder, head):
    folder = shutil.copytree(encoder, tmp_path / "encoder")
    config = read_json(folder / "config.json") | {"classifier_dropout": 0.1}
    (folder / "config.json").write_text(json.dumps(config))
    settings = ner.NERSettings(output=tmp_path, data=tmp_path, encoder=str(folder), head=head, dropout=0.3)
    model, _ = ner.build_model(settings, TagScheme("BIO"))
    assert model.dropout.p == 0.3


@pytest.mark.parametrize("width", [32, 8])
def test_shapes_and_gate_fit_embeddings_that_are_narrower_than_the_encoder(tmp_path, named, width):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.AlbertConfig(vocab_size=len(make_tokenizer()), embedding_size=width, **sizes)
    folder = save(tmp_path / "albert", transformers.AlbertModel(config))
    options = ("--input.word_shapes", "true", "--image_gate", "true", "--schedule.steps", "2")
    assert run(tmp_path, folder, named, *options)[0] == 0


@pytest.mark.parametrize("setting, compiled", [("auto", False), ("false", None)])
def test_whether_it_is_compiled_is_decided_by_the_length_of_the_run(tmp_path, encoder, named, setting, compiled):
    code, output = run(tmp_path, encoder, named, "--schedule.steps", "1", "--run.compile", setting)
    assert code == 0
    facts = read_json(output / "manifest.json")["facts"]
    assert facts.get("compiled", {}).get("compiled") is compiled


def test_an_encoder_with_one_segment_does_without_image_words(tmp_path, encoder, trained, named):
    one_segment = other_encoder(tmp_path, encoder, trained, "one segment")
    assert run(tmp_path, one_segment, named, "--image_words", "none", "--schedule.steps", "1")[0] == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--input.maximum_length", "200"], "reads 96 word pieces at the most. Lower --input.maximum_length"),
        (["--input.maximum_length", "16", "--input.image_length", "13"], "leaves no room for words"),
        (["--head", "lstm"], "head"),
        (["--haed", "crf"], "--haed"),
        (["--tweets_per_step", "few"], "tweets_per_step"),
        (["--tweets_per_step", "0"], "tweets_per_step: 0 is not positive"),
        (["--patience", "0"], "patience: 0 is not positive"),
        (["--head_learning_rate", "-1"], "head_learning_rate: -1.0 is negative"),
        (["--input.image_length", "-5"], "image_length (-5) is negative"),
    ],
)
def test_settings_that_are_refused(tmp_path, encoder, named, capsys, arguments, message):
    try:
        code, output = run(tmp_path, encoder, named, *arguments)
    except SystemExit as exit:  # the command line's own checks
        code, output = exit.code, tmp_path / "out"
    assert code == 2 and not output.exists()
    assert message in capsys.readouterr().err


def test_data_that_are_refused(tmp_path, encoder, capsys):
    def error_of(splits, features=NER_FEATURES):
        for name in ("data", "out.partial"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        write_dataset(tmp_path / "data", splits, features, "Rows")
        assert run(tmp_path, encoder, tmp_path / "data")[0] == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    rows = make_rows(named_tweet, 6, 1)
    splits = {"train": rows, "validation": rows, "test": rows}
    without_words = [row | {"image_words": []} for row in rows]
    assert "no tweet of its train split has image words" in error_of(splits | {"train": without_words})
    assert "no tweet of its test split has image words" in error_of(splits | {"test": without_words})
    assert "no split 'test'" in error_of({"train": rows, "validation": rows})
    labels = ClassLabel(names=["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-OTHER", "I-OTHER"])
    assert "ner_tags is list of label" in error_of(splits, Features(NER_FEATURES | {"ner_tags": List(labels)}))
    unknown = [row | {"source_tags": ["B-OTHER", *row["source_tags"][1:]]} for row in rows]
    assert "unknown tag 'B-OTHER'" in error_of(splits | {"validation": unknown})


def test_the_same_seed_gives_the_same_model(tmp_path, encoder, named):
    folders = [run(tmp_path / name, encoder, named, "--schedule.steps", "3")[1] for name in ("a", "b")]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    other = run(tmp_path / "c", encoder, named, "--schedule.steps", "3", "--seed", "4")[1]
    assert (other / "model.safetensors").read_bytes() != weights[0]
