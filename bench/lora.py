"""LoRA beside `peft`'s: time of a step and of an answer, peak memory, time to inject, size of the file.

    python bench/lora.py               # all parts, in fresh processes; writes results/bench_peft.json
    python bench/lora.py step memory   # some of them

Steps and answers of the two engines are taken in turn within one process, so that whatever else the machine does hits
both alike; the ratio is the median over pairs. Memory needs a process for each engine; both import both libraries.
(The file is not called peft.py, since a script's own folder comes first when it imports.)
"""
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import read, versions, write

R, ALPHA, BATCH, LENGTH = 8, 16, 16, 64
TARGETS = {"query, value": ("query", "value"), "all linear": ("query", "key", "value", "dense")}
PROCESSES, PAIRS, WARM = 3, 15, 3
LAYERS = 50  # with query and value: 100 injected layers


def ours(model, targets):
    "Our LoRA on a model."
    from ft_course.peft import lora

    lora.inject(model, r=R, lora_alpha=ALPHA, target_modules=targets)
    return model


def theirs(model, targets):
    "peft's LoRA on a model, on the same layers: not on the pooler, which `dense` would hit in both."
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=R, lora_alpha=ALPHA, target_modules=list(targets)))


ENGINES = {"ours": ours, "peft": theirs}


def minilm(engine: str, targets):
    "MiniLM with a new head and an engine's LoRA; the same start for both."
    import torch
    from ft_course.model.checkpoints import load_model

    torch.manual_seed(0)
    return ENGINES[engine](load_model("minilm", "classify", ["negative", "positive"]), targets)


def stepper(model):
    "A function that trains a model for one step on a fixed batch, and one that only asks it."
    import torch

    ids = torch.randint(1000, 20000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(BATCH) % 2
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3, fused=True)

    def step():
        model.train()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(input_ids=ids).logits, labels).backward()
        optimizer.step()

    @torch.no_grad()
    def answer():
        model.eval()
        model(input_ids=ids)

    return {"step": step, "answer": answer}


def clock(f) -> float:
    "Seconds that a call takes."
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def run_time(what: str, targets: str) -> dict:
    "Median seconds of each engine, and the median ratio of pairs; who goes first changes from pair to pair."
    calls = {engine: stepper(minilm(engine, TARGETS[targets]))[what] for engine in ENGINES}
    pairs = []
    for i in range(WARM + PAIRS):
        order = list(ENGINES) if i % 2 else list(ENGINES)[::-1]
        taken = {engine: clock(calls[engine]) for engine in order}
        pairs.append(taken)
    pairs = pairs[WARM:]
    return {e: median(p[e] for p in pairs) for e in ENGINES} | {"ratio": median(p["ours"] / p["peft"] for p in pairs)}


def peak() -> float:
    "The most memory that this process has held so far, in MB."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_memory(engine: str, targets: str) -> dict:
    "Peak memory of a process that takes three steps, and what the model and the steps added to the imports."
    import ft_course.peft.lora  # noqa: F401
    import ft_course.model.checkpoints  # noqa: F401
    import peft  # noqa: F401

    before = peak()
    step = stepper(minilm(engine, TARGETS[targets]))["step"]
    for _ in range(3):
        step()
    return dict(peak_mb=peak(), added_mb=peak() - before)


def run_inject(engine: str) -> float:
    "Milliseconds to put LoRA on 100 layers, the median of five models."
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=100, hidden_size=384, num_hidden_layers=LAYERS, num_attention_heads=12, intermediate_size=384)
    return median(1000 * clock(lambda: ENGINES[engine](model, TARGETS["query, value"])) for model in (BertForSequenceClassification(config) for _ in range(5)))


def run_file(engine: str) -> int:
    "Bytes of the adapter's weights at rank 8."
    from ft_course.peft.files import save_adapter

    model = minilm(engine, TARGETS["query, value"])
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, f"{folder}/a") if engine == "ours" else model.save_pretrained(f"{folder}/a")
        return Path(folder, "a", "adapter_model.safetensors").stat().st_size


def fresh(part: str, *args: str):
    "One measurement in a process of its own."
    call = [sys.executable, __file__, "worker", part, *args]
    return json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def over(rounds: list[dict]) -> dict:
    "The median of each number over processes."
    return {key: median(r[key] for r in rounds) for key in rounds[0]}


def main_time(what: str) -> dict:
    return {t: over([fresh("time", what, t) for _ in range(PROCESSES)]) for t in TARGETS}


def main_memory() -> dict:
    found = {t: {e: over([fresh("memory", e, t) for _ in range(PROCESSES)]) for e in ENGINES} for t in TARGETS}
    return {t: m | {"ratio": m["ours"]["peak_mb"] / m["peft"]["peak_mb"]} for t, m in found.items()}


PARTS = {"step": lambda: main_time("step"), "answer": lambda: main_time("answer"), "memory": main_memory,
         "inject_ms": lambda: {e: fresh("inject", e) for e in ENGINES}, "file_bytes": lambda: {e: fresh("file", e) for e in ENGINES}}
WORKERS = {"time": run_time, "memory": run_memory, "inject": run_inject, "file": run_file}

if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        print(json.dumps(WORKERS[sys.argv[2]](*sys.argv[3:])))
    else:
        for part in sys.argv[1:] or PARTS:
            setting = dict(r=R, lora_alpha=ALPHA, batch=BATCH, length=LENGTH, processes=PROCESSES, pairs=PAIRS, versions=versions())
            write("bench_peft", read("bench_peft") | setting | {part: PARTS[part]()})
            print(part, json.dumps(read("bench_peft")[part], indent=1), flush=True)
