"""What `finetune/ner.py` exports opens without this toolkit: with stock classes, or with the code beside the weights."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTokenClassification, pipeline

from finetune.recognizer import Recognizer, add_model_code
from finetune.systems.msb import MSBForTokenClassification

ELSEWHERE = '''
import sys

class NoToolkit:
    """Hides the packages of the toolkit, however they are installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("data_prep", "finetune", "launch", "pretrain"):
            raise ModuleNotFoundError(f"{name} is hidden")

sys.meta_path.insert(0, NoToolkit())
try:
    import finetune
    raise SystemExit("the toolkit is not hidden")
except ModuleNotFoundError:
    pass

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

folder, inputs, output = sys.argv[1:]
model, info = AutoModelForTokenClassification.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).id2label[1] == "B-PER"
with torch.no_grad():
    inputs = load_file(inputs)
    logits = model.eval()(**inputs).logits
    labels = model.crf.decode(logits)
state = {f"state.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
save_file(state | {"logits": logits, "labels": torch.tensor(labels)}, output)
print(type(model).__module__)
'''


def test_a_model_is_exported_for_any_batch(trained, tokenizer):
    """By ``torch.export``, with a number of tweets and of pieces that are other than its example's."""
    model = MSBForTokenClassification.from_pretrained(trained("crf", "BIO")).eval()
    names = ["input_ids", "attention_mask", "token_type_ids"]
    example, other = (
        dict(tokenizer(texts, ["sea, court"] * len(texts), return_tensors="pt", padding=True))
        for texts in (["maria at the oslo bay", "saw"], ["a", "lee met the friend in paris with smith", "today"])
    )
    dynamic = {0: torch.export.Dim("tweets", max=512), 1: torch.export.Dim("pieces", min=2, max=96)}
    inputs = {name: example[name] for name in names}
    program = torch.export.export(model, (), inputs, dynamic_shapes=dict.fromkeys(names, dynamic))
    with torch.no_grad():
        logits = program.module()(**{name: other[name] for name in names}).logits
        torch.testing.assert_close(logits, model(**{name: other[name] for name in names}).logits)


def test_a_folder_with_a_crf_loads_elsewhere_with_its_own_code(trained, tmp_path, tokenizer):
    folder = trained("crf", "BIO")
    inputs = dict(tokenizer(["maria at the oslo bay"], ["sea, court"], return_tensors="pt"))
    save_file(inputs, tmp_path / "inputs.safetensors")
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    arguments = [str(folder), str(tmp_path / "inputs.safetensors"), str(tmp_path / "output.safetensors")]
    command = [sys.executable, "-I", str(tmp_path / "elsewhere.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("transformers_modules.")

    found = load_file(tmp_path / "output.safetensors")
    stored = load_file(folder / "model.safetensors")
    assert {name.removeprefix("state.") for name in found if name.startswith("state.")} == stored.keys()
    for name, tensor in stored.items():  # the CRF's transitions among them, bit for bit
        assert torch.equal(found[f"state.{name}"], tensor), name
    model = MSBForTokenClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.testing.assert_close(found["logits"], logits, rtol=0, atol=1e-6)
    assert found["labels"].tolist() == model.crf.decode(logits)


def test_the_code_beside_the_weights_is_ours(trained):
    """Nothing of it needs the toolkit, and nothing is beside a stock model."""
    folder = trained("crf")
    for name in ("msb.py", "crf.py", "tags.py", "word_shapes.py"):
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        assert not any("finetune" in line or "launch" in line or "data_prep" in line for line in imports)
    assert "from .crf import LinearChainCRF" in (folder / "msb.py").read_text(encoding="utf-8")
    config = (trained("softmax") / "config.json").read_text()
    add_model_code(trained("softmax"))
    assert (trained("softmax") / "config.json").read_text() == config


def test_our_own_class_is_taken_where_the_toolkit_is(trained, monkeypatch):
    """Without being asked whether to run code, which would wait for an answer."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    model = AutoModelForTokenClassification.from_pretrained(trained("crf"))
    assert type(model) is MSBForTokenClassification
    assert all(
        torch.equal(tensor, model.state_dict()[name])
        for name, tensor in load_file(trained("crf") / "model.safetensors").items()
    )


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
def test_a_softmax_folder_is_a_stock_model_and_works_in_a_pipeline(trained, scheme):
    folder = trained("softmax", scheme)
    model = AutoModelForTokenClassification.from_pretrained(folder)
    assert type(model).__name__ == "BertForTokenClassification"
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForTokenClassification"]
    recognize = pipeline("token-classification", model=str(folder), aggregation_strategy="first")
    text = "saw oslo bay, met nasa !"
    labels = [(found["entity_group"], found["word"]) for found in recognize(text)]
    ours = Recognizer.from_pretrained(folder).entities([text])[0]
    assert {entity.text for entity in ours} == {"oslo bay", "nasa"}
    assert {kind for kind, _ in labels} == {entity.type for entity in ours} == {"LOC", "ORG"}
