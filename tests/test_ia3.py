"""IA³ on every family: equal to peft in logits, gradients and files, merged and taken out again without loss."""
import json
import warnings

import pytest
import torch
from families import batch, build, fingerprints, logits, loss, prove_another_base_is_refused, prove_coverage, steps
from peft import IA3Config, PeftModel, get_peft_model
from safetensors.torch import load_file

from ft_course.model.parameters import count_parameters, parameter_groups, trainable_parameters
from ft_course.peft import ia3
from ft_course.peft.files import PREFIX, load_adapter, save_adapter
from ft_course.peft.injection import merge, unload, unmerge

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Unmerge result can be inaccurate", "ignore:fan_in_fan_out")
TASK = {"bert": "SEQ_CLS", "bert-ner": "TOKEN_CLS", "distilbert": "SEQ_CLS", "roberta": "SEQ_CLS", "gpt2": "SEQ_CLS", "gpt2-lm": "CAUSAL_LM",
        "t5": "SEQ_CLS", "t5-lm": "SEQ_2_SEQ_LM", "minilm": "SEQ_CLS"}
HEAD = {"bert": 16 * 3 + 3, "bert-ner": 16 * 5 + 5, "distilbert": 16 * 16 + 16 + 16 * 3 + 3, "roberta": 16 * 16 + 16 + 16 * 3 + 3, "gpt2": 16 * 3,
        "gpt2-lm": 0, "t5": 16 * 16 + 16 + 16 * 3 + 3, "t5-lm": 0, "minilm": 384 * 3 + 3}
BLOCKS = {"gpt2": 2 * (3 * 16 + 64), "gpt2-lm": 2 * (3 * 16 + 64), "t5": 6 * 2 * 16 + 4 * 24, "t5-lm": 6 * 2 * 16 + 4 * 24,
          "minilm": 6 * (2 * 384 + 1536)}  # else 2 (2H + F)
each_family = pytest.mark.parametrize("name", TASK)


def scaled(name, seed=0, dtype=torch.float32):
    "A model with factors drawn at random."
    model = build(name, seed, dtype)
    ia3.inject(model)
    torch.manual_seed(1)
    for parameter, p in trainable_parameters(model).items():
        p.data += 0.5 * torch.randn_like(p)
    return model


def theirs(name, ours=None):
    "peft's model, with the same weights as ours where one is given."
    targets, feedforward = ia3.ia3_targets(build(name))
    head = ["classification_head"] if name == "t5" else None  # a name that peft doesn't know as a head
    model = get_peft_model(build(name), IA3Config(task_type=TASK[name], target_modules=list(targets), feedforward_modules=list(feedforward), modules_to_save=head))
    if ours is not None:
        for parameter, p in named(model).items():
            p.data.copy_(ours.get_parameter(parameter).data.view_as(p))
    return model.eval()


def named(model):
    "What trains in peft's model, by our names."
    return {n.removeprefix(PREFIX).replace(".default", "").replace(".modules_to_save", ""): p for n, p in model.named_parameters() if p.requires_grad}


@each_family
def test_begins_as_the_base(name):
    model = build(name)
    ia3.inject(model)
    assert torch.equal(logits(model, name), logits(build(name), name))
    assert count_parameters(model)[0] == BLOCKS.get(name, 2 * (2 * 16 + 24)) + HEAD[name]


@each_family
def test_logits_and_gradients_equal_peft(name):
    model = scaled(name)
    other = theirs(name, model)
    assert set(named(other)) == set(trainable_parameters(model))
    torch.testing.assert_close(logits(model, name), logits(other, name), rtol=1e-6, atol=1e-6)
    loss(model, name).backward()
    loss(other, name).backward()
    for parameter, p in named(other).items():
        torch.testing.assert_close(trainable_parameters(model)[parameter].grad.view_as(p), p.grad, rtol=1e-5, atol=1e-5, msg=lambda m: f"{parameter}: {m}")


@each_family
def test_coverage(name):
    model = build(name)
    ia3.inject(model)
    prove_coverage(model, name, n=3)


@each_family
def test_our_folder_opens_in_peft(name, tmp_path):
    model = scaled(name)
    save_adapter(model, tmp_path / "run")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*fan_in_fan_out")
        other = PeftModel.from_pretrained(build(name), tmp_path / "run").eval()
    torch.testing.assert_close(logits(other, name), logits(model, name), rtol=1e-6, atol=1e-6)
    again = load_adapter(build(name), tmp_path / "run")
    assert torch.equal(logits(again, name), logits(model, name)) and fingerprints(again) == fingerprints(model)


@each_family
def test_their_folder_opens_here(name, tmp_path):
    other = theirs(name, scaled(name))
    other.save_pretrained(tmp_path / "run")
    again = load_adapter(build(name), tmp_path / "run")
    torch.testing.assert_close(logits(again, name), logits(other, name), rtol=1e-6, atol=1e-6)
    save_adapter(again, tmp_path / "ours")
    mine, his = load_file(tmp_path / "ours/adapter_model.safetensors"), load_file(tmp_path / "run/adapter_model.safetensors")
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in his.items()} and all(torch.equal(t, his[n]) for n, t in mine.items())


def test_their_default_opens_here(tmp_path):
    "peft's own targets for BERT hit the end of attention too; such a folder says so and opens."
    other = get_peft_model(build("bert"), IA3Config(task_type="SEQ_CLS"))
    steps(other, "bert")
    other.save_pretrained(tmp_path / "run")
    again = load_adapter(build("bert"), tmp_path / "run")
    torch.testing.assert_close(logits(again, "bert"), logits(other, "bert"), rtol=1e-6, atol=1e-6)
    assert count_parameters(again)[0] == 2 * (3 * 16 + 24) + HEAD["bert"]


@each_family
def test_another_base_is_refused(name, tmp_path):
    prove_another_base_is_refused(scaled(name), name, tmp_path / "run")


@each_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_merge_and_unmerge(name, dtype):
    "Merged gives the same answers; unmerged every byte is back, zeros among the factors included."
    model = scaled(name, dtype=dtype)
    for part in model.modules():
        if isinstance(part, ia3.Scaled):
            part.ia3_l.data[::3] = 0
    before, expected = fingerprints(model), logits(model, name)
    merge(model)
    tolerance = {torch.float32: 1e-5}.get(dtype, 0.1)
    torch.testing.assert_close(logits(model, name), expected, rtol=tolerance, atol=tolerance)
    assert fingerprints(model) != before
    unmerge(model)
    assert fingerprints(model) == before and torch.equal(logits(model, name), expected)


def test_merging_twice_or_saving_merged_is_an_error(tmp_path):
    model = scaled("bert")
    merge(model)
    with pytest.raises(ValueError, match="merged already"):
        merge(model)
    with pytest.raises(ValueError, match="unmerge it first"):
        save_adapter(model, tmp_path / "run")


def test_merged_and_unloaded_is_a_plain_model():
    model = scaled("gpt2")
    expected = logits(model, "gpt2")
    merge(model)
    unload(model)
    assert {type(m) for m in model.modules()} == {type(m) for m in build("gpt2").modules()}
    torch.testing.assert_close(logits(model, "gpt2"), expected, rtol=1e-5, atol=1e-5)


def test_merging_in_training_mode_bakes_no_dropout_in():
    one, two = scaled("bert").eval(), scaled("bert").train()
    merge(one)
    merge(two)
    assert fingerprints(one) == fingerprints(two)


def test_factors_are_spared_by_weight_decay():
    model = scaled("bert")
    decayed = {id(p) for group in parameter_groups(model, 1e-2) if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(model.classifier.weight)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_half(dtype):
    model = scaled("bert", dtype=dtype)
    assert model(**batch("bert")).logits.dtype == dtype and {p.dtype for p in model.parameters()} == {dtype}


def test_own_targets():
    model = build("bert")
    ia3.inject(model, target_modules=("query", "intermediate.dense"), feedforward_modules=("intermediate.dense",))
    shapes = {n: tuple(p.shape) for n, p in trainable_parameters(model).items() if "layer.0" in n}
    assert shapes == {"bert.encoder.layer.0.attention.self.query.ia3_l": (16,), "bert.encoder.layer.0.intermediate.dense.ia3_l": (16,)}
    assert json.loads(json.dumps(model.adapter_config))["feedforward_modules"] == ["intermediate.dense"]


def test_refusals():
    model = build("bert")
    with pytest.raises(ValueError, match="attention.output.dense' is not one of the target_modules"):
        ia3.inject(model, target_modules=("key",), feedforward_modules=("output.dense",))
    with pytest.raises(ValueError, match="nothing is called 'k_proj'"):
        ia3.inject(model, target_modules=("k_proj",))
    model.config.model_type = "mystery"
    with pytest.raises(ValueError, match="of type .mystery. is built"):
        ia3.inject(model)
    assert not hasattr(model, "adapter_config") and all(p.requires_grad for p in model.parameters())


def test_settings_that_would_change_answers_are_refused(tmp_path):
    save_adapter(scaled("bert"), tmp_path / "run")
    (tmp_path / "run/checksums.json").unlink()
    file = tmp_path / "run/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"exclude_modules": ["0.output.dense"]}))
    with pytest.raises(ValueError, match="exclude_modules=.* is not supported"):
        load_adapter(build("bert"), tmp_path / "run")
