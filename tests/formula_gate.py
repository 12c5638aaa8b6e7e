"""Reads lessons as data: displayed equations, the checks that follow them, the symbols they use."""
import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from ft_course.teach.lessons import lessons_folder

DISPLAY = re.compile(r"\$\$(.+?)\$\$[ \t]*(?:\((eq-[\w-]+)\))?", re.S)
CAUGHT = re.compile(r"^(eq-[\w-]+): relative error \S+ in \d+ draws; (\d+) of (\d+) mutants caught$", re.M)
NEAR = 2  # code cells within which an equation is checked
WORDS = re.compile(r"\\(?:text|mathrm|mathtt|operatorname\*?|begin|end|label|tag)\s*\{[^{}]*\}")
COMMAND = re.compile(r"\\([A-Za-z]+)")
STYLED = re.compile(r"\\(?:mathbb|mathcal|mathbf|boldsymbol)\s*\{?\s*[A-Za-z]\}?")
GREEK = set("alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi varphi chi psi "
            "omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell".split())


def cells(path: Path) -> list[dict]:
    "The cells of a notebook, each source as one text."
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in found]


def equations(cells: list[dict]) -> Iterator[tuple[int, str, str | None]]:
    "(cell, TeX, label or None) of each displayed equation; code that is quoted in prose is none."
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "markdown":
            prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", cell["source"], flags=re.S | re.M)
            yield from ((i, *match) for match in DISPLAY.findall(prose))


def checks(source: str) -> set[str]:
    "Labels that a code cell passes to `check`."
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check"]
    return {call.args[0].value for call in calls if call.args and isinstance(call.args[0], ast.Constant)}


def faults(cells: list[dict]) -> list[str]:
    "What is wrong with a lesson's equations: no label, or no check near."
    found = []
    for i, tex, label in equations(cells):
        after = [cell["source"] for cell in cells[i:] if cell["cell_type"] == "code"][:NEAR]
        if not label:
            found.append(f"no label: {tex.strip()[:60]}")
        elif label not in set().union(*map(checks, after)):
            found.append(f"no check within {NEAR} code cells: {label}")
    return found


def symbols(tex: str) -> set[str]:
    "The symbols of an equation: letters, Greek letters, letters in a special face, and the risk with its hat."
    tex = WORDS.sub(" ", tex)
    found = {re.sub(r"[{}\s]", "", match) for match in STYLED.findall(tex)}
    tex = STYLED.sub(" ", tex)
    if re.search(r"\\hat\s*\{?R\}?", tex):
        found.add(r"\hatR")
        tex = re.sub(r"\\hat\s*\{?R\}?", " ", tex)
    found |= {f"\\{name}" for name in COMMAND.findall(tex) if name in GREEK}
    return found | set(re.findall(r"[A-Za-z]", COMMAND.sub(" ", tex)))


def notation() -> list[tuple[str, set[str]]]:
    "The rows of the table of symbols: the symbol, and the lessons where it has this meaning (or all)."
    text = "\n".join(cell["source"] for cell in cells(lessons_folder() / "1_theory/10_formulas.ipynb") if cell["cell_type"] == "markdown")
    rows = re.findall(r"^\| \$(.+?)\$ \|.*\| ([^|]+) \|$", text, re.M)
    return [(re.sub(r"[{}\s]", "", symbol), set(re.split(r",\s*", where))) for symbol, where in rows]


def strangers(cells: list[dict], number: str, rows: list[tuple[str, set[str]]]) -> list[str]:
    "Symbols of a lesson's equations to which the table gives no meaning there, or more than one."
    found = []
    for _, tex, label in equations(cells):
        for symbol in sorted(symbols(tex)):
            meanings = [where for name, where in rows if name == symbol and where & {"all", number}]
            if len(meanings) != 1:
                found.append(f"{label}: {symbol} has {len(meanings)} meanings in lesson {number}")
    return found


def outcomes(path: Path) -> dict[str, tuple[int, int]]:
    "label -> (mutants caught, mutants) as an executed lesson printed them."
    texts = ["".join(output.get("text", "")) for cell in cells(path) for output in cell.get("outputs", [])]
    return {label: (int(caught), int(of)) for label, caught, of in CAUGHT.findall("\n".join(texts))}
