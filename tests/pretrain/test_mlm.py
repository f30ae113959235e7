"""The stage `pretrain/mlm.py`: what it masks, what it refuses, what it writes."""

import dataclasses
import json
import math
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from interrupted import interrupted_at
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

from data_prep.text_batches import iterate_texts
from launch import loop
from launch.files import default_cache, sha256_of_file
from launch.loop import RunSettings, make_accelerator, micro_batches
from launch.stage import iterate_jsonl, read_manifest
from pretrain import mlm
from pretrain.cutter import Cutter
from pretrain.masking import Masking
from pretrain.mlm import MaskedLanguageModelling, MLMSettings, main
from pretrain.model import PackedMaskedLanguageModel, load_masked_language_model
from pretrain.output_layer import NO_LABEL
from pretrain.tokenizing import tokenize

TOKENIZER = make_tokenizer()
ROW = 64
SETTINGS = MLMSettings(
    encoder="e",
    data="d",
    output=Path("o"),
    row_length=ROW,
    tokens_per_step=256,
    run=RunSettings(precision="fp32"),
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), train=80)


def make_task(corpus: Path, processes: int = 1, micro_batch: int = 80, **settings: object) -> MaskedLanguageModelling:
    splits = ("train", "validation")
    texts = lambda start: iterate_texts(corpus, splits, start=start)  # noqa: E731
    stores = tokenize(texts, splits, str(corpus), Cutter(TOKENIZER, ROW), default_cache()).values()
    run = RunSettings(precision="fp32", micro_batch=micro_batch)
    changed = dataclasses.replace(SETTINGS, data=str(corpus), run=run, **settings)
    return MaskedLanguageModelling(changed, *stores, TOKENIZER, processes)


def masked_tokens(batch: dict[str, torch.Tensor]) -> dict[tuple[int, int], tuple[int, int]]:
    """What the model reads, and what stood there, at each masked (sample, position)."""
    counts = batch["labels_M"] != NO_LABEL
    places, labels = batch["masked_M"][counts], batch["labels_M"][counts]
    of_places = (batch[name].flatten()[places].tolist() for name in ("samples_RT", "positions_RT", "tokens_RT"))
    rows = zip(*of_places, labels.tolist(), strict=True)
    return {(sample, position): (read, label) for sample, position, read, label in rows}


def of_epoch(task: MaskedLanguageModelling, epoch: int, processes: int = 1) -> dict:
    """The masks of an epoch, as the loop goes through it."""
    found, weight, shapes = {}, 0, set()
    for rows in task.plan(epoch):
        for process in range(processes):
            for chunk, counts in micro_batches(rows, task.rows_at_once, process, processes):
                batch = task.collate(chunk, epoch)
                assert int(batch["weight"]) == len(masked_tokens(batch))
                shapes.add(str({name: tensor.shape for name, tensor in batch.items()}))
                if counts:
                    found |= masked_tokens(batch)
                    weight += int(batch["weight"])
    assert weight == len(found), "no token is masked twice"
    assert len(shapes) == 1, "all micro-batches have one shape"
    return found


def test_masks_depend_on_seed_and_epoch_and_on_no_batch(corpus):
    masks = of_epoch(make_task(corpus), 3)
    assert masks == of_epoch(make_task(corpus, micro_batch=1), 3)
    for processes in (2, 3, 50):
        assert masks == of_epoch(make_task(corpus, processes), 3, processes)
    assert masks != of_epoch(make_task(corpus), 4)
    assert masks != of_epoch(make_task(corpus, seed=2), 3)
    tokens = len(make_task(corpus).training.tokens)
    assert 0.125 * tokens < len(masks) < 0.155 * tokens
    by_token = of_epoch(make_task(corpus, whole_word=False), 3)
    assert 0.145 * tokens < len(by_token) < 0.155 * tokens


def rows_as_trained_on(task: MaskedLanguageModelling, processes: int) -> list[tuple[int, list[int], list[int]]]:
    """Step, samples and masked tokens of each row that counts, as a worker makes them ahead for each process."""
    found = []
    for process in range(processes):
        place = types.SimpleNamespace(process_index=process, num_processes=processes, device=torch.device("cuda"))
        ahead, plan = loop.BatchesAhead(task, task.rows_at_once, place), task.plan(1)
        for step in range(len(plan)):
            for batch, counts in ahead.take(plan, loop.Position(epoch=1, step_in_epoch=step)):
                rows = zip(batch["samples_RT"].tolist(), batch["tokens_RT"].tolist(), strict=True)
                found += [(step, *row) for row in rows if counts and max(row[0]) >= 0]
    return sorted(found)


def test_the_same_rows_come_out_for_any_number_of_processes(corpus):
    expected = rows_as_trained_on(make_task(corpus), 1)
    assert len(expected) == sum(len(rows) for rows in make_task(corpus).plan(1)) > 10
    for processes, micro_batch in ((1, 1), (2, 80), (2, 1), (3, 2), (50, 80)):
        assert rows_as_trained_on(make_task(corpus, processes, micro_batch), processes) == expected


def test_labels_are_the_tokens_that_stood_there(corpus):
    task = make_task(corpus)
    masks = of_epoch(task, 0)
    for (sample, position), (_, label) in masks.items():
        assert task.training.tokens[task.training.offsets[sample] + position] == label
        assert label not in (TOKENIZER.cls_token_id, TOKENIZER.sep_token_id)
    assert 0.6 < np.mean([read == TOKENIZER.mask_token_id for read, _ in masks.values()]) < 0.95


def test_what_is_not_masked_is_read_as_it_stands(corpus):
    task = make_task(corpus)
    texts = {}
    for rows in task.plan(0):
        batch = task.collate(rows, 0)
        masked = masked_tokens(batch)
        flat = [batch[name].flatten().tolist() for name in ("samples_RT", "positions_RT", "tokens_RT")]
        for sample, position, token in zip(*flat, strict=True):
            if sample >= 0:
                texts.setdefault(sample, []).append(masked.get((sample, position), (0, token))[1])
    for sample, text in enumerate(make_texts(80, 1)):
        assert texts[sample] == TOKENIZER(text, truncation=True, max_length=ROW)["input_ids"]


def test_an_epoch_takes_every_text_once_in_an_order_of_its_own(corpus):
    task = make_task(corpus)
    orders = [[sample for rows in task.plan(epoch) for row in rows for sample in row] for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(80)) and orders[0] != orders[1]
    assert sum(task.size(rows) for rows in task.plan(0)) == len(task.training.tokens)
    names = [name for rows in task.plan(0) for name in task.sample_ids(rows)]
    assert names == [f"train-{sample}" for sample in orders[0]]


@pytest.mark.parametrize(
    "tokens_per_step, row_length, processes, micro_batch, rows",
    [
        (8192, 128, 1, 80, 65),
        (8192, 128, 1, 65, 65),
        (8192, 128, 1, 64, 33),  # two of 33 rather than one of 64 and one of a single row
        (8192, 128, 1, 30, 22),
        (8192, 128, 2, 80, 33),
        (8192, 128, 2, 1, 1),
        (8192, 128, 100, 80, 1),
        (64, 64, 1, 80, 2),
    ],
)
def test_rows_go_through_the_model_in_equal_parts(corpus, tokens_per_step, row_length, processes, micro_batch, rows):
    task = make_task(corpus, processes, micro_batch, tokens_per_step=tokens_per_step, row_length=row_length)
    assert task.rows_at_once == rows <= micro_batch


def test_the_validation_loss_is_the_same_whatever_the_seed_or_the_batches(corpus, encoder):
    stock, _ = load_masked_language_model(str(encoder), 0.0)
    model, accelerator = PackedMaskedLanguageModel(stock).eval(), make_accelerator(SETTINGS.run)
    with torch.no_grad():
        first, again, other_seed, *other_batches = (
            task.evaluate(model, accelerator)
            for task in (
                *(make_task(corpus) for _ in range(2)),
                make_task(corpus, seed=9),
                make_task(corpus, micro_batch=1),
                make_task(corpus, tokens_per_step=64),
                make_task(corpus, tokens_per_step=8192),
                make_task(corpus, processes=3),
            )
        )
    assert first == again == other_seed
    for other in other_batches:
        assert other["loss"] == pytest.approx(first["loss"], rel=1e-6)
    assert first["perplexity"] == pytest.approx(math.exp(first["loss"]))
    assert first["loss"] == pytest.approx(math.log(200), abs=0.3), "of a model that has learnt nothing"


@pytest.mark.parametrize("processes", [2, 3, 50])
def test_processes_share_the_validation_split(corpus, encoder, monkeypatch, processes):
    """What they sum up makes the loss of one; a row that two of them compute counts once."""
    stock, _ = load_masked_language_model(str(encoder), 0.0)
    model = PackedMaskedLanguageModel(stock).eval()
    alone = make_accelerator(SETTINGS.run)
    sums = []
    with torch.no_grad():
        expected = make_task(corpus).evaluate(model, alone)["loss"]
        monkeypatch.setattr(mlm, "sum_over_processes", lambda _, value: sums.append(value) or max(value, 1.0))
        for process in range(processes):
            one = types.SimpleNamespace(process_index=process, num_processes=processes, device=alone.device)
            make_task(corpus, processes, micro_batch=1).evaluate(model, one)
    assert len(sums) == 2 * processes
    assert sum(sums[::2]) / sum(sums[1::2]) == pytest.approx(expected, rel=1e-6)


def test_the_validation_loss_is_that_of_its_masks(corpus, encoder, monkeypatch):
    """A mean over the masked tokens of all batches, each of which counts once."""
    stock, _ = load_masked_language_model(str(encoder), 0.0)
    model, accelerator = PackedMaskedLanguageModel(stock).eval(), make_accelerator(SETTINGS.run)
    apply, masks = Masking.apply, []
    monkeypatch.setattr(Masking, "apply", lambda *a: masks.append((a[1], *apply(*a))) or masks[-1][1:])
    total, weight = 0.0, 0
    with torch.no_grad():
        found = make_task(corpus).evaluate(model, accelerator)["loss"]
        for laid, masked, chosen in masks:
            for sample in np.unique(laid.samples[laid.samples >= 0]):
                here = laid.samples == sample
                labels = torch.from_numpy(np.where(chosen[here], laid.tokens[here], -100))[None]
                if chosen[here].any():
                    mean = float(stock(input_ids=torch.from_numpy(masked[here])[None], labels=labels).loss)
                    total, weight = total + mean * chosen[here].sum(), weight + chosen[here].sum()
    assert len({sample for laid, *_ in masks for sample in laid.samples.ravel()} - {-1}) == 20
    assert found == pytest.approx(total / weight, rel=1e-5)


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
    rates = {"tokens_per_second", "share_of_limit"}
    assert train_row.keys() == {"event", "step", "epoch", "loss", "learning_rate", "seconds", *rates}
    assert train_row["share_of_limit"] > 0

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
        "has_image_words": False,
    }
    assert manifest["facts"]["training"]["epochs"] == 6
    assert not (output / "checkpoints").exists()


def losses(folder: Path, event: str = "train") -> list[float]:
    return [row["loss"] for row in iterate_jsonl(folder / "metrics.jsonl") if row["event"] == event]


def test_in_bf16_it_trains_the_same_fp32_weights(encoder, corpus, tmp_path):
    more = ["--schedule.epochs=4", "--optimizer.learning_rate=1e-2"]
    for precision in ("fp32", "bf16"):
        assert main(arguments(encoder, corpus, tmp_path / precision, *more, f"--run.precision={precision}")) == 0
    full, half = tmp_path / "fp32", tmp_path / "bf16"
    assert read_manifest(half)["facts"]["training"]["precision"] == "bf16"
    for event in ("train", "evaluate"):
        assert losses(half, event) != losses(full, event)
        assert losses(half, event) == pytest.approx(losses(full, event), rel=0.02)
    one, other = (load_file(str(folder / "model.safetensors")) for folder in (half, full))
    assert {name: tensor.dtype for name, tensor in one.items()} == dict.fromkeys(other, torch.float32)
    assert not any(torch.equal(tensor, tensor.bfloat16().float()) for tensor in one.values() if tensor.numel() > 50)
    assert not any(AutoModelForMaskedLM.from_pretrained(half, output_loading_info=True)[1].values())


def test_a_run_goes_on_where_bf16_is_not_fast(encoder, corpus, tmp_path, monkeypatch, caplog):
    seed_dropout = loop.seed_dropout

    command = arguments(encoder, corpus, tmp_path / "out", "--run.precision=auto", "--run.checkpoint_steps=4")
    monkeypatch.setattr(loop, "best_precision", lambda: "bf16")
    monkeypatch.setattr(loop, "seed_dropout", interrupted_at(5))
    assert main(command) == 130
    monkeypatch.setattr(loop, "best_precision", lambda: "fp32")
    monkeypatch.setattr(loop, "seed_dropout", seed_dropout)
    with caplog.at_level("INFO", logger="msb_ner"):
        assert main(command) == 0
    assert "resumed at step 4" in caplog.text
    assert read_manifest(tmp_path / "out")["facts"]["training"]["precision"] == "fp32"


def test_compiled_it_trains_on_the_same(encoder, corpus, tmp_path):
    more = ["--schedule.steps=6", "--run.precision=bf16", "--evaluate_steps=6"]
    assert main(arguments(encoder, corpus, tmp_path / "plain", *more)) == 0
    assert main(arguments(encoder, corpus, tmp_path / "compiled", *more, "--run.compile=true")) == 0
    for event in ("train", "evaluate"):
        assert losses(tmp_path / "compiled", event) == pytest.approx(losses(tmp_path / "plain", event), rel=0.01)
    plain, compiled = (load_file(str(tmp_path / name / "model.safetensors")) for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()


def test_tokens_are_taken_from_the_cache_and_change_nothing(encoder, corpus, tmp_path, monkeypatch):
    cached = arguments(encoder, corpus, tmp_path / "one", "--schedule.steps=3", f"--token_cache={tmp_path / 'cache'}")
    assert main(cached) == 0
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2, "one for each split"

    def refuse(*_, **__):
        raise AssertionError("the texts are read again")

    with monkeypatch.context() as patch:
        patch.setattr(mlm, "iterate_texts", refuse)
        assert main([*cached, f"--output={tmp_path / 'two'}"]) == 0
    assert main([*cached, f"--output={tmp_path / 'three'}", f"--token_cache={tmp_path / 'other'}"]) == 0
    for other in ("two", "three"):
        names = {path.name for path in (tmp_path / "one").iterdir()}
        assert names == {path.name for path in (tmp_path / other).iterdir()}
        for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"):
            assert sha256_of_file(tmp_path / "one" / name) == sha256_of_file(tmp_path / other / name), name
        assert len({read_manifest(tmp_path / each)["fingerprint"] for each in ("one", other)}) == 1
    untouched = json.loads((encoder / "tokenizer.json").read_text())
    assert json.loads((tmp_path / "one" / "tokenizer.json").read_text()) == untouched, "it does not cut texts by itself"


def test_another_data_set_is_not_taken_from_the_cache(encoder, tmp_path):
    for name, count in (("small", 10), ("large", 11)):
        data = make_corpus(tmp_path / name, train=count)
        assert main(arguments(encoder, data, tmp_path / f"of-{name}", "--schedule.steps=1")) == 0
        assert read_manifest(tmp_path / f"of-{name}")["facts"]["data"]["train"]["texts"] == count


def test_a_cache_that_is_damaged_or_cannot_be_written_is_told(encoder, corpus, tmp_path, capsys):
    cache = tmp_path / "cache"
    command = arguments(encoder, corpus, tmp_path / "out", "--schedule.steps=1", f"--token_cache={cache}")
    cache.write_text("a file")
    assert main(command) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"pretrain/mlm: error: {cache}/") and message.endswith("folder with --token_cache.")
    cache.unlink()
    assert main(command) == 0
    shutil.rmtree(tmp_path / "out")
    for tokens in cache.glob("*/*/tokens.bin"):
        tokens.write_bytes(b"")
    assert main(command) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "damaged (ValueError: tokens.bin has 0 bytes instead of" in message
    assert message.endswith("Remove the folder: it is made again.") and not (tmp_path / "out").exists()


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
