"""One name, one thing: what a module exports under a name is what every other module means by it."""
import ast
from collections import defaultdict
from pathlib import Path

import ft_course

PACKAGE = Path(ft_course.__file__).parent
INTERFACE = {  # names that several modules share on purpose, and who asks for them by that name
    "inject": "each method of part 6 is put in by its module's `inject`; `peft.files.method_of` finds the module",
    "to_file": "how a method's weights are named in a file, where they are named otherwise than in the model; `peft.files.save_adapter` asks",
    "from_file": "the way back; `peft.files.load_adapter` asks",
    "from_config": "what a saved configuration means to a method; `peft.files.read_folder` asks",
    "NEUTRAL": "settings of peft that change nothing at some value; `peft.files.refuse_unknown` asks",
    "log": "the logger of a module, as `logging` wants it",
    "main": "what runs when a module is called as a program",
}
LEFT = {  # doubles that are still there: this list only gets shorter
    "COLUMNS": ("data/tables", "training/callbacks"),
    "Data": ("app/cli", "data/sources"),
    "SPLITS": ("app/runs", "data/splits"),
    "check_labels": ("model/checkpoints", "training/metrics"),
    "check_sentences": ("data/alignment", "training/metrics"),
    "check_table": ("training/scores", "training/tables"),
    "decode": ("data/formats", "model/decoder"),
    "family": ("model/parameters", "start/practice"),
    "fields": ("data/formats", "teach/reference"),
    "fingerprint": ("teach/lessons", "training/updates"),
    "flat": ("data/columns", "theory/formulas"),
    "join": ("data/columns", "data/wordpiece"),
    "linear": ("theory/block", "theory/schedules"),
    "plain": ("peft/injection", "training/updates"),
    "settle": ("data/public", "model/checkpoints"),
    "softmax": ("tasks/sentiment", "theory/block"),
    "stack": ("data/batching", "peft/compose"),
    "take": ("data/columns", "peft/compose"),
    "tell": ("app/terminal", "training/learner"),
}


def exports() -> dict[str, list[str]]:
    "Name -> the modules whose `__all__` has it."
    found = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
                for name in ast.literal_eval(node.value):
                    found[name].append(path.relative_to(PACKAGE).with_suffix("").as_posix())
    return found


def test_an_exported_name_stands_in_one_module():
    found = exports()
    assert len(found) > 500
    doubles = {name: modules for name, modules in found.items() if len(modules) > 1 and name not in INTERFACE}
    new = {name: modules for name, modules in doubles.items() if not set(modules) <= set(LEFT.get(name, ()))}
    assert not new, f"one of each must get a name of its own: {new}"


def test_the_list_holds_nothing_that_is_allowed_anyway():
    assert not INTERFACE.keys() & LEFT.keys() and all(len(modules) > 1 for modules in LEFT.values())
