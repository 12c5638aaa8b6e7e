"""Random files of each format: no traceback but a message, and what is read back equals what was written. FT_COURSE_FUZZ=1000 for more."""
import bz2
import csv
import gzip
import io
import json
import lzma
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import datasets
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from ft_course.data.alignment import split_words
from ft_course.data.formats import BadData
from ft_course.data.sources import load, load_split
from ft_course.data.tags import tags_from_spans

OFTEN = settings(max_examples=int(os.environ.get("FT_COURSE_FUZZ", 25)), deadline=None, derandomize="FT_COURSE_FUZZ" not in os.environ,
                 suppress_health_check=list(HealthCheck))
letters = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
text = st.text(letters, min_size=1, max_size=20).filter(str.strip)
plain = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Zs")), min_size=1, max_size=8)
label = st.sampled_from(["good", "bad", "weiß nicht", "好", "#1"])
rows = st.lists(st.tuples(text, label), min_size=1, max_size=8)
ends = st.sampled_from(["\n", "\r\n"])
tag = st.sampled_from(["O", "O", "B-PER", "I-PER", "B-größe"])
token = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=6).filter(lambda t: not t.startswith(("#", "-DOCSTART-")))
sentence = st.lists(st.tuples(token, tag), min_size=1, max_size=6)
unmarked = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="\ufeff"), min_size=1, max_size=20).filter(str.strip)
word = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters=" \ufeff"), min_size=1, max_size=6).filter(str.strip)
spaced = st.lists(st.tuples(word, tag), min_size=1, max_size=6)


def zipped(content: bytes) -> bytes:
    with zipfile.ZipFile(out := io.BytesIO(), "w") as archive:
        archive.writestr("inside.csv", content)
    return out.getvalue()


def back(content: bytes | Callable, name: str, **options) -> datasets.Dataset | None:
    "What is read back of a file, or of a folder that a function fills; None where it is refused in one line that names it."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        content(path) if callable(content) else path.write_bytes(content)
        try:
            return load_split(path, **options)
        except (BadData, ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error) and (name in str(error) or "no rows" in str(error)), str(error)
            return None


def texts(data: datasets.Dataset) -> list[tuple]:
    names = data.features["label"].names
    return [(row["text"], names[row["label"]]) for row in data]


def tagged(data: datasets.Dataset) -> list[tuple[list[str], list[str]]]:
    names = data.features["ner_tags"].feature.names
    return [(row["tokens"], [names[i] for i in row["ner_tags"]]) for row in data]


def in_iob2(tags: list[str]) -> list[str]:
    "Every I that goes on with nothing begins a name, as conlleval has it."
    return [f"B-{tag[2:]}" if tag[0] == "I" and before[1:] != tag[1:] else tag for before, tag in zip(["O", *tags], tags)]


def known(sentences: list[list[tuple]]) -> bool:
    "Is it plain that B and I are IOB2? In few sentences with slips it may be IOB1."
    tags = [[tag for _, tag in pairs] for pairs in sentences]
    return all(row == in_iob2(row) for row in tags) and any(tag[0] == "B" for row in tags for tag in row)


def table(rows: list[tuple], **options) -> bytes:
    csv.writer(out := io.StringIO(newline=""), **options).writerows([("text", "label"), *rows])
    return out.getvalue().encode()


@OFTEN
@given(rows, st.sampled_from(",;|"), ends, st.sampled_from(["utf-8", "utf-8-sig"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
       st.sampled_from([bytes, gzip.compress, bz2.compress, lzma.compress, zipped]))
def test_csv_comes_back(rows, delimiter, end, encoding, quoting, pack):
    content = table(rows, delimiter=delimiter, lineterminator=end, quoting=quoting).decode().encode(encoding)
    assert texts(back(pack(content), "a.csv", task="classify", format="csv")) == rows


@OFTEN
@given(rows, st.sampled_from(["utf-16", "utf-16-le", "utf-16-be", "utf-32"]))
def test_text_of_two_bytes_is_refused_by_name(rows, encoding):
    assert back(table(rows).decode().encode(encoding), "a.csv") is None


@OFTEN
@given(rows, ends)
def test_a_table_whose_quotes_are_looked_at_comes_back_or_is_refused(rows, end):
    for delimiter in ",\t":
        data = back(table(rows, delimiter=delimiter, lineterminator=end), "a.tsv", format="table")
        assert data is None or texts(data) == rows


@OFTEN
@given(st.lists(st.tuples(plain, label), min_size=1, max_size=8), ends)
def test_tsv_without_quotes_comes_back(rows, end):
    content = end.join("\t".join(row) for row in [("text", "label"), *rows]).encode()
    assert texts(back(content, "a.tsv", task="classify", format="tsv")) == rows


@OFTEN
@given(st.lists(st.tuples(text, label), min_size=1, max_size=8), ends, st.booleans(), st.booleans())
def test_json_comes_back(rows, end, ascii, listed):
    items = [{"text": text, "label": label, "id": i} for i, (text, label) in enumerate(rows)]
    content = json.dumps(items, ensure_ascii=ascii, indent=1) if listed else end.join(json.dumps(item, ensure_ascii=ascii) for item in items)
    assert texts(back(content.encode(), "a.jsonl")) == rows


@OFTEN
@given(st.lists(sentence, min_size=1, max_size=4), st.sampled_from(["\t", " ", "  "]), ends, st.sampled_from(["", "NN", "NN I-NP"]))
def test_columns_come_back(sentences, cut, end, between):
    assume(not between or not all(pairs[0][0].isdigit() for pairs in sentences))  # 1 NN O: is 1 a number of a word, or a word?
    lines = [end.join(cut.join([token, *between.split(), tag]) for token, tag in pairs) for pairs in sentences]
    data = back((end + end).join(lines).encode(), "a.conll", format="conll")
    found = [list(zip(row["tokens"], row["ner_tags"])) for row in data]
    assert [[token for token, _ in pairs] for pairs in found] == [[token for token, _ in pairs] for pairs in sentences]
    names = data.features["ner_tags"].feature.names
    kinds = lambda tags: [tag[2:] for tag in tags]
    assert [kinds(names[i] for _, i in pairs) for pairs in found] == [kinds(tag for _, tag in pairs) for pairs in sentences]


@OFTEN
@given(rows, st.booleans(), st.sampled_from(["to_parquet", "save_to_disk"]))
def test_typed_tables_come_back(rows, named, how):
    typed = datasets.Dataset.from_dict(dict(zip(("text", "label"), map(list, zip(*rows)))))
    typed = typed.class_encode_column("label") if named else typed
    assert texts(back(lambda path: getattr(typed, how)(str(path)), "a")) == rows


@OFTEN
@given(st.lists(spaced, min_size=1, max_size=4).filter(known), st.sampled_from(["jsonl", "json", "to_parquet", "save_to_disk"]))
def test_words_and_tags_come_back(sentences, how):
    items = [{"tokens": [token for token, _ in pairs], "ner_tags": [tag for _, tag in pairs]} for pairs in sentences]
    typed = datasets.Dataset.from_list(items)
    content = {"jsonl": "\n".join(map(json.dumps, items)).encode(), "json": json.dumps(items).encode()}.get(how) or (lambda path: getattr(typed, how)(str(path)))
    assert tagged(back(content, "a")) == [(item["tokens"], item["ner_tags"]) for item in items]


@OFTEN
@given(st.lists(spaced, min_size=1, max_size=4).filter(known), ends, st.booleans())
def test_slots_come_back(sentences, end, intent):
    def write(folder):
        folder.mkdir()
        for name, column in {"seq.in": 0, "seq.out": 1}.items():
            (folder / name).write_bytes("".join(" ".join(pair[column] for pair in pairs) + end for pairs in sentences).encode())
        if intent:
            (folder / "label").write_bytes("".join(f"intent {i}{end}" for i in range(len(sentences))).encode())
    assert tagged(back(write, "slots", task="ner")) == [tuple(map(list, zip(*pairs))) for pairs in sentences]
    if intent:
        assert [label for _, label in texts(back(write, "slots"))] == [f"intent {i}" for i in range(len(sentences))]


@OFTEN
@given(st.lists(spaced, min_size=2, max_size=4).filter(known), ends, st.sampled_from(["every", "first"]), st.sampled_from(["Sentence #,Word,POS,Tag", "sentence_id,words,pos,labels"]))
def test_a_word_in_each_row_comes_back(sentences, end, numbers, header):
    rows = [(f"Sentence: {i}" if not k or numbers == "every" else "", token, "NN", tag) for i, pairs in enumerate(sentences) for k, (token, tag) in enumerate(pairs)]
    csv.writer(out := io.StringIO(newline=""), lineterminator=end).writerows([header.split(","), *rows])
    assert tagged(back(out.getvalue().encode(), "a.csv", format="kaggle")) == [tuple(map(list, zip(*pairs))) for pairs in sentences]


@OFTEN
@given(st.lists(spaced, min_size=1, max_size=4).filter(known), ends)
def test_brackets_of_ontonotes_come_back(sentences, end):
    lines = ["#begin document (x); part 000"]
    for pairs in sentences:
        tags = [tag for _, tag in pairs] + ["O"]
        for i, (token, tag) in enumerate(pairs):
            cell = ("(" + tag[2:] if tag[0] == "B" else "") + "*" + (")" if tag != "O" and tags[i + 1][0] != "I" else "")
            lines.append(f"x 0 {i} {token} NN * - - - - {cell} (ARG0*) -")
        lines.append("")
    assert tagged(back(end.join(lines).encode(), "a.conll")) == [tuple(map(list, zip(*pairs))) for pairs in sentences]


@OFTEN
@given(st.lists(st.tuples(unmarked.map(lambda text: text.strip(" ")), st.lists(word, min_size=1, max_size=2, unique=True)), min_size=1, max_size=6), ends)
def test_fasttext_comes_back(rows, end):
    assume(not any(word.startswith("__label__") for text, labels in rows for word in (*text.split(" "), *labels)))
    content = end.join(" ".join([*(f"__label__{label}" for label in labels), text]) for text, labels in rows).encode()
    data = back(content, "a.txt", format="fasttext", task="multilabel")
    names = data.features["labels"].feature.names
    strip = lambda label: label.strip()
    assert [(row["text"], [names[i] for i in row["labels"]]) for row in data] == [(text, list(dict.fromkeys(map(strip, labels)))) for text, labels in rows]


@OFTEN
@given(st.dictionaries(st.sampled_from(["pos", "neg", "sci.space"]), st.lists(unmarked, min_size=1, max_size=3), min_size=2), st.sampled_from(["{}_9.txt", "{}"]))
def test_folders_of_texts_come_back(classes, name):
    def write(folder):
        for label, found in classes.items():
            (folder / label).mkdir(parents=True)
            for i, text in enumerate(found):
                (folder / label / name.format(i)).write_bytes(text.encode())
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "texts"))
        data = load(Path(folder, "texts"))
    assert sorted(pair for part in data.values() for pair in texts(part)) == sorted((text, label) for label, found in classes.items() for text in found)


@st.composite
def marked(draw) -> tuple[str, list[tuple[int, int, str]], list[str]]:
    "A text, spans of its words in characters, and the tags that they stand for."
    text = draw(unmarked.filter(split_words))
    words, names, at = split_words(text), [], 0
    while at < len(words):
        size = draw(st.integers(1, len(words) - at))
        if draw(st.booleans()):
            names.append((draw(st.sampled_from(["PER", "größe", "work of art"])), at, at + size))
        at += size
    spans = [(words[a][1], words[b - 1][2], kind) for kind, a, b in names]
    return text, spans, tags_from_spans([(kind.replace(" ", "_"), a, b) for kind, a, b in names], len(words))


TOOLS = {
    "doccano": lambda text, spans: {"id": 1, "text": text, "label": spans},
    "doccano, data": lambda text, spans: {"id": 1, "data": text, "label": spans},
    "doccano, relations": lambda text, spans: {"text": text, "entities": [{"id": 1, "start_offset": a, "end_offset": b, "label": kind} for a, b, kind in spans], "relations": []},
    "Prodigy": lambda text, spans: {"text": text, "spans": [{"start": a, "end": b, "label": kind} for a, b, kind in spans], "answer": "accept"},
    "spaCy": lambda text, spans: [text, {"entities": spans}],
    "spaCy, Doc.to_json": lambda text, spans: {"text": text, "ents": [{"start": a, "end": b, "label": kind} for a, b, kind in spans], "tokens": [{"start": a, "end": b} for _, a, b in split_words(text)]},
    "Label Studio": lambda text, spans: {"data": {"text": text}, "annotations": [{"result": [{"from_name": "ner", "value": {"start": a, "end": b, "text": text[a:b], "labels": [kind]}} for a, b, kind in spans]}]},
}


@OFTEN
@given(st.lists(marked(), min_size=1, max_size=4).filter(lambda rows: any(spans for _, spans, _ in rows)), st.sampled_from(sorted(TOOLS)), st.booleans())
def test_spans_of_tools_come_back(rows, tool, listed):
    items = [TOOLS[tool](text, spans) for text, spans, _ in rows]
    content = json.dumps(items, indent=1) if listed else "\n".join(map(json.dumps, items))
    assume(listed or tool != "spaCy" or len(items) > 1)  # [text, {…}] alone is a list of two rows
    assert tagged(back(content.encode(), "a.json")) == [([word for word, *_ in split_words(text)], tags) for text, _, tags in rows]


@OFTEN
@given(rows, st.sampled_from(["Label Studio", "Prodigy", "spaCy"]))
def test_classes_of_tools_come_back(rows, tool):
    make = {"Label Studio": lambda text, label: {"data": {"text": text}, "annotations": [{"result": [{"from_name": "mood", "value": {"choices": [label]}}]}]},
            "Prodigy": lambda text, label: {"text": text, "label": label, "answer": "accept"},
            "spaCy": lambda text, label: {"text": text, "cats": {name: float(name == label) for _, name in rows}}}[tool]
    assert texts(back(json.dumps([make(*row) for row in rows]).encode(), "a.json")) == rows


@OFTEN
@given(st.lists(st.tuples(st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=20), st.integers(0, 19), st.integers(1, 20)), min_size=1, max_size=5))
def test_spans_lie_inside_of_their_texts_or_are_refused(items):
    content = "\n".join(json.dumps({"text": text, "label": [[start, start + size, "X"]]}) for text, start, size in items)
    data = back(content.encode(), "a.jsonl")
    assert data is None or all(len(row["tokens"]) == len(row["ner_tags"]) for row in data)


broken = st.one_of(st.binary(max_size=200), st.text(st.sampled_from('{}[]",:\t \n\r\\text label tokens ner_tags O B-PER 1.5é\u2028'), max_size=200).map(str.encode),
                   st.tuples(rows, st.integers(0, 100), st.binary(max_size=3)).map(lambda t: table(t[0])[:t[1]] + t[2] + table(t[0])[t[1]:]))


@OFTEN
@given(broken, st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "a.conll", "a.txt.gz", "a.parquet"]), st.sampled_from([None, "conll", "csv", "tsv", "json", "fasttext", "ontonotes", "snips", "parquet"]))
def test_no_file_ends_in_a_traceback(content, name, format):
    back(content, name, format=format)


value = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
    ["text", "label", "labels", "spans", "start", "end", "data", "annotations", "result", "value", "tokens", "ner_tags", "cats", "answer", "accept", "paragraphs", "entities"]), inner, max_size=3), max_leaves=12)


@OFTEN
@given(st.lists(value, min_size=1, max_size=4))
def test_no_json_ends_in_a_traceback(items):
    back("\n".join(json.dumps(item) for item in items).encode(), "a.jsonl")


@OFTEN
@given(rows.filter(lambda rows: len(rows) > 3), st.integers(0, 3))
def test_a_cut_keeps_every_row_once(rows, seed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.jsonl")
        path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows), encoding="utf-8")
        try:
            data = load(path, seed=seed)
        except BadData as error:
            assert "is in the" in str(error)
            return
        assert sorted(pair for part in data.values() for pair in texts(part)) == sorted(rows)
