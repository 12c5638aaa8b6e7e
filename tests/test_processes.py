"""Two processes equal one."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("train_in_processes.py")
ALONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "The same run in one process and in two: a folder each."
    folders = [tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error::UserWarning:ft_course"}
    for command, folder in zip((ALONE, TWO), folders):
        done = subprocess.run([*command, str(SCRIPT), str(folder)], capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "Warning" not in done.stderr, done.stderr
    return folders


@pytest.mark.parametrize("task", ["ner", "classify"])
def test_two_processes_equal_one(runs, task):
    "The same global batches, an uneven last one, two batches an update: weights, losses, validation."
    one, two = [load_file(folder / f"{task}.safetensors") for folder in runs]
    assert one.pop("world") == 1 and two.pop("world") == 2
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-6, rtol=0, msg=lambda text: f"{name}: {text}")
    assert len(one["losses"]) == 6 and one["losses"][0] != one["losses"][-1]


def test_one_process_writes(runs):
    assert [len((folder / "ner.csv").read_text().splitlines()) for folder in runs] == [3, 3]
