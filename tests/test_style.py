"""The house style of lessons: small cells, an aim, exercises, a quiz, a picture; exceptions stand here with their reasons."""
import json
import re
from statistics import median

import pytest
from test_notebooks import cells

from ft_course.teach.editions import is_check, is_checker, without_solution
from ft_course.teach.lessons import lessons

TAUGHT = [lesson for lesson in lessons() if "1" <= lesson.part[0] <= "6"]
each_lesson = pytest.mark.parametrize("lesson", lessons(), ids=lambda lesson: lesson.name)
each_taught = pytest.mark.parametrize("lesson", TAUGHT, ids=lambda lesson: lesson.name)
BANNED = re.compile(r"\b(simply|obviously|of course|trivial(ly)?|it is easy to|state[- ]of[- ]the[- ]art|cutting[- ]edge|powerful|seamless(ly)?|delve|"
                    r"leverage|in this notebook|let us dive|dive into|game[- ]chang\w+|robustly|amazing|exciting|magic(al)?ly)\b", re.I)
TOOLS = "a lesson on tools: its cells are whole small functions, since a part of one does nothing yet, and each is shown at work below"
LONG_CELLS = {"0_start/02_practice": (8, TOOLS), "9_teach/98_classroom": (8, TOOLS), "A_app/A3_claims": (8, TOOLS), "A_app/A4_runs": (7, TOOLS)}
ONE_SCREEN = {"4_training/42_learner": ("class Learner:", 60, "the loop is read as a whole: what goes in, the four verbs, a fit, an update, a gradient; its parts stand alone above it")}
NO_PICTURE = {
    "2_data/24_formats": "bytes become rows of text: what there is to see is text",
    "2_data/29_tables": "cells become rows with names: what there is to see is text",
    "2_data/2B_readers": "brackets, marks and numbers become rows with names: what there is to see is text",
    "4_training/40_updates": "its subject is that two numbers are equal; the pictures of schedules and clipping are in 17",
    "4_training/49_processes": "its subject is that several processes equal one: what there is to see are two equal numbers",
    "4_training/4A_evaluation": "sums and counts of six examples, which the page prints; the curves of scores are in 42 and 43",
    "5_tasks/50_task": "it joins parts that have their pictures in 22, 41 and 42; the tasks' own are in 51 and 52",
    "6_peft/60_injection": "names, places and files: what changes is in lists, which the page prints",
    "6_peft/6A_files": "names, hashes and settings: the lists on the page are what there is to see",
    "6_peft/69_tasks": "it joins the methods with the tasks; each method's picture is in its lesson",
}


def lines(source: str) -> int:
    "Lines of code as students see it, without directives and empty lines."
    return sum(line.strip() != "" for line in re.sub(r"\A(#\|.*\n?)*", "", without_solution(source)).splitlines())


@each_lesson
def test_cells_are_small(lesson):
    sizes = [lines(source) for source in cells(lesson.path, "code") if not is_checker(source)]
    whole, most, _ = ONE_SCREEN.get(lesson.name, ("no such cell", 0, ""))
    for source in cells(lesson.path, "code"):
        size = len([line for line in source.splitlines() if line.strip() and not line.startswith("#|")])
        assert size <= (most if whole in source else 25), f"{size} lines:\n{source}"
    assert median(sizes or [0]) <= LONG_CELLS.get(lesson.name, (5,))[0]


@each_lesson
def test_checkers_fit_a_screen(lesson):
    assert max((lines(source) for source in cells(lesson.path, "code") if is_checker(source)), default=0) <= 25


@each_lesson
def test_says_what_it_is_for(lesson):
    first = cells(lesson.path, "markdown")[0]
    assert "You will be able to" in first.replace("\n", " ") and "Before this" in first
    assert re.search(r"^## Where to read more", "\n".join(cells(lesson.path, "markdown")), re.M)


@each_lesson
def test_uses_no_banned_phrase(lesson):
    found = [match[0] for text in cells(lesson.path, "markdown") for match in BANNED.finditer(re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)", "", text))]
    assert not found


@each_taught
def test_has_slides(lesson):
    marked = [cell for cell in json.loads(lesson.path.read_text(encoding="utf-8"))["cells"] if "slide" in cell["metadata"].get("tags", [])]
    assert len(marked) >= 4 and "".join(marked[0]["source"]).startswith(f"# {lesson.title}")
    assert not [cell for cell in marked if is_checker("".join(cell["source"])) or "BEGIN SOLUTION" in "".join(cell["source"])]


@each_taught
def test_has_exercises(lesson):
    assert 2 <= sum(map(is_check, cells(lesson.path, "code"))) <= 5
    assert not [text for text in cells(lesson.path, "markdown") if "place: exercises" in text or "place: quiz" in text]


@each_taught
def test_exercises_say_how_hard_and_how_long(lesson):
    text = "\n".join(cells(lesson.path, "markdown"))
    titles = re.findall(r"^### Exercise: (.+)", text, re.M)
    assert len(titles) == len(re.findall(r"^\*Difficulty [123] of 3, \d+ minutes\.\*", text, re.M)) == sum(map(is_check, cells(lesson.path, "code")))


@each_taught
def test_has_a_quiz_whose_every_answer_is_explained(lesson):
    quiz = "\n".join(text for text in cells(lesson.path, "markdown") if "\n## Quiz" in f"\n{text}")
    questions = re.split(r"^\*\*\d\. ", quiz, flags=re.M)[1:]
    assert 3 <= len(questions) <= 5
    for question in questions:
        answers = re.findall(r"^:::\{dropdown\} (.+)\n\*\*(Right|No)\.\*\* ((?:.+\n|\n)+?):::$", question, re.M)
        assert len(answers) == len(re.findall("^:::", question, re.M)) / 2 >= 3, question
        assert [right for _, right, _ in answers].count("Right") == 1, question
        assert all(len(why.split()) >= 4 for *_, why in answers), question


@each_taught
def test_has_a_picture(lesson):
    pictures = [source for source in cells(lesson.path, "code") if re.search(r"^#\| *fig-alt:", source, re.M)]
    assert pictures or lesson.name in NO_PICTURE


def test_exceptions_are_needed():
    named = {lesson.name: lesson for lesson in lessons()}
    for name in LONG_CELLS:
        assert median(lines(source) for source in cells(named[name].path, "code") if not is_checker(source)) > 5, f"{name} needs no exception"
    for name, (whole, *_) in ONE_SCREEN.items():
        (size,) = [lines(source) for source in cells(named[name].path, "code") if whole in source]
        assert size > 25, f"{name}: {whole} needs no exception"
    for name in NO_PICTURE:
        assert not [source for source in cells(named[name].path, "code") if "fig-alt:" in source], f"{name} has a picture"
