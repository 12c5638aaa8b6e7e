"""Every method of part 6 beside full fine-tuning and a frozen encoder; writes results/comparison.json and goes on where it stopped.

    python bench/comparison.py             # what is missing, two runs at a time
    python bench/comparison.py score       # a part of it: score, why or costs

Everything is cut (TASKS), so that two cores can do it: the first so many training examples of a shuffle by the run's seed, and the
first so many validation and test examples of a fixed shuffle. For each kind of task, rates are chosen on some of the tasks (SWEPT), by
the mean score on their validation examples, with seed 0: for each method the best of RATES, and for the head, the same for all methods,
the one of HEAD_RATES that is best for full fine-tuning. Where nothing but the head trains, its rate is that of the sweep. The other
tasks of a kind use the same rates.

`why` looks for causes of low scores: heads at other rates, and too few updates. `costs` are of one method after the other. In the
scores, full fine-tuning leaves out the words that no text has: their rows would get no gradient, and take time all the same. Each run
keeps its seconds, so the file says how long all of it takes. A second process on the same file is refused: each would write over the
other's runs.
"""
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
from common import QUIET, RESULTS, fill, read, versions, write
from filelock import FileLock, Timeout
from tqdm import tqdm

TASKS = {  # examples of each split, passes over the training examples, batches (small where many updates are wanted), the head's rate
    "newswire": dict(kind="ner", train=60, validation=120, test=120, epochs=12, batch=2, head_lr=2e-3, max_length=64),
    "wnut17": dict(kind="ner", train=60, validation=150, test=300, epochs=12, batch=2, head_lr=2e-3, max_length=64),
    "reviews": dict(kind="classify", train=160, validation=150, test=100, epochs=4, batch=4, head_lr=3e-2, max_length=48),
    "pros-cons": dict(kind="classify", train=240, validation=200, test=400, epochs=4, batch=4, head_lr=3e-2, max_length=48),
    "banking77": dict(kind="classify", train=154, validation=200, test=400, epochs=10, batch=4, head_lr=3e-2, max_length=48),
}
SWEPT = {"ner": ("newswire",), "classify": ("pros-cons", "banking77")}  # kind -> the tasks on which its rates are chosen: few classes, many
METHODS = ("full", "frozen", "bitfit", "lora", "lora-all", "adapter", "ia3", "prefix", "prompt", "ptuning")
EVERYWHERE = ("query", "key", "value", "intermediate.dense", "output.dense")  # all linear layers
OPTIONS = {"lora-all": dict(method="lora", r=4, lora_alpha=16, bias="all", target_modules=EVERYWHERE),
           **{method: dict(method=method, num_virtual_tokens=8, as_peft=False) for method in ("prefix", "prompt", "ptuning")}}  # the text keeps its places
RATES = (2e-4, 1e-3, 3e-2)
SEEDS = (0, 1, 2, 3, 4)
HEAD_RATES = (2e-4, 2e-3, 3e-2)
SHORTER = [("newswire", method, seed, 4) for seed in SEEDS[:3] for method in ("full", "lora-all", "adapter")]  # passes
LOWER = [("wnut17", "full", seed, 2e-4) for seed in SEEDS[1:]] + [("wnut17", "lora-all", seed, 2e-4) for seed in SEEDS]  # the head's rate
LONGER = [("pros-cons", method, 0, 16) for method in ("prompt", "ptuning", "prefix")]


@cache
def read_data(name: str):
    "A set, read once in a process."
    from ft_course.data.sources import load

    return load(name, TASKS[name]["kind"])


def make_task(name: str, method: str, seed: int):
    "A task with its data cut and its method's parts in place."
    import torch
    from ft_course.model.parameters import heads
    from ft_course.peft.tasks import adapt
    from ft_course.theory.kinds import KINDS, imported

    cut, data = TASKS[name], read_data(name)
    rows = {split: data[split].shuffle(seed=seed if split == "train" else 0) for split in ("train", "validation", "test")}
    data = type(data)({split: part.select(range(min(cut[split], len(part)))) for split, part in rows.items()})
    task = imported(KINDS[cut["kind"]].task)(data, max_length=cut["max_length"], seed=seed)
    torch.manual_seed(seed)
    if method == "frozen":
        task.model.requires_grad_(False)
        for head in heads(task.model):
            task.model.get_submodule(head).requires_grad_(True)
    elif method != "full":
        adapt(task, **OPTIONS.get(method, dict(method=method)))
    return task


def leave_out_words(task) -> None:
    "Keep only the rows of the table of words that texts ask for: the same answers and gradients, in less time."
    import torch

    from ft_course.data.columns import narrow

    columns = [task.features(split).columns["input_ids"] for split in ("train", "validation", "test")]
    used = np.unique(np.concatenate([[0], *(column.values for column in columns)]))  # 0 is padding
    rows = task.model.get_input_embeddings().weight.detach()[used]
    task.model.set_input_embeddings(torch.nn.Embedding.from_pretrained(rows, freeze=False, padding_idx=0))
    for column in columns:
        column.values = narrow(np.searchsorted(used, column.values))


def score(name: str, method: str, lr: float, seed: int, head_lr: float | None = None, epochs: int | None = None) -> dict:
    "Train once; validation and test score with the interval of the latter; nothing where the loss is no number any more."
    task, cut = make_task(name, method, seed), TASKS[name]
    if method == "full":
        leave_out_words(task)
    learner = task.learner(epochs=epochs or cut["epochs"], lr=lr, head_lr=lr if method == "frozen" else head_lr or cut["head_lr"], batch_size=cut["batch"])
    learner.valid = None  # scored at the end alone
    try:
        learner.fit()
    except ArithmeticError:
        return dict(validation=0.0, test=0.0, diverged=True)
    measure = "entity_f1" if cut["kind"] == "ner" else "accuracy"
    validation, test = task.evaluate("validation"), task.evaluate("test")
    return dict(validation=validation[measure], test=test[measure], interval=test["interval"])


def cost(name: str, method: str) -> dict:
    "What a method weighs: numbers that train, file, seconds a step, peak memory of this process."
    from ft_course.model.parameters import count_parameters

    task = make_task(name, method, 0)
    trained, total = count_parameters(task.model)
    learner = task.learner(epochs=1, lr=1e-3, batch_size=TASKS[name]["batch"])
    start = time.perf_counter()
    learner.fit()
    seconds = (time.perf_counter() - start) / learner.updates
    with tempfile.TemporaryDirectory() as folder:
        task.save(Path(folder) / "run")
        size = max(path.stat().st_size for path in (Path(folder) / "run").glob("*.safetensors"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return dict(trained=trained, total=total, file_bytes=size, step_seconds=seconds, peak_mb=peak)


def fresh_cost(name: str, method: str) -> dict:
    "`cost` in a process of its own, on one thread."
    command = [sys.executable, __file__, "worker", name, method]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | QUIET)
    return json.loads(done.stdout.splitlines()[-1])


def timed(function, *args) -> dict:
    "What a function returns, and the seconds that it took."
    start = time.perf_counter()
    return function(*args) | dict(seconds=round(time.perf_counter() - start, 1))


def key(*parts) -> str:
    return " ".join(map(str, parts))


def best_rate(runs: dict, name: str, method: str) -> float:
    "The rate with the best mean validation score on the tasks where rates of this kind are chosen; the smaller one of two equals."
    return max(RATES, key=lambda lr: sum(runs[key(swept, method, lr, 0)]["validation"] for swept in SWEPT[TASKS[name]["kind"]]))


def make(part: str, runs: list[tuple], **also) -> dict:
    "Make the runs that a part of the result lacks, and write each down as it ends."
    result = read("comparison") | also
    fill(result.setdefault(part, {}), {key(*run): (score, *run) for run in runs}, timed, lambda: write("comparison", result))
    return result


def main_score() -> None:
    "First the rates, then all seeds with the best of them."
    pairs = [(name, method) for name in TASKS for method in METHODS]
    about = dict(tasks=TASKS, swept=SWEPT, rates=RATES, head_rates=HEAD_RATES, seeds=SEEDS, options=OPTIONS, versions=versions())
    result = make("runs", [(name, method, lr, 0) for name in sum(SWEPT.values(), ()) for method in METHODS for lr in RATES], **about)
    best = {key(*pair): best_rate(result["runs"], *pair) for pair in pairs}
    make("runs", [(*pair, best[key(*pair)], seed) for pair in pairs for seed in SEEDS], best=best)


def best_head_rate(result: dict, kind: str) -> float:
    "The head's rate with which full fine-tuning has the best mean validation score, seed 0, on the tasks where rates of a kind are chosen."
    def validation(name: str, lr: float) -> float:
        run = key(name, "full", result["best"][key(name, "full")], 0)
        return (result["runs"][run] if lr == TASKS[name]["head_lr"] else result["why"][key(run, lr)])["validation"]

    return max(HEAD_RATES, key=lambda lr: sum(validation(name, lr) for name in SWEPT[kind]))


def why_plan(best: dict[str, float]) -> list[tuple]:
    "More passes for prompts, fewer for names; other rates for the head."
    passes = [(name, method, best[key(name, method)], seed, TASKS[name]["head_lr"], epochs) for name, method, seed, epochs in LONGER + SHORTER]
    heads = [(name, "full", 0, lr) for name in TASKS for lr in HEAD_RATES if lr != TASKS[name]["head_lr"]]
    return passes + [(name, method, best[key(name, method)], seed, lr) for name, method, seed, lr in heads + LOWER]


def main_why() -> None:
    make("why", why_plan(read("comparison")["best"]))


def main_costs() -> None:
    "One after the other, since seconds count."
    result = read("comparison")
    result["costs"] = {method: timed(fresh_cost, "pros-cons", method) for method in tqdm(METHODS)}
    write("comparison", result)


def main(parts: list[str]) -> None:
    "Make the runs of some parts, alone with the file."
    try:
        with FileLock(RESULTS / "comparison.lock", timeout=0):
            for part in parts:
                {"score": main_score, "why": main_why, "costs": main_costs}[part]()
    except Timeout:
        sys.exit("results/comparison.json is being made by another process: wait for it")


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        print(json.dumps(cost(*sys.argv[2:])))
    else:
        main(sys.argv[1:] or ["score", "why", "costs"])
