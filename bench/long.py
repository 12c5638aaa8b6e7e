"""Three ways to read a text that is too long, read by lesson 51; writes results/long.json and goes on where it stopped.

    python bench/long.py

Long reviews are made of short ones: PHRASES phrases of pros and cons in random order, of which MAIN are of the text's class and the rest of the
other one, so that what speaks for the label is spread over the whole text. Phrases of one split never meet those of another. Each way trains
the task's model with its defaults on the same texts and is scored on the same test texts.
"""
import random

from common import fill, read, versions, write

PHRASES, MAIN = 24, 15
DATA = dict(name="pros-cons", train=160, validation=40, test=300)
CONFIG = dict(epochs=3)
MAX_LENGTH = 48
SEEDS = (0, 1, 2, 3, 4)


def long_texts(split, n: int, seed: int):
    "A table of n made-up reviews from a table of phrases."
    chance, rows = random.Random(seed), {"text": [], "label": []}
    by_class = {label: [t.rstrip(" .;,") for t, y in zip(split["text"], split["label"]) if y == label] for label in (0, 1)}
    for i in range(n):
        parts = chance.sample(by_class[i % 2], MAIN) + chance.sample(by_class[1 - i % 2], PHRASES - MAIN)
        chance.shuffle(parts)
        rows["text"].append(". ".join(parts) + ".")
        rows["label"].append(i % 2)
    return type(split).from_dict(rows, features=split.features)


def run(long: str, seed: int) -> dict:
    "Train and score one way of reading."
    import time

    from ft_course.data.sources import load
    from ft_course.tasks.sentiment import TextClassification

    data = load(DATA["name"], "classify")
    made = {split: long_texts(data[split], DATA[split], i) for i, split in enumerate(("train", "validation", "test"))}
    task = TextClassification(type(data)(made), max_length=MAX_LENGTH, long=long, seed=seed)
    start = time.process_time()
    task.learner(**CONFIG).fit()
    trained = time.process_time()
    report = task.evaluate("test")
    lengths = [len(ids) for ids in task.tokenizer(list(made["test"]["text"]), verbose=False)["input_ids"]]
    return dict(accuracy=report["accuracy"], interval=report["interval"], loss=report["loss"], tokens=sum(lengths) / len(lengths),
                cpu_seconds=dict(training=round(trained - start, 1), test=round(time.process_time() - trained, 1)))


def about() -> dict:
    "What the numbers depend on and their names don't say."
    return dict(phrases=PHRASES, main=MAIN, data=DATA, config=CONFIG, max_length=MAX_LENGTH, seeds=list(SEEDS))


def main() -> None:
    "All ways with all seeds; start over when the settings changed."
    from ft_course.tasks.sentiment import LONG

    result = read("long")
    if result.get("about") != about():
        result = dict(about=about(), versions=versions(), runs={})
    fill(result["runs"], {f"{long} {seed}": (long, seed) for long in LONG for seed in SEEDS}, run, lambda: write("long", result))


if __name__ == "__main__":
    main()
