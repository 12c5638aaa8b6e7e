"The bundled corpora are what their cards say: sizes, balance, legal tags, no copies across splits, no templates, not trivial."
import json
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest

from ft_course.data.sources import load
from ft_course.data.tags import entity_types, flatten, illegal_transitions
from ft_course.training.baselines import bag_of_words, most_frequent, tag_table
from ft_course.training.metrics import classification_report, entity_report

SPLITS = ("train", "validation", "test")
FOLDER = files("ft_course") / "corpora"
DEMO = Path(__file__).parent.parent / "results" / "demo.json"


@pytest.fixture(scope="module")
def reviews():
    return {split: [json.loads(line) for line in (FOLDER / "reviews" / f"{split}.jsonl").read_text("utf-8").splitlines()] for split in SPLITS}


@pytest.fixture(scope="module")
def newswire():
    "Straight from the files, so that no repair of `load` hides a fault."
    def sentences(split):
        text = (FOLDER / "newswire" / f"{split}.conll").read_text("utf-8")
        return [[tuple(line.split("\t")) for line in block.splitlines()] for block in text.strip().split("\n\n")]
    return {split: sentences(split) for split in SPLITS}


@pytest.fixture(scope="module")
def texts(reviews, newswire):
    "split -> texts, for each corpus"
    return {"reviews": {s: [row["text"] for row in rows] for s, rows in reviews.items()},
            "newswire": {s: [" ".join(word for word, _ in sentence) for sentence in rows] for s, rows in newswire.items()}}


def demo_score(corpus: str) -> float:
    "What the fine-tuned model scored when `make demo` last ran."
    if not DEMO.exists():
        pytest.skip("no results/demo.json: run make demo")
    return json.loads(DEMO.read_text("utf-8"))[corpus]["rows"]["fine-tuned"]["score"]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def shingles(text: str, n: int) -> set[tuple[str, ...]]:
    "All runs of n words; a shorter text is one run."
    found = words(text)
    return {tuple(found[i:i + n]) for i in range(max(1, len(found) - n + 1))}


def closest(texts: list[str], others: list[str], n: int) -> tuple[float, str, str]:
    "The two texts, one of each list, that share the largest part of their shingles (Jaccard)."
    where, best = {}, (0.0, "", "")
    for i, text in enumerate(others):
        for shingle in shingles(text, n):
            where.setdefault(shingle, []).append(i)
    sizes = [len(shingles(text, n)) for text in others]
    for text in texts:
        mine = shingles(text, n)
        for i, shared in Counter(i for shingle in mine for i in where.get(shingle, ())).items():
            best = max(best, (shared / (len(mine) + sizes[i] - shared), text, others[i]))
    return best


def test_reviews_have_their_sizes_and_halves(reviews):
    for split, size in zip(SPLITS, (700, 200, 100)):
        assert Counter(row["label"] for row in reviews[split]) == {"positive": size // 2, "negative": size // 2}, split
        assert all(set(row) == {"text", "label"} and row["text"] == row["text"].strip() for row in reviews[split])


def test_newswire_is_large_enough_and_split_as_its_card_says(newswire):
    sizes = [len(newswire[split]) for split in SPLITS]
    assert sum(sizes) >= 600 and sizes == [560, 120, 120]


def test_newswire_tags_are_legal_iob2(newswire):
    for split in SPLITS:
        assert all(len(pair) == 2 and pair[0] == pair[0].strip() != "" for sentence in newswire[split] for pair in sentence)
        tags = [[tag for _, tag in sentence] for sentence in newswire[split]]
        assert len(illegal_transitions(*flatten(tags))) == 0, split


def test_every_split_has_every_type_begun_and_continued(newswire):
    for split in SPLITS:
        found = Counter(tag for sentence in newswire[split] for _, tag in sentence)
        assert entity_types(list(found)) == ["LOC", "MISC", "ORG", "PER"]
        assert all(found[f"{prefix}-{kind}"] >= 3 for kind in ("LOC", "MISC", "ORG", "PER") for prefix in "BI"), split


@pytest.mark.parametrize("name", ["reviews", "newswire"])
def test_nothing_is_there_twice(texts, name):
    every = [re.sub(r"\W+", "", text.lower()) for split in SPLITS for text in texts[name][split]]
    assert [text for text, n in Counter(every).items() if n > 1] == []


@pytest.mark.parametrize("name", ["reviews", "newswire"])
@pytest.mark.parametrize("n, most", [(5, 0.1), (3, 0.2)])
def test_no_near_duplicates_across_splits(texts, name, n, most):
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        overlap, text, twin = closest(texts[name][other], texts[name][one], n)
        assert overlap <= most, f"{one} and {other} share {overlap:.2f} of their runs of {n} words:\n{text}\n{twin}"


def test_the_overlap_measure_sees_a_copy_with_one_word_changed():
    one = "the quiet man in the grey coat bought two tickets and left before the second act"
    assert closest([one.replace("two", "three")], ["something else entirely here now", one], 3)[0] > 0.5


@pytest.mark.parametrize("name, share", [("reviews", 0.6), ("newswire", 0.85)])
def test_no_template(texts, name, share):
    "Texts start in many ways, and no run of four words comes back again and again."
    every = [text for split in SPLITS for text in texts[name][split]]
    openings = Counter(tuple(words(text)[:2]) for text in every)
    assert len(openings) >= share * len(every) and openings.most_common(1)[0][1] <= 0.03 * len(every)
    runs = Counter(shingle for text in every for shingle in shingles(text, 4))
    assert runs.most_common(1)[0][1] <= 0.01 * len(every), runs.most_common(3)


@pytest.mark.parametrize("name", ["reviews", "newswire"])
def test_lengths_vary(texts, name):
    lengths = sorted(len(words(text)) for split in SPLITS for text in texts[name][split])
    low, high = lengths[len(lengths) // 20], lengths[-len(lengths) // 20]
    assert high >= 2.5 * low and lengths[0] <= 8


@pytest.mark.parametrize("name", ["reviews", "newswire"])
def test_load_changes_nothing(name):
    data = load(name)
    account = data["train"].info.description
    assert not any(word in account for word in ("left out", "rewritten", "repaired", "repeat", "in train as well")) and list(data) == list(SPLITS)


@pytest.mark.parametrize("name", ["reviews", "newswire"])
def test_cards_say_what_counts(name):
    card = (FOLDER / name / "README.md").read_text("utf-8")
    for row in ("What", "Task", "Splits", "Format", "Made", "Difficulty", "Not for", "Licence | CC0 1.0"):
        assert f"| {row}" in card, row


def bag_accuracy(reviews) -> float:
    train, test = ([(row["text"], row["label"]) for row in reviews[split]] for split in ("train", "test"))
    bag = bag_of_words(*map(list, zip(*train)))
    return classification_report([label for _, label in test], list(bag.predict([text for text, _ in test])))["accuracy"]


def table_f1(newswire) -> float:
    columns = {split: [list(map(list, zip(*sentence))) for sentence in newswire[split]] for split in ("train", "test")}
    table = tag_table(*zip(*columns["train"]))
    return entity_report([tags for _, tags in columns["test"]], [[table.get(w, "O") for w in ws] for ws, _ in columns["test"]])["entity_f1"]


def test_counting_words_is_not_enough_for_reviews(reviews):
    assert 0.5 < bag_accuracy(reviews) < 0.72


def test_looking_words_up_is_not_enough_for_newswire(newswire):
    assert 0.05 < table_f1(newswire) < 0.4


def test_the_constant_answer_is_no_better_than_a_coin(reviews):
    constant = most_frequent([row["label"] for row in reviews["train"]])
    assert sum(row["label"] == constant for row in reviews["test"]) == 50


def test_the_fine_tuned_model_stands_well_above_a_bag_of_words(reviews):
    assert demo_score("reviews") > bag_accuracy(reviews) + 0.08


def test_the_fine_tuned_model_stands_well_above_a_dictionary(newswire):
    assert demo_score("newswire") > table_f1(newswire) + 0.3
