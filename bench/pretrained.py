"""Random against pretrained weights, the rest alike; writes results/pretrained.json and goes on where it stopped.

    python bench/pretrained.py

Everything is cut so that it takes half an hour of one core: training sets are the first n examples of a shuffle by the
run's seed, validation and test sets the first so many of a fixed shuffle (DATA), and every run sees 2,000 examples
(SIZES), but one that shows what a longer training does. The learning rate of each condition is the best of a grid
(RATES) on the validation texts, for seed 0 and 500 examples; it is then used for all sizes and seeds.
"""
from collections.abc import Iterator

from common import read, versions, write

DATA = {
    "pros-cons": dict(task="classify", measure="accuracy", validation=400, test=1000),
    "snips": dict(task="ner", measure="entity_f1", validation=300, test=700),
}
SEEDS = (0, 1, 2)
SIZES = {125: 16, 500: 4, 2000: 1}  # examples: epochs
RATES = {  # data, start, frozen layers: peak learning rates to choose from
    ("pros-cons", "pretrained", 0): (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    ("pros-cons", "random", 0): (3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    ("pros-cons", "pretrained", 2): (3e-4, 1e-3),
    ("pros-cons", "pretrained", 4): (3e-4, 1e-3),
    ("pros-cons", "pretrained", 6): (3e-4, 1e-3, 3e-3, 1e-2),
    ("pros-cons", "random", 6): (3e-4, 1e-3, 3e-3, 1e-2),
    ("snips", "pretrained", 0): (3e-4, 1e-3, 3e-3),
    ("snips", "random", 0): (3e-4, 1e-3, 3e-3),
}
LONGER = 4  # times as many updates, once, for the random start on the most examples
UPDATES = (0, 10, 20, 30, 40, 60, 80, 100, 125)  # after which the runs on the most examples are scored
PENALTIES = (0.001, 0.01, 0.1, 1.0)  # C of the linear probe, chosen on the validation texts


def subset(data, name: str, n: int, seed: int):
    "The data, cut to n training examples and to what DATA says of the other splits."
    parts = {split: data[split].shuffle(seed=0).select(range(DATA[name][split])) for split in ("validation", "test")}
    return type(data)(train=data["train"].shuffle(seed=seed).select(range(n)), **parts)


def make_task(name: str, start: str, n: int, seed: int):
    "A task that has not been trained; its head is the same for both starts."
    from ft_course.data.sources import load
    from ft_course.tasks.ner import NER
    from ft_course.tasks.sentiment import TextClassification
    from ft_course.tasks.why_pretrained import randomize

    kind = DATA[name]["task"]
    task = {"ner": NER, "classify": TextClassification}[kind](subset(load(name, kind), name, n, seed), max_length=64, seed=seed)
    if start == "random":
        randomize(task.model)
    return task


def run(data: str, start: str, frozen: int, n: int, epochs: int, lr: float, seed: int) -> dict:
    "Train once; scores with their intervals, and the curve where there is one."
    from ft_course.tasks.why_pretrained import ScoreCurve
    from ft_course.training.learner import Learner
    from ft_course.training.updates import TrainingConfig

    task, measure = make_task(data, start, n, seed), DATA[data]["measure"]
    config = TrainingConfig(epochs=epochs, lr=lr, batch_size=16, freeze_layers=frozen, seed=seed)
    valid = task.features("validation")
    curve = ScoreCurve(valid, measure, UPDATES if n == max(SIZES) else ())
    learner = Learner(task.model, task.features("train"), config=config, evaluator=task.validate, callbacks=[curve])
    learner.fit()
    reports = {split: task.evaluate(split) for split in ("validation", "test")}
    scores = {split: dict(score=r[measure], interval=r["interval"]) for split, r in reports.items()}
    return dict(data=data, start=start, frozen=frozen, n=n, epochs=epochs, lr=lr, seed=seed, updates=learner.updates, **scores, curve=curve.points)


def simple(start: str, seed: int) -> Iterator[dict]:
    "What needs no training of the encoder, for each size: a linear probe on its vectors, and a bag of words."
    from ft_course.training.baselines import bag_of_words, probe, text_vectors
    from ft_course.training.metrics import classification_report

    task = make_task("pros-cons", start, max(SIZES), seed)
    texts = {split: list(part["text"]) for split, part in task.data.items()}
    x = {split: text_vectors(task.model, task.features(split)) for split in task.data}
    y = {split: [task.labels[f["labels"]] for f in task.features(split)] for split in task.data}
    for n in SIZES:
        probes = [probe(x["train"][:n], y["train"][:n], C) for C in PENALTIES]
        best = max(probes, key=lambda model: model.score(x["validation"], y["validation"]))
        words = bag_of_words(texts["train"][:n], y["train"][:n])
        answers = {"probe": best.predict(x["test"]), "words": words.predict(texts["test"])}
        reports = {method: classification_report(y["test"], list(answer)) for method, answer in answers.items()}
        yield dict(start=start, n=n, seed=seed) | {m: dict(score=r["accuracy"], interval=r["interval"]) for m, r in reports.items()}


def best_rate(runs: dict, data: str, start: str, frozen: int) -> float:
    "The rate of the sweep with the best validation score; the smaller of equals."
    found = {r["lr"]: r["validation"]["score"] for r in runs.values()
             if (r["data"], r["start"], r["frozen"], r["n"], r["seed"]) == (data, start, frozen, 500, 0)}
    return max(RATES[data, start, frozen], key=found.get)


def plan(runs: dict) -> Iterator[dict]:
    "What to run, in order: the sweeps, then all sizes and seeds at the best rates. `runs` grows meanwhile."
    for condition, rates in RATES.items():
        for lr in rates:
            yield dict(zip(("data", "start", "frozen"), condition), n=500, epochs=SIZES[500], lr=lr, seed=0)
    for condition in RATES:
        lr = best_rate(runs, *condition)
        sizes = SIZES if condition[0] == "pros-cons" and not condition[2] else [500]
        for n in sizes:
            for seed in SEEDS:
                yield dict(zip(("data", "start", "frozen"), condition), n=n, epochs=SIZES[n], lr=lr, seed=seed)
    n = max(SIZES)
    yield dict(data="pros-cons", start="random", frozen=0, n=n, epochs=LONGER, lr=best_rate(runs, "pros-cons", "random", 0), seed=0)


def key(recipe: dict) -> str:
    "What a run is called in the file."
    return " ".join(map(str, recipe.values()))


def settings() -> dict:
    "What the numbers depend on and their keys don't say."
    return dict(data=DATA, updates=list(UPDATES), penalties=list(PENALTIES))


def main():
    "Run what is not yet there; start over when the settings changed."
    result = read("pretrained")
    if result.get("settings") != settings():
        result = dict(settings=settings(), runs={}, simple={})
    for recipe in plan(result["runs"]):
        if (name := key(recipe)) not in result["runs"]:
            result["runs"][name] = done = run(**recipe)
            write("pretrained", result | dict(versions=versions()))
            print(name, done["validation"]["score"], done["test"]["score"], flush=True)
    for start in ("pretrained", "random"):
        for seed in SEEDS:
            if f"{start} {seed}" not in result["simple"]:
                result["simple"][f"{start} {seed}"] = done = list(simple(start, seed))
                write("pretrained", result | dict(versions=versions()))
                print(start, seed, [(row["probe"]["score"], row["words"]["score"]) for row in done], flush=True)


if __name__ == "__main__":
    main()
