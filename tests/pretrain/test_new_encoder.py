import subprocess
import sys

from tiny_models import PROJECT, environment, make_corpus
from transformers import AutoTokenizer

from launch.files import sha256_of_file


def test_every_process_learns_the_same_encoder(tmp_path):
    data = make_corpus(tmp_path / "data", train=60)
    for name in ("one", "other"):  # hash tables differ by process
        command = [sys.executable, "pretrain/new_encoder.py", f"--data={data}", f"--output={tmp_path / name}"]
        command += [
            "--vocabulary_size=200",
            "--minimum_count=1",
            "--layers=1",
            "--hidden_size=16",
            "--heads=2",
        ]
        result = subprocess.run(command, cwd=PROJECT, env=environment(), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
    for file in ("tokenizer.json", "model.safetensors"):
        assert sha256_of_file(tmp_path / "one" / file) == sha256_of_file(tmp_path / "other" / file), file
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one")
    assert tokenizer.convert_ids_to_tokens(tokenizer("bace")["input_ids"])[0] == "[CLS]"
    assert tokenizer.unk_token_id not in tokenizer("bace")["input_ids"]
