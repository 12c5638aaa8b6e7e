"""Losses against torch and transformers: shapes, types, labels to skip, extreme logits, and gradients."""
import math

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import BertConfig
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.trainer_pt_utils import LabelSmoother

from ft_course.theory.distributions import kl_divergence, perplexity, sequence_nll, smoothed_cross_entropy
from ft_course.theory.kinds import KINDS, TEXTS, Kind, find_kind, inputs_in, kind_of_head
from ft_course.theory.losses import IGNORE, binary_cross_entropy, cross_entropy, mean_squared_error

each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
seeds = st.integers(0, 10**6)


def drawn(shape, classes, seed, scale=3.0):
    "Logits (*shape, classes) that take a gradient, and labels of which about a third are to be skipped."
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(*shape, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.3] = IGNORE
    return logits.requires_grad_(), labels


def same(ours, theirs, logits, **tolerance):
    "Equal sums, and equal gradients in the logits."
    torch.testing.assert_close(ours, theirs, **tolerance)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)), **tolerance)


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(2, 6), seeds, st.sampled_from([0.0, 0.1, 0.7]))
def test_class_losses_equal_torch(shape, classes, seed, smoothing):
    logits, labels = drawn(shape, classes, seed)
    theirs = F.cross_entropy(logits.reshape(-1, classes), labels.reshape(-1), reduction="sum", ignore_index=IGNORE, label_smoothing=smoothing)
    ours, count = smoothed_cross_entropy(logits, labels, smoothing)
    same(ours, theirs, logits)
    assert count == (labels != IGNORE).sum()
    if smoothing == 0.0:
        again, count_again = cross_entropy(logits, labels)
        same(again, theirs, logits)
        assert count_again == count


@settings(deadline=None, max_examples=60)
@given(shapes, seeds, st.booleans())
def test_binary_cross_entropy_equals_torch(shape, seed, soft):
    logits, labels = drawn(shape, 3, seed)[0], drawn((*shape, 3), 2, seed + 1)[1].double()
    labels = torch.where((labels != IGNORE) & soft, labels * 0.8 + 0.1, labels)
    known = labels != IGNORE
    theirs = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0), known.double(), reduction="sum")
    ours, count = binary_cross_entropy(logits, labels)
    same(ours, theirs, logits)
    assert count == known.sum()


@settings(deadline=None, max_examples=60)
@given(shapes, seeds)
def test_mean_squared_error_equals_torch(shape, seed):
    predictions, _ = drawn(shape, 3, seed)
    labels = drawn(shape, 3, seed + 1)[0].detach()
    ours, count = mean_squared_error(predictions, labels)
    same(ours, F.mse_loss(predictions, labels, reduction="sum"), predictions)
    assert count == labels.numel()


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(2, 6), seeds)
def test_divergence_equals_torch_in_both_arguments(shape, classes, seed):
    p, labels = drawn(shape, classes, seed)
    q = drawn(shape, classes, seed + 1)[0]
    mask = labels != IGNORE
    theirs = F.kl_div(q.log_softmax(-1)[mask], p.log_softmax(-1)[mask], reduction="sum", log_target=True)
    for given_mask in (mask, mask.long()):
        ours, count = kl_divergence(p, q, given_mask)
        same(ours, theirs, p)
        same(ours, theirs, q)
        assert count == mask.sum()
    everywhere = kl_divergence(p, q, torch.ones(shape))
    torch.testing.assert_close(kl_divergence(p, q), everywhere)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(2, 7), st.integers(2, 6), seeds)
def test_sequences_equal_the_loss_of_transformers(batch, length, vocabulary, seed):
    logits, labels = drawn((batch, length), vocabulary, seed)
    ours, count = sequence_nll(logits, labels)
    theirs = ForCausalLMLoss(logits, labels, vocabulary, num_items_in_batch=torch.tensor(1))
    torch.testing.assert_close(ours.float(), theirs.float())
    assert count == (labels[:, 1:] != IGNORE).sum()
    one_by_one = [sequence_nll(row, label) for row, label in zip(logits, labels)]
    torch.testing.assert_close(sum(loss for loss, _ in one_by_one), ours)


def test_a_place_is_scored_by_the_logits_before_it():
    logits, labels = torch.zeros(1, 4, 5), torch.tensor([[0, 1, 2, 3]])
    logits[0, torch.arange(3), labels[0, 1:]] = 100.0
    assert sequence_nll(logits, labels) == (0.0, 3)
    assert sequence_nll(logits[:, :1], labels[:, :1]) == (0.0, 0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_equals_that_of_transformers(smoothing):
    logits, labels = drawn((3, 5), 4, seed=0)
    loss, count = smoothed_cross_entropy(logits, labels, smoothing)
    torch.testing.assert_close(loss / count, LabelSmoother(epsilon=smoothing)({"logits": logits}, labels))


# ---- labels to skip, parts of a batch, types of numbers

LOSSES = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": lambda logits, labels: binary_cross_entropy(logits[..., 0], labels.clamp(max=1)),
    "sequence_nll": sequence_nll,
    "smoothed_cross_entropy": smoothed_cross_entropy,
    "kl_divergence": lambda logits, labels: kl_divergence(logits, logits.detach().flip(-1), labels != IGNORE),
    "mean_squared_error": lambda logits, labels: mean_squared_error(logits[..., 0], labels.to(logits.dtype)),
}
SKIPPING = [name for name in LOSSES if name != "mean_squared_error"]
each_loss = pytest.mark.parametrize("name", LOSSES)
each_skipping = pytest.mark.parametrize("name", SKIPPING)


@each_skipping
def test_nothing_to_learn_is_zero_and_zero(name):
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss, count = LOSSES[name](logits, torch.full((2, 3), IGNORE))
    assert loss.item() == 0 and count == 0
    loss.backward()
    assert logits.grad.count_nonzero() == 0


@each_skipping
def test_what_is_skipped_does_not_matter(name):
    logits, labels = drawn((4, 6), 3, seed=1)
    skipped = labels == IGNORE
    if name == "sequence_nll":
        skipped = F.pad(labels[:, 1:], (0, 1), value=IGNORE) == IGNORE
    changed = torch.where(skipped[..., None], 50.0, logits.detach())
    torch.testing.assert_close(LOSSES[name](changed, labels), LOSSES[name](logits.detach(), labels))


@each_loss
def test_a_batch_is_the_sum_of_its_parts(name):
    logits, labels = drawn((7, 5), 3, seed=2)
    whole = LOSSES[name](logits, labels)
    parts = [LOSSES[name](z, y) for z, y in zip(logits.split([4, 1, 2]), labels.split([4, 1, 2]))]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole[0])
    assert sum(count for _, count in parts) == whole[1] and isinstance(whole[1], int)


@each_dtype
@each_loss
def test_types_of_numbers(name, dtype):
    logits, labels = drawn((3, 4), 5, seed=3)
    exact, count = LOSSES[name](logits, labels)
    loss, again = LOSSES[name](logits.detach().to(dtype).requires_grad_(), labels)
    assert loss.dtype == dtype and again == count and loss.requires_grad
    torch.testing.assert_close(loss.double(), exact, rtol=torch.finfo(dtype).eps * 10, atol=0)


# ---- where the mathematics is right and the number might not be

@each_dtype
@pytest.mark.parametrize("z", [0.0, 40.0, -40.0, 1e4, -1e4])
@pytest.mark.parametrize("y", [0, 1])
def test_binary_cross_entropy_of_any_logit(dtype, z, y):
    logits = torch.tensor([z], dtype=dtype, requires_grad=True)
    loss, _ = binary_cross_entropy(logits, torch.tensor([y]))
    loss.backward()
    exact = abs(z) * (y == (z < 0)) + math.log1p(math.exp(-abs(z)))
    belief = 1 / (1 + math.exp(-z)) if z > -700 else 0.0
    tolerance = dict(rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    torch.testing.assert_close(loss.double(), torch.tensor(exact, dtype=torch.float64), **tolerance)
    torch.testing.assert_close(logits.grad.double(), torch.tensor([belief - y], dtype=torch.float64), **tolerance)


@pytest.mark.parametrize("name", ["cross_entropy", "smoothed_cross_entropy", "sequence_nll", "kl_divergence", "binary_cross_entropy"])
def test_extreme_logits_stay_finite(name):
    logits = (1e4 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss, _ = LOSSES[name](logits, torch.tensor([0, 1, 2, 3, 0, 1]))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_perplexity():
    assert perplexity(torch.tensor(0.0), 5) == 1.0
    assert perplexity(2 * math.log(50), 2) == pytest.approx(50) and perplexity(torch.tensor(200.0), 1) == pytest.approx(math.exp(200))
    assert perplexity(*sequence_nll(torch.zeros(2, 9, 30), torch.zeros(2, 9, dtype=torch.long))) == pytest.approx(30)
    assert perplexity(1e6, 1) == math.inf and math.isnan(perplexity(torch.tensor(0.0), 0))


# ---- labels that fit the shape of no answer

@pytest.mark.parametrize("logits, labels, message", [
    (torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), r"logits \(4, 3\), labels \(4,\): each logit needs its own label"),
    (torch.zeros(3, 3), torch.tensor([0, 1, 2]), r"logits \(3, 3\), labels \(3,\)"),
    (torch.zeros(4, 1), torch.tensor([0, 1, 1, 0]), r"logits \(4, 1\), labels \(4,\)"),
    (torch.zeros(4), torch.tensor([0, 1, 2, IGNORE]), "labels from 0 to 2: .* cross_entropy"),
    (torch.zeros(2), torch.tensor([-1.0, 1.0]), "labels from -1 to 1"),
    (torch.zeros(1), torch.tensor([math.nan]), "labels from nan to nan"),
])
def test_class_numbers_are_no_yes_and_no(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        binary_cross_entropy(logits, labels)


@pytest.mark.parametrize("shape", [(1, 4), (2, 2), (), (4, 2), (4, 1, 1)])
def test_numbers_are_compared_one_by_one(shape):
    with pytest.raises(ValueError, match="the shapes must be the same"):
        mean_squared_error(torch.zeros(shape), torch.zeros(4))


@settings(deadline=None, max_examples=30)
@given(shapes, seeds)
def test_a_head_with_one_output_gives_numbers(shape, seed):
    predictions, _ = drawn((*shape, 1), 1, seed)
    predictions = predictions[..., 0]
    labels = drawn(shape, 3, seed + 1)[0].detach()[..., 0]
    ours, count = mean_squared_error(predictions, labels)
    same(ours, F.mse_loss(predictions.squeeze(-1), labels, reduction="sum"), predictions)
    assert count == labels.numel()


# ---- kinds of questions

TOPICS = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
ANSWERS = {"classify": torch.tensor([0, 2, 1, 1]), "multilabel": TOPICS, "regression": torch.tensor([4.5, 1.0, 3.0, -100.0]),
           "ner": torch.tensor([[0, 2, 1], [1, IGNORE, 0], [2, 2, IGNORE], [IGNORE] * 3])}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def head(kind: Kind, **settings):
    "A tiny random BERT with the head of a kind."
    torch.manual_seed(0)
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                        num_labels=1 if kind.name == "regression" else 3, problem_type=kind.problem_type, **settings)
    return getattr(transformers, kind.head).from_config(config).eval()


@each_kind
def test_the_loss_of_a_kind_is_that_of_transformers(kind):
    labels = ANSWERS[kind.name]
    theirs = head(kind)(torch.randint(5, 50, (4, 3), generator=torch.Generator().manual_seed(0)), labels=labels)
    loss, count = kind.loss(theirs.logits, labels)
    assert labels.dtype == kind.dtype and count == (labels.numel() if kind.name == "regression" else (labels != IGNORE).sum())
    torch.testing.assert_close(loss / count, theirs.loss)


@each_kind
def test_answers_that_are_right_and_sure_cost_nothing(kind):
    "What `decode` reads off the logits of a perfect model are the labels."
    labels = ANSWERS[kind.name]
    known = labels if kind.name == "regression" else labels.clamp(min=0)
    logits = {"multilabel": lambda: 50 * (2 * known - 1), "regression": lambda: known[:, None]}.get(kind.name, lambda: 50.0 * F.one_hot(known, 3))()
    assert kind.loss(logits, labels)[0] < 1e-6
    for row, label in zip(logits.numpy(), known.numpy()):
        answer = kind.decode(row)
        assert answer.shape == label.shape and (answer == label).all() and answer.dtype.kind == ("f" if kind.name == "regression" else "i")


@pytest.mark.parametrize("columns, name", [
    (("text", "label"), "classify"), (("id", "text_a", "text_b", "label"), "classify"), (("text", "labels"), "multilabel"),
    (("text_a", "text_b", "score"), "regression"), (("tokens", "ner_tags", "id"), "ner")])
def test_columns_tell_the_kind(columns, name):
    kind = find_kind(columns)
    assert kind is KINDS[name] and set(inputs_in(kind, columns)) == {c for c in columns if c.startswith(("text", "tokens"))}


@pytest.mark.parametrize("columns, among, message", [
    (("text", "stars"), KINDS, "text, stars fit no kind of question"), (("text_a", "label"), KINDS, "fit no kind"),
    (("text", "label", "score"), KINDS, "fit classify and regression: name the kind"), (("tokens", "ner_tags"), TEXTS, "fit no kind"),
    (("text", "ner_tags"), KINDS, "fit no kind")])
def test_columns_that_tell_no_kind(columns, among, message):
    with pytest.raises(ValueError, match=message):
        find_kind(columns, among)


@pytest.mark.parametrize("problem_type, outputs, name", [
    (None, 1, "regression"), (None, 2, "classify"), ("multi_label_classification", 1, "multilabel"), ("regression", 1, "regression")])
def test_heads_are_read_as_transformers_reads_them(problem_type, outputs, name):
    assert kind_of_head(problem_type, outputs) is KINDS[name]


@pytest.mark.parametrize("problem_type, outputs", [("regression", 3), ("ranking", 1)])
def test_heads_that_answer_none_of_our_questions(problem_type, outputs):
    with pytest.raises(ValueError, match=f"problem_type '{problem_type}' with {outputs} outputs: known are"):
        kind_of_head(problem_type, outputs)


def test_a_level_answer_is_no():
    "A logit of zero is a probability of exactly one half, which is not above it; of equal logits the first counts."
    assert KINDS["multilabel"].decode(np.array([0.0, -0.0, 1e-30, -1e-30])).tolist() == [0, 0, 1, 0]
    assert KINDS["classify"].decode(np.array([[2.0, 2.0], [1.0, 2.0]])).tolist() == [0, 1]


def test_a_number_is_read_off_one_output():
    with pytest.raises(ValueError, match="this head has 3"):
        KINDS["regression"].decode(torch.zeros(3).numpy())


@pytest.mark.parametrize("p, q", [([1, 0], [0.5, 0.5]), ([1, 0], [1, 0]), ([0.5, 0.5], [1, 0]), ([0.3, 0, 0.7], [0.2, 0.5, 0.3]), ([0.3, 1e-40, 0.7], [0.2, 0.5, 0.3])])
def test_divergence_of_what_is_ruled_out(p, q):
    "0 · log 0 is 0: the value of torch.distributions, and gradients that are finite wherever the value is."
    logits = [torch.tensor(x, dtype=torch.float64).log().requires_grad_() for x in (p, q)]
    total, count = kl_divergence(*logits)
    theirs = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x.detach()) for x in logits))
    assert count == 1 if logits[0].dim() > 1 else True
    torch.testing.assert_close(total.detach(), theirs)
    total.backward()
    assert theirs.isinf() or all(x.grad.isfinite().all() for x in logits)
