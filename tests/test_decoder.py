"""The decoder of lesson 34: GPT-2's logits and gradients, no look ahead, and the same text written."""
import pytest
import torch
from torch.func import functional_call
from transformers import GPT2Config, GPT2LMHeadModel

from ft_course.model.decoder import causal_mask, decode, generate
from ft_course.theory.distributions import sequence_nll
from ft_course.theory.formulas import relative_error

END = dict(bos_token_id=0, eos_token_id=0)
CONFIGS = [GPT2Config(vocab_size=30, n_embd=H, n_head=heads, n_layer=layers, n_positions=12, **END) for H, heads, layers in [(4, 1, 1), (6, 3, 2), (8, 2, 11)]]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.n_layer} layers")


def drawn(config):
    "transformers' model and its weights, drawn anew in float64."
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).double().eval()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model, {name: p.detach() for name, p in model.transformer.named_parameters()}


@each_config
def test_logits_and_gradients_are_those_of_transformers(config):
    model, weights = drawn(config)
    ids = torch.randint(30, (3, 12))
    assert relative_error(decode(ids, weights, config.n_head), model(ids).logits) < 1e-12
    mine = {name: w.clone().requires_grad_() for name, w in weights.items()}
    total, count = sequence_nll(decode(ids, mine, config.n_head), ids)
    grads = dict(zip(mine, torch.autograd.grad(total / count, mine.values())))
    named = {f"transformer.{name}": w.clone().requires_grad_() for name, w in weights.items()}
    tied = named | {"lm_head.weight": named["transformer.wte.weight"]}
    expected = torch.autograd.grad(sequence_nll(functional_call(model, tied, (ids,)).logits, ids)[0] / count, named.values())
    torch.testing.assert_close(list(grads.values()), list(expected), rtol=1e-9, atol=1e-9)
    assert all(g.abs().max() > 1e-6 for g in grads.values())


@each_config
@pytest.mark.parametrize("place", range(1, 12))
def test_a_token_changes_nothing_before_it(config, place):
    _, weights = drawn(config)
    ids = torch.randint(30, (2, 12))
    other = ids.clone()
    other[:, place] = (other[:, place] + 1) % 30
    before, after = (decode(x, weights, config.n_head) for x in (ids, other))
    assert torch.equal(before[:, :place], after[:, :place])
    assert (before[:, place:] != after[:, place:]).any(-1).all()


@each_config
def test_it_writes_what_transformers_writes(config):
    model, weights = drawn(config)
    ids = torch.randint(1, 30, (2, 3))
    theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, min_new_tokens=9, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(generate(ids, 9, weights, config.n_head, temperature=0), theirs)


def test_a_text_longer_than_the_model_goes_on():
    _, weights = drawn(CONFIGS[0])
    ids = torch.randint(30, (1, 12))
    written = generate(ids, 3, weights, 1, temperature=0)
    assert written.shape == (1, 15) and torch.equal(written[:, 12:13], decode(ids, weights, 1)[:, -1].argmax(-1, keepdim=True))


def test_what_is_drawn_is_drawn_by_its_probability():
    _, weights = drawn(CONFIGS[0])
    ids = torch.randint(30, (1, 4)).expand(20_000, -1)
    drawn_tokens = generate(ids, 1, weights, 1, temperature=2.0, generator=torch.Generator().manual_seed(0))[:, -1]
    expected = (decode(ids[:1], weights, 1)[0, -1] / 2).softmax(-1)
    assert (drawn_tokens.bincount(minlength=30) / 20_000 - expected).abs().max() < 0.02


def test_the_mask_is_the_lower_triangle():
    assert causal_mask(3).tolist() == [[True, False, False], [True, True, False], [True, True, True]]
