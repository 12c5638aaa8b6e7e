"""What the measurements share: the data as features, and result files that keep what is already measured."""
import json
import os
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
os.environ.setdefault("FT_COURSE_DATA", str(ROOT.parent / "shared" / "data"))
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def read(name: str) -> dict:
    "A result file, {} when there is none yet."
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write(name: str, result: dict):
    "Replace a result file in one step."
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True, parents=True)
    path.with_suffix(".tmp").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".tmp").replace(path)


def versions() -> dict[str, str]:
    "Of the libraries that a number depends on."
    return {name: version(name) for name in ("torch", "transformers", "ft_course")}
