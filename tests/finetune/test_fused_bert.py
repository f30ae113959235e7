"""The layers in C++ compute what transformers' BertModel does: hidden states, losses, gradients, with and without dropout."""

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForTokenClassification

from finetune.fused_bert import LabelLayer, TableRows, dropped, gelu, library
from finetune.tagger import PieceTagger

pytestmark = pytest.mark.skipif(
    library() is None, reason="no processor with AVX512-BF16 (and without AMX), or no compiler"
)

PIECES = [35, 20, 33, 2, 7]
WORDS = [20, 11, 13, 0, 3]
SIZES = {"vocab_size": 60, "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_labels": 9}


def make_tagger(layers: int = 3, dropout: float = 0.0, **options: object) -> PieceTagger:
    torch.manual_seed(1)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(**SIZES | rates | {"num_hidden_layers": layers, "max_position_embeddings": 64} | options)
    model = BertForTokenClassification(config)
    for parameter in model.parameters():  # biases and normalisation, too, shall count
        nn.init.normal_(parameter, std=0.1)
    return PieceTagger(model).eval()


def make_batch() -> dict[str, Tensor]:
    """Five tweets, one of them without words; the second segment is the last two pieces."""
    generator = torch.Generator().manual_seed(3)
    tweets, longest, words = len(PIECES), max(PIECES), max(WORDS)
    lengths, places = torch.tensor(PIECES)[:, None], torch.arange(longest)
    first_piece_BW = torch.zeros(tweets, words, dtype=torch.long)
    for tweet, (length, count) in enumerate(zip(PIECES, WORDS, strict=True)):
        chosen = torch.randperm(length - 2, generator=generator)[:count] + 1
        first_piece_BW[tweet, :count] = chosen.sort().values
    return {
        "input_ids_BT": torch.randint(1, 60, (tweets, longest), generator=generator),
        "attention_mask_BT": (places < lengths).long(),
        "token_type_ids_BT": ((places >= lengths - 2) & (places < lengths) & (lengths > 2)).long(),
        "first_piece_BW": first_piece_BW,
        "word_mask_BW": torch.arange(words) < torch.tensor(WORDS)[:, None],
        "labels_BW": torch.randint(0, 9, (tweets, words), generator=generator),
    }


def inputs_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in batch.items() if name not in ("word_mask_BW", "labels_BW")}


def without_fused(tagger: PieceTagger) -> PieceTagger:
    other = copy.deepcopy(tagger)
    other.lean.fused = None
    return other


def loss_and_gradients(
    tagger: PieceTagger, batch: dict[str, Tensor], bf16: bool = True
) -> tuple[float, dict[str, Tensor]]:
    tagger.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = tagger(**batch)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in tagger.named_parameters() if parameter.grad is not None}
    return loss.item(), gradients


def assert_nearly_the_same(found: dict[str, Tensor], exact: dict[str, Tensor], tolerance: float = 0.03) -> None:
    """The error of each gradient is small beside the gradient, or where that is 0 (of the keys' biases) beside the others."""
    assert found.keys() == exact.keys()
    usual = torch.stack([gradient.norm() for gradient in exact.values()]).median()
    for name, gradient in exact.items():
        error = (found[name] - gradient).norm()
        assert error < tolerance * max(gradient.norm(), 0.05 * usual), (name, error, gradient.norm())


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("with_labels", [True, False])
def test_loss_and_gradients_are_those_of_the_stock_model(layers, with_labels):
    fused, batch = make_tagger(layers), make_batch()
    assert fused.lean.fused
    if not with_labels:
        fused.model.dropout = nn.Identity()  # then torch computes the scores
    assert (LabelLayer.of(fused.model.dropout, fused.model.classifier) is not None) == with_labels
    stock = copy.deepcopy(fused)
    stock.lean = None
    exact_loss, exact = loss_and_gradients(stock, batch, bf16=False)
    loss, gradients = loss_and_gradients(fused, batch)
    assert loss == pytest.approx(exact_loss, rel=1e-3) and loss != exact_loss
    assert_nearly_the_same(gradients, exact)


@pytest.mark.parametrize("shape", [(64, 2, 128), (96, 3, 32), (256, 2, 1024), (512, 8, 2048)])
def test_other_sizes(shape):
    hidden, heads, inner = shape
    fused = make_tagger(2, hidden_size=hidden, num_attention_heads=heads, intermediate_size=inner)
    _, exact = loss_and_gradients(without_fused(fused), make_batch(), bf16=False)
    assert_nearly_the_same(loss_and_gradients(fused, make_batch())[1], exact, tolerance=0.05)


class GivenDropout(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def given_masks(tagger: PieceTagger, batch: dict[str, Tensor], seed: int) -> Iterator[Tensor]:
    """The masks of a fused pass, in the shapes of the lean one's, and that before the classifier."""
    config = tagger.model.config
    tweets, longest = batch["input_ids_BT"].shape
    hidden, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    there_BT, there_BW = batch["attention_mask_BT"].bool(), batch["word_mask_BW"]

    def of_rows(place: int, there: Tensor) -> Tensor:
        mask = torch.ones(*there.shape, hidden)
        mask[there] = dropped(torch.ones(int(there.sum()), hidden), seed, place, config.hidden_dropout_prob)
        return mask.flatten(0, 1)

    def of_shares(place: int, queries: list[int], most: int) -> Tensor:
        whole = dropped(torch.ones(sum(queries) * heads * 64), seed, place, config.attention_probs_dropout_prob)
        mask = torch.ones(tweets, heads, most, longest)
        for tweet, (count, length) in enumerate(zip(queries, PIECES, strict=True)):
            width = math.ceil(length / 32) * 32
            for head in range(heads):
                first = (sum(queries[:tweet]) * heads + head * count) * 64  # 64: 35, the longest, padded
                of_head = whole[first : first + count * width].view(count, width)
                mask[tweet, head, :count, :length] = of_head[:, :length]
        return mask

    yield of_rows(0, there_BT)
    for layer in range(layers):
        last = layer == layers - 1
        there, queries = (there_BW, WORDS) if last else (there_BT, PIECES)
        yield of_shares(1 + 3 * layer, queries, there.shape[1])
        yield of_rows(2 + 3 * layer, there)
        yield of_rows(3 + 3 * layer, there)
    yield of_rows(1 + 3 * layers, there_BW)


def test_dropout_drops_the_same_forward_and_backward_as_its_masks_say(monkeypatch):
    fused, batch = make_tagger(3, dropout=0.3), make_batch()
    fused.train()
    lean = without_fused(fused)
    torch.manual_seed(7)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    *masks, of_words = given_masks(fused, batch, seed)
    monkeypatch.setattr(lean.lean, "masks", lambda *_: iter(masks))
    lean.model.dropout = GivenDropout(of_words.view(len(PIECES), max(WORDS), -1))
    exact_loss, exact = loss_and_gradients(lean, batch, bf16=False)
    torch.manual_seed(7)
    loss, gradients = loss_and_gradients(fused, batch)
    assert loss == pytest.approx(exact_loss, rel=1e-3)
    assert_nearly_the_same(gradients, exact, tolerance=0.04)
    with pytest.raises(AssertionError):  # another draw is not near
        assert_nearly_the_same(loss_and_gradients(fused, batch)[1], exact, tolerance=0.2)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_mean_and_each_place_and_seed_has_its_own(rate):
    ones = torch.ones(400, 500)
    masks = [dropped(ones, seed, place, rate) for seed, place in ((1, 0), (1, 1), (2, 0))]
    for mask in masks:
        assert set(mask.unique().tolist()) == {0.0, mask.max().item()}
        error = (rate / (1 - rate) / mask.numel()) ** 0.5
        assert abs(mask.mean() - 1) < 5 * error
        for neighbours in (
            mask[:, 1:] * mask[:, :-1],
            mask[1:] * mask[:-1],
            *(mask * other for other in masks if other is not mask),
        ):
            assert abs(neighbours.mean() - 1) < 10 * error  # independent
    assert torch.equal(dropped(ones, 1, 0, rate), masks[0]) and torch.equal(dropped(ones, 1, 0, 0.0), ones)


def test_gelu_and_its_slope():
    x = torch.cat(
        [torch.linspace(-7, 7, 16_000), torch.tensor([-1e30, -math.inf, 1e30, math.inf, math.nan, -0.0] + [0.0] * 10)]
    )
    value, slope = gelu(x)
    exact = x.double().requires_grad_()
    nn.functional.gelu(exact[:-16]).sum().backward()
    torch.testing.assert_close(value[:-16].double(), nn.functional.gelu(exact[:-16]).detach(), atol=2e-6, rtol=0)
    torch.testing.assert_close(slope[:-16].double(), exact.grad[:-16], atol=5e-5, rtol=0)
    assert value[-16:-14].abs().max() < 2e-6 and value[-14:-12].tolist() == [x[-14], math.inf]
    assert slope[-11:].tolist() == pytest.approx([0.5] * 11, abs=5e-5)
    small = torch.tensor([1e-6, -1e-6] * 8)
    torch.testing.assert_close(gelu(small)[0], small / 2, rtol=1e-4, atol=0)
    assert value[-12].isnan() and torch.equal(value[-11:], torch.zeros(11))


def test_the_number_of_threads_changes_nothing():
    fused, batch = make_tagger(dropout=0.2), make_batch()
    fused.train()
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            torch.manual_seed(7)
            found.append(loss_and_gradients(fused, batch))
    finally:
        torch.set_num_threads(threads)
    for loss, gradients in found[1:]:
        assert loss == found[0][0] and all(torch.equal(gradients[name], x) for name, x in found[0][1].items())


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_what_is_not_kept_without_gradients_changes_nothing(layers):
    fused, batch = make_tagger(layers), inputs_of(make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        kept_BWL = fused.emissions(**batch)
        with torch.no_grad():
            assert kept_BWL.requires_grad and torch.equal(fused.emissions(**batch), kept_BWL)


@torch.no_grad()
def test_the_other_tweets_change_nothing():
    fused, batch = make_tagger(), inputs_of(make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        together_BWL = fused.emissions(**batch)
        for tweet, words in enumerate(WORDS):
            alone_BWL = fused.emissions(**{name: x[tweet : tweet + 1] for name, x in batch.items()})
            assert torch.equal(alone_BWL[0, :words], together_BWL[tweet, :words])


def in_eight_bits(linear: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer, its weights rounded to 255 values for each output, what it reads to 256 for each row."""
    step = linear.weight.abs().amax(1, keepdim=True) / 127
    weight = (linear.weight / step).round().nan_to_num() * step
    lowest = x.amin(-1, keepdim=True)
    step = (x.amax(-1, keepdim=True) - lowest) / 255
    return nn.functional.linear(((x - lowest) / step).round() * step + lowest, weight, linear.bias)


def plain_in_eight_bits(tagger: PieceTagger, batch: dict[str, Tensor]) -> Tensor:
    """The scores [B, W, L] of a model of one layer, with activations rounded to bf16 where C++ does it."""

    def rounded(x: Tensor) -> Tensor:
        return x.bfloat16().float()

    def by_head(x: Tensor) -> Tensor:
        return rounded(x).unflatten(2, (-1, 32)).transpose(1, 2)

    bert = tagger.model.bert
    (layer,) = bert.encoder.layer
    x = rounded(bert.embeddings(batch["input_ids_BT"], batch["token_type_ids_BT"]))
    attention = layer.attention.self
    query, key, value = (by_head(in_eight_bits(part, x)) for part in (attention.query, attention.key, attention.value))
    bias_B11T = (batch["attention_mask_BT"][:, None, None] == 0) * -1e9
    shares = rounded((query @ key.transpose(2, 3) / math.sqrt(32) + bias_B11T).softmax(-1))
    context = rounded((shares @ value).transpose(1, 2).flatten(2))
    norm = layer.attention.output.LayerNorm
    attended = rounded(norm(in_eight_bits(layer.attention.output.dense, context) + x))
    active = rounded(nn.functional.gelu(in_eight_bits(layer.intermediate.dense, attended)))
    y = layer.output.LayerNorm(in_eight_bits(layer.output.dense, active) + attended)
    first_piece_BWH = batch["first_piece_BW"][:, :, None].expand(-1, -1, x.shape[2])
    return tagger.model.classifier(y.gather(1, first_piece_BWH))


def distance(a_BWL: Tensor, b_BWL: Tensor, word_mask_BW: Tensor) -> float:
    a, b = a_BWL[word_mask_BW], b_BWL[word_mask_BW]
    return ((a - b).norm() / b.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("without", ["attention.output.dense", "output.dense"])
@pytest.mark.parametrize("shape", [(128, 4, 192), (128, 4, 64), (64, 2, 128), (384, 12, 384)])
def test_eight_bits_are_what_rounded_weights_and_inputs_give(shape, without):
    """Of half a layer at a time: what is rounded to another bf16 moves the bytes of what follows."""
    hidden, heads, inner = shape
    fused, batch = make_tagger(1, hidden_size=hidden, num_attention_heads=heads, intermediate_size=inner), make_batch()
    fused.model.bert.encoder.layer[0].get_submodule(without).weight.zero_()
    exact_BWL = without_fused(fused).emissions(**inputs_of(batch))
    rounded_BWL = plain_in_eight_bits(fused, batch)
    assert fused.use_eight_bits(True)
    with torch.autocast("cpu", torch.bfloat16):
        found_BWL = fused.emissions(**inputs_of(batch))
    to_rounded, to_exact = (distance(found_BWL, x, batch["word_mask_BW"]) for x in (rounded_BWL, exact_BWL))
    assert to_rounded < 0.45 * to_exact


@torch.no_grad()
@pytest.mark.parametrize("shape", [(128, 2, 512), (512, 8, 2048)])
def test_eight_bits_are_near_the_exact_scores(shape):
    hidden, heads, inner = shape
    fused = make_tagger(4, hidden_size=hidden, num_attention_heads=heads, intermediate_size=inner)
    batch = make_batch()
    exact_BWL = without_fused(fused).emissions(**inputs_of(batch))
    with torch.autocast("cpu", torch.bfloat16), fused.unchanged():
        in_bf16_BWL = fused.emissions(**inputs_of(batch))
        assert fused.use_eight_bits(True)
        found_BWL = fused.emissions(**inputs_of(batch))
        assert not fused.use_eight_bits(False)
        assert torch.equal(fused.emissions(**inputs_of(batch)), in_bf16_BWL)
    in_bf16, found = (distance(x, exact_BWL, batch["word_mask_BW"]) for x in (in_bf16_BWL, found_BWL))
    assert 2 * in_bf16 < found < 0.03


@torch.no_grad()
@pytest.mark.parametrize("parameter", ["attention.self.query.weight", "intermediate.dense.weight", "output.dense.bias"])
def test_eight_bits_do_not_hide_what_is_no_number(parameter):
    fused = make_tagger()
    fused.model.bert.encoder.layer[1].get_parameter(parameter)[:1].fill_(float("nan"))
    assert fused.use_eight_bits(True)
    with torch.autocast("cpu", torch.bfloat16):
        assert fused.emissions(**inputs_of(make_batch())).isnan().any()


@torch.no_grad()
def test_in_eight_bits_neither_threads_nor_other_tweets_change_anything():
    fused, batch = make_tagger(), inputs_of(make_batch())
    threads = torch.get_num_threads()
    try:
        with torch.autocast("cpu", torch.bfloat16):
            in_bf16_BWL = fused.emissions(**batch)
            assert fused.use_eight_bits(True)
            together_BWL = fused.emissions(**batch)
            assert not torch.equal(together_BWL, in_bf16_BWL)
            for count in (1, 3):
                torch.set_num_threads(count)
                assert torch.equal(fused.emissions(**batch), together_BWL)
            for tweet, words in enumerate(WORDS):
                alone_BWL = fused.emissions(**{name: x[tweet : tweet + 1] for name, x in batch.items()})
                assert torch.equal(alone_BWL[0, :words], together_BWL[tweet, :words])
    finally:
        torch.set_num_threads(threads)


def test_training_is_not_done_in_eight_bits():
    fused, batch = make_tagger(), make_batch()
    loss, gradients = loss_and_gradients(fused, batch)
    assert fused.use_eight_bits(True)
    again, of_the_same = loss_and_gradients(fused, batch)
    assert again == loss and all(torch.equal(of_the_same[name], x) for name, x in gradients.items())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert fused(**batch) != loss


def test_eight_bits_need_sizes_of_64():
    assert not make_tagger(intermediate_size=96).use_eight_bits(True)
    assert not make_tagger(num_attention_heads=8).use_eight_bits(True)  # heads of 16, left to torch


def test_two_passes_before_one_backward_and_two_backwards_of_one_pass():
    fused, batch = make_tagger(), make_batch()
    _, once = loss_and_gradients(fused, batch)
    fused.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        first, second = fused(**batch), fused(**batch)
    (first + second).backward(retain_graph=True)
    for name, parameter in fused.named_parameters():
        if name in once:
            torch.testing.assert_close(parameter.grad, 2 * once[name])
    fused.zero_grad()
    first.backward()
    for name, parameter in fused.named_parameters():
        if name in once:
            assert torch.equal(parameter.grad, once[name])


def test_gradients_of_the_embeddings_alone():
    fused, batch = make_tagger(), make_batch()
    words = fused.model.bert.embeddings.word_embeddings.weight
    _, whole = loss_and_gradients(fused, batch)
    fused.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused(**batch)
    (alone,) = torch.autograd.grad(loss, [words])
    assert torch.equal(alone, whole["model.bert.embeddings.word_embeddings.weight"])
    assert all(parameter.grad is None for parameter in fused.parameters())


def test_weights_that_changed_before_the_backward_pass_are_noticed():
    fused, batch = make_tagger(), make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused(**batch)
    with torch.no_grad():
        fused.model.bert.encoder.layer[0].output.dense.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@torch.no_grad()
def test_weights_of_a_call_before_are_not_taken_for_unchanged_ones():
    fused, batch = make_tagger(), inputs_of(make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        first = fused.emissions(**batch)
        fused.model.bert.encoder.layer[0].output.dense.weight.zero_()
        with fused.unchanged():
            assert not torch.allclose(fused.emissions(**batch), first)


def test_memory_is_used_again_in_training_once_the_loss_is_gone():
    fused, batch = make_tagger(), make_batch()
    loss_and_gradients(fused, batch)
    (memory,) = fused.lean.fused.activations.free
    loss_and_gradients(fused, batch)
    assert fused.lean.fused.activations.free[0] is memory
    assert not copy.deepcopy(fused).lean.fused.activations.free


@torch.no_grad()
def test_weights_are_packed_once_where_they_do_not_change():
    fused, batch = make_tagger(), inputs_of(make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        with fused.unchanged():
            first = fused.emissions(**batch)
            fused.model.bert.encoder.layer[0].output.dense.weight.zero_()
            assert torch.equal(fused.emissions(**batch), first)  # kept, as was promised
            assert fused.lean.fused.kept and copy.deepcopy(fused).lean.fused.kept is None
        assert fused.lean.fused.kept is None
        assert not torch.allclose(fused.emissions(**batch), first)


@torch.no_grad()
def test_memory_is_used_again():
    fused, batch = make_tagger(), inputs_of(make_batch())
    with torch.autocast("cpu", torch.bfloat16):
        fused.emissions(**batch)
        (memory,) = fused.lean.fused.activations.free
        fused.emissions(**batch)
    assert fused.lean.fused.activations.free[0] is memory


def test_inputs_that_cannot_be_are_refused():
    fused = make_tagger()
    cases = (("attention_mask_BT", 3, 0), ("first_piece_BW", 0, 35), ("first_piece_BW", 0, -1))
    for name, place, value in (*cases, ("token_type_ids_BT", 3, 2), ("token_type_ids_BT", 3, -1)):
        batch = make_batch()
        batch[name][0, place] = value
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="attention mask with holes"):
            fused(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match="longer than the encoder's places"):
            make_tagger(max_position_embeddings=34)(**make_batch())
        with pytest.raises(ValueError, match="of another shape"):
            fused(**make_batch() | {"attention_mask_BT": torch.ones(5, 34, dtype=torch.long)})


@pytest.mark.parametrize("fused", [True, False])
def test_rows_of_a_table_are_their_embeddings(fused):
    tagger, batch = make_tagger(), inputs_of(make_batch())
    lean, table = (tagger if fused else without_fused(tagger)).lean, tagger.model.get_input_embeddings().weight
    assert (lean.fused is not None) == fused
    rows, others = TableRows(batch.pop("input_ids_BT"), table), tuple(batch.values())
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            hidden_BWH = lean(rows, *others)
            assert torch.equal(hidden_BWH, lean(rows.embedded(), *others))
        looked_up = lean(rows, *others)
        torch.testing.assert_close(looked_up, hidden_BWH)
        looked_up.sum().backward()  # with gradients, as well
        assert table.grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("wrong", [60, -1])
def test_pieces_that_the_table_has_not_are_refused(wrong):
    tagger, batch = make_tagger(), inputs_of(make_batch())
    batch["input_ids_BT"][1, 2] = wrong
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="pieces or token types"):
        tagger.emissions(**batch)


@torch.no_grad()
def test_masks_and_places_of_other_types():
    fused, batch = make_tagger(), inputs_of(make_batch())
    others = batch | {
        "attention_mask_BT": batch["attention_mask_BT"].bool(),
        "first_piece_BW": batch["first_piece_BW"].int(),
        "input_ids_BT": batch["input_ids_BT"].int(),
    }
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused.emissions(**others), fused.emissions(**batch))


def test_what_is_compiled_is_left_to_the_compiler(monkeypatch):
    fused = make_tagger().lean.fused
    assert fused.serves(torch.bfloat16)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fused.serves(torch.bfloat16)


def test_fp32_and_odd_sizes_are_left_to_torch():
    assert not make_tagger().lean.fused.serves(torch.float32)
    assert make_tagger(num_attention_heads=8).lean.fused is None  # heads of 16
    assert make_tagger(intermediate_size=40).lean.fused is None
    without_bias = nn.Linear(128, 9, bias=False)
    for dropout, classifier in (
        (nn.Dropout(), without_bias),
        (nn.Dropout(), nn.Identity()),
        (nn.Identity(), nn.Linear(2, 2)),
    ):
        assert LabelLayer.of(dropout, classifier) is None
    half = make_tagger().to(torch.bfloat16)
    assert not half.lean.fused.serves(torch.bfloat16)
