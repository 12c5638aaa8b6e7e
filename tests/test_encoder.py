"""The encoder of lesson 33: the states and gradients of transformers, on random models and on MiniLM; files that it must refuse."""
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.func import functional_call
from transformers import BertConfig, BertForTokenClassification, BertModel, RobertaConfig, RobertaModel

from ft_course.data.alignment import encode_texts
from ft_course.data.batching import collate
from ft_course.model.checkpoints import load_tokenizer, resolve
from ft_course.model.encoder import encode, load_encoder, mean_state, pooled
from ft_course.model.files import CorruptCheckpoint
from ft_course.theory.formulas import relative_error

SIZES = dict(vocab_size=30, max_position_embeddings=12, attn_implementation="eager")
CONFIGS = [BertConfig(hidden_size=H, num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=F, **SIZES)
           for H, heads, layers, F in [(4, 1, 1, 3), (6, 3, 2, 10), (8, 2, 4, 5)]]
TEXTS = ["The soup was cold.", "Ada Lovelace wrote to Charles Babbage, and he answered at length.", "!", "Not bad at all"]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.num_hidden_layers} layers")


def drawn(config, seed: int = 0):
    "transformers' model and its weights, drawn anew in float64."
    torch.manual_seed(seed)
    model = BertModel(config).double().eval()
    return model, {name: torch.randn_like(p) / 2 for name, p in model.named_parameters()}


def batch_of(lengths: tuple[int, ...], pairs: bool = False) -> dict[str, torch.Tensor]:
    "Random tokens, padded; the second half of each text is of type 1 where it is a pair."
    T = max(lengths)
    mask = (torch.arange(T) < torch.tensor(lengths)[:, None]).long()
    batch = dict(input_ids=torch.randint(1, 30, (len(lengths), T)) * mask, attention_mask=mask)
    return batch | (dict(token_type_ids=(torch.arange(T) >= T // 2).long() * mask) if pairs else {})


@each_config
@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
def test_all_states_are_those_of_transformers(config, pairs):
    model, weights = drawn(config)
    batch = batch_of((12, 1, 5), pairs)
    expected = functional_call(model, weights, (), batch | dict(output_hidden_states=True))
    states = encode(batch, weights, config)
    assert relative_error(states, list(expected.hidden_states)) < 1e-12
    assert relative_error(pooled(states[-1], weights), expected.pooler_output) < 1e-12


@each_config
def test_gradients_are_those_of_transformers(config):
    model, weights = drawn(config)
    batch, target = batch_of((7, 4)), torch.randn(2, config.hidden_size, dtype=torch.float64)

    def gradients(answer):
        mine = {name: w.clone().requires_grad_() for name, w in weights.items()}
        return dict(zip(mine, torch.autograd.grad((answer(mine) * target).sum(), mine.values())))

    ours = gradients(lambda mine: pooled(encode(batch, mine, config)[-1], mine))
    theirs = gradients(lambda mine: functional_call(model, mine, (), batch).pooler_output)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert all(g.abs().max() > 0 for name, g in ours.items() if not name.endswith("key.bias"))  # a key's bias cancels in the softmax


@pytest.fixture(scope="module")
def minilm():
    return load_encoder("minilm")


def test_minilm_answers_as_in_transformers(minilm):
    weights, config = minilm
    batch = collate(encode_texts(load_tokenizer("minilm"), TEXTS), 0)
    model = BertModel.from_pretrained(resolve("minilm")).eval()
    with torch.no_grad():
        expected = model(**batch, output_hidden_states=True)
    states = encode(batch, weights, config)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close([h[real] for h in states], [h[real] for h in expected.hidden_states], atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled(states[-1], weights), expected.pooler_output, atol=1e-5, rtol=0)


def test_company_changes_no_text(minilm):
    weights, config = minilm
    features = encode_texts(load_tokenizer("minilm"), TEXTS)
    together = collate(features, 0)
    vectors = mean_state(encode(together, weights, config)[-1], together["attention_mask"])
    for feature, vector in zip(features, vectors):
        alone = collate([feature])
        assert relative_error(mean_state(encode(alone, weights, config)[-1], alone["attention_mask"])[0], vector) < 1e-5


def test_numbers_of_the_file_are_the_files(minilm):
    weights, _ = minilm
    file = load_file(resolve("minilm") / "model.safetensors")
    assert all(torch.equal(w, file[name]) for name, w in weights.items())


def test_a_whole_taggers_encoder_in_half_precision(tmp_path):
    torch.manual_seed(0)
    model = BertForTokenClassification(CONFIGS[1]).half()
    model.save_pretrained(tmp_path)
    weights, config = load_encoder(tmp_path)
    assert {w.dtype for w in weights.values()} == {torch.float32} and not any("classifier" in name or "pooler" in name for name in weights)
    batch = batch_of((5, 3))
    assert relative_error(encode(batch, weights, config)[-1], model.float().eval().bert(**batch).last_hidden_state) < 1e-5


@pytest.mark.parametrize("config, message", [
    (RobertaConfig(vocab_size=30, hidden_size=4, num_attention_heads=1, num_hidden_layers=1, intermediate_size=3), "model_type is 'roberta'"),
    (BertConfig(hidden_act="relu", **SIZES), "hidden_act is 'relu'"), (BertConfig(layer_norm_eps=1e-5, **SIZES), "layer_norm_eps is 1e-05")])
def test_what_would_be_computed_wrongly_is_refused(config, message, tmp_path):
    small = dict(hidden_size=4, num_attention_heads=1, num_hidden_layers=1, intermediate_size=3)
    config.update(small)
    (RobertaModel if config.model_type == "roberta" else BertModel)(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_encoder(tmp_path)


@pytest.mark.parametrize("spoil", [lambda w: w.pop("encoder.layer.1.output.dense.weight"), lambda w: w.update({"encoder.layer.1.output.dense.weight": torch.ones(2, 2)})],
                         ids=["missing", "another shape"])
def test_a_file_without_all_weights_is_refused(spoil, tmp_path):
    BertModel(CONFIGS[1]).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    spoil(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CorruptCheckpoint, match="1 weights are missing.*encoder.layer.1.output.dense.weight"):
        load_encoder(tmp_path)
