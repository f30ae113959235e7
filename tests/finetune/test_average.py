"""The mean of recognizers: of their weights, scored and loadable as they are, and refused where they are not of one kind."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_ner import STAGE

from finetune import average, ner
from finetune.recognizer import Recognizer
from launch.results import StageFolder, configurations


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trained, named):
    """Two recognizers that were trained on from the same one, by other seeds."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in ("1", "2"):
        arguments = ["--encoder", str(trained("crf")), "--data", str(named), "--output", str(folder / seed), *STAGE]
        assert ner.main([*arguments, "--seed", seed, "--schedule.epochs", "2"]) == 0
    return [folder / "1", folder / "2"]


def run(tmp_path, named, recognizers, *more):
    names = json.dumps([str(name) for name in recognizers])
    arguments = ["--recognizers", names, "--data", str(named), "--output", str(tmp_path / "mean"), *more]
    return average.main([*arguments, "--precision", "fp32"]), tmp_path / "mean"


def test_it_is_the_mean_and_scored_as_what_it_is_of(tmp_path, named, runs):
    code, output = run(tmp_path, named, runs)
    assert code == 0
    mean, *others = (load_file(str(folder / "model.safetensors")) for folder in (output, *runs))
    assert not torch.equal(others[0]["classifier.weight"], others[1]["classifier.weight"])
    for name, tensor in mean.items():
        expected = (others[0][name] + others[1][name]) / 2 if tensor.is_floating_point() else others[0][name]
        torch.testing.assert_close(tensor, expected)
    scores = json.loads((output / "scores.json").read_text())
    assert scores["test"]["conlleval"]["micro"]["f1"] > 0.9
    rows = [json.loads(line) for line in (output / "predictions" / "test.jsonl").read_text().splitlines()]
    found = Recognizer.from_pretrained(output).tag(
        [row["tokens"] for row in rows], [row["image_words"] for row in rows]
    )
    assert found == [row["predicted"] for row in rows]
    assert "pipeline_tag: token-classification" in (output / "README.md").read_text()
    (configuration,) = configurations([StageFolder(output)])
    assert configuration.chain.endswith("average") and configuration.chain.count("NER on named") == 2


def test_refusals(tmp_path, named, runs, trained, capsys):
    for recognizers, more, message in [
        ([runs[0], trained("crf", "BIOES")], [], "another kind of recognizer"),
        (runs, ["--image_words", "none"], "trained with given"),
        ([runs[0], runs[0].parent / ".." / runs[0].parent.name / "1"], [], "is given twice"),
    ]:
        assert run(tmp_path, named, recognizers, *more)[0] == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "mean").exists()
    with pytest.raises(SystemExit):
        run(tmp_path, named, runs[:1])
