"""R-Drop, adversarial training and multi-sample dropout against their definitions, and where they are off."""

import pytest
import torch
from test_lean_bert import make_batch, stock, with_shapes
from torch import nn
from torch.nn import functional

from finetune import ner
from finetune.features import Encoded, PieceInputs
from finetune.regularisation import Regularisation, RegularisedPieceTagger, SampledDropout, divergence
from finetune.tagger import PieceTagger

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
EVERY_PIECE = PieceInputs([Encoded(list(range(60)), 60, [1], 1)], pad_token=0, maximum_length=64)


def regularised(model: nn.Module, **settings: float) -> RegularisedPieceTagger:
    tagger = RegularisedPieceTagger(model, Regularisation(**settings))
    tagger.train_rows_in_use(EVERY_PIECE)
    return tagger.train()


def gradients(tagger: PieceTagger, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    tagger.zero_grad()
    loss.backward()
    return {name: x.grad.clone() for name, x in tagger.named_parameters() if x.grad is not None}


@pytest.mark.parametrize(
    "settings", [{}, {"r_drop": 2.0}, {"dropout_samples": 3}, {"r_drop": 1.0, "dropout_samples": 2}]
)
@pytest.mark.parametrize("lean", [True, False])
def test_without_dropout_there_is_nothing_to_regularise(settings, lean):
    tagger = regularised(stock(**NO_DROPOUT), **settings)
    plain = regularised(stock(**NO_DROPOUT))
    if not lean:
        tagger.lean = None
    loss, plain_loss = tagger(**make_batch()), plain(**make_batch())
    torch.testing.assert_close(loss, plain_loss)
    found, expected = gradients(tagger, loss), gradients(plain, plain_loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("settings", [{"r_drop": 2.0}, {"dropout_samples": 3}, {"adversarial": 1.0}])
def test_outside_training_it_is_the_plain_tagger(settings):
    tagger = regularised(stock(), **settings).eval()
    plain = PieceTagger(stock()).eval()
    torch.testing.assert_close(tagger(**make_batch()), plain(**make_batch()))
    assert tagger.embedded == []  # nothing is kept for a gradient that is never asked for


def test_r_drop_is_the_mean_loss_of_two_draws_and_how_far_apart_they_are(monkeypatch):
    tagger, batch = regularised(stock(), r_drop=0.7), make_batch()
    first, second = torch.randn(2, 3, 5, 9)
    draws = iter([first, second])
    monkeypatch.setattr(tagger, "emissions", lambda **_: next(draws))
    words = batch["word_mask_BW"]
    p, q = first[words].softmax(dim=1), second[words].softmax(dim=1)
    apart = ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
    torch.testing.assert_close(divergence(first, second, words), apart)
    losses = [functional.cross_entropy(x[words], batch["labels_BW"][words], reduction="sum") for x in (first, second)]
    torch.testing.assert_close(tagger(**batch), sum(losses) / 2 + 0.7 * apart)


def test_adversarial_training_moves_each_tweet_as_far_to_where_its_loss_grows():
    tagger, batch = regularised(stock(**NO_DROPOUT), adversarial=0.01), make_batch()
    moves = []
    tagger.model.get_input_embeddings().register_forward_hook(lambda _module, _ids, x: moves.append(x.detach()))
    loss = tagger(**batch)
    plain_loss = regularised(stock(**NO_DROPOUT))(**batch)
    before, after = moves
    distances = (after - before).flatten(1).norm(dim=1)
    torch.testing.assert_close(distances[:2], torch.full((2,), 0.01), rtol=1e-3, atol=0)
    assert distances[2] == 0  # a tweet without words has no loss
    assert loss > plain_loss
    # To the first order it grows by the distance times the length of the gradient.
    embedded = before.requires_grad_()
    other = PieceTagger(stock(**NO_DROPOUT)).train()
    other.model.set_input_embeddings(Given(embedded))
    (gradient,) = torch.autograd.grad(other(**batch), embedded)
    growth = 0.01 * gradient.flatten(1).norm(dim=1).sum()
    torch.testing.assert_close(loss - plain_loss, growth / 2, rtol=0.05, atol=1e-4)
    assert tagger.moved_by_BTH is None
    assert gradients(tagger, loss)


def test_r_drop_counts_as_much_beside_adversarial_training():
    torch.manual_seed(8)
    both = regularised(stock(), r_drop=5.0, adversarial=1e-9)
    torch.manual_seed(9)
    loss = both(**make_batch())
    torch.manual_seed(9)
    alone = regularised(stock(), r_drop=5.0)(**make_batch())
    # The third draw of dropout makes another loss on tags; how far apart the first two are is the same.
    torch.manual_seed(9)
    tags = regularised(stock(), r_drop=1e-9)(**make_batch())
    assert (alone - tags) > 1  # five times how far apart they are
    torch.testing.assert_close(loss, (alone + tags) / 2 + (alone - tags) / 2, rtol=0.2, atol=1.0)


def test_compiled_adversarial_training_is_refused(tmp_path, encoder, named, capsys):
    arguments = ["--encoder", encoder, "--data", named, "--output", tmp_path / "out", "--image_words", "none"]
    assert ner.main([*map(str, arguments), "--run.compile", "true", "--regularisation.adversarial", "1"]) == 2
    assert "cannot be trained adversarially" in capsys.readouterr().err


def test_under_zero_3_adversarial_training_is_refused(tmp_path, encoder, named, capsys, monkeypatch):
    monkeypatch.setattr(ner, "has_parameters_in_parts", lambda accelerator: True)
    arguments = ["--encoder", encoder, "--data", named, "--output", tmp_path / "out", "--image_words", "none"]
    assert ner.main([*map(str, arguments), "--regularisation.adversarial", "1"]) == 2
    assert "not under ZeRO-3" in capsys.readouterr().err


class Given(nn.Module):
    def __init__(self, embedded: torch.Tensor) -> None:
        super().__init__()
        self.embedded = embedded

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.embedded


def test_sampled_dropout_draws_anew_and_its_loss_is_the_mean():
    torch.manual_seed(6)
    x = torch.ones(4, 50)
    dropout = SampledDropout(nn.Dropout(0.5), 3).train()
    draws = dropout(x).chunk(3)
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(dropout.eval()(x), x)
    tagger, batch = regularised(with_shapes(), dropout_samples=3), make_batch(shapes=True)
    masks, labels = batch["word_mask_BW"], batch["labels_BW"]
    emissions = torch.randn(3, 3, 5, 9)
    losses = [PieceTagger.loss(tagger, x, masks, labels) for x in emissions]
    torch.testing.assert_close(tagger.loss(emissions.flatten(0, 1), masks, labels), sum(losses) / 3)


def test_what_is_no_weight_or_count_is_refused():
    for wrong in ({"r_drop": -1.0}, {"adversarial": -0.1}, {"dropout_samples": 0}):
        with pytest.raises(ValueError, match="regularisation"):
            Regularisation(**wrong)


def test_a_regularised_recognizer_is_exported_like_any_other(tmp_path, encoder, named):
    output = tmp_path / "out"
    arguments = ["--encoder", encoder, "--data", named, "--output", output, "--image_words", "none"]
    arguments += [
        "--schedule.epochs",
        "1",
        "--input.maximum_length",
        "64",
        "--input.image_length",
        "8",
        "--dropout",
        "0.1",
    ]
    arguments += ["--regularisation.r_drop", "1", "--regularisation.adversarial", "0.5"]
    arguments += ["--regularisation.dropout_samples", "2"]
    assert ner.main([*map(str, arguments)]) == 0
    assert (output / "model.safetensors").is_file()
