"""The library beside a plain, correct `transformers.Trainer`: score over seeds, tokens per second, peak memory.

    python bench/trainer.py            # both parts
    python bench/trainer.py score      # three seeds on two public sets; goes on where it stopped
    python bench/trainer.py speed      # the same sentences once, in turn, in fresh processes
"""
import json
import resource
import subprocess
import sys
import tempfile
import time
from statistics import mean, median

from common import read, versions, write

TASKS = {
    "wnut17": dict(task="ner", epochs=2, lr=5e-4, train=None, test=None),
    "pros-cons": dict(task="classify", epochs=2, lr=2e-4, train=4000, test=4000),
}
SEEDS, BATCH = (0, 1, 2), 16
SPEED_BATCH, ROUNDS, SENTENCES = 32, 3, 640


def features(name: str, train: int | None, test: int | None):
    "Label names, tokenizer, and features of a set's training and test split, the first so many of each."
    from ft_course.data.alignment import encode_sentences, encode_texts
    from ft_course.data.sources import load
    from ft_course.model.checkpoints import load_tokenizer

    data, tokenizer = load(name), load_tokenizer("minilm")
    task = TASKS[name]["task"]

    def encode(split: str, n: int | None) -> list[dict]:
        rows = data[split].shuffle(seed=0)[: n or len(data[split])]
        if task == "ner":
            return encode_sentences(tokenizer, rows["tokens"], rows["ner_tags"])
        return encode_texts(tokenizer, rows["text"], rows["label"])

    column = data["train"].features["ner_tags" if task == "ner" else "label"]
    names = (column.feature if task == "ner" else column).names
    return names, tokenizer, encode("train", train), encode("test", test)


def make_model(name: str, names: list[str], seed: int):
    "The same weights for every engine: the seed decides the head."
    import torch
    from ft_course.model.checkpoints import load_model

    torch.manual_seed(seed)
    return load_model("minilm", TASKS[name]["task"], names)


def fit_ours(name, names, tokenizer, train, seed, epochs, batch=BATCH):
    "Our loop. Returns the model and the seconds of the training alone."
    from ft_course.training.learner import Learner
    from ft_course.training.updates import TrainingConfig

    model = make_model(name, names, seed)
    config = TrainingConfig(epochs=epochs, lr=TASKS[name]["lr"], batch_size=batch, seed=seed)
    learner = Learner(model, train, config=config)
    start = time.perf_counter()
    learner.fit()
    return model, time.perf_counter() - start


def fit_trainer(name, names, tokenizer, train, seed, epochs, batch=BATCH, length=None):
    "`transformers.Trainer` with its own length grouping; `length`: pad everything to it, as classic tutorials do."
    from transformers import (DataCollatorForTokenClassification, DataCollatorWithPadding, Trainer,
                              TrainingArguments, set_seed)

    model = make_model(name, names, seed)
    model.accepts_loss_kwargs = False
    keep = ("input_ids", "attention_mask", "token_type_ids", "labels")
    rows = [{k: f[k] for k in keep} for f in train]
    padding = dict(padding="max_length", max_length=length) if length else {}
    collator = DataCollatorForTokenClassification if TASKS[name]["task"] == "ner" else DataCollatorWithPadding
    strategy = "random" if length else "group_by_length"
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, per_device_train_batch_size=batch, num_train_epochs=epochs, learning_rate=TASKS[name]["lr"],
            warmup_steps=0.1, weight_decay=0.01, max_grad_norm=1.0, optim="adamw_torch_fused", seed=seed, use_cpu=True,
            train_sampling_strategy=strategy, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True)
        set_seed(seed)
        trainer = Trainer(model, args, train_dataset=rows, data_collator=collator(tokenizer, **padding))
        start = time.perf_counter()
        trainer.train()
    return model, time.perf_counter() - start


def fit_padded(*args):
    "The classic tutorial recipe: every sentence padded to 128."
    return fit_trainer(*args, length=128)


ENGINES = {"ours": fit_ours, "trainer": fit_trainer, "padded_128": fit_padded}


def score(model, name: str, names: list[str], test: list[dict]) -> float:
    "Strict entity F1, or accuracy, of one model on the test features."
    from ft_course.training.learner import Learner
    from ft_course.training.metrics import classification_report, entity_report

    def metric(y_true, y_pred):
        y_true, y_pred = ([[names[i] for i in row] for row in rows] for rows in (y_true, y_pred))
        if TASKS[name]["task"] == "ner":
            return {"score": entity_report(y_true, y_pred)["entity_f1"]}
        return {"score": classification_report(sum(y_true, []), sum(y_pred, []))["accuracy"]}

    return Learner(model, test, metric=metric).evaluate(test)["score"]


def run_score(name: str, engine: str, seed: int) -> float:
    "Train once, score once."
    task = TASKS[name]
    names, tokenizer, train, test = features(name, task["train"], task["test"])
    model, _ = ENGINES[engine](name, names, tokenizer, train, seed, task["epochs"])
    return score(model, name, names, test)


def run_speed(name: str, engine: str, seed: int) -> dict:
    "One epoch over some sentences: real tokens per second of wall time, peak memory of this process."
    names, tokenizer, train, _ = features(name, SENTENCES, 1)
    tokens = sum(len(f["input_ids"]) for f in train)
    _, seconds = ENGINES[engine](name, names, tokenizer, train, seed, 1, SPEED_BATCH)
    return dict(tokens=tokens, seconds=seconds, tokens_per_s=tokens / seconds, peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def fresh(part: str, name: str, engine: str, seed: int):
    "One run in a process of its own."
    call = [sys.executable, __file__, "worker", part, name, engine, str(seed)]
    return json.loads(subprocess.run(call, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main_score():
    "Fill in the scores that are not measured yet, then compare the means."
    result = read("bench_score")
    runs = result.setdefault("runs", {})
    for name in TASKS:
        for seed in SEEDS:
            for engine in ("ours", "trainer"):
                key = f"{name} {engine} {seed}"
                runs[key] = runs.get(key) or fresh("score", name, engine, seed)
                print(key, round(runs[key], 4), flush=True)
                write("bench_score", result | dict(tasks=TASKS, versions=versions()))
        means = {e: mean(runs[f"{name} {e} {s}"] for s in SEEDS) for e in ("ours", "trainer")}
        result[name] = means | dict(difference_points=100 * (means["ours"] - means["trainer"]))
        print(name, result[name], flush=True)
    write("bench_score", result | dict(tasks=TASKS, versions=versions()))


def ratios(middle: dict[str, dict]) -> dict:
    "Our real tokens per second over the others', and our peak memory over Trainer's."
    speed = {engine: m["tokens"] / m["seconds"] for engine, m in middle.items()}
    return middle | dict(over_trainer=speed["ours"] / speed["trainer"], over_padded_128=speed["ours"] / speed["padded_128"],
                         memory_over_trainer=middle["ours"]["peak_mb"] / middle["trainer"]["peak_mb"])


def main_speed():
    "The engines in turn, a few rounds; the median of each, the ratios by set and over both sets together."
    result = dict(sentences=SENTENCES, batch=SPEED_BATCH, rounds=ROUNDS, versions=versions())
    for name in TASKS:
        rounds = [{engine: fresh("speed", name, engine, 0) for engine in ENGINES} for _ in range(ROUNDS)]
        result[name] = ratios({e: {k: median(r[e][k] for r in rounds) for k in rounds[0][e]} for e in ENGINES})
        print(name, json.dumps(result[name], indent=1), flush=True)
    both = {e: dict(tokens=sum(result[n][e]["tokens"] for n in TASKS), seconds=sum(result[n][e]["seconds"] for n in TASKS),
                    peak_mb=max(result[n][e]["peak_mb"] for n in TASKS)) for e in ENGINES}
    write("bench_speed", result | {"both": ratios(both)})


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        part, name, engine, seed = sys.argv[2:]
        print(json.dumps({"score": run_score, "speed": run_speed}[part](name, engine, int(seed))))
    else:
        for part in sys.argv[1:] or ["speed", "score"]:
            {"score": main_score, "speed": main_speed}[part]()
