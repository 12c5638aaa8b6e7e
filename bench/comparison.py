"""Every method of part 6 beside full fine-tuning and a frozen encoder; writes results/comparison.json and goes on where it stopped.

    python bench/comparison.py             # what is missing, two runs at a time
    python bench/comparison.py score       # a part of it: score, why or costs

Everything is cut (TASKS), so that two cores can do it: the first so many training examples of a
shuffle by the run's seed, and the first so many validation and test examples of a fixed shuffle. On the tasks of a kind each method has
the learning rate of RATES that is best on the validation examples with seed 0; the other seeds then use it. The head has a rate of its
own, the same for all methods: the one of HEAD_RATES that is best for full fine-tuning on the tasks of a kind. Where nothing but the
head trains, its rate is that of the sweep. `why` looks for causes of low scores: heads at other rates, and too few updates. `costs`
are of one method after the other. Each run keeps its seconds, so the file says how long all of it takes. A second process on the same
file is refused: each would write over the other's runs.
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

from common import RESULTS, read, versions, write
from filelock import FileLock, Timeout
from tqdm import tqdm

TASKS = {  # examples of each split, passes over the training examples, batches (small where many updates are wanted), the head's rate
    "newswire": dict(kind="ner", train=80, validation=120, test=120, epochs=20, batch=4, head_lr=2e-3, max_length=64),
    "wnut17": dict(kind="ner", train=80, validation=200, test=400, epochs=18, batch=4, head_lr=2e-3, max_length=64),
    "reviews": dict(kind="classify", train=200, validation=150, test=100, epochs=5, batch=8, head_lr=3e-2, max_length=48),
    "pros-cons": dict(kind="classify", train=320, validation=200, test=500, epochs=4, batch=8, head_lr=3e-2, max_length=48),
    "banking77": dict(kind="classify", train=154, validation=200, test=400, epochs=10, batch=4, head_lr=3e-2, max_length=48),
}
METHODS = ("full", "frozen", "bitfit", "lora", "lora-all", "adapter", "ia3", "prefix", "prompt", "ptuning")
EVERYWHERE = ("query", "key", "value", "intermediate.dense", "output.dense")  # all linear layers
OPTIONS = {"lora-all": dict(method="lora", r=4, lora_alpha=16, bias="all", target_modules=EVERYWHERE),
           **{method: dict(method=method, num_virtual_tokens=8) for method in ("prefix", "prompt", "ptuning")}}  # as in their lessons
RATES = (2e-4, 1e-3, 3e-2)
SEEDS = (0, 1, 2, 3, 4)
HEAD_RATES = (2e-4, 2e-3, 3e-2)
SHORTER = [("newswire", method, seed, 4) for seed in SEEDS[:3] for method in ("full", "lora-all", "adapter")]  # passes
LONGER = [("pros-cons", method, 0, 16) for method in ("prompt", "ptuning", "prefix")]
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
        adapt(task, **OPTIONS.get(method, dict(method=method)))
    return task


def score(name: str, method: str, lr: float, seed: int, head_lr: float | None = None, epochs: int | None = None) -> dict:
    "Train once; validation and test score with the interval of the latter; nothing where the loss is no number any more."
    task, cut = make_task(name, method, seed), TASKS[name]
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


def timed(function, *args) -> dict:
    "What a function returns, and the seconds that it took."
    start = time.perf_counter()
    return function(*args) | dict(seconds=round(time.perf_counter() - start, 1))


def key(*parts) -> str:
    return " ".join(map(str, parts))


def tasks_like(name: str) -> list[str]:
    "The tasks of the same kind as one, that one among them."
    return [other for other in TASKS if TASKS[other]["kind"] == TASKS[name]["kind"]]


def best_rate(runs: dict, name: str, method: str) -> float:
    "The rate with the best mean validation score, seed 0, on the tasks of a kind; the smaller one of two equals."
    return max(RATES, key=lambda lr: sum(runs[key(like, method, lr, 0)]["validation"] for like in tasks_like(name)))


def fill(part: str, runs: list[tuple], **also) -> dict:
    "Make the runs that a part of the result lacks, two at a time on a thread each, and write each down as it ends."
    os.environ |= QUIET
    result = read("comparison") | also
    done = result.setdefault(part, {})
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(timed, score, *run): key(*run) for run in runs if key(*run) not in done}
        for future in tqdm(as_completed(futures), total=len(futures)):
            done[futures[future]] = future.result()
            write("comparison", result)
    return result


def main_score() -> None:
    "First the rates, with seed 0; then the other seeds with the best of them."
    pairs = [(name, method) for name in TASKS for method in METHODS]
    result = fill("runs", [(*pair, lr, 0) for pair in pairs for lr in RATES], tasks=TASKS, rates=RATES, head_rates=HEAD_RATES, seeds=SEEDS, options=OPTIONS, versions=versions())
    best = {key(*pair): best_rate(result["runs"], *pair) for pair in pairs}
    fill("runs", [(*pair, best[key(*pair)], seed) for pair in pairs for seed in SEEDS[1:]], best=best)


def best_head_rate(result: dict, name: str) -> float:
    "The head's rate with which full fine-tuning has the best mean validation score, seed 0, on the tasks of a kind."
    def validation(like: str, lr: float) -> float:
        run = key(like, "full", result["best"][key(like, "full")], 0)
        return (result["runs"][run] if lr == TASKS[like]["head_lr"] else result["why"][key(run, lr)])["validation"]

    return max(HEAD_RATES, key=lambda lr: sum(validation(like, lr) for like in tasks_like(name)))


def why_plan(best: dict[str, float]) -> list[tuple]:
    "Other rates for the head; fewer passes for names, more for prompts."
    heads = [(name, "full", best[key(name, "full")], 0, lr) for name in TASKS for lr in HEAD_RATES if lr != TASKS[name]["head_lr"]]
    return [(name, method, best[key(name, method)], seed, TASKS[name]["head_lr"], epochs) for name, method, seed, epochs in LONGER + SHORTER] + heads


def main_why() -> None:
    fill("why", why_plan(read("comparison")["best"]))


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
