"""Random files of each format: no traceback but a message, and what is read back equals what was written. FT_COURSE_FUZZ=1000 for more."""
import csv
import io
import json
import os
import tempfile
from pathlib import Path

import datasets
from hypothesis import HealthCheck, assume, given, settings, strategies as st

from ft_course.data.formats import BadData
from ft_course.data.sources import load, load_split

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


def back(content: bytes, name: str, **options) -> datasets.Dataset | None:
    "What is read back; None where it is refused in one line that names the file."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(content)
        try:
            return load_split(path, **options)
        except (BadData, ValueError, FileNotFoundError) as error:
            assert "\n" not in str(error) and (name in str(error) or "no rows" in str(error)), str(error)
            return None


def texts(data: datasets.Dataset) -> list[tuple]:
    names = data.features["label"].names
    return [(row["text"], names[row["label"]]) for row in data]


def table(rows: list[tuple], **options) -> bytes:
    csv.writer(out := io.StringIO(newline=""), **options).writerows([("text", "label"), *rows])
    return out.getvalue().encode()


@OFTEN
@given(rows, st.sampled_from(",;|"), ends, st.sampled_from(["utf-8", "utf-8-sig"]), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_csv_comes_back(rows, delimiter, end, encoding, quoting):
    content = table(rows, delimiter=delimiter, lineterminator=end, quoting=quoting).decode().encode(encoding)
    assert texts(back(content, "a.csv", task="classify", format="csv")) == rows


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
@given(rows)
def test_parquet_comes_back(rows):
    typed = datasets.Dataset.from_dict(dict(zip(("text", "label"), map(list, zip(*rows)))))
    typed.to_parquet(out := io.BytesIO())
    assert texts(back(out.getvalue(), "a.parquet")) == rows


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
