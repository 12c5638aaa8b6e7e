"""Commands one after another in each of several processes."""
import sys

import torch

from ft_course.app.cli import app

torch.set_num_threads(1)
folder, data, model = sys.argv[1:]


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
