"""Scores against seqeval, scikit-learn, scipy and conlleval's own counting, on thousands of random sequences."""
import json
import random
import warnings

import numpy as np
import pytest
import scipy.stats
import seqeval.metrics
import seqeval.scheme
import sklearn.metrics
from test_tags import end_of_chunk, random_tags, start_of_chunk

from ft_course.data.tags import SCHEMES
from ft_course.theory.kinds import KINDS, imported
from ft_course.training.metrics import (bootstrap, classification_report, confusion, entity_counts, entity_report, f1,
                                        token_report, wilson)
from ft_course.training.scores import multilabel_report, regression_report

SEQEVAL = {"IOB1": seqeval.scheme.IOB1, "IOB2": seqeval.scheme.IOB2, "BIOES": seqeval.scheme.IOBES}


def random_corpus(rng, scheme, sentences=50):
    "True tags and predictions that are a noisy copy of them, illegal sequences included."
    y_true = [random_tags(rng, scheme) or ["O"] for _ in range(sentences)]
    noise = [random_tags(rng, scheme, 40) or ["O"] for _ in range(sentences)]
    y_pred = [[rng.choice(other) if rng.random() < 0.3 else tag for tag in tags] for tags, other in zip(y_true, noise)]
    return y_true, y_pred


def close(ours, reference):
    "Compare one row of a report with the reference's."
    assert ours["support"] == reference["support"]
    np.testing.assert_allclose([ours[k] for k in ("precision", "recall", "f1")],
                               [reference[k] for k in ("precision", "recall", "f1-score")], atol=1e-12)


@pytest.mark.parametrize("scheme", SEQEVAL)
def test_strict_report_equals_seqeval(scheme):
    rng = random.Random(0)
    for _ in range(60):
        y_true, y_pred = random_corpus(rng, scheme)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = seqeval.metrics.classification_report(y_true, y_pred, mode="strict", scheme=SEQEVAL[scheme],
                                                             output_dict=True)
        report = entity_report(y_true, y_pred, scheme)
        close(report | {"f1": report["entity_f1"]}, expected.pop("micro avg"))
        close(report["macro"], expected.pop("macro avg"))
        close(report["weighted"], expected.pop("weighted avg"))
        assert list(report["per_type"]) == list(expected)
        for kind, row in report["per_type"].items():
            close(row, expected[kind])


def conlleval_counts(y_true, y_pred):
    "Correct, predicted and true chunks, counted in one pass over both columns as conlleval.pl does."
    correct = predicted = true = 0
    for gold, guess in zip(y_true, y_pred):
        open_pair, before = False, [("O", ""), ("O", "")]
        for pair in zip([*gold, "O"], [*guess, "O"]):
            now = [(tag[0], tag[2:]) for tag in pair]
            ends = [end_of_chunk(*b, *n) for b, n in zip(before, now)]
            starts = [start_of_chunk(*b, *n) for b, n in zip(before, now)]
            if open_pair and any(ends):
                correct += all(ends)
                open_pair = False
            open_pair = open_pair or (all(starts) and now[0][1] == now[1][1])
            true, predicted, before = true + starts[0], predicted + starts[1], now
    return [correct, predicted, true]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lenient_counts_equal_conlleval(scheme):
    rng = random.Random(1)
    for _ in range(60):
        y_true, y_pred = random_corpus(rng, scheme)
        by_type, by_sentence, _ = entity_counts(y_true, y_pred, scheme, "conlleval")
        assert by_type.sum(axis=0).tolist() == by_sentence.sum(axis=0).tolist() == conlleval_counts(y_true, y_pred)


def test_lenient_report_equals_seqevals_default():
    rng = random.Random(2)
    for _ in range(60):
        y_true, y_pred = random_corpus(rng, "IOB2")
        np.testing.assert_allclose(entity_report(y_true, y_pred, mode="conlleval")["entity_f1"],
                                   seqeval.metrics.f1_score(y_true, y_pred, zero_division=0))


def test_counts_by_sentence_are_those_of_each_sentence_alone():
    y_true, y_pred = random_corpus(random.Random(3), "IOB2", 200)
    y_true[5], y_pred[5] = [], []
    _, by_sentence, _ = entity_counts(y_true, y_pred)
    for counts, gold, guess in zip(by_sentence, y_true, y_pred):
        assert counts.tolist() == entity_counts([gold], [guess])[0].sum(axis=0).tolist()


@pytest.mark.parametrize("labels", [None, ["d", "c", "b", "a", "never seen"]])
def test_classification_report_equals_scikit_learn(labels):
    rng = np.random.default_rng(0)
    for _ in range(20):
        y_true, y_pred = (rng.choice(list("abcd"), size=40, p=[0.6, 0.2, 0.15, 0.05]).tolist() for _ in range(2))
        expected = sklearn.metrics.classification_report(y_true, y_pred, labels=labels, output_dict=True, zero_division=0)
        report = classification_report(y_true, y_pred, labels)
        assert report["accuracy"] == pytest.approx(expected["accuracy"])
        close(report["macro"], expected["macro avg"])
        close(report["weighted"], expected["weighted avg"])
        for label, row in report["per_class"].items():
            close(row, expected[label])
        assert report["confusion"] == sklearn.metrics.confusion_matrix(y_true, y_pred, labels=report["labels"]).tolist()


def test_token_report_is_scikit_learns_with_and_without_O():
    y_true, y_pred = random_corpus(random.Random(4), "IOB2", 100)
    true, pred = sum(y_true, []), sum(y_pred, [])
    report = token_report(y_true, y_pred)
    named = sorted({*true, *pred} - {"O"})
    for average in ("micro", "macro", "weighted"):
        for part, labels in (("with_O", None), ("without_O", named)):
            expected = sklearn.metrics.f1_score(true, pred, average=average, labels=labels, zero_division=0)
            assert report[part][average]["f1"] == pytest.approx(expected)
    assert report["accuracy"] == pytest.approx(report["with_O"]["micro"]["f1"])


def test_all_O_looks_well_by_word_and_is_zero_by_entity():
    y_true = [["O"] * 18 + ["B-PER", "I-PER"]] * 5
    y_pred = [["O"] * 20] * 5
    assert token_report(y_true, y_pred)["accuracy"] == 0.9
    assert entity_report(y_true, y_pred)["entity_f1"] == 0


@pytest.mark.parametrize("successes, n", [(0, 10), (10, 10), (92, 100), (1, 2), (499, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(successes, n, confidence):
    expected = scipy.stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    np.testing.assert_allclose(wilson(successes, n, confidence), expected, atol=1e-12)


def test_bootstrap_equals_drawing_sentences_one_by_one():
    y_true, y_pred = random_corpus(random.Random(5), "IOB2", 200)
    _, counts, _ = entity_counts(y_true, y_pred)
    draws = np.random.default_rng(1).integers(len(counts), size=(5000, len(counts)))
    direct = np.quantile(f1(counts[draws].sum(axis=1)), [0.025, 0.975])
    np.testing.assert_allclose(bootstrap(counts, resamples=5000), direct, atol=0.006)
    assert bootstrap(counts) == bootstrap(counts) != bootstrap(counts, seed=1)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(2)
    population = rng.integers(0, 2, size=(5000, 1)) * np.array([1, 2, 1]) + np.array([0, 0, 1])
    truth = f1(population.sum(axis=0))
    intervals = [bootstrap(population[rng.integers(5000, size=150)], resamples=400) for _ in range(200)]
    assert 0.9 <= np.mean([low <= truth <= high for low, high in intervals]) <= 0.99


def test_reports_are_plain_json():
    y_true, y_pred = random_corpus(random.Random(6), "IOB2")
    for report in (entity_report(y_true, y_pred), token_report(y_true, y_pred),
                   classification_report(sum(y_true, []), sum(y_pred, []))):
        assert json.loads(json.dumps(report)) == report


def test_sentences_without_any_entity_score_zero():
    report = entity_report([["O", "O"]], [["O", "O"]])
    assert report["entity_f1"] == 0 and report["support"] == 0 and report["per_type"] == {}
    assert report["macro"]["f1"] == report["weighted"]["f1"] == 0


@pytest.mark.parametrize("function, y_true, y_pred, message", [
    (classification_report, [["O"]], [["O"]], "use entity_report or token_report"),
    (classification_report, ["a"], ["a", "b"], "1 true labels, but 2 predicted"),
    (classification_report, [], [], "no examples"),
    (entity_report, ["O"], ["O"], "use classification_report"),
    (token_report, ["O"], ["O"], "use classification_report"),
    (entity_report, [["O"]], [["O"], ["O"]], "1 true sentences, but 2 predicted"),
    (entity_report, [["O"], ["O", "O"]], [["O"], ["O"]], "sentence 1 has 2 true tags, but 1 predicted"),
    (entity_report, [], [], "no sentences"),
    (entity_report, [["O"]], [["X-PER"]], "'X-PER'"),
])
def test_what_cannot_be_compared_is_refused(function, y_true, y_pred, message):
    with pytest.raises(ValueError, match=message):
        function(y_true, y_pred)


def test_unknown_modes_and_labels_are_refused():
    with pytest.raises(ValueError, match="choose strict or conlleval"):
        entity_report([["O"]], [["O"]], mode="lenient")
    with pytest.raises(ValueError, match="are not among"):
        confusion(["a"], ["b"], ["a"])


# ---- rows of labels, and numbers

@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 0.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_rows_of_labels_equal_sklearn(share, classes):
    rng = np.random.default_rng(int(100 * share) + classes)
    names = [f"c{i}" for i in range(classes)]
    for n in (1, 2, 40):
        true, pred = (rng.random((2, n, classes)) < share).astype(int)
        report = multilabel_report(true, pred, names)
        theirs = sklearn.metrics.classification_report(true, pred, target_names=names, output_dict=True, zero_division=0)
        for ours, name in ((report[k], f"{k} avg") for k in ("micro", "macro", "weighted")):
            close(ours, theirs[name])
        for name in names:
            close(report["per_class"][name], theirs[name])
        assert report["subset_accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(true, pred))
        low, high = report["interval"]
        assert 0 <= low <= report["micro_f1"] + 1e-9 and report["micro_f1"] - 1e-9 <= high <= 1
        json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("true, pred, message", [
    ([[0, 1]], [[0, 1], [1, 1]], r"true labels \(1, 2\), predicted ones \(2, 2\): both must be \(N, 2\)"),
    ([[0, 1, 1]], [[0, 1, 1]], r"both must be \(N, 2\)"), ([], [], "both must be"), ([0, 1], [0, 1], "both must be"),
    ([[0, 2]], [[0, 1]], "a label is 0 or 1, found 2"), ([[0, 1]], [[0.3, 1]], "found 0.3"), ([[0, -100]], [[0, 1]], "found -100")])
def test_rows_that_cannot_be_scored(true, pred, message):
    with pytest.raises(ValueError, match=message):
        multilabel_report(np.array(true), np.array(pred), ["a", "b"])


@pytest.mark.parametrize("shift, scale", [(0, 1), (1e6, 1), (-3, 1e-3), (0, 1e6)])
@pytest.mark.parametrize("n", [5, 50])
def test_numbers_equal_sklearn_and_scipy(shift, scale, n):
    rng = np.random.default_rng(n)
    true = shift + scale * rng.normal(size=n)
    pred = true.round(0 if scale == 1 else 12) + scale * rng.normal(size=n) * 0.5
    report = regression_report(true, pred)
    pearson = scipy.stats.pearsonr(true, pred)
    theirs = {"rmse": sklearn.metrics.root_mean_squared_error(true, pred), "mae": sklearn.metrics.mean_absolute_error(true, pred),
              "r2": sklearn.metrics.r2_score(true, pred), "pearson": pearson.statistic, "spearman": scipy.stats.spearmanr(true, pred).statistic}
    for name, score in theirs.items():
        assert report[name] == pytest.approx(score, rel=1e-6, abs=1e-9)
        low, high = report["intervals"][name]
        assert low <= report[name] <= high
    np.testing.assert_allclose(report["intervals"]["pearson"], pearson.confidence_interval(), rtol=1e-6)
    json.dumps(report, allow_nan=False)


def test_the_interval_of_rmse_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = []
    for _ in range(60):
        true = rng.normal(size=80)
        low, high = regression_report(true, true + rng.normal(size=80))["interval"]
        held.append(low <= 1.0 <= high)
    assert 0.85 <= np.mean(held) <= 1.0


@pytest.mark.parametrize("true, pred, r2", [([2, 2, 2], [2, 2, 2], 1.0), ([2, 2, 2], [2, 2, 3], 0.0), ([1, 2, 3], [2, 2, 2], 0.0), ([7], [7], 1.0), ([1e9, 1e9 + 1], [1e9, 1e9], -1.0)])
def test_constants_have_no_correlation(true, pred, r2):
    report = regression_report(np.array(true), np.array(pred))
    assert report["r2"] == pytest.approx(r2) and report["pearson"] == report["spearman"] == 0
    if len(true) > 1:
        assert report["r2"] == pytest.approx(sklearn.metrics.r2_score(true, pred))
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("true, pred, message", [
    ([1, 2], [1], r"true numbers \(2,\), predicted ones \(1,\)"), ([], [], r"must be \(N,\)"), ([[1.0]], [[1.0]], "a number for each text"),
    ([1, np.nan], [1, 2], "nan or infinite"), ([1, 2], [1, np.inf], "nan or infinite")])
def test_numbers_that_cannot_be_scored(true, pred, message):
    with pytest.raises(ValueError, match=message):
        regression_report(np.array(true), np.array(pred))


def test_draws_in_blocks_are_the_same_draws():
    counts = np.random.default_rng(0).normal(size=(30_000, 2))
    first = bootstrap(counts, lambda sums: sums[:, 0], 340)
    draws = np.random.default_rng(0).multinomial(30_000, np.full(30_000, 1 / 30_000), size=340) @ np.unique(counts, axis=0)
    np.testing.assert_allclose(first, np.quantile(draws[:, 0], [0.025, 0.975]))


@pytest.mark.parametrize("kind, labels, wanted", [
    ("classify", [2, 1, 2, 0], 2), ("classify", [1, 0], 0), ("ner", [np.array([0, 0, 5]), np.array([0])], 0),
    ("multilabel", [[1, 0], [1, 1], [1, 0], [0, 1]], [1, 0]), ("regression", [1.0, 2.0, 4.5], 2.5)])
def test_the_constant_answer_of_a_kind(kind, labels, wanted):
    answer = imported(KINDS[kind].baseline)([np.asarray(y) for y in labels])
    np.testing.assert_array_equal(answer, wanted)
    assert callable(imported(KINDS[kind].report))
