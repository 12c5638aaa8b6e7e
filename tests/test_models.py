"""Every family of models from end to end: load, train, evaluate, predict, save, open elsewhere, resume, LoRA, merge. It works, or is refused by name before any work."""
import json
import logging
import shutil
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import transformers
from tiny import encode_words
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from zoo import zoo

from ft_course.data.alignment import glues_words
from ft_course.model.checkpoints import load_model, load_tokenizer
from ft_course.peft.tasks import adapt, merge_run, open_run
from ft_course.tasks.ner import NER
from ft_course.tasks.sentiment import TextClassification
from ft_course.training.resuming import SaveState, resume

TEXTS = ["the food was good and the service too", "a slow film", "we liked the food", "bad food and bad service", "the film was good", "what a bad film it was"]
TEXTS += ["Ada saw Oslo", "in Oslo it was good", "Ada was not bad"]
TASKS = {"classify": TextClassification, "ner": NER}
WORD_PIECES = dict(unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
ROBERTA = dict(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>", cls_token="<s>", sep_token="</s>")
MPNET = dict(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="[UNK]", mask_token="<mask>", cls_token="<s>", sep_token="</s>")
END = dict(eos_token="<|end|>")
PIECES = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", cls_token="<cls>", sep_token="<sep>")
FAMILIES = {  # model_type -> kind of tokenizer, its special tokens, what stands round a text, its class, changes of the configuration
    "bert": ("words", WORD_PIECES, "[CLS]:0 $A:0 [SEP]:0", "BertTokenizer", {}), "distilbert": ("words", WORD_PIECES, "[CLS]:0 $A:0 [SEP]:0", "DistilBertTokenizer", {}),
    "electra": ("words", WORD_PIECES, "[CLS]:0 $A:0 [SEP]:0", "ElectraTokenizer", {}), "mpnet": ("words", MPNET, "<s>:0 $A:0 </s>:0", None, {}),
    "roberta": ("bytes", ROBERTA, "<s>:0 $A:0 </s>:0", "RobertaTokenizer", dict(max_position_embeddings=40)),
    "modernbert": ("bytes", WORD_PIECES, "[CLS]:0 $A:0 [SEP]:0", None, {}), "bart": ("bytes", ROBERTA, "<s>:0 $A:0 </s>:0", "BartTokenizer", {}),
    "gpt2": ("bytes", END, "$A:0", "GPT2Tokenizer", {}), "qwen2": ("bytes", END, "$A:0", "Qwen2Tokenizer", {}), "llama": ("bytes", END, "$A:0", None, {}),
    "opt": ("bytes", ROBERTA, "</s>:0 $A:0", None, {}), "albert": ("unigram", WORD_PIECES, "[CLS]:0 $A:0 [SEP]:0", None, {}),
    "deberta-v2": ("unigram", WORD_PIECES, "[CLS]:0 $A:0 [SEP]:0", None, {}), "xlnet": ("unigram", PIECES, "$A:0 <sep>:0 <cls>:0", None, {}),
    "t5": ("unigram", dict(pad_token="<pad>", eos_token="</s>", unk_token="<unk>"), "$A:0 </s>:0", "T5Tokenizer", {}),
}
REFUSED = {("opt", "ner"), ("bart", "ner"), ("xlnet", "classify")}  # transformers has no head, or one that reads padding
ASKS = hasattr(TextClassification, "kinds")  # a task asks the table of families, and for words where it reads words
CASES = [(family, kind) for family in FAMILIES for kind in TASKS if (family, kind) not in REFUSED and (ASKS or kind != "ner" or FAMILIES[family][0] != "bytes" and family != "xlnet")]
ONE = [(family, next((kind for name, kind in reversed(CASES) if name == family), None)) for family in FAMILIES]  # a kind for each family: tags where it can
ONE = [(family, kind) for family, kind in ONE if kind]


def tokenizer_of(way: str, special: dict[str, str], template: str) -> PreTrainedTokenizerFast:
    "A tokenizer trained on the texts above: WordPiece, byte-level BPE, or a unigram model."
    tokens = list(dict.fromkeys(special.values()))
    known = dict(special_tokens=tokens, show_progress=False)
    if way == "words":
        raw, trainer = Tokenizer(models.WordPiece(unk_token=special["unk_token"])), trainers.WordPieceTrainer(vocab_size=90, **known)
        raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    elif way == "bytes":
        raw, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **known)
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        raw, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(vocab_size=60, unk_token=special["unk_token"], **known)
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    raw.train_from_iterator(TEXTS, trainer)
    raw.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(token, raw.token_to_id(token)) for token in tokens])
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


def write_tokenizer(family: str, folder: Path) -> None:
    "Save a family's tokenizer under the class that such a folder on the hub names."
    way, special, template, name, _ = FAMILIES[family]
    tokenizer = tokenizer_of(way, special, template)
    tokenizer.save_pretrained(folder)
    if name:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name}))


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    "The pretrained model of a family with its tokenizer, as a hub would give it: no head."
    @cache
    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp("models") / family
        write_tokenizer(family, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)  # its class may add pieces
        numbers = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "cls", "sep")}
        zoo(family, AutoModel, **{"vocab_size": len(tokenizer) + 3} | numbers | FAMILIES[family][4]).save_pretrained(folder)
        return folder
    return make


@cache
def data(kind: str) -> datasets.DatasetDict:
    "A dozen rows of two classes, or of tagged words."
    names = ["bad", "good"] if kind == "classify" else ["O", "B-PER", "B-LOC"]
    of = {"Ada": 1, "Oslo": 2}
    rows = {"text": TEXTS, "label": [int("good" in text or "liked" in text) for text in TEXTS]}
    features = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    if kind == "ner":
        rows = {"tokens": [text.split() for text in TEXTS], "ner_tags": [[of.get(word, 0) for word in text.split()] for text in TEXTS]}
        features = {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=names))}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    return datasets.DatasetDict(train=table, validation=table.select(range(4)), test=table.select(range(4, 9)))


def opened(kind: str, folder: Path, **options):
    return TASKS[kind](data(kind), folder, max_length=24, **options)


def answers(task) -> list:
    return task.predict(TEXTS[:5])


def same(one: list, other: list) -> None:
    "Two lists of predictions: equal but for the last digits of scores."
    scores = lambda found: [part["score"] for row in found for part in row.get("entities", [row])]  # noqa: E731
    bare = lambda found: json.loads(json.dumps(found), parse_float=lambda _: 0)  # noqa: E731
    assert bare(one) == bare(other)
    np.testing.assert_allclose(scores(one), scores(other), atol=1e-5)


@pytest.mark.parametrize("family, kind", CASES)
def test_train_evaluate_predict_save_and_open(family, kind, folder_of, tmp_path):
    task = opened(kind, folder_of(family))
    before = task.model.get_input_embeddings().weight.detach().clone()
    learner = task.learner(epochs=1, batch_size=4, lr=1e-2).fit()
    assert np.isfinite(learner.losses).all() and not torch.equal(before, task.model.get_input_embeddings().weight)
    report, found = task.evaluate("test"), answers(task)
    assert np.isfinite(report["loss"]) and [row["text"] for row in found] == TEXTS[:5]
    same(found, [task.predict([text])[0] for text in TEXTS[:5]])
    task.save(tmp_path / "run")
    again = TASKS[kind].load(tmp_path / "run", data(kind))
    same(answers(again), found)
    assert again.evaluate("test")["loss"] == pytest.approx(report["loss"], abs=1e-6)
    head = "AutoModelForTokenClassification" if kind == "ner" else "AutoModelForSequenceClassification"
    theirs = getattr(transformers, head).from_pretrained(tmp_path / "run").eval()
    batch = {k: torch.tensor([v]) for k, v in task.features("test")[0].items() if k in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch).logits, task.model.eval()(**batch).logits, atol=1e-5, rtol=0)
    assert theirs.config.pad_token_id is not None and AutoTokenizer.from_pretrained(tmp_path / "run").pad_token_id == theirs.config.pad_token_id


@pytest.mark.parametrize("family, kind", [case for case in ONE if case[0] in ("bert", "albert", "roberta", "gpt2", "t5", "xlnet")])
def test_resume_goes_on_to_the_same_weights(family, kind, folder_of, tmp_path):
    settings = dict(epochs=2, batch_size=4, lr=1e-3)
    whole = opened(kind, folder_of(family))
    whole.learner(callbacks=[SaveState(tmp_path, keep=9)], **settings).fit()
    states = sorted((tmp_path / "checkpoints").iterdir())
    states[-1].rename(tmp_path / "later")  # the run dies before its last state
    torch.manual_seed(99)
    broken = opened(kind, folder_of(family))
    learner = broken.learner(**settings)
    resume(learner, tmp_path)
    learner.fit()
    assert all(torch.equal(w, broken.model.state_dict()[name]) for name, w in whole.model.state_dict().items())


def adapted(family: str, kind: str, folder: Path, method: str):
    "A task with a method's parts, trained for an epoch. XLNet has no maps for queries and values, so its layers are named."
    task, options = opened(kind, folder), {}
    if family == "xlnet" and method in ("lora", "ia3", "adapter"):
        with pytest.raises(ValueError, match="xlnet has no layer|attention of xlnet has no layers"):
            adapt(task, method)
        options = dict(target_modules=("layer_1", "layer_2"))
    adapt(task, method, **options)
    task.learner(epochs=1, batch_size=4).fit()
    return task


@pytest.mark.parametrize("family, kind", ONE)
def test_lora_is_saved_opened_and_merged(family, kind, folder_of, tmp_path):
    task = adapted(family, kind, folder_of(family), "lora")
    found = answers(task)
    task.save(tmp_path / "run")
    same(answers(open_run(tmp_path / "run")), found)
    merge_run(tmp_path / "run", tmp_path / "whole")
    same(answers(TASKS[kind].load(tmp_path / "whole")), found)


@pytest.mark.parametrize("method", ["adapter", "ia3", "bitfit"])
@pytest.mark.parametrize("family, kind", [case for case in ONE if case[0] in ("albert", "deberta-v2", "modernbert", "xlnet", "gpt2", "qwen2", "bart")])
def test_other_methods_find_their_places(family, kind, method, folder_of, tmp_path):
    if (family, method) == ("modernbert", "bitfit"):
        with pytest.raises(ValueError, match="modernbert has no biases"):
            adapted(family, kind, folder_of(family), method)
        return
    task = adapted(family, kind, folder_of(family), method)
    task.save(tmp_path)
    same(answers(open_run(tmp_path)), answers(task))


@pytest.mark.parametrize("family, kind", sorted(REFUSED))
def test_what_cannot_work_is_refused_before_any_work(family, kind, folder_of):
    with pytest.raises(ValueError, match=f"a model of type '{family}' can't be trained for '{kind}'"):
        opened(kind, folder_of(family))


SMALL = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)


@pytest.mark.parametrize("family, kind, why", [("fnet", "classify", "answers otherwise beside a longer text"), ("fnet", "ner", "answers otherwise beside a longer text"), ("bros", "ner", "cannot be asked about a text: .*bbox")])
def test_what_reads_padding_or_no_text_is_refused_before_any_work(family, kind, why, tmp_path):
    write_tokenizer("bert", tmp_path)
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(family, vocab_size=110, pad_token_id=1, **SMALL)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"a model of type '{family}' {why}.*Take another model"):
        opened(kind, tmp_path)


@pytest.mark.skipif(not ASKS, reason="tasks don't ask the table of families yet")
@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_places_after_padding_are_counted(family, folder_of):
    most = AutoConfig.from_pretrained(folder_of(family)).max_position_embeddings - 2
    with pytest.raises(ValueError, match=f"reads at most {most} tokens"):
        TextClassification(data("classify"), folder_of(family), max_length=most + 1)
    assert len(TextClassification(data("classify"), folder_of(family), max_length=most).predict(["food " * 600])) == 1


# ---------------------------------------------------------------- tokenizers

@pytest.mark.parametrize("family", FAMILIES)
def test_words_are_read_as_in_running_text(family, folder_of):
    tokenizer = load_tokenizer(folder_of(family), words=True)
    words = ["the", "food", "was", "U.S.", "good", "."]
    assert not glues_words(tokenizer)
    assert encode_words(tokenizer, words)["input_ids"] == tokenizer(" ".join(words))["input_ids"]
    assert set(encode_words(tokenizer, words)["word_ids"]) - {None} == set(range(6))


@pytest.mark.parametrize("family", [family for family, row in FAMILIES.items() if row[0] == "bytes"])
def test_glued_words_are_refused_where_they_would_be_read(family, folder_of, tmp_path):
    plain = load_tokenizer(folder_of(family))
    assert glues_words(plain)
    with pytest.raises(ValueError, match="glues the words.*words=True"):
        encode_words(plain, ["the", "food"])
    load_tokenizer(folder_of(family), words=True).save_pretrained(tmp_path)
    assert not glues_words(load_tokenizer(tmp_path, words=True)), "also after it was saved"


def test_a_folder_without_a_tokenizer_is_refused(folder_of, tmp_path):
    "transformers makes an empty one, for which every word is unknown."
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder_of("bert") / name).read_bytes())
    with pytest.raises(ValueError, match="has no tokenizer .none of tokenizer.json, vocab.txt.*Copy the files"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(folder_of, tmp_path):
    zoo("bert", AutoModel, vocab_size=40).save_pretrained(tmp_path)
    write_tokenizer("bert", tmp_path)
    with pytest.raises(ValueError, match="a piece with number .* embeddings have 40 rows"):
        load_tokenizer(tmp_path)
    grown = AutoTokenizer.from_pretrained(folder_of("bert"))
    grown.add_special_tokens({"additional_special_tokens": [f"[{i}]" for i in range(4)]})
    (tmp_path / "config.json").write_bytes((folder_of("bert") / "config.json").read_bytes())
    grown.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="they don't belong together"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("family", ["bert", "roberta", "t5"])
def test_two_paddings_are_refused(family, folder_of, tmp_path):
    folder = shutil.copytree(folder_of(family), tmp_path / family)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 7}))
    with pytest.raises(ValueError, match=f"{family}: the tokenizer pads with .*number {config['pad_token_id']}, and config.json says pad_token_id=7: give both"):
        load_tokenizer(folder)


@pytest.mark.parametrize("text", ["{}", "no JSON", "[]"])
def test_a_spoilt_tokenizer_is_named(text, folder_of, tmp_path):
    folder = shutil.copytree(folder_of("bert"), tmp_path / "bert")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match="bert: the files of its tokenizer can't be read .*Copy them anew"):
        load_tokenizer(folder)


def test_a_slow_tokenizer_is_refused(tmp_path, monkeypatch, folder_of):
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(ValueError, match="has no fast version.*take another model"):
        load_tokenizer(folder_of("albert"))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_missing_padding_is_the_end_of_text(family, folder_of, caplog):
    with caplog.at_level(logging.INFO, "ft_course"):
        tokenizer, model = load_tokenizer(folder_of(family)), load_model(folder_of(family), "classify", ["bad", "good"])
    assert f"no padding token; {tokenizer.eos_token} stands for it" in caplog.text
    assert tokenizer.pad_token_id == model.config.pad_token_id == tokenizer.eos_token_id


def test_no_padding_and_no_end_of_text_is_refused(tmp_path):
    tokenizer_of("unigram", dict(unk_token="<unk>"), "$A:0").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no padding token and no end of text"):
        load_tokenizer(tmp_path)


def test_an_encoder_alone_can_tag_and_not_classify(folder_of, tmp_path):
    "What sentence-T5 is: the encoder of a pair."
    encoder = transformers.T5EncoderModel.from_pretrained(folder_of("t5"))
    encoder.save_pretrained(tmp_path)
    write_tokenizer("t5", tmp_path)
    assert load_model(tmp_path, "ner", ["O", "B"]).config.num_labels == 2
    with pytest.raises(ValueError, match="holds an encoder alone, and T5ForSequenceClassification has a decoder"):
        load_model(tmp_path, "classify", ["bad", "good"])
