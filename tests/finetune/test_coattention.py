"""BiLSTM+CNN+Co-Attention: its equations against a plain version, its mask, and the stage that trains it."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from tiny_ner import ambiguous_tweet, make_ner, named_tweet
from transformers import AutoModelForTokenClassification

from data_prep.layout import read_ner
from data_prep.region_file import REGION_SIZE, REGIONS, RegionFile, write_regions
from finetune import word_ner
from finetune.recognizer import Recognizer
from finetune.region_input import RegionInputs
from finetune.systems.coattention import (
    CharacterFeatures,
    CoAttention,
    CoAttentionConfig,
    CoAttentionForTokenClassification,
    GuidedAttention,
)
from finetune.tagger import WordTagger
from finetune.tags import TagScheme
from finetune.word_input import WordFormat, WordReader
from launch.loop import OptimizerSettings, make_optimizer
from launch.paper_tables import table_4_row

TWEETS = [["saw", "jordans", "in", "paris"], ["maria"], [], ["a", "paris", "friend", "of", "acme", "in", "a"]]
TAGS = [["O", "B-PER", "O", "B-LOC"], ["B-PER"], [], ["O", "B-LOC", "O", "O", "B-ORG", "O", "O"]]
IMAGE_IDS = ["7", None, "9", "lost"]
WORDS = sorted({word for tweet in TWEETS for word in tweet})
NAME = "BiLSTM+CNN+Co-Attention"
PLAIN = ["--run.precision", "fp32", "--seed", "3", "--optimizer.learning_rate", "3e-3", "--dropout", "0"]


def draw_regions(*image_ids: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(REGIONS, REGION_SIZE, generator=generator).half() for name in image_ids}


@pytest.fixture
def region_file(tmp_path):
    write_regions(tmp_path / "some.safetensors", draw_regions("7", "9", "unused"), "vgg16", "some weights")
    return RegionFile(tmp_path / "some.safetensors")


@pytest.fixture
def inputs(region_file):
    rows = [{"tokens": tweet, "image_words": []} for tweet in TWEETS] * 2
    reader = WordReader.of(WORDS, rows, WordFormat(image_words=0))
    return RegionInputs(reader.read(TWEETS, [[]] * 4), IMAGE_IDS, region_file)


@pytest.fixture
def model(inputs):
    torch.manual_seed(5)
    options = {"words": len(WORDS) + 2, "characters": 40, "vector_size": 12}
    return CoAttentionForTokenClassification(CoAttentionConfig(**options)).eval()


def logits_of(model, batch, **changed):
    batch = batch | changed
    return model(**{name: x for name, x in batch.items() if name != "word_mask_BW"}).logits


def plain_attention(layer: GuidedAttention, guide: torch.Tensor, things: list[torch.Tensor]) -> torch.Tensor:
    scores = []
    for thing in things:
        z = [
            math.tanh(float(thing @ row + guide @ other + bias))
            for row, other, bias in zip(layer.thing.weight, layer.guide.weight, layer.guide.bias, strict=True)
        ]
        scores.append(math.exp(sum(a * float(b) for a, b in zip(z, layer.score.weight[0], strict=True))))
    return sum(score / sum(scores) * thing for score, thing in zip(scores, things, strict=True))


@torch.no_grad()
def test_co_attention_is_its_equations():
    """Word by word and region by region, in double precision."""
    torch.manual_seed(1)
    size = 6
    layer = CoAttention(10, size).double()
    h_BWD, regions_BRV = torch.randn(2, 4, size).double(), torch.randn(2, 3, 10).double()
    words_B = [4, 2]
    mask_BW = torch.arange(4) < torch.tensor(words_B)[:, None]
    u_BWD = layer(h_BWD, mask_BW, regions_BRV)
    for tweet, words in enumerate(words_B):
        h = list(h_BWD[tweet, :words])
        v = [torch.tanh(layer.project.weight @ raw + layer.project.bias) for raw in regions_BRV[tweet]]
        for t in range(words):
            seen = plain_attention(layer.visual_attention, h[t], v)
            read = plain_attention(layer.textual_attention, seen, h)
            image = torch.tanh(layer.fuse_image.weight @ seen + layer.fuse_image.bias)
            text = torch.tanh(layer.fuse_text.weight @ read + layer.fuse_text.bias)
            gate = layer.fusion_gate.weight[0]
            g = torch.sigmoid(gate[:size] @ image + gate[size:] @ text)
            m = g * image + (1 - g) * text
            gate = layer.filtration_gate.weight[0]
            s = torch.sigmoid(gate[:size] @ h[t] + (gate[size:] @ m + layer.filtration_gate.bias))
            u = s * torch.tanh(layer.filtered.weight @ m + layer.filtered.bias)
            torch.testing.assert_close(u_BWD[tweet, t], u[...], rtol=1e-5, atol=1e-6)  # weights are a float32 softmax


def test_what_is_printed_would_not_be_guided_and_this_is():
    torch.manual_seed(1)
    layer = GuidedAttention(6, 5)
    guides_BQD, things_BTD = torch.randn(1, 2, 6), torch.randn(1, 4, 6)
    added = layer(guides_BQD, things_BTD)[0]
    assert (added[0] - added[1]).abs().max() > 1e-3
    w = torch.randn(10)
    weights = []
    for guide in guides_BQD[0]:
        joined = [torch.cat([layer.thing(thing), layer.guide(guide)]).tanh() for thing in things_BTD[0]]
        weights.append(torch.stack([w @ z for z in joined]).softmax(dim=0))
    torch.testing.assert_close(*weights)


@torch.no_grad()
def test_characters_are_windows_of_each_word():
    torch.manual_seed(1)
    layer = CharacterFeatures(9, dropout=0.5).eval()
    torch.nn.init.normal_(layer.embedding.weight)
    layer.embedding.weight[0] = 0.0
    words = [[3, 4, 5, 6, 7], [8], []]
    ids_UC = torch.tensor([word + [0] * (7 - len(word)) for word in words])
    found_UD = layer(ids_UC)
    assert found_UD.shape == (3, 3 * 32) and not found_UD[2].any()
    for place, word in enumerate(words[:2]):
        expected = []
        for convolution, window in zip(layer.convolutions, (2, 3, 4), strict=True):
            x_CE = layer.embedding(torch.tensor(word + [0] * window))
            responses = [
                ((convolution.weight * x_CE[start : start + window].T).sum(dim=(1, 2)) + convolution.bias).tanh()
                for start in range(len(word))
            ]
            expected.append(torch.stack(responses).amax(dim=0))
        torch.testing.assert_close(found_UD[place], torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_a_batch_holds_each_tweets_regions(inputs, region_file):
    batch = inputs.batch([3, 2, 0, 1])
    assert batch["has_image_B"].tolist() == [False, True, True, False]
    assert batch["regions_BRV"].shape == (4, 49, 512) and batch["regions_BRV"].dtype == torch.float32
    assert torch.equal(batch["regions_BRV"][1], region_file.read("9"))
    assert torch.equal(batch["regions_BRV"][2], draw_regions("7")["7"].float())
    assert not batch["regions_BRV"][[0, 3]].any()
    assert inputs.tweets_without == 2 and inputs.lengths == [4, 1, 0, 7]
    assert region_file.source == "vgg16 with some weights"


def test_masked_is_text_alone_to_the_last_bit(model, inputs):
    batch = inputs.batch([0, 1, 2, 3])
    text_BWL = logits_of(model, inputs.text.batch([0, 1, 2, 3]))
    seen_BWL = logits_of(model, batch)
    assert seen_BWL.isfinite().all()
    assert torch.equal(seen_BWL[[1, 3]], text_BWL[[1, 3]])  # without an image, beside tweets with one
    assert (seen_BWL[0] - text_BWL[0]).abs().max() > 1e-3
    nothing_BWL = logits_of(model, batch, has_image_B=torch.zeros(4, dtype=torch.bool))
    assert torch.equal(nothing_BWL, text_BWL)
    for name, parameter in model.named_parameters():  # nor does anything of the image side reach it
        if name.startswith("co_attention."):
            torch.nn.init.normal_(parameter)
    assert torch.equal(logits_of(model, inputs.text.batch([0, 1, 2, 3])), text_BWL)


def test_a_tweet_has_the_same_scores_alone_and_in_a_batch(model, inputs):
    together_BWL = logits_of(model, inputs.batch([0, 1, 2, 3]))
    for tweet, words in enumerate(TWEETS):
        alone_WL = logits_of(model, inputs.batch([tweet]))[0, : len(words)]
        torch.testing.assert_close(together_BWL[tweet, : len(words)], alone_WL, rtol=1e-4, atol=1e-5)


def test_the_optimizer_moves_everything(model, inputs):
    tagger = WordTagger(model).train()
    for module in tagger.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    optimizer = make_optimizer(tagger, OptimizerSettings(learning_rate=0.01, weight_decay=0))
    before = {name: p.detach().clone() for name, p in tagger.named_parameters()}
    labels = [TagScheme().encode(tags) for tags in TAGS]
    for _ in range(4):
        optimizer.zero_grad()
        batch = inputs.batch([0, 1, 2, 3], labels)
        del batch["weight"]
        tagger(**batch).backward()
        optimizer.step()
    still = [name for name, p in tagger.named_parameters() if not (p - before[name]).abs().max() > 1e-3]
    assert still == []


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """Tweets whose image alone tells a person from a place, in some of its regions; and the file of regions.

    Two test tweets and one training tweet have none.
    """
    folder = tmp_path_factory.mktemp("coattention")
    data = make_ner(folder / "data", ambiguous_tweet)
    generator = torch.Generator().manual_seed(1)
    signs = {"LOC": torch.randn(REGION_SIZE, generator=generator), "PER": torch.randn(REGION_SIZE, generator=generator)}
    regions = {}
    for split, without in (("train", 1), ("validation", 0), ("test", 2)):
        for row in read_ner(data, split).to_list()[without:]:
            of_image = 0.1 * torch.randn(REGIONS, REGION_SIZE, generator=generator)
            kind = next(tag[2:] for tag in row["source_tags"] if tag != "O")
            of_image[torch.randperm(REGIONS, generator=generator)[:8]] = signs[kind]
            regions[row["image_id"]] = of_image.half()
    write_regions(folder / "regions.safetensors", regions, "vgg16", "made up")
    return data, folder / "regions.safetensors"


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(pictured, vectors, tmp_path_factory):
    folder, (data, regions) = tmp_path_factory.mktemp("coattention"), pictured
    for name, more in (("seen", ["--regions", str(regions)]), ("masked", [])):
        arguments = ["--system", "coattention", "--vectors", str(vectors), "--data", str(data)]
        output = ["--output", str(folder / name), "--schedule.epochs", "6"]
        assert word_ner.main([*arguments, *output, *PLAIN, *more]) == 0
    return folder


def test_regions_decide_where_the_text_cannot(trained):
    f1 = {
        name: read_json(trained / name / "scores.json")["test"]["strict"]["micro"]["f1"] for name in ("seen", "masked")
    }
    assert f1["seen"] > 0.9
    assert f1["masked"] < 0.8


def test_what_a_run_says_of_its_images(trained):
    seen, masked = (read_json(trained / name / "manifest.json") for name in ("seen", "masked"))
    assert seen["facts"]["system"] == NAME and masked["facts"]["system"] == f"{NAME}, image side masked"
    assert (
        table_4_row(seen["facts"]["system"]) is table_4_row(masked["facts"]["system"]) is table_4_row(NAME) is not None
    )
    without = {name: split["tweets_without_regions"] for name, split in seen["facts"]["data"].items()}
    assert without == {"train": 1, "validation": 0, "test": 2}
    assert "1 of train, 0 of validation, 2 of test" in seen["facts"]["image_side"]
    assert "vgg16 with made up" in seen["facts"]["image_side"] and "text alone" in masked["facts"]["image_side"]
    assert "regions" in seen["inputs"] and "regions" not in masked["inputs"]
    untrained = {name: one["facts"]["parameters"] for name, one in (("seen", seen), ("masked", masked))}
    assert untrained["seen"]["all"] == untrained["masked"]["all"]
    assert untrained["seen"]["trained"] > untrained["masked"]["trained"]
    assert "vgg16 with made up" in (trained / "seen" / "README.md").read_text()
    assert "text alone" in (trained / "masked" / "README.md").read_text()


@pytest.mark.parametrize("name", ["seen", "masked"])
def test_a_recognizer_comes_back_and_reads_text(trained, name):
    recognizer = Recognizer.from_pretrained(trained / name, device="cpu")
    assert not recognizer.reads_image_words
    rows = [json.loads(line) for line in (trained / name / "predictions" / "test.jsonl").read_text().splitlines()]
    found = recognizer.tag([row["tokens"] for row in rows])
    blind = rows if name == "masked" else rows[:2]  # those whose image was masked when it was scored
    assert found[: len(blind)] == [row["predicted"] for row in blind]
    assert [entity.text for entity in recognizer.entities(["saw jordan"])[0]] == ["jordan"]
    model = AutoModelForTokenClassification.from_pretrained(trained / name, trust_remote_code=True)
    assert model.config.region_size == 512


def save_shape(path, shape, dtype=torch.float16, name="image of 1:0"):
    save_file({name: torch.zeros(shape, dtype=dtype)}, path)


REFUSED = [
    ("narrow.safetensors", "image of 1:0 is of shape [49, 256], not [49, 512]"),
    ("whole.safetensors", "image of 1:0 is of shape [7, 7, 512], not [49, 512]"),
    ("numbers.safetensors", "image of 1:0 is of type I64"),
    (
        "foreign.safetensors",
        "none of the 128 image ids of the data set's train split is in it: there are image of 1:0,",
    ),
    ("text.safetensors", "no region features can be read from it"),
    ("none.safetensors", "not found"),
]


@pytest.mark.parametrize("name, problem", REFUSED)
def test_regions_that_are_refused_before_training(name, problem, named_data, vectors, tmp_path, capsys):
    save_shape(tmp_path / "narrow.safetensors", (49, 256))
    save_shape(tmp_path / "whole.safetensors", (7, 7, 512))
    save_shape(tmp_path / "numbers.safetensors", (49, 512), torch.int64)
    save_shape(tmp_path / "foreign.safetensors", (49, 512), name="12")
    (tmp_path / "text.safetensors").write_text("no tensors at all")
    arguments = ["--vectors", str(vectors), "--data", str(named_data), "--output", str(tmp_path / "out")]
    assert word_ner.main(["--system", "coattention", "--regions", str(tmp_path / name), *arguments]) == 2
    told = capsys.readouterr().err
    assert problem in told and name in told
    assert not list(tmp_path.glob("out*"))


@pytest.fixture(scope="module")
def named_data(tmp_path_factory):
    return make_ner(tmp_path_factory.mktemp("coattention") / "named", named_tweet)


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--system", "cwi", "--regions", "VECTORS"], "cwi sees no regions"),
        (["--system", "coattention", "--image_words", "shuffled"], "coattention has no such side"),
        (["--system", "coattention", "--input.characters", "0"], "coattention reads characters"),
    ],
)
def test_settings_that_are_refused(options, problem, named_data, vectors, tmp_path, capsys):
    options = [str(vectors) if option == "VECTORS" else option for option in options]
    arguments = ["--vectors", str(vectors), "--data", str(named_data), "--output", str(tmp_path / "out")]
    assert word_ner.main([*arguments, *options]) == 2
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
