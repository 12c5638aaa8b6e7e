"""A model small enough for any test, and examples of uneven length for it."""
import random

import torch
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification
from transformers.utils import logging

from ft_course.data.alignment import encode_sentences

logging.disable_progress_bar()
HEADS = {"ner": BertForTokenClassification, "classify": BertForSequenceClassification}


def tiny_model(task: str = "ner", seed: int = 0, dropout: float = 0.0, labels: int = 5):
    "A BERT of two layers, 32 wide, with random weights."
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                        max_position_embeddings=64, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, num_labels=labels)
    return HEADS[task](config)


def tiny_features(n: int, task: str = "ner", seed: int = 0, labels: int = 5) -> list[dict]:
    "Examples of 3 to 20 tokens; those of NER have from one label to one on each token."
    chance = random.Random(seed)
    features = []
    for _ in range(n):
        ids = [chance.randrange(1, 120) for _ in range(chance.randint(3, 20))]
        share = chance.random()
        tags = [chance.randrange(labels)] + [chance.randrange(labels) if chance.random() < share else -100 for _ in ids[1:]]
        label = tags if task == "ner" else chance.randrange(labels)
        features.append(dict(input_ids=ids, attention_mask=[1] * len(ids), labels=label))
    return features


def encode_words(tokenizer, words: list[str], labels: list | None = None, *rest, **options) -> dict:
    "The feature of one sentence."
    return encode_sentences(tokenizer, [words], None if labels is None else [labels], *rest, **options)[0]
