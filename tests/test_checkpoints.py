"""Checkpoints: found, verified, opened, saved; spoilt ones refused; no crash while saving costs a model."""
import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification, BertConfig,
                          BertForSequenceClassification, BertForTokenClassification, BertModel)

from ft_course.model import checkpoints, files
from ft_course.model.checkpoints import UnknownModel, check_labels, head_class, load_model, load_tokenizer, resolve, save_pretrained
from ft_course.model.files import CorruptCheckpoint, atomic_folder, heal, read_header, verify, write_checksums
from ft_course.theory.kinds import KINDS

LABELS = ["O", "B-PER", "I-PER"]
CLASSES = {"ner": BertForTokenClassification, "classify": BertForSequenceClassification, "body": BertModel}


def tiny(kind="ner", labels=LABELS, seed=0, words=50, **config):
    "A random BERT of two layers."
    torch.manual_seed(seed)
    names = dict(id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})
    config = BertConfig(vocab_size=words, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, **names | config)
    return CLASSES[kind](config).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 9)[None]).logits


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path):
    save_pretrained(tiny(), None, tmp_path / "run", training={"epochs": 3})
    return tmp_path / "run"


# ---------------------------------------------------------------- finding

def test_minilm_is_found_and_verified():
    folder = resolve("minilm")
    assert files.sha256(folder / "model.safetensors") == checkpoints.MINILM_SHA256
    assert resolve("sentence-transformers/all-MiniLM-L6-v2") == folder
    assert load_tokenizer("minilm").tokenize("Unbelievable") == ["unbelievable"]


def test_the_package_is_not_executed(monkeypatch):
    monkeypatch.delitem(sys.modules, checkpoints.MINILM_PACKAGE, raising=False)
    assert resolve("minilm").parent.name == checkpoints.MINILM_PACKAGE not in sys.modules


def test_weights_with_another_hash_are_refused(tmp_path, monkeypatch):
    save_pretrained(tiny("body"), None, tmp_path / "model")
    monkeypatch.setattr(checkpoints, "packaged", lambda: tmp_path / "model")
    with pytest.raises(CorruptCheckpoint, match="model.safetensors: these are not MiniLM's weights"):
        resolve("minilm")


def test_hash_is_asked_again_when_the_file_changes(tmp_path, monkeypatch):
    save_pretrained(tiny("body"), None, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    monkeypatch.setattr(checkpoints, "packaged", lambda: tmp_path / "model")
    monkeypatch.setattr(checkpoints, "MINILM_SHA256", files.sha256(weights))
    assert resolve("minilm") == tmp_path / "model"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(CorruptCheckpoint):
        resolve("minilm")


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model", "/no/such/folder", "not a name at all"])
def test_unknown_name_offline_says_what_is_at_hand(name):
    with pytest.raises(UnknownModel, match="HF_HUB_OFFLINE is set.*minilm .installed.*hub's cache") as error:
        resolve(name)
    assert repr(name) in str(error.value)


def test_hub_cache_is_used_without_the_package(tmp_path, monkeypatch):
    "A snapshot in the cache is found with no network; its weights are held against the hash too."
    snapshot = tmp_path / "hub/models--sentence-transformers--all-MiniLM-L6-v2/snapshots" / checkpoints.MINILM_REVISION
    save_pretrained(tiny("body"), None, snapshot)
    monkeypatch.setattr(checkpoints, "packaged", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(checkpoints, "MINILM_SHA256", files.sha256(snapshot / "model.safetensors"))
    assert resolve("minilm").samefile(snapshot)
    monkeypatch.setattr(checkpoints, "MINILM_SHA256", "0" * 64)
    checkpoints.check_minilm.cache_clear()
    with pytest.raises(CorruptCheckpoint):
        resolve("minilm")


def test_only_safe_files_are_downloaded(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(repo, revision, allow_patterns, local_files_only=False):
        asked.append((repo, revision, local_files_only))
        if local_files_only:
            raise FileNotFoundError("not in the cache")
        assert not any(pattern in ("*", "*.bin", "*.pt", "*.py") for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert checkpoints.from_hub("some/model", "abc") == resolve("some/model", "abc") == tmp_path
    assert asked == [("some/model", "abc", True), ("some/model", "abc", False)] * 2


def test_a_revision_is_of_the_hub(run):
    with pytest.raises(ValueError, match="revision='main': .*run is a folder"):
        resolve(run, "main")
    with pytest.raises(UnknownModel, match=r"no model 'nobody/none \(revision v2\)'"):
        load_model("nobody/none", "ner", revision="v2")
    assert resolve("minilm", checkpoints.MINILM_REVISION) == resolve("minilm")


# ---------------------------------------------------------------- opening

@pytest.mark.parametrize("task, shape", [("ner", (1, 8, 3)), ("classify", (1, 3))])
def test_new_head_depends_on_the_seed_alone(tmp_path, task, shape):
    save_pretrained(tiny("body"), None, tmp_path / "body")
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = load_model(tmp_path / "body", task, LABELS)
        heads.append(model.classifier.weight)
        assert logits(model).shape == shape and not model.training
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert model.config.id2label == dict(enumerate(LABELS)) and model.config.label2id["B-PER"] == 1


def test_log_says_what_is_new_and_nothing_else_speaks(tmp_path, caplog, capfd, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ft_course"), "handlers", [])
    save_pretrained(tiny("body"), None, tmp_path / "body")
    with caplog.at_level(logging.INFO, "ft_course"):
        load_model(tmp_path / "body", "ner", LABELS)
    assert "new weights: classifier.bias, classifier.weight; left unread: pooler.dense.bias, pooler.dense.weight" in caplog.text
    assert capfd.readouterr() == ("", "")


def test_weights_lie_in_memory_of_their_own(run):
    "Not in the file, where another program could change them, and where odd addresses change the last bit of a sum."
    model = load_model(run, "ner")
    assert all(p.data_ptr() % 64 == 0 for p in model.parameters())
    (run / "model.safetensors").write_bytes(b"")
    assert torch.equal(logits(model), logits(tiny()))


def test_half_precision_is_opened_as_float32(tmp_path):
    tiny().to(torch.float16).save_pretrained(tmp_path / "half")
    assert {p.dtype for p in load_model(tmp_path / "half", "ner").parameters()} == {torch.float32}


@pytest.mark.parametrize("labels, reason", [
    (["O", "I-PER", "B-PER"], "same names in another order"),
    (["O", "B-LOC", "I-LOC"], r"the data have \['B-LOC', 'I-LOC'\] that the model lacks"),
    (["O", "B-PER"], r"the model has \['I-PER'\] that the data lack"),
])
def test_labels_that_do_not_fit_are_refused(run, labels, reason):
    with pytest.raises(ValueError, match=reason):
        load_model(run, "ner", labels)
    with pytest.raises(ValueError, match=reason):
        check_labels(load_model(run, "ner"), labels)
    check_labels(load_model(run, "ner", LABELS), LABELS)


@pytest.mark.parametrize("trained, opened", [("ner", "classify"), ("classify", "ner")])
def test_head_of_another_task_is_refused(tmp_path, trained, opened):
    save_pretrained(tiny(trained), None, tmp_path / "run")
    with pytest.raises(ValueError, match=f"{CLASSES[trained].__name__}.*{CLASSES[opened].__name__}"):
        load_model(tmp_path / "run", opened)


def test_pickles_are_refused(tmp_path):
    tiny().config.save_pretrained(tmp_path)
    torch.save(tiny().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only pytorch_model.bin: a pickle"):
        load_model(tmp_path, "ner")


def test_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no weights"):
        load_model(tmp_path, "ner")


@pytest.mark.parametrize("task", ["ner", "classify", "multilabel"])
def test_a_new_head_on_purpose(run, task):
    "The head in the file is left, whatever it was for; the base is kept; torch's seed decides."
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        model = load_model(run, task, ["good", "bad", "fair"], new_head=True)
        assert torch.equal(model.bert.encoder.layer[1].output.dense.weight, tiny().bert.encoder.layer[1].output.dense.weight)
        assert list(model.config.id2label.values()) == ["good", "bad", "fair"] and model.config.problem_type == KINDS[task].problem_type
        found.append(model.classifier.weight)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2]) and not torch.equal(found[0], tiny().classifier.weight)
    assert 0.005 < found[0].std() < 0.05 and not model.classifier.bias.any()


def test_the_message_offers_the_new_head(run):
    for kind, labels in (("ner", ["O", "B-LOC", "I-LOC"]), ("classify", LABELS)):
        with pytest.raises(ValueError, match="new_head=True.*--new-head"):
            load_model(run, kind, labels)


@pytest.mark.parametrize("saved, asked, own", [("multi_label_classification", "classify", "multilabel"), ("single_label_classification", "multilabel", "classify"),
                                               ("multi_label_classification", "regression", "multilabel"), (None, "multilabel", "classify")])
def test_a_head_for_another_kind_of_question_is_refused(tmp_path, saved, asked, own):
    save_pretrained(tiny("classify", problem_type=saved), None, tmp_path / "run")
    with pytest.raises(ValueError, match=f"answers questions of kind '{own}', it can't be opened for '{asked}'"):
        load_model(tmp_path / "run", asked)
    assert load_model(tmp_path / "run", own).config.problem_type == KINDS[own].problem_type


def test_a_number_has_one_output(tmp_path):
    save_pretrained(tiny("body"), None, tmp_path / "body")
    model = load_model(tmp_path / "body", "regression")
    assert logits(model).shape == (1, 1) and model.config.id2label == {0: "score"} and model.config.problem_type == "regression"
    save_pretrained(model, None, tmp_path / "run")
    assert torch.equal(logits(load_model(tmp_path / "run", "regression")), logits(model))


def test_unknown_kinds_and_heads_that_there_are_not(tmp_path):
    with pytest.raises(ValueError, match="kind 'spans': choose one of classify, multilabel, regression, ner"):
        head_class(BertConfig(), "spans")
    for model_type, kind in (("opt", "ner"), ("bart", "ner"), ("xlnet", "classify"), ("xlnet", "regression")):
        with pytest.raises(ValueError, match=f"a model of type '{model_type}' can't be trained for '{kind}'"):
            head_class(AutoConfig.for_model(model_type), kind)


def test_a_pooler_may_be_new_and_nothing_else_in_the_base(tmp_path, caplog):
    "A masked language model has no pooler: classes need one, and it starts anew."
    names = {name: tensor for name, tensor in tiny("body").state_dict().items() if not name.startswith("pooler")}
    tiny("body").config.save_pretrained(tmp_path)
    save_file(names, tmp_path / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.INFO, "ft_course"):
        load_model(tmp_path, "classify", LABELS)
    assert "new weights: bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias, classifier.weight" in caplog.text
    del names["embeddings.position_embeddings.weight"]
    save_file(names, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CorruptCheckpoint, match="bert.embeddings.position_embeddings.weight"):
        load_model(tmp_path, "classify", LABELS)


def test_half_precision_on_request(tmp_path):
    tiny().save_pretrained(tmp_path)
    assert {p.dtype for p in load_model(tmp_path, "ner", dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("change", ["lost", "reshaped"])
def test_incomplete_encoder_is_refused(tmp_path, change):
    "transformers fills the gap with random numbers and goes on."
    tiny().save_pretrained(tmp_path)
    tensors, key = load_file(tmp_path / "model.safetensors"), "bert.encoder.layer.1.output.dense.weight"
    tensors[key] = tensors[key][:, :-1].contiguous()
    if change == "lost":
        del tensors[key]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CorruptCheckpoint, match=key):
        load_model(tmp_path, "ner")


# ---------------------------------------------------------------- spoilt files

def test_header_equals_the_library(run):
    header, tensors = read_header(run / "model.safetensors"), load_file(run / "model.safetensors")
    assert {name: tuple(entry["shape"]) for name, entry in header.items()} == {k: tuple(t.shape) for k, t in tensors.items()}


@pytest.mark.parametrize("keep", [0, 5, 8, 500, -1])
def test_file_cut_short_without_checksums(tmp_path, keep):
    tiny().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptCheckpoint, match="model.safetensors: .*cut short or altered"):
        load_model(tmp_path, "ner")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "training.json"])
@pytest.mark.parametrize("damage, reason", [
    (lambda data: data[:-3], "cut short or altered"),
    (lambda data: data + b" ", "cut short or altered"),
    (lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:], "altered since"),
    (lambda data: None, "missing"),
])
def test_spoilt_file_is_refused_with_its_name_and_the_reason(run, name, damage, reason):
    new = damage((run / name).read_bytes())
    (run / name).unlink() if new is None else (run / name).write_bytes(new)
    for reader in (verify, resolve, lambda folder: load_model(folder, "ner")):
        with pytest.raises(CorruptCheckpoint, match=f"{name}: .*{reason}"):
            reader(run)


@pytest.mark.parametrize("text", [None, "{", ""])
def test_spoilt_list_of_checksums(run, text):
    (run / "checksums.json").unlink() if text is None else (run / "checksums.json").write_text(text)
    with pytest.raises(CorruptCheckpoint, match="checksums.json: missing or unreadable"):
        verify(run)


# ---------------------------------------------------------------- saving

@pytest.mark.parametrize("task, auto", [("ner", AutoModelForTokenClassification), ("classify", AutoModelForSequenceClassification)])
def test_save_load_same_logits(tmp_path, task, auto):
    model = tiny(task, words=30522)
    save_pretrained(model, load_tokenizer("minilm"), tmp_path / "run", training={"seed": 0}, report={"f1": 0.5})
    assert torch.equal(logits(load_model(tmp_path / "run", task)), logits(model))
    theirs = auto.from_pretrained(tmp_path / "run")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in theirs.state_dict().items())
    torch.testing.assert_close(logits(theirs), logits(model))
    assert json.loads((tmp_path / "run/training.json").read_text()) == {"seed": 0}
    assert load_tokenizer(tmp_path / "run").tokenize("unbelievable") == load_tokenizer("minilm").tokenize("unbelievable")
    assert not list((tmp_path / "run").glob("*.bin")) and os.listdir(tmp_path) == ["run"]


def test_second_save_replaces_and_keeps_what_no_save_wrote(run):
    (run / "log.csv").write_text("step,loss")
    (run / "checkpoints").mkdir()
    save_pretrained(tiny("classify"), None, run)
    assert (run / "log.csv").read_text() == "step,loss" and (run / "checkpoints").is_dir()
    assert not (run / "training.json").exists() and os.listdir(run.parent) == ["run"]
    load_model(run, "classify")


def test_exception_leaves_the_old_and_no_rubbish(run):
    before = contents(run)
    for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)), atomic_folder(run) as new:
            (new / "model.safetensors").write_bytes(b"half")
            raise error
    assert contents(run) == before and os.listdir(run.parent) == ["run"]


def save_on_a_full_disk(folder):
    "In a forked process that may not write files above 20,000 bytes; gives what happened."
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
            save_pretrained(tiny(seed=1), None, folder)
            os.write(writer, b"saved")
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.wait()
    return os.read(reader, 1000).decode()


def test_full_disk(run):
    "A real limit of the operating system on the size of files: the write of the weights fails halfway."
    before = contents(run)
    assert "File too large" in save_on_a_full_disk(run)
    assert contents(run) == before and os.listdir(run.parent) == ["run"]
    verify(run)


DIE = """
import os, signal, sys
from pathlib import Path
from ft_course.model.files import atomic_folder, write_checksums
left = int(sys.argv[2])
def crash(event, args):
    global left
    left -= event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")
    if left < 0 and event != "os.kill": os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(crash)
with atomic_folder(sys.argv[1]) as new:
    for name in "abc": (new / name).write_text("new")
    write_checksums(new)
"""


def test_sigkill_at_every_file_operation(tmp_path):
    folder, found = tmp_path / "run", []
    for moment in range(100):
        with atomic_folder(folder) as new:
            for name in "abc":
                (new / name).write_text("old")
            write_checksums(new)
        (folder / "log.csv").write_text("kept")
        code = subprocess.run([sys.executable, "-S", "-c", DIE, folder, str(moment)], cwd=Path(__file__).parent.parent).returncode
        verify(folder)  # heals first
        assert (folder / "log.csv").read_text() == "kept"
        found.append({(folder / name).read_text() for name in "abc"})
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert set(map(str, found)) == {"{'old'}", "{'new'}"} and found[-1] == {"new"} and len(found) > 20
    assert os.listdir(tmp_path) == ["run"]  # the last save cleared away what the killed ones left


def test_files_reach_the_disk_before_the_rename(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda handle: order.append(os.readlink(f"/proc/self/fd/{handle}")))
    with atomic_folder(tmp_path / "run") as new:
        (new / "a").write_text("1")
    assert order == [f"{tmp_path}/.run.new/a", f"{tmp_path}/.run.new", str(tmp_path)]
