"""load: every format, every public set with the counts of its manifest, splits without leaks, and bad input."""
import gzip
import json
import logging
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

import datasets
import pytest

from ft_course.data import readers, tables
from ft_course.data.formats import BadData
from ft_course.data.public import PUBLIC
from ft_course.data.sources import load
from ft_course.data.splits import cut, text_key

CONLL = "Ada B-PER\nmet O\nJosé B-PER\nFoe I-PER\n\nRain O\nin O\nTurin B-LOC\n"
load_once = lru_cache(load)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def folder_of(path: Path, ending: str, **splits) -> Path:
    for split, content in splits.items():
        write(path / f"{split}{ending}", content)
    return path


def class_names(data: datasets.DatasetDict) -> list[str]:
    feature = list(data["train"].features.values())[1]
    return getattr(feature, "feature", feature).names


def tags(data: datasets.DatasetDict, split: str = "train") -> list[list[str]]:
    names = class_names(data)
    return [[names[tag] for tag in row] for row in data[split]["ner_tags"][:]]


# ---- formats

@pytest.mark.parametrize("text, scheme", [
    (CONLL, "IOB2"),
    (CONLL.replace(" ", "\t"), "IOB2"),
    ("-DOCSTART- -X- -X- O\n\n" + re.sub(r" (\S+)$", r" NN B-NP \1", CONLL, flags=re.M), "IOB2"),
    ("# newdoc id = 1\n# text = Ada met José Foe\n" + re.sub(r"(?m)^(\S+) (\S+)$", "1\t\\1\t\\2\t-\tann", CONLL), "IOB2"),
    (CONLL.replace("B-PER", "I-PER").replace("B-LOC", "I-LOC"), "IO"),
    (CONLL.replace("Ada B-PER", "Ada S-PER").replace("Foe I", "Foe E").replace("Turin B", "Turin S"), "BIOES"),
    (CONLL.replace("\n\n", "\n\t\n").replace("\n", "\r\n"), "IOB2"),
])
def test_columns_in_every_scheme_come_out_alike(tmp_path, text, scheme):
    data = load(folder_of(tmp_path, ".txt", train=text, dev=text, test=text))
    assert data["train"]["tokens"][:] == [["Ada", "met", "José", "Foe"], ["Rain", "in", "Turin"]]
    assert tags(data) == [["B-PER", "O", "B-PER", "I-PER"], ["O", "O", "B-LOC"]]
    assert class_names(data) == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert ("tags rewritten from " + scheme in data["train"].info.description) == (scheme != "IOB2")


def test_iob1_keeps_the_border_between_neighbours(tmp_path):
    text = "Ada I-PER\nFoe I-PER\nJosé B-PER\nran O\n\nTurin I-LOC\n"
    data = load(folder_of(tmp_path, ".conll", train=text, dev=text, test=text))
    assert tags(data) == [["B-PER", "I-PER", "B-PER", "O"], ["B-LOC"]]
    assert "from IOB1" in data["train"].info.description


def test_a_number_sign_is_a_word_where_a_tag_follows(tmp_path):
    text = "# a comment\nUnit NN - O\n# # - I-LOC\n12 CD - I-LOC\n"
    data = load(folder_of(tmp_path, ".txt", train=text, dev=text, test=text))
    assert data["train"]["tokens"][0] == ["Unit", "#", "12"]


@pytest.mark.parametrize("ending, text", [
    (".jsonl", '{"text": "Cold, late.", "label": "bad"}\n\n{"text": "Kind.", "label": "good"}\n'),
    (".csv", 'text,label\n"Cold, late.",bad\nKind.,good\n'),
    (".tsv", "id\ttext\tlabel\n1\tCold, late.\tbad\n2\tKind.\tgood\n"),
    (".csv", '\ufefftext,category\r\n"Cold, late.",bad\r\nKind.,good\r\n'),
])
@pytest.mark.parametrize("packed", [False, True])
def test_texts_in_every_format_come_out_alike(tmp_path, ending, text, packed):
    content, ending = (gzip.compress(text.encode()), ending + ".gz") if packed else (text, ending)
    data = load(folder_of(tmp_path, ending, train=content, validation=content, test=content))
    assert list(data) == ["train", "validation", "test"]
    assert data["train"][:] == {"text": ["Cold, late.", "Kind."], "label": [0, 1]}
    assert class_names(data) == ["bad", "good"]


@pytest.mark.parametrize("reader, text, rows", [
    (readers.read_valence, "1\t2.7\tSo lucky.\r\n2\t-0.0\tAt nine.\r\n3\t-.5\tLate.\r\n",
     [{"text": "So lucky.", "label": "positive"}, "valence 0", {"text": "Late.", "label": "negative"}]),
    (readers.read_pros_cons, "<Pros>Small &amp;amp;  light</Pros>\n\n  <Cons>Dear &amp;#13;&amp;#10; </Cons>\n",
     [{"text": "Small & light", "label": "positive"}, {"text": "Dear", "label": "negative"}]),
    (readers.read_sentfin, "Title,Decisions\nUp,\"{'A': 'positive', 'Moody's': 'positive'}\"\nSo,\"{'A': 'negative', 'B': 'neutral'}\"\n",
     [{"text": "Up", "label": "positive"}, "entities of mixed sentiment"]),
    (readers.read_snips, json.dumps({"Play": [{"data": [{"text": "play "}, {"text": "Bella Ciao", "entity": "track"}]}]}),
     [{"text": "play Bella Ciao", "label": "Play", "tokens": ["play", "Bella", "Ciao"], "ner_tags": ["O", "B-track", "I-track"]}]),
])
def test_formats_of_one_data_set(tmp_path, reader, text, rows):
    assert [row for _, row in reader(write(tmp_path / "data.txt", text))] == rows


def test_words_in_json_lines_and_the_task_that_is_asked_for(tmp_path):
    row = {"tokens": ["Ada", "ran"], "tags": ["B-PER", "O"], "text": "Ada ran", "label": "sport"}
    folder_of(tmp_path, ".jsonl", **dict.fromkeys(("train", "dev", "test"), json.dumps(row)))
    assert tags(load(tmp_path, "ner")) == [["B-PER", "O"]]
    assert load(tmp_path)["train"][0] == {"text": "Ada ran", "label": 0}


def test_classes_are_sorted_as_people_count(tmp_path):
    path = write(tmp_path / "stars.csv", "text,label\n" + "".join(f"text {n},{n}\n" for n in (10, 9, 1, 2)))
    assert class_names(load(path)) == ["1", "2", "9", "10"]


# ---- bundled, public and hub

@pytest.mark.parametrize("name, columns", [("reviews", ["text", "label"]), ("newswire", ["tokens", "ner_tags"])])
def test_bundled_corpora(name, columns):
    data = load(name)
    assert list(data) == ["train", "validation", "test"]
    assert all(part.column_names == columns and len(part) for part in data.values())


def manifest(public_data: Path, name: str) -> list[str]:
    "The counts that the manifest states for a public set: one line for each of its files, as far as rows go."
    entries = {entry["name"]: entry["counts"] for entry in json.loads((public_data / "MANIFEST.json").read_text())}
    counts = entries[Path(PUBLIC[name].folder).name]
    word = {"vader-amazon": "amazon", "vader-tweets": "tweets", "sentfin": "headlines"}.get(name, "")
    return [line for line in counts if re.search("sentences|examples|scheme", line) and word in line]


def number(text: str) -> int:
    return int(text.replace(",", ""))


@pytest.mark.parametrize("name", [name for name, source in PUBLIC.items() if source.read])
def test_public_sets_have_the_counts_of_the_manifest(public_data, name):
    data, lines = load_once(name), manifest(public_data, name)
    rows = [number(n) for n in re.findall(r"([\d,]+) (?:sentences|examples)", "\n".join(lines))]
    left_out = sum(number(n) for n in re.findall(r"(?:zero|mixed) ([\d,]+)", "\n".join(lines)))
    found = [len(data[split]) for split in ("train", "validation", "test")]
    if len(rows) == 2 and name not in ("pros-cons", "vader"):   # validation is cut from train
        found = [found[0] + found[1], found[2]]
    assert (found if len(rows) == len(found) else sum(found)) == (rows if len(rows) == len(found) else sum(rows) - left_out)
    assert (f"{left_out} rows left out" in data["train"].info.description) == bool(left_out)


@pytest.mark.parametrize("name", [name for name, source in PUBLIC.items() if source.task == "ner"])
def test_public_sets_have_the_entities_of_the_manifest(public_data, name):
    lines = "\n".join(manifest(public_data, name))
    stated = {kind: number(n) for kind, n in re.findall(r"([\w-]+) ([\d,]+)(?:,|$)", lines.split("types:")[1])}
    tokens = sum(number(n) for n in re.findall(r"([\d,]+) tokens", lines))
    data = load_once(name)
    assert Counter(tag[2:] for split in data for row in tags(data, split) for tag in row if tag[0] == "B") == stated
    assert sum(len(row) for part in data.values() for row in part["tokens"][:]) == tokens


@pytest.mark.parametrize("name", ["vader-amazon", "vader-tweets", "pros-cons", "sentfin", "snips", "asap"])
def test_public_sets_have_the_labels_of_the_manifest(public_data, name):
    stated, data = Counter(), load_once(name)
    for inside in re.findall(r"labels \((.*?)\)", "\n".join(manifest(public_data, name))):
        stated.update({label: number(n) for label, n in re.findall(r"([\w.]+) ([\d,]+)", inside)})
    found = Counter(class_names(data)[label] for part in data.values() for label in part["label"][:])
    if name == "snips":   # the manifest counts the labels of both parts
        assert stated["PlayMusic"] == 2100
    assert {label: next(n for short, n in stated.items() if label.startswith(short)) for label in found} == found


def test_snips_slots_are_the_spans_of_the_manifest(public_data):
    data = load("snips", "ner")
    stated = [line for line in json.loads((public_data / "MANIFEST.json").read_text()) if line["name"] == "intent_snips"]
    types, spans = map(number, re.search(r"slots: (\d+) types, ([\d,]+) spans", "\n".join(stated[0]["counts"])).groups())
    assert len(class_names(data)) == 1 + 2 * types
    assert sum(tag[0] == "B" for split in data for row in tags(data, split) for tag in row) == spans


def test_known_leaks_are_counted_and_said(public_data):
    assert "29 texts of test are in train as well" in load_once("banking77")["train"].info.description
    assert "1 texts of test are in train as well" in load_once("ncbi-disease")["train"].info.description


def test_headlines_with_an_apostrophe_are_read(public_data):
    texts = [text for part in load_once("sentfin").values() for text in part["text"][:]]
    rows = list(tables.read_csv(public_data / PUBLIC["sentfin"].folder / "SEntFiN.csv"))
    tricky = [row for _, row in rows if "'s" in row["Decisions"] and len(set(re.findall(r"': '(\w+)'", row["Decisions"]))) == 1]
    assert tricky and all(row["Title"] in texts for row in tricky)


def test_hub_classes_get_their_names_and_unlabelled_rows_go(monkeypatch):
    label = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features(sentence=datasets.Value("string"), label=label)
    part = lambda labels: datasets.Dataset.from_dict(
        {"sentence": [f"text {i}" for i in range(len(labels))], "label": labels}, features=features)
    hub = datasets.DatasetDict(train=part([0, 1] * 10), test=part([-1, -1]))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub)
    data = load("someone/sentences")
    assert class_names(data) == ["neg", "pos"]
    assert {split: len(rows) for split, rows in data.items()} == {"train": 16, "validation": 2, "test": 2}
    assert "2 rows left out: no label" in data["train"].info.description


# ---- splits

ROWS = [{"text": f"text number {i}", "label": "yes" if i % 4 else "no"} for i in range(400)]
SHARES = {"train": 7, "validation": 2, "test": 1}


def test_a_cut_is_stratified_complete_and_in_order():
    parts = cut(ROWS, SHARES)
    assert {split: Counter(row["label"] for row in rows) for split, rows in parts.items()} == {
        "train": {"yes": 210, "no": 70}, "validation": {"yes": 60, "no": 20}, "test": {"yes": 30, "no": 10}}
    assert sorted((row for rows in parts.values() for row in rows), key=ROWS.index) == ROWS
    assert parts["test"] == sorted(parts["test"], key=ROWS.index)


def test_a_cut_depends_on_the_seed_and_not_on_the_order():
    texts = lambda rows, seed: {row["text"] for row in cut(rows, SHARES, seed)["test"]}
    assert texts(ROWS, 0) == texts(ROWS[::-1], 0)
    assert texts(ROWS, 0) != texts(ROWS, 1)


def test_copies_of_a_text_stay_on_one_side():
    copies = [{"text": row["text"].upper() + "!", "label": row["label"]} for row in ROWS[::3]]
    keys = [{text_key(row) for row in rows} for rows in cut(ROWS + copies, SHARES).values()]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]


@pytest.mark.parametrize("name", ["wikigold", "pros-cons", "vader-tweets"])
def test_no_text_of_a_public_set_is_on_two_sides_of_our_cut(public_data, name):
    keys = [{text_key(row) for row in part.to_list()} for part in load_once(name).values()]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]


def test_every_type_of_a_cut_ner_set_is_in_train(public_data):
    data = load_once("wikigold")
    kinds = {split: {tag for row in tags(data, split) for tag in row} - {"O"} for split in data}
    assert kinds["train"] >= kinds["validation"] >= {"B-LOC", "B-PER", "B-ORG", "B-MISC"}


def test_changes_are_logged_and_kept(tmp_path, caplog):
    path = write(tmp_path / "all.conll", "Ada S-PER\nTurin I-LOC\n. O\n")
    with caplog.at_level(logging.INFO, logger="ft_course.data.sources"):
        notes = load(path)["train"].info.description
    assert "from BIOES" in notes and "2 illegal transitions repaired" in notes and "seed 0" in notes
    assert all(note in caplog.text for note in notes.split("\n"))


# ---- bad input: the message names the file, the line and the value

HEADER = "text,label\n"


@pytest.mark.parametrize("name, content, words", [
    ("empty.conll", "", ["empty.conll", "empty"]),
    ("blank.jsonl", "\n \n", ["blank.jsonl", "empty"]),
    ("header.csv", HEADER, ["header.csv", "no rows"]),
    ("column.conll", "Ada B-PER\nmet\nJosé B-PER\n", ["column.conll, line 2", "one column", "'met'"]),
    ("tag.conll", "Ada B-PER\nmet O\nJosé PER\n", ["tag.conll, line 3", "unknown tag 'PER'"]),
    ("tag.jsonl", '{"tokens": ["Ada"], "ner_tags": ["X-PER"]}', ["tag.jsonl, line 1", "unknown tag 'X-PER'"]),
    ("tag.jsonl", '{"tokens": ["Ada"], "ner_tags": [3]}', ["tag.jsonl, line 1", "unknown tag '3'"]),
    ("length.jsonl", '{"tokens": ["Ada"], "ner_tags": ["O", "O"]}', ["length.jsonl, line 1", "1 tokens but 2 tags"]),
    ("old.csv", HEADER.encode() + b"caf\xe9,good\n", ["old.csv, line 2", "0xe9", "UTF-8"]),
    ("old.conll.gz", gzip.compress(b"met O\nJos\xe9 B-PER\n", mtime=0), ["old.conll.gz, line 2", "0xe9"]),
    ("title.csv", "title,label\nKind.,good\n", ["title.csv, line 2", "`text`", "title, label"]),
    ("text.csv", "text,mark\nKind.,good\n", ["text.csv, line 2", "`label`", "text, mark"]),
    ("nolabel.csv", "text,label\nKind.,good\nCold.,\n", ["nolabel.csv, line 3", "`label`", "Cold."]),
    ("wide.csv", HEADER + "Cold, late.,bad\n", ["wide.csv, line 2", "more columns"]),
    ("narrow.csv", HEADER + "Kind.,good\nCold.\n", ["narrow.csv, line 3", "`label`", "Cold."]),
    ("json.jsonl", '{"text": "Kind.", "label": "good"}\n{"text": \n', ["json.jsonl, line 2", '{"text": ']),
])
def test_a_bad_file_is_refused_with_its_place(tmp_path, name, content, words):
    with pytest.raises(BadData) as error:
        load(write(tmp_path / name, content))
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("ending, train, test, words", [
    (".csv", HEADER + "Kind.,good\n", HEADER + "Kind.,good\nHm.,mixed\n", ["test.csv, line 3", "'mixed'", "good"]),
    (".conll", "Ada B-PER\n", "Ada B-PER\n\nTurin B-LOC\n", ["test.conll, line 3", "'LOC'", "PER"]),
])
def test_a_class_that_train_lacks_is_named(tmp_path, ending, train, test, words):
    with pytest.raises(BadData) as error:
        load(folder_of(tmp_path, ending, train=train, valid=train, test=test))
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("name", ["no/such/file.conll", "someone/nothing"])
def test_an_unknown_name_says_what_there_is(name):
    with pytest.raises(FileNotFoundError) as error:
        load(name)
    assert all(word in str(error.value) for word in [name, "reviews", "newswire", "ft-course data NAME", *PUBLIC])


def test_a_folder_without_a_training_split_is_refused(tmp_path):
    write(tmp_path / "a.csv", HEADER + "Kind.,good\n")
    write(tmp_path / "b.csv", HEADER + "Cold.,bad\n")
    with pytest.raises(BadData, match="no rows to train on"):
        load(tmp_path)


def test_a_task_that_does_not_fit_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", HEADER + "Kind.,good\n")
    with pytest.raises(BadData, match="line 2: task 'ner' needs tokens and ner_tags"):
        load(path, "ner")
    with pytest.raises(ValueError, match="choose classify or multilabel or regression or ner"):
        load(path, "sentiment")
