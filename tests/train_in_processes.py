"""A short run, started once alone and once by torchrun; the first process writes what came out of it."""
import logging
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import tiny_features, tiny_model

from ft_course.model.parameters import weights
from ft_course.training.callbacks import CSVLogger, EarlyStopping
from ft_course.training.learner import Learner
from ft_course.training.updates import TrainingConfig

torch.set_num_threads(1)
logging.captureWarnings(True)


def main(folder: Path) -> None:
    "21 examples in batches of 4 and updates of 2: the last batch holds one example, the last update two batches."
    config = TrainingConfig(epochs=2, batch_size=4, gradient_accumulation_steps=2, lr=1e-3)
    for task in ("ner", "classify"):
        callbacks = [CSVLogger(folder / f"{task}.csv"), EarlyStopping(5)]
        learner = Learner(tiny_model(task), tiny_features(21, task), tiny_features(9, task, seed=1), config, callbacks=callbacks).fit()
        losses = dict(losses=torch.tensor(learner.losses), valid=torch.tensor([row["valid_loss"] for row in learner.history]))
        if learner.rank == 0:
            save_file(weights(learner.model) | losses | dict(world=torch.tensor(learner.world)), folder / f"{task}.safetensors")


main(Path(sys.argv[1]))
