"""Bottleneck adapters on every family: equal to a layer written by hand, silent at the start, trained, saved and opened again."""
import json

import pytest
import torch
from families import batch, build, fingerprints, logits, loss, prove_another_base_is_refused, prove_coverage
from transformers.pytorch_utils import Conv1D

from ft_course.model.parameters import count_parameters, trainable_parameters
from ft_course.peft import adapters
from ft_course.peft.files import load_adapter, save_adapter
from ft_course.peft.injection import merge, unload

HALVES = {"bert": (2, 2), "bert-ner": (2, 2), "distilbert": (2, 2), "roberta": (2, 2), "gpt2": (2, 2), "gpt2-lm": (2, 2), "t5": (6, 4), "t5-lm": (6, 4),
          "minilm": (6, 6)}
each_family = pytest.mark.parametrize("name", HALVES)


def adapted(name, seed=0, dtype=torch.float32, **options):
    "A model with adapters that do something."
    model = build(name, seed, dtype)
    adapters.inject(model, **{"reduction_factor": 4} | options)
    torch.manual_seed(1)
    for p in trainable_parameters(model).values():
        p.data += 0.3 * torch.randn_like(p)
    return model


@each_family
@pytest.mark.parametrize("placement", adapters.PLACEMENTS)
def test_begins_as_the_base_to_the_last_byte(name, placement):
    model, base = build(name), build(name)
    adapters.inject(model, reduction_factor=4, placement=placement)
    assert logits(model, name).numpy().tobytes() == logits(base, name).numpy().tobytes()
    count = sum(part.numel() for n, part in trainable_parameters(model).items() if "adapter_" in n)
    (attention, feed_forward), H = HALVES[name], base.config.hidden_size
    assert count == (attention * (placement == "houlsby") + feed_forward) * (2 * H * H // 4 + H // 4 + H)
    assert count_parameters(model)[1] == count_parameters(base)[1] + count


class ByHand(torch.nn.Module):
    "The equation on a layer's matrix, without any module of torch."

    def __init__(self, part):
        super().__init__()
        self.part = part

    weight = property(lambda self: self.part.weight)

    def forward(self, x):
        W, (D, b_D), (U, b_U) = self.part.weight, self.part.adapter_down.parameters(), self.part.adapter_up.parameters()
        h = x @ (W if isinstance(self.part.base_layer, Conv1D) else W.T)
        h = h if self.part.base_layer.bias is None else h + self.part.base_layer.bias
        z = h @ D.T + b_D
        return h + (z * 0.5 * (1 + torch.erf(z / 2**0.5))) @ U.T + b_U


@each_family
def test_logits_and_gradients_equal_a_layer_by_hand(name):
    model, other = adapted(name), adapted(name)
    for address, part in list(other.named_modules()):
        if isinstance(part, adapters.Bottleneck):
            other.set_submodule(address, ByHand(part))
    torch.testing.assert_close(logits(model, name), logits(other, name), rtol=1e-6, atol=1e-5)
    loss(model, name).backward()
    loss(other, name).backward()
    by_hand = {n.replace(".part.", "."): p for n, p in trainable_parameters(other).items()}
    assert set(by_hand) == set(trainable_parameters(model))
    for parameter, p in trainable_parameters(model).items():
        torch.testing.assert_close(p.grad, by_hand[parameter].grad, rtol=1e-4, atol=1e-4, msg=lambda m: f"{parameter}: {m}")


@each_family
@pytest.mark.parametrize("placement", adapters.PLACEMENTS)
def test_coverage(name, placement):
    model = build(name)
    adapters.inject(model, reduction_factor=2, placement=placement)
    prove_coverage(model, name)


@each_family
def test_round_trip(name, tmp_path):
    model = adapted(name, non_linearity="relu", placement="pfeiffer")
    save_adapter(model, tmp_path / "run")
    again = load_adapter(build(name), tmp_path / "run")
    assert torch.equal(logits(again, name), logits(model, name)) and fingerprints(again) == fingerprints(model)
    config = json.loads((tmp_path / "run/adapter_config.json").read_text())
    assert config["peft_type"] == "BOTTLENECK" and config["non_linearity"] == "relu" and config["reduction_factor"] == 4


@each_family
def test_another_base_is_refused(name, tmp_path):
    prove_another_base_is_refused(adapted(name), name, tmp_path / "run")


@each_family
def test_unload_gives_the_base_back(name):
    model, base = adapted(name), build(name)
    unload(model)
    assert {type(m) for m in model.modules()} == {type(m) for m in base.modules()}
    frozen = {n: f for n, f in fingerprints(base).items() if not n.startswith(("classif", "pre_classif", "score"))}
    assert frozen.items() <= fingerprints(model).items()


def test_cannot_merge():
    with pytest.raises(ValueError, match="BOTTLENECK cannot be merged"):
        merge(adapted("bert"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_half(dtype):
    model = adapted("t5", dtype=dtype)
    assert model(**batch("t5")).logits.dtype == dtype and {p.dtype for p in model.parameters()} == {dtype}


def test_width_inside():
    for factor, inside in ((16, 4), (3, 21), (100, 1), (0.5, 128)):
        model = build("gpt2")
        adapters.inject(model, reduction_factor=factor, target_modules=("c_fc",))
        assert model.transformer.h[0].mlp.c_fc.adapter_down.weight.shape == (inside, 64)


def test_another_non_linearity_gives_other_answers():
    answers = [logits(adapted("bert", non_linearity=name), "bert") for name in ("gelu", "relu", "silu", "tanh")]
    assert len({tuple(z.flatten().tolist()) for z in answers}) == 4


@pytest.mark.parametrize("options, message", [
    (dict(non_linearity="bend"), "non_linearity='bend'"), (dict(reduction_factor=0), "reduction_factor=0"),
    (dict(placement="everywhere"), "placement='everywhere': it must be houlsby or pfeiffer"),
    (dict(target_modules=("fc2",)), "nothing is called 'fc2'"), (dict(modules_to_save=("pool",)), "the model has no 'pool'")])
def test_refusals_change_nothing(options, message):
    model = build("bert")
    with pytest.raises(ValueError, match=message):
        adapters.inject(model, **options)
    assert not hasattr(model, "adapter_config") and all(p.requires_grad for p in model.parameters())


def test_an_unknown_family_is_refused():
    model = build("bert")
    model.config.model_type = "mystery"
    with pytest.raises(ValueError, match="of type .mystery. is built"):
        adapters.inject(model)
