"Tasks on a tiny random BERT: kinds of questions, runs that open again, offsets, windows, truncation, and clear refusals."
import json
import logging

import datasets
import numpy as np
import pytest
import torch
import transformers
from transformers import (AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, BertConfig, BertForTokenClassification,
                          BertModel, pipeline)

from ft_course.data.alignment import encode_sentences, encode_texts
from ft_course.data.tags import spans, tags_from_spans
from ft_course.model.checkpoints import CorruptCheckpoint, load_tokenizer
from ft_course.tasks.ner import NER, answering, read_labels, scheme_of, text_words, windows
from ft_course.tasks.sentiment import LONG, TextClassification, places_read, softmax
from ft_course.tasks.task import Task, label_names
from ft_course.theory.kinds import KINDS

SENTENCES = [(["Ada", "Okafor", "flew", "to", "Lagos", "."], ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]),
             (["Lagos", "thanked", "Ada", "."], ["B-LOC", "O", "B-PER", "O"]),
             (["It", "rained", "."], ["O", "O", "O"])]
REVIEWS = [("A joy from start to end.", "positive"), ("It broke on day one.", "negative"), ("Good, and cheap.", "positive")]
TEXTS = ["Ada Okafor flew to Lagos.", "", "   \n ", "🙂🙃 Ada 👩‍👩‍👧 e\u0301lan", "我住在北京。", "\u0301", "a\u00a0b\tc", "x" * 300]


def ner_data(kinds=("PER", "LOC"), sentences=SENTENCES) -> datasets.DatasetDict:
    names = ["O"] + [f"{prefix}-{kind}" for kind in kinds for prefix in "BI"]
    feature = datasets.Features(tokens=datasets.Sequence(datasets.Value("string")),
                                ner_tags=datasets.Sequence(datasets.ClassLabel(names=names)))
    rows = dict(tokens=[words for words, _ in sentences], ner_tags=[tags for _, tags in sentences])
    return datasets.DatasetDict({split: datasets.Dataset.from_dict(rows, features=feature)
                                 for split in ("train", "validation", "test")})


def review_data(names=("negative", "positive")) -> datasets.DatasetDict:
    feature = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=list(names)))
    rows = dict(text=[text for text, _ in REVIEWS], label=[label for _, label in REVIEWS])
    return datasets.DatasetDict({split: datasets.Dataset.from_dict(rows, features=feature)
                                 for split in ("train", "validation", "test")})


def typed(columns: dict, features: dict) -> datasets.DatasetDict:
    "The same rows in each split."
    return datasets.DatasetDict({split: datasets.Dataset.from_dict(columns, features=datasets.Features(features)) for split in ("train", "validation", "test")})


def question_data(kind: str, pair: bool = False) -> datasets.DatasetDict:
    "Four rows of a kind of question about a text, or about two."
    text, name = datasets.Value("string"), datasets.ClassLabel(names=["bad", "good", "mixed"])
    answers, feature = {"classify": ([1, 0, 1, 2], name), "multilabel": ([[1], [0, 2], [], [1, 2]], datasets.Sequence(name)),
                        "regression": ([4.5, 1.0, -100.0, 3.0], datasets.Value("float32"))}[kind]
    texts = ["A joy from start to end.", "It broke on day one.", "Good, and cheap.", "Hm."]
    inputs = {"text_a": texts, "text_b": texts[::-1]} if pair else {"text": texts}
    return typed(inputs | {KINDS[kind].label: answers}, dict.fromkeys(inputs, text) | {KINDS[kind].label: feature})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A folder with a random BERT of two layers and MiniLM's tokenizer."
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=64)
    BertModel(config).save_pretrained(folder)
    load_tokenizer("minilm").save_pretrained(folder)
    return folder


@pytest.fixture
def ner(tiny):
    task = NER(ner_data(), tiny, max_length=32)
    torch.nn.init.normal_(task.model.classifier.weight)  # so that all tags are predicted now and then
    return task


@pytest.fixture
def classifier(tiny):
    return TextClassification(review_data(), tiny, max_length=32)


@pytest.fixture(params=["ner", "classifier"])
def task(request):
    return request.getfixturevalue(request.param)


def test_a_run_opens_again_and_answers_the_same(task, tmp_path):
    task.learner(epochs=1, lr=1e-3).fit()
    task.save(tmp_path / "run", report=task.evaluate("test"))
    again = Task.load(tmp_path / "run", data=task.data)
    assert type(again) is type(task) and again.labels == task.labels and again.max_length == 32
    assert again.predict(TEXTS) == task.predict(TEXTS)
    assert again.evaluate("test") == task.evaluate("test")


def test_training_json_tells_how_the_run_came_about(task, tmp_path):
    task.learner(epochs=2, lr=1e-3).fit()
    task.save(tmp_path / "run", report={"score": 1.0})
    again = Task.load(tmp_path / "run")
    again.save(tmp_path / "copy")
    told = json.loads((tmp_path / "copy" / "training.json").read_text())
    assert told["task"] == task.kind.name and told["max_length"] == 32 and told["report"] == {"score": 1.0}
    assert told["config"]["epochs"] == 2 and [row["epoch"] for row in told["history"]] == [1, 2]


@pytest.mark.parametrize("name, auto", [("ner", AutoModelForTokenClassification), ("classifier", AutoModelForSequenceClassification)])
def test_transformers_opens_the_run(name, auto, tmp_path, request):
    task = request.getfixturevalue(name)
    task.save(tmp_path / "run")
    model, tokenizer = auto.from_pretrained(tmp_path / "run"), AutoTokenizer.from_pretrained(tmp_path / "run")
    batch = tokenizer("Ada flew to Lagos.", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, task.model.eval()(**batch).logits)
    assert list(model.config.id2label.values()) == task.labels


def test_an_altered_run_is_refused(ner, tmp_path):
    ner.save(tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CorruptCheckpoint, match="model.safetensors"):
        Task.load(tmp_path / "run")


def test_offsets_are_exact(ner):
    ner.model.classifier.bias.data = torch.tensor([-9.0, 9.0, 6.0, 9.0, 6.0])  # names everywhere
    found = [(answer["text"], entity) for answer in ner.predict(TEXTS) for entity in answer["entities"]]
    assert len(found) >= 8, "the random model should find something to check"
    for text, e in found:
        assert text[e["start"]:e["end"]] == e["text"] != "" and 0 < e["score"] <= 1 and e["type"] in ("PER", "LOC")


def test_answers_come_in_order_and_nothing_in_gives_nothing_out(task):
    assert task.predict([]) == []
    assert [answer["text"] for answer in task.predict(TEXTS)] == TEXTS


@pytest.mark.parametrize("texts, message", [
    ("one text", "list of texts, not one string"), ([None], "text 0 is None"), (["a", 5], "text 1 is 5"), ([b"a"], "text 0 is b'a'"),
    ([["a", "b", "c"]], "text 0 is .*: expected a string"), ([("a", "b")], "text 0 is a pair: the model reads text"), ([float("nan")], "text 0 is nan")])
def test_what_is_no_text_is_named(task, texts, message):
    with pytest.raises(ValueError, match=message):
        task.predict(texts)


def test_a_hundred_thousand_characters(ner, classifier, caplog):
    text = "Ada Okafor flew to Lagos. " * 4000
    answer = ner.predict([text])[0]
    once = ner.predict(["Ada Okafor flew to Lagos."])[0]["entities"]
    assert len(text) > 100_000 and (not once or answer["entities"][-1]["end"] > 99_000)
    with caplog.at_level(logging.WARNING):
        assert classifier.predict([text])[0]["label"] in classifier.labels
    assert "1 of 1 texts are longer than 32 tokens" in caplog.text


def test_words_stay_whole_where_writers_join_them():
    for text, wanted in (("J.K. Ben-Gurion's N'Djamena, U.S. end.", "J.K.|Ben-Gurion|'|s|N'Djamena|,|U.S.|end|."),
                         ("AT&T (l'express) - mother-in-law.", "AT&T|(|l'express|)|-|mother-in-law|."),
                         ("北京-上海", "北|京|-|上|海"), ("", ""), ("e\u0301-a 3.5", "e\u0301-a|3|.|5")):
        words = text_words(text)
        assert "|".join(word for word, *_ in words) == wanted
        assert all(text[start:end] == word for word, start, end in words)


def test_windows_cover_the_text_fit_and_overlap():
    rng = torch.Generator().manual_seed(0)
    for n in (0, 1, 7, 200):
        for room in (1, 2, 10, 31):
            sizes = torch.randint(0, 12, (n,), generator=rng).tolist()
            parts = windows(sizes, room) if n else []
            assert {i for first, last in parts for i in range(first, last)} == set(range(n))
            assert all(sum(sizes[a:b]) <= room or b - a == 1 for a, b in parts)
            assert all(a < c <= b < d for (a, b), (c, d) in zip(parts, parts[1:]))


def test_each_word_is_answered_where_it_has_most_context():
    assert windows([1] * 10, 4) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert answering([1] * 10, windows([1] * 10, 4)).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    for n, room in ((121, 30), (300, 62), (40, 7)):
        parts = windows([1] * n, room)
        for word, part in enumerate(answering([1] * n, parts)):
            first, last = parts[part]
            assert min(word - first if first else n, last - 1 - word if last < n else n) >= room // 4 - 1


class Neighbours(torch.nn.Module):
    "Says PER of a word if it sees the word two places before it and the word two places behind it."

    def __init__(self, config, inside):
        super().__init__()
        self.config, self.inside = config, inside
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, attention_mask, **_):
        real = ((input_ids > 999) & attention_mask.bool()).long()
        seen = torch.nn.functional.pad(real, (2, 2))
        both = seen[:, :-4] * seen[:, 4:] * real
        logits = torch.zeros(*input_ids.shape, self.config.num_labels)
        logits[..., 0], logits[..., self.inside] = 1.0, 2.0 * both
        return transformers.modeling_outputs.TokenClassifierOutput(logits=logits)


def test_windows_do_not_change_an_answer_that_depends_on_the_context(ner):
    "121 words without a full stop: only the first two and the last two lack their neighbours, whatever the window."
    text = " ".join(["minister"] * 121)
    ner.model = Neighbours(ner.model.config, ner.labels.index("B-PER"))
    for length in (12, 32, 64):
        ner.max_length = length
        found = ner.predict([text])[0]["entities"]
        assert [e["start"] for e in found] == [9 * i for i in range(2, 119)]


def test_perfect_predictions_score_one(ner):
    features = ner.features("test")
    ids = [[ner.labels.index(tag) for tag in feature["tags"]] for feature in features]
    report = ner.report(features, ids, ids)
    assert report["entity_f1"] == 1.0 and report["support"] == 4


def test_words_that_truncation_cut_count_as_outside(tiny, caplog):
    with caplog.at_level(logging.WARNING):
        task = NER(ner_data(), tiny, max_length=6)
        features = task.features("test")
    ids = [[task.labels.index(tag) for tag in f["tags"]][: len(set(f["word_ids"]) - {None})] for f in features]
    report = task.report(features, ids, ids)
    assert report["precision"] == 1.0 and report["recall"] == 0.75 and report["support"] == 4
    assert "cuts 4 of 13 words and 1 entities" in caplog.text


def test_broken_predictions_are_read_strictly_in_reports_and_in_answers(ner):
    broken = [[ner.labels.index(tag) for tag in ("I-PER", "I-PER", "O", "O", "B-LOC", "I-PER")]]
    report = ner.report(ner.features("test")[:1], broken, broken)
    assert report["precision"] == 1.0 and report["recall"] == 0.5
    torch.nn.init.zeros_(ner.model.classifier.weight)
    ner.model.classifier.bias.data = torch.eye(5)[ner.labels.index("I-PER")]
    assert ner.predict(["Ada flew."])[0]["entities"] == []


def test_evaluation_agrees_with_predict(ner):
    "On words that the two splitters cut alike, what is scored is what is answered."
    report = ner.evaluate("test")
    answers = ner.predict([" ".join(words) for words, _ in SENTENCES])
    found = sum(len(answer["entities"]) for answer in answers)
    correct = sum((e["type"], e["text"]) in {("PER", "Ada Okafor"), ("LOC", "Lagos")} for a in answers[:1] for e in a["entities"])
    correct += sum((e["type"], e["text"]) in {("PER", "Ada"), ("LOC", "Lagos")} for e in answers[1]["entities"])
    assert report["precision"] == (correct / found if found else 0)


def test_labels_may_come_in_another_order(ner, classifier, tmp_path):
    for task, other in ((ner, ner_data(("LOC", "PER"))), (classifier, review_data(("positive", "negative")))):
        task.save(tmp_path / task.kind.name)
        assert Task.load(tmp_path / task.kind.name, data=other).evaluate("test") == task.evaluate("test")


def test_labels_that_do_not_fit_are_refused(ner, classifier, tmp_path):
    for task, other, word in ((ner, ner_data(("PER", "LOC", "GENE")), "GENE"), (classifier, review_data(("negative", "positive", "mixed")), "mixed")):
        task.save(tmp_path / task.kind.name)
        with pytest.raises(ValueError, match=f"labels don't fit the data: .*{word}"):
            Task.load(tmp_path / task.kind.name, data=other)


def test_a_run_of_the_other_task_is_refused(ner, tmp_path):
    ner.save(tmp_path / "run")
    with pytest.raises(ValueError, match="run of task 'ner'"):
        TextClassification.load(tmp_path / "run")


def test_a_folder_that_is_no_run(tiny, tmp_path):
    with pytest.raises(ValueError, match="no training.json"):
        Task.load(tiny)


def test_data_that_are_missing_are_named(ner, tmp_path):
    ner.save(tmp_path / "run")
    with pytest.raises(ValueError, match="no split 'test': the data have not been given"):
        Task.load(tmp_path / "run").evaluate("test")
    with pytest.raises(ValueError, match="no split 'dev': the data have train, validation, test"):
        ner.evaluate("dev")
    with pytest.raises(ValueError, match="column 'label' of ClassLabel; found tokens, ner_tags"):
        label_names(ner_data(), "label")


@pytest.mark.parametrize("options, message", [
    (dict(max_length=65), "max_length=65: .* reads at most 64 tokens"), (dict(max_length=2), "max_length=2: a whole number"),
    (dict(max_length=32.0), "max_length=32.0"), (dict(max_length=None), "max_length=None"), (dict(kind="tags"), "kind='tags': TextClassification does"),
    (dict(kind="ner"), "kind='ner': TextClassification does classify, multilabel, regression"), (dict(long="tail"), "long='tail': choose one of head")])
def test_options_are_checked_before_data_are_read(tiny, options, message):
    with pytest.raises(ValueError, match=message):
        TextClassification("/no/such/data", tiny, **options)


def test_roberta_reads_two_tokens_less_than_it_has_places(tmp_path):
    config = transformers.RobertaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=514)
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="max_length=514: .* reads at most 512 tokens"):
        NER("/no/such/data", tmp_path, max_length=514)


def test_the_seed_makes_the_head(tiny):
    heads = [NER(ner_data(), tiny, max_length=32, seed=seed).model.classifier.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_the_learner_takes_defaults_config_and_fields(ner):
    from ft_course.training.updates import TrainingConfig
    assert ner.learner().config.epochs == NER.defaults["epochs"]
    assert ner.learner(TrainingConfig(lr=1.0), epochs=2).config == TrainingConfig(lr=1.0, epochs=2)


@pytest.mark.parametrize("name, metric", [("ner", "entity_f1"), ("classifier", "accuracy")])
def test_training_learns_what_it_is_shown(name, metric, request):
    task = request.getfixturevalue(name)
    learner = task.learner(epochs=30, lr=1e-2, batch_size=3).fit()
    assert task.evaluate("train")[metric] == 1.0
    assert learner.history[-1][f"valid_{metric}"] == 1.0 and all(isinstance(v, (int, float)) for v in learner.history[-1].values())


def test_heads_are_what_the_lessons_say(ner, classifier):
    "Token head: a linear map of every state; sequence head: the same of the pooled first state."
    for task in (ner, classifier):
        task.model.eval()
    words = encode_sentences(ner.tokenizer, [["Ada", "flew"]])[0]
    text = encode_texts(classifier.tokenizer, ["Ada flew"])[0]
    with torch.no_grad():
        states = ner.model.bert(torch.tensor([words["input_ids"]])).last_hidden_state
        torch.testing.assert_close(ner.model(torch.tensor([words["input_ids"]])).logits, states @ ner.model.classifier.weight.T + ner.model.classifier.bias)
        pooled = classifier.model.bert(torch.tensor([text["input_ids"]])).pooler_output
        torch.testing.assert_close(classifier.model(torch.tensor([text["input_ids"]])).logits, pooled @ classifier.model.classifier.weight.T + classifier.model.classifier.bias)


def test_softmax_survives_large_numbers():
    import numpy as np
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0], [0.0, 0.0]])), [[1.0, 0.0], [0.5, 0.5]])


# ---- every kind of question, from data to an answer

each_text_kind = pytest.mark.parametrize("kind", ["classify", "multilabel", "regression"])
each_input = pytest.mark.parametrize("pair", [False, True], ids=["text", "pair"])
HEADLINE = {"classify": ("accuracy", 1.0), "multilabel": ("subset_accuracy", 1.0), "regression": ("pearson", 1.0)}


@each_text_kind
@each_input
def test_a_kind_of_question_end_to_end(tiny, tmp_path, kind, pair):
    data = question_data(kind, pair)
    if kind == "regression":
        data = data.map(lambda row: {"score": max(row["score"], 0.0)})
    task = TextClassification(data, tiny, max_length=48)
    assert task.kind.name == kind and task.labels == (["score"] if kind == "regression" else ["bad", "good", "mixed"])
    task.model.apply(lambda part: setattr(part, "p", 0.0) if isinstance(part, torch.nn.Dropout) else None)
    task.learner(epochs=80, lr=1e-2, batch_size=4).fit()
    name, best = HEADLINE[kind]
    report = task.evaluate("train")
    assert report[name] == pytest.approx(best, abs=0.05)
    texts = list(zip(*(list(data["test"][column]) for column in task.inputs))) if pair else list(data["test"]["text"])
    answers = task.predict(texts)
    truth = list(data["test"][task.kind.label])
    for text, answer, right in zip(texts, answers, truth):
        assert (answer["text_a"], answer["text_b"]) == text if pair else answer["text"] == text
        if kind == "classify":
            assert answer["label"] == task.labels[right] and 1 / 3 < answer["score"] <= 1
        elif kind == "multilabel":
            assert {found["label"] for found in answer["labels"]} == {task.labels[i] for i in right} and all(0.5 < found["score"] <= 1 for found in answer["labels"])
        else:
            assert answer["score"] == pytest.approx(right, abs=1.5)
    task.save(tmp_path / "run")
    again = Task.load(tmp_path / "run", data=data)
    assert again.kind is task.kind and again.inputs == task.inputs and again.predict(texts) == answers and again.evaluate("test") == task.evaluate("test")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run")
    assert model.config.problem_type == task.kind.problem_type and model.config.num_labels == len(task.labels)


@each_text_kind
def test_the_pipeline_of_transformers_answers_the_same(tiny, tmp_path, kind):
    task = TextClassification(question_data(kind), tiny, max_length=32)
    torch.nn.init.normal_(task.model.classifier.weight)
    task.save(tmp_path / "run")
    (theirs,), (ours,) = (pipeline("text-classification", str(tmp_path / "run"), top_k=None, device="cpu")(["A joy."]), task.predict(["A joy."]))
    theirs = {row["label"]: row["score"] for row in theirs}
    if kind == "multilabel":
        assert {row["label"]: pytest.approx(row["score"], abs=1e-5) for row in ours["labels"]} == {name: p for name, p in theirs.items() if p > 0.5}
    else:
        assert ours["score"] == pytest.approx(theirs[ours.get("label", "score")], abs=1e-5)


@each_text_kind
def test_a_head_of_somebody_else_is_read_as_its_configuration_says(tiny, tmp_path, kind):
    "No training.json: `problem_type` decides, as in transformers."
    task = TextClassification(question_data(kind), tiny, max_length=32)
    task.save(tmp_path / "run")
    (tmp_path / "run" / "training.json").unlink()
    for name in ("checksums.json",):
        (tmp_path / "run" / name).unlink()
    again = TextClassification.load(tmp_path / "run")
    assert again.kind.name == kind and again.max_length == 64 and again.predict(["A joy."]) == task.predict(["A joy."])


@each_text_kind
def test_the_constant_answer(tiny, kind):
    task = TextClassification(question_data(kind), tiny, max_length=32)
    report = task.baseline("test")
    assert {"classify": lambda r: r["accuracy"] == 0.5, "multilabel": lambda r: r["micro_f1"] == 0.0, "regression": lambda r: abs(r["r2"]) < 1e-9}[kind](report)
    assert report.keys() == task.evaluate("test").keys() - {"loss"}


def test_a_new_table_is_scored_as_it_is(ner, classifier):
    extra = question_data("classify")["test"].select([0, 1]).cast_column("label", datasets.ClassLabel(names=["negative", "positive", "mixed"]))
    with pytest.raises(ValueError, match="mixed"):
        classifier.evaluate(extra)
    for task, split in ((ner, ner_data(("LOC", "PER"))["test"]), (classifier, review_data(("positive", "negative"))["test"])):
        assert task.evaluate(split) == task.evaluate("test")
    with pytest.raises(ValueError, match="no kind|ner_tags"):
        classifier.evaluate(ner_data()["test"])


@pytest.mark.parametrize("data, message", [
    (review_data()["train"], "single Dataset: give DatasetDict"), (ner_data(), "tokens|no kind")])
def test_data_that_are_no_data_for_this(tiny, data, message):
    with pytest.raises(ValueError, match=message):
        TextClassification(data, tiny, max_length=32)


def test_rows_without_a_label_are_not_scored(tiny):
    data = review_data()
    data["test"] = data["test"].map(lambda row, i: {"label": row["label"] if i else -1}, with_indices=True)
    task = TextClassification(data, tiny, max_length=32)
    assert task.evaluate("test")["support"] == 2
    with pytest.raises(ValueError, match=r"row 0 has no label \(-1\)"):
        task.encode(data["test"])


def test_pairs_and_texts_are_not_mixed_up(tiny, tmp_path):
    task = TextClassification(question_data("classify", pair=True), tiny, max_length=32)
    with pytest.raises(ValueError, match="text 0 is one string: the model reads text_a and text_b"):
        task.predict(["one"])
    task.save(tmp_path / "run")
    with pytest.raises(ValueError, match="the model reads text_a and text_b, the data have text"):
        Task.load(tmp_path / "run", data=question_data("classify"))
    with pytest.raises(ValueError, match="long='pool' is for single texts"):
        TextClassification(question_data("classify", pair=True), tiny, max_length=32, long="pool")


def test_answering_needs_no_optimiser(classifier, ner):
    "A frozen model answers and is scored."
    for task in (classifier, ner):
        task.model.requires_grad_(False)
        assert task.evaluate("test") and len(task.predict(["Ada flew."])) == 1


def test_a_model_without_a_trained_head_does_not_answer(tiny):
    for kind in (TextClassification, NER):
        with pytest.raises(ValueError, match="has no trained head for this"):
            kind.load(tiny)


def test_a_head_for_another_question_is_refused(tiny, tmp_path):
    TextClassification(question_data("multilabel"), tiny, max_length=32).save(tmp_path / "run")
    with pytest.raises(ValueError, match="trained for multi_label_classification, the data ask for single_label_classification"):
        TextClassification(question_data("classify"), tmp_path / "run", max_length=32)


def test_one_class_is_refused(tiny):
    feature = dict(text=datasets.Value("string"), label=datasets.ClassLabel(names=["only"]))
    with pytest.raises(ValueError, match=r"all texts are of one class, \['only'\]: there is nothing to tell apart"):
        TextClassification(typed(dict(text=["a", "b"], label=[0, 0]), feature), tiny, max_length=32)


# ---- long texts

def test_what_is_read_of_a_long_text():
    for long in LONG:
        for n in (0, 1, 8, 9, 20, 33):
            parts = places_read(n, 8, long)
            assert all(len(part) == min(n, 8) and part == sorted(set(part)) for part in parts)
            assert n <= 8 and len(parts) == 1 or {"head": parts == [list(range(8))], "head+tail": parts == [[0, 1, *range(n - 6, n)]],
                                                  "pool": {i for part in parts for i in part} == set(range(n))}[long]


@pytest.mark.parametrize("long", LONG)
def test_long_texts_train_answer_and_open_again(tiny, tmp_path, long, caplog):
    data = review_data().map(lambda row: {"text": row["text"] + " and then nothing more was said of it" * 6 + " " + row["text"]})
    task = TextClassification(data, tiny, max_length=16, long=long)
    with caplog.at_level(logging.WARNING):
        windows_ = task.features("train")
    assert ("3 of 3 texts are longer than 16 tokens" in caplog.text) == (long != "pool")
    assert all(len(f["input_ids"]) <= 16 for f in windows_) and (len(windows_) > 6) == (long == "pool")
    task.learner(epochs=1, lr=1e-3).fit()
    report = task.evaluate("test")
    assert report["support"] == 3
    task.save(tmp_path / "run")
    texts = [*list(data["test"]["text"]), "short", ""]
    again = Task.load(tmp_path / "run", data=data)
    assert again.long == long and again.predict(texts) == task.predict(texts) and again.evaluate("test") == report
    assert [answer["text"] for answer in task.predict(texts)] == texts


def test_short_texts_are_read_the_same_in_every_way(tiny):
    answers = [TextClassification(review_data(), tiny, max_length=32, long=long).predict(["A joy.", "", "It broke."]) for long in LONG]
    assert answers[0] == answers[1] == answers[2]


def test_pooling_is_the_mean_over_the_windows(tiny):
    task = TextClassification(review_data(), tiny, max_length=12, long="pool")
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    parts = task.tokenize([text])
    alone = [task.model.eval()(torch.tensor([f["input_ids"]])).logits[0].detach().numpy() for f in parts]
    (_, pooled), = task.logits(parts)
    assert len(parts) > 1
    np.testing.assert_allclose(pooled, np.mean(alone, axis=0), atol=1e-5)


# ---- a model's own tags

SCHEMES = {
    "IO": ["O", "I-LOC", "I-PER"], "IOB2": ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"],
    "BIOES": ["O", *(f"{p}-{k}" for k in ("LOC", "PER") for p in "BIES")], "BILOU": ["O", *(f"{p}-{k}" for k in ("LOC", "PER") for p in "BILU")],
    "suffix": ["LOC-B", "LOC-I", "O", "PER-B", "PER-I"], "BMES": ["O", *(f"{p}-{k}" for k in ("LOC", "PER") for p in "BMES")], "under": ["O", "B_LOC", "I_LOC", "B_PER", "I_PER"]}
SENTENCE = "Ada Foe saw Oslo .".split()


def stranger(tiny, folder, labels):
    "A tagger of somebody else, whose labels are these."
    config = BertConfig.from_pretrained(tiny, num_labels=len(labels), id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})
    torch.manual_seed(0)
    BertForTokenClassification(config).save_pretrained(folder)
    load_tokenizer("minilm").save_pretrained(folder)
    return folder


def answer_with(task, ids):
    "Let a model give these labels to the words of a sentence, whatever it reads."
    def forward(input_ids, **_):
        logits = torch.zeros(*input_ids.shape, len(task.labels))
        for place, label in enumerate(ids):
            logits[:, place + 1, label] = 5.0
        logits[:, len(ids) + 1 :, task.tags.index("O")] = 5.0
        return transformers.modeling_outputs.TokenClassifierOutput(logits=logits)
    task.model.forward = forward


@pytest.mark.parametrize("name", SCHEMES)
def test_a_model_answers_in_its_own_scheme(tiny, tmp_path, name):
    task = NER.load(stranger(tiny, tmp_path / "m", SCHEMES[name]))
    gold = tags_from_spans([("PER", 0, 2), ("LOC", 3, 4)], 5)
    answer_with(task, task.to_model(gold))
    found = task.predict(["Ada Foe saw Oslo."])[0]["entities"]
    assert [(e["type"], e["text"]) for e in found] == [("PER", "Ada Foe"), ("LOC", "Oslo")]
    data = ner_data(sentences=[(SENTENCE, gold)])
    again = NER.load(tmp_path / "m", data=data)
    answer_with(again, again.to_model(gold))
    assert again.evaluate("test")["entity_f1"] == 1.0


def test_iob1_of_a_stranger_is_read_leniently_and_ours_strictly(tiny, tmp_path, ner):
    task = NER.load(stranger(tiny, tmp_path / "m", SCHEMES["IOB2"]))
    answer_with(task, [task.labels.index(tag) for tag in ("I-PER", "B-PER", "O", "I-LOC", "O")])
    assert [(e["type"], e["text"]) for e in task.predict(["Ada Foe saw Oslo."])[0]["entities"]] == [("PER", "Ada"), ("PER", "Foe"), ("LOC", "Oslo")]
    ner.save(tmp_path / "run")
    assert Task.load(tmp_path / "run").strict and not task.strict


@pytest.mark.parametrize("labels", [["O", "PER", "LOC"], ["LABEL_0", "LABEL_1", "LABEL_2"], ["O", "B-PER", "LABEL_2"], ["O", "X-PER", "I-PER"]])
def test_labels_that_are_no_tags_are_found_at_load(tiny, tmp_path, labels):
    stranger(tiny, tmp_path / "m", labels)
    with pytest.raises(ValueError, match="are no tags such as B-PER: say what its 3 outputs mean"):
        NER.load(tmp_path / "m")
    task = NER.load(tmp_path / "m", labels=["O", "I-PER", "I-LOC"])
    answer_with(task, [1, 1, 0, 2, 0])
    assert [e["text"] for e in task.predict(["Ada Foe saw Oslo."])[0]["entities"]] == ["Ada Foe", "Oslo"]


def test_types_that_a_model_lacks_are_refused_whatever_its_scheme(tiny, tmp_path):
    stranger(tiny, tmp_path / "m", SCHEMES["IO"])
    with pytest.raises(ValueError, match="labels don't fit the data: .*GENE"):
        NER.load(tmp_path / "m", data=ner_data(("PER", "GENE"), [(["a"], ["O"])]))
    some = NER.load(stranger(tiny, tmp_path / "n", ["O", "B-PER", "E-PER", "S-LOC"]))
    with pytest.raises(ValueError, match="no label for S-PER"):
        some.to_model(["B-PER"])


@pytest.mark.parametrize("names, tags", [
    (["O", "I-PER", "I-LOC"], [["I-PER", "I-PER", "O", "O", "I-LOC", "O"]]), (["O", "I-PER", "B-PER", "I-LOC"], [["I-PER", "B-PER", "O", "O", "I-LOC", "O"]]),
    (["O", *(f"{p}-{k}" for k in ("PER", "LOC") for p in "BIES")], [["B-PER", "E-PER", "O", "O", "S-LOC", "O"]])])
def test_tables_in_another_scheme_score_as_in_iob2(tiny, names, tags):
    words = SENTENCES[0][0]
    feature = dict(tokens=datasets.Sequence(datasets.Value("string")), ner_tags=datasets.Sequence(datasets.ClassLabel(names=names)))
    task = NER(typed(dict(tokens=[words], ner_tags=tags), feature), tiny, max_length=32)
    truth = [f["tags"] for f in task.features("test")]
    assert len(spans(truth[0], strict=True)) == 2 + (tags[0][1] == "B-PER")
    ids = [task.truth(f) for f in task.features("test")]
    assert task.report(task.features("test"), ids, ids)["entity_f1"] == 1.0


@pytest.mark.parametrize("labels", [["B-PER", "I-PER"], ["PER-B", "PER-I"], ["B-PER", "E-PER", "S-PER"], ["LABEL_0", "O"]])
def test_labels_say_what_is_no_name(labels):
    with pytest.raises(ValueError, match=r"the model's labels \[.*(have no O, for what is no name|are no tags such as B-PER): say what its"):
        read_labels(labels)


@pytest.mark.parametrize("name", SCHEMES)
def test_labels_are_read_as_tags(name):
    tags = read_labels(SCHEMES[name])
    assert scheme_of(tags) == {"suffix": "IOB2", "under": "IOB2", "BILOU": "BIOES", "BMES": "BIOES"}.get(name, name)
    assert {tag[2:] for tag in tags} == {"", "LOC", "PER"} and len(set(tags)) == len(tags)
