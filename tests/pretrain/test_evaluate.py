import json

import pytest
from tiny_models import make_corpus, make_encoder

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
