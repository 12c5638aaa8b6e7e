"""Two processes equal one, with dropout on; they share the work of evaluation and go on where they stopped."""
import multiprocessing as mp
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_in_processes import work

SCRIPT = Path(__file__).with_name("train_in_processes.py")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def together(world: int, folder: Path) -> Path:
    "Run the script in some processes; they begin where torch is loaded already, which saves most of the time."
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["train_in_processes", "transformers.models.bert.modeling_bert"])
    port = free_port()
    started = [context.Process(target=work, args=(rank, world, port, folder)) for rank in range(world)]
    for process in started:
        process.start()
    for process in started:
        process.join(240)
        process.kill()  # one that waits for another that failed
    assert [process.exitcode for process in started] == [0] * world
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "The same runs in one process and in two: a folder each."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        return [together(world, tmp_path_factory.mktemp(f"world{world}")) for world in (1, 2)]


@pytest.mark.parametrize("name", ["ner", "classify", "shares"])
def test_two_processes_equal_one(runs, name):
    "With dropout, clipping, an uneven last batch, two batches an update, an idle pooler, shares of weights: weights, losses, norms, validation."
    one, two = [load_file(folder / f"{name}.safetensors") for folder in runs]
    assert one.pop("world") == 1 and two.pop("world") == 2
    for key in one.keys() - {"looked"}:
        torch.testing.assert_close(two[key], one[key], atol=1e-6, rtol=1e-6, msg=lambda text: f"{key}: {text}")
    assert len(one["losses"]) == len(one["norms"]) == 6 and one["losses"][0] != one["losses"][-1] and one["norms"].max() > 0.5


def test_evaluation_is_shared_out(runs):
    "19 examples in batches of 8, two epochs, and once more by the first process alone; before the fit nobody watches."
    one, two = [load_file(folder / "ner.safetensors")["looked"].item() for folder in runs]
    assert one == 3 * 19 and two == 2 * (8 + 3) + 19


@pytest.mark.parametrize("name, kind, made", [("ner", "resumed", 4), ("shares", "resumed", 4), ("ner", "asked", 3)])
@pytest.mark.parametrize("world", [1, 2])
def test_a_resumed_run_is_the_same_to_the_last_bit(runs, name, kind, made, world):
    "After a break, and after one process was asked to stop: then all stop after the same update, and its state is saved."
    straight, resumed = [load_file(runs[world - 1] / f"{name}{kind}.safetensors") for kind in ("", f"-{kind}")]
    for key in straight.keys() - {"looked", "norms"}:
        assert torch.equal(straight[key], resumed[key]), key
    assert torch.equal(straight["norms"][made:], resumed["norms"])


def test_one_process_writes(runs):
    assert [len((folder / "ner.csv").read_text().splitlines()) for folder in runs] == [3, 3]
    files = [sorted(path.name for path in (folder / "shares/checkpoints/step-00000006").iterdir()) for folder in runs]
    assert files[0] == ["checksums.json", "state.json", "state.safetensors"] and sum(name.startswith("shard-") for name in files[1]) == 2
