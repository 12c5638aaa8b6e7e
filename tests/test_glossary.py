"""Every concept of the list lives in a lesson and in a test."""
import re
from pathlib import Path

import pytest

from ft_course.teach.glossary import entries, link_terms
from ft_course.teach.lessons import lessons

TESTS = Path(__file__).parent
CORE = {*range(1, 5), *range(10, 15), 18, 19, *range(22, 33), *range(34, 38), 39, *range(40, 43), *range(44, 52), *range(56, 59), *range(60, 67),
        *range(68, 78), *range(80, 97), *range(99, 104), 141, 195, 197, 199, 200, 205, 208, 209} - {33, 43, 59, 67, 78, 79, 97, 98}


def test_all_concepts_are_listed():
    assert {entry.number for entry in entries()} == CORE


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.term)
def test_a_concept_lives_in_a_lesson_and_a_test(entry):
    lesson = next(lesson for lesson in lessons() if lesson.number == entry.lesson)
    assert lesson.part < "9" or entry.number == 208
    file, _, test = entry.test.partition("::")
    assert f"\ndef {test}(" in (TESTS / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("text, linked", [
    ("LoRA is small.", "{term}`LoRA <LoRA>` is small."),
    ("`LoRA` and $LoRA$ and [LoRA](x.md)", "`LoRA` and $LoRA$ and [LoRA](x.md)"),
    ("# LoRA\n| LoRA |\n**LoRA**", "# LoRA\n| LoRA |\n**LoRA**"),
    ("QLoRA or LoRAs", "QLoRA or LoRAs"),
    ("<details><summary>With LoRA</summary>", "<details><summary>With LoRA</summary>"),
    ("lora, then LoRA", "{term}`lora <LoRA>`, then LoRA"),
    ("$$\nLoRA\n$$\n```\nLoRA\n```", "$$\nLoRA\n$$\n```\nLoRA\n```")])
def test_links_stand_in_running_text_alone(text, linked):
    assert link_terms(text, {"LoRA"}) == linked


def test_a_term_inside_another_is_not_linked_twice():
    text = link_terms("the binary cross-entropy", {"cross-entropy", "binary cross-entropy"})
    assert text == "the {term}`binary cross-entropy <binary cross-entropy>`"
    assert not re.search(r"\{term\}[^ ]*\{term\}", text)
