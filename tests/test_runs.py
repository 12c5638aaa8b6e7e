"""What a run refuses before it costs anything, how it holds its folder, and how it goes on."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

from command import ft_course, write_reviews
from ft_course.app import claims, options, runs
from ft_course.app.options import Options, flags
from ft_course.model.files import beside
from ft_course.tasks.task import Task


def train(data, model, out, *more):
    return ft_course("train", "classify", "--data", data, "--model", model, "--out", out, "--max-length", 32, "--epochs", 1, *more)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.jsonl")


# ---------------------------------------------------------------- options

WRONG = {  # words of a command -> what is said
    "--epochs 0": "epochs=0", "--epochs 2.5": "valid integer", "--epoch 3": "Did you mean --epochs?", "--epoch 3 --method lora": "Did you mean --epochs?",
    "--lr -1": "lr=-1.0", "--lr nan": "lr=nan", "--batch-size 0": "batch_size=0", "--head-lr 0": "head_lr=0.0", "--layer-decay 0": "layer_decay=0.0",
    "--accumulate 0": "gradient_accumulation_steps=0", "--early-stop -1": "early_stop=-1", "--max-length 2": "max_length=2",
    "--max-length 513": "reads at most 512 tokens", "--freeze-layers 3": "the model has 2 layers", "--freeze-layers -1": "freeze_layers=-1",
    "--method magic": "one of full, lora", "--method lora --rank 4": "lora has no option rank; it has", "--method bitfit --option r=4": "bitfit has no option r",
    "--option r=4": "the method full has no options of its own", "--method lora --r 4 --r 8": "r is given twice", "--r=4 --option r=8": "r is given twice",
    "--method lora stray": "'stray'", "--model tny": "no model 'tny'", "--freez-layers 1": "Did you mean --freeze-layers?",
}


@pytest.mark.parametrize("words, said", WRONG.items(), ids=WRONG)
def test_a_wrong_option_is_refused_before_anything_is_opened(words, said, data, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "open_task", lambda options: pytest.fail("data and model were opened"))
    command = ("train", "classify", "--data", data, "--out", tmp_path / "run", *(() if "--model" in words else ("--model", tiny)))
    done = ft_course(*command, *words.split())
    assert done.exit_code == 2 and said in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_unknown_kind_is_refused(data, tmp_path):
    done = ft_course("train", "summarise", "--data", data, "--out", tmp_path / "run")
    assert done.exit_code == 2 and "'summarise' is not one of" in done.stderr


@pytest.mark.parametrize("name, value", [("epochs", "3"), ("epochs", True), ("lr", "fast"), ("seed", 0.5), ("seed", None), ("method_options", []), ("data", 1)])
def test_options_have_types(name, value):
    with pytest.raises(ValueError, match=f"^{name}="):
        Options(**{"kind": "classify", "data": "x", name: value})


def test_a_whole_number_is_a_number():
    made = Options("classify", "x", lr=1, layer_decay=1)
    assert (type(made.lr), type(made.layer_decay), made.epochs) == (float, float, None)


@pytest.mark.parametrize("words, found", [
    ("--r 4", {"r": 4}), ("--r=4", {"r": 4}), ("--use-dora --r 4", {"use_dora": True, "r": 4}), ("--target-modules a,b", {"target_modules": ["a", "b"]}),
    ("--modules-to-save null", {"modules_to_save": None}), ("--init-lora-weights false", {"init_lora_weights": False}), ("", {})])
def test_words_become_names_and_values(words, found):
    assert flags(words.split()) == found


def test_both_ways_to_name_a_methods_options_are_one(data, tiny, tmp_path):
    results = [json.loads(train(data, tiny, tmp_path / name, "--method", "lora", *words.split(), "--json").stdout)
               for name, words in (("long", "--option r=2 --option lora-alpha=4"), ("short", "--r 2 --lora-alpha 4"))]
    assert results[0]["method_options"] == results[1]["method_options"] == {"r": 2, "lora_alpha": 4}
    assert json.loads((tmp_path / "long/adapter_config.json").read_text())["r"] == 2


# ---------------------------------------------------------------- the folder

def refused(done) -> str:
    assert done.exit_code == 2 and done.stdout == ""
    return done.stderr.split("Error: ")[1].replace("\n", " ")


def test_a_second_start_is_refused_at_once(data, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "open_task", lambda options: pytest.fail("data and model were opened"))
    with claims.claim(tmp_path / "run", Options("classify", str(data), model=str(tiny)), False):
        for more in ((), ("--resume",)):
            assert "another process trains into" in refused(train(data, tiny, tmp_path / "run", *more))
        assert (tmp_path / "run").exists()
    assert not list(tmp_path.iterdir())


HOLD = "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); sys.stdin.read()"


def test_a_dead_process_holds_nothing(tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(beside(run, "lock"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="another process"):
        claims.lock_of(run)
    process.kill()
    process.communicate()
    assert beside(run, "lock").exists()  # what it left behind
    claims.lock_of(run).release()


@pytest.mark.parametrize("place", [".", "..", "here"])
def test_a_folder_that_one_stands_in_is_refused(place, data, tiny, tmp_path, monkeypatch):
    (here := tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr(runs, "open_task", lambda options: pytest.fail("data and model were opened"))
    said = refused(train(data, tiny, here if place == "here" else place))
    assert "the folder you are in" in said or "not empty" in said
    assert here.exists() and not list(here.iterdir())


def test_a_folder_that_cannot_be_renamed_is_refused(data, tiny, tmp_path, monkeypatch):
    real = Path.rename

    def rename(path, target):
        "As for a mounted disk."
        if path.name == "mount":
            raise OSError(16, "Device or resource busy")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(runs, "open_task", lambda options: pytest.fail("data and model were opened"))
    (tmp_path / "mount").mkdir()
    said = refused(train(data, tiny, tmp_path / "mount"))
    assert "Device or resource busy" in said and str(tmp_path / "mount" / "run") in said and (tmp_path / "mount").exists()


def test_a_link_to_another_place_stays_a_link(data, tiny, tmp_path):
    (disk := tmp_path / "disk").mkdir()
    (link := tmp_path / "link").symlink_to(disk / "run", target_is_directory=True)  # to what is not there yet
    assert train(data, tiny, link).exit_code == 0
    assert link.is_symlink() and (disk / "run/config.json").exists() and [path.name for path in disk.iterdir()] == ["run"]


def test_a_file_is_no_folder(data, tiny, tmp_path):
    (tmp_path / "run").write_text("years of work")
    for more in ((), ("--resume",)):
        done = train(data, tiny, tmp_path / "run", *more)
        assert done.exit_code == 2 and "file" in done.stderr and (tmp_path / "run").read_text() == "years of work"


# ---------------------------------------------------------------- going on

def test_resume_starts_where_nothing_is(data, tiny, tmp_path):
    for _ in range(2):  # the second time it goes on with a finished run
        done = train(data, tiny, tmp_path / "new" / "run", "--resume", "--json")
        assert done.exit_code == 0 and json.loads(done.stdout)["epochs"] == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run"]


def test_resume_leaves_what_is_no_run(data, tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("years of work")
    assert "not empty" in refused(train(data, tiny, tmp_path / "run", "--resume"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_run_that_died_before_its_first_state_starts_again(data, tiny, tmp_path, monkeypatch):
    def fall(*_):
        raise ValueError("killed")

    monkeypatch.setattr(runs, "fit", fall)
    assert train(data, tiny, tmp_path / "run").exit_code == 2
    assert (tmp_path / "run/options.json").exists()
    monkeypatch.undo()
    assert train(data, tiny, tmp_path / "run", "--resume").exit_code == 0
    assert "started with seed=0" in refused(train(data, tiny, tmp_path / "run", "--resume", "--seed", 1))


def test_a_run_that_died_while_it_noted_its_options_starts_again(data, tiny, tmp_path, monkeypatch):
    real = Path.replace

    def fall(path, target):
        if Path(target).name == "options.json":
            raise ValueError("killed")
        return real(path, target)

    monkeypatch.setattr(Path, "replace", fall)
    assert train(data, tiny, tmp_path / "new" / "run").exit_code == 2
    monkeypatch.undo()
    assert train(data, tiny, tmp_path / "new" / "run", "--resume").exit_code == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["run"]


# ---------------------------------------------------------------- scores

def test_each_split_is_scored_once(data, tiny, tmp_path, monkeypatch):
    "The report on the validation split is that of the last epoch, whole, with its interval."
    scored, score = [], Task.score
    monkeypatch.setattr(Task, "score", lambda task, features, shared=False: scored.append(features is task.encoded["test"]) or score(task, features, shared))
    result = json.loads(train(data, tiny, tmp_path / "run", "--json").stdout)
    assert scored == [False, True] and "interval" in result["model"]["validation"]


def test_after_an_early_stop_the_report_is_that_of_the_best_weights(data, tiny, tmp_path):
    more = ("--epochs", 9, "--early-stop", 1, "--lr", 0.05, "--batch-size", 4)
    result = json.loads(train(data, tiny, tmp_path / "run", *more, "--json").stdout)
    losses = [row["valid_loss"] for row in json.loads((tmp_path / "run/training.json").read_text())["history"]]
    assert result["model"]["validation"]["loss"] == min(losses) < losses[-1]
    assert json.loads(ft_course("evaluate", tmp_path / "run", "--data", data, "--split", "validation", "--json").stdout) == result["model"]["validation"]
