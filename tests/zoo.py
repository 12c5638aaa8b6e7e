"""A tiny random model of every family that the table of families knows."""
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

WIDE = dict(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
GROUPED = WIDE | dict(num_key_value_heads=1)
PAIR = dict(vocab_size=50, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24)
DEBERTA = WIDE | dict(relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, pooler_hidden_size=16)
SIZES = {
    "bert": WIDE, "electra": WIDE | dict(embedding_size=8), "ernie": WIDE, "roberta": WIDE, "xlm-roberta": WIDE, "xlm-roberta-xl": WIDE, "camembert": WIDE,
    "roberta-prelayernorm": WIDE, "distilbert": dict(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24), "albert": WIDE | dict(embedding_size=8),
    "mpnet": WIDE, "deberta": DEBERTA, "deberta-v2": DEBERTA, "xlnet": dict(vocab_size=50, d_model=16, n_layer=2, n_head=2, d_inner=24),
    "modernbert": WIDE | dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2),
    "gpt2": dict(vocab_size=50, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2),
    "gpt_neo": dict(vocab_size=50, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], bos_token_id=1, eos_token_id=2),
    "gpt_neox": WIDE, "bloom": dict(vocab_size=50, hidden_size=16, n_layer=2, n_head=2), "falcon": WIDE,
    "llama": GROUPED, "mistral": GROUPED, "qwen2": GROUPED, "qwen3": GROUPED | dict(head_dim=8), "gemma": GROUPED | dict(head_dim=8),
    "phi": WIDE, "phi3": WIDE | dict(pad_token_id=0), "opt": WIDE | dict(ffn_dim=24, word_embed_proj_dim=16, pad_token_id=1),
    "bart": PAIR, "mbart": PAIR, **dict.fromkeys(["t5", "mt5"], dict(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0)),
}  # model_type -> arguments of its configuration


def zoo(kind: str, auto=AutoModel, seed: int = 0, **changes) -> PreTrainedModel:
    "A model with random weights, in evaluation mode; biases and gains are off their round numbers, where a mistake would hide."
    torch.manual_seed(seed)
    model = auto.from_config(AutoConfig.for_model(kind, **SIZES[kind] | changes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model
