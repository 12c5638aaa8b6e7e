"""Fine-tune MiniLM on the bundled corpora, and print the scores beside simple baselines.

    python bench/demo.py            # train, print the table
    python bench/demo.py --write    # and write results/demo.json and results/demo.svg
"""
import hashlib
import sys
import time

from common import RESULTS, ROOT, ner_baselines, text_baselines, versions, write
from rich.console import Console
from rich.table import Table

from ft_course.tasks.ner import NER
from ft_course.tasks.sentiment import TextClassification
from ft_course.training.callbacks import ProgressBar


def corpus_hash(name: str) -> str:
    "Of the files of a bundled corpus: a number measured on other data is stale."
    files = sorted((ROOT / "ft_course" / "corpora" / name).glob("*.*l*"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def train(task) -> float:
    "Fine-tune with the task's defaults; seconds."
    start = time.perf_counter()
    task.learner(callbacks=[ProgressBar()]).fit()
    return time.perf_counter() - start


def run(corpus: str, kind: type, score: str, baselines) -> dict:
    "Baselines, training, test score: what the table and the picture need."
    task = kind(corpus)
    rows = {method: dict(score=report[score], interval=report["interval"]) for method, report in baselines(task.data).items()}
    seconds = train(task)
    report = task.evaluate("test")
    rows["fine-tuned"] = dict(score=report[score], interval=report["interval"])
    config = {k: getattr(task.learned.config, k) for k in task.defaults}
    return dict(measure=score, rows=rows, config=config, train_seconds=round(seconds, 1), corpus_sha256=corpus_hash(corpus))


def show(results: dict):
    "The table: a line a method, its score and its 95 % interval."
    table = Table("corpus", "method", "score", "95 % interval", "seconds")
    for corpus, result in results.items():
        for method, row in result["rows"].items():
            low, high = row["interval"]
            seconds = f"{result['train_seconds']:.0f}" if method == "fine-tuned" else ""
            table.add_row(corpus, method, f"{row['score']:.3f} {result['measure']}", f"{low:.3f} to {high:.3f}", seconds)
        table.add_section()
    Console().print(table)


def draw(results: dict):
    "The picture of the README."
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.style.use("tableau-colorblind10")
    plt.rcParams["svg.hashsalt"] = "ft_course"
    figure, axes = plt.subplots(1, len(results), figsize=(9, 2.4), layout="constrained")
    for ax, (corpus, result) in zip(axes, results.items()):
        rows = result["rows"]
        scores = [row["score"] for row in rows.values()]
        error = [[row["score"] - row["interval"][0] for row in rows.values()],
                 [row["interval"][1] - row["score"] for row in rows.values()]]
        ax.barh(list(rows), scores, xerr=error, color=["C3"] * (len(rows) - 1) + ["C0"], ecolor="C1", capsize=3)
        ax.set(title=corpus, xlabel=f"{result['measure'].replace('_', ' ')} on the test split", xlim=(0, 1))
    figure.savefig(RESULTS / "demo.svg", metadata={"Date": None})


def main():
    results = {"newswire": run("newswire", NER, "entity_f1", ner_baselines),
               "reviews": run("reviews", TextClassification, "accuracy", text_baselines)}
    show(results)
    if "--write" in sys.argv:
        write("demo", results | dict(versions=versions()))
        draw(results)


if __name__ == "__main__":
    main()
