"""BitFit on every family: equal to freezing by hand, trains what it should, comes back from a folder, and no kill while saving spoils one."""
import os
import signal
import sys

import pytest
import torch
from families import build, fingerprints, logits, loss, prove_another_base_is_refused, prove_coverage, steps
from safetensors.torch import load_file

from ft_course.model.files import CorruptCheckpoint, verify
from ft_course.model.parameters import count_parameters, trainable_parameters
from ft_course.peft import bitfit
from ft_course.peft.files import load_adapter, save_adapter
from ft_course.peft.injection import adapter_state_dict, merge

FAMILIES = ["bert", "bert-ner", "distilbert", "roberta", "gpt2", "gpt2-lm", "minilm"]
IDLE = {"bert": 2, "bert-ner": 2, "distilbert": 2, "roberta": 2, "gpt2": 0, "gpt2-lm": 0, "minilm": 6}  # biases of keys, one a layer
each_family = pytest.mark.parametrize("name", FAMILIES)


def trained(name, seed=0):
    model = build(name, seed)
    bitfit.inject(model)
    steps(model, name)
    return model


@each_family
def test_trains_biases_and_head_alone(name):
    model = build(name)
    bitfit.inject(model)
    for parameter, p in model.named_parameters():
        head = parameter.startswith(("classifier", "pre_classifier", "score"))
        assert p.requires_grad == head or parameter.endswith(".bias")
    idle = [n for n, p in model.named_parameters() if n.endswith(".bias") and not p.requires_grad]
    assert len(idle) == IDLE[name] and all("key" in n or "k_lin" in n for n in idle)


@each_family
def test_gradients_are_those_of_full_training(name):
    full, model = build(name), build(name)
    bitfit.inject(model)
    loss(full, name).backward()
    loss(model, name).backward()
    for parameter, p in trainable_parameters(model).items():
        torch.testing.assert_close(p.grad, full.get_parameter(parameter).grad, rtol=1e-6, atol=1e-6)


@each_family
def test_coverage(name):
    model = build(name)
    bitfit.inject(model)
    prove_coverage(model, name, n=3)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta"])
def test_idle_biases_do_nothing(name):
    "Whatever stands in the key's bias, the answers are the same; any other bias changes them."
    for parameter in [n for n, _ in build(name).named_parameters() if n.endswith(".bias")]:
        model = build(name)
        before = logits(model, name)
        p = model.get_parameter(parameter)
        p.data += torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        changed = not torch.allclose(logits(model, name), before, atol=1e-5)
        assert changed == (parameter in bitfit.biases(model) or "classifier" in parameter), parameter


@pytest.mark.parametrize("name, kind", [("t5", "t5"), ("t5-lm", "t5")])
def test_a_model_without_biases_is_refused(name, kind):
    model = build(name)
    with pytest.raises(ValueError, match="BitFit: t5 has no biases"):
        bitfit.inject(model)
    assert count_parameters(model)[0] == count_parameters(model)[1] and not hasattr(model, "adapter_config")


@each_family
def test_round_trip(name, tmp_path):
    model = trained(name)
    save_adapter(model, tmp_path / "run")
    again = load_adapter(build(name), tmp_path / "run")
    assert torch.equal(logits(again, name), logits(model, name))
    assert fingerprints(again) == fingerprints(model)
    assert {f"base_model.model.{n}" for n in adapter_state_dict(model)} == set(load_file(tmp_path / "run/adapter_model.safetensors"))


@each_family
def test_another_base_is_refused(name, tmp_path):
    prove_another_base_is_refused(trained(name), name, tmp_path / "run")


def test_other_parts_can_train_in_full(tmp_path):
    model = build("bert")
    bitfit.inject(model, modules_to_save=("pooler",))
    assert model.bert.pooler.dense.weight.requires_grad
    prove_coverage(model, "bert")
    save_adapter(model, tmp_path / "run")
    assert torch.equal(logits(load_adapter(build("bert"), tmp_path / "run"), "bert"), logits(model, "bert"))


def test_there_is_nothing_to_merge():
    with pytest.raises(ValueError, match="BITFIT cannot be merged"):
        merge(trained("bert"))


def test_a_damaged_file_is_refused(tmp_path):
    save_adapter(trained("bert"), tmp_path / "run")
    file = tmp_path / "run/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CorruptCheckpoint, match="adapter_model.safetensors"):
        load_adapter(build("bert"), tmp_path / "run")


FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")


def killed_while_saving(model, folder, moment: int) -> bool:
    "Save in a process that is killed at its file operation of that number; False if it was through before."
    if not (child := os.fork()):
        def crash(event, args):
            crash.left -= event in FILE_EVENTS
            if crash.left < 0 and event != "os.kill":
                os.kill(os.getpid(), signal.SIGKILL)
        try:
            crash.left = moment
            sys.addaudithook(crash)
            save_adapter(model, folder)
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_sigkill_at_every_file_operation(tmp_path):
    "Wherever a save over an old adapter is killed, the folder holds the old one or the new one, whole."
    folder, found = tmp_path / "run", []
    old, new = trained("bert"), trained("bert")
    new.classifier.bias.data += 1
    for moment in range(100):
        save_adapter(old, folder)
        killed = killed_while_saving(new, folder, moment)
        verify(folder)  # heals first
        answers = logits(load_adapter(build("bert"), folder), "bert")
        found.append("old" if torch.equal(answers, logits(old, "bert")) else "new")
        assert torch.equal(answers, logits(old if found[-1] == "old" else new, "bert"))
        if not killed:
            break
    assert found[-1] == "new" and not killed and len(found) > 10 and found == sorted(found, key=["old", "new"].index)
    save_adapter(old, folder)
    assert os.listdir(tmp_path) == ["run"]
