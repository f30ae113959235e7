"""MSB with either head: what it computes, what it is made of, what of it is trained, and that it comes back whole."""

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import batch_of
from torch import nn
from transformers import AlbertConfig, AlbertForTokenClassification, AutoModel, AutoModelForTokenClassification

from finetune.features import InputFormat, encode
from finetune.ner import NERSettings, build_model, check_encoder, learning_rate_by_name
from finetune.systems.msb import MSBConfig, MSBForTokenClassification
from finetune.tagger import PieceTagger
from finetune.tags import TagScheme
from launch.errors import InputError
from launch.loop import make_optimizer

HEADS = ("softmax", "crf")
TWEETS = [["saw", "jordans", "in", "paris"], ["maria"], [], ["a", "\u200d", "friend", "of", "acme", "corp", "!"]]
IMAGE_WORDS = [["sea"], [], ["court"], ["a", "face"]]
TAGS = [["O", "B-PER", "O", "B-LOC"], ["B-PER"], [], ["O", "O", "O", "O", "B-ORG", "I-ORG", "O"]]
LAYOUT = InputFormat(32, 8)


@pytest.fixture
def settings(encoder) -> NERSettings:
    return NERSettings(output=Path("out"), data=Path("data"), encoder=str(encoder), input=LAYOUT)


def make_tagger(settings: NERSettings, scheme: str = "BIO") -> PieceTagger:
    torch.manual_seed(7)
    model, _ = build_model(settings, TagScheme(scheme))
    if settings.head == "crf":
        torch.nn.init.normal_(model.crf.transitions)
    return PieceTagger(model).eval()


def make_batch(tokenizer, tweets: list[int], scheme: str = "BIO") -> dict[str, torch.Tensor]:
    encoded = encode([TWEETS[i] for i in tweets], [IMAGE_WORDS[i] for i in tweets], tokenizer, LAYOUT)
    batch = batch_of(encoded, [TagScheme(scheme).encode(TAGS[i]) for i in tweets], tokenizer.pad_token_id)
    del batch["weight"]
    return batch


def emissions_of(tagger: PieceTagger, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return tagger.emissions(**{name: x for name, x in batch.items() if name not in ("word_mask_BW", "labels_BW")})


def plain_emissions(tagger: PieceTagger, tokenizer, tweet: int) -> torch.Tensor:
    """Scores [W, L] of one tweet, piece by piece, as the definition says."""
    words, image = [], tokenizer(", ".join(IMAGE_WORDS[tweet]), add_special_tokens=False)["input_ids"]
    pieces, places = [tokenizer.cls_token_id], []
    for word in TWEETS[tweet]:
        places.append(len(pieces))
        pieces += tokenizer(word, add_special_tokens=False)["input_ids"] or [tokenizer.unk_token_id]
    pieces.append(tokenizer.sep_token_id)
    types = [0] * len(pieces)
    if image:
        pieces += [*image, tokenizer.sep_token_id]
        types += [1] * (len(image) + 1)
    logits = tagger.model(input_ids=torch.tensor([pieces]), token_type_ids=torch.tensor([types])).logits[0]
    words = [logits[place] for place in places]
    return torch.stack(words) if words else logits[:0]


@pytest.mark.parametrize("scheme, labels", [("BIO", 9), ("BIOES", 17)])
@pytest.mark.parametrize("head", HEADS)
def test_loss_equals_plain_computation(settings, tokenizer, head, scheme, labels):
    tagger = make_tagger(replace(settings, head=head), scheme)
    batch = make_batch(tokenizer, [0, 1, 2, 3], scheme)
    emissions_BWL = emissions_of(tagger, batch)
    assert emissions_BWL.shape == (4, 7, labels)
    expected = 0.0
    for tweet, tags in enumerate(TAGS):
        emissions_WL = plain_emissions(tagger, tokenizer, tweet)
        # Padding to the longest tweet changes nothing, and each word is scored at its first piece.
        torch.testing.assert_close(emissions_BWL[tweet, : len(tags)], emissions_WL, rtol=1e-4, atol=1e-5)
        ids = TagScheme(scheme).encode(tags)
        if tagger.has_crf and ids:
            expected += tagger.model.crf(emissions_WL[None], torch.tensor([ids]))[0]  # test_crf.py enumerates paths
        else:
            expected -= sum(emissions_WL.log_softmax(1)[word, label] for word, label in enumerate(ids))
    torch.testing.assert_close(tagger(**batch), expected, rtol=1e-4, atol=1e-4)
    log_p_B = tagger.log_probability(emissions_BWL, batch["word_mask_BW"], batch["labels_BW"])
    torch.testing.assert_close(-log_p_B.sum(), expected, rtol=1e-4, atol=1e-4)
    assert log_p_B[2] == 0


@pytest.mark.parametrize("head", HEADS)
def test_decoding(settings, tokenizer, head):
    tagger = make_tagger(replace(settings, head=head))
    batch = make_batch(tokenizer, [0, 1, 2, 3])
    found = tagger.decode(emissions_of(tagger, batch), batch["word_mask_BW"])
    assert [len(ids) for ids in found] == [4, 1, 0, 7]
    for tweet, ids in enumerate(found):
        emissions_WL = plain_emissions(tagger, tokenizer, tweet)
        if head == "softmax":
            assert ids == emissions_WL.argmax(1).tolist()
        elif ids:
            assert ids == tagger.model.crf.decode(emissions_WL[None])[0]


def test_softmax_loss_ignores_what_stands_at_padding(settings, tokenizer):
    tagger = make_tagger(replace(settings, head="softmax"))
    batch = make_batch(tokenizer, [0, 1])
    loss = tagger(**batch)
    batch["labels_BW"][1, 1:] = 5
    assert torch.equal(tagger(**batch), loss)


@pytest.mark.parametrize("head", HEADS)
def test_the_encoders_weights_are_loaded_and_only_the_head_is_new(settings, encoder, head):
    model, new = build_model(replace(settings, head=head), TagScheme())
    stored = load_file(encoder / "model.safetensors")
    mine = model.base_model.state_dict()
    assert len(mine) > 30
    for name, tensor in mine.items():
        assert torch.equal(tensor, stored[f"bert.{name}"]), name
    names = {name for name, _ in model.named_parameters()}
    in_head = {name for name in names if name.startswith(("classifier.", "crf."))}
    assert set(new) == in_head
    assert len(in_head) == (5 if head == "crf" else 2)
    assert len(names) == len(mine) + len(in_head)  # no pooler, which nothing would train


@pytest.mark.parametrize("head", HEADS)
def test_dropout_setting(settings, head):
    model, _ = build_model(replace(settings, head=head, dropout=0.375), TagScheme())
    rates = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.375}
    assert model.base_model.config.attention_probs_dropout_prob == 0.375
    model, _ = build_model(replace(settings, head=head), TagScheme())
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}


def test_learning_rates(settings):
    settings = replace(settings, head="crf", head_learning_rate=0.5)
    model, _ = build_model(settings, TagScheme())
    names = [name for name, _ in PieceTagger(model).named_parameters()]
    rate_of = learning_rate_by_name(settings, model)
    fast = [name for name in names if rate_of(name) == 0.5]
    assert sorted(fast) == [
        "model.classifier.bias",
        "model.classifier.weight",
        "model.crf.end_transitions",
        "model.crf.start_transitions",
        "model.crf.transitions",
    ]
    assert {rate_of(name) for name in names if name not in fast} == {settings.optimizer.learning_rate}


def test_learning_rates_decay_from_layer_to_layer(settings):
    settings = replace(settings, layer_decay=0.5)
    model, _ = build_model(settings, TagScheme())
    rate_of, rate = learning_rate_by_name(settings, model), settings.optimizer.learning_rate
    layers = model.base_model.config.num_hidden_layers
    assert rate_of(f"model.encoder.encoder.layer.{layers - 1}.output.dense.weight") == rate
    assert rate_of("model.bert.encoder.layer.0.attention.self.key.bias") == rate * 0.5 ** (layers - 1)
    assert rate_of("model.bert.embeddings.LayerNorm.weight") == rate * 0.5**layers
    assert rate_of("model.classifier.weight") == settings.head_learning_rate
    for wrong in (0.0, -0.8, 1.5):
        with pytest.raises(ValueError, match="layer_decay"):
            replace(settings, layer_decay=wrong)
    with pytest.raises(ValueError, match="dropout"):
        replace(settings, dropout=1.0)


def test_layers_without_numbers_have_no_rates_of_their_own(settings):
    albert = AlbertForTokenClassification(
        AlbertConfig(vocab_size=30, embedding_size=8, hidden_size=8, num_attention_heads=2, intermediate_size=8)
    )
    assert learning_rate_by_name(settings, albert)("model.albert.embeddings.LayerNorm.weight") > 0
    with pytest.raises(InputError, match="--layer_decay cannot be taken"):
        learning_rate_by_name(replace(settings, layer_decay=0.9), albert)


@pytest.mark.parametrize("head", HEADS)
def test_the_optimizer_moves_everything_at_its_own_rate(settings, tokenizer, head):
    """AdamW's first step is as long as the learning rate, wherever there is a gradient."""
    settings = replace(settings, head=head, head_learning_rate=0.05)
    tagger = make_tagger(settings).train()
    rate_of = learning_rate_by_name(settings, tagger.model)
    optimizer = make_optimizer(tagger, settings.optimizer, rate_of)
    before = {name: parameter.detach().clone() for name, parameter in tagger.named_parameters()}
    tagger(**make_batch(tokenizer, [0, 1, 3])).backward()
    optimizer.step()
    for name, parameter in tagger.named_parameters():
        moved = (parameter - before[name]).abs().max().item()
        if name.endswith("key.bias"):
            continue  # the softmax of attention does not depend on it: its gradient is rounding
        assert moved == pytest.approx(rate_of(name), rel=0.1), name
    if head == "crf":
        transitions, moved = tagger.model.crf.transitions, before["model.crf.transitions"]
        changed = (transitions - moved).abs() > 0.04
        assert changed[tagger.model.crf.allowed_transitions].all()  # every transition that may be taken
        assert not changed[~tagger.model.crf.allowed_transitions].any()


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
def test_a_saved_model_with_a_crf_comes_back_whole(settings, tmp_path, scheme):
    """No parameter is drawn anew: transformers does that to what it thinks the checkpoint lacks."""
    model = make_tagger(replace(settings, head="crf"), scheme).model
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    loaded, info = MSBForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys() == load_file(tmp_path / "model.safetensors").keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [loaded.config.id2label[i] for i in range(len(loaded.config.id2label))] == TagScheme(scheme).labels
    assert loaded.config.msb_scheme == loaded.config.scheme == scheme
    assert loaded.config.msb_input == asdict(LAYOUT)
    assert not torch.equal(loaded.crf.allowed_transitions, torch.ones_like(loaded.crf.allowed_transitions))


def test_a_checkpoint_without_a_crf_gets_a_new_one(settings, tmp_path):
    """What is missing is initialised, constraints included, though models are built without values first."""
    model = make_tagger(replace(settings, head="crf")).model
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("crf.")}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = MSBForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.partition(".")[0] for name in info["missing_keys"]} == {"crf"}
    assert 0 < loaded.crf.transitions.abs().max() <= 0.1
    assert torch.equal(loaded.crf.allowed_transitions, model.crf.allowed_transitions)
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)


def test_a_saved_softmax_model_is_a_stock_model(settings, tmp_path):
    model = make_tagger(replace(settings, head="softmax")).model
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded).__module__.startswith("transformers.models.bert")
    assert not any(info.values())
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    assert AutoModel.from_pretrained(tmp_path).config.msb_scheme == "BIO"


def gated_model() -> MSBForTokenClassification:
    torch.manual_seed(7)
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    return MSBForTokenClassification(MSBConfig({"model_type": "bert", **sizes}, image_gate=True)).eval()


def gated_batch() -> dict[str, torch.Tensor]:
    """Two tweets of four pieces; the first has two of the image behind them, the second none, but padding."""
    return {
        "input_ids": torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2]),
        "token_type_ids": torch.tensor([[0] * 4 + [1] * 2, [0] * 6]),
    }


def test_a_gate_multiplies_the_image_s_pieces_by_what_both_segments_say():
    model, batch = gated_model(), gated_batch()
    pieces_BTH = model.encoder.get_input_embeddings()(batch["input_ids"])
    assert torch.allclose(model.embedded(**batch, shape_ids=None)[0, 4:], pieces_BTH[0, 4:] / (1 + math.exp(-2)))
    with torch.no_grad():
        nn.init.normal_(model.image_gate.relevance)
    text, image = pieces_BTH[0, :4].mean(dim=0), pieces_BTH[0, 4:].mean(dim=0)
    gate = torch.sigmoid(text @ model.image_gate.relevance @ image + 2)
    gated_BTH = model.embedded(**batch, shape_ids=None)
    torch.testing.assert_close(gated_BTH[0, 4:], gate * pieces_BTH[0, 4:])
    assert torch.equal(gated_BTH[0, :4], pieces_BTH[0, :4]) and torch.equal(gated_BTH[1], pieces_BTH[1])
    model(**batch).logits.square().sum().backward()
    assert model.image_gate.relevance.grad.any() and model.image_gate.openness.grad != 0


def test_a_closed_gate_is_no_image():
    """The pieces of the image are then all alike: which they are makes no difference."""
    model, batch = gated_model(), gated_batch()
    other = batch | {"input_ids": torch.tensor([[1, 2, 3, 4, 20, 30], [7, 8, 9, 10, 0, 0]])}
    assert not torch.allclose(model(**batch).logits, model(**other).logits)
    with torch.no_grad():
        model.image_gate.openness.fill_(-100.0)
    torch.testing.assert_close(model(**batch).logits, model(**other).logits)


def test_a_gate_needs_image_words_and_a_crf(settings):
    for wrong, told in (({"head": "softmax"}, "Give --head crf"), ({"image_words": "none"}, "needs image words")):
        with pytest.raises(InputError, match=told):
            check_encoder(replace(settings, **{"head": "crf", "image_gate": True} | wrong))
    model, new = build_model(replace(settings, head="crf", image_gate=True), TagScheme())
    assert {"image_gate.relevance", "image_gate.openness"} < set(new)
    assert learning_rate_by_name(settings, model)("model.image_gate.relevance") == settings.head_learning_rate


def test_a_gate_is_saved_with_the_model(tmp_path):
    model = gated_model()
    with torch.no_grad():
        nn.init.normal_(model.image_gate.relevance)
    model.save_pretrained(tmp_path)
    again = MSBForTokenClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(again.image_gate.relevance, model.image_gate.relevance)
    assert torch.equal(again(**gated_batch()).logits, model(**gated_batch()).logits)
