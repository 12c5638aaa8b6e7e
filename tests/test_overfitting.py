"""Dropout, turned: everywhere in every family, and it acts in training alone."""
import pytest
import torch
from families import MODELS, batch, build
from torch import nn

from ft_course.tasks.overfitting import set_dropout

each_family = pytest.mark.parametrize("name", [name for name in MODELS if name != "minilm"])


def two_passes(model: nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return tuple(model(**batch(name)).logits for _ in range(2))


@each_family
def test_dropout_acts_in_training(name):
    model = build(name)
    assert set_dropout(model, 0.5) >= sum("Dropout" in type(module).__name__ for module in model.modules()) > 2
    first, second = two_passes(model.train(), name)
    assert not torch.equal(first, second)


@each_family
def test_without_dropout_training_answers_like_evaluation(name):
    model = build(name)
    expected, _ = two_passes(model.eval(), name)
    set_dropout(model, 0.0)
    for answer in two_passes(model.train(), name):
        torch.testing.assert_close(answer, expected)


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_a_share_that_is_none_is_refused(p):
    with pytest.raises(ValueError, match=f"p={p}"):
        set_dropout(build("bert"), p)


def test_a_model_without_dropout_is_refused():
    with pytest.raises(ValueError, match="0 places"):
        set_dropout(nn.Linear(2, 2), 0.1)
