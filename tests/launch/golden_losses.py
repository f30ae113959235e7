"""The first losses of each trained stage, on made-up data and tiny models, in fp32 on one thread.

    python tests/launch/golden_losses.py

writes them into golden_losses.json anew: after a change that is meant to alter what is trained, or for other versions
of the libraries. The change of that file then shows in the commit how far it went.
"""

import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

import torch  # noqa: E402
from tiny_models import (  # noqa: E402
    NAMES,
    SYLLABLES,
    bert_config,
    make_corpus,
    make_ner,
    make_tokenizer,
    save_encoder,
)
from tokenizers.models import WordPiece  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from finetune import ner  # noqa: E402
from launch import native  # noqa: E402
from launch.stage import iterate_jsonl, machine, versions  # noqa: E402
from pretrain import mlm  # noqa: E402
from pretrain.new_encoder import SPECIAL_TOKENS  # noqa: E402

GOLDEN = Path(__file__).with_name("golden_losses.json")
COMMON = ["--schedule.epochs=null", "--schedule.steps=5", "--run.log_steps=1", "--run.precision=fp32"]
COMMON += ["--run.compile=false", "--run.micro_batch=4"]
COMMON.append("--dropout=0")  # its draws are others where the processor has other instructions
SHORT = ["--input.maximum_length=64", "--input.image_length=8"]
STAGES = {
    "mlm": (mlm.main, "corpus", ["--row_length=32", "--tokens_per_step=256"]),
    "ner softmax": (ner.main, "ner", ["--head=softmax", *SHORT]),
    "ner crf": (ner.main, "ner", ["--head=crf", *SHORT]),
}


def measure(folder: Path) -> dict[str, list[float]]:
    """Losses of the steps and of the evaluation of each stage, trained in ``folder``."""
    tokenizer = fixed_tokenizer()
    encoder = save_encoder(folder / "encoder", tokenizer, bert_config(len(tokenizer)))
    data = {"corpus": make_corpus(folder / "corpus", train=100), "ner": make_ner(folder / "ner", train=100)}
    losses = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name, (main, corpus, arguments) in STAGES.items():
            output = folder / name
            arguments = [*COMMON, *arguments, f"--encoder={encoder}", f"--data={data[corpus]}", f"--output={output}"]
            with mock.patch.object(
                native, "library", return_value=None
            ):  # what a compiler makes is not the same anywhere
                assert main(arguments) == 0
            losses[name] = [row["loss"] for row in iterate_jsonl(output / "metrics.jsonl")]
    finally:
        torch.set_num_threads(threads)
    return losses


def fixed_tokenizer() -> PreTrainedTokenizerFast:
    """One that is the same in each process; a vocabulary that is learnt is not, where words are equally frequent."""
    tokenizer = make_tokenizer()
    pieces = [*SYLLABLES, *sum(NAMES.values(), [])]
    vocabulary = [*SPECIAL_TOKENS, *pieces, *(f"##{piece}" for piece in pieces)]
    tokenizer.backend_tokenizer.model = WordPiece(
        {piece: number for number, piece in enumerate(vocabulary)}, unk_token="[UNK]"
    )
    return tokenizer


def computed_by() -> dict[str, str]:
    """What the last bits of a sum depend on."""
    return {
        "processor": machine()["processor"],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": versions()["transformers"],
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        golden = {"computed by": computed_by(), "losses": measure(Path(folder))}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    print(f"written: {GOLDEN}")
