"""Turns a GGUF file into a normal Hugging Face model folder, for models that come in packages, not from a hub."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from dcpo_async.durable import publish_folder
from dcpo_async.errors import ConfigError


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Write model (float32), tokenizer and generation settings of a GGUF file into a folder.

    Quantized weights are expanded to the values they stand for; nothing is gained or lost.

    Raises:
        ConfigError: no such file, or the folder is in use.
    """
    if not gguf_file.is_file():
        raise ConfigError(f"{gguf_file}: no such GGUF file")
    if folder.exists():
        raise ConfigError(f"{folder} exists; remove it or name another folder")
    source, name = str(gguf_file.parent), gguf_file.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    writing = folder.with_name(f".{folder.name}.writing")
    model.save_pretrained(writing)
    tokenizer.save_pretrained(writing)
    publish_folder(writing, folder)
