"""Fine-tuning and prediction: tweets per second of `finetune/ner.py` beside Hugging Face's token-classification example.

    python benchmarks/ner.py --data TMN --encoder BERT_TINY --size tiny --repeats 3

Both sides train and run the same stock model with the same tokenizer and batch on the same tweets, text alone; start,
tokenization and warm-up are not counted.

* training: `Trainer` as `run_ner.py` sets it up (fp32, each batch padded to its longest tweet); ours is the stage;
* prediction: the test split from tokenized tweets to scores; `Trainer.predict`, `argmax` and seqeval; ours the stage's own,
  in its own precision and, where the processor has it, with products in eight bits (`--precision int8` of `finetune.predict`).

Every measurement is a process of its own, one at a time, interleaved. The last line is a JSON object.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mlm import SILENT, SIZES

BATCH, PREDICTED_AT_ONCE = 16, 64
LEARNING_RATE = 2e-4
WARM_UP_STEPS = 20
SIDES = ("trainer", "ours")


def main() -> None:
    arguments = parse_arguments()
    if arguments.side:
        print(json.dumps({"trainer": trainer, "ours": ours}[arguments.side](arguments)))
        return
    with tempfile.TemporaryDirectory() as work:
        arguments.work = arguments.work or work
        make_encoder(arguments)
        found = {side: [] for side in SIDES}
        for repeat in range(arguments.repeats):
            for side in SIDES:
                found[side].append(in_a_process_of_its_own(arguments, side))
                told = ", ".join(f"{name} {rate:,.0f} tweets/s" for name, rate in found[side][-1].items())
                print(f"{arguments.size}, repeat {repeat + 1}, {side}: {told}", flush=True)
    ratios = {}
    peers = {"training": "training", "prediction": "prediction", "prediction in eight bits": "prediction"}
    for task in found["ours"][0]:
        ours_at, peer_at = (
            statistics.median(rates[name] for rates in found[side])
            for side, name in (("ours", task), ("trainer", peers[task]))
        )
        ratios[f"{arguments.size}: {task}, ours over Trainer"] = round(ours_at / peer_at, 2)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    print(json.dumps({"ratios": ratios, "tweets_per_second": found}))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="`ner` data set, such as data_prep/tmn.py makes")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of a BERT; its tokenizer serves both sizes")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", default=None, help="folder for the models; kept if given")
    parser.add_argument("--side", choices=SIDES, default=None, help="measure one side in this process")
    return parser.parse_args()


def in_a_process_of_its_own(arguments: argparse.Namespace, side: str) -> dict[str, float]:
    """A side's tweets per second, in training and prediction."""
    told = {"data": arguments.data, "encoder": arguments.encoder, "size": arguments.size, "work": arguments.work}
    command = [sys.executable, __file__, f"--side={side}", *(f"--{name}={value}" for name, value in told.items())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def make_encoder(arguments: argparse.Namespace) -> None:
    """An encoder of the size: the given one, or one with new weights."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = Path(arguments.work) / arguments.size
    tokenizer = AutoTokenizer.from_pretrained(arguments.encoder)
    layers, hidden, heads = SIZES[arguments.size]
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    BertModel(BertConfig(vocab_size=len(tokenizer), intermediate_size=4 * hidden, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def ours(arguments: argparse.Namespace) -> dict[str, float]:
    """The rate in the stage's own metrics, and those of predicting and scoring the test split once more."""
    from finetune.ner import main as ner
    from finetune.recognizer import Recognizer
    from finetune.tagging import Split, predict, read_rows, score
    from launch.errors import InputError
    from launch.loop import RunSettings, make_accelerator
    from launch.stage import iterate_jsonl

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "recognizer"
        settings = {
            "encoder": Path(arguments.work) / arguments.size,
            "data": arguments.data,
            "output": output,
            "head": "softmax",
            "image_words": "none",
            "tweets_per_step": BATCH,
            "optimizer.learning_rate": LEARNING_RATE,
            "schedule.epochs": 1,
        }
        assert ner([f"--{name}={value}" for name, value in settings.items()]) == 0
        rows = [row for row in iterate_jsonl(output / "metrics.jsonl") if row["event"] == "train"]
        recognizers = {"prediction": Recognizer.from_pretrained(output, device="cpu")}
        with contextlib.suppress(InputError):  # a processor without such instructions
            recognizers["prediction in eight bits"] = Recognizer.from_pretrained(output, "cpu", precision="int8")
    rates = {"training": statistics.median(row["tweets_per_second"] for row in rows[1:])}
    accelerator = make_accelerator(RunSettings())

    def predict_and_score(recognizer: Recognizer, split: Split) -> None:
        score(split, predict(recognizer.tagger, split, recognizer.scheme, accelerator))

    for task, recognizer in recognizers.items():
        split = Split.of(read_rows(arguments.data, "test", "none", 1), recognizer.reader)
        rates[task] = len(split.rows) / seconds_of(predict_and_score, recognizer, split)
    return rates


def seconds_of(function: Callable[..., object], *arguments: object) -> float:
    """Seconds of one call."""
    started_at = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started_at


def trainer(arguments: argparse.Namespace) -> dict[str, float]:
    """`Trainer` as `run_ner.py` sets it up, for an epoch; then its prediction of the test split."""
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from data_prep.layout import NER_TAGS

    folder = Path(arguments.work) / arguments.size
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=len(NER_TAGS))
    splits = {name: tokenized(arguments.data, name, tokenizer) for name in ("train", "test")}

    class Clock(TrainerCallback):
        marks: list[float] = []

        def on_step_end(self, *_: object, **__: object) -> None:
            self.marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as output:
        whole = Trainer(
            model=model,
            args=TrainingArguments(
                output,
                per_device_train_batch_size=BATCH,
                per_device_eval_batch_size=PREDICTED_AT_ONCE,
                num_train_epochs=1,
                learning_rate=LEARNING_RATE,
                **SILENT,
            ),
            train_dataset=splits["train"],
            data_collator=DataCollatorForTokenClassification(tokenizer),
            compute_metrics=lambda p: seqeval_scores(p, NER_TAGS),
            callbacks=[Clock()],
        )
        whole.train()
        seconds = seconds_of(whole.predict, splits["test"])
    steps = len(Clock.marks) - WARM_UP_STEPS
    training = steps * BATCH / (Clock.marks[-1] - Clock.marks[WARM_UP_STEPS - 1])
    return {"training": training, "prediction": len(splits["test"]) / seconds}


def tokenized(data: Path, split: str, tokenizer: "PreTrainedTokenizerBase") -> "Dataset":  # noqa: F821
    """A split as `run_ner.py` tokenizes it: a label at the first piece of each word, -100 elsewhere."""
    from data_prep.layout import read_ner

    def align(rows: dict) -> dict:
        inputs = tokenizer(rows["tokens"], truncation=True, is_split_into_words=True)
        inputs["labels"] = [
            [
                -100 if word is None or word == previous else tags[word]
                for previous, word in zip([None, *inputs.word_ids(row)], inputs.word_ids(row), strict=False)
            ]
            for row, tags in enumerate(rows["ner_tags"])
        ]
        return inputs

    rows = read_ner(data, split, columns=["tokens", "ner_tags"])
    return rows.map(align, batched=True, remove_columns=rows.column_names)


def seqeval_scores(predicted: "EvalPrediction", labels: list[str]) -> dict[str, float]:  # noqa: F821
    """`argmax` and seqeval, as `run_ner.py` computes its metrics."""
    from seqeval.metrics import f1_score

    best = predicted.predictions.argmax(axis=2)
    pairs = [
        [(labels[guess], labels[gold]) for guess, gold in zip(*row, strict=True) if gold != -100]
        for row in zip(best, predicted.label_ids, strict=True)
    ]
    return {
        "f1": f1_score([[gold for _, gold in row] for row in pairs], [[guess for guess, _ in row] for row in pairs])
    }


if __name__ == "__main__":
    main()
