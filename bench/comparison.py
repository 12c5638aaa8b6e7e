"""Every method of part 6 beside full fine-tuning and a frozen encoder; writes results/comparison.json and goes on where it stopped.

    python bench/comparison.py             # what is missing, two runs at a time
    python bench/comparison.py score       # a part of it: score, why or costs

Everything is cut (TASKS), so that two cores can do it: the first so many training examples of a
shuffle by the run's seed, and the first so many validation and test examples of a fixed shuffle. Each method has the learning rate
of RATES that is best on the validation examples with seed 0; the other seeds then use it. The head has a rate of its own, HEAD_LR,
the same in all runs, save where nothing else trains: there it is the rate of the sweep. `why` looks for causes of low scores: a
head at the rate of the rest, and too few updates. `costs` are of one method after the other.
"""
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from common import read, versions, write
from tqdm import tqdm

TASKS = {  # examples of each split, and passes over the training examples
    "newswire": dict(kind="ner", train=240, validation=100, test=300, epochs=4, max_length=64),
    "wnut17": dict(kind="ner", train=240, validation=150, test=300, epochs=5, max_length=64),
    "reviews": dict(kind="classify", train=200, validation=150, test=100, epochs=5, max_length=48),
    "pros-cons": dict(kind="classify", train=320, validation=200, test=500, epochs=4, max_length=48),
    "banking77": dict(kind="classify", train=539, validation=200, test=400, epochs=3, max_length=48),
}
METHODS = ("full", "frozen", "bitfit", "lora", "lora-all", "adapter", "ia3", "prefix", "prompt", "ptuning")
OPTIONS = {"lora-all": dict(r=4, lora_alpha=8, target_modules=("query", "key", "value", "intermediate.dense", "output.dense"))}  # all linear layers
RATES = (2e-4, 1e-3, 4e-3, 3e-2)
SEEDS = (0, 1, 2, 3, 4)
BATCH = 8
HEAD_LR = 3e-2
TWO_RATES = (("wnut17", "lora", 1e-3), ("wnut17", "adapter", 1e-3), ("banking77", "full", 2e-4))
LONGER = [("newswire", method, seed) for seed in SEEDS[:3] for method in ("full", "adapter")] + [("pros-cons", method, 0) for method in ("prompt", "ptuning", "prefix")]
QUIET = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


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
    from ft_course.teach.runs import TASKS as KINDS

    cut, data = TASKS[name], read_data(name)
    rows = {split: data[split].shuffle(seed=seed if split == "train" else 0) for split in ("train", "validation", "test")}
    data = type(data)({split: part.select(range(min(cut[split], len(part)))) for split, part in rows.items()})
    task = KINDS[cut["kind"]](data, max_length=cut["max_length"], seed=seed)
    torch.manual_seed(seed)
    if method == "frozen":
        task.model.requires_grad_(False)
        for head in heads(task.model):
            task.model.get_submodule(head).requires_grad_(True)
    elif method != "full":
        adapt(task, method.split("-")[0], **OPTIONS.get(method, {}))
    return task


def score(name: str, method: str, lr: float, seed: int, head_lr: float | None = HEAD_LR, passes: int = 1) -> dict:
    "Train once; validation and test score with the interval of the latter; nothing where the loss is no number any more."
    task = make_task(name, method, seed)
    learner = task.learner(epochs=passes * TASKS[name]["epochs"], lr=lr, head_lr=lr if method == "frozen" else head_lr, batch_size=BATCH)
    learner.valid = None  # scored at the end alone
    try:
        learner.fit()
    except ArithmeticError:
        return dict(validation=0.0, test=0.0, diverged=True)
    measure = "entity_f1" if TASKS[name]["kind"] == "ner" else "accuracy"
    validation, test = task.evaluate("validation"), task.evaluate("test")
    return dict(validation=validation[measure], test=test[measure], interval=test["interval"])


def cost(name: str, method: str) -> dict:
    "What a method weighs: numbers that train, file, seconds a step, peak memory of this process."
    from ft_course.model.parameters import count_parameters

    task = make_task(name, method, 0)
    trained, total = count_parameters(task.model)
    learner = task.learner(epochs=1, lr=1e-3, batch_size=BATCH)
    start = time.perf_counter()
    learner.fit()
    seconds = (time.perf_counter() - start) / learner.step
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


def key(*parts) -> str:
    return " ".join(map(str, parts))


def best_rate(runs: dict, name: str, method: str) -> float:
    "The rate with the best validation score of seed 0; the smaller one of two equals."
    return max(RATES, key=lambda lr: (runs[key(name, method, lr, 0)]["validation"], -lr))


def fill(part: str, runs: list[tuple], **also) -> dict:
    "Make the runs that a part of the result lacks, two at a time on a thread each, and write each down as it ends."
    os.environ |= QUIET
    result = read("comparison") | also
    done = result.setdefault(part, {})
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(score, *run): key(*run) for run in runs if key(*run) not in done}
        for future in tqdm(as_completed(futures), total=len(futures)):
            done[futures[future]] = future.result()
            write("comparison", result)
    return result


def main_score() -> None:
    "First the rates, with seed 0; then the other seeds with the best of them."
    pairs = [(name, method) for name in TASKS for method in METHODS]
    result = fill("runs", [(*pair, lr, 0) for pair in pairs for lr in RATES], tasks=TASKS, rates=RATES, head_lr=HEAD_LR, seeds=SEEDS, batch=BATCH, options=OPTIONS, versions=versions())
    best = {key(*pair): best_rate(result["runs"], *pair) for pair in pairs}
    fill("runs", [(*pair, best[key(*pair)], seed) for seed in SEEDS[1:] for pair in pairs], best=best)


def why_plan(best: dict[str, float]) -> list[tuple]:
    "One rate for head and rest, and two; four times the passes, for prompts and for names."
    two_rates = [(name, method, lr, seed, head_lr) for name, method, lr in TWO_RATES for seed in SEEDS[:3] for head_lr in (None, HEAD_LR)]
    return two_rates + [(name, method, best[key(name, method)], seed, HEAD_LR, 4) for name, method, seed in LONGER]


def main_why() -> None:
    fill("why", why_plan(read("comparison")["best"]))


def main_costs() -> None:
    "One after the other, since seconds count."
    result = read("comparison")
    result["costs"] = {method: fresh_cost("pros-cons", method) for method in tqdm(METHODS)}
    write("comparison", result)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        print(json.dumps(cost(*sys.argv[2:])))
    else:
        for part in sys.argv[1:] or ["score", "why", "costs"]:
            {"score": main_score, "why": main_why, "costs": main_costs}[part]()
