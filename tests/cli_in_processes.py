"""Commands one after another in each of several processes; in their first life the second process is killed in the middle of a training."""
import os
import signal
import sys

import torch

from ft_course.app import runs
from ft_course.app.cli import app

torch.set_num_threads(1)
folder, data, model = sys.argv[1:]


class Killer(runs.StopAndSave):
    "Ends the second process as a lost machine does: without a word."

    def after_update(self):
        super().after_update()
        if self.learner.rank == 1 and len(self.learner.losses) == 7 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)


def call(*words):
    "A command, without leaving the process."
    app([*words], standalone_mode=False)


def train(name, *words):
    call("train", "classify", "--data", data, "--model", model, "--out", f"{folder}/{name}", "--max-length", "32", "--batch-size", "8",
         "--epochs", "2", "--resume", "--json", *words)


train("full")
train("lora", "--method", "lora", "--option", "r=2", "--accumulate", "2")
call("evaluate", f"{folder}/full", "--data", data, "--json")
call("predict", f"{folder}/full", "--json", "Good soup")
runs.StopAndSave = Killer
train("killed", "--state-every", "2")
