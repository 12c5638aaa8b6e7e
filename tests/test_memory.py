"""Bytes of a run: the formulas against real tensors, on shapes that the lesson does not show."""
import pytest
import torch
from families import MODELS, batch, build
from tiny import tiny_features, tiny_model
from torch import nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from ft_course.model.parameters import weights
from ft_course.training.learner import Learner
from ft_course.training.memory import LiveBytes, block_bytes, bytes_of, kept_tensors, state_bytes
from ft_course.training.updates import TrainingConfig, make_optimizer, moments


def test_a_memory_counts_once_and_whole():
    x = torch.zeros(10, 6, dtype=torch.float64)
    assert bytes_of([x[0, :2], x.T, x]) == 480 and bytes_of([x, x.clone()]) == 960
    assert bytes_of([]) == bytes_of([torch.zeros(0)]) == 0


@pytest.mark.parametrize("name", [name for name in MODELS if name != "minilm"])
def test_state_is_what_an_update_leaves(name):
    model = build(name)
    next(model.parameters()).requires_grad_(False)
    expected = state_bytes(model)
    optimizer = make_optimizer(model, TrainingConfig())
    sum(p.sum() for p in model.parameters() if p.requires_grad).backward()
    optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert expected == dict(weights=bytes_of(model.parameters()), gradients=bytes_of(gradients),
                            moments=bytes_of(moments(optimizer).values()) - 4 * len(gradients))


def test_state_of_halves_and_of_a_model_that_is_not_there():
    half = nn.Linear(10, 20, dtype=torch.bfloat16)
    assert state_bytes(half) == dict(weights=440, gradients=440, moments=880)
    assert state_bytes(nn.Linear(10**5, 10**5, bias=False, device="meta"))["moments"] == 8 * 10**10
    assert state_bytes(half.requires_grad_(False)) == dict(weights=440, gradients=0, moments=0)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("masked, frozen", [(False, False), (True, False), (False, True), (True, True)])
def test_a_block_keeps_what_the_formula_says(attention, masked, dropout, frozen):
    B, T, H, inner, heads = 3, 17, 40, 56, 5
    p = 0.2 * dropout
    layer = BertLayer(BertConfig(hidden_size=H, intermediate_size=inner, num_attention_heads=heads, attn_implementation=attention,
                                 hidden_dropout_prob=p, attention_probs_dropout_prob=p)).train().requires_grad_(not frozen)
    mask = (torch.ones(B, 1, T, T) > 0 if attention == "sdpa" else torch.zeros(B, 1, T, T)) if masked else None
    x = torch.randn(B, T, H, requires_grad=True)
    kept = kept_tensors(lambda: layer(x, mask), weights(layer).values())
    assert bytes_of(kept) == block_bytes(B, T, H, inner, heads, attention, masked, dropout, frozen)


def test_another_attention_is_refused():
    with pytest.raises(ValueError, match="attention='flash'"):
        block_bytes(1, 8, 16, 32, 2, attention="flash")


def test_nothing_is_kept_where_nothing_trains():
    model = build("bert").requires_grad_(False)
    assert kept_tensors(lambda: model(**batch("bert")), weights(model).values()) == []


def test_what_was_kept_does_not_hold_the_trace():
    x = torch.ones(1000, requires_grad=True)
    with LiveBytes() as live:
        kept = kept_tensors(lambda: x.exp().sin().exp())
        assert bytes_of(kept) == 2 * 4000  # the first result is the sine's input, too
        del kept
        assert live.now == 0  # all of it was given up


def test_live_bytes_rise_and_fall():
    x = torch.ones(100)
    with LiveBytes([x, x.view(10, 10)]) as live:
        y = x + 1
        y = y.view(4, 25) * 2
        assert live.now == 800 and max(live.curve) == 1200
        y.add_(1)
        assert live.now == 800
        del x, y
    assert live.now == 0


def test_memory_that_comes_again_counts_again():
    with LiveBytes() as live:
        for _ in range(50):
            torch.ones(1000)
    assert set(live.curve) == {4000} and live.now == 0


@pytest.mark.parametrize("settings", [{}, dict(gradient_checkpointing=True), dict(freeze_layers=1)], ids=["plain", "checkpointing", "frozen"])
def test_a_run_ends_with_its_state_and_no_more(settings):
    model = tiny_model(dropout=0.1)
    learner = Learner(model, tiny_features(12), config=TrainingConfig(epochs=2, batch_size=6, **settings), device="cpu")
    with LiveBytes(weights(model).values()) as live:
        learner.fit()
    trains = [p for p in model.parameters() if p.requires_grad]
    del learner.batch_loss, learner.logits
    buffers = bytes_of(model.buffers())
    assert live.now == sum(state_bytes(model).values()) + buffers + 4 * len(trains)
    assert max(live.curve) > live.now


def test_checkpointing_lowers_the_peak_of_a_long_text():
    peaks = []
    for on in (False, True):
        model = tiny_model()
        features = [dict(input_ids=[5] * 64, attention_mask=[1] * 64, labels=[1] * 64)] * 16
        learner = Learner(model, features, config=TrainingConfig(epochs=1, gradient_checkpointing=on), device="cpu")
        with LiveBytes() as live:
            learner.fit()
        peaks.append(max(live.curve))
    assert peaks[1] < 0.8 * peaks[0]
