"""The stage `pretrain/mlm.py`: what it masks, what it refuses, what it writes."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import bert_config, make_corpus, make_encoder, make_ner, make_texts, make_tokenizer
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from launch.loop import RunSettings, make_accelerator
from launch.stage import iterate_jsonl, read_manifest
from pretrain.mlm import MaskedLanguageModelling, MLMSettings, main
from pretrain.model import PackedMaskedLanguageModel, load_masked_language_model
from pretrain.texts import tokenize

TOKENIZER = make_tokenizer()
SETTINGS = MLMSettings(
    encoder="e", data=Path("d"), output=Path("o"), row_length=64, tokens_per_step=256, run=RunSettings(precision="fp32")
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), train=80)


def make_task(**settings) -> MaskedLanguageModelling:
    texts = [tokenize([str(i) for i in range(40)], make_texts(40, seed), TOKENIZER, 64) for seed in (1, 2)]
    return MaskedLanguageModelling(dataclasses.replace(SETTINGS, **settings), *texts, TOKENIZER)


def masked_tokens(batch) -> dict[tuple[int, int], tuple[int, int]]:
    """What the model reads, and what stood there, at each masked (sample, position)."""
    of_places = (
        batch[name].flatten()[batch["masked_M"]].tolist() for name in ("samples_RT", "positions_RT", "tokens_RT")
    )
    rows = zip(*of_places, batch["labels_M"].tolist(), strict=True)
    return {(sample, position): (read, label) for sample, position, read, label in rows}


def of_epoch(task: MaskedLanguageModelling, epoch: int, rows_at_once: int) -> dict:
    found = {}
    for rows in task.plan(epoch):
        for start in range(0, len(rows), rows_at_once):
            batch = task.collate(rows[start : start + rows_at_once], epoch)
            assert int(batch["weight"]) == len(batch["masked_M"])
            found |= masked_tokens(batch)
    return found


def test_masks_depend_on_seed_and_epoch_and_on_no_batch():
    masks = of_epoch(make_task(), 3, rows_at_once=1)
    assert masks == of_epoch(make_task(), 3, rows_at_once=100)
    assert masks == of_epoch(make_task(tokens_per_step=64, row_length=64), 3, rows_at_once=1)
    assert masks != of_epoch(make_task(), 4, rows_at_once=1)
    assert masks != of_epoch(make_task(seed=2), 3, rows_at_once=1)
    total = sum(make_task().training.lengths - 2)
    assert 0.08 * total < len(masks) < 0.22 * total


def test_labels_are_the_tokens_that_stood_there():
    task = make_task()
    masks = of_epoch(task, 0, rows_at_once=2)
    for (sample, position), (_, label) in masks.items():
        assert task.training.tokens[task.training.offsets[sample] + position] == label
        assert label not in (TOKENIZER.cls_token_id, TOKENIZER.sep_token_id)
    assert np.mean([read == TOKENIZER.mask_token_id for read, _ in masks.values()]) > 0.6


def test_an_epoch_takes_every_text_once_in_an_order_of_its_own():
    task = make_task()
    orders = [[sample for rows in task.plan(epoch) for row in rows for sample in row] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(40)) and orders[0] != orders[1]
    assert sum(task.size(rows) for rows in task.plan(0)) == len(task.training.tokens)
    assert {name for rows in task.plan(0) for name in task.sample_ids(rows)} == {str(i) for i in range(40)}


def test_the_validation_loss_is_the_same_whatever_the_seed_or_the_batches(encoder):
    stock, _ = load_masked_language_model(str(encoder), 0.0)
    model, accelerator = PackedMaskedLanguageModel(stock).eval(), make_accelerator(SETTINGS.run)
    with torch.no_grad():
        first, again, other_seed, other_batches = (
            task.evaluate(model, accelerator)
            for task in (
                *[make_task()] * 2,
                make_task(seed=9),
                make_task(run=RunSettings(precision="fp32", micro_batch=1)),
            )
        )
    assert first == again == other_seed
    assert other_batches["loss"] == pytest.approx(first["loss"], rel=1e-6)
    assert first["perplexity"] == pytest.approx(math.exp(first["loss"]))
    assert first["loss"] == pytest.approx(math.log(200), abs=0.3), "of a model that has learnt nothing"


def arguments(encoder: Path, data: Path, output: Path, *more: str) -> list[str]:
    common = ["--row_length=64", "--tokens_per_step=256", "--run.log_steps=1", "--run.precision=fp32"]
    return [f"--encoder={encoder}", f"--data={data}", f"--output={output}", *common, *more]


def test_it_learns_and_writes_a_plain_folder(encoder, corpus, tmp_path):
    output = tmp_path / "out"
    more = ["--schedule.epochs=6", "--optimizer.learning_rate=1e-2"]
    assert main(arguments(encoder, corpus, output, *more)) == 0
    evaluations = [row for row in iterate_jsonl(output / "metrics.jsonl") if row["event"] == "evaluate"]
    assert [row["epoch"] for row in evaluations] == [1, 2, 3, 4, 5, 6]
    assert evaluations[-1]["loss"] < 0.95 * evaluations[0]["loss"]
    train_row = next(iterate_jsonl(output / "metrics.jsonl"))
    assert train_row.keys() == {"event", "step", "epoch", "loss", "learning_rate", "seconds", "tokens_per_second"}

    model, loading = AutoModelForMaskedLM.from_pretrained(output, output_loading_info=True)
    assert not any(loading.values()) and model.config.hidden_dropout_prob == 0.1, "dropout 0 was for training only"
    assert AutoTokenizer.from_pretrained(output)("bace")["input_ids"] == TOKENIZER("bace")["input_ids"]
    before, after = (load_file(str(folder / "model.safetensors")) for folder in (encoder, output))
    assert before.keys() == after.keys()
    # But for the segment embeddings' second row, all moves; token types are not used here.
    assert all(not torch.equal(tensor, after[name]) for name, tensor in before.items())

    manifest = read_manifest(output)
    assert manifest["rows"] == {"taken": 80, "kept": 80, "rejected": {}}
    assert manifest["facts"]["data"]["train"] == {
        "texts": 80,
        "tokens": sum(len(TOKENIZER(text)["input_ids"]) for text in make_texts(80, 1)),
        "texts_truncated": 0,
    }
    assert manifest["facts"]["training"]["epochs"] == 6
    assert not (output / "checkpoints").exists()


def test_a_cut_text_is_counted(encoder, corpus, tmp_path):
    more = ["--row_length=16", "--schedule.steps=1"]
    assert main(arguments(encoder, corpus, tmp_path / "out", *more)) == 0
    cut = sum(len(TOKENIZER(text)["input_ids"]) > 16 for text in make_texts(80, 1))
    assert 0 < cut == read_manifest(tmp_path / "out")["facts"]["data"]["train"]["texts_truncated"]


def test_it_takes_the_words_of_a_ner_data_set(encoder, tmp_path):
    data = make_ner(tmp_path / "ner", 20)
    assert main(arguments(encoder, data, tmp_path / "out", "--schedule.steps=2")) == 0
    assert read_manifest(tmp_path / "out")["facts"]["data"]["train"]["texts"] == 20


def test_a_new_head_is_the_same_each_time(encoder, corpus, tmp_path):
    bare = tmp_path / "bare"
    AutoModelForMaskedLM.from_pretrained(encoder).bert.save_pretrained(bare)
    AutoTokenizer.from_pretrained(encoder).save_pretrained(bare)
    for name in ("one", "two"):
        assert main(arguments(bare, corpus, tmp_path / name, "--schedule.steps=2")) == 0
    one, two = (load_file(str(tmp_path / name / "model.safetensors")) for name in ("one", "two"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    new = read_manifest(tmp_path / "one")["facts"]["encoder"]["new_parameters"]
    assert "cls.predictions.transform.dense.weight" in new


def distilbert(folder: Path) -> None:
    config = DistilBertConfig(vocab_size=200, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
    DistilBertForMaskedLM(config).save_pretrained(folder)


def roberta(folder: Path) -> None:
    sizes = bert_config(200).to_dict()
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = RobertaConfig(**{name: sizes[name] for name in names}, max_position_embeddings=65, pad_token_id=1)
    RobertaForMaskedLM(config).save_pretrained(folder)


def without_mask_token(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(folder)


def bigger_vocabulary(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["[NEW]"])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    "change, problem",
    [
        (distilbert, "type distilbert cannot be pretrained here; these can: bert"),
        (roberta, "reads 63 tokens at the most. Lower --row_length (64)."),
        (without_mask_token, "its tokenizer has no mask token"),
        (bigger_vocabulary, "the tokenizer has 201 entries but the encoder only 200 embeddings"),
    ],
)
def test_encoders_that_are_refused(encoder, corpus, tmp_path, capsys, change, problem):
    changed = Path(shutil.copytree(encoder, tmp_path / "encoder"))
    change(changed)
    assert main(arguments(changed, corpus, tmp_path / "out")) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"pretrain/mlm: error: {changed}: " if "type" not in problem else "pretrain/mlm: error: ")
    assert problem in message and not (tmp_path / "out").exists()


def test_roberta_fills_its_positions(corpus, encoder, tmp_path):
    changed = Path(shutil.copytree(encoder, tmp_path / "encoder"))
    roberta(changed)
    more = ["--row_length=63", "--schedule.steps=2"]
    assert main(arguments(changed, corpus, tmp_path / "out", *more)) == 0


@pytest.mark.parametrize(
    "argument, problem",
    [
        ("--masking_rate=0", "masking_rate: 0.0 is not in (0, 1)"),
        ("--dropout=1", "dropout: 1.0 is not in [0, 1)"),
        ("--row_length=2", "row_length: 2 is too short"),
        ("--row_length=300", "tokens_per_step (256) is less than one row (300)"),
        ("--evaluate_steps=0", "evaluate_steps: 0 is not positive"),
    ],
)
def test_settings_that_are_refused(argument, problem, encoder, corpus, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(arguments(encoder, corpus, tmp_path / "out", argument))
    assert problem in capsys.readouterr().err


def test_an_empty_split_is_refused(encoder, tmp_path, capsys):
    data = make_corpus(tmp_path / "corpus", train=3, validation=0)
    assert main(arguments(encoder, data, tmp_path / "out")) == 2
    assert "error: " in capsys.readouterr().err
    assert json.loads((encoder / "config.json").read_text())["model_type"] == "bert"
