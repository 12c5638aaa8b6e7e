"""People's own files: each kind that was ever read wrongly is read rightly now, or refused in one line with the way out."""
import bz2
import gzip
import io
import json
import logging
import lzma
import zipfile
from pathlib import Path

import datasets
import pytest

from ft_course.data.formats import BadData
from ft_course.data.sources import from_dataset_dict, load, load_split
from ft_course.data.splits import find_files, text_key
from ft_course.data.tables import Wanted, choose


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(data: datasets.Dataset) -> list[dict]:
    "Rows with the names of their classes."
    def spell(value, feature):
        inner = getattr(feature, "feature", feature)
        if not isinstance(inner, datasets.ClassLabel):
            return value
        return [inner.names[one] for one in value] if isinstance(value, list) else inner.names[value]
    return [{name: spell(value, data.features[name]) for name, value in row.items()} for row in data]


def read(path: Path, content: str | bytes, task: str | None = None, **options) -> list[dict]:
    "The rows of a file, none cut away."
    return rows(load_split(write(path, content), "test", task, **options))


def refusal(function, *args, **options) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        function(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def said(data: datasets.DatasetDict | datasets.Dataset) -> str:
    return (data if isinstance(data, datasets.Dataset) else data["train"]).info.description


# ---- CoNLL: columns and delimiters are a matter of the file

NER = {
    "GermEval": ("1\tAda\tB-PER\tO\n2\tFoe\tI-PER\tO\n3\tran\tO\tO\n\n1\tSie\tO\tO\n", [["Ada", "Foe", "ran"], ["Sie"]], [["B-PER", "I-PER", "O"], ["O"]]),
    "number, token, tag": ("1\tAda\tB-PER\n2\tran\tO\n", [["Ada", "ran"]], [["B-PER", "O"]]),
    "one row of GermEval": ("1\tAda\tB-PER\tO\n", [["Ada"]], [["B-PER"]]),
    "German CoNLL-2003": ("Am am PREP I-PC O\n12 12 CARD I-NC O\nAda Ada NE I-NC I-PER\n", [["Am", "12", "Ada"]], [["O", "O", "B-PER"]]),
    "one number of German CoNLL-2003": ("12 12 CARD I-NC I-LOC\n", [["12"]], [["B-LOC"]]),
    "a comment that ends like a tag": ("# text = Cleo drove down I-95\nCleo B-PER\ndrove O\ndown O\nI-95 B-LOC\n", [["Cleo", "drove", "down", "I-95"]], [["B-PER", "O", "O", "B-LOC"]]),
    "a no-break space inside a word": ("10\u00a0000 O\nAda B-PER\n", [["10\u00a0000", "Ada"]], [["O", "B-PER"]]),
    "a no-break space behind a tag": ("Lagos\tB-LOC\u00a0\nran\tO\n", [["Lagos", "ran"]], [["B-LOC", "O"]]),
    "bare carriage returns": ("Ada B-PER\rran O\r\rLagos B-LOC\r", [["Ada", "ran"], ["Lagos"]], [["B-PER", "O"], ["B-LOC"]]),
    "two carriage returns": ("Ada B-PER\r\r\nran O\r\r\n\r\r\nLagos B-LOC\r\r\n", [["Ada", "ran"], ["Lagos"]], [["B-PER", "O"], ["B-LOC"]]),
    "tag first": ("B-PER Ada\nO ran\n\nB-LOC Lagos\n", [["Ada", "ran"], ["Lagos"]], [["B-PER", "O"], ["B-LOC"]]),
    "tag first, tabs": ("B-PER\tAda Foe\nO\tran\n", [["Ada Foe", "ran"]], [["B-PER", "O"]]),
    "small letters": ("Ada b-PER\nFoe i-PER\nran o\n", [["Ada", "Foe", "ran"]], [["B-PER", "I-PER", "O"]]),
    "many blanks": ("Ada    B-PER\nran \t O\n", [["Ada", "ran"]], [["B-PER", "O"]]),
    "a number sign": ("# O\nAda B-PER\n", [["#", "Ada"]], [["O", "B-PER"]]),
    "a header": ("word\ttag\nAda\tB-PER\nran\tO\n", [["Ada", "ran"]], [["B-PER", "O"]]),
    "lines about several words": ("1-2\tdel\tO\n1\tde\tO\n2\tel\tO\n3\tOslo\tB-LOC\n", [["de", "el", "Oslo"]], [["O", "O", "B-LOC"]]),
    "IOE1": ("Ada I-PER\nFoe I-PER\nsaw O\nOslo E-LOC\nTurin I-LOC\n", [["Ada", "Foe", "saw", "Oslo", "Turin"]], [["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]]),
    "IOE2": ("Ada I-PER\nFoe E-PER\nOslo E-LOC\nTurin E-LOC\n", [["Ada", "Foe", "Oslo", "Turin"]], [["B-PER", "I-PER", "B-LOC", "B-LOC"]]),
    "BILOU": ("Ada B-PER\nvan I-PER\nFoe L-PER\nOslo U-LOC\n", [["Ada", "van", "Foe", "Oslo"]], [["B-PER", "I-PER", "I-PER", "B-LOC"]]),
    "BMES": ("Ada B-PER\nvan M-PER\nFoe E-PER\nOslo S-LOC\n", [["Ada", "van", "Foe", "Oslo"]], [["B-PER", "I-PER", "I-PER", "B-LOC"]]),
    "type first": ("Ada PER-B\nFoe PER-I\nran O\n", [["Ada", "Foe", "ran"]], [["B-PER", "I-PER", "O"]]),
    "type first, letters of BIOES": ("Ada PER-B\nFoe PER-E\nOslo LOC-S\n", [["Ada", "Foe", "Oslo"]], [["B-PER", "I-PER", "B-LOC"]]),
    "underscores": ("Ada B_PER\nFoe I_PER\nran O\n", [["Ada", "Foe", "ran"]], [["B-PER", "I-PER", "O"]]),
    "commas": ("Ada,B-PER\nran,O\n\nBo,B-PER\n", [["Ada", "ran"], ["Bo"]], [["B-PER", "O"], ["B-PER"]]),
    "commas and a header": ("token,tag\nAda,B-PER\nran,O\n\nBo,B-PER\n", [["Ada", "ran"], ["Bo"]], [["B-PER", "O"], ["B-PER"]]),
    "OntoNotes": ("#begin document (x); part 000\n" + "".join(f"x 0 {i} {w} NN * - - - - {ne} (ARG0*) -\n" for i, (w, ne) in enumerate([
        ("New", "(GPE*"), ("York", "*)"), ("saw", "*"), ("Ada", "(PERSON)")])) + "\n#end document\n", [["New", "York", "saw", "Ada"]], [["B-GPE", "I-GPE", "O", "B-PERSON"]]),
}


@pytest.mark.parametrize("text, tokens, tags", NER.values(), ids=NER)
def test_columns(tmp_path, text, tokens, tags):
    found = read(tmp_path / "a.conll", text)
    assert [row["tokens"] for row in found] == tokens and [row["ner_tags"] for row in found] == tags


@pytest.mark.parametrize("text, words", [
    ("Ada B-PER\nsaw O\nNew Lagos B-LOC\n", ["line 3", "3 columns", "most lines have 2"]),
    ("Ada B-PER\nsaw O\nLagos NNP\tB-LOC\n", ["line 3", "3 columns"]),
    ("Ada\tB-PER\nsaw\tO\nLagos B-LOC\n", ["line 3", "one column"]),
    ("Ada NNP B-NP B-PER\nsaw V B-VP O\nLagos N B-NP LOC\n", ["line 3", "unknown tag 'LOC'", "read as conll"]),
    ("Ada B-PER\nran O\n\nBo O\nFoe PER-I\n\nIt O\nI B-PER\n", ["line 4", "type first", "O PER-I"]),
    ("#begin document (x)\nx 0 0 New NN * - - - - (GPE(ORG* * -\n", ["line 2", "one inside of another"]),
    ("Word,Tag\nAda,B-PER\nran,O\n", ["nothing says where a sentence ends", "Sentence #"]),
    ("Sentence #,Word,Tag\n1,Ada,B-PER\n,ran,O\n,far,X\n", ["line 4", "unknown tag 'X'"]),
    ("Sentence #,Word,Tag\n1,Ada,B-PER\n,ran, away,O\n,far,O\n", ["line 3", "more columns"]),
])
def test_a_line_that_breaks_the_rule_is_named(tmp_path, text, words):
    message = refusal(load, write(tmp_path / "a.conll", text))
    assert all(word in message for word in ["a.conll", *words]), message


@pytest.mark.parametrize("text, words", [
    ("word tag\nAda B-PER\nFoe L-PER\nran O\n", ["1 line that names the columns passed over", "tags such as L-PER read as E-PER"]),
    ("1-2\tdel\tO\n1\tde\tO\n2\tel\tO\n", ["1 lines about several words", "columns 2 and 3"]),
    ("Ada I-PER\nFoe E-PER\n", ["tags rewritten from IOE2 to IOB2"]),
    ("Ada I-PER\nran O\nOslo E-LOC\nTurin I-LOC\n", ["tags rewritten from IOE1 to IOB2"]),
    ("".join(f"word{i} B-X\n\n" for i in range(10)), ["every sentence of test has one word"]),
])
def test_what_was_changed_in_columns_is_said(tmp_path, text, words):
    account = said(load_split(write(tmp_path / "a.conll", text)))
    assert all(word in account for word in words) and "repaired" not in account, account


# ---- names of files and splits

FOLDERS = {
    "CoNLL-2003": (["eng.train", "eng.testa", "eng.testb"], {"train": ["eng.train"], "validation": ["eng.testa"], "test": ["eng.testb"]}, []),
    "BioBERT": (["train.tsv", "train_dev.tsv", "devel.tsv", "test.tsv"], {"train": ["train.tsv"], "validation": ["devel.tsv"], "test": ["test.tsv"]}, ["train_dev.tsv"]),
    "val": (["train.csv", "val.csv", "test.csv", "README.md"], {"train": ["train.csv"], "validation": ["val.csv"], "test": ["test.csv"]}, ["README.md"]),
    "eval": (["train.csv", "eval.csv"], {"train": ["train.csv"], "validation": ["eval.csv"]}, []),
    "validation and development": (["training.csv", "Development.csv", "Test.csv"], {"train": ["training.csv"], "validation": ["Development.csv"], "test": ["Test.csv"]}, []),
    "two words for one split": (["train.csv", "val.csv", "eval.csv"], {"train": ["train.csv"], "validation": ["val.csv"]}, ["eval.csv"]),
    "folders": (["train/a.csv", "val/a.csv", "test/a.csv"], {"train": ["train/a.csv"], "validation": ["val/a.csv"], "test": ["test/a.csv"]}, []),
    "hub": (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet", "README.md"],
            {"train": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], "test": ["data/test-00000-of-00001.parquet"]}, ["README.md"]),
    "parts of words": (["train.csv", "contest.csv", "latest.csv", "trainer_notes.txt"], {"train": ["train.csv"]}, ["contest.csv", "latest.csv", "trainer_notes.txt"]),
    "aclImdb": (["train/pos/1_9.txt", "train/neg/1_1.txt", "train/unsup/1_0.txt", "train/urls_pos.txt", "test/pos/1_8.txt", "test/neg/1_2.txt", "imdb.vocab"],
                {"train": ["train/neg", "train/pos"], "test": ["test/neg", "test/pos"]}, ["imdb.vocab", "train/unsup", "train/urls_pos.txt"]),
    "slots": (["train/seq.in", "train/seq.out", "train/label", "valid/seq.in", "valid/seq.out", "test/seq.in", "test/seq.out"],
              {"train": ["train"], "validation": ["valid"], "test": ["test"]}, []),
}


FOLDERS |= {
    "texts without an ending": (["train/sci.space/123", "train/alt.atheism/7", "test/sci.space/9", "test/alt.atheism/4"],
                                {"train": ["train/alt.atheism", "train/sci.space"], "test": ["test/alt.atheism", "test/sci.space"]}, []),
    "underscores": (["_train.csv", "train.csv", ".train.csv"], {"train": ["train.csv"]}, ["_train.csv"]),
    "slots of one split": (["seq.in", "seq.out", "label"], {"all": ["."]}, []),
    "one saved table": (["data-00000-of-00001.arrow", "dataset_info.json", "state.json"], {"all": ["."]}, []),
}


@pytest.mark.parametrize("names, splits, unread", FOLDERS.values(), ids=FOLDERS)
def test_names_of_splits(tmp_path, names, splits, unread):
    for name in names:
        write(tmp_path / name, "x")
    found = find_files(tmp_path, {})
    relative = lambda paths: sorted(path.relative_to(tmp_path).as_posix() for path in paths)
    assert {split: relative(paths) for split, paths in found.splits.items()} == splits and relative(found.unread) == unread


def sentences(word: str, n: int) -> str:
    return "".join(f"{word}{i} B-PER\nran O\n\n" for i in range(n))


def test_dev_and_test_of_conll_2003_keep_their_rows(tmp_path):
    for name, n in {"eng.train": 12, "eng.testa": 4, "eng.testb": 6}.items():
        write(tmp_path / name, sentences(name[-2:], n))
    assert {split: len(part) for split, part in load(tmp_path).items()} == {"train": 12, "validation": 4, "test": 6}


def test_what_is_left_unread_is_said(tmp_path):
    for name in ("train.tsv", "train_dev.tsv", "devel.tsv", "test.tsv"):
        write(tmp_path / name, sentences(name, 3))
    write(tmp_path / "README", "x")
    data = load(tmp_path)
    assert len(data["train"]) == 3 and "left unread: README, train_dev.tsv" in said(data)
    write(tmp_path / "only" / "train_dev.tsv", "Ada B-PER\n")
    write(tmp_path / "only" / "test.tsv", "Ada B-PER\n")
    assert "left unread: train_dev.tsv" in refusal(load, tmp_path / "only")


REVIEWS = [("Good soup", "pos"), ("Bad soup", "neg"), ("Kind staff", "pos"), ("Cold room", "neg")]
CSV = "text,label\n" + "".join(f"{text},{label}\n" for text, label in REVIEWS)


def test_copies_within_a_split_are_said(tmp_path, caplog):
    write(tmp_path / "train.csv", CSV)
    write(tmp_path / "train.jsonl", "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in REVIEWS))
    write(tmp_path / "val.csv", "text,label\nOther,pos\n"), write(tmp_path / "test.csv", "text,label\nMore,neg\n")
    data = load(tmp_path)
    assert "4 of 8 rows of train repeat the text of another" in said(data) and "4 of 8 rows of train" in caplog.text


@pytest.mark.parametrize("a, b, copies", [
    ("well Ada :)", "well Ada :(", False), ("कि", "का", False), ("C++", "C#", False), ("fell by -5", "fell by 5", False), ("I <3 it", "I 3 it", False), ("5%", "5", False),
    ("How do I top-up?", "how do i top up", True), ("Cold soup.", "cold  SOUP!", True), ("“Yes,” she said…", '"yes" she said', True), ("नमस्ते!", "नमस्ते", True),
])
def test_what_copies_have_in_common(a, b, copies):
    assert (text_key({"text": a}) == text_key({"text": b})) == copies


# ---- columns

@pytest.mark.parametrize("header, chosen", [
    (("text", "label", "category"), {"text": "text", "label": "label"}),
    (("category", "label", "text"), {"text": "text", "label": "label"}),
    (("sentence", "text", "label"), {"text": "text", "label": "label"}),
    (("review", "sentiment"), {"text": "review", "label": "sentiment"}),
    (("Text", "Label"), {"text": "Text", "label": "Label"}),
    ((" text ", "LABEL"), {"text": " text ", "label": "LABEL"}),
    (("premise", "hypothesis", "label", "idx"), {"text_a": "premise", "text_b": "hypothesis", "label": "label"}),
    (("question1", "question2", "label"), {"text_a": "question1", "text_b": "question2", "label": "label"}),
    (("sentence1", "sentence2", "score"), {"text_a": "sentence1", "text_b": "sentence2", "label": "score"}),
    (("id", "tokens", "pos_tags", "ner_tags"), {"tokens": "tokens", "ner_tags": "ner_tags"}),
    (("words", "tags"), {"tokens": "words", "ner_tags": "tags"}),
])
def test_columns_that_are_read(header, chosen):
    assert choose(header, Wanted())[0] == chosen


def test_a_choice_between_columns_is_said(tmp_path):
    assert "`label` read as label, not `category`" in said(load_split(write(tmp_path / "a.csv", "text,label,category\nSoup,pos,food\nRoom,neg,house\n")))
    assert "`sentiment` is label" in said(load_split(write(tmp_path / "b.csv", "Review,sentiment\nSoup,pos\nRoom,neg\n")))


def test_the_user_names_the_columns(tmp_path):
    path = write(tmp_path / "a.csv", "headline,body,mark\nSoup,cold,bad\nStaff,kind,good\n")
    assert rows(load_split(path, text_column="headline", label_column="mark"))[0] == {"text": "Soup", "label": "bad"}
    assert rows(load_split(path, text_column="headline,body", label_column="mark"))[0] == {"text_a": "Soup", "text_b": "cold", "label": "bad"}
    message = refusal(load, path, text_column="titel", label_column="mark")
    assert "a.csv, line 2: no column 'titel'; the columns are headline, body, mark" in message
    message = refusal(load, path)
    assert "no `text`; the columns are headline, body, mark" in message and "text_column=" in message
    words = write(tmp_path / "b.jsonl", json.dumps({"w": ["Ada", "ran"], "t": ["B-PER", "O"]}))
    assert rows(load_split(words, text_column="w", tags_column="t")) == [{"tokens": ["Ada", "ran"], "ner_tags": ["B-PER", "O"]}]


@pytest.mark.parametrize("name, content, options, row", [
    ("news.csv", '3,"Oil","A barrel."\n1,"Ada","She ran."\n', dict(text_column="3", label_column="1"), {"text": "A barrel.", "label": "3"}),
    ("pairs.tsv", "a b\tc d\t1\ne f\tg h\t0\n", dict(text_column="1,2", label_column="3"), {"text_a": "a b", "text_b": "c d", "label": "1"}),
    ("a.conll", "Ada B-PER B-NP\nran O O\n", dict(tags_column="2"), {"tokens": ["Ada", "ran"], "ner_tags": ["B-PER", "O"]}),
    ("b.conll", "x Ada B-NP B-PER\ny ran O O\n", dict(text_column="2", tags_column="3"), {"tokens": ["Ada", "ran"], "ner_tags": ["B-NP", "O"]}),
])
def test_columns_without_a_name_have_a_number(tmp_path, name, content, options, row):
    assert read(tmp_path / name, content, **options)[0] == row


def test_a_column_that_is_not_there_by_number(tmp_path):
    assert "no column 5" in refusal(load, write(tmp_path / "a.conll", "Ada B-PER\nran O\n"), tags_column="5")
    assert "no column '5'" in refusal(load, write(tmp_path / "a.csv", CSV), text_column="5", label_column="1")


def test_a_folder_is_no_file(tmp_path):
    for label in ("pos", "neg"):
        write(tmp_path / "texts" / label / "0.txt", "x")
    assert "is a folder: format 'csv' reads files" in refusal(load, tmp_path / "texts", format="csv")
    assert "is a file: format 'slots' reads folders" in refusal(load, write(tmp_path / "a.csv", CSV), format="slots")


def test_unknown_formats_and_tasks_list_the_known(tmp_path):
    assert "conll, table, csv" in refusal(load, write(tmp_path / "a.csv", CSV), format="excel")
    assert "multilabel" in refusal(load, tmp_path / "a.csv", "sentiment")


# ---- tables

TABLES = {
    "semicolons": "text;label\nGood soup;pos\nBad soup;neg\nKind staff;pos\nCold room;neg\n",
    "tabs": "text\tlabel\nGood soup\tpos\nBad soup\tneg\nKind staff\tpos\nCold room\tneg\n",
    "bars": "text|label\nGood soup|pos\nBad soup|neg\nKind staff|pos\nCold room|neg\n",
    "no header, label first": "pos\tGood soup\nneg\tBad soup\npos\tKind staff\nneg\tCold room\n",
    "no header, label last": "Good soup,pos\nBad soup,neg\nKind staff,pos\nCold room,neg\n",
    "blanks behind classes": "text,label\nGood soup,pos \nBad soup, neg\nKind staff,pos\nCold room,neg\u00a0\n",
    "bare carriage returns": CSV.replace("\n", "\r"),
    "Windows": "\ufeff" + CSV.replace("\n", "\r\n"),
    "Excel's first line": "sep=;\n" + CSV.replace(",", ";"),
    "capitals": CSV.replace("text,label", "Text,Label"),
    "empty lines": CSV.replace("\n", "\n\n"),
    "fastText": "__label__pos Good soup\n__label__neg Bad soup\n__label__pos Kind staff\n__label__neg Cold room\n",
    "JSON list": json.dumps([{"text": text, "label": label} for text, label in REVIEWS], indent=1),
    "JSON objects over lines": "\n".join(json.dumps({"text": text, "label": label}, indent=2) for text, label in REVIEWS),
    "JSON with a version": json.dumps({"version": 1, "data": [{"text": text, "label": label} for text, label in REVIEWS]}),
    "JSON in an object": json.dumps({"rows": [{"text": text, "label": label} for text, label in REVIEWS]}),
}


@pytest.mark.parametrize("packed", ["", "gz", "bz2", "xz", "zip"])
@pytest.mark.parametrize("content", TABLES.values(), ids=TABLES)
def test_tables_of_texts(tmp_path, content, packed):
    raw = content.encode()
    raw = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(packed, bytes)(raw)
    if packed == "zip":
        with zipfile.ZipFile(archive := io.BytesIO(), "w") as file:
            file.writestr("inside.csv", raw)
        raw = archive.getvalue()
    assert read(tmp_path / f"a.csv{packed and '.' + packed}", raw) == [{"text": text, "label": label} for text, label in REVIEWS]


def test_an_open_quote_swallows_no_rows(tmp_path):
    lines = [f'{chr(34) if i == 3 else ""}text {i}{" six" + chr(34) if i == 9 else ""}' for i in range(20)]
    found = read(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"{line}\t{'ab'[i % 2]}\n" for i, line in enumerate(lines)) .replace('six"', 'six" long'))
    assert len(found) == 20 and found[3]["text"] == '"text 3'
    both = "text\tlabel\n" + "".join(f"{line}\t{'ab'[i % 2]}\n" for i, line in enumerate(lines))
    assert "format='csv'" in refusal(load, write(tmp_path / "b.tsv", both))
    assert len(rows(load_split(tmp_path / "b.tsv", format="tsv"))) == 20
    quoted = 'text\tlabel\n"a ""b"" c"\tx\n"two\nlines"\ty\n'
    assert [row["text"] for row in read(tmp_path / "c.tsv", quoted)] == ['a "b" c', "two\nlines"]


def test_a_return_that_ends_no_line_is_a_letter(tmp_path):
    assert [row["text"] for row in read(tmp_path / "a.csv", "text,label\n\rGo\rod,x\nBad,y\n")] == ["\rGo\rod", "Bad"]
    assert [row["text"] for row in read(tmp_path / "b.csv", 'text,label\r"Go\nod",x\rBad,y\r')] == ["Go\nod", "Bad"]


def test_long_cells_are_read(tmp_path):
    assert len(read(tmp_path / "a.csv", f"text,label\n{'x' * 150_000},pos\nshort,neg\n")[0]["text"]) == 150_000


def test_lists_in_cells(tmp_path):
    content = "tokens,ner_tags\n\"['Ada', 'saw', \"\"O'Neill\"\"]\",\"['B-PER', 'O', 'B-PER']\"\n"
    assert read(tmp_path / "a.csv", content) == [{"tokens": ["Ada", "saw", "O'Neill"], "ner_tags": ["B-PER", "O", "B-PER"]}]
    assert read(tmp_path / "b.csv", "tokens,ner_tags\nAda saw,B-PER O\n") == [{"tokens": ["Ada", "saw"], "ner_tags": ["B-PER", "O"]}]
    assert "numpy" in refusal(load, write(tmp_path / "c.csv", "tokens,ner_tags\n['Ada' 'saw'],['B-PER' 'O']\n"))


def test_kaggle(tmp_path):
    header = "Sentence #,Word,POS,Tag\n"
    header2, row = "sentence_id,words,labels\n", [{"tokens": ["Ada", "saw"], "ner_tags": ["B-per", "O"]}, {"tokens": ["Rain"], "ner_tags": ["O"]}]
    assert read(tmp_path / "simple.csv", header2 + "0,Ada,B-per\n0,saw,O\n1,Rain,O\n") == row
    assert "cut by semicolons" in said(load_split(write(tmp_path / "semi.csv", (header2 + "0,Ada,B-per\n0,saw,O\n").replace(",", ";"))))
    for name, first in {"blank": "Sentence: 1,Ada,NNP,B-per\n,saw,VBD,O\n", "each": "Sentence: 1,Ada,NNP,B-per\nSentence: 1,saw,VBD,O\n"}.items():
        found = read(tmp_path / f"{name}.csv", header + first + "Sentence: 2,Rain,NN,O\n")
        assert found == [{"tokens": ["Ada", "saw"], "ner_tags": ["B-per", "O"]}, {"tokens": ["Rain"], "ner_tags": ["O"]}]


# ---- labels: classes, several, numbers; and nothing goes through str() on the quiet

def jsonl(*items) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


@pytest.mark.parametrize("labels, column, values, task", [
    (["a", "b"], "label", ["a", "b"], None), ([0, 1], "label", ["0", "1"], None), ([0.0, 1.0], "label", ["0", "1"], None), ([True, False], "label", ["True", "False"], None),
    ([["joy", "fear"], []], "labels", [["fear", "joy"], []], None), ([["pos"], ["neg"]], "labels", [["pos"], ["neg"]], "classify"),
    ([0.5, 1.0], "score", [0.5, 1.0], "classify"), (["3.5", "4"], "score", [3.5, 4.0], None), ([0, 1], "score", [0.0, 1.0], "regression"), (["a", "b"], "labels", [["a"], ["b"]], "multilabel"),
])
def test_kinds_of_answers(tmp_path, labels, column, values, task):
    found = read(tmp_path / "a.jsonl", jsonl(*({"text": f"text {i}", "label": label} for i, label in enumerate(labels))), task)
    answers = [sorted(row[column]) if column == "labels" else row[column] for row in found]
    assert answers == values and found[0].keys() == {"text", column}


BAD_ROWS = {
    "a text alone": ("Ada", "no row"),
    "null": (None, "no row"),
    "a span of two types": ({"text": "Ada", "spans": [{"start": 0, "end": 3, "labels": ["PER", "X"]}]}, "needs one type"),
    "a number for a tag": ({"tokens": ["Ada"], "ner_tags": [1]}, "unknown tag '1': expected O, or B-TYPE, I-TYPE, E-TYPE, S-TYPE, and no number"),
    "a number for a text": ({"text": 5, "label": "a"}, "no `text`: column 'text' holds 5"),
    "no text": ({"text": None, "label": "a"}, "no `text`: column 'text' holds None"),
    "a list for a text": ({"text": ["a"], "label": "a"}, "column 'text' holds ['a']"),
    "no label": ({"text": "a", "label": None}, "no `label`"),
    "nan": ({"text": "a", "label": float("nan")}, "no `label`"),
    "an object for a label": ({"text": "a", "label": {"a": 1}}, "`label` holds dict"),
    "a list of numbers": ({"text": "a", "label": [1, 2]}, "`label` holds list"),
    "a token that is none": ({"tokens": ["Ada", None], "ner_tags": ["B-PER", "O"]}, "token None is no text"),
    "no tags": ({"tokens": ["Ada"], "ner_tags": None}, "no `ner_tags`"),
    "a tag that is none": ({"tokens": ["Ada"], "ner_tags": [None]}, "unknown tag 'None'"),
    "a list": ([1, 2], "no row"),
    "a number": (7, "no row"),
    "half a character": ({"text": "\ud800", "label": "a"}, "surrogates not allowed"),
    "a span outside": ({"text": "Ada", "spans": [{"start": 0, "end": 9, "label": "PER"}]}, "does not fit into a text of 3 characters"),
}


@pytest.mark.parametrize("row, words", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_refused_with_its_place(tmp_path, row, words):
    good = {"tokens": ["Ada"], "ner_tags": ["O"]} if isinstance(row, dict) and "tokens" in row else {"text": "Ada", "label": "a"} if not isinstance(row, dict) or "spans" not in row else {"text": "Ada", "spans": []}
    message = refusal(load, write(tmp_path / "a.jsonl", jsonl(good, row)))
    assert "a.jsonl, line 2" in message and words in message, message


def test_sentences_without_words_are_left_out_and_counted(tmp_path):
    data = load_split(write(tmp_path / "a.jsonl", jsonl({"tokens": [], "ner_tags": []}, {"tokens": ["Ada"], "ner_tags": ["B-PER"]})))
    assert len(data) == 1 and "1 rows left out: no words" in said(data)


# ---- annotation tools

TEXT, TAGS = "Ada Foe saw Oslo.", ["B-PER", "I-PER", "O", "B-LOC", "O"]
STUDIO = {"id": 1, "data": {"text": TEXT}, "annotations": [{"was_cancelled": True, "result": []}, {"was_cancelled": False, "result": [
    {"from_name": "ner", "to_name": "text", "type": "labels", "value": {"start": s, "end": e, "text": TEXT[s:e], "labels": [kind]}} for s, e, kind in ((0, 7, "PER"), (12, 16, "LOC"))]}]}
TOOLS = {
    "doccano": jsonl({"id": 1, "text": TEXT, "label": [[0, 7, "PER"], [12, 16, "LOC"]]}),
    "doccano, labels": jsonl({"id": 1, "text": TEXT, "labels": [[0, 7, "PER"], [12, 16, "LOC"]]}),
    "doccano, relations": jsonl({"text": TEXT, "entities": [{"id": 1, "label": "PER", "start_offset": 0, "end_offset": 7}, {"id": 2, "label": "LOC", "start_offset": 12, "end_offset": 16}], "relations": []}),
    "Prodigy": jsonl({"text": TEXT, "spans": [{"start": 0, "end": 7, "label": "PER"}, {"start": 12, "end": 16, "label": "LOC"}], "answer": "accept", "_input_hash": 1,
                      "tokens": [{"text": TEXT[s:e], "start": s, "end": e, "id": i} for i, (s, e) in enumerate([(0, 3), (4, 7), (8, 11), (12, 16), (16, 17)])]}),
    "spaCy, pairs": json.dumps([[TEXT, {"entities": [[0, 7, "PER"], [12, 16, "LOC"]]}]]),
    "spaCy, Doc.to_json": jsonl({"text": TEXT, "ents": [{"start": 0, "end": 7, "label": "PER"}, {"start": 12, "end": 16, "label": "LOC"}], "tokens": [{"id": i, "start": s, "end": e} for i, (s, e) in enumerate([(0, 3), (4, 7), (8, 11), (12, 16), (16, 17)])]}),
    "spaCy 2": json.dumps([{"id": 0, "paragraphs": [{"sentences": [{"tokens": [{"orth": w, "ner": t} for w, t in zip(["Ada", "Foe", "saw", "Oslo", "."], ["B-PER", "L-PER", "O", "U-LOC", "O"])]}]}]}]),
    "Label Studio": json.dumps([STUDIO], indent=1),
    "Label Studio, minimal": json.dumps([{"id": 1, "text": TEXT, "label": [{"start": 0, "end": 7, "text": "Ada Foe", "labels": ["PER"]}, {"start": 12, "end": 16, "text": "Oslo", "labels": ["LOC"]}]}]),
    "doccano, data": jsonl({"id": 1, "data": TEXT, "label": [[0, 7, "PER"], [12, 16, "LOC"]]}),
    "spaCy, pairs by line": jsonl([TEXT, {"entities": [[0, 7, "PER"], [12, 16, "LOC"]]}]) * 2,
    "spaCy, an object": json.dumps({"classes": ["PER", "LOC"], "annotations": [[TEXT, {"entities": [[0, 7, "PER"], [12, 16, "LOC"]]}], None]}),
    "Label Studio, one task": json.dumps(STUDIO),
    "blanks inside of a span": jsonl({"text": TEXT, "label": [[0, 8, "PER"], [11, 16, "LOC"]]}),
}


@pytest.mark.parametrize("content", TOOLS.values(), ids=TOOLS)
def test_spans_of_characters(tmp_path, content):
    assert read(tmp_path / "a.json", content)[:1] == [{"tokens": ["Ada", "Foe", "saw", "Oslo", "."], "ner_tags": TAGS}]


def test_spans_that_cut_words_are_counted_with_the_first(tmp_path):
    content = jsonl({"text": TEXT, "label": [[0, 7, "PER"], [8, 10, "ORG"]]}, {"text": "No name.", "label": []}, {"text": "Ada ran.", "label": [[0, 3, "PER"]]})
    data = load_split(write(tmp_path / "a.jsonl", content))
    assert "1 of 3 spans cut a word" in said(data) and "line 1: 'sa' as ORG" in said(data) and len(data) == 3
    assert "one too small" in refusal(load, write(tmp_path / "b.jsonl", jsonl({"text": TEXT, "label": [[0, 6, "PER"], [12, 15, "LOC"]]})))


def test_overlapping_spans_keep_the_longer(tmp_path):
    content = jsonl({"text": "University of Oslo", "label": [[14, 18, "LOC"], [0, 18, "ORG"], [0, 18, "ORG"]]}, {"text": "Ada", "label": [[0, 3, "PER"]]})
    data = load_split(write(tmp_path / "a.jsonl", content))
    assert rows(data)[0]["ner_tags"] == ["B-ORG", "I-ORG", "I-ORG"] and "1 of 3 spans" in said(data)


def test_rejected_rows_of_prodigy_are_left_out(tmp_path):
    content = jsonl({"text": "Good soup", "label": "FOOD", "answer": "accept"}, {"text": "Bad day", "label": "FOOD", "answer": "reject"}, {"text": "Hm", "label": "DAY", "answer": "ignore"},
                    {"text": "Fine day", "label": "DAY", "answer": "accept"})
    data = load_split(write(tmp_path / "a.jsonl", content))
    assert len(data) == 2 and "1 rows left out: answer 'reject'" in said(data) and "1 rows left out: answer 'ignore'" in said(data)


def chosen(*labels, spans=()) -> dict:
    "An annotation of Label Studio."
    return {"result": [{"from_name": "mood", "value": {"choices": [label]}} for label in labels] + [{"from_name": "ner", "value": span} for span in spans]}


def test_label_studio_says_what_it_leaves_out(tmp_path):
    span = {"start": 0, "end": 3, "labels": ["PER"]}
    tasks = [{"data": {"text": "Ada"}, "annotations": [chosen("x", spans=[span]), chosen("y")]}, {"data": {"text": "Bo"}, "annotations": [chosen("y", spans=[span | {"end": 2}])]}, {"data": {"text": "c"}, "annotations": [chosen()]}]
    path = write(tmp_path / "a.json", json.dumps(tasks))
    account = said(load_split(path))
    assert "1 texts have several annotations" in account and "1 rows left out: no choice was made" in account and "task='ner' reads them" in account
    assert rows(load_split(path, task="ner"))[1] == {"tokens": ["Bo"], "ner_tags": ["B-PER"]}


@pytest.mark.parametrize("content, expected", [
    (jsonl({"text": "a", "options": [{"id": "x"}, {"id": "y"}], "accept": ["x"], "config": {"choice_style": "single"}, "answer": "accept"}), {"label": "x"}),
    (jsonl({"text": "a", "options": [{"id": "x"}, {"id": "y"}], "accept": ["x", "y"], "answer": "accept"}), {"labels": ["x", "y"]}),
    (jsonl({"text": "a", "cats": {"x": 1.0, "y": 0.0}}), {"label": "x"}),
    (jsonl({"text": "a", "label": ["x"]}), {"labels": ["x"]}),
    (json.dumps([{"data": {"text": "a"}, "annotations": [{"result": [{"from_name": "mood", "value": {"choices": ["x"]}}]}]}]), {"label": "x"}),
    (json.dumps([{"data": {"review": "a"}, "annotations": [{"result": [{"from_name": "mood", "value": {"choices": ["x"]}}]}]}, {"data": {"review": "b"}, "annotations": []}]), {"label": "x"}),
    ("__label__x __label__y a\n__label__x b\n", {"labels": ["x", "y"]}),
    ("__label__x\u00a0y a\n__label__x b\n", {"label": "x\u00a0y"}),
])
def test_classes_of_tools(tmp_path, content, expected):
    assert read(tmp_path / "a.json", content)[0] == {"text": "a"} | expected


# ---- folders and typed tables

def test_folders_of_texts(tmp_path):
    for split in ("train", "test"):
        for label in ("pos", "neg"):
            for i in range(10):
                write(tmp_path / split / label / f"{i}_9.txt", f"{split} {label} {i}\nend\n")
    write(tmp_path / "train" / "unsup" / "1_0.txt", "who knows")
    data = load(tmp_path)
    assert len(data["train"]) + len(data["validation"]) == 20 and len(data["test"]) == 20
    assert {"text": "test neg 0\nend", "label": "neg"} in rows(data["test"]) and "train/unsup" in said(data)


def test_folders_of_slots(tmp_path):
    for split, n in {"train": 4, "valid": 2, "test": 2}.items():
        write(tmp_path / split / "seq.in", "".join(f"play song {split}{i}\n" for i in range(n)))
        write(tmp_path / split / "seq.out", "O O B-track\n" * n)
        write(tmp_path / split / "label", "PlayMusic\nGetWeather\n" * (n // 2))
    assert rows(load(tmp_path, "ner")["test"])[0] == {"tokens": ["play", "song", "test0"], "ner_tags": ["O", "O", "B-track"]}
    assert rows(load(tmp_path)["test"])[1] == {"text": "play song test1", "label": "GetWeather"}
    write(tmp_path / "test" / "label", "PlayMusic\n")
    assert "as many lines" in refusal(load, tmp_path)


def typed(labels, names=("neg", "pos"), start=0) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"sentence": [f"text {start + i}" for i in range(len(labels))], "idx": list(range(len(labels))), "label": labels},
                                      features=datasets.Features(sentence=datasets.Value("string"), idx=datasets.Value("int32"), label=datasets.ClassLabel(names=list(names))))


def tagged(tags, names) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"tokens": [["Ada", "Foe", "saw", "Oslo"]] * len(tags), "ner_tags": tags},
                                      features=datasets.Features(tokens=datasets.Sequence(datasets.Value("string")), ner_tags=datasets.Sequence(datasets.ClassLabel(names=names))))


@pytest.mark.parametrize("how", ["parquet", "saved", "given"])
def test_typed_tables(tmp_path, how):
    data = datasets.DatasetDict(train=typed([1, 0] * 5), validation=typed([1, 0], start=20), test=typed([0, 1, -1], start=30))
    if how == "parquet":
        (tmp_path / "data").mkdir()
        for split, part in data.items():
            part.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    elif how == "saved":
        data.save_to_disk(tmp_path)
    found = load(data if how == "given" else tmp_path)
    assert rows(found["test"]) == [{"text": "text 30", "label": "neg"}, {"text": "text 31", "label": "pos"}] and found["train"].features["label"].names == ["neg", "pos"]
    assert "1 rows left out: no label" in said(found)


def test_a_split_without_labels_is_never_scored():
    data = datasets.DatasetDict(train=typed([1, 0] * 10), validation=typed([1, 0], start=30), test=typed([-1, -1], start=40))
    assert "test" not in from_dataset_dict(data) and "2 rows left out: no label" in said(from_dataset_dict(data))
    found = load(data)
    assert len(found["test"]) == 2 and {row["text"] for row in rows(found["test"])} < {f"text {i}" for i in range(20)}
    assert "test has no labelled row" in said(found)


@pytest.mark.parametrize("names, ids, scheme", [(["O", "I-PER", "I-LOC"], [1, 1, 0, 2], "IO"), (["O", "B-PER", "I-PER", "I-LOC"], [2, 2, 0, 3], "IOB1")])
def test_typed_tags_become_iob2(names, ids, scheme):
    data = datasets.DatasetDict({split: tagged([ids] * 3, names) for split in ("train", "validation", "test")})
    found = from_dataset_dict(data, "ner")
    assert rows(found["test"])[0]["ner_tags"] == ["B-PER", "I-PER", "O", "B-LOC"]
    if scheme == "IO":
        assert "tags rewritten from IO to IOB2" in said(found)


def test_what_is_right_already_comes_back_as_it_is():
    for data in (load("reviews"), load("newswire")):
        assert from_dataset_dict(data) is data


def test_an_account_is_told_once(tmp_path, caplog):
    own = datasets.DatasetDict(train=typed([1, 1], names=("neg", "pos")).rename_column("sentence", "text").select_columns(["text", "label"]))
    with caplog.at_level(logging.INFO, logger="ft_course.data.sources"):
        assert from_dataset_dict(own) is own and "one class only" in caplog.text
        caplog.clear()
        data = load(write(tmp_path / "a.csv", "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40))))
        told = len(caplog.records)
        assert from_dataset_dict(data) is data and len(caplog.records) == told > 0


def test_a_dataset_is_split():
    assert {split: len(part) for split, part in load(typed([1, 0] * 50)).items()} == {"train": 70, "validation": 20, "test": 10}


# ---- one new file as it is

def test_a_file_counts_whole(tmp_path):
    assert rows(load_split(write(tmp_path / "new.csv", CSV)))[0] == {"text": "Good soup", "label": "pos"} and len(load_split(tmp_path / "new.csv")) == 4
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]}).save_to_disk(str(tmp_path / "saved"))
    assert len(load_split(tmp_path / "saved")) == 2
    write(tmp_path / "only" / "test.csv", CSV)
    assert len(load_split(tmp_path / "only")) == 4
    assert "no rows to train on" in refusal(load, tmp_path / "only")
    assert rows(load_split("reviews", "validation")) == rows(load("reviews")["validation"])
    write(tmp_path / "cut" / "train.csv", "text,label\n" + "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40)))
    assert rows(load_split(tmp_path / "cut", "test")) == rows(load(tmp_path / "cut")["test"])


# ---- what can't be read is refused by name, with the way out

REFUSED = {
    "UTF-16": (CSV.encode("utf-16"), ["UTF-16", "CSV UTF-8"]),
    "UTF-16 without a mark": (CSV.encode("utf-16-le"), ["line 1", "zero byte"]),
    "Latin-1": (b"text,label\ncaf\xe9,pos\n", ["line 2", "0xe9"]),
    "an Excel workbook": (b"PK\x03\x04", ["unpack"]),
    "half a gzip file": (gzip.compress(CSV.encode())[:-9], ["unpack", "cut short"]),
    "half a JSON list": (b'[{"text": "a", "label": "b"}, {"text"', ["line 1"]),
    "a list without its end": (b'[{"text": "a", "label": "b"}', ["cut short"]),
    "no parquet": (b"PAR1abc", ["parquet"]),
    "a quote that never closes": (b'text,label\n"a, b,pos\nc,neg\n', ["behind line", "format='tsv'"]),
    "twice the same column": (b"text,text,label\na,b,c\n", ["'text' twice"]),
    "quotes behind backslashes": (b'text,label\n"Say \\"hi\\" now",pos\n"Bad",neg\n', ["backslashes", "Double them"]),
    "blanks before quotes": (b'text,label\nGood,pos\nBad, "neg"\n', ["a blank stands in front of a quote"]),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n", ["git lfs pull"]),
    "an archive in another": (gzip.compress(gzip.compress(CSV.encode())), ["unpack it"]),
    "an archive of zstd": (b"\x28\xb5\x2f\xfdabc", ["archive"]),
    "a tar archive": (gzip.compress(b"train.csv" + bytes(248) + b"ustar" + bytes(300)), ["tar archive"]),
    "an old Excel workbook": (b"\xd0\xcf\x11\xe0" + bytes(50), ["old Office file", "CSV UTF-8"]),
    "an Arrow file": (b"\xff\xff\xff\xff\x10" + bytes(50), ["Arrow", "save_to_disk"]),
    "a name twice in an object": (b'{"text": "a", "text": "b", "label": "x"}', ["line 1", "'text' stands twice"]),
    "a web page": (b"<html></html>", ["no rows to train on", "read a.csv (table"]),
    "only rejected rows": (b'{"text": "a", "label": "x", "answer": "reject"}', ["no rows to train on", "1 rows left out: answer 'reject'"]),
    "one column": (b"text\nGood\n", ["line 2", "no `label`", "label_column="]),
    "a sentence per line": (b"Ada saw Oslo\nRain fell\n", ["line 2", "no `text`"]),
}


@pytest.mark.parametrize("content, words", REFUSED.values(), ids=REFUSED)
def test_refused_by_name(tmp_path, content, words):
    message = refusal(load, write(tmp_path / "a.csv", content))
    assert all(word in message for word in ["a.csv", *words]), message


@pytest.mark.parametrize("content, warning", [
    ("text,label\n" + "".join(f"text {i},pos\n" for i in range(30)), "train has one class only, 'pos'"),
    ("".join(f"word{i} O\n\n" for i in range(30)), "all tags of train are O"),
    ("text,label\na,x\nb,y\n", "validation has no rows"),
    ("text,label\na,x\nb,y\n ,y\n", "1 texts without a word"),
    ("text,label\na,Good\nb,good\nc,bad\n", "'Good' and 'good' are two classes"),
    ("text,label\na,1\nb,1.0\nc,0\n", "'1' and '1.0' are two classes"),
    ("text,label\n" + "a,x\nb,y\n" * 20, "38 of 40 rows repeat the text of another"),
])
def test_data_that_cannot_teach_are_said(tmp_path, caplog, content, warning):
    with caplog.at_level(logging.INFO, logger="ft_course.data.sources"):
        data = load(write(tmp_path / "a.csv", content))
    assert warning in caplog.text and warning in said(data)


def test_a_folder_of_the_name_of_a_corpus_is_said(tmp_path, monkeypatch, caplog):
    write(tmp_path / "reviews" / "train.csv", CSV)
    monkeypatch.chdir(tmp_path)
    assert len(load("reviews")["train"]) == 700 and "./reviews" in caplog.text
    assert len(load("./reviews")["train"]) < 5


def test_the_account_is_one_line(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="ft_course.data.sources"):
        data = load(write(tmp_path / "a.tsv", "text\tlabel\n" + "".join(f"text {i}\t{'ab'[i % 2]}\n" for i in range(40))))
    line, = [record.getMessage() for record in caplog.records]
    assert all(part in line for part in ["read a.tsv (table", "UTF-8", "train 28", "validation 8", "test 4", "split by seed 0"]) and said(data) in line
