"""LoRA, rsLoRA and DoRA against peft: the same logits, gradients and files, on every family; merging to the byte."""
import json
import warnings

import pytest
import torch
from families import MODELS, batch, build, logits, loss, prove_coverage
from ft_course.model.parameters import trainable_parameters
from ft_course.peft import lora
from ft_course.model.parameters import heads
from ft_course.peft.files import PREFIX, load_adapter, save_adapter
from ft_course.peft.injection import adapter_state_dict, merge, unload, unmerge
from ft_course.theory.formulas import relative_error
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:The following", "ignore:Adapter 'default'")  # of names in transformers that peft uses; of odd files that we make
KINDS = {"lora": {}, "rslora": dict(use_rslora=True), "dora": dict(use_dora=True), "bias": dict(bias="all")}
OTHER_TARGETS = {"gpt2": ("c_attn", "mlp.c_proj"), "t5": ("q", "wo", "k")}  # a Conv1D that narrows; a layer whose weight T5 looks at


def with_lora(name: str, kind: str = "lora", seed: int = 0, dtype: torch.dtype = torch.float32, **options):
    "A random base with LoRA that changes what it answers."
    model = build(name, seed, dtype)
    lora.inject(model, r=3, lora_alpha=4, **KINDS[kind], **options)
    for p in adapter_state_dict(model).values():
        p += 0.05 * torch.randn_like(p)
    return model


def in_peft(model, name: str, folder, trainable: bool = True):
    "What peft makes of a folder that we wrote."
    from peft import PeftModel

    save_adapter(model, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of names and settings that peft does not know
        return PeftModel.from_pretrained(build(name, dtype=model.dtype), str(folder), is_trainable=trainable).eval()


def peft_gradients(model) -> dict[str, torch.Tensor]:
    "Gradients by our names."
    spell = lambda name: name.removeprefix(PREFIX).replace(".default", "").replace(".modules_to_save", "").replace("vector.weight", "vector")
    return {spell(name): p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("dtype, close", [(torch.float32, 2e-6), (torch.float64, 1e-13)], ids=["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_those_of_peft(name, kind, dtype, close, tmp_path):
    ours = with_lora(name, kind, dtype=dtype)
    theirs = in_peft(ours, name, tmp_path / "a")
    assert relative_error(logits(ours, name), logits(theirs, name)) < close
    assert relative_error(logits(ours, name), logits(build(name, dtype=dtype), name)) > 1e-3
    loss(ours, name).backward(), loss(theirs, name).backward()
    mine, others = {n: p.grad for n, p in trainable_parameters(ours).items()}, peft_gradients(theirs)
    assert mine.keys() == others.keys()
    size = max(1, max(g.abs().max() for g in mine.values()))
    assert max((mine[n] - others[n]).abs().max() for n in mine) < close * size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OTHER_TARGETS)
def test_other_targets_answer_as_in_peft(name, kind, tmp_path):
    ours = with_lora(name, kind, target_modules=OTHER_TARGETS[name])
    theirs = in_peft(ours, name, tmp_path / "a")
    assert relative_error(logits(ours, name), logits(theirs, name)) < 1e-6
    expected = theirs.merge_and_unload().state_dict()
    merge(ours)
    mine = unload(ours).state_dict()
    assert max(relative_error(mine[n], expected[n]) for n in mine) < 1e-6


def test_dropout_draws_as_in_peft(tmp_path):
    ours = with_lora("bert", lora_dropout=0.5)
    theirs = in_peft(ours, "bert", tmp_path / "a").train()
    answers = []
    for model in (ours.train(), theirs):
        torch.manual_seed(5)
        answers.append(model(**batch("bert")).logits)
    assert relative_error(*answers) < 1e-6
    assert relative_error(answers[0], logits(ours.eval(), "bert")) > 1e-4


def from_peft(name: str, folder, head=None, **options):
    "A model of peft's with an adapter that does something, saved."
    from peft import LoraConfig, get_peft_model

    base = build(name)
    whole = heads(base) if head is None else head
    config = dict(r=4, lora_alpha=6, target_modules=list(lora.lora_targets(base)), modules_to_save=whole or None,
                  fan_in_fan_out=base.config.model_type == "gpt2") | options
    model = get_peft_model(base, LoraConfig(task_type={"bert-ner": "TOKEN_CLS", "gpt2-lm": "CAUSAL_LM", "t5-lm": "SEQ_2_SEQ_LM"}.get(name, "SEQ_CLS"), **config)).eval()
    for p in trainable_parameters(model).values():
        p.data += 0.05 * torch.randn_like(p)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_folders_of_peft_load(name, kind, tmp_path):
    theirs = from_peft(name, tmp_path, **KINDS[kind])
    assert relative_error(logits(load_adapter(build(name), tmp_path), name), logits(theirs, name)) < 1e-6


def test_peft_names_heads_that_a_model_lacks(tmp_path):
    theirs = from_peft("bert", tmp_path, head=())  # peft writes "classifier" and "score" by itself
    assert "score" in json.loads((tmp_path / "adapter_config.json").read_text())["modules_to_save"]
    assert relative_error(logits(load_adapter(build("bert"), tmp_path), "bert"), logits(theirs, "bert")) < 1e-6


def test_a_file_without_the_whole_head_is_refused(tmp_path):
    from_peft("t5", tmp_path, head=())  # peft looks for "classifier" and "score"; it leaves T5's head at random, untrained and unsaved
    with pytest.raises(ValueError, match="classification_head.*missing"):
        load_adapter(build("t5"), tmp_path)


def test_all_linear_layers_of_peft(tmp_path):
    theirs = from_peft("bert", tmp_path, target_modules="all-linear")  # peft writes the names that it found
    assert relative_error(logits(load_adapter(build("bert"), tmp_path), "bert"), logits(theirs, "bert")) < 1e-6


def test_both_spellings_of_the_head(tmp_path):
    model = with_lora("bert")
    save_adapter(model, tmp_path)
    (tmp_path / "checksums.json").unlink()
    file = tmp_path / "adapter_model.safetensors"
    save_file({n.replace("base_model.model.classifier", "base_model.classifier"): t for n, t in load_file(file).items()}, file)
    assert torch.equal(logits(load_adapter(build("bert"), tmp_path), "bert"), logits(model, "bert"))


@pytest.mark.parametrize("name", MODELS)
def test_our_files_have_the_names_and_settings_of_peft(name, tmp_path):
    from_peft(name, tmp_path / "theirs", r=3, lora_alpha=4)
    save_adapter(with_lora(name), tmp_path / "ours")
    shapes = [{n: t.shape for n, t in load_file(tmp_path / who / "adapter_model.safetensors").items()} for who in ("ours", "theirs")]
    assert shapes[0] == shapes[1]
    ours, theirs = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    assert set(ours.pop("modules_to_save")) <= set(theirs["modules_to_save"] or ())  # theirs has "classifier" and "score" always
    for key in ours.keys() - {"auto_mapping", "base_model_name_or_path"}:
        assert ours[key] == theirs[key] or sorted(ours[key]) == sorted(theirs[key]), key


PATTERNS = [dict(rank_pattern={"query": 2}), dict(alpha_pattern={r"0\..*query": 2, "value": 9.5}), dict(layers_to_transform=[1]), dict(layers_to_transform=0), dict(target_modules=r".*\.0\..*(query|key)"),
            dict(rank_pattern={"nothing": 7, "1.attention.self.value": 5}, alpha_pattern={"nobody": 3}), dict(target_modules="all-linear"),
            dict(rank_pattern={"self.*": 1}, use_rslora=True), dict(rank_pattern={"value": 6}, use_dora=True)]


@pytest.mark.parametrize("setting", PATTERNS, ids=str)
def test_patterns_answer_as_in_peft_both_ways(setting, tmp_path, caplog):
    theirs = from_peft("bert", tmp_path / "theirs", **setting)
    assert relative_error(logits(load_adapter(build("bert"), tmp_path / "theirs"), "bert"), logits(theirs, "bert")) < 1e-6
    ours = with_lora("bert", **setting)
    assert ("no target fits 'nothing', 'nobody'" in caplog.text) == ("nothing" in setting.get("rank_pattern", ()))
    again = in_peft(ours, "bert", tmp_path / "ours")
    assert relative_error(logits(again, "bert"), logits(ours, "bert")) < 1e-6
    shapes = [{n: t.shape for n, t in load_file(folder / "adapter_model.safetensors").items() if "lora" in n} for folder in (tmp_path / "theirs", tmp_path / "ours")]
    assert shapes[0].keys() == shapes[1].keys()


@pytest.mark.parametrize("init", [False, "gaussian", "orthogonal"])
def test_factors_begin_as_in_peft(init, tmp_path):
    theirs = from_peft("bert", tmp_path, init_lora_weights=init)
    assert relative_error(logits(load_adapter(build("bert"), tmp_path), "bert"), logits(theirs, "bert")) < 1e-6
    model = build("bert")
    lora.inject(model, r=4, init_lora_weights=init)
    part = model.bert.encoder.layer[0].attention.self.query
    product = (part.lora_B.weight @ part.lora_A.weight).abs().max()
    assert (product < 1e-6) == (init is not False) and (part.lora_B.weight.abs().max() > 0) == (init != "gaussian")
    assert (relative_error(logits(model, "bert"), logits(build("bert"), "bert")) < 1e-5) == (init is not False)


@pytest.mark.parametrize("setting", [dict(bias="lora_only"), dict(lora_bias=True), dict(init_lora_weights="pissa"),
                                     dict(exclude_modules=["value"]), dict(trainable_token_indices=[1])], ids=str)
def test_settings_that_we_lack_are_refused(setting, tmp_path):
    from_peft("bert", tmp_path, **setting)
    base = build("bert")
    with pytest.raises(ValueError, match=next(iter(setting))):
        load_adapter(base, tmp_path)
    assert not hasattr(base, "adapter_config") and all(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_what_trains_is_what_moves(name, kind):
    model = build(name)
    lora.inject(model, r=2, **KINDS[kind])
    prove_coverage(model, name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_steps_leave_the_base_alone(kind):
    model = build("bert")
    lora.inject(model, r=2, **KINDS[kind])
    prove_coverage(model, "bert", n=100)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_changes_at_the_start(name):
    before, model = logits(build(name), name), build(name)
    lora.inject(model)
    assert torch.equal(logits(model, name), before)
    model = build(name)
    lora.inject(model, use_dora=True)
    assert relative_error(logits(model, name), before) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_count(name):
    model = build(name)
    layers = [m for n, m in model.named_modules() if n.split(".")[-1] in lora.lora_targets(model)]
    lora.inject(model, r=5)
    parts = {n: p.numel() for n, p in trainable_parameters(model).items() if "lora_" in n}
    assert layers and sum(parts.values()) == sum(5 * sum(layer.weight.shape) for layer in layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_unmerge_restores_every_byte(name, kind, dtype):
    model = with_lora(name, kind, dtype=dtype)
    before, separate = {n: t.clone() for n, t in model.state_dict().items()}, logits(model, name)
    merge(model)
    assert relative_error(logits(model, name), separate) < (1e-6 if dtype == torch.float32 else 0.1)
    assert any(not torch.equal(t, before[n]) for n, t in model.state_dict().items())
    unmerge(model)
    assert all(torch.equal(t.view(torch.uint8), before[n].view(torch.uint8)) for n, t in model.state_dict().items())
    assert torch.equal(logits(model, name), separate)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_while_training_bakes_no_dropout_in(kind):
    model = with_lora("bert", kind, lora_dropout=0.9)
    separate = logits(model, "bert")
    model.train()
    merge(model)
    assert relative_error(logits(model.eval(), "bert"), separate) < 1e-6


def test_merging_twice_unmerging_twice_and_saving_merged_are_errors(tmp_path):
    model = with_lora("bert")
    with pytest.raises(ValueError, match="not merged"):
        unmerge(model)
    merge(model)
    with pytest.raises(ValueError, match="merged already"):
        merge(model)
    with pytest.raises(ValueError, match="unmerge it first"):
        save_adapter(model, tmp_path / "a")


def test_unload_after_a_merge_leaves_a_plain_model():
    model = with_lora("bert")
    separate = logits(model, "bert")
    merge(model)
    plain = unload(model)
    assert plain.state_dict().keys() == build("bert").state_dict().keys()
    assert relative_error(logits(plain, "bert"), separate) < 1e-6
    lora.inject(plain)  # and can be adapted again


def test_another_base_is_refused(tmp_path):
    save_adapter(with_lora("bert"), tmp_path)
    with pytest.raises(ValueError, match="another base"):
        load_adapter(build("bert", seed=1), tmp_path)


@pytest.mark.parametrize("options, message", [(dict(target_modules="query"), "goes into a tuple"), (dict(target_modules=("uery",)), "'uery'"),
                                              (dict(r=0), "r=0"), (dict(r=1.5), "r=1.5"), (dict(r=True), "r=True"), (dict(r="8"), "r='8'"), (dict(lora_dropout=-1), "lora_dropout=-1"),
                                              (dict(lora_dropout=1), "lora_dropout=1"), (dict(lora_alpha=0), "lora_alpha=0"), (dict(lora_alpha=float("nan")), "lora_alpha=nan"),
                                              (dict(use_dora="yes"), "use_dora='yes'"), (dict(rank_pattern={"query": 0}), "rank_pattern="), (dict(alpha_pattern={"(": 1}), "no regular expression"),
                                              (dict(rank_pattern=["query"]), "rank_pattern="), (dict(init_lora_weights="pissa"), "'pissa'"), (dict(r=3, init_lora_weights="orthogonal"), "r=3.*even"),
                                              (dict(rank_pattern={"query": 5}, init_lora_weights="orthogonal"), "r=5.*even"), (dict(layers_to_transform=[7]), "layers 0, 1|layers .0, 1"),
                                              (dict(layers_to_transform="0"), "layers_to_transform='0'"), (dict(target_modules=".*query", layers_to_transform=0), "layers_to_transform=0"),
                                              (dict(target_modules="["), "no regular expression"), (dict(target_modules=()), "empty"), (dict(target_modules=torch.ones(2)), "tuple of names"),
                                              (dict(target_modules=("query", 3)), "tuple of names"), (dict(modules_to_save="pooler"), r"\('pooler',\)"), (dict(modules_to_save=5), "tuple of names"), (dict(bias="lora_only"), "bias='lora_only'"), (dict(modules_to_save=("poler",)), "'poler'")])
def test_wrong_arguments_change_nothing(options, message):
    model = build("bert")
    with pytest.raises(ValueError, match=message):
        lora.inject(model, **options)
    assert not hasattr(model, "adapter_config") and all(p.requires_grad for p in model.parameters())
    lora.inject(model)
    with pytest.raises(ValueError, match="already has LORA"):
        lora.inject(model)


def test_a_family_without_defaults_must_name_its_layers():
    model = build("bert")
    model.config.model_type = "new"
    with pytest.raises(ValueError, match="type 'new' is built"):
        lora.inject(model)


def test_parts_that_train_in_full_are_no_targets(tmp_path):
    model = with_lora("bert", target_modules=("query", "dense"), modules_to_save=("pooler",))
    assert "bert.pooler.dense.weight" in trainable_parameters(model) and not hasattr(model.bert.pooler.dense, "lora_A")
    assert relative_error(logits(in_peft(model, "bert", tmp_path), "bert"), logits(model, "bert")) < 1e-6


def test_a_model_that_answers_stays_so():
    model = with_lora("bert", lora_dropout=0.9)
    assert not any(module.training for module in model.modules())
    assert torch.equal(logits(model, "bert"), logits(model, "bert"))
