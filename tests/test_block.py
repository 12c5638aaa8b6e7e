"""The layers of a transformer block by hand: PyTorch's gradients, and transformers' BertLayer."""
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call, vjp
from transformers import AutoModel, AutoTokenizer, BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from ft_course.model.checkpoints import resolve
from ft_course.theory.block import (attention, attention_backward, block, block_backward, dropout, dropout_mask, embedding,
                                    embedding_backward, gelu, gelu_backward, layer_norm, layer_norm_backward, linear,
                                    linear_backward, merge_heads, softmax, softmax_backward, split_heads)
from ft_course.theory.formulas import numerical_gradient, relative_error

sizes, seeds = st.integers(1, 5), st.integers(0, 10**6)
leading = st.lists(st.integers(1, 3), min_size=1, max_size=3)
over_shapes = settings(max_examples=40, deadline=None)


def normal(seed: int, *shapes: tuple) -> list[torch.Tensor]:
    "Normal numbers in float64."
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def assert_measured(gradients: tuple, g: torch.Tensor, forward, *args):
    "Compare with central differences of g times the result; gradients that vanish are compared by their size."
    for i, gradient in enumerate(gradients):
        measured = numerical_gradient(lambda *args: g * forward(*args), i)(*args)
        torch.testing.assert_close(gradient, measured, rtol=1e-6, atol=1e-7)


@over_shapes
@given(leading, sizes, sizes, seeds)
def test_linear(lead, n_in, n_out, seed):
    x, W, b, g = normal(seed, (*lead, n_in), (n_out, n_in), (n_out,), (*lead, n_out))
    u, back = vjp(F.linear, x, W, b)
    assert_equal(linear(x, W, b), u)
    assert_equal(linear_backward(g, x, W), back(g))
    assert_measured(linear_backward(g, x, W), g, linear, x, W, b)


@over_shapes
@given(leading, sizes, sizes, seeds)
def test_embedding(lead, rows, width, seed):
    ids = torch.randint(rows, lead, generator=torch.Generator().manual_seed(seed))
    W, g = normal(seed, (rows, width), (*lead, width))
    u, back = vjp(lambda W: F.embedding(ids, W), W)
    assert_equal(embedding(ids, W), u)
    assert_equal(embedding_backward(g, ids, rows), *back(g))
    assert_measured((embedding_backward(g, ids, rows),), g, lambda W: embedding(ids, W), W)


@over_shapes
@given(leading, seeds)
def test_gelu(lead, seed):
    x, g = normal(seed, lead, lead)
    u, back = vjp(F.gelu, 3 * x)
    assert_equal(gelu(3 * x), u)
    assert_equal(gelu_backward(g, 3 * x), *back(g))
    assert_measured((gelu_backward(g, 3 * x),), g, gelu, 3 * x)


@over_shapes
@given(leading, st.integers(2, 6), seeds)
def test_layer_norm(lead, width, seed):
    x, w, b, g = normal(seed, (*lead, width), (width,), (width,), (*lead, width))
    u, back = vjp(lambda x, w, b: F.layer_norm(x, (width,), w, b, 0.1), x, w, b)
    assert_equal(layer_norm(x, w, b, 0.1), u)
    assert_equal(layer_norm_backward(g, x, w, 0.1), back(g))
    assert_measured(layer_norm_backward(g, x, w, 0.1), g, lambda x, w, b: layer_norm(x, w, b, 0.1), x, w, b)


def test_a_constant_vector_has_no_direction_but_a_norm():
    "Where the variance is 0, only eps keeps the quotient finite."
    x, w = torch.ones(1, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    assert torch.equal(layer_norm(x, w, torch.zeros(4)), torch.zeros(1, 4, dtype=torch.float64))
    assert all(g.isfinite().all() for g in layer_norm_backward(x, x, w))


@over_shapes
@given(leading, sizes, st.floats(0, 500), seeds)
def test_softmax(lead, n, scale, seed):
    z, g = normal(seed, (*lead, n), (*lead, n))
    p, back = vjp(lambda z: z.softmax(-1), scale * z)
    assert_equal(softmax(scale * z), p)
    assert_equal(softmax_backward(g, p), *back(g))


def test_dropout_is_pytorchs():
    x, g = normal(0, (50, 40), (50, 40))
    torch.manual_seed(7)
    u, back = vjp(lambda x: F.dropout(x, 0.3), x)
    keep = dropout_mask(50, 40, p=0.3, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(dropout(x, keep), u, rtol=1e-6, atol=0)  # the mask is drawn in float32
    torch.testing.assert_close(dropout(g, keep), *back(g), rtol=1e-6, atol=0)
    assert set(keep.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}


@over_shapes
@given(st.lists(st.integers(1, 3), max_size=2), sizes, sizes, sizes, st.floats(0, 1), seeds)
def test_attention_with_any_mask(lead, tokens, n, width, share, seed):
    "Rows in which nothing may be seen come up by themselves: the share of hidden keys goes up to 1."
    q, k, v, g = normal(seed, (*lead, tokens, width), (*lead, n, width), (*lead, n, width), (*lead, tokens, width))
    mask = torch.rand(*lead, tokens, n, generator=torch.Generator().manual_seed(seed)) >= share
    u, back = vjp(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, mask), q, k, v)
    gradients = attention_backward(g, q, k, v, mask)
    assert_equal(attention(q, k, v, mask), u)
    assert_equal(gradients, back(g))
    assert_measured(gradients, g, lambda q, k, v: attention(q, k, v, mask), q, k, v)


@over_shapes
@given(sizes, sizes, sizes, seeds)
def test_dropped_shares(tokens, n, width, seed):
    q, k, v, g = normal(seed, (tokens, width), (n, width), (n, width), (tokens, width))
    keep = dropout_mask(tokens, n, p=0.5, generator=torch.Generator().manual_seed(seed)).double()
    gradients = attention_backward(g, q, k, v, keep=keep)
    assert_equal(gradients, vjp(lambda q, k, v: attention(q, k, v, keep=keep), q, k, v)[1](g))
    assert_measured(gradients, g, lambda q, k, v: attention(q, k, v, keep=keep), q, k, v)


def test_a_row_without_keys():
    "It gets zeros and passes nothing back, while its neighbours are untouched."
    q, k, v, g = normal(0, (2, 3, 4), (2, 3, 4), (2, 3, 4), (2, 3, 4))
    mask = torch.tensor([[[True]], [[False]]])
    assert_equal(attention(q, k, v, mask)[0], attention(q[0], k[0], v[0]))
    assert not attention(q, k, v, mask)[1].any()
    for gradient, alone in zip(attention_backward(g, q, k, v, mask), attention_backward(g[0], q[0], k[0], v[0])):
        assert_equal(gradient[0], alone)
        assert not gradient[1].any()


def test_a_hidden_key_is_not_seen_however_large():
    q, k, v, g = normal(0, (3, 4), (5, 4), (5, 4), (3, 4))
    mask = torch.tensor([True, True, True, False, False])
    loud = k.clone()
    loud[3:] = 1e6
    assert_equal(attention(q, loud, v, mask), attention(q[:], k[:3], v[:3]))
    _, g_k, g_v = attention_backward(g, q, loud, v, mask)
    assert not g_k[3:].any() and not g_v[3:].any()


@over_shapes
@given(leading, sizes, sizes, seeds)
def test_heads_split_and_merge(lead, heads, width, seed):
    x, = normal(seed, (*lead, 3, heads * width))
    assert split_heads(x, heads).shape == (*lead, heads, 3, width)
    assert torch.equal(merge_heads(split_heads(x, heads)), x)
    assert torch.equal(split_heads(x, heads).select(-3, heads - 1), x[..., -width:])


def bert_layer(heads: int = 2, width: int = 4, wide: int = 10, seed: int = 0, implementation: str = "eager", dropout: float = 0.0):
    "A layer of transformers with random parameters, biases and norms included, and its parameters by name."
    torch.manual_seed(seed)
    layer = BertLayer(BertConfig(hidden_size=heads * width, num_attention_heads=heads, intermediate_size=wide, attn_implementation=implementation,
                                 hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)).double()
    return layer, {name: torch.randn_like(p) / 2 for name, p in layer.named_parameters()}


def run_layer(layer: BertLayer, mask: torch.Tensor):
    "The layer as a function of its input and parameters; eager attention adds the mask, the other takes it."
    if layer.attention.self.config._attn_implementation == "eager":
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -math.inf)
    return lambda x, weights: functional_call(layer, weights, (x, mask))


def padding(tokens: int, *lengths: int) -> torch.Tensor:
    "The mask (B, 1, 1, T) of sentences of these lengths."
    return (torch.arange(tokens) < torch.tensor(lengths)[:, None])[:, None, None]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@settings(max_examples=12, deadline=None)
@given(heads=st.integers(1, 3), width=st.integers(2, 4), wide=sizes, tokens=st.integers(2, 5), seed=seeds)
def test_block_equals_bert_layer(implementation, heads, width, wide, tokens, seed):
    layer, weights = bert_layer(heads, width, wide, seed, implementation)
    x, g = normal(seed, (2, tokens, heads * width), (2, tokens, heads * width))
    mask = padding(tokens, tokens, tokens - 1)
    u, back = vjp(run_layer(layer.eval(), mask), x, weights)
    assert_equal(block(x, weights, heads, mask), u)
    assert_equal(block_backward(g, x, weights, heads, mask), back(g))


def test_block_equals_bert_layer_in_training():
    "With the masks that torch draws, in the order in which the layer draws them."
    layer, weights = bert_layer(dropout=0.2)
    x, g = normal(1, (2, 5, 8), (2, 5, 8))
    mask = padding(5, 5, 3)
    torch.manual_seed(3)
    u, back = vjp(run_layer(layer.train(), mask), x, weights)
    torch.manual_seed(3)
    keep = [torch.empty(shape, dtype=torch.float64).bernoulli_(0.8) / 0.8 for shape in ((2, 2, 5, 5), (2, 5, 8), (2, 5, 8))]
    assert not torch.allclose(block(x, weights, 2, mask), u)
    assert_equal(block(x, weights, 2, mask, keep), u)
    assert_equal(block_backward(g, x, weights, 2, mask, keep), back(g))


def test_block_with_a_sentence_of_padding_only():
    layer, weights = bert_layer(implementation="sdpa")
    x, g = normal(2, (2, 4, 8), (2, 4, 8))
    mask = padding(4, 4, 0).expand(2, 1, 4, 4)
    u, back = vjp(run_layer(layer.eval(), mask), x, weights)
    assert u.isfinite().all()
    assert_equal(block(x, weights, 2, mask), u)
    assert_equal(block_backward(g, x, weights, 2, mask), back(g))


def test_padding_cannot_disturb_and_cannot_learn():
    _, weights = bert_layer()
    x, other, g = normal(3, (1, 5, 8), (1, 5, 8), (1, 5, 8))
    mask, g[:, 3:] = padding(5, 3), 0
    other[:, :3] = x[:, :3]
    assert_equal(block(x, weights, 2, mask)[:, :3], block(x[:, :3], weights, 2))
    for padded in (x, other):
        g_x, grads = block_backward(g, padded, weights, 2, mask)
        alone, expected = block_backward(g[:, :3], x[:, :3], weights, 2)
        assert_equal(g_x[:, :3], alone)
        assert not g_x[:, 3:].any()
        assert_equal(grads, expected)


def test_every_parameter_gets_a_gradient():
    layer, weights = bert_layer()
    x, g = normal(4, (2, 5, 8), (2, 5, 8))
    _, grads = block_backward(g, x, weights, 2)
    assert {name: p.shape for name, p in layer.named_parameters()} == {name: grads[name].shape for name in weights}
    assert {name for name, grad in grads.items() if grad.norm() < 1e-10} == {"attention.self.key.bias"}


@pytest.mark.parametrize("number", [0, 5])
def test_a_real_layer_of_minilm(number):
    "On two sentences of unequal length, with what the layers below make of them."
    folder = resolve("minilm")
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(["A small model, but a real one.", "Padding follows."], padding=True, return_tensors="pt")
    x = model(**tokens, output_hidden_states=True).hidden_states[number].detach()
    layer, mask = model.encoder.layer[number], tokens["attention_mask"].bool()[:, None, None]
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    g, = normal(5, x.shape)
    u, back = vjp(lambda x, weights: functional_call(layer, weights, (x, mask)), x, weights)
    heads = model.config.num_attention_heads
    assert relative_error(block(x, weights, heads, mask), u) < 1e-10
    (g_x, grads), (expected, theirs) = block_backward(g, x, weights, heads, mask), back(g)
    errors = {name: relative_error(grads[name], theirs[name]) for name in weights if name != "attention.self.key.bias"}
    assert len(errors) == 15 and max(errors.values()) < 1e-10
    assert relative_error(g_x, expected) < 1e-10
    assert max(grads["attention.self.key.bias"].norm(), theirs["attention.self.key.bias"].norm()) < 1e-10
