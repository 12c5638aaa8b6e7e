"""Fine-tune on public data sets and write results/runs.json; goes on where it stopped.

    python bench/runs.py            # all that are missing or whose recipe changed
    python bench/runs.py wnut17     # these
"""
import json
import sys

from common import ner_baselines, read, text_baselines, versions, write

# name: recipe. `train`: the first so many training examples of a seeded shuffle, where the whole takes too long on a CPU
RECIPES = {
    "wnut17": dict(task="ner", epochs=2, lr=5e-4),
    "wikigold": dict(task="ner", epochs=4, lr=5e-4),
    "sec-filings": dict(task="ner", epochs=3, lr=5e-4, max_length=256),
    "ncbi-disease": dict(task="ner", epochs=2, lr=5e-4, train=2000),
    "uner-zh": dict(task="ner", epochs=2, lr=5e-4, train=1500),
    "vader-amazon": dict(task="classify", epochs=3, lr=2e-4),
    "pros-cons": dict(task="classify", epochs=2, lr=2e-4, train=4000),
    "sentfin": dict(task="classify", epochs=2, lr=2e-4),
    "banking77": dict(task="classify", epochs=4, lr=5e-4, batch_size=32, train=4000),
}


def subset(data, n: int | None):
    "The data with a training split of at most `n` examples."
    if n and n < len(data["train"]):
        data["train"] = data["train"].shuffle(seed=0).select(range(n))
    return data


def run(name: str, recipe: dict) -> dict:
    "Train by the recipe; the test report, with what it was measured on."
    from ft_course.data.sources import load
    from ft_course.tasks.ner import NER
    from ft_course.tasks.sentiment import TextClassification
    from ft_course.training.callbacks import ProgressBar

    recipe = dict(recipe)
    kind, n, length = recipe.pop("task"), recipe.pop("train", None), recipe.pop("max_length", 128)
    task = {"ner": NER, "classify": TextClassification}[kind](subset(load(name, kind), n), max_length=length)
    task.learner(callbacks=[ProgressBar()], head_lr=None, **recipe).fit()  # one rate for head and rest
    score, baselines = {"ner": ("entity_f1", ner_baselines), "classify": ("accuracy", text_baselines)}[kind]
    sizes = {split: len(task.data[split]) for split in task.data}
    simple = {method: report[score] for method, report in baselines(task.data).items()}
    return dict(sizes=sizes, labels=task.labels, measure=score, baselines=simple, test=task.evaluate("test"), versions=versions())


def main(names: list[str]):
    "Run what is asked for and not yet there."
    for name in names or RECIPES:
        result = read("runs")
        if result.get(name, {}).get("recipe") == RECIPES[name]:
            continue
        done = run(name, RECIPES[name])
        write("runs", read("runs") | {name: dict(recipe=RECIPES[name]) | done})
        print(name, json.dumps({k: v for k, v in done["test"].items() if not isinstance(v, (dict, list))}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
