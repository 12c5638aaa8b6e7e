"""Entity scores of 50,000 random sentences: ours against seqeval's strict mode, in one run, from lists of strings."""
import json
import random
import time
import warnings
from importlib.metadata import version
from pathlib import Path

from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from ft_course.data.tags import tags_from_spans
from ft_course.training.metrics import entity_report

SENTENCES, TYPES = 50_000, ("PER", "ORG", "LOC", "MISC")
RESULT = Path(__file__).parent.parent / "results" / "bench_metrics.json"


def random_sentence(rng: random.Random) -> list[str]:
    "Tags of 5 to 30 words, about one word in six within a name."
    length, at, spans = rng.randint(5, 30), 0, []
    while (at := at + rng.randint(1, 16)) < length:
        end = min(at + rng.randint(1, 3), length)
        spans.append((rng.choice(TYPES), at, end))
        at = end
    return tags_from_spans(spans, length)


def disturb(tags: list[str], rng: random.Random) -> list[str]:
    "A copy with one tag in twenty swapped for any other: some entities break, some become illegal."
    names = ["O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in TYPES)]
    return [rng.choice(names) if rng.random() < 0.05 else tag for tag in tags]


def timed(function, times: int = 3) -> tuple[float, dict]:
    "Seconds of the fastest of a few calls, and the result."
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def main() -> None:
    "Time both, check that they agree, print and write the result."
    rng = random.Random(0)
    y_true = [random_sentence(rng) for _ in range(SENTENCES)]
    y_pred = [disturb(tags, rng) for tags in y_true]
    entity_report(y_true[:100], y_pred[:100])
    ours, report = timed(lambda: entity_report(y_true, y_pred))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, reference = timed(lambda: classification_report(y_true, y_pred, mode="strict", scheme=IOB2, output_dict=True))
    assert abs(report["entity_f1"] - reference["micro avg"]["f1-score"]) < 1e-12
    result = {"sentences": SENTENCES, "words": sum(map(len, y_true)), "entities": report["support"],
              "entity_f1": report["entity_f1"], "ours_s": round(ours, 4), "seqeval_s": round(theirs, 3),
              "ratio": round(theirs / ours, 1), "seqeval": version("seqeval")}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
