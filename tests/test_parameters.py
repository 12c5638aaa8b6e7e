"""What trains: freezing by name and by depth, groups by decay and by depth."""
import re

import pytest
import torch
from families import MODELS, build
from tiny import tiny_features, tiny_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D
from zoo import WIDE, zoo

from ft_course.model.parameters import (FAMILIES, count_parameters, depth, family, freeze, freeze_layers, heads, load_weights, parameter_groups,
                                        targets, trainable_parameters, usable_places, weights)
from ft_course.peft.tasks import METHODS, arguments
from ft_course.peft.files import method_of
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


def numberless(name: str) -> str:
    "An address without the numbers in it: layers are told apart by these alone."
    return re.sub(r"\d+", "#", name)


@pytest.mark.parametrize("kind", FAMILIES)
def test_depth_of_every_family(kind):
    "Both layers have the same parts (but for a norm or a table of distances in one), embeddings come before them, and a head has no depth."
    model = zoo(kind)
    depths = {name: depth(name, model) for name, _ in model.named_parameters()}
    by_depth = {d: {numberless(name) for name, other in depths.items() if other == d} for d in (0, 1, 2)}
    numbers = {d: {int(number) for name, other in depths.items() if other == d for number in re.findall(r"\d+", name)[:1]} for d in (1, 2)}
    assert by_depth[0] and numbers[1] == {0}
    assert kind == "albert" or (by_depth[1] & by_depth[2] and numbers[2] == {1} and all(re.search("norm|relative", name) for name in by_depth[1] ^ by_depth[2]))
    assert depths[next(name for name, p in model.named_parameters() if p is model.get_input_embeddings().weight)] == 0
    unplaced = {name.split(".")[0] for name, d in depths.items() if d is None}
    assert unplaced <= {"decoder", "encoder", "pooler", "ln_f", "norm", "final_norm", "final_layer_norm", "final_layernorm", "LayerNorm"}
    headed = zoo(kind, AutoModelForSequenceClassification)
    below_head = [d for name, _ in headed.named_parameters() if (d := depth(name, headed)) is not None]
    assert sorted(below_head) == sorted(d for d in depths.values() if d is not None), "a head changes no depth below it"


@pytest.mark.parametrize("kind", FAMILIES)
def test_targets_name_the_maps_of_every_layer(kind):
    model, row = zoo(kind), family(zoo(kind))
    layers = 1 if kind == "albert" else model.config.num_hidden_layers
    hidden = model.config.hidden_size
    for role in ("query", "key", "value", "out", "up", "down"):
        if getattr(row, role) is None:
            with pytest.raises(ValueError, match="no map for 'query'.*target_modules"):
                targets(model, "query")
            continue
        ends = targets(model, role)
        found = {name: model.get_submodule(name) for name, _ in model.named_modules() if any(f".{name}".endswith(f".{end}") for end in ends)}
        inside = [name for name in found if depth(f"{name}.weight", model)]
        assert len(inside) == layers * (2 if role == "up" and kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "mt5") else 1), found
        assert all(isinstance(part, (nn.Linear, Conv1D)) for part in found.values())
        if role == "down":
            assert all(sorted(model.get_submodule(name).weight.shape)[0] == hidden for name in inside)


@pytest.mark.parametrize("kind", FAMILIES)
def test_targets_of_queries_and_values_are_those_of_peft(kind):
    theirs = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind)
    if kind in ("xlnet", "modernbert", "phi", "gpt_neo") or theirs is None:
        return  # peft has no row, or names other parts
    assert set(theirs) == {end.split(".")[-1] for end in targets(zoo(kind), "query", "value")}


@pytest.mark.parametrize("kind", [kind for kind, row in FAMILIES.items() if row.query])
def test_idle_biases_change_no_answer_and_the_others_do(kind):
    "The bias of a key adds the same to all scores of a query, unless places are turned into it."
    model, row = zoo(kind), family(zoo(kind))
    ids = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))
    inputs = dict(input_ids=ids) | (dict(decoder_input_ids=ids) if model.config.is_encoder_decoder else {})
    keys = [p for name, p in model.named_parameters() if name.endswith(f".{row.key}.bias")]
    before = model(**inputs).last_hidden_state.detach()
    for p in keys:
        p.data += torch.randn(p.shape, generator=torch.Generator().manual_seed(2))
    moved = (model(**inputs).last_hidden_state - before).abs().max().item()
    if row.idle:
        assert keys and all(any(name.endswith(f".{end}") for end in row.idle) for name, p in model.named_parameters() if any(p is key for key in keys))
        assert moved < 1e-4
    else:
        assert not keys or moved > 1e-3


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_usable_place_can_be_used_and_no_more(kind):
    biased = dict(position_biased_input=True) if "deberta" in kind else {}
    limit = {} if kind == "xlnet" else {"n_positions" if kind == "gpt2" else "max_position_embeddings": 12}
    model = zoo(kind, **limit | biased)
    places = usable_places(model.config)
    assert places == family(model).places(model.config)

    def read(n):
        ids = torch.full((1, n), 7)
        return model(input_ids=ids, **(dict(decoder_input_ids=ids[:, :1]) if model.config.is_encoder_decoder else {})).last_hidden_state

    assert read(places or 40).isfinite().all()
    rotary = kind in ("modernbert", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "gpt_neox", "falcon")
    if places and not rotary:
        with pytest.raises((IndexError, RuntimeError)):
            read(places + 1)


def test_places_as_published():
    "roberta-base says 514 and reads 512; facebook/opt and bart say what they read."
    known = {"roberta": (514, 1, 512), "xlm-roberta": (514, 1, 512), "camembert": (514, 1, 512), "mpnet": (514, 1, 512), "bart": (1024, 1, 1024), "opt": (2048, 1, 2048),
             "bert": (512, 0, 512), "modernbert": (8192, 50283, 8192)}
    for kind, (said, pad, places) in known.items():
        assert usable_places(AutoConfig.for_model(kind, max_position_embeddings=said, pad_token_id=pad, vocab_size=60000)) == places
    assert usable_places(AutoConfig.for_model("t5")) is usable_places(AutoConfig.for_model("xlnet")) is usable_places(AutoConfig.for_model("deberta-v2", position_biased_input=False)) is None
    assert usable_places(AutoConfig.for_model("canine", max_position_embeddings=99)) == 99, "of an unknown family, what its configuration says"


def test_an_unknown_family_is_said_where_the_table_is_needed_only():
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("convbert", **WIDE, embedding_size=16))
    assert freeze_layers(model, 0) == 0 and len(look_up(model, parameter_groups(model, 1e-3, head_lr=1.0), "lr")) == len(list(model.parameters()))
    for needs in (lambda: freeze_layers(model, 1), lambda: parameter_groups(model, 1e-3, layer_decay=0.9), lambda: targets(model, "query"), lambda: family(nn.Linear(2, 2))):
        with pytest.raises(ValueError, match=r"type '(convbert|Linear)' .* FAMILIES .*bert, .*target_modules"):
            needs()


@pytest.mark.parametrize("kind", ["t5", "bart", "mt5", "mbart"])
def test_freezing_a_pair_leaves_the_decoder_alone(kind):
    model = zoo(kind)
    freeze_layers(model, 1)
    for name, p in model.named_parameters():
        assert p.requires_grad == name.startswith(("decoder.", "encoder.block.1.", "encoder.layers.1.", "encoder.final_layer_norm", "encoder.layer_norm.")), name
    with pytest.raises(ValueError, match="freeze_layers=3: the model has 2 layers$"):
        freeze_layers(model, 3)


def test_layers_that_share_their_weights_freeze_together():
    model = zoo("albert", AutoModelForSequenceClassification, num_hidden_layers=12)
    with pytest.raises(ValueError, match="freeze_layers=2: the model has 1 layers with weights of their own, each used 12 times"):
        freeze_layers(model, 2)
    freeze_layers(model, 1)
    assert {name for name in trainable_parameters(model)} == {"albert.pooler.weight", "albert.pooler.bias", "classifier.weight", "classifier.bias"}


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
