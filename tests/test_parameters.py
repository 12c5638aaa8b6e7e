"""What trains: freezing by name and by depth, groups by decay and by depth."""
import pytest
import torch
from families import MODELS, build
from tiny import tiny_features, tiny_model
from transformers import GPT2Config, GPT2ForSequenceClassification, Trainer, TrainingArguments

from ft_course.model.parameters import (count_parameters, depth, freeze, freeze_layers, heads, load_weights, parameter_groups,
                                        trainable_parameters, weights)
from ft_course.peft.tasks import METHODS, arguments
from ft_course.peft.injection import method_of
from ft_course.training.learner import Learner
from ft_course.training.updates import TrainingConfig


def look_up(model, groups, key: str) -> dict:
    "For each parameter's name, an entry of its group."
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], group[key]) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


@pytest.mark.parametrize("task", ["ner", "classify"])
def test_decay_groups_equal_trainers(task, tmp_path):
    model = tiny_model(task)
    trainer = Trainer(model, TrainingArguments(str(tmp_path), weight_decay=0.03, use_cpu=True, report_to="none"))
    theirs = look_up(model, trainer.create_optimizer().param_groups, "weight_decay")
    ours = look_up(model, parameter_groups(model, 1e-3, weight_decay=0.03), "weight_decay")
    assert ours == theirs and set(ours.values()) == {0.0, 0.03}


def test_each_parameter_that_trains_is_in_one_group():
    model = tiny_model()
    freeze(model, "*.embeddings.*")
    assert look_up(model, parameter_groups(model, 1e-3, layer_decay=0.9), "lr").keys() == trainable_parameters(model).keys()


def test_layer_decay():
    "Each layer trains at a share of the rate of the one above; the head has the rate itself."
    model = tiny_model()
    groups = parameter_groups(model, 1.0, layer_decay=0.5)
    rates = look_up(model, groups, "lr")
    assert rates["classifier.weight"] == rates["classifier.bias"] == 1.0
    assert {rate for name, rate in rates.items() if ".layer.1." in name} == {0.5}
    assert {rate for name, rate in rates.items() if ".layer.0." in name} == {0.25}
    assert {rate for name, rate in rates.items() if ".embeddings." in name} == {0.125}
    assert rates == look_up(model, groups, "peak_lr")
    assert {g["lr"] for g in parameter_groups(model, 1.0)} == {1.0}


HEADS = {"distilbert": {"pre_classifier", "classifier"}, "gpt2": {"score"}, "t5": {"classification_head"}, "gpt2-lm": set(), "t5-lm": set()}


@pytest.mark.parametrize("name", MODELS)
def test_the_head_has_its_own_rate(name):
    "What is new for the task has it, the pooler and the rest do not; decay is as without."
    model = build(name)
    groups = parameter_groups(model, 1e-3, layer_decay=0.5, head_lr=1.0)
    fast = {parameter.split(".")[0] for parameter, rate in look_up(model, groups, "peak_lr").items() if rate == 1.0}
    assert fast == set(heads(model)) == HEADS.get(name, {"classifier"})
    assert look_up(model, groups, "weight_decay") == look_up(model, parameter_groups(model, 1e-3), "weight_decay")


@pytest.mark.parametrize("method", METHODS)
def test_parts_of_a_method_are_no_head(method):
    model = build("bert")
    method_of(METHODS[method][0]).inject(model, **arguments(method, {}))
    rates = look_up(model, parameter_groups(model, 1e-3, head_lr=1.0), "lr")
    assert {name for name, rate in rates.items() if rate == 1.0} == {"classifier.weight", "classifier.bias"} and len(rates) > 2


def test_depth_of_other_families():
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=50, n_embd=8, n_layer=3, n_head=2))
    depths = {name: depth(name) for name, _ in model.named_parameters()}
    assert depths["transformer.wte.weight"] == depths["transformer.wpe.weight"] == 0
    assert depths["transformer.h.2.attn.c_attn.weight"] == 3 and depths["score.weight"] is None
    assert depth("model.layers.11.mlp.up_proj.weight") == 12 and depth("encoder.block.0.layer.0.SelfAttention.q.weight") == 1


@pytest.mark.parametrize("n, frozen", [(0, set()), (1, {"embeddings", "layer.0"}), (2, {"embeddings", "layer.0", "layer.1"})])
def test_freeze_layers(n, frozen):
    model = tiny_model()
    freeze_layers(model, n)
    for name, p in model.named_parameters():
        assert p.requires_grad != any(f".{part}." in name for part in frozen), name
    with pytest.raises(ValueError, match="freeze_layers=3: the model has 2 layers"):
        freeze_layers(model, 3)


def test_freeze_by_pattern():
    model = tiny_model()
    trained, total = count_parameters(model)
    assert trained == total == sum(p.numel() for p in model.parameters())
    assert freeze(model, "*.bias") == sum(name.endswith(".bias") for name, _ in model.named_parameters())
    assert count_parameters(model) == (total - sum(p.numel() for n, p in model.named_parameters() if n.endswith(".bias")), total)
    with pytest.raises(ValueError, match=r"no parameter is called '\*.biass'"):
        freeze(model, "*.biass")


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_the_frozen_keep_their_bytes_and_the_rest_moves(frozen):
    model = tiny_model()
    config = TrainingConfig(epochs=1, batch_size=4, freeze_layers=frozen, layer_decay=0.8, lr=1e-2)
    learner = Learner(model, tiny_features(16), config=config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learner.fit()
    for name, p in model.named_parameters():
        moved = not torch.equal(p, before[name])
        assert moved == p.requires_grad or name.endswith("token_type_embeddings.weight"), name


def test_weights_are_the_models_own_memory():
    model, other = tiny_model(), tiny_model(seed=1)
    for name, p in model.named_parameters():
        assert weights(model)[name].data_ptr() == p.data_ptr() and not weights(model)[name].requires_grad
    load_weights(other, {name: w.clone() for name, w in weights(model).items()})
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))
    with pytest.raises(ValueError, match="classifier.bias is .* nothing there"):
        load_weights(other, {name: w for name, w in weights(model).items() if name != "classifier.bias"})
