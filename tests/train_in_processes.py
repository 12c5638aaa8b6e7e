"""Short runs, alone and in several processes; the first process writes what came out of them."""
import os
import signal
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import tiny_features, tiny_model

from ft_course.model.parameters import weights
from ft_course.training.callbacks import CSVLogger, EarlyStopping, Interruptible
from ft_course.training.learner import Callback, CancelFit, Learner
from ft_course.training.resuming import SaveState, resume
from ft_course.training.updates import TrainingConfig

CONFIG = TrainingConfig(epochs=2, batch_size=4, gradient_accumulation_steps=2, lr=1e-3, max_grad_norm=0.5)


class Watch(Callback):
    "Norms of gradients, and how many validation examples this process looks at; the last one ends the first life of a run."

    def __init__(self, stop=None):
        self.norms, self.looked, self.stop = [], 0, stop

    def before_fit(self):
        self.learner.model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, model, args, kwargs):
        self.looked += 0 if model.training else len(kwargs["input_ids"])

    def after_update(self):
        self.norms.append(self.learner.grad_norm)
        if self.learner.updates == self.stop:
            raise CancelFit


class Ask(Callback):
    "The last process is asked to stop, in the middle of its third update; of several, once more a moment later, and it waits for the others all the same."

    def after_loss(self):
        if self.learner.updates == 2 and self.learner.rank == self.learner.world - 1 and not self.asked:
            self.asked = True
            for _ in range(min(2, self.learner.world)):
                signal.raise_signal(signal.SIGTERM)

    def before_fit(self):
        self.asked = False


def with_a_pooler(task):
    "A model with trainable parameters that no answer depends on."
    model = tiny_model(task, dropout=0.2)
    model.bert.pooler_of_nobody = torch.nn.Linear(32, 32)
    return model


def whole(tensors):
    return {name: t.full_tensor() if hasattr(t, "full_tensor") else t.contiguous() for name, t in tensors.items()}


def learner_of(task, callbacks, parallel="ddp", make=None):
    "21 examples in batches of 4 and updates of 2: the last batch holds one example, the last update two batches."
    model = make(task) if make else tiny_model(task, dropout=0.2)
    return Learner(model, tiny_features(21, task), tiny_features(19, task, seed=1), CONFIG, callbacks=callbacks, parallel=parallel)


def report(learner, watch, file):
    "What came out, in a file of the first process."
    numbers = dict(losses=learner.losses, valid=[row["valid_loss"] for row in learner.history], norms=watch.norms, looked=[float(watch.looked)])
    tensors = whole(weights(learner.model)) | {name: torch.tensor(column, dtype=torch.float64) for name, column in numbers.items()}
    if learner.rank == 0:
        save_file(tensors | dict(world=torch.tensor(learner.world)), file)


def main(folder: Path) -> None:
    "Kinds of tasks, a pooler that nobody uses, shares of weights; each once straight, and the first and last once with a break."
    parallel = "fsdp" if "RANK" in os.environ else "ddp"
    for name, task, how, make in [("ner", "ner", "ddp", None), ("classify", "classify", "ddp", with_a_pooler), ("shares", "ner", parallel, None)]:
        watch = Watch()
        learner = learner_of(task, [watch, CSVLogger(folder / f"{name}.csv"), EarlyStopping(5), SaveState(folder / name)], how, make)
        if learner.rank == 0 and how == "ddp":
            assert len(dict(learner.predict(learner.valid))) == 19  # the others do not take part
        learner.fit()
        if learner.rank == 0 and how == "ddp":
            learner.evaluate()
        report(learner, watch, folder / f"{name}.safetensors")
        if name != "classify":
            learner_of(task, [EarlyStopping(5), SaveState(folder / f"{name}-broken", every=1), Watch(stop=4)], how).fit()
            watch = Watch()
            again = learner_of(task, [watch, EarlyStopping(5)], how)
            place = resume(again, folder / f"{name}-broken")
            assert place.name == "step-00000004", place
            report(again.fit(), watch, folder / f"{name}-resumed.safetensors")


def stopped(folder: Path) -> None:
    "A run that is asked to stop, and taken up again."
    try:
        learner_of("ner", [Ask(), EarlyStopping(5), SaveState(folder / "asked"), Interruptible()]).fit()
    except KeyboardInterrupt:
        watch = Watch()
        again = learner_of("ner", [watch, EarlyStopping(5)])
        place = resume(again, folder / "asked")
        assert place.name == "step-00000003", place
        report(again.fit(), watch, folder / "ner-asked.safetensors")


def work(rank: int, world: int, port: int, folder: Path) -> None:
    "One process of several, as torchrun would start it."
    torch.set_num_threads(1)
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    main(folder)
    stopped(folder)
