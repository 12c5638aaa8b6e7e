"""What every method shares: which weights belong to an adapter, that they reach the answer, whose base it is, and folders that are not ours."""
import json
import logging

import pytest
import torch
from families import batch, build, fingerprints, logits, steps
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (AlbertConfig, AlbertForMaskedLM, AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM, DebertaV2Config, DebertaV2ForMaskedLM,
                          DistilBertConfig, DistilBertForMaskedLM, ElectraConfig, ElectraForMaskedLM, GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaForMaskedLM)

from zoo import zoo

from ft_course.model.parameters import freeze_layers, trainable_parameters
from ft_course.peft import adapters, bitfit, ia3, lora
from ft_course.peft.files import base_hash, load_adapter, save_adapter
from ft_course.peft.injection import adapter_state_dict, check_reaches, freeze_base, matching, merge, parts_to_save, replace, unload

METHODS = {"lora": lora, "ia3": ia3, "adapters": adapters, "bitfit": bitfit}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
WIDE = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
MASKED = {"bert": lambda: BertForMaskedLM(BertConfig(**WIDE)), "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**WIDE)), "deberta-v2": lambda: DebertaV2ForMaskedLM(DebertaV2Config(**WIDE)),
          "distilbert": lambda: DistilBertForMaskedLM(DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=24)),
          "electra": lambda: ElectraForMaskedLM(ElectraConfig(embedding_size=8, **WIDE)), "albert": lambda: AlbertForMaskedLM(AlbertConfig(embedding_size=8, **WIDE))}


def trained(method, name="bert"):
    model = build(name)
    method.inject(model)
    steps(model, name)
    return model


def state(model):
    "All that a refusal must leave alone."
    return fingerprints(model), {name: p.requires_grad for name, p in model.named_parameters()}, hasattr(model, "adapter_config")


@each_method
def test_what_is_frozen_later_still_belongs_to_it(method, tmp_path):
    model = trained(method)
    whole = set(adapter_state_dict(model))
    freeze_layers(model, 1)
    assert set(adapter_state_dict(model)) == whole > set(trainable_parameters(model))
    model.requires_grad_(False)
    save_adapter(model, tmp_path / "a")
    assert len(load_file(tmp_path / "a/adapter_model.safetensors")) == len(whole)
    assert torch.equal(logits(load_adapter(build("bert"), tmp_path / "a"), "bert"), logits(model, "bert"))


@each_method
def test_unload_lets_train_what_trained_before(method):
    model = build("bert")
    model.bert.embeddings.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    method.inject(model)
    assert {name: p.requires_grad for name, p in unload(model).named_parameters()} == before


@each_method
def test_the_same_base_in_bfloat16_is_the_same(method, tmp_path):
    save_adapter(trained(method), tmp_path / "a")
    load_adapter(build("bert").to(torch.bfloat16), tmp_path / "a")
    with pytest.raises(ValueError, match="another base"):
        load_adapter(build("bert", seed=1).to(torch.bfloat16), tmp_path / "a")


@pytest.mark.parametrize("exact", [False, True])
def test_a_base_is_its_names_and_shapes_too(exact):
    def made(name, *shape):
        part = nn.Module()
        part.register_parameter(name, nn.Parameter(torch.arange(6.0).view(shape)))
        return base_hash(part, exact)

    assert made("a", 2, 3) == made("a", 2, 3) and len({made("a", 2, 3), made("b", 2, 3), made("a", 3, 2)}) == 3


def test_folders_with_the_older_hash_open(tmp_path):
    model = trained(lora)
    save_adapter(model, tmp_path / "a")
    (tmp_path / "a/checksums.json").unlink()
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    del config["auto_mapping"]["base_bfloat16_sha256"]
    config["auto_mapping"]["base_sha256"] = base_hash(model, exact=True)
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config))
    assert torch.equal(logits(load_adapter(build("bert"), tmp_path / "a"), "bert"), logits(model, "bert"))
    other = build("bert", seed=1)
    before = state(other)
    with pytest.raises(ValueError, match="another base"):
        load_adapter(other, tmp_path / "a")
    assert state(other) == before


class Deaf(nn.Module):
    "A part that is asked and says nothing."

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.scale = base_layer, nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.base_layer(x)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "t5-lm"])
def test_what_does_not_reach_the_logits_is_refused_and_taken_off(name):
    model = build(name)
    before, random = state(model), torch.get_rng_state()
    whole, targets = parts_to_save(model), matching(model, lora.lora_targets(model))
    freeze_base(model, "DEAF", whole)
    for target in targets:
        replace(model, target, Deaf(model.get_submodule(target)))
    with pytest.raises(ValueError, match="DEAF: the logits of .* don't depend"):
        check_reaches(model)
    assert state(model) == before and torch.equal(torch.get_rng_state(), random)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_does_not_bear_a_part_is_refused_and_left_alone():
    "The router of a mixture gives two things where a linear layer gives one."
    config = AutoConfig.for_model("phimoe", num_local_experts=2, num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2, **WIDE)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    before = state(model)
    with pytest.raises(ValueError, match="LORA: PhimoeForSequenceClassification cannot be asked with it any more .*other targets"):
        lora.inject(model, target_modules="all-linear")
    assert state(model) == before
    lora.inject(model, target_modules=("q_proj",))


@each_method
def test_the_proof_changes_nothing(method):
    model = build("bert").train()
    method.inject(model)
    before, random = fingerprints(model), torch.get_rng_state()
    check_reaches(model)
    assert fingerprints(model) == before and torch.equal(torch.get_rng_state(), random) and model.training


@each_method
def test_only_models_of_transformers(method):
    for other in (nn.Linear(2, 2), nn.Sequential(), "bert"):
        with pytest.raises(ValueError, match="models of transformers; this is a"):
            method.inject(other)


@pytest.mark.parametrize("targets", [("lm_head",), ("c_attn", "lm_head"), ".*head"], ids=str)
def test_a_tied_layer_is_no_target(targets):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2))
    before = state(model)
    with pytest.raises(ValueError, match="'lm_head' shares its weight with 'transformer.wte'"):
        lora.inject(model, target_modules=targets)
    assert state(model) == before
    lora.inject(model, target_modules="all-linear")
    assert not hasattr(model.lm_head, "lora_A")
    free = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2, tie_word_embeddings=False))
    lora.inject(free, target_modules=("lm_head",))
    merge(free)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MASKED)
def test_of_a_tied_head_only_its_own_trains_and_peft_agrees(name, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    def fresh():
        torch.manual_seed(0)
        return MASKED[name]().eval()

    ids = torch.randint(3, 50, (2, 5))
    model = fresh()
    words = {id(model.get_input_embeddings().weight), *(id(p) for p in model.get_output_embeddings().parameters())}
    lora.inject(model, r=2)
    names = adapter_state_dict(model)
    assert any("lora" not in n for n in names) and not words & {id(model.get_parameter(n)) for n in names}
    for p in names.values():
        p += 0.1 * torch.randn_like(p)
    save_adapter(model, tmp_path / "ours")
    theirs = PeftModel.from_pretrained(fresh(), str(tmp_path / "ours")).eval()
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    theirs = get_peft_model(fresh(), LoraConfig(r=2, target_modules=list(lora.lora_targets(model)), init_lora_weights=False)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    torch.testing.assert_close(load_adapter(fresh(), tmp_path / "theirs")(ids).logits, theirs(ids).logits, rtol=1e-5, atol=1e-5)


def test_nan_is_not_merged():
    model = trained(lora)
    before = fingerprints(model)
    model.bert.encoder.layer[1].attention.self.value.lora_B.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="layer.1.attention.self.value.*nan or inf"):
        merge(model)
    after = fingerprints(model)
    assert [name for name in before if before[name] != after[name]] == ["bert.encoder.layer.1.attention.self.value.lora_B.weight"]


def test_an_adapter_of_peft_for_a_base_of_another_name_is_warned_about(tmp_path, caplog):
    from peft import LoraConfig, get_peft_model

    base = build("bert")
    base.config._name_or_path = base.name_or_path = "somebody/bert-base-uncased"
    get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2)).save_pretrained(tmp_path)
    for name, warned in (("other/bert-large", True), ("/models/bert-base-uncased", False), ("somebody/bert-base-uncased", False)):
        caplog.clear()
        model = build("bert")
        model.config._name_or_path = name
        with caplog.at_level(logging.WARNING, logger="ft_course"):
            load_adapter(model, tmp_path)
        assert ("says that it was made for somebody/bert-base-uncased" in caplog.text) == warned


def test_the_base_has_a_name_that_others_know(tmp_path, monkeypatch):
    def named(name):
        model = trained(lora)
        model.config._name_or_path = name
        save_adapter(model, tmp_path / "a")
        return json.loads((tmp_path / "a/adapter_config.json").read_text())["base_model_name_or_path"]

    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    assert named("minilm") == "sentence-transformers/all-MiniLM-L6-v2"
    assert named("base") == named("./base") == str(tmp_path / "base")
    assert named("google/bert") == "google/bert" and named("") == ""


def test_folders_that_hold_no_adapter_or_a_pickle_or_several(tmp_path):
    model = trained(lora)
    with pytest.raises(ValueError, match="no adapter_config.json"):
        load_adapter(build("bert"), tmp_path)
    save_adapter(model, tmp_path / "run/reviews")
    assert torch.equal(logits(load_adapter(build("bert"), tmp_path / "run"), "bert"), logits(model, "bert"))
    save_adapter(model, tmp_path / "run/news")
    with pytest.raises(ValueError, match="several adapters.*news"):
        load_adapter(build("bert"), tmp_path / "run")
    (tmp_path / "run/news/adapter_model.safetensors").rename(tmp_path / "run/news/adapter_model.bin")
    with pytest.raises(ValueError, match="adapter_model.bin, a pickle"):
        load_adapter(build("bert"), tmp_path / "run/news")
    (tmp_path / "run/news/adapter_model.bin").unlink()
    with pytest.raises(ValueError, match="no adapter_model.safetensors"):
        load_adapter(build("bert"), tmp_path / "run/news")
    for text in ("[]", "{}"):
        (tmp_path / "run/reviews/adapter_config.json").write_text(text)
        (tmp_path / "run/reviews/checksums.json").unlink(missing_ok=True)
        with pytest.raises(ValueError, match="names no peft_type"):
            load_adapter(build("bert"), tmp_path / "run/reviews")


def test_a_file_that_does_not_fit_leaves_the_model_alone(tmp_path):
    save_adapter(trained(lora), tmp_path / "a")
    (tmp_path / "a/checksums.json").unlink()
    file = tmp_path / "a/adapter_model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "classifier" not in n}, file)
    model = build("bert")
    before = state(model)
    with pytest.raises(ValueError, match="classifier.* is missing"):
        load_adapter(model, tmp_path / "a")
    assert state(model) == before


@pytest.mark.parametrize("kind", [list, set, frozenset, tuple])
def test_names_may_come_in_any_collection(kind, tmp_path):
    model = build("bert")
    lora.inject(model, target_modules=kind(["value", "query"]), modules_to_save=kind(["pooler"]))
    save_adapter(model, tmp_path)
    assert torch.equal(logits(load_adapter(build("bert"), tmp_path), "bert"), logits(model, "bert"))


KINDS = ["electra", "roberta", "albert", "mpnet", "deberta-v2", "modernbert", "opt", "llama", "qwen2", "gpt_neox", "bart", "mt5"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_has_defaults_and_answers_as_in_peft(kind, tmp_path):
    from peft import PeftModel

    def fresh():
        return zoo(kind, AutoModelForSequenceClassification, num_labels=3)

    model, ids = fresh(), torch.tensor([[5, 6, 7, 8, fresh().config.eos_token_id or 2]])
    before = state(model)
    for method in (adapters, ia3, bitfit, lora):
        if method is bitfit and not bitfit.biases(model):  # T5 and Llama
            with pytest.raises(ValueError, match="no biases"):
                bitfit.inject(model)
            continue
        method.inject(model)
        assert any(p.requires_grad for p in model.base_model.parameters())
        unload(model)
        assert state(model) == before
    lora.inject(model, r=2)
    for p in adapter_state_dict(model).values():
        p += 0.1 * torch.randn_like(p)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(fresh(), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(model(ids).logits, fresh()(ids).logits, atol=1e-3)


@pytest.mark.parametrize("targets", ["all-linear", ".*query", ("query",)], ids=str)
def test_layers_that_are_none_of_torchs_are_no_targets(targets):
    "I-BERT has whole numbers in layers of its own."
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("ibert", **WIDE))
    before = state(model)
    for method in (lora, ia3, adapters):
        with pytest.raises(ValueError, match="target_modules: IBertForSequenceClassification has no linear layers"):
            method.inject(model, target_modules=targets)
    assert state(model) == before


def test_a_family_without_layers_for_queries_is_refused_by_name():
    model = zoo("xlnet", AutoModelForSequenceClassification)
    for method in (lora, ia3, adapters):
        with pytest.raises(ValueError, match="attention of xlnet has no layers|xlnet has no layer behind attention"):
            method.inject(model)
    adapters.inject(model, placement="pfeiffer")
