"""The checker of published tables: real tables pass whatever the rounding, and slips are found."""
import numpy as np
import pytest

from ft_course.training.metrics import averages, prf
from ft_course.training.tables import check_table

PUBLISHED = {"B-LOC": (.926, .906, .916, 1668), "I-LOC": (.900, .805, .850, 257), "B-MISC": (.875, .856, .865, 702),
             "I-MISC": (.838, .782, .809, 216), "B-ORG": (.914, .898, .906, 1661), "I-ORG": (.911, .894, .902, 835),
             "B-PER": (.964, .957, .960, 1617), "I-PER": (.983, .980, .982, 1156), "O": (.993, .995, .994, 38323)}
STATED = {"micro": (.973, .973, .973), "macro": (.923, .897, .909), "weighted": (.973, .973, .973)}


def printed(counts, digits):
    "A true table of counts as a paper would print it."
    scores = prf(counts).round(digits).tolist()
    rows = {f"class {i}": (*row, int(true)) for i, (row, true) in enumerate(zip(scores, counts[:, 2]))}
    means = {name: tuple(np.round([row["precision"], row["recall"], row["f1"]], digits))
             for name, row in averages(counts).items()}
    return rows, means


def failing(*args, **options):
    return {(found["row"], found["column"]) for found in check_table(*args, **options) if not found["holds"]}


@pytest.mark.parametrize("digits", [2, 3, 4])
def test_true_tables_hold(digits):
    rng = np.random.default_rng(digits)
    for _ in range(200):
        confusion = rng.integers(0, rng.choice([3, 30, 300]), size=(4, 4)) + np.diag(rng.integers(0, 300, size=4))
        confusion[:, 0] += 1
        counts = np.stack([confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)], axis=1)
        assert not failing(*printed(counts, digits), digits=digits, single_label=True), counts


def test_the_published_table_contradicts_itself():
    scores = {(name, column) for name in ("micro", "weighted") for column in ("precision", "recall", "f1")}
    rows = {("I-ORG", "recall"), ("I-MISC", "precision"), ("I-PER", "f1")}
    assert failing(PUBLISHED, STATED, single_label=True) == scores | rows | {("all", "predicted")}


def test_the_possible_range_is_told():
    found = {(f["row"], f["column"]): f for f in check_table(PUBLISHED, STATED, single_label=True)}
    assert found["micro", "recall"]["possible"] == pytest.approx([.9802, .9812], abs=5e-5)
    assert found["all", "predicted"]["possible"] == pytest.approx([46312, 46407], abs=0.5)
    assert found["I-ORG", "recall"]["possible"] == pytest.approx([746 / 835, 747 / 835])


def test_a_class_that_is_never_found_holds():
    assert not failing(*printed(np.array([[0, 0, 7], [5, 12, 5], [0, 3, 4]]), 3))


def test_a_row_without_support_is_refused():
    with pytest.raises(ValueError, match="support of at least 1, not 0"):
        check_table({"a": (0.0, 0.0, 0.0, 0)}, {})
