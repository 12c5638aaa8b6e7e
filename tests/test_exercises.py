"""Exercises of the lessons: the solution passes, the stub is not attempted, and every listed mistake is called by its own name."""
import ast
import re
from dataclasses import replace
from functools import cache
from importlib import import_module

import numpy as np
import pytest
import torch
from test_notebooks import cells

from ft_course.start.practice import Exercise, difference, inputs, judge, unnoticed
from ft_course.teach.editions import is_checker, without_solution
from ft_course.teach.lessons import lessons


def only_imports(source: str) -> bool:
    return all(isinstance(line, ast.Import | ast.ImportFrom) for line in ast.parse(source).body)


def code(lesson) -> list[str]:
    return cells(lesson.path, "code")


@cache
def namespace(lesson) -> dict:
    "What checkers and solutions may use: the lesson's imports, its exports, other checkers."
    names = vars(import_module(f"ft_course.{lesson.module}")).copy() if lesson.module else {}
    for source in code(lesson):
        if only_imports(source) or is_checker(source):
            exec(compile(source, lesson.name, "exec"), names)
    return names


def exercises(lesson) -> dict[str, Exercise]:
    found = re.findall(r"^(ex_\w+) = Exercise\(", "\n".join(filter(is_checker, code(lesson))), re.M)
    return {name: namespace(lesson)[name] for name in found}


def attempt(lesson, name: str, solved: bool):
    "The learner's function of an exercise, with its solution or as a stub."
    source = next(s for s in code(lesson) if f"def {name}(" in s and "### BEGIN SOLUTION" in s)
    names = dict(namespace(lesson))
    exec(source if solved else without_solution(source), names)
    return names[name]


WITH = [lesson for lesson in lessons() if any(map(is_checker, code(lesson)))]
CASES = [(lesson, name) for lesson in WITH for name in re.findall(r"^ex_(\w+) = Exercise\(", "\n".join(filter(is_checker, code(lesson))), re.M)]
each = pytest.mark.parametrize("lesson, name", CASES, ids=lambda x: getattr(x, "name", x))


@each
def test_solution_passes_and_stub_is_not_attempted(lesson, name):
    exercise = exercises(lesson)[f"ex_{name}"]
    assert exercise.name == name
    for seed in range(2):
        assert judge(exercise, attempt(lesson, name, True), seed).state == "passed"
    assert judge(exercise, attempt(lesson, name, False)).state == "not attempted"


@each
def test_mistakes_fail_each_by_its_own_name(lesson, name):
    exercise = exercises(lesson)[f"ex_{name}"]
    assert len(exercise.mistakes) >= 5 and len(exercise.hints) >= 2
    assert unnoticed(exercise) == []


RETURNS = [None, ..., "text", 3, 2.5, True, [], {}, [None], np.ones(3), np.float64(2), torch.ones(0), torch.ones(7, 5, dtype=torch.int8), float("nan"), object(), print]


@each
def test_checker_survives_whatever_is_returned_or_raised(lesson, name):
    exercise = replace(exercises(lesson)[f"ex_{name}"], draws=4)
    for value in RETURNS:
        verdict = judge(exercise, lambda *_: value, seed=1)
        assert verdict.state == "failed" and verdict.message and str(verdict) or difference(exercise.oracle(*inputs(exercise, 1)[0]), value) == ""
    assert "ZeroDivisionError" in judge(exercise, lambda *_: 1 / 0, seed=2).message
    assert judge(exercise, lambda: None, seed=2).state == "failed"


@each
def test_exercise_cells_stand_together(lesson, name):
    sources = code(lesson)
    at = next(i for i, s in enumerate(sources) if f"ex_{name} = Exercise(" in s)
    assert f"def {name}(" in sources[at + 1] and '"' in sources[at + 1] and "### END SOLUTION" in sources[at + 1]
    assert sources[at + 2].strip() == f"ex_{name}.check({name})"


def test_a_change_of_the_input_is_noticed():
    exercise = Exercise("first", lambda rng: (torch.rand(3),), lambda x: x[0].item(), {})

    def greedy(x):
        value = x[0].item()
        x[0] = 9.0
        return value

    assert "changes its input" in judge(exercise, greedy).message


@pytest.mark.parametrize("got, want, text", [
    (None, 1, "None"), ([1, 2], [1, 2, 3], "2 parts where 3"), ({"a": 1}, {"b": 1}, "keys"), ((1, 2.0), [1, 2], ""), (True, 1, "bool"),
    (np.float32(0.5), 0.5, ""), (torch.tensor(1.0), 1.0, "tensor"), (float("nan"), float("nan"), ""), (float("nan"), 1.0, "differs"),
    (torch.tensor([float("inf")]), torch.tensor([float("inf")]), ""), ("a", "b", "differs"), ([[1], [2]], [[1], [3]], "at [1]: at [0]")])
def test_differences_are_named(got, want, text):
    assert text in difference(got, want) and bool(text) == bool(difference(got, want))
