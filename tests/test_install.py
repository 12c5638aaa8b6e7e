"""The package as its users get it: source archive, wheel from it, an empty environment, the commands from another folder."""
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("ft_course", "nbs", "results", "settings.ini", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "constraints.txt")
NOTEBOOKS = sorted(path.relative_to(ROOT / "nbs").as_posix() for path in ROOT.glob("nbs/**/*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def call(*command, cwd: Path) -> str:
    "Run a program that has to succeed, away from this checkout; its standard output."
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FT_COURSE_DATA")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> dict[str, Path]:
    "The source archive of a copy of the project, and the wheel that is built from the archive."
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for part in filter(lambda part: (ROOT / part).exists(), PARTS):
        ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        shutil.copytree(ROOT / part, copy / part, ignore=ignore) if (ROOT / part).is_dir() else shutil.copy(ROOT / part, copy)
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, cwd=out)
    return {"sdist": next(out.glob("*.tar.gz")), "wheel": next(out.glob("*.whl"))}


@pytest.fixture(scope="module")
def installed(archives, tmp_path_factory) -> Path:
    "The programs of an environment that holds the wheel, and behind it the libraries of this one."
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    call(sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet", "--no-deps", "--no-index", archives["wheel"], cwd=folder)
    packages, = folder.glob("lib/*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))  # paths in it come last; its own .pth files are not read
    return folder / "bin"


def test_the_wheel_carries_lessons_corpora_and_numbers(archives):
    names = set(zipfile.ZipFile(archives["wheel"]).namelist())
    assert {f"ft_course/lessons/{name}" for name in NOTEBOOKS} <= names and len(NOTEBOOKS) > 10
    for corpus, ending in (("reviews", "jsonl"), ("newswire", "conll")):
        assert {f"ft_course/corpora/{corpus}/{name}" for name in (*(f"{s}.{ending}" for s in ("train", "validation", "test")), "README.md")} <= names
    assert {f"ft_course/results/{path.name}" for path in ROOT.glob("results/*.json")} <= names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "nbs/")) or "checkpoints/" in name]


def test_the_wheel_carries_no_solution(archives, tmp_path):
    from ft_course.teach.editions import left_over

    with zipfile.ZipFile(archives["wheel"]) as wheel:
        wheel.extractall(tmp_path)
    for name in NOTEBOOKS:
        assert left_over(ROOT / "nbs" / name, tmp_path / "ft_course/lessons" / name) == []


def test_the_source_archive_is_complete(archives):
    names = {name.partition("/")[2] for name in tarfile.open(archives["sdist"]).getnames()}
    assert {"settings.ini", "setup.py", "README.md", "LICENSE", *(f"nbs/{name}" for name in NOTEBOOKS)} <= names


def test_doctor_from_another_folder(installed, tmp_path):
    where = Path(call(installed / "python", "-c", "import ft_course; print(ft_course.__file__)", cwd=tmp_path).strip())
    assert installed.parent in where.parents and ROOT not in where.parents
    rows = {row["check"]: row for row in json.loads(call(installed / "ft-course", "doctor", "--json", cwd=tmp_path))}
    assert rows["lessons"]["found"] == f"{len(NOTEBOOKS)} notebooks"
    assert rows["corpus newswire"]["status"] == rows["weights minilm"]["status"] == "ok"


def test_lab_copies_the_lessons_of_the_wheel(installed, tmp_path):
    call(installed / "ft-course", "lab", "mine", "--copy-only", cwd=tmp_path)
    assert sorted(path.relative_to(tmp_path / "mine").as_posix() for path in (tmp_path / "mine").rglob("*.ipynb")) == NOTEBOOKS
