"""Every method of part 6 on a task: trained, saved, opened again, stopped and resumed, from the library and from the command line."""
import json
import shutil

import pytest
import torch
from command import ft_course, write_news, write_reviews
from safetensors.torch import load_file

from ft_course.model.checkpoints import UnknownModel
from ft_course.model.parameters import trainable_parameters, weights
from ft_course.peft.tasks import METHODS, adapt, arguments, merge_run, open_run
from ft_course.tasks.ner import NER
from ft_course.tasks.sentiment import TextClassification
from ft_course.training.learner import Callback, CancelFit
from ft_course.training.resuming import resume, save_state

TASKS = {"classify": TextClassification, "ner": NER}
TEXTS = ["Ada Lovelace wrote to Charles Babbage in London.", "Not bad at all, but dear."]
each_method = pytest.mark.parametrize("method", METHODS)
each_kind = pytest.mark.parametrize("kind", TASKS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {"classify": write_reviews(folder / "reviews.jsonl"), "ner": write_news(folder / "news.conll")}


def make(kind: str, data, tiny, method: str):
    return adapt(TASKS[kind](data[kind], tiny, max_length=32), method)


@each_kind
@each_method
def test_a_run_opens_again_with_the_same_answers(kind, method, data, tiny, tmp_path):
    task = make(kind, data, tiny, method)
    before = {name: t.clone() for name, t in weights(task.model).items()}
    task.learner(epochs=1, batch_size=4).fit()
    trained = set(trainable_parameters(task.model))
    assert all(torch.equal(before[name], t) == (name not in trained) for name, t in weights(task.model).items() if "prompt" not in name)
    task.save(tmp_path / "run")
    assert not (tmp_path / "run/model.safetensors").exists()
    again = open_run(tmp_path / "run", data[kind])
    assert again.predict(TEXTS) == task.predict(TEXTS)
    assert again.evaluate("test") == task.evaluate("test")


def test_a_whole_model_is_not_looked_for_in_an_adapter(data, tiny, tmp_path):
    make("ner", data, tiny, "lora").save(tmp_path / "run")
    with pytest.raises(ValueError, match="open_run"):
        NER.load(tmp_path / "run")


class Stop(Callback):
    "Save the state in the middle, and end."

    def __init__(self, folder):
        self.folder = folder

    def after_update(self):
        if self.learner.updates == self.learner.total_steps // 2:
            save_state(self.learner, self.folder)
            raise CancelFit


@each_method
def test_a_run_that_was_stopped_ends_the_same(method, data, tiny, tmp_path):
    def learner(*callbacks):
        return make("classify", data, tiny, method).learner(epochs=1, batch_size=4, callbacks=callbacks)

    whole = learner().fit()
    half = learner(Stop(tmp_path)).fit()
    again = learner()
    resume(again, tmp_path)
    assert 0 < half.updates == again.updates < whole.updates
    again.fit()
    assert all(torch.equal(t, weights(again.model)[name]) for name, t in weights(whole.model).items())


def test_commands(data, tiny, tmp_path):
    train = ("train", "classify", "--data", data["classify"], "--model", tiny, "--epochs", 1, "--max-length", 32)
    done = ft_course(*train, "--out", tmp_path / "run", "--method", "lora", "--r", 2, "--target-modules", "query", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["method_options"] == {"r": 2, "target_modules": "query"}
    config = json.loads((tmp_path / "run/adapter_config.json").read_text())
    assert config["r"] == 2 and config["target_modules"] == ["query"]
    evaluated = json.loads(ft_course("evaluate", tmp_path / "run", "--data", data["classify"], "--json").stdout)
    assert evaluated == json.loads(done.stdout)["model"]["test"]
    assert ft_course("merge", tmp_path / "run").exit_code == 0
    assert not [name for name in load_file(tmp_path / "run-merged/model.safetensors") if "lora" in name or "base_layer" in name]
    alone, merged = (ft_course("predict", tmp_path / run, *TEXTS, "--json").stdout for run in ("run", "run-merged"))
    for a, b in zip(map(json.loads, alone.splitlines()), map(json.loads, merged.splitlines())):
        assert a["label"] == b["label"] and a["score"] == pytest.approx(b["score"], abs=1e-5)


@pytest.mark.parametrize("options, message", [
    (("--method", "bitfit", "--r", 4), "bitfit has no option r; it has modules_to_save"),
    (("--r", 4), "r means nothing"),
    (("--method", "lora", "--target-modules", "q_proj"), "nothing is called 'q_proj'; this model has"),
    (("--method", "lora", "4"), "don't know what to do with '4'"),
])
def test_a_wrong_option_is_refused(options, message, data, tiny, tmp_path):
    done = ft_course("train", "classify", "--data", data["classify"], "--model", tiny, "--out", tmp_path / "run", *options)
    assert done.exit_code == 2 and message in " ".join(done.stderr.split()) and not (tmp_path / "run").exists()


def test_a_run_without_an_adapter_is_not_merged(data, tiny, tmp_path):
    task = TextClassification(data["classify"], tiny, max_length=32)
    task.save(tmp_path / "run")
    with pytest.raises(ValueError, match="has no adapter"):
        merge_run(tmp_path / "run", tmp_path / "whole")
    task = make("classify", data, tiny, "bitfit")
    task.save(tmp_path / "bits")
    with pytest.raises(ValueError, match="BITFIT cannot be merged"):
        merge_run(tmp_path / "bits", tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_peft_opens_a_run_by_itself_from_anywhere(data, tiny, tmp_path, monkeypatch):
    from peft import AutoPeftModelForSequenceClassification

    monkeypatch.chdir(tiny.parent)
    task = adapt(TextClassification(data["classify"], tiny.name, max_length=32), "lora")
    task.learner(epochs=1, batch_size=4).fit()
    task.save(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert open_run("run").predict(TEXTS) == task.predict(TEXTS)
    inputs = task.tokenizer(TEXTS, return_tensors="pt", padding=True)
    theirs = AutoPeftModelForSequenceClassification.from_pretrained("run", num_labels=len(task.labels)).eval()
    torch.testing.assert_close(theirs(**inputs).logits, task.model.eval()(**inputs).logits, rtol=1e-5, atol=1e-6)


def test_an_adapter_run_is_no_base(data, tiny, tmp_path):
    make("classify", data, tiny, "lora").save(tmp_path / "run")
    with pytest.raises(ValueError, match="run holds an adapter, not a whole model: .*merge it first"):
        TextClassification(data["classify"], tmp_path / "run", max_length=32)


def test_a_base_that_moved_is_named_and_can_be_told(data, tiny, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    task = make("classify", data, base, "lora")
    task.save(tmp_path / "run")
    base.rename(tmp_path / "moved")
    with pytest.raises(UnknownModel, match="run is an adapter for .*base, which is not there now: say where it lies"):
        open_run(tmp_path / "run")
    assert open_run(tmp_path / "run", base=tmp_path / "moved").predict(TEXTS) == task.predict(TEXTS)
    merge_run(tmp_path / "run", tmp_path / "whole", base=tmp_path / "moved")


@pytest.mark.parametrize("method", ["lora", "bitfit"])
def test_a_run_with_frozen_layers_opens(method, data, tiny, tmp_path):
    run = tmp_path / "run"
    done = ft_course("train", "classify", "--data", data["classify"], "--model", tiny, "--epochs", 1, "--max-length", 32, "--out", run, "--method", method, "--freeze-layers", 1)
    assert done.exit_code == 0 and ft_course("predict", run, *TEXTS).exit_code == 0


@pytest.mark.parametrize("given, meant", [("query", ("query",)), ("layer.0.attention.self.query", ("layer.0.attention.self.query",)), ("all-linear", "all-linear"), (".*query", ".*query"),
                                          (["query", "value"], ["query", "value"])], ids=str)
def test_a_word_is_a_name_or_a_pattern(given, meant):
    assert arguments("lora", {"target_modules": given}) == {"target_modules": meant}
    assert arguments("lora", {"modules_to_save": "pooler"}) == {"modules_to_save": ("pooler",)}
