"""Knowledge distillation: what teachers say is kept whole, and a student learns it."""

import json
import re
import shutil
from dataclasses import MISSING, fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_ner import STAGE, make_rows, make_tokenizer, named_tweet, write_vectors

from data_prep.layout import CORPUS_FEATURES, PAIRS_FEATURES, write_dataset
from finetune import distill, soft_labels, word_distill
from finetune.distillation import Distillation, SoftPieceTagger, read_soft_labels
from finetune.features import InputFormat, PieceReader
from finetune.ner import MSBSettings, NERSettings, build_model
from finetune.recognizer import Recognizer
from finetune.tagger import Tagger
from finetune.tagging import Split, read_rows
from finetune.tags import TagScheme
from finetune.teacher import Teacher, load_crf
from finetune.word_ner import WordNERSettings
from launch.errors import InputError
from launch.results import StageFolder, configurations

READER = PieceReader(make_tokenizer(), InputFormat(64, 8))
SCHEME = TagScheme("BIO")


def texts(count, seed=9):
    return [" ".join(row["tokens"]) for row in make_rows(named_tweet, count, seed)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    rows = [{"id": str(number), "text": text} for number, text in enumerate([*texts(300), "a " * 70 + "paris", " "])]
    write_dataset(folder, {"train": rows, "validation": rows[:5]}, CORPUS_FEATURES, "Texts")
    return folder


@pytest.fixture(scope="module")
def soft(tmp_path_factory, corpus, trained):
    output = tmp_path_factory.mktemp("soft") / "soft"
    teachers = json.dumps([str(trained("crf")), str(trained("softmax"))])
    arguments = ["--teachers", teachers, "--data", str(corpus), "--output", str(output), "--precision", "fp32"]
    assert soft_labels.main(arguments) == 0
    return output


def test_what_the_teachers_say_is_kept(soft, corpus, trained):
    manifest = json.loads((soft / "manifest.json").read_text())
    assert manifest["rows"] == {"taken": 302, "kept": 301, "rejected": {"no words": 1}}
    assert manifest["facts"]["words_truncated"] == 71 - (64 - 3)
    table = pq.read_table(soft / "data")
    with_crf, with_softmax = (Recognizer.from_pretrained(trained(head)) for head in ("crf", "softmax"))
    for row in (0, 7, 300):
        words = table["tokens"][row].as_py()
        assert len(words) == 61 if row == 300 else " ".join(words) == texts(300)[row]
        scores_WL = np.asarray(table["scores"][row].as_py(), np.float32).reshape(len(words), 9)
        inputs = READER.read([words], [[]]).batch([0])
        inputs.pop("word_mask_BW")
        with torch.inference_mode():
            mean_WL = (
                with_crf.tagger.emissions(**inputs)[0] + with_softmax.tagger.emissions(**inputs)[0].log_softmax(1)
            ) / 2
        np.testing.assert_allclose(scores_WL, mean_WL[: len(words)].numpy(), rtol=2e-3, atol=2e-3)
    crf, scheme = load_crf(soft)
    assert scheme == SCHEME
    torch.testing.assert_close(crf.transitions, with_crf.tagger.model.crf.transitions / 2)
    assert torch.equal(crf.allowed_transitions, with_crf.tagger.model.crf.allowed_transitions)


def test_some_texts_are_drawn(tmp_path, corpus, trained):
    def draw(name, seed):
        arguments = ["--teachers", json.dumps([str(trained("crf"))]), "--data", str(corpus), "--texts", "50"]
        assert soft_labels.main([*arguments, "--seed", str(seed), "--output", str(tmp_path / name)]) == 0
        return pq.read_table(tmp_path / name / "data")["id"].to_pylist()

    first, other = draw("a", 1), draw("c", 2)
    assert draw("b", 1) == first != other
    assert len(set(first)) == len(first) >= 49  # one text has no words
    assert first == sorted(first, key=lambda name: int(name.split(":")[1]))


def test_image_words_are_read_where_the_corpus_has_them(tmp_path, encoder, trained):
    rows = [{"id": str(n), "text": text, "image_words": ["sea"]} for n, text in enumerate(texts(20))]
    write_dataset(tmp_path / "pairs", {"train": rows}, PAIRS_FEATURES, "Pairs")
    found = {}
    for mode in ("given", "none"):
        arguments = ["--teachers", json.dumps([str(trained("crf"))]), "--data", str(tmp_path / "pairs")]
        assert soft_labels.main([*arguments, "--image_words", mode, "--output", str(tmp_path / mode)]) == 0
        table = pq.read_table(tmp_path / mode / "data")
        assert table["image_words"].to_pylist() == [["sea"] if mode == "given" else []] * 20
        found[mode] = table["scores"].to_pylist()
    assert found["given"] != found["none"]


@pytest.mark.parametrize("head", ["crf", "softmax"])
def test_the_student_learns_from_the_teacher_alone(tmp_path, encoder, named, soft, head):
    arguments = ["--encoder", str(encoder), "--data", str(named), "--soft_labels", str(soft), "--head", head]
    options = [*STAGE, "--schedule.epochs", "12", "--tweets_per_step", "16", "--gold_repeats", "0"]
    assert distill.main([*arguments, *options, "--output", str(tmp_path / "out")]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["test"]["conlleval"]["micro"]["f1"] > 0.85
    assert Recognizer.from_pretrained(tmp_path / "out").entities(["saw maria lee"])[0][0].type == "PER"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["inputs"]) == {"encoder", "data", "soft_labels"}
    assert manifest["facts"]["system"] == ("MSB 2 x 32 + CRF" if head == "crf" else "MSB 2 x 32")
    (found,) = configurations([StageFolder(tmp_path / "out")])
    assert found.chain == "distillation only" and found.head == head and found.system == manifest["facts"]["system"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card and "Finds the names of persons" in card


@pytest.mark.parametrize("system", ["bilstm_crf", "cwi"])
def test_a_system_on_word_vectors_learns_from_the_teacher_alone(tmp_path, named, soft, system, caplog):
    words = "the a in at with and saw met likes ! , maria lee smith paris oslo bay acme corp nasa iliad jordan".split()
    vectors = write_vectors(tmp_path / "tiny.vec", words)
    arguments = ["--system", system, "--vectors", str(vectors), "--data", str(named)]
    options = ["--soft_labels", str(soft), "--gold_repeats", "0", "--tweets_per_step", "16", "--run.precision", "fp32"]
    more = ["--schedule.epochs", "20", "--optimizer.learning_rate", "1e-2", "--output", str(tmp_path / "out")]
    more += [] if system == "cwi" else ["--dropout", "0"]
    assert word_distill.main([*arguments, *options, *more]) == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["test"]["conlleval"]["micro"]["f1"] > 0.8
    assert Recognizer.from_pretrained(tmp_path / "out").entities(["saw maria lee"])[0][0].type == "PER"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert set(manifest["inputs"]) == {"vectors 1", "data", "soft_labels"}
    assert ("no text has image words" in caplog.text) == (system == "cwi")  # the other reads none
    told = manifest["facts"]["data"]["soft_labels"]
    assert told["texts"] == 301 and told["words_truncated"] == 61 - 35  # one text is longer than it reads
    known = (tmp_path / "out" / "words.txt").read_text().splitlines()
    assert "#fun" in known  # of the soft labels' texts, without a vector in the file
    (found,) = configurations([StageFolder(tmp_path / "out")])
    assert found.chain == "distillation only"


def test_soft_labels_have_no_regions(tmp_path, named, soft, capsys):
    arguments = ["--system", "coattention", "--vectors", "a.vec", "--regions", "r.safetensors", "--data", str(named)]
    with pytest.raises(SystemExit):
        word_distill.main([*arguments, "--soft_labels", str(soft), "--output", str(tmp_path / "out")])
    assert "have no images" in capsys.readouterr().err


def test_loss_of_a_tweet_with_tags_is_that_of_training_on_tags(named, encoder, soft):
    settings = NERSettings(output=named / "out", data=named, encoder=str(encoder), input=READER.layout)
    split = Split.of(read_rows(named, "train", "given", 1), READER)
    labels = read_soft_labels(soft, SCHEME, "none", seed=1)
    task = Distillation(labels, READER, split, split, SCHEME, 16, 2, seed=1)
    units = task.units()
    assert len(units) == len(labels.ids) + 2 * len(split.rows)
    assert sorted(np.concatenate(task.plan(0)).tolist()) == sorted(units.tolist())

    torch.manual_seed(1)
    student = SoftPieceTagger(build_model(settings, SCHEME)[0], labels.crf, temperature=2.0).eval()
    tweets = [0, 3, 5]
    soft_batch = task.collate([task.texts + tweet for tweet in tweets], epoch=0)
    assert task.sample_ids([0, task.texts + 3]) == [labels.ids[0], split.rows[3]["id"]]
    hard_batch = split.inputs.batch(tweets, [task.training_labels[tweet] for tweet in tweets])
    assert soft_batch.pop("weight") == hard_batch.pop("weight")
    hard = Tagger.forward(student, **hard_batch)
    torch.testing.assert_close(student(**soft_batch), hard, rtol=1e-5, atol=1e-4)
    assert not any(name.startswith("teacher") for name in student.state_dict())


def test_refusals(tmp_path, encoder, named, soft, trained, corpus, capsys):
    arguments = ["--encoder", str(encoder), "--data", str(named), "--output", str(tmp_path / "out"), *STAGE]
    for options, message in [
        (["--soft_labels", str(soft), "--scheme", "BIOES"], "its labels are BIO of .*Give --scheme BIO"),
        (["--soft_labels", str(corpus)], "teacher.safetensors: not there"),
    ]:
        assert distill.main([*arguments, *options]) == 2
        assert re.search(message, capsys.readouterr().err)
    teachers = json.dumps([str(trained("crf")), str(trained("crf", "BIOES"))])
    assert soft_labels.main(["--teachers", teachers, "--data", str(corpus), "--output", str(tmp_path / "soft")]) == 2
    assert "Teachers must have the same" in capsys.readouterr().err

    for options, message in [
        (["--texts", "0"], "texts: 0 is not positive"),
        (["--image_words", "given"], "has no image words"),
    ]:
        arguments = ["--teachers", json.dumps([str(trained("crf"))]), "--data", str(corpus)]
        assert code_of(soft_labels.main, [*arguments, *options, "--output", str(tmp_path / "soft")]) == 2
        assert message in capsys.readouterr().err


def code_of(main, arguments) -> int:
    try:
        return main(arguments)
    except SystemExit as left:
        return left.code


def test_damaged_soft_labels_are_refused(tmp_path, soft):
    broken = shutil.copytree(soft, tmp_path / "broken")
    weights = (broken / "teacher.safetensors").read_bytes()
    (broken / "teacher.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="not a teacher's CRF"):
        read_soft_labels(broken, SCHEME, "none", 1)
    (broken / "teacher.safetensors").write_bytes(weights)
    (shard,) = (broken / "data").glob("*.parquet")
    table = pq.read_table(shard)
    scores = table["scores"].to_pylist()
    scores[3].append(0.0)
    place = table.schema.get_field_index("scores")
    pq.write_table(table.set_column(place, "scores", pa.array(scores, table.schema.field("scores").type)), shard)
    with pytest.raises(InputError, match="text train:3 has not as many scores"):
        read_soft_labels(broken, SCHEME, "none", 1)


def test_a_student_reads_its_own_image_words_or_anothers(tmp_path, trained):
    rows = [{"id": str(n), "text": text, "image_words": [f"w{n}"]} for n, text in enumerate(texts(20))]
    write_dataset(tmp_path / "pairs", {"train": rows}, PAIRS_FEATURES, "Pairs")
    arguments = ["--teachers", json.dumps([str(trained("crf"))]), "--data", str(tmp_path / "pairs")]
    assert soft_labels.main([*arguments, "--image_words", "given", "--output", str(tmp_path / "soft")]) == 0
    read = {mode: read_soft_labels(tmp_path / "soft", SCHEME, mode, 1).image_words for mode in ("given", "shuffled")}
    assert read["given"] == [[f"w{n}"] for n in range(20)]
    assert sorted(read["shuffled"]) == sorted(read["given"])
    assert all(own != other for own, other in zip(read["given"], read["shuffled"], strict=True))


@pytest.mark.parametrize(
    "student, own",
    [(distill.DistillSettings, MSBSettings), (word_distill.WordDistillSettings, WordNERSettings)],
)
def test_its_settings_are_those_of_training_on_tags(student, own):
    defaults = {each.name: each.default_factory() for each in fields(student) if each.default_factory is not MISSING}
    for each in fields(own):
        if each.name not in ("schedule", "tweets_per_step") and each.default_factory is not MISSING:
            assert defaults[each.name] == each.default_factory(), each.name


def test_a_teacher_of_one_keeps_its_distribution(trained):
    recognizer = Recognizer.from_pretrained(trained("crf"))
    teacher = Teacher([recognizer], ["one"])
    for name, parameter in teacher.crf.named_parameters():
        assert torch.equal(parameter, getattr(recognizer.tagger.model.crf, name))
