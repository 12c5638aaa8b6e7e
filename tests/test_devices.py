"""Devices that are not at hand, in two stand-ins: "meta", which knows shapes and places only, and a CPU that refuses 64 bits where Apple's GPU would.

Neither computes as a GPU does. The first shows that all tensors of a step lie in one place, the second that none needs what Metal lacks.
"""
import pytest
import torch
from tiny import tiny_features, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ft_course.model.inference import run
from ft_course.training import processes
from ft_course.training.learner import Learner, prepare
from ft_course.training.updates import TrainingConfig, pick_device

CONFIG = dict(epochs=1, batch_size=4, gradient_accumulation_steps=2, freeze_layers=1)


def tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class NoDoubles(TorchDispatchMode):
    "What the model's weights and inputs touch would lie on the device: there a tensor of 64-bit floats is an error, as on Metal."

    def __init__(self, *begin: torch.Tensor):
        super().__init__()
        self.there, self.kept = {tensor.untyped_storage().data_ptr() for tensor in begin}, [*begin]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        there = any(tensor.untyped_storage().data_ptr() in self.there for tensor in tensors((args, kwargs or {})))
        out = func(*args, **(kwargs or {}))
        if there:
            if any(tensor.dtype == torch.float64 for tensor in tensors(out)):
                raise TypeError(f"{func}: the device has no 64-bit floats")
            self.there |= {tensor.untyped_storage().data_ptr() for tensor in tensors(out)} - {0}
            self.kept += tensors(out)  # or its place in memory would be given to others
        return out


def learner_of(task: str, device=None, **fields) -> Learner:
    return Learner(tiny_model(task, dropout=0.1), tiny_features(10, task), tiny_features(6, task, seed=1), TrainingConfig(**CONFIG | fields), device=device)


@pytest.mark.parametrize("task", ["ner", "classify"])
@pytest.mark.parametrize("fields", [{}, dict(precision="bf16"), dict(gradient_checkpointing=True)], ids=str)
def test_training_and_answers_need_no_64_bits(task, fields):
    learner = learner_of(task, **fields)
    with NoDoubles(*learner.model.parameters()):
        learner.fit()
        learner.evaluate()
        assert len(dict(learner.predict(learner.valid))) == 6


def test_a_total_in_64_bits_on_the_device_is_noticed(monkeypatch):
    "The check itself: a norm of all gradients in 64 bits, which a CPU would not mind."
    learner = learner_of("ner")
    monkeypatch.setattr("ft_course.training.learner.gradients", lambda model: [p.grad.double() for p in model.parameters() if p.grad is not None])
    with NoDoubles(*learner.model.parameters()), pytest.raises(TypeError, match="no 64-bit floats"):
        learner.fit()


@pytest.mark.parametrize("task", ["ner", "classify"])
def test_all_of_a_step_lies_on_the_device(task, monkeypatch):
    "Forward, loss, backward, clipping, AdamW: a tensor left behind is an error of torch's. Numbers that leave the device are made up."
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: 1.0)
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda tensor: False)
    monkeypatch.setattr(torch.Tensor, "__int__", lambda tensor: 1)
    learner = learner_of(task, device="meta")
    learner.valid = None
    prepare(learner)
    for group in learner.optimizer.param_groups:
        group.update(fused=False, foreach=True)  # the fused step knows real devices only
    learner.fit()
    assert learner.updates == 2 and {p.device.type for p in learner.model.parameters()} == {"meta"}
    assert {moment.device.type for state in learner.optimizer.state.values() for moment in state.values() if moment.ndim} == {"meta"}
    indices, batch, output = next(run(learner.model, learner.train, pad_token_id=0))
    assert {tensor.device.type for tensor in (*batch.values(), output.logits)} == {"meta"}


@pytest.mark.parametrize("found, rank, device", [(None, "0", "cpu"), ("mps", "0", "mps:0"), ("cuda", "1", "cuda:1")])
def test_the_device_that_torch_finds_is_taken(found, rank, device, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: found is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(found))
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert pick_device() == torch.device(device)


@pytest.mark.parametrize("device", ["cuda", "mps", "meta"])
def test_totals_are_added_where_64_bits_are(device):
    assert processes.add_up([(1.5, 2), (0.25, 1)], torch.device(device)) == (1.75, 3)
