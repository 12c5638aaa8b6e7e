"""The command line under torchrun: one voice, one folder, shared work; and a run that is killed, stopped and taken up again ends as a straight one."""
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command import ft_course, write_reviews
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("commands_in_processes.py")
pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by their environment, as Linux shows it")
SHORT = ("--max-length", 16, "--batch-size", 8, "--epochs", 2, "--lr", 1e-3)
LONG = ("--max-length", 16, "--batch-size", 2, "--epochs", 4, "--lr", 1e-3)
UPDATES = 168


def torchrun(*words, **how) -> subprocess.Popen:
    "Start two processes; `mark` is in the environment of both."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "FT_COURSE_MARK": how.pop("mark", "")}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


def worker(mark: str, rank: int, life: int) -> int | None:
    "The process number of a worker, if it is there."
    wanted = {f"FT_COURSE_MARK={mark}".encode(), f"RANK={rank}".encode(), f"TORCHELASTIC_RESTART_COUNT={life}".encode()}
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted <= set(place.read_bytes().split(b"\0")):
                return int(place.parent.name)
        except OSError:  # somebody else's, or gone
            pass
    return None


def newest(run: Path) -> int:
    "Updates in the newest state of a run."
    return max((int(path.name[-8:]) for path in run.glob("checkpoints/step-*")), default=0)


def wait_for(condition, process: subprocess.Popen) -> None:
    "Look again and again until it is so. Fails where the program ended before, or hangs."
    for _ in range(30_000):  # ten minutes or more: a busy machine is no fault
        if condition():
            return
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    process.terminate()
    pytest.fail("it hangs: " + process.communicate()[1][-3000:])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.jsonl", 20)


@pytest.fixture(scope="module")
def broken(data, tiny, tmp_path_factory) -> tuple[Path, list[int], str, int]:
    "A run whose second worker is killed, which goes on in a second life, and is asked to stop: its folder, its newest states then, what it said, its exit code."
    run, mark = tmp_path_factory.mktemp("broken") / "run", uuid.uuid4().hex
    process = torchrun("--max-restarts", 1, "-m", "ft_course.app.cli", *train(data, tiny, run, *LONG), mark=mark)
    wait_for(lambda: newest(run) >= 4, process)
    os.kill(worker(mark, 1, life=0), signal.SIGKILL)
    wait_for(lambda: worker(mark, 1, life=1), process)
    states = [newest(run)]
    wait_for(lambda: newest(run) > states[0], process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=600)
    return run, [*states, newest(run)], "".join(said), process.returncode


def train(data: Path, model: Path, run: Path, *more) -> list[str]:
    "The words of a command."
    return [str(word) for word in ("train", "classify", "--data", data, "--model", model, "--out", run, "--state-every", 4, "--resume", "--json", *more)]


def documents(text: str) -> Iterator[dict]:
    "JSON documents that stand one after another."
    while text := text.strip():
        document, end = json.JSONDecoder().raw_decode(text)
        text = text[end:]
        yield document


@pytest.fixture(scope="module")
def alone(data, tiny, tmp_path_factory) -> tuple[Path, dict]:
    "A short run in this process: its folder, and what it printed."
    run = tmp_path_factory.mktemp("alone") / "run"
    return run, json.loads(ft_course(*train(data, tiny, run, *SHORT)).stdout)


@pytest.fixture(scope="module")
def two(data, tiny, broken, alone, tmp_path_factory) -> tuple[Path, dict[str, list[list]], str]:
    "Several commands in two processes: the folder of their runs, what each process printed for each command, standard error."
    folder = tmp_path_factory.mktemp("two")
    commands = [train(data, tiny, folder / "short", *SHORT), train(data, tiny, folder / "long", *LONG), train(data, tiny, broken[0], *LONG),
                ["evaluate", str(alone[0]), "--data", str(data), "--json"], ["predict", str(alone[0]), "--json", "Good soup", "Cold soup"]]
    process = torchrun("--log-dir", folder / "logs", "--redirects", 3, SCRIPT, json.dumps(commands))
    said = "".join(process.communicate(timeout=600))
    printed = [next((folder / "logs").rglob(f"*/{rank}/stdout.log")).read_text() for rank in (0, 1)]
    assert process.returncode == 0, said + "".join(path.read_text()[-3000:] for path in (folder / "logs").rglob("stderr.log"))
    return folder, [list(documents(text)) for text in printed], said


def test_the_first_process_speaks(two):
    "A document a command, an answer a text; the other process prints none of them, and waits for nobody."
    first, second = two[1]
    assert [("c" if "command" in d else "r" if "run" in d else "t" if "text" in d else "e") for d in first] == list("crcrcrcectt")
    assert all("command" in document for document in second) and len(second) == 5
    assert [d["text"] for d in first if "text" in d] == ["Good soup", "Cold soup"]


def test_one_process_wrote_and_left_nothing_behind(two):
    folder = two[0]
    assert sorted(path.name for path in folder.iterdir()) == ["logs", "long", "short"] and not list(folder.rglob(".*"))


def test_two_processes_train_what_one_trains(two, alone):
    "With dropout on. A key's bias adds the same to all scores of a query, so its gradient is 0, and Adam's steps follow what rounding leaves of it."
    one, both = load_file(alone[0] / "model.safetensors"), load_file(two[0] / "short/model.safetensors")
    for name in (name for name in one if not name.endswith("key.bias")):
        torch.testing.assert_close(both[name], one[name], atol=1e-6, rtol=0, msg=lambda text: f"{name}: {text}")


def same(a: object, b: object) -> None:
    "Reports that are equal but for rounding of the loss."
    assert a | {"loss": 0} == b | {"loss": 0} and a["loss"] == pytest.approx(b["loss"], abs=1e-6)


def test_two_processes_score_what_one_scores(two, alone):
    reports = [d for d in two[1][0] if "loss" in d]
    same(reports[0], alone[1]["model"]["test"])
    for split, report in alone[1]["model"].items():
        same(two[1][0][1]["model"][split], report)


def test_a_killed_worker_is_started_again_and_all_go_on(broken):
    _, (before, _), said, _ = broken
    assert f"step-{before:08}: {before} of {UPDATES} updates are done" in said and said.count("going on from") == 1


def test_whoever_stops_the_supervisor_loses_no_update(broken):
    "Both workers end after the same update, and its state is there."
    run, (_, stopped), said, code = broken
    assert code != 0 and f"Interrupted. {stopped} of {UPDATES} updates are done" in said and said.count("Interrupted.") == 1


def test_the_end_is_that_of_a_straight_run(two, broken):
    straight, killed = [(path / "model.safetensors").read_bytes() for path in (two[0] / "long", broken[0])]
    assert straight == killed
    runs = [d["model"] for d in two[1][0] if "run" in d]
    assert runs[1] == runs[2]
