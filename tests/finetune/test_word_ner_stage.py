"""The stage `finetune/word_ner.py` end to end: it learns, records what it did, loads again, and refuses what cannot work."""

import json

import pytest
from tiny_ner import ambiguous_tweet, make_ner, named_tweet
from transformers import AutoModelForTokenClassification

from finetune import word_ner
from finetune.recognizer import Recognizer

NAMES = {"cwi": "CWI", "bilstm_crf": "BiLSTM+CRF", "lstm_cnn_crf": "LSTM+CNN+CRF"}
PLAIN = ["--run.precision", "fp32", "--seed", "3", "--optimizer.learning_rate", "1e-2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_ner(tmp_path_factory.mktemp("words") / "named", named_tweet)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data, vectors):
    """A recognizer's folder by system, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("trained")

    def train(system):
        output = folder / system
        if not output.exists():
            arguments = ["--system", system, "--vectors", str(vectors), "--data", str(data), "--output", str(output)]
            more = [] if system == "cwi" else ["--dropout", "0"]
            assert word_ner.main([*arguments, *PLAIN, *more, "--schedule.epochs", "24"]) == 0
        return output

    return train


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("system", NAMES)
def test_it_learns_the_names(trained, system):
    folder = trained(system)
    scores = read_json(folder / "scores.json")
    assert scores["validation"]["conlleval"]["micro"]["f1"] > 0.9
    assert scores["test"]["conlleval"]["micro"]["f1"] > 0.9
    facts = read_json(folder / "manifest.json")["facts"]
    assert facts["system"] == NAMES[system]
    (report,) = facts["vectors"]
    assert (report["file"], report["width"]) == ("tiny.vec", 6)
    assert report["examples"][0] in ("smith", "#fun", "@friend", "today")
    assert report["out_of_vocabulary"] == 4
    rows = len((folder / "words.txt").read_text().splitlines()) + 2
    assert facts["parameters"]["word_vectors"] == rows * 6
    assert facts["parameters"]["all"] - facts["parameters"]["trained"] == rows * 6  # they are not trained
    assert ("image_words_truncated" in facts["data"]["test"]) == (system == "cwi")


@pytest.mark.parametrize("system", NAMES)
def test_a_recognizer_loads_from_the_folder_and_finds_what_was_scored(trained, system):
    folder = trained(system)
    recognizer = Recognizer.from_pretrained(folder, device="cpu")
    assert recognizer.reads_image_words == (system == "cwi")
    rows = [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]
    assert recognizer.tag([row["tokens"] for row in rows], [row["image_words"] for row in rows]) == [
        row["predicted"] for row in rows
    ]
    (entities,) = recognizer.entities(["Saw Maria in Paris!"], [["sea"]])
    assert [(entity.text, entity.type) for entity in entities] == [("Maria", "PER"), ("Paris", "LOC")]


def test_the_folder_loads_without_the_toolkit(trained):
    folder = trained("cwi")
    names = {path.name for path in folder.iterdir()}
    assert {"cwi.py", "word_model.py", "layers.py", "crf.py", "tags.py"} <= names
    for name in ("cwi.py", "word_model.py", "layers.py"):
        assert "finetune." not in "".join(
            line for line in (folder / name).open() if line.startswith(("from", "import"))
        )
    model = AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True)
    assert model.config.msb_scheme == "BIO"


def test_the_card_says_what_it_is(trained):
    card = (trained("cwi") / "README.md").read_text()
    assert "It is CWI, a neural network on word vectors" in card and "words that describe the tweet's image" in card
    assert "finetune.predict" in card and "**all (micro)**" in card and "multimodal" in card
    text_only = (trained("bilstm_crf") / "README.md").read_text()
    assert (
        "It is BiLSTM+CRF" in text_only and "No image words were used." in text_only and "multimodal" not in text_only
    )
    for text in (card, text_only):
        assert "BERT" not in text and "bert" not in text and "Tokenizer" not in text


def test_training_is_a_function_of_the_seed(trained, data, vectors, tmp_path):
    weights = []
    for output in (tmp_path / "a", tmp_path / "b"):
        arguments = ["--vectors", str(vectors), "--data", str(data), "--output", str(output), *PLAIN]
        assert word_ner.main(["--system", "cwi", *arguments, "--schedule.epochs", "1", "--train_vectors", "true"]) == 0
        weights.append((output / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    parameters = read_json(tmp_path / "a" / "manifest.json")["facts"]["parameters"]
    assert parameters["trained"] == parameters["all"]


def test_attention_bioes_and_every_word(data, vectors, tmp_path):
    arguments = ["--vectors", f"[{vectors},{vectors}]", "--data", str(data), "--output", str(tmp_path / "out"), *PLAIN]
    options = ["--attention", "sequence", "--scheme", "BIOES", "--vocabulary", "all", "--image_words", "none"]
    assert word_ner.main(["--system", "cwi", *arguments, *options, "--schedule.epochs", "1"]) == 0
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert manifest["facts"]["system"] == "CWI + Attention"
    assert [report["width"] for report in manifest["facts"]["vectors"]] == [6, 6]
    assert set(manifest["inputs"]) == {"data", "vectors 1", "vectors 2"}
    assert "jordan" in (tmp_path / "out" / "words.txt").read_text().split("\n")  # not a word of the data
    config = read_json(tmp_path / "out" / "config.json")
    assert config["vector_size"] == 12 and not config["msb_image_words"]
    assert len(config["id2label"]) == 17


def test_the_image_decides_where_the_text_cannot(vectors, tmp_path):
    """CWI reads the image: without it, half of the names of two types are right."""
    data = make_ner(tmp_path / "ambiguous", ambiguous_tweet)
    f1 = {}
    for image_words in ("given", "shuffled"):
        output = tmp_path / image_words
        arguments = ["--vectors", str(vectors), "--data", str(data), "--output", str(output), *PLAIN]
        assert (
            word_ner.main(["--system", "cwi", *arguments, "--image_words", image_words, "--schedule.epochs", "8"]) == 0
        )
        f1[image_words] = read_json(output / "scores.json")["test"]["conlleval"]["micro"]["f1"]
    assert f1["given"] > 0.95
    assert f1["shuffled"] < 0.8


REFUSED = [
    (["--system", "bilstm_crf", "--image_words", "shuffled"], "image_words shuffled: bilstm_crf has no such side"),
    (["--system", "lstm_cnn_crf", "--image_words", "none"], "image_words none: lstm_cnn_crf has no such side"),
    (["--system", "bilstm_crf", "--attention", "sequence"], "attention sequence: bilstm_crf has no such side"),
    (["--system", "cwi", "--dropout", "0.5"], "CWI has targeted dropout"),
    (["--system", "cwi", "--input.characters", "20"], "characters by 8"),
    (["--system", "lstm_cnn_crf", "--input.characters", "0"], "lstm_cnn_crf reads characters"),
    (["--system", "cwi", "--vectors", "[]"], "no vectors were given"),
    (["--system", "cwi", "--vectors", "WIDE"], "wide.txt:2: 4 numbers beside the word, but the rows are of 3"),
    (["--system", "cwi", "--vectors", "NONE"], "not found"),
    (["--system", "cwi", "--data", "BLIND"], "no tweet of its train split has image words"),
]


@pytest.mark.parametrize("options, problem", REFUSED)
def test_what_is_refused_before_training(options, problem, data, vectors, tmp_path, capsys):
    (tmp_path / "wide.txt").write_text("the 1 2 3\nmaria 1 2 3 4\n")
    blind = lambda draw: (*named_tweet(draw)[:2], [])  # noqa: E731
    places = {"WIDE": tmp_path / "wide.txt", "NONE": tmp_path / "none.txt"}
    if "BLIND" in options:
        places["BLIND"] = make_ner(tmp_path / "blind", blind)
    options = [str(places.get(option, option)) for option in options]
    plain = ["--vectors", str(vectors), "--data", str(data), "--output", str(tmp_path / "out")]
    assert word_ner.main([*plain, *options]) == 2
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_a_text_system_needs_no_image_words(vectors, tmp_path):
    data = make_ner(tmp_path / "blind", lambda draw: (*named_tweet(draw)[:2], []))
    arguments = ["--vectors", str(vectors), "--data", str(data), "--output", str(tmp_path / "out"), *PLAIN]
    assert word_ner.main(["--system", "bilstm_crf", *arguments, "--schedule.epochs", "1"]) == 0
