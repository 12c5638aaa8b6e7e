"""The library is what the notebooks export, and the README what the front page says."""
import re
import shutil
import subprocess
import sys
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
