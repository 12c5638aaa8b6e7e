"""What tests of the command line share: the call, a tiny model, small files."""
import json
from pathlib import Path

import torch
from transformers import BertConfig, BertModel
from typer.testing import CliRunner, Result

from ft_course.model.checkpoints import load_tokenizer, save_pretrained
from ft_course.app.cli import app

REVIEWS = [("A joy from start to end", "positive"), ("It broke on day one", "negative"), ("Good and cheap", "positive"),
           ("Never again", "negative"), ("We all loved it", "positive"), ("Cold soup", "negative")]
NEWS = ["Ada B-PER\nOkafor I-PER\nflew O\nto O\nLagos B-LOC\n. O", "Lagos B-LOC\nthanked O\nAda B-PER\n. O",
        "It O\nrained O\nin O\nOslo B-LOC\n. O"]


def ft_course(*args, input: str | bytes | None = None) -> Result:
    "Call the command line in this process: exit_code, stdout, stderr. An error that is no message is raised."
    result = CliRunner().invoke(app, [str(arg) for arg in args], input=input)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    print(result.stderr)  # pytest shows it when a test fails
    return result


def tiny_folder(folder: Path) -> Path:
    "A random BERT of two layers with MiniLM's tokenizer."
    torch.manual_seed(0)
    size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, initializer_range=0.3)
    save_pretrained(BertModel(BertConfig(vocab_size=30522, **size)), load_tokenizer("minilm"), folder)
    return folder


def write_reviews(file: Path, repeat: int = 8) -> Path:
    "Reviews as JSON Lines; all texts are different."
    rows = [{"text": f"{text}, {i} times.", "label": label} for i in range(repeat) for text, label in REVIEWS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_news(file: Path, repeat: int = 10) -> Path:
    "Sentences as CoNLL columns; all are different."
    file.write_text("\n\n".join(f"{i} O\n{sentence}" for i in range(repeat) for sentence in NEWS) + "\n")
    return file
