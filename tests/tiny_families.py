"""Tiny models of many families, made on the spot, with weights that are far from degenerate."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny_model import write_tokenizer

VOCAB_SIZE = 128
ALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WINDOW = {"sliding_window": 16, "head_dim": 32, "query_pre_attn_scalar": 32, "tie_word_embeddings": True}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GROUPS = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
}
_LATENT = {
    "q_lora_rank": 32,
    # vLLM's latent attention takes these two in no other sizes.
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "num_key_value_heads": 2,
    # transformers has no use for these two, but DeepSeek's own folders have them, and vLLM would route otherwise.
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 16},
    "qwen2": {},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "gemma2": _WINDOW,
    "gemma3_text": _WINDOW,
    "phi": {"num_key_value_heads": 2},
    "phi3": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    },
    # vLLM's kernel for CPUs pads experts of this size.
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 32},
    "deepseek_v3": _GROUPS | _LATENT,
    "glm4_moe": _GROUPS | {"head_dim": 32, "use_qk_norm": True},
}


def make_family(folder: Path, family: str, **settings: Any) -> None:
    """Write a folder with a model of a family in float32, in its own checkpoint format.

    Args:
        settings: of the model's config.json, in place of the family's.
    """
    write_tokenizer(folder, VOCAB_SIZE)
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **ALL | FAMILIES[family] | settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    perturb(model, seed=1, scale=0.1)
    model.save_pretrained(folder)


def perturb(model: Any, seed: int, scale: float) -> None:
    """Move every weight and persistent buffer by normal noise of a standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    for tensor in model.state_dict(keep_vars=True).values():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            tensor.data += scale * torch.randn(tensor.shape, generator=generator)
