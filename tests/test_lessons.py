"""Lessons run in kernels that are forked: fresh for the lesson, and gone when it is over."""
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell, new_notebook

from ft_course.teach.lessons import execute, ingredients, lessons


def run(folder: Path, *sources: str) -> list:
    "Execute cells, and give back what each displays."
    path = folder / "29_tiny.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return [cell.outputs[0].data["text/plain"] for cell in execute(path)[0].cells]


def test_a_kernel_works_in_its_folder_and_knows_of_no_other(tmp_path):
    first = run(tmp_path, "mine = 1; import os; os.environ['LEFT'] = '1'; os.getcwd()", "os.environ['FT_COURSE_STATIC']")
    assert first == [repr(str(tmp_path)), "'1'"]
    assert run(tmp_path, "import os; 'mine' in globals(), 'LEFT' in os.environ, __name__") == ["(False, False, '__main__')"]
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
def test_what_is_slow_to_import_is_there_and_what_looks_for_a_notebook_is_not(tmp_path):
    seen = run(tmp_path, "import sys; [name in sys.modules for name in ('torch', 'transformers', 'pandas', 'matplotlib')]")
    assert seen == ["[True, True, False, False]"]


def test_a_kernel_that_dies_is_reported(tmp_path):
    with pytest.raises(DeadKernelError):
        run(tmp_path, "import os; os._exit(1)")


SLEEPER = """if __name__ == "__main__":
    import sys
    from pathlib import Path
    from ft_course.teach import lessons

    lessons.WARM[:] = ["ipykernel.kernelapp"]
    lessons.execute(Path(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")
def test_a_kernel_goes_with_the_process_that_asked_for_it(tmp_path):
    script, notebook, pid = tmp_path / "run.py", tmp_path / "29_sleep.ipynb", tmp_path / "pid"
    script.write_text(SLEEPER)
    source = "import os, time; open('new', 'w').write(str(os.getpid())); os.rename('new', 'pid'); time.sleep(600)"
    nbformat.write(new_notebook(cells=[new_code_cell(source)]), notebook)
    process = subprocess.Popen([sys.executable, script, notebook], stderr=subprocess.DEVNULL)
    while not pid.exists():
        assert process.poll() is None, "the script ended before its kernel began"
        time.sleep(0.1)
    kernel = psutil.Process(int(pid.read_text()))
    process.kill()
    process.wait()
    kernel.wait(30)


def test_a_lesson_depends_on_the_results_it_reads():
    read = {lesson.name: {file.stem for file in ingredients(lesson) if file.parent.name == "results"} for lesson in lessons()}
    assert read["6_peft/66_comparison"] == {"comparison"} and read["5_tasks/52_ner"] == {"curves", "runs", "bench_score"}
    assert read["1_theory/11_losses"] == set()
