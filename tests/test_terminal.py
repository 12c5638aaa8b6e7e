"""What every command shares: reports and answers for people, lines that come in, codes that go out."""
import io
import os
import sys
import time

import pytest
import typer
from command import ft_course  # noqa: F401  (sets up what the commands need)
from typer.testing import CliRunner

from ft_course.app.terminal import Commands, Elsewhere, counted, headline, in_pairs, patience, readable, report_rows
from ft_course.training.metrics import classification_report, entity_report
from ft_course.training.scores import multilabel_report, regression_report

REPORTS = {
    "accuracy 0.750": (classification_report(["a", "b", "b", "a"], ["a", "b", "a", "a"]), ["a", "b", "macro", "weighted"]),
    "entity F1 1.000": (entity_report([["B-PER", "O"]], [["B-PER", "O"]]), ["PER", "micro", "macro", "weighted"]),
    "micro F1 0.667": (multilabel_report([[1, 0], [0, 1]], [[1, 0], [0, 0]], ["x", "y"]), ["x", "y", "micro", "macro", "weighted"]),
    "RMSE 1.000": (regression_report([1, 2, 3, 4], [2, 3, 4, 5]), ["rmse", "mae", "r2", "pearson", "spearman"]),
}


@pytest.mark.parametrize("number, report", REPORTS.items(), ids=REPORTS)
def test_each_kind_of_report_has_its_number_and_its_table(number, report):
    report, names = report
    headings, rows = report_rows(report)
    assert headline(report).startswith(number) and [row[0] for row in rows] == names
    assert all(len(row) == len(headings) for row in rows)


@pytest.mark.parametrize("answer, line", [
    ({"text": "a", "label": "x", "score": 0.5}, "x\t0.500\ta"), ({"text_a": "a", "text_b": "b", "label": "x", "score": 1.0}, "x\t1.000\ta\tb"),
    ({"text": "a", "labels": [{"label": "x", "score": 0.9}, {"label": "y", "score": 0.6}]}, "x 0.900, y 0.600\ta"), ({"text": "a", "labels": []}, "none\ta"),
    ({"text": "a", "score": 4.25}, "4.250\ta"), ({"text": "In Oslo.", "entities": [{"type": "LOC", "start": 3, "end": 7}]}, "In [LOC Oslo].")])
def test_each_kind_of_answer_is_a_line(answer, line):
    assert readable(answer) == line


@pytest.mark.parametrize("text", ["one", "a\tb\tc", ""])
def test_a_line_that_is_no_pair_is_named(text):
    assert list(in_pairs(["a\tb"])) == [("a", "b")]
    with pytest.raises(ValueError, match="text 2: the model reads pairs"):
        list(in_pairs(["a\tb", text]))


@pytest.mark.parametrize("rank, error, code, said", [
    ("0", ValueError("bad"), 2, "Error: bad"), ("1", ValueError("bad"), 2, "Error: bad"), ("1", Elsewhere("bad"), 2, ""),
    ("0", KeyboardInterrupt("saved"), 130, "Interrupted. saved"), ("1", KeyboardInterrupt("saved"), 130, "")])
def test_of_several_processes_one_speaks(rank, error, code, said, monkeypatch):
    monkeypatch.setenv("RANK", rank)
    toy = typer.Typer(cls=Commands)

    @toy.command()
    def fall():
        raise error

    @toy.command()
    def rise():
        "Two commands make a group."

    done = CliRunner().invoke(toy, ["fall"])
    assert (done.exit_code, done.stderr.strip()) == (code, said)


# ---------------------------------------------------------------- waiting

class Screen(io.StringIO):
    "A terminal, as far as a program can tell."

    def isatty(self):
        return True


def waited(screen, monkeypatch) -> str:
    "What stood on it while something was done."
    monkeypatch.setattr(sys, "stderr", screen)
    with patience("reading reviews", seconds=0):
        for _ in range(200 if screen.isatty() and "RANK" not in os.environ else 5):
            if "reading reviews: 00:0" in screen.getvalue():
                break
            time.sleep(0.05)
    return screen.getvalue()


def test_a_wait_is_shown_on_a_terminal_by_the_first_process(monkeypatch):
    assert "reading reviews: 00:0" in waited(Screen(), monkeypatch)
    assert waited(io.StringIO(), monkeypatch) == ""
    monkeypatch.setenv("RANK", "1")
    assert waited(Screen(), monkeypatch) == ""


@pytest.mark.parametrize("stdout, stderr, shown", [(io.StringIO, Screen, True), (Screen, Screen, False), (io.StringIO, io.StringIO, False)])
def test_answers_are_counted_where_nobody_sees_them(stdout, stderr, shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr())
    monkeypatch.setattr(sys, "stdout", stdout())
    assert list(counted(iter("abc"), 3, seconds=0)) == ["a", "b", "c"]
    assert ("0/3" in sys.stderr.getvalue()) == shown and not sys.stdout.getvalue()
