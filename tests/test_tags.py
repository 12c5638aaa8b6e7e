"""Tags against two independent readers (seqeval's strict mode, the rules of conlleval written out) and round trips."""
import random

import pytest
import seqeval.scheme
from hypothesis import given, settings, strategies as st

from ft_course.data.tags import (SCHEMES, flatten, guess_scheme, illegal_transitions, span_table, spans, tags_from_spans,
                                 to_iob2)

SEQEVAL = {"IOB1": seqeval.scheme.IOB1, "IOB2": seqeval.scheme.IOB2, "BIOES": seqeval.scheme.IOBES}
KINDS = ("PER", "ORG", "work-of-art")


def random_tags(rng, scheme, longest=10):
    "Any tags of a scheme in any order: most sequences are illegal."
    names = ["O", "O"] + [f"{p}-{kind}" for p in SCHEMES[scheme]["prefixes"] for kind in KINDS[:rng.randint(1, 3)]]
    return [rng.choice(names) for _ in range(rng.randint(0, longest))]


def start_of_chunk(before, kind_before, now, kind):
    "When conlleval.pl begins a chunk, condition by condition (S added beside its B and E)."
    return (now in "BS" or (before in "ES" and now in "EI") or (before == "O" and now in "EI")
            or (now != "O" and kind != kind_before))


def end_of_chunk(before, kind_before, now, kind):
    "When conlleval.pl ends the chunk before, condition by condition."
    return ((before in "BI" and now in "BSO") or before in "ES"
            or (before != "O" and kind != kind_before))


def conlleval_spans(tags):
    "One pass over the tags as the perl script does it: end a chunk, then begin one."
    found, begin, before = [], None, ("O", "")
    for i, tag in enumerate([*tags, "O"]):
        now = (tag[0], tag[2:])
        if begin is not None and end_of_chunk(*before, *now):
            found.append((before[1], begin, i))
            begin = None
        if start_of_chunk(*before, *now):
            begin = i
        before = now
    return found


@pytest.mark.parametrize("scheme", SEQEVAL)
def test_strict_spans_equal_seqeval(scheme):
    rng = random.Random(0)
    for _ in range(4000):
        tags = random_tags(rng, scheme)
        expected = [(e.tag, e.start, e.end) for e in seqeval.scheme.Tokens(list(tags), SEQEVAL[scheme]).entities]
        assert spans(tags, scheme, strict=True) == expected, tags


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lenient_spans_equal_the_rules_of_conlleval(scheme):
    rng = random.Random(1)
    for _ in range(4000):
        tags = random_tags(rng, scheme)
        assert spans(tags, scheme) == conlleval_spans(tags), tags


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_many_sentences_at_once_equal_one_by_one(scheme, strict):
    rng = random.Random(2)
    sentences = [random_tags(rng, scheme) for _ in range(500)]
    ids, offsets, names = flatten(sentences)
    types = sorted({name[2:] for name in names if name != "O"})
    table = [(types[kind], start, end) for start, end, kind in span_table(ids, offsets, names, scheme, strict).tolist()]
    single = [(kind, start + offset, end + offset) for tags, offset in zip(sentences, offsets.tolist())
              for kind, start, end in spans(tags, scheme, strict)]
    assert table == single


@st.composite
def entities(draw):
    "Spans that do not overlap, touching ones included, and the sentence's length."
    found, at = [], 0
    for gap, length, kind in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(KINDS)), max_size=6)):
        found.append((kind, at + gap, at + gap + length))
        at += gap + length
    return found, at + draw(st.integers(0, 3))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(entities(), st.sampled_from(["IOB1", "IOB2", "BIOES"]), st.booleans())
def test_spans_survive_the_round_trip(drawn, scheme, strict):
    found, length = drawn
    tags = tags_from_spans(found, length, scheme)
    assert len(tags) == length and spans(tags, scheme, strict) == found
    assert len(illegal_transitions(*flatten([tags]), scheme)) == 0
    assert to_iob2(tags, scheme) == (tags_from_spans(found, length), 0)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(entities())
def test_io_joins_touching_neighbours_of_one_type_and_loses_nothing_else(drawn):
    found, length = drawn
    joined = []
    for kind, start, end in found:
        if joined and joined[-1][0] == kind and joined[-1][2] == start:
            start = joined.pop()[1]
        joined.append((kind, start, end))
    assert spans(tags_from_spans(found, length, "IO"), "IO") == joined


@pytest.mark.parametrize("scheme", SCHEMES)
def test_conversion_repairs_to_legal_tags_that_both_readers_agree_on(scheme):
    rng = random.Random(3)
    for _ in range(1000):
        tags = random_tags(rng, scheme)
        clean, repaired = to_iob2(tags, scheme)
        assert spans(clean, strict=True) == spans(clean) == spans(tags, scheme)
        if repaired == 0:
            assert spans(tags, scheme, strict=True) == spans(tags, scheme), tags


@pytest.mark.parametrize("tags, scheme, repaired", [
    ("O I-PER O", "IOB2", 1), ("B-PER I-ORG I-ORG", "IOB2", 1), ("I-PER I-PER", "IOB2", 1), ("B-PER B-PER", "IOB2", 0),
    ("O B-PER O", "IOB1", 1), ("I-PER B-PER", "IOB1", 0), ("I-PER I-ORG", "IOB1", 0),
    ("B-PER O", "BIOES", 1), ("B-PER E-PER S-PER", "BIOES", 0), ("B-PER", "BIOES", 1), ("E-PER", "BIOES", 1),
    ("I-PER I-ORG I-PER", "IO", 0)])
def test_illegal_transitions_are_counted_once_each(tags, scheme, repaired):
    assert to_iob2(tags.split(), scheme)[1] == repaired


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES"])
def test_the_scheme_of_legal_tags_is_guessed(scheme):
    found = [("PER", 0, 1), ("PER", 1, 3), ("ORG", 4, 7)]
    assert guess_scheme([tags_from_spans(found, 8, scheme)]) == scheme


@pytest.mark.parametrize("sentences, scheme", [
    ([["O", "I-PER"]], "IO"), ([["O"]], "IOB2"), ([[]], "IOB2"), ([["B-PER", "O", "B-ORG"]], "IOB2"), ([["S-PER"]], "BIOES")])
def test_scarce_evidence_is_read_the_simplest_way(sentences, scheme):
    assert guess_scheme(sentences) == scheme


@pytest.mark.parametrize("bad", ["X-PER", "PER", "B", "B-", "", "b-PER", "BPER", "O-PER", "BI-PER"])
def test_an_unknown_tag_is_named(bad):
    with pytest.raises(ValueError, match=f"unknown tag '{bad}'"):
        spans(["O", bad])


def test_what_does_not_fit_the_scheme_is_refused():
    with pytest.raises(ValueError, match="'E-PER'"):
        spans(["B-PER", "E-PER"], "IOB2")
    with pytest.raises(ValueError, match="choose one of IO, IOB1, IOB2, BIOES"):
        spans(["O"], "IOB3")


@pytest.mark.parametrize("found", [[("PER", 0, 2), ("ORG", 1, 3)], [("PER", 2, 5)], [("PER", 1, 1)], [("PER", -1, 1)]])
def test_spans_that_cannot_be_written_are_refused(found):
    with pytest.raises(ValueError, match="overlaps another or does not fit into 4 words"):
        tags_from_spans(found, 4)
