"""A tiny Llama with a character tokenizer, made on the spot: tests need no download."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = "\n 0123456789+-*/=?().,:abcdefghijklmnopqrstuvwxyz{}\\#"


def make_tiny_model(folder: Path, seed: int, *, hidden_size: int = 64, tied: bool = False, **settings: Any) -> None:
    """Write a Hugging Face model folder with random weights that follow from the seed.

    Args:
        settings: of LlamaConfig, over those of a vocabulary of 64 and two layers.
    """
    write_tokenizer(folder)
    torch.manual_seed(seed)
    tiny = {
        "vocab_size": 64,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    LlamaForCausalLM(LlamaConfig(**tiny | settings)).save_pretrained(folder)


def write_tokenizer(folder: Path, vocab_size: int = 64) -> None:
    """Write a tokenizer of characters into a folder."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *CHARACTERS]
    words += [f"<unused{number}>" for number in range(vocab_size - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=256,
    ).save_pretrained(folder)
