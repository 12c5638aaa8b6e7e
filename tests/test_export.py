"""The library is what the notebooks export, and the README what the front page says."""
import ast
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from ft_course.teach.front_page import readme

ROOT = Path(__file__).parent.parent


def modules(folder: Path) -> dict[str, str]:
    "Every Python file below a folder: its place and its text."
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*.py")}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> dict[str, str]:
    "What nbdev_export makes of the notebooks in an empty folder."
    folder = tmp_path_factory.mktemp("export")
    shutil.copy(ROOT / "settings.ini", folder)
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    code = "from nbdev.doclinks import nbdev_export; nbdev_export()"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    return modules(folder / "ft_course")


def test_library_has_the_modules_of_a_fresh_export(fresh):
    assert set(modules(ROOT / "ft_course")) == set(fresh), "run nbdev_export; remove modules that no notebook exports"


def test_library_is_equal_to_a_fresh_export(fresh):
    library = modules(ROOT / "ft_course")
    changed = [name for name in library if name in fresh and library[name] != fresh[name]]
    assert not changed, "edit the notebook, then run nbdev_export"


def test_readme_is_made_from_the_front_page():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme(), "run: make readme"


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", readme())
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_library_imports_only_what_it_declares():
    "At the top of a module; what a function imports may be an extra, and says so where it is missing."
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    settings = config["DEFAULT"]
    declared = {re.match(r"[\w-]+", need)[0] for need in settings["requirements"].split()} | {"ft_course"}
    names = {"scikit-learn": "sklearn"}
    known = {names.get(need, need) for need in declared} | set(sys.stdlib_module_names)
    for path, source in modules(ROOT / "ft_course").items():
        for node in ast.parse(source).body:
            found = [name.name for name in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not [name for name in found if name.split(".")[0] not in known], f"{path}: {found} is not declared in settings.ini"
