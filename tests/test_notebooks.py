"""The notebooks as files: clean, in order, importing only what the course has built before."""
import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from ft_course.teach.lessons import PARTS, lessons

ROOT = Path(__file__).parent.parent
NBS = ROOT / "nbs"
PATHS = sorted(path for path in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
ABSOLUTE = re.compile(r"(?<![\w.:/~<])/(home|root|tmp|work|Users|usr|var|opt)/\w")
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
each_lesson = pytest.mark.parametrize("lesson", lessons(), ids=lambda lesson: lesson.name)


def cells(path: Path, kind: str) -> list[str]:
    "The sources of a notebook's cells of one kind."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


@each_notebook
def test_is_as_nbdev_clean_leaves_it(path, monkeypatch):
    from execnb.nbio import dict2nb, nb2str
    from nbdev.clean import clean_nb

    monkeypatch.chdir(ROOT)
    text = path.read_text(encoding="utf-8")
    nb = dict2nb(json.loads(text))
    clean_nb(nb, allowed_cell_metadata_keys={"tags"})  # as in settings.ini
    assert nb2str(nb) == text, f"run: nbdev_clean --fname {path.relative_to(ROOT)}"


@each_notebook
def test_has_no_results_and_no_foreign_metadata(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    assert set(nb["metadata"]) <= {"kernelspec", "language_info"}
    for cell in nb["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
        assert not cell.get("outputs") and cell.get("execution_count") is None


@each_notebook
def test_runs_anywhere(path):
    for source in cells(path, "code"):
        assert not re.search(r"^\s*[!%]", source, re.M), f"shell or magic:\n{source}"
    for source in cells(path, "code") + cells(path, "markdown"):
        assert not ABSOLUTE.search(source), f"absolute path:\n{source}"


@each_notebook
def test_directives_open_their_cell(path):
    for source in cells(path, "code"):
        code = re.sub(r"\A(#\|.*\n?)*", "", source)
        assert not re.search(r"^#\|", code, re.M), f"a directive below code does nothing:\n{source}"


@each_notebook
def test_pictures_have_alt_text(path):
    executed = ROOT / "build/lessons" / path.relative_to(NBS)
    if not executed.exists():
        pytest.skip("not executed yet: make lessons")
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        kinds = [kind for output in cell.get("outputs", []) for kind in output.get("data", {})]
        source = "".join(cell["source"])
        assert "image/png" not in kinds or re.search(r"^#\| *fig-alt: .{20,}", source, re.M), f"no fig-alt:\n{source}"


def test_only_notebooks_lie_in_nbs():
    others = [path.name for path in NBS.rglob("*") if path.is_file() and path.suffix not in (".ipynb", ".md")]
    assert not others, "a lesson wrote beside itself: use a temporary folder"


def test_numbers_order_the_course():
    twice = [number for number, times in Counter(lesson.number for lesson in lessons()).items() if times > 1]
    assert not twice, "two lessons in one place"
    assert {path.parent.name for path in PATHS} <= {*PARTS, "nbs"}


@each_lesson
def test_name_title_and_module_agree(lesson):
    assert lesson.title and lesson.summary
    assert lesson.number[0] == lesson.part[0]
    assert lesson.module in ("", f"{lesson.part[2:]}.{lesson.path.stem[3:]}")


def imports(source: str) -> list[str]:
    "Modules of the library that code imports, inside functions too: data.tags."
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ft_course."):
            found += [node.module, *(f"{node.module}.{name.name}" for name in node.names)]
        elif isinstance(node, ast.Import):
            found += [name.name for name in node.names]
    return [name.removeprefix("ft_course.") for name in found]


# 24 and 26 to 2B take apart, for those who want to know, what 21 to 23 use; 49 and 4A what 42 uses, 44 what 43 shows of callbacks
AHEAD = {"peft.files", "training.processes", "training.evaluation", "training.resuming", "data.formats", "data.annotations", "data.public", "data.splits",
         "data.tables", "data.columns", "data.readers"}


@each_lesson
def test_imports_only_what_was_built_before(lesson):
    if lesson.part == "0_start":
        pytest.skip("the tour shows what is to come")
    place = {other.module: other.number for other in lessons() if other.module and other.module not in AHEAD}
    for source in cells(lesson.path, "code"):
        for module in imports(source):
            assert place.get(module, "00") <= lesson.number, f"{module} is made in lesson {place[module]}, later than this one"
