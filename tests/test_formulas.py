"""The formula gate: each displayed equation has a label, a check close by, and symbols that mean one thing; the gate itself would notice."""
from collections import Counter

import pytest
import torch
from formula_gate import cells, equations, faults, notation, outcomes, strangers, symbols

from ft_course.teach.lessons import LIBRARY, lessons, lessons_folder
from ft_course.theory.formulas import check, integers, mutants, numerical_gradient, relative_error, uniform

EXECUTED = LIBRARY.parent / "build/lessons"
each_lesson = pytest.mark.parametrize("lesson", lessons(), ids=lambda lesson: lesson.name)


@each_lesson
def test_each_equation_is_checked(lesson):
    assert not faults(cells(lesson.path))


@each_lesson
def test_each_symbol_has_one_meaning(lesson):
    assert not strangers(cells(lesson.path), lesson.number, notation())


def test_labels_are_unique():
    labels = [label for lesson in lessons() for _, _, label in equations(cells(lesson.path))]
    assert len(labels) > 30 and not [label for label, times in Counter(labels).items() if times > 1]


@each_lesson
def test_each_check_ran_and_caught_mutants(lesson):
    path = EXECUTED / lesson.path.relative_to(lessons_folder())
    if not path.exists():
        pytest.skip("not executed yet: make lessons")
    ran = outcomes(path)
    assert {label for _, _, label in equations(cells(lesson.path))} <= set(ran)
    assert all(caught > 0 for caught, _ in ran.values())


def test_nearly_all_mutants_are_caught():
    found = [pair for path in EXECUTED.glob("*/*.ipynb") for pair in outcomes(path).values()]
    if not found:
        pytest.skip("not executed yet: make lessons")
    assert sum(caught for caught, _ in found) >= 0.95 * sum(of for _, of in found)


# ---- the gate notices

PROSE = {"cell_type": "markdown", "source": "The gradient is\n$$ g = p - y $$ (eq-toy)\nand so on."}
CHECK = {"cell_type": "code", "source": 'check("eq-toy", gradient, reference, (3,))'}
OTHER = {"cell_type": "code", "source": "1 + 1"}


def test_a_checked_equation_passes():
    assert faults([PROSE, OTHER, CHECK]) == []


@pytest.mark.parametrize("lesson", [[PROSE], [PROSE, OTHER, OTHER, CHECK], [CHECK, PROSE], [PROSE, {**CHECK, "source": '# check("eq-toy")'}]])
def test_a_missing_check_is_noticed(lesson):
    assert faults(lesson) == ["no check within 2 code cells: eq-toy"]


def test_a_missing_label_is_noticed():
    assert faults([{**PROSE, "source": "$$ a = b $$"}, CHECK]) == ["no label: a = b"]


def test_quoted_code_is_no_equation():
    assert faults([{**PROSE, "source": "Write `$$ a $$` or\n```\n$$ b $$\n```\n"}]) == []


def test_symbols_are_read_off():
    assert symbols(r"\hat R = \frac{1}{n} \sum_{i=1}^n \ell(\theta, x_i) \text{ in } \mathbb{R}") == {r"\hatR", "n", "i", r"\ell", r"\theta", "x", r"\mathbbR"}


def test_a_symbol_without_a_meaning_is_noticed():
    rows = [("g", {"all"}), ("p", {"41"}), ("p", {"11", "12"}), ("y", {"all"})]
    assert strangers([PROSE], "11", rows) == []
    assert strangers([PROSE], "13", rows) == ["eq-toy: p has 0 meanings in lesson 13"]
    assert strangers([PROSE], "41", rows + [("p", {"all"})]) == ["eq-toy: p has 2 meanings in lesson 41"]


# ---- the check notices

def gradient(z, y):
    return torch.sigmoid(z) - y


def slipped(z, y):
    return torch.sigmoid(z) + y


def unseen(z, y):
    return torch.sigmoid(z) - 0 * y


def opaque(z, y):
    return torch.sigmoid(z)


def loss(z, y):
    return torch.nn.functional.binary_cross_entropy_with_logits(z, y.double(), reduction="sum")


reference = numerical_gradient(loss)


def test_a_right_formula_passes(capsys):
    check("eq-toy", gradient, reference, (5,), integers(2, 5))
    assert capsys.readouterr().out.endswith("2 of 2 mutants caught\n")


@pytest.mark.parametrize("formula, inputs, message", [
    (slipped, [(5,), integers(2, 5)], "eq-toy: slipped is off by a relative error of"),
    (gradient, [(5,), torch.zeros(5)], "go unnoticed"),
    (unseen, [(5,), torch.zeros(5)], "go unnoticed"),
    (opaque, [(5,), torch.zeros(5)], "nothing to break"),
    (gradient, [torch.tensor([float("nan")]), torch.ones(1)], "relative error of inf"),
])
def test_a_check_that_says_nothing_is_refused(formula, inputs, message):
    with pytest.raises(AssertionError, match=message):
        check("eq-toy", formula, reference, *inputs)


def test_a_reason_for_a_mutant_that_is_caught_is_refused():
    with pytest.raises(AssertionError, match="noticed: {'a → b'}"):
        check("eq-toy", gradient, reference, (5,), integers(2, 5), equivalent={"a → b": "stale"})


def everything(x, W):
    a = x @ W.T
    return (a * 2.0).sum(-1) / a.shape[-1], -a ** 2


def test_the_usual_mistakes_are_made():
    made = {what for what, _ in mutants(everything)}
    assert {"x @ W.T → x.mT @ W.T", "x @ W.T → x @ W.T.mT", "W.T → W", "a * 2.0 → a", "a * 2.0 → 2.0", "-a ** 2 → a ** 2", "a ** 2 → a",
            "(a * 2.0).sum → (a * 2.0).mean", "(a * 2.0).sum(-1) / a.shape[-1] → (a * 2.0).sum(-1)"} <= made
    assert not [what for what in made if "sum(1)" in what or "shape[1]" in what]
    assert sum(what.startswith("return") for what in made) == 2


def test_each_check_draws_the_same_numbers_again(capsys):
    for _ in range(2):
        check("eq-toy", gradient, reference, uniform(-3, 3, 5), integers(2, 5))
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


@pytest.mark.parametrize("a, b, error", [(1.0, 1.0, 0), (0.0, 0.0, 0), (1.0, -1.0, 2), (torch.ones(2), torch.ones(2, 1), float("inf")),
                                         ((1.0, 2.0), (1.0,), float("inf")), (float("nan"), 1.0, float("inf"))])
def test_relative_error(a, b, error):
    assert relative_error(a, b) == error
