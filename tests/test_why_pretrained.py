"""A random start that differs in one thing only, and a look at a training that doesn't disturb it."""
import pytest
import torch
from tiny import tiny_features, tiny_model

from ft_course.model.parameters import weights
from ft_course.tasks.why_pretrained import ScoreCurve, randomize
from ft_course.training.learner import Learner
from ft_course.training.updates import TrainingConfig

torch.set_num_threads(1)


@pytest.mark.parametrize("task", ["ner", "classify"])
def test_randomize_draws_everything_below_the_head_and_leaves_the_head(task):
    model = tiny_model(task)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(3.0)
    randomize(model)
    assert all((p == 3.0).all() for name, p in model.named_parameters() if name.startswith("classifier"))
    assert not any((p == 3.0).any() for name, p in model.named_parameters() if not name.startswith("classifier"))


def test_randomize_draws_as_transformers_draws_a_new_model():
    model = tiny_model()
    torch.manual_seed(1)
    randomize(model)
    drawn = {name: w.clone() for name, w in weights(model.bert).items()}
    torch.manual_seed(1)
    randomize(model)
    assert all(torch.equal(w, drawn[name]) for name, w in weights(model.bert).items())
    matrices = torch.cat([w.flatten() for name, w in drawn.items() if "dense.weight" in name])
    assert abs(matrices.std().item() / model.config.initializer_range - 1) < 0.05
    assert all((w == 1).all() for name, w in drawn.items() if "LayerNorm.weight" in name)


def train(callbacks) -> Learner:
    config = TrainingConfig(epochs=2, batch_size=4)
    return Learner(tiny_model(dropout=0.1), tiny_features(12), config=config, callbacks=callbacks).fit()


def test_a_score_curve_looks_after_the_chosen_updates_and_changes_nothing():
    curve = ScoreCurve(tiny_features(5, seed=1), "loss", (0, 2, 6, 99))
    learner, undisturbed = train([curve]), train([])
    assert [step for step, _ in curve.points] == [0, 2, 6]
    assert curve.points[-1][1] == learner.evaluate(tiny_features(5, seed=1))["loss"]
    assert learner.losses == undisturbed.losses
