"""Numbers in results/ are of this course: today's corpora, recipes and data; a stale one fails."""
import json
import re
import sys

import pytest
import torch
from conftest import ROOT

from ft_course.data.batching import collate
from ft_course.data.sources import load
from ft_course.peft.tasks import HEAD_LR, METHODS
from ft_course.tasks.ner import NER
from ft_course.tasks.sentiment import LONG, TextClassification
from ft_course.theory.losses import cross_entropy

sys.path.insert(0, str(ROOT / "bench"))
import comparison  # noqa: E402
import curves  # noqa: E402
import demo  # noqa: E402
import long  # noqa: E402
import overfitting  # noqa: E402
import pretrained  # noqa: E402
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


def test_starts_were_compared_by_this_plan():
    result = read["pretrained"]
    assert result["settings"] == json.loads(json.dumps(pretrained.settings()))
    assert set(result["runs"]) == {pretrained.key(recipe) for recipe in pretrained.plan(result["runs"])}
    assert set(result["simple"]) == {f"{start} {seed}" for start in ("pretrained", "random") for seed in pretrained.SEEDS}


def test_each_remedy_against_overfitting_has_its_strength_and_every_seed():
    result = read["overfitting"]
    assert result["about"] == json.loads(json.dumps(overfitting.about()))
    assert list(result["chosen"]) == ["nothing", *overfitting.REMEDIES, "together"]
    assert {name: result["best"][name] for name in overfitting.REMEDIES} == {name: overfitting.best_strength(result["runs"], name) for name in overfitting.REMEDIES}
    for name, chosen in result["chosen"].items():
        assert chosen == [overfitting.key(result["best"][name], seed) for seed in overfitting.SEEDS] and set(chosen) <= set(result["runs"])


def test_learning_curves_are_of_these_corpora_and_defaults():
    assert read["curves"]["settings"] == json.loads(json.dumps(curves.settings()))
    assert set(read["curves"]["runs"]) == set(curves.plan())


def test_the_comparison_is_whole_and_follows_its_plan():
    result, key = read["comparison"], comparison.key
    ours = dict(tasks=comparison.TASKS, swept=comparison.SWEPT, rates=comparison.RATES, head_rates=comparison.HEAD_RATES, seeds=comparison.SEEDS, options=comparison.OPTIONS)
    assert {name: result[name] for name in ours} == json.loads(json.dumps(ours))
    pairs = [(name, method) for name in comparison.TASKS for method in comparison.METHODS]
    assert result["best"] == {key(*pair): comparison.best_rate(result["runs"], *pair) for pair in pairs}
    wanted = {key(name, method, lr, 0) for name in sum(comparison.SWEPT.values(), ()) for method in comparison.METHODS for lr in comparison.RATES}
    assert set(result["runs"]) == wanted | {key(*pair, result["best"][key(*pair)], seed) for pair in pairs for seed in comparison.SEEDS}
    assert set(result["why"]) == {key(*run) for run in comparison.why_plan(result["best"])}
    assert set(result["costs"]) == set(comparison.METHODS)


def test_words_left_out_change_no_answer_and_no_gradient():
    def answers(task):
        batch = collate(task.features("train")[:8], task.tokenizer.pad_token_id)
        loss = cross_entropy(task.model(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])[0]
        loss.backward()
        table = task.model.get_input_embeddings().weight.grad
        return loss.item(), table[table.any(1)], task.model.classifier.weight.grad

    whole, fewer = (comparison.make_task("reviews", "full", 0) for _ in range(2))
    comparison.leave_out_words(fewer)
    assert len(fewer.model.get_input_embeddings().weight) < len(whole.model.get_input_embeddings().weight) / 5
    torch.testing.assert_close(answers(fewer), answers(whole))


def test_the_comparison_takes_less_than_two_hours_on_two_cores():
    result = read["comparison"]
    two_at_a_time = sum(run["seconds"] for part in ("runs", "why") for run in result[part].values())
    one_by_one = sum(cost["seconds"] for cost in result["costs"].values())
    assert two_at_a_time / 2 + one_by_one < 2 * 3600


def best_on_average(method: str) -> float:
    "The rate with the highest mean validation score over the tasks on which rates are chosen, seed 0."
    runs = read["comparison"]["runs"]
    return max(comparison.RATES, key=lambda lr: sum(runs[comparison.key(name, method, lr, 0)]["validation"] for name in sum(comparison.SWEPT.values(), ())))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_begins_at_the_rate_that_did_best(method):
    assert METHODS[method][1] == best_on_average(method)


def test_a_head_begins_at_the_rate_that_did_best_for_a_head_alone():
    assert HEAD_LR == best_on_average("frozen")


@pytest.mark.parametrize("name", comparison.TASKS)
def test_heads_of_the_comparison_have_the_rate_that_did_best_with_full_fine_tuning(name):
    assert comparison.TASKS[name]["head_lr"] == comparison.best_head_rate(read["comparison"], comparison.TASKS[name]["kind"])


def test_the_best_small_method_is_level_with_full_fine_tuning():
    result, key = read["comparison"], comparison.key
    small = [method for method in comparison.METHODS[2:] if result["costs"][method]["trained"] < 0.01 * result["costs"][method]["total"]]

    def mean(name: str, method: str) -> float:
        rate = result["best"][key(name, method)]
        return sum(result["runs"][key(name, method, rate, seed)]["test"] for seed in comparison.SEEDS) / len(comparison.SEEDS)

    for name in comparison.TASKS:
        assert max(mean(name, method) for method in small) >= mean(name, "full") - 0.005, name


def test_every_small_method_is_small():
    costs = read["comparison"]["costs"]
    shares = {method: cost["trained"] / cost["total"] for method, cost in costs.items()}
    assert shares.pop("full") == 1 and all(share < 0.02 for share in shares.values())
    assert costs["lora"]["file_bytes"] < 5e5


def test_lora_costs_no_more_than_pefts():
    result = read["bench_peft"]
    assert all(row["ratio"] <= 1 for what in ("step", "answer", "memory") for row in result[what].values())
    assert result["inject_ms"]["ours"] < 50 and result["file_bytes"]["ours"] < 5e5


def test_each_condition_of_the_starts_has_its_own_rate_and_every_seed():
    runs = read["pretrained"]["runs"].values()
    for data, start, frozen in pretrained.RATES:
        rate = pretrained.best_rate(read["pretrained"]["runs"], data, start, frozen)
        seeds = {r["seed"] for r in runs if (r["data"], r["start"], r["frozen"], r["n"], r["lr"]) == (data, start, frozen, 500, rate)}
        assert seeds == set(pretrained.SEEDS)


def test_the_lesson_on_starts_types_no_number_that_was_measured():
    cells = json.loads((ROOT / "nbs" / "5_tasks" / "53_why_pretrained.ipynb").read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert not re.findall(r"[^\n]*(?<![\w/:])\d*\.\d+[^\n]*|[^\n]*\d ?%[^\n]*", prose)


def test_the_map_is_drawn_from_todays_lessons(tmp_path):
    from ft_course.teach.front_page import draw_map

    draw_map(tmp_path / "map.svg")
    assert (tmp_path / "map.svg").read_text() == (ROOT / "results/map.svg").read_text(), "run: make readme"


def test_lessons_need_only_what_comes_before():
    from ft_course.teach.lessons import lessons
    from ft_course.teach.front_page import needs

    order = [lesson.name for lesson in lessons()]
    for lesson in lessons():
        assert all(before in order and (before[0] < lesson.name[0] or order.index(before) < order.index(lesson.name)) for before in needs(lesson))


def test_ways_to_read_long_texts_were_compared_by_this_plan():
    assert read["long"]["about"] == long.about()
    assert set(read["long"]["runs"]) == {f"{way} {seed}" for way in LONG for seed in long.SEEDS}
