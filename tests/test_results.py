"""Numbers in results/ are of this course: today's corpora, recipes and data; a stale one fails."""
import json
import sys

import pytest
from conftest import ROOT

from ft_course.data.sources import load
from ft_course.tasks.ner import NER
from ft_course.tasks.sentiment import TextClassification

sys.path.insert(0, str(ROOT / "bench"))
import demo  # noqa: E402
import runs  # noqa: E402
import trainer  # noqa: E402

read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "results").glob("*.json")}


@pytest.mark.parametrize("corpus, task", [("newswire", NER), ("reviews", TextClassification)])
def test_the_demo_was_run_on_this_corpus_with_these_defaults(corpus, task):
    assert read["demo"][corpus]["corpus_sha256"] == demo.corpus_hash(corpus)
    assert read["demo"][corpus]["config"] == task.defaults


def test_fine_tuning_beats_every_baseline_of_the_demo():
    for corpus in ("newswire", "reviews"):
        rows = read["demo"][corpus]["rows"]
        tuned = rows.pop("fine-tuned")
        assert all(tuned["interval"][0] > row["score"] for row in rows.values())


@pytest.mark.parametrize("name", runs.RECIPES)
def test_runs_follow_the_recipes(name):
    assert read["runs"][name]["recipe"] == runs.RECIPES[name]


@pytest.mark.parametrize("name", runs.RECIPES)
def test_runs_were_made_on_these_splits(name, public_data):
    recipe = runs.RECIPES[name]
    data = runs.subset(load(name, recipe["task"]), recipe.get("train"))
    assert read["runs"][name]["sizes"] == {split: len(data[split]) for split in data}


def test_scores_beside_trainer_are_of_these_settings():
    assert read["bench_score"]["tasks"] == trainer.TASKS
    assert set(read["bench_score"]["runs"]) == {f"{name} {engine} {seed}" for name in trainer.TASKS
                                                for engine in ("ours", "trainer") for seed in trainer.SEEDS}
