"""Asking a model: the same answer alone and in a batch, whatever the family, and nothing left behind."""
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification
from zoo import zoo

from ft_course.model.inference import batches, evaluating, logits_of, padding_of, run, states_of

LENGTHS = [3, 9, 5, 9, 4, 7]
DECODERS = ["gpt2", "opt", "llama", "qwen2", "bloom"]
PAIRS = {"t5": dict(pad_token_id=0, eos_token_id=1), "bart": dict(pad_token_id=1, eos_token_id=2, num_labels=3)}
ALL = {"bert": {}, "roberta": {}, "distilbert": {}, "electra": {}, "albert": {}, "deberta-v2": {}, "modernbert": {}, "mpnet": {}, "xlnet": {},
       **dict.fromkeys(DECODERS, dict(pad_token_id=49)), **PAIRS}


def features(kind="bert", more=()) -> list[dict]:
    "Texts of uneven length whose tokens are no special ones; those of a pair end with its end of sentence, once."
    draw = np.random.default_rng(0)
    rows = [draw.integers(5, 49, n).tolist() for n in LENGTHS]
    if end := ALL.get(kind, {}).get("eos_token_id"):
        rows = [row[:-1] + [end] for row in rows]
    return [dict(input_ids=row, attention_mask=[1] * len(row)) | {name: i for name in more} for i, row in enumerate(rows)]


def one(model, feature, part="logits") -> np.ndarray:
    with torch.no_grad():
        return getattr(model(**{k: torch.tensor([feature[k]]) for k in ("input_ids", "attention_mask")}), part)[0].numpy()


@pytest.mark.parametrize("auto", [AutoModelForSequenceClassification, AutoModelForTokenClassification], ids=["text", "token"])
@pytest.mark.parametrize("kind", ALL)
def test_the_answer_is_the_same_alone_and_in_a_batch(kind, auto):
    if auto is AutoModelForTokenClassification and kind in ("opt", "bart"):
        return  # transformers has no such head
    if auto is AutoModelForSequenceClassification and kind == "xlnet":
        return  # reads the last place, padding or not: `load_model` refuses it
    model = zoo(kind, auto, **{"num_labels": 3} | ALL[kind])
    answers = dict(logits_of(model, features(kind), batch_size=4))
    assert sorted(answers) == list(range(len(LENGTHS)))
    for i, feature in enumerate(features(kind)):
        assert answers[i].shape == ((LENGTHS[i], 3) if auto is AutoModelForTokenClassification else (3,)) and answers[i].dtype == np.float32
        np.testing.assert_allclose(answers[i], one(model, feature), atol=2e-5)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "bart"])
def test_states_come_without_padding(kind):
    model = zoo(kind, AutoModelForSequenceClassification, **ALL[kind])
    base = model.base_model.encoder if kind in PAIRS else model.base_model
    for i, states in states_of(model, features(kind), batch_size=6):
        assert states.shape == (LENGTHS[i], 16)
        np.testing.assert_allclose(states, one(base, features(kind)[i], "last_hidden_state"), atol=2e-5)


def test_the_padding_is_the_models_own():
    "A decoder looks for the number: with another one, the answer would come from a place of padding."
    model = zoo("gpt2", AutoModelForSequenceClassification, pad_token_id=49)
    right = dict(logits_of(model, features(), 6))
    assert all(np.array_equal(row, right[i]) for i, row in logits_of(model, features(), 6, pad_token_id=49))
    with pytest.raises(ValueError, match="pad_token_id=0: the model's config says 49"):
        next(run(model, features(), pad_token_id=0))
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match="texts of different length need a padding token, and model.config.pad_token_id is None.*eos_token_id"):
        next(run(model, features()))
    assert len(list(run(model, features()[:1]))) == 1, "one text needs no padding"
    assert padding_of(nn.Linear(1, 1), 7) == 7 and padding_of(nn.Linear(1, 1), needed=False) == 0


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_are_sorted_and_hold_each_example_once(batch_size):
    found = [(indices, batch["input_ids"]) for indices, batch in batches(features(), batch_size, 0)]
    assert sorted(sum((indices for indices, _ in found), [])) == list(range(len(LENGTHS)))
    widths = [ids.shape[1] for _, ids in found]
    assert widths == sorted(widths, reverse=True) and all(ids.shape[1] == max(LENGTHS[i] for i in indices) for indices, ids in found)
    with pytest.raises(ValueError, match="batch_size=0"):
        next(batches(features(), 0))
    assert not list(run(zoo("bert"), []))


def test_labels_stay_outside_and_come_with_the_batch():
    model = zoo("bert", AutoModelForSequenceClassification)
    (indices, batch, output), = run(model, features(more=["labels"]))
    assert batch["labels"].tolist() == indices and output.loss is None


@pytest.mark.parametrize("mode", [True, False])
def test_nothing_is_left_behind(mode):
    "Weights, gradients, modes of every part, and torch's random numbers are as before; a frozen model needs no optimiser."
    model = zoo("bert", AutoModelForSequenceClassification, hidden_dropout_prob=0.5).train(mode).requires_grad_(False)
    model.bert.encoder.layer[0].train(not mode)
    modes, before, chance = [part.training for part in model.modules()], deepcopy(model.state_dict()), torch.get_rng_state()
    first, second = (dict(logits_of(model, features())) for _ in range(2))
    assert all(np.array_equal(first[i], second[i]) for i in first), "dropout was on"
    assert [part.training for part in model.modules()] == modes and torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(w, before[name]) for name, w in model.state_dict().items())
    for _ in run(model, features(), 2):
        assert [part.training for part in model.modules()] == modes and torch.is_grad_enabled(), "between two batches the model is the caller's"
        break


def test_an_error_inside_gives_the_model_back():
    model = zoo("bert").train()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(part.training for part in model.modules()) and not torch.is_grad_enabled()
        raise RuntimeError
    assert all(part.training for part in model.modules()) and torch.is_grad_enabled()


class Plain(nn.Module):
    "A row of three numbers for each token, or for `times` as many."

    def __init__(self, times=1):
        super().__init__()
        self.weight, self.times = nn.Parameter(torch.ones(1)), times

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.weight * input_ids[..., None].repeat(1, self.times, 3))


def test_inputs_go_to_the_models_device():
    for _, batch, output in run(Plain().to("meta"), features(), pad_token_id=0):
        assert {t.device.type for t in batch.values()} == {"meta"} == {output.logits.device.type}


def test_half_precision_answers_in_float32():
    model = zoo("bert", AutoModelForTokenClassification).to(torch.bfloat16)
    assert {row.dtype for _, row in logits_of(model, features())} == {np.dtype("float32")}


def test_rows_that_belong_to_no_token_are_refused():
    with pytest.raises(ValueError, match="18 rows for 9 tokens"):
        next(logits_of(Plain(times=2), features(), pad_token_id=0))
