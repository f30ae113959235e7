"""The card says what the manifests hold, in Markdown and YAML that the Hub reads, with snippets that run."""

from __future__ import annotations

import contextlib
import copy
import io
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from launch.model_card import base_model, read_chain, render_model_card

HUB_ENCODER = "hub:google/bert_uncased_L-2_H-128_A-2@30b0a37ccaaa32f332884b96992754e246e48c5f"


def stage(name: str, output: str, number: int, inputs: dict, **changes) -> dict:
    training = not name.startswith("data_prep")
    return {
        "stage": name,
        "settings": {"output": f"/scratch/jane/{output}", "resume": "auto", "max_length": 128, "seed": number},
        "inputs": inputs,
        "seeds": [number] if training else [],
        "rows": None if training else {"taken": 1000, "kept": 880, "rejected": {"near-duplicate": 100, "empty": 20}},
        "facts": {},
        "git_commit": "f" * 40,
        "versions": {"python": "3.11.7", "torch": "2.14.1"},
        "machine": {"processor": "Test CPU | 2 GHz", "cores": 2},
        "wall_seconds": 100.0 * number,
        "finished_at": "2025-01-02T03:04:05+00:00",
        "fingerprint": str(number) * 64,
        **changes,
    }


def reads(manifest: dict | None, path: str, digit: str) -> dict:
    return {"path": path, "sha256": digit * 64, "manifest": manifest}


@pytest.fixture
def manifests() -> dict[str, dict]:
    """The whole chain: two corpora, two MLM stages, the NER data, the recognizer."""
    tweets = stage("data_prep/clean", "corpus", 1, {"posts": reads(None, "/scratch/jane/raw posts", "a")})
    hub = {"path": HUB_ENCODER, "sha256": HUB_ENCODER, "manifest": None}
    mlm = stage("pretrain/mlm", "tweet_mlm", 2, {"data": reads(tweets, "/scratch/jane/corpus", "b"), "encoder": hub})
    news = stage("data_prep/conll2003", "conll", 3, {"input": reads(None, "/scratch/jane/conll2003", "c")})
    second = {"data": reads(news, "/scratch/jane/conll", "d"), "encoder": reads(mlm, "/scratch/jane/tweet_mlm", "e")}
    conll_mlm = stage("pretrain/mlm", "conll_mlm", 4, second)
    tmn = stage("data_prep/tmn", "tmn", 5, {"input": reads(None, "/scratch/jane/twitter2015", "f")})
    last = {"data": reads(tmn, "/scratch/jane/tmn", "6"), "encoder": reads(conll_mlm, "/scratch/jane/conll_mlm", "7")}
    ner = stage("finetune/ner", "ner", 8, last)
    ner["settings"] |= {
        "head": "softmax",
        "scheme": "BIO",
        "image_words": "given",
        "optimizer": {"learning_rate": 5e-5},
    }
    mlm["facts"] = {"validation": {"loss": 2.5, "perplexity": 12.18249}, "rows_seen": 123456}
    return {"mlm": mlm, "ner": ner}


@pytest.fixture
def scores() -> dict:
    def convention(f1: float) -> dict:
        of_type = {"precision": 0.5, "recall": 0.25, "f1": f1, "gold": 4000, "predicted": 20, "correct": 10}
        return {"micro": of_type, "by_type": {"PER": of_type, "MISC": of_type}}

    def split(start: float) -> dict:
        return {
            "conlleval": convention(start + 0.01234567),
            "strict": convention(start),
            "confusion": {"labels": [], "matrix": []},
            "words_truncated": 0,
            "tweets": 9,
        }

    return {"validation": split(0.6), "test": split(0.7)}


def snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def table_rows(card: str, section: str) -> list[list[str]]:
    text = card.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("|--")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_the_chain_is_read_in_the_order_it_ran(manifests):
    chain = read_chain(manifests["ner"])
    assert [(s.name, s.artefact) for s in chain] == [
        ("data_prep/clean", "corpus"),
        ("pretrain/mlm", "tweet_mlm"),
        ("data_prep/conll2003", "conll"),
        ("pretrain/mlm", "conll_mlm"),
        ("data_prep/tmn", "tmn"),
        ("finetune/ner", "ner"),
    ]
    assert [s.digest for s in chain] == [d and d * 64 for d in ("b", "e", "d", "7", "6", None)]
    assert base_model(chain) == "google/bert_uncased_L-2_H-128_A-2"


def test_a_stage_that_two_others_read_is_told_once(manifests):
    ner = manifests["ner"]
    ner["inputs"]["more_data"] = copy.deepcopy(ner["inputs"]["data"])
    assert len(read_chain(ner)) == 6


def test_header(manifests, scores):
    card = ModelCard(render_model_card(manifests["ner"], scores, repo_id="lab/tweet-ner", license="mit"))
    data = card.data
    assert (data.license, data.language, data.library_name) == ("mit", "en", "transformers")
    assert (data.pipeline_tag, data.base_model) == ("token-classification", "google/bert_uncased_L-2_H-128_A-2")
    assert data.model_name == "tweet-ner"
    assert {"named-entity-recognition", "multimodal"} <= set(data.tags)
    found = {(r.dataset_split, r.metric_args["convention"], r.metric_type): r.metric_value for r in data.eval_results}
    assert len(found) == 2 * 2 * 3
    assert found["test", "conlleval", "f1"] == 0.7123
    assert found["test", "strict", "f1"] == 0.7
    assert found["validation", "strict", "f1"] == 0.6
    assert found["test", "strict", "precision"] == 0.5
    result = data.eval_results[0]
    assert (result.dataset_name, result.dataset_args) == ("tmn", {"sha256": "6" * 64})
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()


def test_body_of_a_recognizer(manifests, scores):
    card = render_model_card(manifests["ner"], scores, repo_id="lab/tweet-ner")
    rows = table_rows(card, "Data and chain")[1:]
    assert len(rows) == 6
    assert {len(row) for row in rows} == {8}
    assert rows[0][:6] == [
        "`data_prep/clean`",
        "corpus `bbbbbbbbbbbb`",
        "raw posts `aaaaaaaaaaaa`",
        "1,000",
        "880",
        "near-duplicate: 100; empty: 20",
    ]
    assert rows[1][2] == f"corpus `bbbbbbbbbbbb`, {HUB_ENCODER}"
    assert rows[5][6].startswith("head = softmax; scheme = BIO; image_words = given; optimizer.learning_rate = 5e-05")
    assert rows[5][7] == "8"

    score_rows = table_rows(card, "Scores")
    assert score_rows[1] == ["PER", "50.00", "25.00", "71.23", "4,000", "20", "10"]  # the test split comes first
    assert card.index("### Test, conlleval") < card.index("### Test, strict") < card.index("### Validation, conlleval")
    times = [row[2] for row in table_rows(card, "Training")[1:]]
    assert times[0] == "1 min 40 s" and times[-1] == "13 min 20 s"
    assert "All stages together: 38 min 20 s." in card
    assert "Test CPU \\| 2 GHz" in card
    for said in ("surveillance", "Reuters", "torch 2.14.1", "f" * 40, "8" * 64, "do not record what made them"):
        assert said in card
    assert "/scratch" not in card and "jane" not in card
    assert "\n\n\n" not in card.partition("# tweet-ner")[2]


def test_settings_of_each_training_stage_are_there_in_full(manifests, scores):
    card = render_model_card(manifests["ner"], scores)
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", card, flags=re.DOTALL)]
    assert [block["seed"] for block in blocks] == [2, 4, 8]
    assert blocks[2]["optimizer"] == {"learning_rate": 5e-5}


def test_card_of_a_tweet_encoder(manifests):
    text = render_model_card(manifests["mlm"], None, repo_id="lab/tweet-encoder")
    card = ModelCard(text)
    assert card.data.pipeline_tag == "fill-mask"
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("perplexity", 12.1825)]
    assert "AutoModelForMaskedLM" in text and "TokenClassification" not in text
    assert "| validation.perplexity | 12.1825 |" in text and "| rows_seen | 123,456 |" in text
    assert "Reuters" not in text  # nothing of CoNLL-2003 is in this one
    assert "finetune.predict" not in text


def test_what_is_not_recorded_is_not_told(manifests):
    last = {"stage": "finetune/ner", "settings": {"output": "ner"}, "inputs": {}}
    text = render_model_card(last, None)
    card = ModelCard(text)
    assert card.data.base_model is None and card.data.eval_results is None
    assert "None recorded." in text and "not recorded" in text
    # an encoder from a folder without a manifest: nothing is known of where it comes from
    manifests["mlm"]["inputs"]["encoder"] = reads(None, "/scratch/jane/bert-tiny", "9")
    text = render_model_card(manifests["mlm"], None)
    assert "base_model" not in text and "bert-tiny `999999999999`" in text


def test_control_demonstration_and_image_words(manifests, scores):
    ner = manifests["ner"]
    card = render_model_card(ner, scores)
    assert "not for use" not in card
    ner["settings"]["image_words"] = "shuffled"
    ner["inputs"]["data"]["manifest"]["facts"] = {"synthetic": True, "image_words_source": "captions by BLIP2"}
    card = render_model_card(ner, scores)
    assert "A control, not for use" in card and "A demonstration, not for use" in card
    assert "Image words: captions by BLIP2." in card
    ner["settings"]["image_words"] = "none"
    card = render_model_card(ner, scores)
    assert "No image words were used." in card and "multimodal" not in card and "image_words = [" not in card


def test_hostile_texts_stay_in_their_cells(manifests, scores):
    posts = manifests["mlm"]["inputs"]["data"]["manifest"]
    posts["rows"]["rejected"] = {"bad | cell\n# heading <script>": 1, "`code`": 2, "unused": 0}
    posts["facts"] = {"token": "hf_" + "q" * 34}
    manifests["mlm"]["facts"] = {"{{ 7 * 7 }}": "hf_" + "q" * 34, "a|b": "c\n---\nd"}
    card = render_model_card(manifests["mlm"], None)
    assert table_rows(card, "Data and chain")[1][5] == "bad \\| cell # heading &lt;script>: 1; 'code': 2"
    assert "{{ 7 * 7 }}" in card
    assert "q" * 34 not in card
    assert {len(row) for row in table_rows(card, "Scores")} == {2}


def test_crf_model_with_its_own_code(manifests, scores):
    manifests["ner"]["settings"]["head"] = "crf"
    config = {"auto_map": {"AutoConfig": "modeling.Config", "AutoModelForTokenClassification": "modeling.Msb"}}
    card = render_model_card(manifests["ner"], scores, repo_id="lab/x", config=config)
    (snippet,) = snippets(card)
    compile(snippet, "card", "exec")
    assert 'AutoModelForTokenClassification.from_pretrained("lab/x", trust_remote_code=True)' in snippet
    assert "pipeline(" not in card
    assert "conditional random field" in card and "crf" in ModelCard(card).data.tags


@pytest.mark.parametrize("image_words", ["given", "none"])
def test_snippets_of_a_recognizer_run(manifests, scores, tmp_path, image_words):
    import torch
    from transformers import BertConfig, BertForTokenClassification

    save_tokenizer(tmp_path)
    torch.manual_seed(0)
    labels = ["O", "B-PER", "I-PER"]
    config = tiny_config() | {"id2label": dict(enumerate(labels))}
    BertForTokenClassification(BertConfig(**config)).save_pretrained(tmp_path)
    manifests["ner"]["settings"]["image_words"] = image_words
    pipeline_snippet, own_snippet = snippets(render_model_card(manifests["ner"], scores, repo_id=str(tmp_path)))
    assert run_snippet(pipeline_snippet).startswith("[")
    lines = [line.split() for line in run_snippet(own_snippet).splitlines()]
    assert [word for word, _ in lines] == ["Jordan", "at", "last"]
    assert {label for _, label in lines} <= set(labels)


def test_snippet_of_an_encoder_runs(manifests, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    save_tokenizer(tmp_path)
    BertForMaskedLM(BertConfig(**tiny_config())).save_pretrained(tmp_path)
    (snippet,) = snippets(render_model_card(manifests["mlm"], None, repo_id=str(tmp_path)))
    assert "token_str" in run_snippet(snippet)


VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] jordan at la ##st basketball score ##board just landed in new".split()


def save_tokenizer(folder) -> None:
    """A BERT tokenizer in which "last" and "scoreboard" are two pieces each."""
    from transformers import BertTokenizerFast

    BertTokenizerFast(vocab={piece: place for place, piece in enumerate(VOCABULARY)}).save_pretrained(folder)


def tiny_config() -> dict:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return {"vocab_size": len(VOCABULARY), "max_position_embeddings": 32, **sizes}


def run_snippet(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "card", "exec"), {})
    return printed.getvalue()
