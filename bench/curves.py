"""Learning curves of the bundled corpora, read by lessons 51 and 52; writes results/curves.json and goes on where it stopped.

    python bench/curves.py

Each run takes the first so many training examples of a shuffle by its seed, trains with the task's defaults, and is scored on
the validation split: whether to collect more data is a choice about the project, and the test split stays out of it.
"""
from common import read, versions, write
from demo import corpus_hash
from tqdm import tqdm

from ft_course.tasks.ner import NER
from ft_course.tasks.sentiment import TextClassification

CURVES = {"newswire": (NER, "entity_f1", (70, 200, 560)), "reviews": (TextClassification, "accuracy", (70, 250, 700))}
SEEDS = (0, 1, 2)


def plan() -> dict[str, tuple[str, int, int]]:
    "The name of each run, and its corpus, training examples and seed."
    return {f"{corpus} {n} {seed}": (corpus, n, seed) for corpus, (_, _, sizes) in CURVES.items() for n in sizes for seed in SEEDS}


def settings() -> dict:
    "What the numbers depend on and their names don't say."
    return {corpus: dict(defaults=kind.defaults, corpus_sha256=corpus_hash(corpus)) for corpus, (kind, _, _) in CURVES.items()}


def run(corpus: str, n: int, seed: int) -> float:
    "Train on a part, score on the validation split."
    kind, measure, _ = CURVES[corpus]
    task = kind(corpus, seed=seed)
    task.data["train"] = task.data["train"].shuffle(seed=seed).select(range(n))
    learner = task.learner()
    learner.valid = None  # scored at the end alone
    learner.fit()
    return task.evaluate("validation")[measure]


def main() -> None:
    "Run what is not yet there; start over when the settings changed."
    result = read("curves")
    if result.get("settings") != settings():
        result = dict(settings=settings(), runs={})
    for name, recipe in tqdm(plan().items()):
        if name not in result["runs"]:
            result["runs"][name] = run(*recipe)
            write("curves", result | dict(versions=versions()))


if __name__ == "__main__":
    main()
