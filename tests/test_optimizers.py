"""Optimisers, schedules, clipping and accumulation: equal to torch and transformers over their settings, step by step."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import get_scheduler

from ft_course.theory import optimizers
from ft_course.theory.losses import IGNORE, cross_entropy
from ft_course.theory.schedules import SCHEDULES, cosine_with_restarts, polynomial, scale_gradients

STEPS = 50
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-4}
SETTINGS = [
    ("SGD", dict(lr=0.1)),
    ("SGD", dict(lr=0.1, weight_decay=0.2)),
    ("SGD", dict(lr=0.05, momentum=0.9)),
    ("SGD", dict(lr=0.05, momentum=0.5, weight_decay=0.2)),
    ("SGD", dict(lr=0.05, momentum=0.9, nesterov=True)),
    ("SGD", dict(lr=0.05, momentum=0.5, weight_decay=0.2, nesterov=True)),
    ("Adam", dict()),
    ("Adam", dict(lr=0.01, weight_decay=0.2)),
    ("Adam", dict(lr=0.01, betas=(0.5, 0.9), eps=1e-3)),
    ("AdamW", dict()),
    ("AdamW", dict(lr=0.01, weight_decay=0.2)),
    ("AdamW", dict(lr=0.01, betas=(0.0, 0.99), weight_decay=0.0)),
    ("Adafactor", dict()),
    ("Adafactor", dict(lr=0.5)),
    ("Adafactor", dict(eps=(1e-30, 1e-3))),
    ("Adafactor", dict(lr=0.01, weight_decay=0.2, d=3.0)),
    ("Adafactor", dict(lr=0.01, beta2_decay=-0.5, eps=(1e-2, 0.5))),
]
each_setting = pytest.mark.parametrize("name, settings", SETTINGS, ids=lambda value: value if isinstance(value, str) else "-".join(value) or "defaults")


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    "A vector, a matrix, a stack of matrices, and one that never gets a gradient."
    generator = torch.Generator().manual_seed(0)
    shapes = [(4,), (3, 4), (2, 3, 4), (4,)]
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def walk(optimizer: type, dtype: torch.dtype, **settings) -> list[torch.Tensor]:
    "All parameters after each step on noisy gradients of very different sizes."
    generator, weights = torch.Generator().manual_seed(1), parameters(dtype)
    optimizer, path = optimizer(weights, **settings), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = sum(10 ** -i * (w.square().sum() / 2 + (w * torch.randn(w.shape, generator=generator, dtype=torch.float64).to(dtype)).sum())
                   for i, w in enumerate(weights[:3]))
        loss.backward()
        optimizer.step()
        path.append(torch.cat([w.detach().flatten() for w in weights]))
    return path


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@each_setting
def test_equal_to_torch_after_every_step(name, settings, dtype):
    ours, theirs = (walk(getattr(module, name), dtype, **settings) for module in (optimizers, torch.optim))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= LIMITS[dtype] * b.norm()
    assert ours[0].dtype == dtype and (ours[-1] - ours[0]).norm() > 1e-2


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adafactor"])
def test_defaults_are_those_of_torch(name):
    weights = parameters(torch.float32)
    theirs = getattr(torch.optim, name)(weights).defaults
    ours = getattr(optimizers, name)(weights).defaults
    assert ours == {key: theirs[key] for key in ours}


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adafactor"])
def test_groups_keep_their_settings(name):
    "Three groups with their own rate and decay, as torch takes them."
    ends = []
    for module in (optimizers, torch.optim):
        weights = parameters(torch.float64)[:3]
        groups = [dict(params=weights[:1], lr=0.1), dict(params=weights[1:2], weight_decay=0.0), dict(params=iter(weights[2:]), lr=0.0)]
        optimizer = getattr(module, name)(groups, lr=0.01, weight_decay=0.3)
        for step in range(5):
            for w in weights:
                w.grad = (w.detach() + step).sin()
            optimizer.step()
        ends.append(torch.cat([w.detach().flatten() for w in weights]))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=0)


def test_steps_are_counted_for_each_parameter():
    "A parameter that gets its first gradient late has its bias corrected from there."
    ends = []
    for module in (optimizers, torch.optim):
        weights = parameters(torch.float64)[:2]
        optimizer = module.Adam(weights, lr=0.1)
        for step in range(6):
            weights[0].grad = weights[0].detach().cos()
            weights[1].grad = weights[1].detach().cos() if step > 3 else None
            optimizer.step()
        ends.append(torch.cat([w.detach().flatten() for w in weights]))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=0)


def test_l2_is_decay_for_plain_descent_only():
    def left(optimizer, size):
        weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = optimizer([weight], lr=0.01, weight_decay=0.1)
        for t in range(200):
            weight.grad = torch.tensor([size * (-1) ** t], dtype=torch.float64)
            optimizer.step()
        return weight.item()

    assert left(optimizers.SGD, 1.0) == pytest.approx(left(optimizers.SGD, 1e-3), abs=0.01)
    assert left(optimizers.AdamW, 1.0) == pytest.approx(left(optimizers.AdamW, 1e-3), abs=0.01)
    assert left(optimizers.Adam, 1.0) - left(optimizers.Adam, 1e-3) > 0.5


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_unit_of_the_loss_does_not_matter(name):
    "Epsilon stands outside the root: gradients of 1e-5 lead where gradients of 1 lead."
    ends = []
    for factor in (1.0, 1e-5):
        weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        optimizer = getattr(optimizers, name)([weight], lr=0.01)
        for step in range(20):
            weight.grad = factor * torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) * (1 + step % 3)
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-2, atol=0)


@pytest.mark.parametrize("shape, numbers", [((300, 200), 500), ((300,), 300), ((5, 30, 20), 5 * 50)])
def test_memory_of_adafactor(shape, numbers):
    "A row and a column for each matrix, everything for a vector."
    weight = nn.Parameter(torch.ones(shape))
    weight.grad = torch.ones(shape)
    optimizer = optimizers.Adafactor([weight])
    optimizer.step()
    assert sum(x.numel() for x in optimizer.state[weight].values() if isinstance(x, torch.Tensor)) == numbers


# ---- schedules, clipping, accumulation

@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("total, warmup", [(1, 0), (1, 1), (7, 1), (100, 10), (100, 0), (33, 17), (10, 10)])
def test_schedules_are_those_of_transformers(name, total, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler("constant_with_warmup" if name == "constant" else name, optimizer, warmup, total).lr_lambdas[0]
    assert [SCHEDULES[name](step, total, warmup) for step in range(total)] == pytest.approx([theirs(step) for step in range(total)], abs=1e-15)


@pytest.mark.parametrize("total, warmup", [(7, 1), (100, 10), (100, 0), (33, 17)])
@pytest.mark.parametrize("ours, name, settings, theirs", [(polynomial, "polynomial", dict(power=power, end=end), dict(power=power, lr_end=end)) for power in (0.5, 1.0, 3.0) for end in (0.0, 0.1)]
                         + [(cosine_with_restarts, "cosine_with_restarts", dict(cycles=n), dict(num_cycles=n)) for n in (1, 2, 5)])
def test_schedules_with_settings_are_those_of_transformers(ours, name, settings, theirs, total, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, warmup, total, theirs).lr_lambdas[0]
    steps = range(total + 3)
    assert [ours(step, total, warmup, **settings) for step in steps] == pytest.approx([theirs(step) for step in steps], abs=1e-12)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_schedules_stay_between_0_and_1(name):
    rates = [SCHEDULES[name](step, 20, 5) for step in range(40)]
    assert rates[0] == 0.0 and rates[5] == 1.0 and all(0.0 <= rate <= 1.0 for rate in rates)
    assert all(a <= b for a, b in zip(rates[:5], rates[1:6])) and all(a >= b for a, b in zip(rates[5:], rates[6:]))
    assert rates[20:] == [1.0 if name == "constant" else 0.0] * 20


def test_clipping_equals_torch():
    torch.manual_seed(0)
    for max_norm in (0.1, 1.0, 1e6):
        params = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))]
        sums = [torch.randn_like(p) * 7 for p in params]
        for p, g in zip(params, sums):
            p.grad = g / 7
        norm = nn.utils.clip_grad_norm_(params, max_norm)
        assert scale_gradients(sums, 1 / 7, max_norm) == pytest.approx(norm.item(), rel=1e-6)
        for p, g in zip(params, sums):
            torch.testing.assert_close(g, p.grad)


@pytest.mark.parametrize("cuts", [[], [1], [11], [3, 4, 9], list(range(1, 12))])
def test_accumulated_sums_are_the_big_batch(cuts):
    "However twelve rows are cut, and whatever share of a part is ignored, a whole part included."
    generator = torch.Generator().manual_seed(len(cuts))
    theta = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    x, y = torch.randn(12, 4, generator=generator, dtype=torch.float64), torch.randint(3, (12,), generator=generator)
    y[:2] = IGNORE
    total, edges = 0, [0, *cuts, 12]
    for start, end in zip(edges, edges[1:]):
        loss, count = cross_entropy(x[start:end] @ theta, y[start:end])
        loss.backward()
        total += count
    scale_gradients([theta.grad], 1 / total, max_norm=1e9)
    whole = torch.autograd.grad(F.cross_entropy(x @ theta, y), theta)[0]
    torch.testing.assert_close(theta.grad, whole, rtol=1e-12, atol=1e-15)


# ---- what an optimiser is given, and what it gives back

W = nn.Parameter(torch.ones(2))
REFUSED = [([], {}, "no parameters"), (iter(()), {}, "no parameters"), ([{"params": []}], {}, "no parameters"), (W, {}, "single tensor"), ([1.0, 2.0], {}, "not float"),
           ([("weight", W)], {}, "not tuple"), ([W, W], {}, "there twice"), ([{"params": [W]}, {"params": [W]}], {}, "there twice"), ([2 * W], {}, "result of a computation"),
           ([{"lr": 1.0}], {}, "a group is a dict"), ([{"params": [W]}, W], {}, "a group is a dict"), ([{"params": [W], "lr": -1}], {}, "lr=-1"),
           ([W], dict(lr=-1), "lr=-1"), ([W], dict(lr=float("nan")), "lr=nan"), ([W], dict(lr="0.1"), "lr='0.1'"), ([W], dict(weight_decay=-0.1), "weight_decay=-0.1")]
OF_ONE = [("SGD", dict(momentum=-0.5), "momentum=-0.5"), ("SGD", dict(nesterov=True), "nesterov"), ("Adam", dict(betas=(1, 0)), "betas"), ("AdamW", dict(betas=(0.9, -0.1)), "betas"),
          ("AdamW", dict(betas=(0.9,)), "betas"), ("Adam", dict(betas=0.9), "betas"), ("Adam", dict(eps=-1e-8), "eps"), ("Adafactor", dict(d=0.5), "d=0.5"),
          ("Adafactor", dict(beta2_decay=0.8), "beta2_decay"), ("Adafactor", dict(eps=(None, -1)), "eps")]


@pytest.mark.parametrize("name, params, settings, message", [(name, *row) for name in ("SGD", "AdamW") for row in REFUSED] + [(name, [W], *rest) for name, *rest in OF_ONE])
def test_what_cannot_train_is_refused_here_and_by_torch(name, params, settings, message):
    with pytest.raises(ValueError, match=message):
        getattr(optimizers, name)(params, **settings)
    if "twice" not in message and not (isinstance(params, list) and params and isinstance(params[0], (tuple, dict))) and "nan" not in message and settings.get("betas") != (0.9,):  # torch takes names, warns of doubles, and is laxer there
        with pytest.raises((ValueError, TypeError)):
            getattr(torch.optim, name)(params, **settings)


def test_a_group_may_hold_one_tensor():
    W.grad = torch.ones(2)
    optimizer = optimizers.SGD([{"params": W, "lr": 0.5}])
    before = W.detach().clone()
    optimizer.step()
    assert torch.equal(W, before - 0.5)


@each_setting
def test_a_saved_state_goes_on(name, settings):
    "Ours and torch's, of five steps, taken up by a new optimiser of ours: the sixth step is the same."
    torch.manual_seed(0)
    for module in (optimizers, torch.optim):
        weights = parameters(torch.float64)[:3]
        optimizer = getattr(module, name)([dict(params=weights[:1], lr=0.3), dict(params=weights[1:])], **settings)
        for _ in range(5):
            for w in weights:
                w.grad = w.detach().cos()
            optimizer.step()
        others = [nn.Parameter(w.detach().clone()) for w in weights]
        again = getattr(optimizers, name)([dict(params=others[:1]), dict(params=others[1:])])
        optimizers.load_memory(again, optimizer.state_dict())
        for w, other in zip(weights, others):
            w.grad, other.grad = w.detach().cos(), other.detach().cos()
        optimizer.step(), again.step()
        torch.testing.assert_close(others, weights, rtol=1e-12, atol=0)


def test_a_state_that_does_not_fit_changes_nothing():
    weights = parameters(torch.float64)[:2]
    optimizer = optimizers.Adam(weights, lr=0.1)
    for saved, message in [(optimizers.Adam(weights[:1]).state_dict(), r"groups of \[1\] parameters"), (optimizers.SGD(weights).state_dict(), "no 'betas'")]:
        with pytest.raises(ValueError, match=message):
            optimizers.load_memory(optimizer, saved)
    assert optimizer.param_groups[0]["lr"] == 0.1 and not optimizer.state


def test_a_closure_computes_the_loss_with_gradients():
    for module in (optimizers, torch.optim):
        w = nn.Parameter(torch.ones(2))
        optimizer = module.SGD([w], lr=0.1)

        def closure():
            optimizer.zero_grad()
            loss = w.square().sum()
            loss.backward()
            return loss

        assert optimizer.step(closure).item() == 2.0 and torch.allclose(w, torch.full((2,), 0.8))
        optimizer.zero_grad()
        assert optimizer.step() is None
