"""The editions: students get no solution, instructors get a course that nbgrader reads and grades."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ft_course.teach import editions
from ft_course.teach.lessons import execute, lessons_folder

NBS = lessons_folder()
LESSON = "11_losses"


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("student")
    assert editions.student(NBS, out) == len(list(editions.notebooks(NBS)))
    return out


def test_no_solution_is_left_in_text_or_metadata(student):
    for path in editions.notebooks(NBS):
        assert editions.left_over(path, student / path.relative_to(NBS)) == []
    assert sum(bool(editions.left_over(path, path)) for path in editions.notebooks(NBS)) > 1


def bare(text: str) -> str:
    "Code without white space."
    return re.sub(r"\s+", "", text)


def cells_of(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", [path for path in editions.notebooks(NBS) if "### BEGIN SOLUTION" in path.read_text(encoding="utf-8")], ids=lambda path: path.stem)
def test_no_checker_spells_a_solution_out(path):
    "No line of a solution, longer than 25 characters, stands in a checker, hints included, unless the lesson shows it anyway."
    cells = cells_of(path)
    checkers, shown = ([bare(editions.without_solution(cell)) for cell in cells if editions.is_checker(cell) == checker] for checker in (True, False))
    for line in (bare(line.strip().removeprefix("return ")) for cell in cells for _, text in editions.SOLUTION.findall(cell) for line in text.splitlines()):
        if len(line) > 25 and not any(line in cell for cell in shown):
            assert not any(line in cell for cell in checkers), line


@pytest.mark.parametrize("path", [path for path in editions.notebooks(NBS) if "### BEGIN SOLUTION" in path.read_text(encoding="utf-8")], ids=lambda path: path.stem)
def test_every_check_that_is_graded_can_be_passed(path):
    cells = cells_of(path)
    asked = [re.search(r"\.check\((\w+)\)", cell)[1] for cell in cells if editions.is_check(cell)]
    assert all(any(f"def {name}(" in cell and "### BEGIN SOLUTION" in cell for cell in cells) for name in asked)


def test_a_lesson_of_the_student_runs_with_nothing_attempted(student):
    nb, _ = execute(student / f"1_theory/{LESSON}.ipynb")
    outputs = [str(cell.outputs) for cell in nb.cells if cell.cell_type == "code" and editions.is_check(cell.source)]
    assert len(outputs) >= 3 and all("not attempted" in text for text in outputs)


def test_a_folder_with_something_in_it_is_refused(student):
    with pytest.raises(FileExistsError, match="not empty"):
        editions.student(NBS, student)


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("course")
    points = editions.instructor(NBS, out)
    assert points[LESSON] >= 3
    return out


@pytest.fixture(autouse=True)
def programs_of_this_environment(monkeypatch):
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # nbgrader calls alembic


def nbgrader(course: Path, *command: str) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "FT_COURSE_STATIC": "1"}
    done = subprocess.run([sys.executable, "-m", "nbgrader", *command], cwd=course, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def answer(path: Path, name: str, body: str) -> None:
    "Fill in a stub."
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and f"def {name}(" in source and "raise NotImplementedError" in source:
            cell["source"] = source.replace("raise NotImplementedError", body)
    path.write_text(json.dumps(nb), encoding="utf-8")


def test_nbgrader_releases_and_grades(course):
    from nbgrader.api import Gradebook

    nbgrader(course, "generate_assignment", LESSON)
    release = course / "release" / LESSON / f"{LESSON}.ipynb"
    text = release.read_text(encoding="utf-8")
    assert "BEGIN SOLUTION" not in text and "raise NotImplementedError" in text
    submitted = course / "submitted/ada" / LESSON / f"{LESSON}.ipynb"
    submitted.parent.mkdir(parents=True)
    submitted.write_text(text, encoding="utf-8")
    answer(submitted, "soft_cross_entropy", "return -(q * z.log_softmax(-1)).sum(-1)")
    answer(submitted, "epoch_loss", "return 0.0")
    nbgrader(course, "autograde", LESSON)
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as book:
        notebook = book.find_submission_notebook(LESSON, LESSON, "ada")
        scores = {grade.cell.name: (grade.auto_score, grade.max_score) for grade in notebook.grades}
    assert sorted(scores.values()) == [(0, 1), (0, 2), (2, 2)]


def test_slides_hold_what_is_marked_and_ask_for_nothing_from_elsewhere(tmp_path):
    from bs4 import BeautifulSoup

    from ft_course.teach.classroom import slides

    path = NBS / f"1_theory/{LESSON}.ipynb"
    assert slides(tmp_path / "slides", NBS) > 35  # as they lie here, without results
    page = BeautifulSoup((tmp_path / f"slides/{LESSON}.html").read_text(encoding="utf-8"), "html.parser")
    marked = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if "slide" in cell["metadata"].get("tags", [])]
    assert len(page.select(".slides section")) >= len(marked) > 10
    assert "A mean of means" in page.get_text() and "Exercise:" not in page.get_text() and "Spot the bug" not in page.get_text()
    assert not [tag for tag in page.select("script[src], link[href], img[src]") if (tag.get("src") or tag["href"]).startswith(("http", "//"))]
    styles = [tmp_path / "slides" / tag["href"].partition("?")[0] for tag in page.select("link[rel=stylesheet]")]
    assert styles and not [style.name for style in styles if re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text(encoding="utf-8"))]


def test_rubric_and_schedule(course):
    rubric, schedule = ((course / f"{name}.md").read_text(encoding="utf-8") for name in ("rubric", "schedule"))
    assert "that is the mean of batch means" in rubric and "**epoch_loss**, 1 points" in rubric
    assert schedule.count("\n") > 40 and "11 Losses" in schedule
