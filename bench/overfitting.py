"""Five remedies against overfitting beside a run without any; writes results/overfitting.json and goes on where it stopped.

    python bench/overfitting.py

Short phrases, good or bad (pros and cons), and few of them: the first N of a shuffle by the run's seed, for EPOCHS passes, with every
weight free, no dropout and no decay. Then one remedy at a time, in the strengths of REMEDIES, and in the end those that need no more
texts together. The strength with the lowest validation loss for seed 0 is used for the other seeds. Where there are more texts, they
are seen less often, so that all runs but those that stop make about as many updates. Validation and test texts are the first so many of
a fixed shuffle (DATA).
"""
from common import fill, read, versions, write

N, EPOCHS = 100, 10
DATA = dict(name="pros-cons", validation=200, test=600)
PLAIN = dict(n=N, freeze_layers=0, dropout=0.0, weight_decay=0.0, patience=None)
REMEDIES = {
    "more texts": (dict(n=2 * N), dict(n=4 * N)),
    "fewer weights": (dict(freeze_layers=3), dict(freeze_layers=5)),
    "dropout": (dict(dropout=0.1), dict(dropout=0.3)),
    "weight decay": (dict(weight_decay=1.0), dict(weight_decay=10.0)),
    "stopping": (dict(patience=1), dict(patience=3)),
}
SEEDS = (0, 1, 2, 3, 4)
CONFIG = dict(lr=2e-4, batch_size=8)


def make_task(n: int, dropout: float, seed: int):
    "A task with its data cut and its dropout set."
    from ft_course.data.sources import load
    from ft_course.tasks.overfitting import set_dropout
    from ft_course.tasks.sentiment import TextClassification

    data = load(DATA["name"], "classify")
    parts = {split: data[split].shuffle(seed=0).select(range(DATA[split])) for split in ("validation", "test")}
    task = TextClassification(type(data)(train=data["train"].shuffle(seed=seed).select(range(n)), **parts), max_length=48, seed=seed)
    set_dropout(task.model, dropout)
    return task


def run(n: int, freeze_layers: int, dropout: float, weight_decay: float, patience: int | None, seed: int) -> dict:
    "Train once: losses and accuracies of each epoch, and the test scores of the weights at the end."
    from ft_course.training.callbacks import EarlyStopping

    task = make_task(n, dropout, seed)
    stopping = [EarlyStopping(patience)] if patience else []
    learner = task.learner(epochs=EPOCHS * N // n, freeze_layers=freeze_layers, weight_decay=weight_decay, callbacks=stopping, **CONFIG)
    learner.fit()
    test = task.evaluate("test")
    history = [{k: row[k] for k in ("train_loss", "valid_loss", "valid_accuracy")} for row in learner.history]
    return dict(history=history, loss=test["loss"], accuracy=test["accuracy"])


def key(settings: dict, seed: int) -> str:
    "What a run is called in the file: what differs from PLAIN, and the seed."
    return " ".join([*(f"{k}={v}" for k, v in settings.items() if v != PLAIN[k]), f"seed={seed}"])


def best_strength(runs: dict, remedy: str) -> dict:
    "The strength of a remedy with the lowest validation loss of the weights that a run ends with, seed 0."
    def valid_loss(settings: dict) -> float:
        losses = [row["valid_loss"] for row in runs[key(settings, 0)]["history"]]
        return min(losses) if settings.get("patience") else losses[-1]

    return min(REMEDIES[remedy], key=valid_loss)


def make(result: dict, wanted: list[tuple[dict, int]]) -> None:
    "Make the runs that the result lacks, and write each down as it ends."
    runs = {key(settings, seed): (*(PLAIN | settings).values(), seed) for settings, seed in wanted}
    fill(result["runs"], runs, run, lambda: write("overfitting", result))


def about() -> dict:
    "What the numbers depend on and their keys don't say."
    remedies = {name: list(strengths) for name, strengths in REMEDIES.items()}
    return dict(n=N, epochs=EPOCHS, data=DATA, plain=PLAIN, remedies=remedies, seeds=list(SEEDS), config=CONFIG)


def main() -> None:
    "All strengths with seed 0, then the best of each with all seeds; start over when the settings changed."
    result = read("overfitting")
    if result.get("about") != about():
        result = dict(about=about(), versions=versions(), runs={})
    make(result, [({}, 0), *((settings, 0) for strengths in REMEDIES.values() for settings in strengths)])
    best = {"nothing": {}, **{remedy: best_strength(result["runs"], remedy) for remedy in REMEDIES}}
    best["together"] = {k: v for remedy in list(REMEDIES)[1:] for k, v in best[remedy].items()}
    result["best"] = best
    make(result, [(settings, seed) for settings in best.values() for seed in SEEDS])
    result["chosen"] = {name: [key(settings, seed) for seed in SEEDS] for name, settings in best.items()}
    write("overfitting", result)


if __name__ == "__main__":
    main()
