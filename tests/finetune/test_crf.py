"""The CRF equals enumeration and pytorch-crf, keeps its constraints, and survives transformers' loading."""

import doctest
import itertools

import pytest
import torch
import torchcrf
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PretrainedConfig, PreTrainedModel

import finetune.crf
from finetune.crf import LinearChainCRF
from finetune.tags import TagScheme

SCHEMES = [None, TagScheme("BIO", ("PER", "LOC")), TagScheme("BIOES", ("PER",))]
"""No constraints, and those of two schemes; 5 labels each."""


def make_crf(scheme=None, seed=0, scale=1.0):
    """A CRF over 5 labels with scores large enough to matter."""
    constraints = (scheme.allowed_transitions(), scheme.allowed_start(), scheme.allowed_end()) if scheme else ()
    crf = LinearChainCRF(5, *constraints)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for scores in crf.parameters():
            scores.copy_(torch.randn(scores.shape, generator=generator) * scale)
    return crf


def make_batch(lengths, seed=0, scale=1.0, words=None):
    """Random emissions, labels and mask; the labels need not be valid in any scheme."""
    generator = torch.Generator().manual_seed(seed)
    words = max(lengths, default=0) if words is None else words
    emissions_BWL = torch.randn(len(lengths), words, 5, generator=generator) * scale
    labels_BW = torch.randint(5, (len(lengths), words), generator=generator)
    mask_BW = torch.arange(words) < torch.tensor(lengths, dtype=torch.long)[:, None]
    return emissions_BWL, labels_BW, mask_BW


def enumerate_paths(crf, emissions_WL, words):
    """All paths that the constraints allow and their scores, in float64, from the definition."""
    paths, scores = [], []
    for path in itertools.product(range(5), repeat=words):
        steps = list(itertools.pairwise(path))
        if not (
            crf.allowed_start[path[0]]
            and crf.allowed_end[path[-1]]
            and all(crf.allowed_transitions[step] for step in steps)
        ):
            continue
        score = crf.start_transitions[path[0]].double() + crf.end_transitions[path[-1]].double()
        score = score + sum(emissions_WL[t, label].double() for t, label in enumerate(path))
        score = score + sum(crf.transitions[step].double() for step in steps)
        paths.append(path)
        scores.append(score)
    return paths, torch.stack(scores)


@settings(max_examples=100, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
)
@torch.no_grad()
def test_equals_enumeration(scheme, lengths, seed, scale):
    crf = make_crf(scheme, seed)
    emissions_BWL, labels_BW, mask_BW = make_batch(lengths, seed, scale)
    # Gold labels that the constraints allow: the best path for other emissions.
    for b, path in enumerate(crf.decode(emissions_BWL.flip(0, 1, 2), mask_BW)):
        labels_BW[b, : len(path)] = torch.tensor(path, dtype=torch.long)
    nll_B = crf(emissions_BWL, labels_BW, mask_BW)
    decoded = crf.decode(emissions_BWL, mask_BW)
    marginals_BWL = crf.marginals(emissions_BWL, mask_BW)
    assert marginals_BWL.shape == emissions_BWL.shape
    for b, words in enumerate(lengths):
        assert torch.all(marginals_BWL[b, words:] == 0)
        if words == 0:
            assert nll_B[b] == 0 and decoded[b] == []
            continue
        paths, scores = enumerate_paths(crf, emissions_BWL[b], words)
        gold = paths.index(tuple(labels_BW[b, :words].tolist()))
        log_partition = torch.logsumexp(scores, dim=0)
        torch.testing.assert_close(nll_B[b].double(), log_partition - scores[gold], atol=2e-4, rtol=1e-5)
        torch.testing.assert_close(scores[paths.index(tuple(decoded[b]))], scores.max(), atol=1e-4, rtol=1e-6)
        expected_WL = torch.zeros(words, 5, dtype=torch.float64)
        for path, probability in zip(paths, torch.softmax(scores, dim=0), strict=True):
            expected_WL[torch.arange(words), list(path)] += probability
        torch.testing.assert_close(marginals_BWL[b, :words].double(), expected_WL, atol=1e-4, rtol=0)


@pytest.mark.parametrize("lengths", [[2], [3, 1, 7, 2], [12] * 8 + [5] * 8])
def test_equals_pytorch_crf(lengths):
    ours, theirs = make_crf(), torchcrf.CRF(5, batch_first=True)
    with torch.no_grad():
        for name, scores in theirs.named_parameters():
            scores.copy_(ours.get_parameter(name))
    emissions_BWL, labels_BW, mask_BW = make_batch(lengths, seed=len(lengths), scale=3.0)
    our_emissions, their_emissions = (emissions_BWL.clone().requires_grad_() for _ in range(2))
    our_loss = ours(our_emissions, labels_BW, mask_BW).sum()
    their_loss = -theirs(their_emissions, labels_BW, mask_BW, reduction="sum")
    our_loss.backward()
    their_loss.backward()
    torch.testing.assert_close(our_loss, their_loss, atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(our_emissions.grad, their_emissions.grad, atol=1e-5, rtol=1e-5)
    for name, scores in theirs.named_parameters():
        assert scores.grad.abs().max() > 0
        torch.testing.assert_close(ours.get_parameter(name).grad, scores.grad, atol=1e-5, rtol=1e-5)
    assert ours.decode(emissions_BWL, mask_BW) == theirs.decode(emissions_BWL, mask_BW)


@pytest.mark.parametrize("scheme", SCHEMES, ids=["none", "BIO", "BIOES"])
def test_gradient_is_that_of_finite_differences(scheme):
    """In float64, which the layer keeps if it is given it."""
    crf = make_crf(scheme).double()
    emissions_BWL, labels_BW, mask_BW = make_batch([3, 0, 2])
    labels_BW[:] = 0  # allowed in every scheme
    parameters = [p.detach().clone().requires_grad_() for p in crf.parameters()]
    names = [name for name, _ in crf.named_parameters()]

    def nll(emissions_BWL, *parameters):
        return torch.func.functional_call(
            crf, dict(zip(names, parameters, strict=True)), (emissions_BWL, labels_BW, mask_BW)
        )

    assert torch.autograd.gradcheck(nll, (emissions_BWL.double().requires_grad_(), *parameters))


@pytest.mark.parametrize("scheme", SCHEMES[1:], ids=["BIO", "BIOES"])
@torch.no_grad()
def test_forbidden_labels_are_never_decoded_and_have_no_probability(scheme):
    """Even where the emissions, and scores the training has made large, all speak for them."""
    crf = make_crf(scheme, scale=20.0)
    emissions_BWL, labels_BW, mask_BW = make_batch([9] * 50 + [1] * 20, scale=50.0)
    transitions, start, end = scheme.allowed_transitions(), scheme.allowed_start(), scheme.allowed_end()
    unconstrained = make_crf(scale=20.0).decode(emissions_BWL, mask_BW)

    def is_allowed(path):
        return start[path[0]] and end[path[-1]] and all(transitions[i, j] for i, j in itertools.pairwise(path))

    assert sum(not is_allowed(path) for path in unconstrained) > 40  # the constraints have something to do
    assert all(is_allowed(path) for path in crf.decode(emissions_BWL, mask_BW))
    forbidden = [b for b, path in enumerate(unconstrained) if not is_allowed(path)]
    for b in forbidden:
        labels_BW[b, : len(unconstrained[b])] = torch.tensor(unconstrained[b])
    nll_B = crf(emissions_BWL, labels_BW, mask_BW)[forbidden]
    assert torch.all(torch.exp(-nll_B) == 0) and torch.all(torch.isfinite(nll_B))
    assert torch.all(crf.marginals(emissions_BWL, mask_BW)[:, 0, ~torch.from_numpy(start)] == 0)


def test_probabilities_of_all_paths_sum_to_one():
    crf = make_crf(SCHEMES[1])
    emissions_BWL, _, _ = make_batch([3])
    labels_BW = torch.tensor(list(itertools.product(range(5), repeat=3)))
    probabilities_B = torch.exp(-crf(emissions_BWL.expand(len(labels_BW), 3, 5), labels_BW))
    torch.testing.assert_close(probabilities_B.sum(), torch.tensor(1.0))


def test_marginals_are_the_gradient_of_the_log_partition():
    """log Z = nll + score, and the score's gradient is one at the given labels."""
    crf = make_crf(SCHEMES[2])
    emissions_BWL, labels_BW, mask_BW = make_batch([6, 2, 4])
    emissions_BWL.requires_grad_()
    crf(emissions_BWL, torch.zeros_like(labels_BW), mask_BW).sum().backward()
    expected_BWL = emissions_BWL.grad
    expected_BWL[:, :, 0] += mask_BW
    torch.testing.assert_close(crf.marginals(emissions_BWL, mask_BW), expected_BWL, atol=1e-5, rtol=1e-5)


def test_padding_changes_nothing():
    """Neither its width, nor what stands there, NaN and -100 included."""
    crf = make_crf(SCHEMES[1])
    lengths = [4, 2, 0, 3]
    emissions_BWL, labels_BW, mask_BW = make_batch(lengths, words=6)
    labels_BW[:] = 0
    labels_BW = labels_BW.masked_fill(~mask_BW, -100)
    emissions_BWL = emissions_BWL.masked_fill(~mask_BW[:, :, None], float("nan")).requires_grad_()
    nll_B = crf(emissions_BWL, labels_BW, mask_BW)
    nll_B.sum().backward()
    assert torch.all(torch.isfinite(emissions_BWL.grad)) and torch.all(emissions_BWL.grad[~mask_BW] == 0)
    assert all(torch.all(torch.isfinite(scores.grad)) for scores in crf.parameters())
    with torch.no_grad():
        decoded, marginals_BWL = crf.decode(emissions_BWL, mask_BW), crf.marginals(emissions_BWL, mask_BW)
        for b, words in enumerate(lengths):
            alone_1WL, labels_1W = emissions_BWL[b : b + 1, :words], labels_BW[b : b + 1, :words]
            torch.testing.assert_close(nll_B[b], crf(alone_1WL, labels_1W)[0], atol=1e-5, rtol=1e-6)
            assert decoded[b] == crf.decode(alone_1WL)[0]
            torch.testing.assert_close(marginals_BWL[b, :words], crf.marginals(alone_1WL)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("sentences, words", [(0, 0), (0, 3), (2, 0), (2, 3)])
def test_batches_without_words(sentences, words):
    crf = make_crf(SCHEMES[1])
    emissions_BWL, labels_BW, mask_BW = make_batch([0] * sentences, words=words)
    nll_B = crf(emissions_BWL.requires_grad_(), labels_BW, mask_BW)
    assert nll_B.tolist() == [0.0] * sentences
    nll_B.sum().backward()  # a process with nothing to do still takes part in the reduction of gradients
    assert all(torch.all(scores.grad == 0) for scores in crf.parameters())
    assert crf.decode(emissions_BWL, mask_BW) == [[]] * sentences
    assert crf.marginals(emissions_BWL, mask_BW).shape == emissions_BWL.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computes_in_float32_inside_autocast_and_for_narrow_emissions(dtype):
    crf = make_crf(SCHEMES[1])
    emissions_BWL, labels_BW, mask_BW = make_batch([200, 150], scale=5.0)
    labels_BW[:] = 0
    narrow_BWL = emissions_BWL.to(dtype)
    expected_B = crf(narrow_BWL.float(), labels_BW, mask_BW)
    expected_BWL = crf.marginals(narrow_BWL.float(), mask_BW)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nll_B, marginals_BWL = crf(narrow_BWL, labels_BW, mask_BW), crf.marginals(narrow_BWL, mask_BW)
        decoded = crf.decode(narrow_BWL, mask_BW)
    assert nll_B.dtype == marginals_BWL.dtype == torch.float32
    assert torch.equal(nll_B, expected_B) and torch.equal(marginals_BWL, expected_BWL)
    assert decoded == crf.decode(narrow_BWL.float(), mask_BW)
    # A layer whose parameters are narrow themselves, as DeepSpeed makes them, computes in float32 as well.
    narrow_crf = make_crf(SCHEMES[1]).to(dtype)
    wide_crf = make_crf(SCHEMES[1]).to(dtype).float()
    assert torch.equal(narrow_crf(narrow_BWL, labels_BW, mask_BW), wide_crf(narrow_BWL.float(), labels_BW, mask_BW))


def test_learns_which_label_follows_which():
    """Emissions that say nothing: only the transitions can learn that labels 1 and 2 alternate."""
    crf = LinearChainCRF(5)
    labels_BW = torch.tensor([[1, 2] * 4, [2, 1] * 4])
    emissions_BWL = torch.zeros(2, 8, 5)
    emissions_BWL[0, 0, 1] = emissions_BWL[1, 0, 2] = 1.0
    optimizer = torch.optim.Adam(crf.parameters(), lr=0.1)
    first = crf(emissions_BWL, labels_BW).sum().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = crf(emissions_BWL, labels_BW).sum()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 10
    assert crf.decode(emissions_BWL) == labels_BW.tolist()


def test_compiles_into_one_graph():
    crf = make_crf(SCHEMES[1])
    emissions_BWL, labels_BW, mask_BW = make_batch([4, 2])
    compiled = torch.compile(crf, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(emissions_BWL, labels_BW, mask_BW), crf(emissions_BWL, labels_BW, mask_BW))


class Decoding(torch.nn.Module):
    def __init__(self, crf: LinearChainCRF) -> None:
        super().__init__()
        self.crf = crf

    def forward(self, emissions_BWL: torch.Tensor, mask_BW: torch.Tensor) -> torch.Tensor:
        return self.crf.best_labels(emissions_BWL, mask_BW)


def test_decoding_is_exported_for_any_number_of_sentences(tmp_path):
    decoding = Decoding(make_crf(SCHEMES[1]))
    emissions_BWL, _, mask_BW = make_batch([4, 2])
    number = {0: torch.export.Dim("sentences", max=512)}
    program = torch.export.export(decoding, (emissions_BWL, mask_BW), dynamic_shapes=(number, number))
    torch.export.save(program, tmp_path / "crf.pt2")
    shipped = torch.export.load(tmp_path / "crf.pt2").module()
    emissions_BWL, _, mask_BW = make_batch([4, 0, 3, 1, 2])
    labels_BW = shipped(emissions_BWL, mask_BW)
    assert torch.equal(labels_BW, decoding(emissions_BWL, mask_BW))
    assert [row[:n].tolist() for row, n in zip(labels_BW, [4, 0, 3, 1, 2], strict=True)] == decoding.crf.decode(
        emissions_BWL, mask_BW
    )
    assert (labels_BW[~mask_BW] == 0).all()


def test_wrong_arguments_are_refused():
    crf = make_crf()
    emissions_BWL, labels_BW, mask_BW = make_batch([3, 2])
    with pytest.raises(ValueError, match="holes"):
        crf(emissions_BWL, labels_BW, torch.tensor([[1, 1, 1], [1, 0, 1]]))
    with pytest.raises(ValueError, match="holes"):
        crf.decode(emissions_BWL, torch.tensor([[0, 1, 1], [1, 1, 1]]))
    with pytest.raises(ValueError, match="labels .* do not fit"):
        crf(emissions_BWL, labels_BW[:, :2], mask_BW)
    with pytest.raises(ValueError, match="mask .* does not fit"):
        crf.marginals(emissions_BWL, mask_BW[:1])
    with pytest.raises(ValueError, match=r"not \[B, W, 5\]"):
        crf.decode(emissions_BWL[:, :, :4])
    for wrong in (-100, 5):
        labels_BW[1, 1] = wrong
        with pytest.raises(ValueError, match="outside 0 .. 4"):
            crf(emissions_BWL, labels_BW, mask_BW)
    with pytest.raises(ValueError, match="allowed start has shape"):
        LinearChainCRF(5, allowed_start=[True] * 4)
    with pytest.raises(ValueError, match="at least one label"):
        LinearChainCRF(0)


class Config(PretrainedConfig):
    model_type = "crf_test"


class Encoder(PreTrainedModel):
    """Stands for an encoder whose checkpoint knows nothing of a CRF."""

    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.body = torch.nn.Linear(3, 5)
        self.post_init()


class Recognizer(PreTrainedModel):
    """An encoder with a CRF, as a recognizer holds it."""

    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.body = torch.nn.Linear(3, 5)
        scheme = SCHEMES[2]
        self.crf = LinearChainCRF(5, scheme.allowed_transitions(), scheme.allowed_start(), scheme.allowed_end())
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, LinearChainCRF):
            module.reset_parameters()
        else:
            super()._init_weights(module)


def test_transformers_save_and_load_keep_scores_and_constraints(tmp_path):
    model = Recognizer(Config())
    model.crf.load_state_dict(make_crf(SCHEMES[2], seed=3).state_dict())
    model.save_pretrained(tmp_path)
    loaded, info = Recognizer.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_transformers_initialize_a_crf_the_checkpoint_lacks(tmp_path):
    encoder = Encoder(Config())
    encoder.save_pretrained(tmp_path)
    loaded, info = Recognizer.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"crf"}
    assert torch.equal(loaded.body.weight, encoder.body.weight)
    for scores in loaded.crf.parameters():
        assert 0 < scores.abs().max() <= 0.1
    expected = make_crf(SCHEMES[2])
    for name, allowed in expected.named_buffers():
        assert not allowed.all() and torch.equal(loaded.crf.get_buffer(name), allowed), name


def test_meta_device_and_reset():
    with torch.device("meta"):
        crf = LinearChainCRF(5, SCHEMES[1].allowed_transitions(), SCHEMES[1].allowed_start())
    assert crf.transitions.is_meta and crf.allowed_transitions.is_meta
    crf.to_empty(device="cpu")
    crf.reset_parameters()
    assert torch.equal(crf.allowed_transitions, make_crf(SCHEMES[1]).allowed_transitions)
    assert 0 < crf.transitions.abs().max() <= 0.1


def test_gradients_reach_the_parameters_in_one_order():
    """ZeRO-2 adds up, over processes, what comes at the same time; processes may have sentences of any length."""
    orders = set()
    for lengths in ([1], [1, 1], [2], [5, 1, 3], [0, 2], [0]):
        crf = make_crf(SCHEMES[1])
        order = []
        for name, parameter in crf.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name, order=order: order.append(name))
        emissions_BWL, labels_BW, mask_BW = make_batch(lengths)
        emissions_BWL = torch.tanh(emissions_BWL.requires_grad_())  # as if an encoder stood before
        crf(emissions_BWL, labels_BW, mask_BW).sum().backward()
        orders.add(tuple(order))
    assert len(orders) == 1 and len(next(iter(orders))) == 3, orders


def test_docstring_examples():
    assert doctest.testmod(finetune.crf).failed == 0


def log_partition_and_gradients(function, crf, emissions_BWL, mask_BW):
    emissions_BWL = emissions_BWL.clone().requires_grad_()
    result_B = function(crf.scores(), emissions_BWL.masked_fill(~mask_BW[:, :, None], 0.0), mask_BW)
    generator = torch.Generator().manual_seed(5)
    gradients = torch.autograd.grad(
        (result_B * torch.rand(len(result_B), generator=generator)).sum(),
        [*crf.parameters(), emissions_BWL],
        materialize_grads=True,  # one word has no transitions
    )
    return [result_B.detach(), *gradients]


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.1, 1.0, 30.0, 300.0]),
)
def test_scaled_products_equal_sums_of_logs(scheme, lengths, seed, scale):
    crf = make_crf(scheme, seed, scale)
    emissions_BWL, _, mask_BW = make_batch(lengths, seed, scale)
    found = log_partition_and_gradients(finetune.crf.log_partition, crf, emissions_BWL, mask_BW)
    in_logs = [*crf.double().parameters()], emissions_BWL.double()
    expected = log_partition_and_gradients(finetune.crf.log_partition_in_logs, crf, in_logs[1], mask_BW)
    for name, one, other in zip(("log Z", "start", "transitions", "end", "emissions"), found, expected, strict=True):
        torch.testing.assert_close(
            one.double(), other, rtol=2e-6, atol=2e-6 * max(1.0, scale), msg=lambda m, name=name: f"{name}: {m}"
        )


def test_sums_out_of_the_range_of_products_are_taken_in_logs():
    """Each word favours a label, by more than the smallest double, that may not follow the word's before."""
    crf = LinearChainCRF(2, allowed_transitions=[[True, False], [False, True]])
    emissions_BWL = torch.zeros(2, 3, 2)
    emissions_BWL[0, torch.arange(3), torch.tensor([0, 1, 0])] = 2000.0
    mask_BW = torch.ones(2, 3, dtype=torch.bool)
    assert not finetune.crf._LogPartition.apply(*crf.scores(), emissions_BWL, mask_BW)[1]
    found = log_partition_and_gradients(finetune.crf.log_partition, crf, emissions_BWL, mask_BW)
    expected = log_partition_and_gradients(finetune.crf.log_partition_in_logs, crf, emissions_BWL, mask_BW)
    assert found[0][0] == pytest.approx(4000, abs=1)
    for one, other in zip(found, expected, strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other)


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES),
    lengths=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    seed=st.integers(0, 10**6),
)
def test_cross_entropy_of_two_crfs_equals_enumeration(scheme, lengths, seed):
    teacher, student = make_crf(scheme, seed), make_crf(scheme, seed + 1)
    teacher_BWL, _, mask_BW = make_batch(lengths, seed)
    student_BWL, _, _ = make_batch(lengths, seed + 1)
    expected = teacher.expected_counts(teacher_BWL, mask_BW)
    assert not any(tensor.requires_grad for tensor in expected)
    with torch.no_grad():
        torch.testing.assert_close(expected.labels_BWL, teacher.marginals(teacher_BWL, mask_BW), atol=1e-4, rtol=0)
        found = student.cross_entropy(student_BWL, expected, mask_BW)
        plain = 0.0
        for b, words in enumerate(lengths):
            if words:
                _, scores = enumerate_paths(teacher, teacher_BWL[b], words)
                _, own = enumerate_paths(student, student_BWL[b], words)
                plain -= (scores.softmax(0) * own.log_softmax(0)).sum()
        torch.testing.assert_close(found.double(), torch.as_tensor(plain).double(), atol=1e-3, rtol=1e-5)


def test_cross_entropy_is_least_where_the_student_is_the_teacher():
    crf = make_crf(SCHEMES[1])
    emissions_BWL, _, mask_BW = make_batch([4, 2], scale=2.0)
    expected = crf.expected_counts(emissions_BWL, mask_BW)
    emissions_BWL.requires_grad_()
    crf.cross_entropy(emissions_BWL, expected, mask_BW).backward()
    for tensor in (emissions_BWL, *crf.parameters()):
        torch.testing.assert_close(tensor.grad, torch.zeros_like(tensor), atol=1e-5, rtol=0)


def test_sure_expectations_give_the_likelihood():
    """A teacher that is sure of the labels: the cross-entropy is the negative log-likelihood, and so is its gradient."""
    crf = make_crf(SCHEMES[1])
    emissions_BWL, labels_BW, mask_BW = make_batch([4, 0, 2])
    for b, path in enumerate(crf.decode(emissions_BWL, mask_BW)):
        labels_BW[b, : len(path)] = torch.tensor(path, dtype=torch.long)
    emissions_BWL = -emissions_BWL
    sure_BWL = finetune.crf.PENALTY * (1.0 - torch.nn.functional.one_hot(labels_BW, 5).float())
    losses = []
    for loss in (
        lambda e: crf(e, labels_BW, mask_BW).sum(),
        lambda e: crf.cross_entropy(e, make_crf(SCHEMES[1], seed=9).expected_counts(sure_BWL, mask_BW), mask_BW),
    ):
        given_BWL = emissions_BWL.clone().requires_grad_()
        losses.append((loss(given_BWL), torch.autograd.grad(loss(given_BWL), given_BWL)[0]))
    torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=1e-5)
