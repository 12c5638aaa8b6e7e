"""The tape: the gradients of PyTorch, on any expression and any shapes that broadcast."""
import gc
import random
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ft_course.theory import backprop
from ft_course.theory.backprop import Node, ancestors, backward, exp, log, matmul, relu, sum_to, tanh, total
from ft_course.theory.formulas import numerical_gradient, relative_error

seeds = st.integers(0, 10**6)


def normal(seed: int, *shapes: tuple) -> list[torch.Tensor]:
    "Arrays of these shapes in float64, as leaves of PyTorch's tape."
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def assert_same_gradients(nodes: list[Node], result: Node, leaves: list[torch.Tensor], theirs: torch.Tensor):
    "Run both tapes backwards and compare the values and what arrives at the leaves."
    torch.testing.assert_close(result.data, theirs.detach(), rtol=1e-10, atol=1e-12)
    backward(result)
    theirs.sum().backward()
    for node, leaf in zip(nodes, leaves):
        expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.testing.assert_close(node.grad, expected, rtol=1e-10, atol=1e-12)


@st.composite
def broadcast_pairs(draw):
    "Two shapes that broadcast: some sizes of either are 1, and leading dimensions of either are left out."
    full = draw(st.lists(st.integers(1, 4), max_size=4))
    return tuple(tuple(draw(st.sampled_from([size, 1])) for size in full)[draw(st.integers(0, len(full))):] for _ in range(2))


@settings(max_examples=80, deadline=None)
@given(broadcast_pairs(), st.sampled_from("+-*"), seeds)
def test_broadcasting(shapes, sign, seed):
    operate = {"+": lambda u, v: u + v, "-": lambda u, v: u - v, "*": lambda u, v: u * v}[sign]
    leaves = normal(seed, *shapes)
    nodes = [Node(leaf.detach()) for leaf in leaves]
    assert_same_gradients(nodes, operate(*nodes), leaves, operate(*leaves))


@settings(max_examples=80, deadline=None)
@given(broadcast_pairs(), seeds)
def test_sum_to_equals_torch(shapes, seed):
    full = torch.broadcast_shapes(*shapes)
    g, = normal(seed, full)
    assert torch.allclose(sum_to(g, shapes[0]), g.sum_to_size(shapes[0]))


@settings(max_examples=40, deadline=None)
@given(broadcast_pairs(), st.tuples(*[st.integers(1, 4)] * 3), seeds)
def test_matmul_of_stacks(stacks, sizes, seed):
    rows, inner, columns = sizes
    leaves = normal(seed, (*stacks[0], rows, inner), (*stacks[1], inner, columns))
    nodes = [Node(leaf.detach()) for leaf in leaves]
    assert_same_gradients(nodes, nodes[0] @ nodes[1], leaves, leaves[0] @ leaves[1])


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "relu"])
def test_functions(name):
    leaf = torch.linspace(0.1, 3, 12, dtype=torch.float64).reshape(3, 4)
    leaf = (leaf if name == "log" else leaf - 1.5).requires_grad_()
    node = Node(leaf.detach())
    result = getattr(backprop, name)(node)
    assert_same_gradients([node], result, [leaf], getattr(leaf, name)())
    measured = numerical_gradient(lambda x: getattr(backprop, name)(Node(x)).data)(leaf)
    assert relative_error(node.grad, measured) < 1e-7


@pytest.mark.parametrize("dim", [None, 0, 1, -1])
def test_total(dim):
    leaf, scale = normal(0, (2, 3, 4), ())
    node, other = Node(leaf.detach()), Node(scale.detach())
    theirs = leaf.sum(dim, keepdim=dim is not None)
    assert_same_gradients([node, other], total(node, dim) * other, [leaf, scale], theirs * scale)


STEPS = {  # how to make one result from two, on our tape and on theirs
    "add": (lambda u, v: u + v, lambda u, v: u + v),
    "subtract": (lambda u, v: u - v, lambda u, v: u - v),
    "multiply": (lambda u, v: u * v, lambda u, v: u * v),
    "matmul": (lambda u, v: 0.3 * (u @ v), lambda u, v: 0.3 * (u @ v)),
    "tanh": (lambda u, v: tanh(u), lambda u, v: u.tanh()),
    "relu": (lambda u, v: relu(u + 0.1), lambda u, v: (u + 0.1).relu()),
    "softmax-like": (lambda u, v: log(total(exp(tanh(u)), 1)) + v, lambda u, v: u.tanh().exp().sum(1, keepdim=True).log() + v),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=12), seeds)
def test_random_expressions(steps, seed):
    "Results go back into the pot, so nodes are used many times, and in any order."
    chance = random.Random(seed)
    leaves = normal(seed, (3, 3), (3, 3), (3, 3))
    nodes = [Node(leaf.detach()) for leaf in leaves]
    ours, theirs = list(nodes), list(leaves)
    for step in steps:
        i, j = chance.randrange(len(ours)), chance.randrange(len(ours))
        ours.append(tanh(STEPS[step][0](ours[i], ours[j])))
        theirs.append(STEPS[step][1](theirs[i], theirs[j]).tanh())
    assert_same_gradients(nodes, ours[-1], leaves, theirs[-1])


def test_a_node_used_twice_adds_up():
    u = Node(3.0)
    backward(u * u + u * 2 + u)
    assert u.grad == 2 * 3 + 2 + 1


def test_constants_on_either_side():
    u = Node([1.0, 2.0])
    result = 2.0 * u + 1.0 - torch.tensor([3.0, 4.0]) + torch.tensor([1.0, 1.0]) * u
    backward(result)
    assert torch.equal(result.data, torch.tensor([1.0, 3.0], dtype=torch.float64))
    assert torch.equal(u.grad, torch.tensor([3.0, 3.0], dtype=torch.float64))
    assert (Node([[1.0, 2.0]]) @ [[3.0], [4.0]]).data == 11


def test_a_second_pass_adds_as_much_as_the_first():
    "Also where inner nodes have kept gradients from the first pass."
    u = Node(0.5)
    result = tanh(exp(u) * u)
    backward(result)
    first = u.grad.clone()
    backward(result)
    assert torch.equal(u.grad, 2 * first)


def test_parents_come_after_all_that_was_made_from_them():
    u = Node(1.0)
    v = u * 2
    result = (v + u) * (v * v)
    place = {node: i for i, node in enumerate(ancestors(result))}
    assert place[result] == 0
    assert all(place[node] < place[parent] for node in place for parent, _ in node.parents)


def test_a_long_chain_needs_no_deep_stack():
    u = result = Node(1.0)
    for _ in range(5000):
        result = result + u
    backward(result)
    assert u.grad == 5001


def test_a_graph_vanishes_with_its_result():
    u = Node(1.0)
    gc.disable()
    try:
        inner = weakref.ref(result := exp(u))
        del result
        assert inner() is None, "a cycle keeps the graph alive until the garbage collector comes"
    finally:
        gc.enable()


def test_matmul_wants_matrices():
    with pytest.raises(RuntimeError):
        backward(matmul(Node(torch.ones(2, 3)), Node(torch.ones(3))))
