"""What the measurements share: the data as features, and result files that keep what is already measured."""
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
QUIET = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
os.environ.setdefault("FT_COURSE_DATA", str(ROOT.parent / "shared" / "data"))
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def read(name: str) -> dict:
    "A result file, {} when there is none yet."
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(name: str, result: dict):
    "Replace a result file in one step."
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.with_suffix(".tmp").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".tmp").replace(path)


def fill(done: dict, wanted: dict[str, tuple], run: Callable, save: Callable[[], None]) -> None:
    "Make the runs (a name, arguments of `run`) that are not done, two at a time on a thread each, and save as each ends."
    os.environ |= QUIET
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run, *args): name for name, args in wanted.items() if name not in done}
        for future in tqdm(as_completed(futures), total=len(futures)):
            done[futures[future]] = future.result()
            save()


def versions() -> dict[str, str]:
    "Of the libraries that a number depends on."
    return {name: version(name) for name in ("torch", "transformers", "ft_course")}


def text_baselines(data) -> dict[str, dict]:
    "Constant answer and bag of words, scored on the test split."
    from ft_course.training.baselines import bag_of_words, most_frequent
    from ft_course.training.metrics import classification_report

    name = data["train"].features["label"].int2str
    labels = {split: name(list(data[split]["label"])) for split in ("train", "test")}
    bag = bag_of_words(list(data["train"]["text"]), labels["train"])
    answers = {"most frequent label": [most_frequent(labels["train"])] * len(labels["test"]),
               "bag of words": list(bag.predict(list(data["test"]["text"])))}
    return {method: classification_report(labels["test"], y) for method, y in answers.items()}


def ner_baselines(data) -> dict[str, dict]:
    "All outside, and each word's most frequent tag, scored on the test split."
    from ft_course.training.baselines import tag_table
    from ft_course.training.metrics import entity_report

    names = data["train"].features["ner_tags"].feature.names
    tags = {split: [[names[i] for i in ids] for ids in data[split]["ner_tags"]] for split in ("train", "test")}
    table = tag_table(list(data["train"]["tokens"]), tags["train"])
    answers = {"most frequent label": [["O"] * len(row) for row in tags["test"]],
               "dictionary": [[table.get(word, "O") for word in words] for words in data["test"]["tokens"]]}
    return {method: entity_report(tags["test"], y) for method, y in answers.items()}
