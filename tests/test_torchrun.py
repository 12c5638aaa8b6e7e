"""The command line in two processes: one voice, one folder, shared work."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import ft_course, write_reviews
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("cli_in_processes.py")


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny):
    "One start of torchrun: the folder, the documents on standard output, standard error, and the data."
    folder, data = tmp_path_factory.mktemp("two"), write_reviews(tmp_path_factory.mktemp("data") / "reviews.jsonl")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent.parent), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*torchrun, str(SCRIPT), str(folder), str(data), str(tiny)], capture_output=True, text=True, env=environment, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    documents, text, decoder = [], run.stdout.strip(), json.JSONDecoder()
    while text:
        document, end = decoder.raw_decode(text)
        documents.append(document)
        text = text[end:].strip()
    return folder, documents, run.stderr, data


def test_every_command_prints_one_document(done):
    documents = done[1]
    names = [Path(d["run"]).name if "run" in d else "answer" if "text" in d else "report" for d in documents]
    assert names == ["full", "lora", "report", "answer"]
    assert documents[2] == documents[0]["model"]["test"]


def test_one_process_wrote_and_left_nothing_behind(done):
    folder = done[0]
    assert sorted(path.name for path in folder.iterdir()) == ["full", "lora"]
    assert not [path for path in folder.rglob(".*")] and (folder / "lora/adapter_model.safetensors").exists()


def test_two_processes_train_what_one_trains(done, tiny, tmp_path):
    folder, documents, _, data = done
    alone = ft_course("train", "classify", "--data", data, "--model", tiny, "--out", tmp_path / "run", "--max-length", 32, "--batch-size", 8, "--epochs", 2, "--json")
    one, two = load_file(tmp_path / "run/model.safetensors"), load_file(folder / "full/model.safetensors")
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=0, msg=lambda text: f"{name}: {text}")
    assert json.loads(alone.stdout)["model"]["test"]["accuracy"] == documents[0]["model"]["test"]["accuracy"]
