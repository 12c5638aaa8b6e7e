"""Bad input through the command line: exit code 2, a message that says where and what to do, and nothing lost."""
import json
import re
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from command import ft_course, write_news, write_reviews


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    "A trained run of each task and its data: task -> (run, data)."
    folder = tmp_path_factory.mktemp("finished")
    data = {"classify": write_reviews(folder / "reviews.jsonl"), "ner": write_news(folder / "news.conll")}
    for task, file in data.items():
        assert ft_course("train", task, "--data", file, "--model", tiny, "--out", folder / task, "--epochs", 1, "--max-length", 32).exit_code == 0
    return {task: (folder / task, file) for task, file in data.items()}


@pytest.fixture
def run(tmp_path, finished):
    "A copy of the finished classification run that may be spoilt."
    return shutil.copytree(finished["classify"][0], tmp_path / "copy")


def refused(*args, **kwargs) -> str:
    "The message of a command that must end with code 2 and without a traceback."
    done = ft_course(*args, **kwargs)
    assert done.exit_code == 2 and "Traceback" not in done.stderr and done.stdout == ""
    return done.stderr.split("Error: ")[1]


def train(task, data, model, out, *options):
    return ("train", task, "--data", data, "--model", model, "--out", out, "--max-length", 32, *options)


# ---------------------------------------------------------------- data

DATA = {
    "missing file": ("classify", "nowhere.jsonl", None, r"nowhere\.jsonl.* no such file.*reviews, newswire"),
    "empty file": ("classify", "empty.jsonl", b"", r"empty\.jsonl is empty"),
    "one column": ("ner", "one.conll", b"Ada B-PER\nflew\nto O\n", r"one\.conll, line 2: one column.*'flew'"),
    "unknown tag": ("ner", "tag.conll", b"Ada B-PER\nflew X-PER\nto O\n", r"tag\.conll, line 2.*X-PER"),
    "not UTF-8": ("classify", "latin.csv", "text,label\ngood,p\ncaf\xe9,p\n".encode("latin-1"), r"latin\.csv, line 3: byte 0xe9 is not UTF-8"),
    "no text column": ("classify", "columns.csv", b"body,label\ngood,p\n", r"columns\.csv, line \d: no `text`.* body, label"),
    "broken JSON": ("classify", "broken.jsonl", b'{"text": "good", "label": "p"}\n{"text": "go', r"broken\.jsonl, line 2"),
    "no labels": ("classify", "plain.jsonl", b'{"text": "good"}\n', r"plain\.jsonl, line 1: no `label`"),
    "too few rows": ("classify", "few.csv", b"text,label\ngood,p\nbad,n\n", "no rows for validation and test: the data are too few"),
    "wrong task": ("ner", "reviews.jsonl", b'{"text": "good", "label": "p"}\n', r"reviews\.jsonl, line 1: task 'ner' needs tokens"),
}


@pytest.mark.parametrize("task, name, content, message", DATA.values(), ids=DATA)
def test_bad_data(task, name, content, message, tmp_path, tiny):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = refused(*train(task, tmp_path / name, tiny, tmp_path / "run"))
    assert re.search(message, said.replace("\n", " ")) and not (tmp_path / "run").exists()


def test_a_class_that_train_lacks(tmp_path, tiny):
    for split, labels in {"train": "pn", "dev": "pn", "test": "px"}.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"text": f"{split} {label}", "label": label}) + "\n" for label in labels))
    said = refused(*train("classify", tmp_path, tiny, tmp_path / "run"))
    assert re.search(r"test\.jsonl, line 2: class 'x' is in the test split but not in train", said)


def test_an_illegal_transition_is_repaired_and_counted(tmp_path, tiny):
    news = write_news(tmp_path / "news.conll")
    news.write_text(news.read_text().replace("Oslo B-LOC", "Oslo I-LOC", 3))
    done = ft_course(*train("ner", news, tiny, tmp_path / "run", "--epochs", 1))
    assert done.exit_code == 0 and "3 illegal transitions" in done.stderr


# ---------------------------------------------------------------- training that can't go on

def test_a_loss_that_is_no_number_names_the_batch_and_the_checkpoint(tmp_path, tiny):
    weights = load_file(tiny / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][2307] = float("inf")  # one word of the vocabulary: "great"
    spoilt = shutil.copytree(tiny, tmp_path / "spoilt")
    save_file(weights, spoilt / "model.safetensors", metadata={"format": "pt"})
    (spoilt / "checksums.json").unlink()
    data = write_reviews(tmp_path / "reviews.jsonl")
    data.write_text(data.read_text().replace("Good and cheap", "A great buy"))
    said = refused(*train("classify", data, spoilt, tmp_path / "run", "--batch-size", 1, "--epochs", 1))
    assert re.search(r"(loss|gradient) of epoch 1, update \d+, examples \[\[?\d+\]?\]: (nan|inf)", said)


def test_a_rate_that_breaks_the_weights_leaves_the_last_good_state(tmp_path, tiny):
    from ft_course.training.resuming import latest
    data, command = write_reviews(tmp_path / "reviews.jsonl"), ("--batch-size", 4, "--epochs", 2)
    assert ft_course(*train("classify", data, tiny, tmp_path / "run", *command)).exit_code == 0
    kept = tmp_path / "run" / "checkpoints"
    shutil.rmtree(sorted(kept.iterdir())[-1])  # as if it had ended after its first epoch
    good = latest(tmp_path / "run")
    tensors = load_file(good / "state.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())
    said = refused(*train("classify", data, tiny, tmp_path / "other", *command, "--lr", 1e30))
    assert "examples" in said and "last good state" in said and "lower lr" in said


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, tiny, monkeypatch):
    from ft_course.training import resuming
    from ft_course.model.files import verify
    real, saves = resuming.save_file, []

    def save_until_full(tensors, path):
        "The first state fits, then the system allows no file above a megabyte."
        saves.append(path)
        if len(saves) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        real(tensors, path)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(resuming, "save_file", save_until_full)
    data = write_reviews(tmp_path / "reviews.jsonl")
    command = train("classify", data, tiny, tmp_path / "run", "--epochs", 3)
    try:
        said = refused(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    old, = (tmp_path / "run" / "checkpoints").glob("[!.]*")
    verify(old)
    assert "File too large" in said and old.name in said and not list(old.parent.glob(".*"))
    assert ft_course(*command, "--resume").exit_code == 0


def test_a_full_disk_at_the_last_save_loses_nothing(tmp_path, tiny, monkeypatch):
    from ft_course.tasks.task import Task
    limits, real = resource.getrlimit(resource.RLIMIT_FSIZE), Task.save

    def save_on_full_disk(task, run):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        real(task, run)

    monkeypatch.setattr(Task, "save", save_on_full_disk)
    command = train("classify", write_reviews(tmp_path / "reviews.jsonl"), tiny, tmp_path / "run", "--epochs", 1)
    try:
        said = refused(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in said and "last good state: " in said and not (tmp_path / "run" / "config.json").exists()
    monkeypatch.undo()
    assert ft_course(*command, "--resume").exit_code == 0 and (tmp_path / "run" / "config.json").exists()


# ---------------------------------------------------------------- runs

def test_a_folder_that_is_not_empty(tmp_path, tiny):
    (tmp_path / "thesis.txt").write_text("years of work")
    said = refused(*train("classify", write_reviews(tmp_path / "r.jsonl"), tiny, tmp_path))
    assert "not empty" in said and "--resume" not in said and (tmp_path / "thesis.txt").exists()


def test_resume_with_other_options(run, finished, tiny):
    data = finished["classify"][1]
    assert "epochs=1" in refused(*train("classify", data, tiny, run, "--epochs", 2, "--resume"))


def test_labels_that_do_not_fit(finished, tmp_path):
    stars = tmp_path / "stars.jsonl"
    stars.write_text("".join(json.dumps({"text": f"text {i}", "label": f"{i % 5} stars"}) + "\n" for i in range(50)))
    said = refused("evaluate", finished["classify"][0], "--data", stars)
    assert "labels don't fit" in said and "1 stars" in said and "negative" in said
    assert "needs tokens" in refused("evaluate", finished["ner"][0], "--data", stars)


def test_a_new_file_counts_whole_and_an_old_one_is_cut_as_then(finished, tmp_path):
    few = tmp_path / "few.csv"
    few.write_text("text,label\ngood,positive\nbad,negative\n")
    run, trained_on = finished["classify"]
    assert json.loads(ft_course("evaluate", run, "--data", few, "--json").stdout)["support"] == 2
    sizes = [json.loads(ft_course("evaluate", run, "--data", trained_on, "--split", split, "--json").stdout)["support"] for split in ("train", "test")]
    assert sizes[0] > 5 * sizes[1] > 0


def test_a_truncated_file_is_refused_by_name(run, finished):
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for command in (("predict", run, "Good."), ("evaluate", run, "--data", finished["classify"][1])):
        assert re.search(r"model\.safetensors: .*bytes long.*cut short or altered", refused(*command))
    (run / "checksums.json").unlink()
    assert re.search(r"model\.safetensors: .*cut short or altered", refused("predict", run, "Good."))


def test_an_altered_file_is_refused_by_name(run):
    weights = bytearray((run / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (run / "model.safetensors").write_bytes(weights)
    assert re.search(r"model\.safetensors: altered since it was written", refused("predict", run, "Good."))


def test_a_missing_file_is_refused_by_name(run):
    (run / "tokenizer.json").unlink()
    assert re.search(r"tokenizer\.json: missing", refused("predict", run, "Good."))


def test_a_folder_that_is_no_run(tmp_path):
    assert "training.json" in refused("predict", tmp_path, "Good.")


# ---------------------------------------------------------------- models

def test_an_unknown_model_offline(tmp_path):
    said = refused(*train("classify", write_reviews(tmp_path / "r.jsonl"), "bert-large-imaginary", tmp_path / "run"))
    assert "bert-large-imaginary" in said and "At hand: minilm (installed)" in said and not (tmp_path / "run").exists()


def test_weights_with_a_wrong_checksum(tmp_path, monkeypatch):
    from ft_course.model import checkpoints
    fake = shutil.copytree(checkpoints.packaged(), tmp_path / "minilm")
    weights = bytearray((fake / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (fake / "model.safetensors").write_bytes(weights)
    monkeypatch.setattr(checkpoints, "packaged", lambda: fake)
    said = refused(*train("classify", write_reviews(tmp_path / "r.jsonl"), "minilm", tmp_path / "run"))
    assert re.search(r"model\.safetensors: these are not MiniLM's weights: SHA-256 [0-9a-f]{64}, expected 53aa5117", said)
    rows = json.loads(ft_course("doctor", "--json").stdout)
    assert [row["status"] for row in rows if "not MiniLM's weights" in row["found"]] == ["missing"]


# ---------------------------------------------------------------- texts

@pytest.mark.timeout(60)
@pytest.mark.parametrize("task", ["classify", "ner"])
def test_a_text_of_100000_characters(task, finished):
    text = ("Ada Okafor flew to Lagos. " * 4000)[:100_000]
    done = ft_course("predict", finished[task][0], "--json", input=f"{text}\n{'x' * 100_000}\n")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == 0 and [len(answer["text"]) for answer in answers] == [100_000, 100_000]
    assert all(answer["text"][e["start"]:e["end"]] == e["text"] for answer in answers for e in answer.get("entities", ()))
    assert task == "ner" or "are not read" in done.stderr


def test_standard_input_that_is_not_utf8(finished):
    done = ft_course("predict", finished["classify"][0], input="good\ncaf\xe9\n".encode("latin-1"))
    assert done.exit_code == 2 and "standard input, line 2: byte 0xe9 is not UTF-8" in done.stderr
