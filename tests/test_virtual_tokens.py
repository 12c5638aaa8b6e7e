"""Prompts and prefixes on many families: they reach the answer, equal peft in both directions wherever peft works, or are refused by name."""
import json
import warnings
from copy import deepcopy

import pytest
import torch
import transformers
from ft_course.peft import prefix, prompts
from ft_course.peft.files import load_adapter, save_adapter
from ft_course.model.inference import position_ids, reader
from ft_course.theory.formulas import relative_error
from torch.nn.functional import pad

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it

N = 3
IDS = dict(vocab_size=50, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=2)
WIDE = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
SHARED = dict(WIDE, intermediate_size=24, num_key_value_heads=1)
OPT = dict(WIDE, ffn_dim=24, word_embed_proj_dim=16, max_position_embeddings=16)
BART = dict(d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
            decoder_start_token_id=2, forced_eos_token_id=2, max_position_embeddings=16)
MODELS = {  # name -> (class, beginning of the name of its configuration, settings)
    "bert": ("BertForSequenceClassification", "Bert", dict(WIDE, intermediate_size=24, max_position_embeddings=16)),
    "bert-ner": ("BertForTokenClassification", "Bert", dict(WIDE, intermediate_size=24, max_position_embeddings=16)),
    "roberta": ("RobertaForSequenceClassification", "Roberta", dict(WIDE, intermediate_size=24, max_position_embeddings=17)),
    "electra": ("ElectraForSequenceClassification", "Electra", dict(WIDE, intermediate_size=24, embedding_size=8)),
    "albert": ("AlbertForSequenceClassification", "Albert", dict(WIDE, intermediate_size=24, embedding_size=16)),
    "mpnet": ("MPNetForSequenceClassification", "MPNet", dict(WIDE, intermediate_size=24)),
    "deberta-v2": ("DebertaV2ForSequenceClassification", "DebertaV2", dict(WIDE, intermediate_size=24)),
    "modernbert": ("ModernBertForSequenceClassification", "ModernBert", dict(WIDE, intermediate_size=24, classifier_pooling="mean")),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBert", dict(dim=16, n_layers=2, n_heads=2, hidden_dim=24)),
    "xlnet": ("XLNetForSequenceClassification", "XLNet", dict(d_model=16, n_layer=2, n_head=2, d_inner=24)),
    "gpt2": ("GPT2ForSequenceClassification", "GPT2", dict(n_embd=16, n_layer=2, n_head=2)),
    "opt": ("OPTForSequenceClassification", "OPT", OPT),
    "opt-lm": ("OPTForCausalLM", "OPT", OPT),
    "llama": ("LlamaForSequenceClassification", "Llama", SHARED),
    "qwen2-lm": ("Qwen2ForCausalLM", "Qwen2", SHARED),
    "falcon-lm": ("FalconForCausalLM", "Falcon", WIDE),
    "eurobert": ("EuroBertForSequenceClassification", "EuroBert", dict(SHARED, num_key_value_heads=2)),
    "longformer": ("LongformerForSequenceClassification", "Longformer", dict(WIDE, intermediate_size=24, attention_window=4, max_position_embeddings=30)),
    "t5-lm": ("T5ForConditionalGeneration", "T5", dict(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)),
    "bart": ("BartForSequenceClassification", "Bart", BART),
    "bart-lm": ("BartForConditionalGeneration", "Bart", BART),
    "whisper": ("WhisperForConditionalGeneration", "Whisper", BART | dict(num_mel_bins=4, max_source_positions=10, max_target_positions=30)),
}
METHODS = {"prompt": (prompts, {}, "PromptTuningConfig"), "net": (prompts, dict(peft_type="P_TUNING", encoder_hidden_size=6), "PromptEncoderConfig"), "prefix": (prefix, {}, "PrefixTuningConfig")}
NO_PROMPT = ("longformer",)  # it marks tokens before they are read
NO_PREFIX = (*NO_PROMPT, "eurobert", "albert", "mpnet", "deberta-v2", "modernbert", "distilbert", "xlnet")
WITH_NET = ("bert", "roberta", "gpt2", "modernbert", "t5-lm")  # enough: behind the net all is as without
HAS = {"prompt": [name for name in MODELS if name not in (*NO_PROMPT, "whisper")], "net": WITH_NET, "prefix": [name for name in MODELS if name not in (*NO_PREFIX, "whisper")]}
PAIRS = [(name, kind) for kind, names in HAS.items() for name in names]
FAILS_IN_PEFT = {("distilbert", "prompt"), ("bart", "prompt"), ("bart", "prefix")}  # no sizes; no vectors in place of numbers; a mask too short
NOT_MADE_BY_PEFT = {("electra", "prompt"), ("falcon-lm", "prefix")}  # it takes the width of the layers for that of words, all heads for those of keys
LAST = ("gpt2", "opt", "llama")  # classifiers that look for the last token
MORE_HEAD = ("deberta-v2", "modernbert", "eurobert", "xlnet")  # than what peft saves
TASK_TYPES = {"ner": "TOKEN_CLS", "lm": "CAUSAL_LM", "t5-lm": "SEQ_2_SEQ_LM", "bart-lm": "SEQ_2_SEQ_LM"}


def build(name: str):
    "A random model of a family, the same each time."
    kind, config, settings = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, f"{config}Config")(**IDS | settings)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def batch(name: str, lengths: tuple[int, ...] = (7, 5, 6, 3)) -> dict:
    ids = torch.randint(3, 50, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids[range(len(lengths)), mask.sum(1) - 1] = 2
    return dict(input_ids=ids * mask, attention_mask=mask.long()) | (dict(decoder_input_ids=ids[:, :4]) if name in ("t5-lm", "bart-lm") else {})


@torch.no_grad()
def answers(model, name: str, **changed) -> torch.Tensor:
    "Logits of what the texts say: peft's of virtual tokens are cut, and it can't see padding where a classifier looks for the last token."
    inputs = batch(name, (7, 7) if name in LAST else (7, 5, 6, 3)) | changed
    z = model(**inputs).logits
    return z[:, -7:][inputs["attention_mask"].bool()] if name in ("bert-ner", "opt-lm", "qwen2-lm", "falcon-lm") else z


def of_peft(name: str, kind: str):
    import peft

    task = TASK_TYPES.get(name, TASK_TYPES.get(name.split("-")[-1], "SEQ_CLS"))
    options = {key: value for key, value in METHODS[kind][1].items() if key != "peft_type"}
    torch.manual_seed(5)
    return peft.get_peft_model(build(name), getattr(peft, METHODS[kind][2])(task_type=task, num_virtual_tokens=N, **options)).eval()


def with_tokens(name: str, kind: str = "prompt", **options):
    model = build(name)
    METHODS[kind][0].inject(model, N, **METHODS[kind][1] | options)
    return model


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return relative_error(a, b) < 1e-5


@pytest.mark.parametrize("name, kind", [pair for pair in PAIRS if pair not in FAILS_IN_PEFT])
def test_peft_opens_our_folder_and_answers_alike(name, kind, tmp_path):
    import peft

    ours = with_tokens(name, kind)
    save_adapter(ours, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of names and settings that peft does not know
        theirs = peft.PeftModel.from_pretrained(build(name), str(tmp_path)).eval()
    assert close(answers(theirs, name), answers(ours, name))


@pytest.mark.parametrize("name, kind", [pair for pair in PAIRS if pair not in FAILS_IN_PEFT | NOT_MADE_BY_PEFT])
def test_folders_of_peft_answer_alike_here(name, kind, tmp_path):
    theirs = of_peft(name, kind)
    theirs.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name in MORE_HEAD else "error", UserWarning)
        ours = load_adapter(build(name), tmp_path)
    assert close(answers(ours, name), answers(theirs, name))


@pytest.mark.parametrize("name, kind, as_peft", [(*pair, as_peft) for pair in PAIRS for as_peft in (True, False) if as_peft or "bart" not in pair[0]])
def test_what_is_put_in_reaches_the_answer_and_learns(name, kind, as_peft):
    model = with_tokens(name, kind, as_peft=as_peft)
    assert not close(answers(model, name), answers(build(name), name))
    z = model(**batch(name)).logits
    (z * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert all(p.grad.abs().max() > 1e-9 for p in model.prompt_encoder.parameters())


@pytest.mark.parametrize("name", [name for name in MODELS if name not in (*NO_PREFIX, "whisper", "bart")])
def test_padding_changes_nothing(name):
    for kind, as_peft in (("prompt", True), ("prefix", True), ("prompt", False), ("prefix", False)):
        if as_peft or not name.startswith("bart"):
            model, inputs = with_tokens(name, kind, as_peft=as_peft), batch(name)
            alone = {key: value[3:, :3] for key, value in inputs.items()}
            inputs |= {key: value[:, :3] for key, value in inputs.items() if key.startswith("decoder")}
            together = model(**inputs).logits[3:]
            assert close(together[:, :3] if together.dim() == 3 else together, model(**alone).logits)


REFUSED = [("whisper", kind, {}, "WhisperForConditionalGeneration reads input_features") for kind in METHODS]
REFUSED += [(name, "prefix", {}, "takes no keys and values.*prompt") for name in NO_PREFIX]
REFUSED += [("bart-lm", "prompt", dict(as_peft=False), "BartEncoder counts its places itself.*as_peft=True"), ("bart", "prefix", dict(as_peft=False), "BartDecoder counts")]
REFUSED += [(name, "prompt", {}, f"{MODELS[name][0]} cannot be asked with it any more.*another method") for name in NO_PROMPT]
REFUSED += [("bert", kind, dict(num_virtual_tokens=16), "num_virtual_tokens=16: BertModel has 16 places") for kind in METHODS]
REFUSED += [("opt", kind, {option: value}, f"{option}={value!r}") for kind, option, value in [
    ("prompt", "num_virtual_tokens", 2.5), ("prompt", "num_virtual_tokens", "4"), ("prompt", "num_virtual_tokens", True), ("prefix", "num_virtual_tokens", -1),
    ("net", "encoder_hidden_size", 0), ("prefix", "encoder_hidden_size", 1.5), ("prompt", "peft_type", "LORA"), ("prefix", "init_weights", "ones")]]


@pytest.mark.parametrize("name, kind, options, message", REFUSED)
def test_what_cannot_work_is_refused_and_changes_nothing(name, kind, options, message):
    model, (module, more, _) = build(name), METHODS[kind]
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        module.inject(model, **dict(num_virtual_tokens=N) | more | options)
    assert not hasattr(model, "adapter_config") and not hasattr(model, "prompt_encoder") and [p.requires_grad for p in model.parameters()] == before
    assert not any(part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize("kind", METHODS)
def test_peft_refuses_our_own_places_by_name(kind, tmp_path):
    import peft

    model = with_tokens("bert", kind, as_peft=False)
    save_adapter(model, tmp_path)
    kind_in_file = json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"]
    assert kind_in_file.startswith("FT_")
    with pytest.raises((KeyError, ValueError), match=kind_in_file):
        peft.PeftModel.from_pretrained(build("bert"), str(tmp_path))
    again = load_adapter(build("bert"), tmp_path)
    assert close(answers(again, "bert"), answers(model, "bert"))
    save_adapter(again, tmp_path)  # stays what it is
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] in ("FT_PROMPT_TUNING", "FT_PREFIX_TUNING")


def edit_config(folder, change) -> None:
    "Change the configuration of a saved adapter, and leave its check sums to match."
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    (folder / "checksums.json").unlink(missing_ok=True)


@pytest.mark.parametrize("kind", METHODS)
def test_folders_from_before_keep_their_places_and_say_so(kind, tmp_path):
    model = with_tokens("bert", kind, as_peft=False)
    save_adapter(model, tmp_path)
    edit_config(tmp_path, lambda c: c.update(peft_type=c["peft_type"].removeprefix("FT_"), auto_mapping=c["auto_mapping"] | {"as_peft": False}))
    with pytest.warns(UserWarning, match="save it again"):
        again = load_adapter(build("bert"), tmp_path)
    assert close(answers(again, "bert"), answers(model, "bert"))


@pytest.mark.parametrize("kind", METHODS)
def test_a_configuration_need_not_say_everything(kind, tmp_path):
    model = with_tokens("bert", kind)
    save_adapter(model, tmp_path)
    edit_config(tmp_path, lambda c: [c.pop(key, None) for key in ("auto_mapping", "revision", "task_type", "modules_to_save", "token_dim")])
    assert close(answers(load_adapter(build("bert"), tmp_path), "bert"), answers(model, "bert"))


def test_a_file_without_virtual_tokens_is_refused(tmp_path):
    from ft_course.peft import lora

    model = build("bert")
    lora.inject(model, r=2, target_modules=("query",))
    save_adapter(model, tmp_path)
    edit_config(tmp_path, lambda c: c.update(peft_type="PROMPT_TUNING", num_virtual_tokens=N, auto_mapping=None))
    with pytest.raises(ValueError, match="no prompt_embeddings"):
        load_adapter(build("bert"), tmp_path)


@pytest.mark.parametrize("as_peft", [True, False])
@pytest.mark.parametrize("name, kind", [("bert", "prompt"), ("bert", "prefix"), ("roberta", "prompt"), ("opt-lm", "prompt"), ("opt-lm", "prefix"), ("qwen2-lm", "prefix")])
def test_vectors_in_place_of_numbers(name, kind, as_peft):
    model, inputs = with_tokens(name, kind, as_peft=as_peft), batch(name, (7, 7))
    vectors = reader(model).get_input_embeddings()(inputs["input_ids"])
    given = model(inputs_embeds=vectors, attention_mask=inputs["attention_mask"]).logits
    assert close(given, model(**inputs).logits)


@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
@pytest.mark.parametrize("name", ["mpnet", "opt-lm", "qwen2-lm", "falcon-lm", "modernbert", "deberta-v2"])
def test_places_are_the_models_own(name, left):
    base = reader(build(name))
    inputs = {key: value.flip(1) if left else value for key, value in batch(name).items()}
    if name == "mpnet":
        inputs["input_ids"] = inputs["input_ids"] + (inputs["input_ids"] == 0)  # its padding is 1, whatever the configuration says
    real = inputs["attention_mask"].bool()
    given = base(**inputs, position_ids=position_ids(base, inputs["input_ids"], mask=inputs["attention_mask"])).last_hidden_state
    assert close(given[real], base(**inputs).last_hidden_state[real])


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name, part, as_peft, room", [("bert", "BertModel", True, 13), ("bert", "BertModel", False, 16), ("roberta", "RobertaModel", True, 13), ("opt-lm", "OPTDecoder", True, 13),
                                                       ("opt-lm", "OPTDecoder", False, 16), ("qwen2-lm", "", True, None), ("bart-lm", "Bart(En|De)coder", True, 13)])
def test_a_text_without_room_is_refused_in_words(name, kind, part, as_peft, room):
    model = with_tokens(name, kind, as_peft=as_peft)
    assert model.prompt_encoder.room == room
    ids = torch.randint(3, 50, (2, room or 30))
    more = dict(decoder_input_ids=ids) if name == "bart-lm" else {}
    assert model(input_ids=ids, **more).logits.isfinite().all()
    if room:
        longer = torch.cat([ids, ids[:, :1]], 1)
        with pytest.raises(ValueError, match=f"{room + 1} tokens and {N} virtual ones: {part} has places for {room} .*max_length={room}"):
            model(input_ids=longer, **{key: longer for key in more})


def test_writing_stops_in_words_where_the_places_end():
    for kind in ("prompt", "prefix"):
        model = with_tokens("opt-lm", kind)
        with pytest.raises(ValueError, match="14 tokens and 3 virtual ones"):
            model.generate(input_ids=torch.full((1, 4), 7), max_new_tokens=20, min_new_tokens=20, do_sample=False)


def test_a_task_whose_texts_have_no_room_is_refused():
    from ft_course.peft.tasks import adapt
    from ft_course.tasks.sentiment import TextClassification

    task = TextClassification("reviews", max_length=512)
    for method in ("prompt", "prefix"):
        with pytest.raises(ValueError, match="max_length=512: beside 20 virtual tokens .* places for 492"):
            adapt(task, method)
        assert not hasattr(task.model, "adapter_config") and not hasattr(task.model, "prompt_encoder")
    adapt(task, "prompt", as_peft=False)
