"""A tiny random model of each family of transformers, MiniLM with its real weights, and the proofs that every method of part 6 must pass."""
import hashlib
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (BertConfig, BertForSequenceClassification, BertForTokenClassification, DistilBertConfig, DistilBertForSequenceClassification,
                          GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedModel, RobertaConfig, RobertaForSequenceClassification,
                          T5Config, T5ForConditionalGeneration, T5ForSequenceClassification)

from ft_course.model.checkpoints import load_model
from ft_course.peft.bitfit import idle_biases
from ft_course.peft.files import load_adapter, save_adapter
from ft_course.peft.injection import ends_with

WIDE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
MODELS = {  # name -> (class, configuration)
    "bert": (BertForSequenceClassification, BertConfig(vocab_size=50, num_labels=3, **WIDE)),
    "bert-ner": (BertForTokenClassification, BertConfig(vocab_size=50, num_labels=5, **WIDE)),
    "distilbert": (DistilBertForSequenceClassification, DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=3)),
    "roberta": (RobertaForSequenceClassification, RobertaConfig(vocab_size=50, num_labels=3, pad_token_id=0, **WIDE)),
    "gpt2": (GPT2ForSequenceClassification, GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=2)),
    "gpt2-lm": (GPT2LMHeadModel, GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)),
    "t5": (T5ForSequenceClassification, T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, num_labels=3, decoder_start_token_id=0)),
    "t5-lm": (T5ForConditionalGeneration, T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)),
    "minilm": (lambda _: load_model("minilm", "classify", ["bad", "fair", "good"]), None),
}


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    "A random model, in evaluation mode, the same one for the same seed; MiniLM has its real weights and a random head with seed 0."
    kind, config = MODELS[name]
    torch.manual_seed(seed)
    model = kind(deepcopy(config)).eval().to(dtype)
    drawn = model.classifier if name == "minilm" and not seed else model
    for parameter in drawn.parameters():  # biases and norms are born as zeros and ones, matrices tiny: that would hide mistakes
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def batch(name: str, seed: int = 1) -> dict[str, Tensor]:
    "Four texts of uneven length; each ends with T5's end of sentence."
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 30_000 if name == "minilm" else 50, (4, 7), generator=generator)
    mask = torch.arange(7) < torch.tensor([7, 5, 6, 3])[:, None]
    ids[range(4), mask.sum(1) - 1] = 1
    inputs = dict(input_ids=ids * mask, attention_mask=mask.long())
    return inputs | (dict(decoder_input_ids=ids[:, :4]) if name == "t5-lm" else {})


@torch.no_grad()
def logits(model: PreTrainedModel, name: str) -> Tensor:
    return model(**batch(name)).logits


def loss(model: PreTrainedModel, name: str, seed: int = 1) -> Tensor:
    "A loss that depends on every logit."
    z = model(**batch(name, seed)).logits
    target = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed)).to(z.dtype)
    return (z * target).sum() + z.square().sum()


def steps(model: PreTrainedModel, name: str, n: int = 2, lr: float = 1e-2) -> None:
    "Some steps of training; the gradients of the last stay."
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)
    model.train()
    for i in range(n):
        optimizer.zero_grad()
        loss(model, name, seed=i).backward()
        optimizer.step()
    model.eval()


def fingerprints(model: PreTrainedModel) -> dict[str, str]:
    "A hash of the bytes of each parameter."
    return {name: hashlib.sha256(p.detach().contiguous().flatten().view(torch.uint8).numpy()).hexdigest() for name, p in model.named_parameters()}


def prove_another_base_is_refused(model: PreTrainedModel, name: str, folder: Path) -> None:
    "An adapter does not load on a base with other weights, and leaves that base as it was."
    save_adapter(model, folder)
    other = build(name, seed=1)
    before = fingerprints(other)
    with pytest.raises(ValueError, match="made for another base"):
        load_adapter(other, folder)
    assert fingerprints(other) == before


def prove_coverage(model: PreTrainedModel, name: str, n: int = 2) -> None:
    "After some steps every trainable parameter, biases of keys beside LoRA apart, has a non-zero gradient and moved, every frozen one has none and kept its bytes."
    before = fingerprints(model)
    steps(model, name, n)
    for parameter, now in fingerprints(model).items():
        p = model.get_parameter(parameter)
        if model.adapter_config.get("bias") == "all" and any(ends_with(parameter, idle) for idle in idle_biases(model)):
            assert p.requires_grad and p.grad.abs().max() < 1e-6, parameter  # what it adds cancels in the softmax
            continue
        assert (now != before[parameter]) == p.requires_grad, parameter
        assert (p.grad is not None and p.grad.abs().max() > 1e-7) == p.requires_grad, parameter
