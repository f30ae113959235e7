"""The models on word vectors: their sizes by the paper's tables, what padding changes (nothing), and that they come back."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from finetune.systems.bilstm_crf import BiLSTMCRFConfig, BiLSTMCRFForTokenClassification
from finetune.systems.cwi import CWIConfig, CWIForTokenClassification, same
from finetune.systems.lstm_cnn_crf import LSTMCNNCRFConfig, LSTMCNNCRFForTokenClassification
from finetune.tagger import WordTagger
from finetune.tags import TagScheme
from finetune.word_input import WordFormat, WordReader
from finetune.word_model import BiLSTM
from launch.loop import OptimizerSettings, make_optimizer

TWEETS = [["saw", "jordans", "in", "paris"], ["maria"], [], ["a", "paris", "friend", "of", "acme", "in", "a"]]
IMAGES = [["sea"], [], ["court", "golden retriever"], ["a face by the sea"]]
TAGS = [["O", "B-PER", "O", "B-LOC"], ["B-PER"], [], ["O", "B-LOC", "O", "O", "B-ORG", "O", "O"]]
ROWS = [{"tokens": tweet, "image_words": image} for tweet, image in zip(TWEETS, IMAGES, strict=True)] * 2
WORDS = sorted({word for tweet in TWEETS for word in tweet})
LAYOUTS = {
    "cwi": WordFormat(),
    "bilstm_crf": WordFormat(characters=0, image_words=0),
    "lstm_cnn_crf": WordFormat(image_words=0),
}
CWIS = {
    "cwi": {},
    "cwi, ReLU": {"regularised": False},
    "cwi + sequence": {"attention": "sequence"},
    "cwi + modality": {"attention": "modality"},
}
SYSTEMS = [*CWIS, "bilstm_crf", "lstm_cnn_crf"]


def make_reader(system: str) -> WordReader:
    return WordReader.of(WORDS, ROWS, LAYOUTS[system.split()[0].rstrip(",")])


def make_model(system: str, scheme: str = "BIO"):
    torch.manual_seed(5)
    options = make_reader(system).sizes | {"vector_size": 12, "scheme": scheme}
    if system == "bilstm_crf":
        return BiLSTMCRFForTokenClassification(BiLSTMCRFConfig(hidden_size=8, **options)).eval()
    if system == "lstm_cnn_crf":
        return LSTMCNNCRFForTokenClassification(LSTMCNNCRFConfig(**options)).eval()
    return CWIForTokenClassification(CWIConfig(**CWIS[system], **options)).eval()


def make_batch(system: str, tweets: list[int]) -> dict[str, torch.Tensor]:
    inputs = make_reader(system).read(TWEETS, IMAGES)
    batch = inputs.batch(tweets, [TagScheme().encode(TAGS[tweet]) for tweet in tweets])
    del batch["weight"]
    return batch


def logits_of(model, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**{name: x for name, x in batch.items() if name not in ("word_mask_BW", "labels_BW")}).logits


def lstm_size(inputs: int, hidden: int) -> int:
    """Weights of one direction. torch has two biases for each gate, where Keras has one."""
    return 4 * hidden * (inputs + hidden + 2)


def test_parameters_of_cwi_are_those_of_tables_5_to_8():
    config = CWIConfig(words=1002, vector_size=200 + 300, characters=102, image_words=52)
    model = CWIForTokenClassification(config)
    expected = {
        "words": 1002 * 500,  # 19, 20
        "character_features.embedding": 102 * 40,  # 2
        "character_features.conv3": 2 * 40 * 16 + 16,
        "character_features.conv5": 3 * 16 * 32 + 32,
        "character_features.conv7": 4 * 32 * 64 + 64,
        "character_features.conv9": 4 * 64 * 64 + 64,
        "character_features.conv11": 3 * 64 * 32 + 32,
        "character_features.conv13": 2 * 32 * 16 + 16,
        "character_features.norm17": 2 * 16,
        "word_lstm.forwards": lstm_size(500, 100),  # 22
        "word_lstm.backwards": lstm_size(500, 100),  # 23
        "image_features.embedding": 52 * 50,  # 26
        "image_features.lstm": lstm_size(50, 50),  # 27
        "fusion_lstm.forwards": lstm_size(40 * 16 + 200 + 50, 100),  # 29
        "fusion_lstm.backwards": lstm_size(40 * 16 + 200 + 50, 100),  # 30
        "classifier": 200 * 9 + 9,  # 32: scores of 9 classes
        "crf": 9 * 9 + 2 * 9,
    }
    sizes = {name: sum(p.numel() for p in model.get_submodule(name).parameters()) for name in expected}
    assert sizes == expected
    assert sum(expected.values()) == sum(p.numel() for p in model.parameters())


def test_parameters_of_attention_and_of_table_10():
    plain = CWIForTokenClassification(CWIConfig())
    count = lambda **options: sum(p.numel() for p in CWIForTokenClassification(CWIConfig(**options)).parameters())  # noqa: E731
    size = sum(p.numel() for p in plain.parameters())
    assert count(attention="sequence") - size == 200 * 200 + 200 + 200 * 9  # W and b of equation 14, wider classifier
    projections = (640 + 1) * 200 + (200 + 1) * 200 + (50 + 1) * 200
    assert count(attention="modality") - size == projections + 200 * 201 - 2 * 4 * 100 * (890 - 200)
    assert count(regularised=False) - size == -2 * 16


def test_parameters_of_the_baselines():
    model = BiLSTMCRFForTokenClassification(BiLSTMCRFConfig(words=12, vector_size=50))
    assert sum(p.numel() for p in model.lstm.parameters()) == 2 * lstm_size(50, 300)
    model = LSTMCNNCRFForTokenClassification(LSTMCNNCRFConfig(words=12, vector_size=100, characters=80))
    assert model.character_embedding.weight.shape == (80, 30)
    assert model.convolution.weight.shape == (30, 30, 3)
    assert sum(p.numel() for p in model.lstm.parameters()) == 2 * lstm_size(100 + 30, 200)


def test_shapes_of_the_character_layers():
    features = make_model("cwi").character_features
    shapes = {}
    for name, layer in features.named_children():
        layer.register_forward_hook(lambda _, __, y, name=name: shapes.update({name: tuple(y.shape[1:])}))
    assert features(torch.ones(3, 40, dtype=torch.long), torch.tensor([[0, 1, 2, 2]])).shape == (1, 4, 640)
    assert shapes == {
        "embedding": (40, 40),
        "conv3": (16, 40),
        "conv5": (32, 20),
        "conv7": (64, 10),
        "conv9": (64, 5),
        "conv11": (32, 10),
        "conv13": (16, 20),
        "dropout15": (16, 40),
        "activation16": (16, 40),
        "norm17": (16, 40),
    }


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_convolutions_are_padded_as_in_keras(kernel):
    """'same': (k - 1) // 2 zeros before, k // 2 behind."""
    conv, x_NKC = torch.nn.Conv1d(3, 5, kernel), torch.randn(2, 3, 7)
    wide = functional.pad(x_NKC, ((kernel - 1) // 2, kernel // 2))
    columns = [(wide[:, None, :, c : c + kernel] * conv.weight).sum(dim=(2, 3)) + conv.bias for c in range(7)]
    torch.testing.assert_close(same(conv, x_NKC), torch.stack(columns, dim=2), rtol=1e-4, atol=1e-5)


def test_a_bilstm_is_torchs_over_packed_sequences():
    torch.manual_seed(1)
    mine, theirs = BiLSTM(6, 4), torch.nn.LSTM(6, 4, batch_first=True, bidirectional=True)
    for direction, suffix in ((mine.forwards, ""), (mine.backwards, "_reverse")):
        for name, parameter in direction.named_parameters():
            getattr(theirs, name + suffix).data.copy_(parameter.data)
    x_BWD, words_B = torch.randn(3, 5, 6), torch.tensor([5, 2, 1])
    mask_BW = torch.arange(5) < words_B[:, None]
    packed, _ = theirs(pack_padded_sequence(x_BWD, words_B, batch_first=True))
    expected_BWH, _ = pad_packed_sequence(packed, batch_first=True)
    found_BWH = mine(x_BWD, mask_BW) * mask_BW[:, :, None]
    torch.testing.assert_close(found_BWH, expected_BWH)
    weights_BWH = torch.randn(3, 5, 8)
    (found_BWH * weights_BWH).sum().backward()
    (expected_BWH * weights_BWH).sum().backward()
    torch.testing.assert_close(mine.backwards.weight_ih_l0.grad, theirs.weight_ih_l0_reverse.grad)
    torch.testing.assert_close(mine.forwards.weight_hh_l0.grad, theirs.weight_hh_l0.grad)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_tweet_has_the_same_scores_alone_and_in_a_batch(system):
    model = make_model(system)
    together_BWL = logits_of(model, make_batch(system, [0, 1, 2, 3]))
    assert together_BWL.shape == (4, 7, 9) and together_BWL.isfinite().all()
    for tweet, words in enumerate(TWEETS):
        alone_WL = logits_of(model, make_batch(system, [tweet]))[0, : len(words)]
        torch.testing.assert_close(together_BWL[tweet, : len(words)], alone_WL, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_word_is_read_with_all_its_tweet(system):
    """Scores of the last word hang on the first word, and those of the first on the last; so do characters and image."""
    model, batch = make_model(system), make_batch(system, [0])
    plain_WL = logits_of(model, batch)[0]
    for place, other in ((0, 3), (3, 0)):
        changed = batch | {"word_ids_BW": batch["word_ids_BW"].clone()}
        changed["word_ids_BW"][0, place] = 1
        assert (logits_of(model, changed)[0, other] - plain_WL[other]).abs().max() > 1e-6
    for name in ("character_ids_UC", "image_word_ids_BI"):
        if name in batch:
            changed = batch | {name: batch[name].clone()}
            changed[name][:, 0] = 1
            assert (logits_of(model, changed)[0] - plain_WL).abs().max() > 1e-6, name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("system", ["cwi, ReLU", "cwi", "lstm_cnn_crf"])
def test_characters_of_distinct_words_are_those_of_each_occurrence(system, training):
    model, batch = make_model(system).train(training), make_batch(system, [0, 3])
    for module in model.modules():
        if type(module).__name__ in ("Dropout", "TargetedDropout"):
            module.eval()
    spelling_BW = batch["spelling_BW"]
    assert len(batch["character_ids_UC"]) < spelling_BW.numel()
    one_by_one = {
        "character_ids_UC": batch["character_ids_UC"][spelling_BW.flatten()],
        "spelling_BW": torch.arange(spelling_BW.numel()).view_as(spelling_BW),
    }
    gradients = []
    for inputs in (batch, batch | one_by_one):
        model.zero_grad()
        inputs = {name: x for name, x in inputs.items() if name not in ("word_mask_BW", "labels_BW")}
        loss = WordTagger(model)(batch["word_mask_BW"], batch["labels_BW"], **inputs)
        loss.backward()
        gradients.append([loss] + [p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_optimizer_moves_everything(system):
    tagger = WordTagger(make_model(system)).train()
    optimizer = make_optimizer(tagger, OptimizerSettings(learning_rate=0.01, weight_decay=0))
    before = {name: p.detach().clone() for name, p in tagger.named_parameters()}
    for _ in range(4):  # of several, as dropout may have taken all of something
        optimizer.zero_grad()
        tagger(**make_batch(system, [0, 1, 2, 3])).backward()
        optimizer.step()
    still = [name for name, p in tagger.named_parameters() if not (p - before[name]).abs().max() > 1e-3]
    assert still == []
    assert not tagger.model.words.weight[0].any()  # padding stays zero


@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_saved_model_comes_back_bit_for_bit(system, scheme, tmp_path):
    model = make_model(system, scheme)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys() == load_file(tmp_path / "model.safetensors").keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [loaded.config.id2label[i] for i in range(len(loaded.config.id2label))] == TagScheme(scheme).labels
    batch = make_batch(system, [0, 3])
    assert torch.equal(logits_of(loaded.eval(), batch), logits_of(model, batch))


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_a_checkpoint_lacks_is_drawn(system, tmp_path):
    model = make_model(system)
    kept = {name: x for name, x in model.state_dict().items() if "lstm" not in name and not name.startswith("crf.")}
    model.save_pretrained(tmp_path, state_dict=kept)
    loaded = type(model).from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        assert tensor.float().isfinite().all(), name
        assert name not in kept or torch.equal(tensor, kept[name]), name
    assert torch.equal(loaded.crf.allowed_transitions, model.crf.allowed_transitions)
    lstm = next(module for module in loaded.modules() if isinstance(module, torch.nn.LSTM))
    gates = lstm.bias_ih_l0.view(4, -1)
    assert (gates[1] == 1).all() and not gates[[0, 2, 3]].any()  # the forget gate is open
    recurrent = lstm.weight_hh_l0.chunk(4)[0]
    torch.testing.assert_close(recurrent @ recurrent.T, torch.eye(len(recurrent)), rtol=0, atol=1e-4)


def test_word_vectors_are_put_where_the_reader_finds_them():
    model, reader = make_model("cwi"), make_reader("cwi")
    unknown = model.words.weight[1].clone()
    vectors_VD = np.random.default_rng(1).normal(size=(len(WORDS), 12)).astype(np.float32)
    model.set_word_vectors(vectors_VD)
    inputs = reader.read([["paris", "PARIS", "nowhere"]], [[]])
    rows = model.words(inputs.batch([0])["word_ids_BW"])[0]
    paris = torch.from_numpy(vectors_VD[WORDS.index("paris")])
    assert torch.equal(rows, torch.stack([paris, paris, unknown]))
    assert not model.words.weight[0].any()


@pytest.mark.parametrize(
    "options, problem", [({"attention": "words"}, "not one of"), ({"word_length": 30}, "multiple of 8")]
)
def test_cwi_refuses(options, problem):
    with pytest.raises(ValueError, match=problem):
        CWIConfig(**options)
