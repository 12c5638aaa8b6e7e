"Tasks on a tiny random BERT: runs that open again, offsets, windows, truncation, and clear refusals."
import json
import logging

import datasets
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer, BertConfig, BertModel

from ft_course.data.alignment import encode_sentences, encode_texts
from ft_course.model.checkpoints import CorruptCheckpoint, load_tokenizer
from ft_course.tasks.ner import NER, text_words, windows
from ft_course.tasks.sentiment import TextClassification, softmax
from ft_course.tasks.task import Task, label_names

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
    assert told["task"] == task.kind and told["max_length"] == 32 and told["report"] == {"score": 1.0}
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


def test_a_single_string_is_refused(task):
    with pytest.raises(ValueError, match="list of texts"):
        task.predict("one text")


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


def test_windows_cover_the_text_and_fit():
    rng = torch.Generator().manual_seed(0)
    for n in (0, 1, 7, 200):
        sizes = torch.randint(0, 12, (n,), generator=rng).tolist()
        words = ["." if size == 1 else "word" for size in sizes]
        parts = windows(words, sizes, 10)
        assert [i for first, last in parts for i in range(first, last)] == list(range(n))
        assert all(sum(sizes[a:b]) <= 10 or b - a == 1 for a, b in parts)


def test_windows_end_with_a_sentence_where_they_can():
    words = "One two . Three four five . Six".split()
    assert windows(words, [1] * 8, 5) == [(0, 3), (3, 8)]
    assert windows(words, [1] * 8, 2) == [(0, 2), (2, 3), (3, 5), (5, 7), (7, 8)]


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
        task.save(tmp_path / task.kind)
        assert Task.load(tmp_path / task.kind, data=other).evaluate("test") == task.evaluate("test")


def test_labels_that_do_not_fit_are_refused(ner, classifier, tmp_path):
    for task, other, word in ((ner, ner_data(("PER", "LOC", "GENE")), "GENE"), (classifier, review_data(("negative", "positive", "mixed")), "mixed")):
        task.save(tmp_path / task.kind)
        with pytest.raises(ValueError, match=f"labels don't fit the data: .*{word}"):
            Task.load(tmp_path / task.kind, data=other)


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


def test_a_window_longer_than_the_model_reads_is_refused(tiny):
    with pytest.raises(ValueError, match="max_length=65: .* reads at most 64 tokens"):
        NER(ner_data(), tiny, max_length=65)


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
