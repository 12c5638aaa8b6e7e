"""Prompts, P-tuning and prefixes against peft: the same logits, gradients and files, on every family; no virtual token in any answer."""
import json
import warnings
from copy import deepcopy

import pytest
import torch
from families import MODELS, batch, build, logits, prove_coverage
from ft_course.model.parameters import count_parameters
from ft_course.peft import prefix, prompts
from ft_course.peft.files import load_adapter, save_adapter
from ft_course.peft.injection import adapter_state_dict, merge, unload
from ft_course.model.inference import is_pair, position_ids, reader
from ft_course.theory.formulas import relative_error
from safetensors.torch import load_file

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it

N = 4
KINDS = {  # name -> (module, options of inject, peft's configuration)
    "prompt": (prompts, {}, "PromptTuningConfig"),
    "mlp": (prompts, dict(peft_type="P_TUNING", encoder_hidden_size=6), "PromptEncoderConfig"),
    "lstm": (prompts, dict(peft_type="P_TUNING", encoder_hidden_size=6, encoder_reparameterization_type="LSTM"), "PromptEncoderConfig"),
    "prefix": (prefix, {}, "PrefixTuningConfig"),
    "prefix-net": (prefix, dict(prefix_projection=True, encoder_hidden_size=6), "PrefixTuningConfig"),
}
PAIRS = [(name, kind) for name in MODELS for kind in KINDS if (name != "distilbert" or not kind.startswith("prefix")) and (name != "minilm" or kind in ("prompt", "prefix"))]
IN_PEFT = [(name, kind) for name, kind in PAIRS if name != "t5"]  # peft cannot give T5's classifier vectors in place of numbers, nor a cache
TASKS = {"bert-ner": "TOKEN_CLS", "gpt2-lm": "CAUSAL_LM", "t5-lm": "SEQ_2_SEQ_LM"}


def with_tokens(name: str, kind: str = "prompt", as_peft: bool = True, seed: int = 0, dtype: torch.dtype = torch.float32, **options):
    "A random base with virtual tokens that change what it answers."
    module, more, _ = KINDS[kind]
    model = build(name, seed, dtype)
    module.inject(model, N, as_peft=as_peft, **more | options)
    return model


def of_peft(name: str, kind: str):
    "The same in peft, with a head of its own."
    import peft

    _, options, config = KINDS[kind]
    base = build(name)
    sizes = dict(token_dim=base.config.hidden_size, num_layers=base.config.num_hidden_layers, num_attention_heads=base.config.num_attention_heads)
    options = {k: v for k, v in options.items() if k != "peft_type"} | sizes  # peft cannot read them off DistilBERT
    model = peft.get_peft_model(base, getattr(peft, config)(task_type=TASKS.get(name, "SEQ_CLS"), num_virtual_tokens=N, **options)).eval()
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn_like(p)
    return model


def answers(model, name: str) -> torch.Tensor:
    "Logits of what the text says: peft's for virtual tokens are cut; of GPT-2's classifier only those for a text without padding, which peft can't see."
    inputs = batch(name)
    z = model(**inputs).logits
    if name in ("bert-ner", "gpt2-lm"):
        return z[:, -inputs["input_ids"].shape[1]:][inputs["attention_mask"].bool()]
    return z[:1] if name == "gpt2" else z


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return relative_error(a, b) < 1e-6


@pytest.mark.parametrize("name, kind", [pair for pair in IN_PEFT if pair != ("t5-lm", "lstm")])  # peft's LSTM also reads rows that T5 never uses
def test_logits_and_gradients_are_those_of_peft(name, kind):
    theirs, ours = of_peft(name, kind), with_tokens(name, kind)
    encoder, other = ours.prompt_encoder.encoder, theirs.prompt_encoder["default"]
    rows = lambda weights: {n: p[: encoder.embedding.num_embeddings] if n == "embedding.weight" else p for n, p in weights.items()}
    encoder.load_state_dict(rows(other.state_dict()))
    heads = {n: p for n, p in theirs.named_parameters() if p.requires_grad and n.startswith("base_model.")}
    mine = dict(ours.named_parameters())
    heads = {n.removeprefix("base_model.").replace("modules_to_save.default.", ""): p for n, p in heads.items()}
    for n, p in heads.items():
        mine[n].data.copy_(p)
    a, b = answers(ours, name), answers(theirs, name)
    assert close(a, b)
    target = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    for z in (a, b):
        ((z * target).sum() + z.square().sum()).backward()
    pairs = [(p.grad, rows({n: other.get_parameter(n).grad})[n]) for n, p in encoder.named_parameters()] + [(mine[n].grad, p.grad) for n, p in heads.items()]
    size = max(1, max(g.abs().max() for _, g in pairs))
    assert max((g - h).abs().max() for g, h in pairs) < 1e-6 * size


@pytest.mark.parametrize("name, kind", IN_PEFT)
def test_our_folders_open_in_peft(name, kind, tmp_path):
    from peft import PeftModel

    ours = with_tokens(name, kind)
    save_adapter(ours, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of names and settings that peft does not know
        theirs = PeftModel.from_pretrained(build(name), str(tmp_path)).eval()
    assert close(answers(theirs, name), answers(ours, name))
    assert not close(answers(ours, name), answers(build(name), name))


@pytest.mark.parametrize("name, kind", IN_PEFT)
def test_folders_of_peft_load(name, kind, tmp_path):
    theirs = of_peft(name, kind)
    theirs.save_pretrained(tmp_path)
    assert close(answers(load_adapter(build(name), tmp_path), name), answers(theirs, name))


@pytest.mark.parametrize("kind", KINDS)
def test_our_files_have_the_names_and_settings_of_peft(kind, tmp_path):
    of_peft("bert", kind).save_pretrained(tmp_path / "theirs")
    save_adapter(with_tokens("bert", kind), tmp_path / "ours")
    shapes = [{n: t.shape for n, t in load_file(tmp_path / who / "adapter_model.safetensors").items()} for who in ("ours", "theirs")]
    assert shapes[0] == shapes[1]
    ours, theirs = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    for key in ours.keys() - {"auto_mapping", "base_model_name_or_path", "modules_to_save", "prompt_tuning_init", "tokenizer_name_or_path"}:
        assert ours[key] in (None, theirs[key]), key  # what is null here peft fills in


@pytest.mark.parametrize("name, kind, as_peft", [(name, kind, name in ("bert", "roberta", "t5-lm")) for name, kind in PAIRS])
def test_round_trip(name, kind, as_peft, tmp_path):
    model = with_tokens(name, kind, as_peft)
    save_adapter(model, tmp_path)
    again = load_adapter(build(name), tmp_path)
    assert close(logits(again, name), logits(model, name))
    save_adapter(again, tmp_path)  # a net is gone by now, what it made is kept
    assert torch.equal(logits(load_adapter(build(name), tmp_path), name), logits(again, name))
    with pytest.raises(ValueError, match="another base"):
        load_adapter(build(name, seed=1), tmp_path)


@pytest.mark.parametrize("name, kind", PAIRS)
def test_what_trains_is_what_moves(name, kind):
    prove_coverage(with_tokens(name, kind), name)


@pytest.mark.parametrize("kind", ["prompt", "prefix-net"])
def test_a_hundred_steps_leave_the_base_alone(kind):
    prove_coverage(with_tokens("bert", kind), "bert", n=100)


@pytest.mark.parametrize("name, kind", [(name, kind) for name, kind in PAIRS if name in ("bert", "gpt2", "t5-lm")])
def test_counts(name, kind):
    n, H, F, layers = N, 16, 6, 2
    expected = {"prompt": n * H, "mlp": n * H + H * F + F + F * F + F + F * H + H, "prefix": 2 * n * layers * H,
                "lstm": n * H + 8 * F * (H + F + 2) + 8 * F * (3 * F + 2) + 4 * F * F + 2 * F + 2 * F * H + H,
                "prefix-net": n * H + H * F + F + 2 * layers * H * (F + 1)}
    assert count_parameters(with_tokens(name, kind).prompt_encoder)[0] == expected[kind]


@pytest.mark.parametrize("name, kind", PAIRS)
def test_answers_have_the_shape_they_had(name, kind):
    for as_peft in (False, True):
        assert logits(with_tokens(name, kind, as_peft), name).shape == logits(build(name), name).shape


def test_the_pooler_reads_cls():
    output = reader(model := with_tokens("bert", as_peft=False))(**batch("bert"))
    assert output.last_hidden_state.shape[1] == 7
    assert torch.equal(output.pooler_output, model.bert.pooler(output.last_hidden_state))
    as_peft = reader(with_tokens("bert"))(**batch("bert"))
    assert as_peft.last_hidden_state.shape[1] == 7 + N


@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "gpt2"])
def test_places_are_the_models_own(name, left):
    base, inputs = reader(build(name)), {k: v.flip(1) if left else v for k, v in batch(name).items()}
    given = base(**inputs, position_ids=position_ids(base, inputs["input_ids"])).last_hidden_state
    assert torch.equal(given, base(**inputs).last_hidden_state)


@pytest.mark.parametrize("as_peft", [False, True])
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_reading_on_from_a_cache(kind, as_peft):
    model, ids = with_tokens("gpt2-lm", kind, as_peft), torch.randint(3, 50, (2, 7))
    whole = model(input_ids=ids).logits
    first = model(input_ids=ids[:, :4], use_cache=True)
    rest = model(input_ids=ids[:, 4:], past_key_values=first.past_key_values, attention_mask=torch.ones_like(ids))
    assert close(torch.cat([first.logits, rest.logits], 1), whole)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("as_peft", [False, True])
def test_places_of_the_text_stay_or_shift(as_peft, kind):
    seen = []
    model = with_tokens("roberta", kind, as_peft)
    model.roberta.embeddings.position_embeddings.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    inputs = batch("roberta")
    model(**inputs)
    expected = position_ids(model.roberta, inputs["input_ids"]) + N * as_peft
    real = inputs["attention_mask"].bool()
    assert torch.equal(seen[0][:, -7:][real], expected[real])
    assert kind == "prefix" or torch.equal(seen[0][:, :N], torch.arange(1, 1 + N).expand(4, -1))


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_a_text_may_fill_all_places(kind):
    model = with_tokens("bert", kind, as_peft=False)
    ids = torch.randint(3, 50, (1, 512))
    assert model(input_ids=ids).logits.shape == (1, 3)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name", ["bert", "bert-ner", "gpt2-lm", "roberta"])
def test_padding_and_a_missing_mask_change_nothing(name, kind):
    model, ids = with_tokens(name, kind), batch(name)["input_ids"]
    short = ids[3:, :3]
    alone, masked = model(input_ids=short).logits, model(input_ids=short, attention_mask=torch.ones_like(short)).logits
    padded = model(input_ids=ids, attention_mask=batch(name)["attention_mask"]).logits[3:]
    assert close(alone, masked) and close(padded[:, :3] if alone.dim() == 3 else padded, alone)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_token_types_and_labels_fit(kind):
    ids, labels = torch.randint(3, 50, (2, 6)), torch.randint(5, (2, 6))
    model = with_tokens("bert-ner", kind)
    types = torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    assert model(input_ids=ids, labels=labels, token_type_ids=types).loss.isfinite()
    assert not close(model(input_ids=ids, token_type_ids=types).logits, model(input_ids=ids).logits)


def greedy(model, inputs: dict, steps: int) -> torch.Tensor:
    "What a model writes when it reads everything again for each word."
    pair, inputs = is_pair(model), dict(inputs)
    key = "decoder_input_ids" if pair else "input_ids"
    inputs.setdefault(key, torch.zeros(2, 1, dtype=torch.long))
    for _ in range(steps):
        extra = {} if pair else {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}
        z = model(**inputs, **extra, use_cache=False).logits[:, -1]
        z[:, model.generation_config.eos_token_id] = -1e9
        inputs[key] = torch.cat([inputs[key], z.argmax(-1, keepdim=True)], 1)
        if not pair:
            inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    return inputs[key]


@pytest.mark.parametrize("as_peft", [False, True])
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name", ["gpt2-lm", "t5-lm"])
def test_writing_with_a_cache_writes_the_same(name, kind, as_peft):
    model = with_tokens(name, kind, as_peft, **({"prompt_tuning_init": "RANDOM"} if kind == "prompt" else {}))
    ids = torch.randint(3, 50, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    written = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        assert torch.equal(written, greedy(model, dict(input_ids=ids, attention_mask=mask), 6))


@pytest.mark.parametrize("name, kind", PAIRS)
def test_unload_leaves_the_model_as_it_was(name, kind):
    model = with_tokens(name, kind)
    with pytest.raises(ValueError, match="cannot be merged"):
        merge(model)
    unload(model)
    assert torch.equal(logits(model, name), logits(build(name), name))
    assert model.state_dict().keys() == build(name).state_dict().keys() and not hasattr(model, "adapter_config")
    KINDS[kind][0].inject(model)  # and can be adapted again


@pytest.mark.parametrize("name", ["bert", "t5-lm"])
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_a_copy_is_its_own(name, kind):
    model = with_tokens(name, kind)
    before, other = logits(model, name), deepcopy(model)
    assert torch.equal(logits(other, name), before)
    for p in adapter_state_dict(other).values():
        p += 1
    assert torch.equal(logits(model, name), before) and not close(logits(other, name), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases(kind, dtype, tmp_path):
    model = with_tokens("bert", kind, dtype=dtype)
    assert logits(model, "bert").isfinite().all() and model.prompt_encoder.encoder.embedding.weight.dtype == torch.float32
    save_adapter(model, tmp_path)
    assert torch.equal(logits(load_adapter(build("bert", dtype=dtype), tmp_path), "bert"), logits(model, "bert"))


def test_a_prompt_may_start_as_a_text(tmp_path):
    from ft_course.model.checkpoints import load_model, load_tokenizer

    model = load_model("minilm", "classify", ["bad", "good"])
    prompts.inject(model, 5, prompt_tuning_init="TEXT", prompt_tuning_init_text="good or bad")
    ids = load_tokenizer("minilm")("good or bad good or", add_special_tokens=False)["input_ids"]
    words = model.bert.embeddings.word_embeddings.weight
    assert torch.equal(model.prompt_encoder.encoder(), words[ids])
    save_adapter(model, tmp_path)
    again = load_adapter(load_model("minilm", "classify", ["bad", "good"]), tmp_path)
    assert torch.equal(again.prompt_encoder.encoder(), words[ids])


@pytest.mark.parametrize("module, options, message", [(prompts, dict(prompt_tuning_init="TEXT"), "TEXT"), (prompts, dict(prompt_tuning_init="ZERO"), "'ZERO'"),
                                                      (prompts, dict(num_virtual_tokens=0), "num_virtual_tokens=0"), (prefix, dict(num_virtual_tokens=0), "num_virtual_tokens=0"),
                                                      (prompts, dict(peft_type="P_TUNING", encoder_reparameterization_type="GRU"), "'GRU'"),
                                                      (prefix, dict(modules_to_save=("poler",)), "'poler'")])
def test_wrong_arguments_change_nothing(module, options, message):
    model = build("bert")
    with pytest.raises(ValueError, match=message):
        module.inject(model, **options)
    assert not hasattr(model, "adapter_config") and all(p.requires_grad for p in model.parameters()) and not hasattr(model, "prompt_encoder")
    module.inject(model)
    with pytest.raises(ValueError, match="already has"):
        module.inject(model)


def test_a_model_without_a_cache_can_have_no_prefix():
    with pytest.raises(ValueError, match="DistilBertModel takes no keys and values.*prompt"):
        prefix.inject(build("distilbert"))


@pytest.mark.parametrize("net", [False, True])
def test_a_prefix_of_zeros_still_takes_attention(net):
    model = with_tokens("bert", "prefix-net" if net else "prefix", init_weights="zero")
    assert model.prompt_encoder.encoder().abs().max() == 0
    assert not close(logits(model, "bert"), logits(build("bert"), "bert"))
