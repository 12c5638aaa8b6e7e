"""Adapters apart from models: switched, stacked, averaged, shrunk and served, over every family, and against peft where it can do the same."""
import pytest
import torch
from families import MODELS, batch, build, fingerprints, logits
from ft_course.peft import bitfit, ia3, lora
from ft_course.peft.compose import Adapter, Server, attach, average, check_fit, disable_adapter, merge_error, read_adapter, shrink, stack, switch, take
from ft_course.peft.files import load_adapter, save_adapter
from ft_course.peft.injection import adapter_state_dict, merge, unload
from ft_course.theory.formulas import relative_error

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
METHODS = {"lora": lora.inject, "dora": lambda model: lora.inject(model, use_dora=True), "bitfit": bitfit.inject, "ia3": ia3.inject}


def adapted(name: str = "bert", inject=lora.inject, seed: int = 1, base_seed: int = 0, **options):
    "A model with an adapter that does something."
    model = build(name, base_seed)
    inject(model, **options)
    torch.manual_seed(seed)
    for p in adapter_state_dict(model).values():
        p += 0.1 * torch.randn_like(p)
    return model


def adapter(name: str = "bert", inject=lora.inject, seed: int = 1, **options) -> Adapter:
    return take(adapted(name, inject, seed, **options))


@pytest.mark.parametrize("method", METHODS)
def test_switch_answers_as_the_other_model(method):
    one, two = (adapted(inject=METHODS[method], seed=seed) for seed in (1, 2))
    first = take(one)
    switch(one, take(two))
    assert torch.equal(logits(one, "bert"), logits(two, "bert"))
    switch(one, first)
    assert not torch.equal(logits(one, "bert"), logits(two, "bert"))
    assert all(torch.equal(t, first.tensors[name]) for name, t in adapter_state_dict(one).items())


def test_switch_refuses_another_strength():
    model = adapted()
    before = logits(model, "bert")
    with pytest.raises(ValueError, match="differ in lora_alpha: 16 and 8"):
        switch(model, adapter(lora_alpha=8))
    assert torch.equal(logits(model, "bert"), before)


def test_an_adapter_is_a_copy():
    model = adapted()
    mine = take(model)
    before = {name: t.clone() for name, t in mine.tensors.items()}
    switch(model, adapter(seed=2))
    assert all(torch.equal(t, before[name]) for name, t in mine.tensors.items())


@pytest.mark.parametrize("name", MODELS)
def test_a_stack_is_the_sum(name):
    one, two = adapter(name, seed=1, r=3, lora_alpha=5), adapter(name, seed=2, r=2, use_rslora=True)
    both, model = stack([one, two], [1.0, -0.5], head=1), build(name)
    attach(model, both)
    expected = build(name).state_dict() | {n: t for n, t in two.tensors.items() if "lora_" not in n}
    for part, scaling, weight in ((one, 5 / 3, 1.0), (two, 16 / 2**0.5, -0.5)):
        for n in (n for n in part.tensors if n.endswith("lora_A.weight")):
            update = weight * scaling * part.tensors[n.replace("_A", "_B")] @ part.tensors[n]
            at = n.replace("lora_A.", "")
            expected[at] = expected[at] + (update.T if name.startswith("gpt2") else update)
    plain = build(name)
    plain.load_state_dict(expected)
    assert relative_error(logits(model, name), logits(plain, name)) < 1e-5


def test_a_stack_opens_in_peft_and_is_its_cat(tmp_path):
    from peft import PeftModel

    name = "gpt2-lm"  # a model without a head of its own: peft cannot combine adapters with heads
    one, two = adapter(name, seed=1, r=3, lora_alpha=6), adapter(name, seed=2, r=3, lora_alpha=6)
    model = build(name)
    for part, where in ((one, "one"), (two, "two"), (stack([one, two], [0.5, 0.25]), "both")):
        attach(model, part)
        save_adapter(model, tmp_path / where)
    theirs = PeftModel.from_pretrained(build(name), str(tmp_path / "both")).eval()
    assert relative_error(logits(model, name), logits(theirs, name)) < 1e-6
    theirs = PeftModel.from_pretrained(build(name), str(tmp_path / "one"), adapter_name="one").eval()
    theirs.load_adapter(str(tmp_path / "two"), adapter_name="two")
    theirs.add_weighted_adapter(["one", "two"], [0.5, 0.25], "cat", combination_type="cat")
    theirs.set_adapter("cat")
    assert relative_error(logits(model, name), logits(theirs, name)) < 1e-6


def test_what_is_added_can_be_taken_away():
    one, model = adapter(), build("bert")
    attach(model, stack([one, one], [1, -1]))
    plain = build("bert")
    plain.classifier.load_state_dict(model.classifier.state_dict())
    assert relative_error(logits(model, "bert"), logits(plain, "bert")) < 1e-5


def test_the_mean_is_of_updates_and_heads():
    one, two = adapter(seed=1), adapter(seed=2)
    mean = average([one, two])
    for name in (n for n in one.tensors if n.endswith("lora_A.weight")):
        update = [a.tensors[name.replace("_A", "_B")] @ a.tensors[name] for a in (one, two, mean)]
        assert relative_error(update[2], 2 * (update[0] + update[1]) / 2) < 1e-6  # alpha over r is 2, and lies inside the stack
    assert torch.equal(mean.tensors["classifier.bias"], (one.tensors["classifier.bias"] + two.tensors["classifier.bias"]) / 2)


def test_the_mean_of_other_methods_is_of_tensors():
    one, two = adapter(inject=ia3.inject, seed=1), adapter(inject=ia3.inject, seed=2)
    mean = average([one, two])
    assert all(torch.allclose(t, (one.tensors[name] + two.tensors[name]) / 2) for name, t in mean.tensors.items())


def test_dora_and_others_do_not_add_up():
    for inject in (METHODS["dora"], ia3.inject, lambda model: lora.inject(model, bias="all")):
        with pytest.raises(ValueError, match="only updates of LoRA"):
            stack([adapter(inject=inject)], [1])
    with pytest.raises(ValueError, match="only updates of LoRA"):
        average([adapter(inject=METHODS["dora"])] * 2)


def test_shrinking_keeps_what_fits_and_the_best_of_the_rest():
    one = adapter(r=4)
    same = shrink(one, 4, lora_alpha=16)
    check_fit(one, same)
    best = shrink(one, 2, lora_alpha=2)
    for name in (n for n in one.tensors if n.endswith("lora_A.weight")):
        update, equal, low = (f * a.tensors[name.replace("_A", "_B")] @ a.tensors[name] for f, a in ((4, one), (4, same), (1, best)))
        assert relative_error(equal, update) < 1e-5
        U, S, V = torch.linalg.svd(update)
        assert relative_error(low, U[:, :2] * S[:2] @ V[:2]) < 1e-5


def five_classes() -> Adapter:
    one = adapter()
    return Adapter(one.tensors | {"classifier.bias": torch.zeros(5)}, one.config, one.base)


def without_head() -> Adapter:
    one = adapter()
    return Adapter({name: t for name, t in one.tensors.items() if name != "classifier.bias"}, one.config, one.base)


@pytest.mark.parametrize("other, message", [
    (lambda: adapter(r=4), "differ in r: 8 and 4"), (lambda: adapter(lora_alpha=8), "differ in lora_alpha"), (lambda: adapter(use_rslora=True), "use_rslora"),
    (lambda: adapter(inject=ia3.inject), "peft_type: 'LORA' and 'IA3'"), (lambda: adapter(target_modules=("key",)), "target_modules"),
    (lambda: adapter(base_seed=1), "different bases"), (lambda: adapter(modules_to_save=("pooler",)), "different bases"), (five_classes, r"classifier.bias: \(3,\) and \(5,\)"),
    (without_head, r"classifier.bias: \(3,\) and None")])
def test_what_does_not_fit_is_named(other, message):
    with pytest.raises(ValueError, match=message):
        check_fit(adapter(), other())
    with pytest.raises(ValueError, match=message):
        Server(adapted()).add("other", other())


def test_dropout_and_order_of_targets_do_not_matter():
    check_fit(adapter(), adapter(lora_dropout=0.5), adapter(target_modules=("value", "query")))


def test_a_merged_adapter_is_left_alone():
    model, other = adapted(), adapter(seed=2)
    merge(model)
    for refused in (lambda: take(model), lambda: switch(model, other), lambda: attach(model, other), lambda: Server(model)):
        with pytest.raises(ValueError, match="unmerge it first"):
            refused()


def test_another_base_is_refused_and_stays_plain():
    model = build("bert", seed=1)
    with pytest.raises(ValueError, match="another base"):
        attach(model, adapter())
    assert not hasattr(model, "adapter_config") and not any("lora" in name for name, _ in model.named_parameters())
    merged = adapted()
    merge(merged)
    with pytest.raises(ValueError, match="another base"):
        attach(unload(merged), adapter(seed=2))


def test_mixed_requests_come_back_in_order():
    models = {name: adapted(seed=seed) for seed, name in enumerate("abc", 1)}
    server = Server(adapted(seed=9))
    for name, model in models.items():
        server.add(name, take(model))
    inputs = batch("bert")
    features = [dict(input_ids=ids[: mask.sum()].tolist(), attention_mask=[1] * int(mask.sum())) for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"])]
    wanted = ["b", "a", "b", "c"]
    for answer, name, row in zip(server.answer(list(zip(wanted, features))), wanted, range(4)):
        assert relative_error(answer, logits(models[name], "bert")[row]) < 1e-5
    with pytest.raises(KeyError, match="nobody"):
        server.answer([("nobody", features[0])])
    del server.adapters["c"]
    with pytest.raises(KeyError, match="'c'"):
        server.answer(list(zip(wanted, features)))


def test_tags_come_back_without_padding_and_with_the_models_own_padding_token():
    model = adapted("bert-ner")
    model.config.pad_token_id = 9
    server = Server(model)
    server.add("one", take(model))
    features = [dict(input_ids=list(range(5, 5 + n)), attention_mask=[1] * n) for n in (3, 7, 5)]
    for feature, answer in zip(features, server.answer([("one", feature) for feature in features])):
        with torch.no_grad():
            alone = model(**{name: torch.tensor([ids]) for name, ids in feature.items()}).logits[0]
        assert answer.shape == alone.shape and relative_error(answer, alone) < 1e-5


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("name", ["bert", "gpt2-lm"])
def test_an_adapter_can_be_switched_off_for_a_while(name, method):
    model = adapted(name, METHODS[method])
    plain, before, weights = build(name), logits(model, name), fingerprints(model)
    if name == "bert":
        plain.classifier.load_state_dict(model.classifier.state_dict())
    with pytest.raises(KeyError, match="left"), disable_adapter(model):
        assert torch.equal(logits(model, name), logits(plain, name))
        raise KeyError("left")
    assert torch.equal(logits(model, name), before) and fingerprints(model) == weights


def test_what_lies_in_the_base_cannot_be_switched_off():
    merged = adapted()
    merge(merged)
    for model, message in ((adapted(inject=bitfit.inject), "BITFIT cannot be switched off"), (adapted(bias="all"), "LORA cannot be switched off"), (merged, "unmerge it first")):
        with pytest.raises(ValueError, match=message), disable_adapter(model):
            pass


def test_layers_with_a_rank_of_their_own_are_not_stacked():
    with pytest.raises(ValueError, match="rank_pattern"):
        stack([adapter(rank_pattern={"query": 2})], [1])


@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-6), (torch.bfloat16, 0.1)])
def test_the_error_of_a_merge(dtype, most):
    model = adapted().to(dtype).train()
    before = fingerprints(model)
    assert merge_error(model, batch("bert")) < most
    assert fingerprints(model) == before and model.training


def test_folders_are_read_without_touching_the_model(tmp_path):
    from peft import LoraConfig, get_peft_model

    mine, model = adapter(seed=2), adapted()
    save_adapter(adapted(seed=2), tmp_path / "ours")
    stored = read_adapter(tmp_path / "ours", model)
    check_fit(mine, stored, take(model))
    assert stored.base == mine.base and all(torch.equal(t, mine.tensors[name]) for name, t in stored.tensors.items())
    theirs = get_peft_model(build("bert"), LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, init_lora_weights=False)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    switch(model, read_adapter(tmp_path / "theirs", model))
    assert relative_error(logits(model, "bert"), logits(theirs, "bert")) < 1e-6
    assert torch.equal(logits(load_adapter(build("bert"), tmp_path / "theirs"), "bert"), logits(model, "bert"))
