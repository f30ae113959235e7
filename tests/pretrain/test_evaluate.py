import json

import pytest
from tiny_models import make_corpus, make_encoder

from data_prep.layout import CORPUS_FEATURES, write_dataset
from launch.stage import iterate_jsonl, read_manifest
from pretrain import evaluate, mlm


def run(encoder, data, output, *more) -> dict:
    assert (
        evaluate.main([f"--encoder={encoder}", f"--data={data}", f"--output={output}", "--row_length=64", *more]) == 0
    )
    return json.loads((output / evaluate.LOSS_NAME).read_text())


def test_gives_the_loss_that_training_reports(tmp_path):
    encoder, data = make_encoder(tmp_path / "encoder"), make_corpus(tmp_path / "data", train=60)
    trained = tmp_path / "trained"
    arguments = [f"--encoder={encoder}", f"--data={data}", f"--output={trained}", "--row_length=64"]
    arguments += [
        "--tokens_per_step=256",
        "--run.precision=fp32",
        "--schedule.epochs=2",
        "--optimizer.learning_rate=1e-2",
    ]
    assert mlm.main(arguments) == 0
    *_, last = (row for row in iterate_jsonl(trained / "metrics.jsonl") if row["event"] == "evaluate")
    found = run(trained, data, tmp_path / "after", "--precision=fp32")
    assert found["loss"] == pytest.approx(last["loss"], rel=1e-6)
    before = run(encoder, data, tmp_path / "before", "--precision=fp32")
    assert before["loss"] > found["loss"]
    assert run(trained, data, tmp_path / "train", "--split=train")["loss"] != found["loss"]
    assert read_manifest(tmp_path / "train")["rows"]["taken"] == 60


def test_what_cannot_be_measured_is_refused(tmp_path, capsys):
    encoder, data = make_encoder(tmp_path / "encoder"), make_corpus(tmp_path / "data", train=5)
    arguments = [f"--encoder={encoder}", f"--data={data}", f"--output={tmp_path / 'out'}"]
    assert evaluate.main([*arguments, "--row_length=100"]) == 2
    assert "reads 64 tokens at the most. Lower --row_length (100)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main([*arguments, "--masking_rate=2"])
    assert "masking_rate: 2.0 is not in (0, 1)" in capsys.readouterr().err


def test_a_loss_of_nothing_is_no_loss(tmp_path, capsys):
    """Of a row of four pieces in one word none is masked: the word is longer than the row's share."""
    encoder = make_encoder(tmp_path / "encoder")
    texts = {"validation": [{"id": "1", "text": "yozubafoguxe"}]}
    write_dataset(tmp_path / "data", texts, CORPUS_FEATURES, "One word")
    arguments = [f"--encoder={encoder}", f"--data={tmp_path / 'data'}", f"--output={tmp_path / 'out'}"]
    assert evaluate.main([*arguments, "--row_length=64"]) == 2
    assert "no token is masked" in capsys.readouterr().err
