"""Hugging Face model folders: all but the weights, and a whole one when the run is finished."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dcpo_async.durable import replace_folder
from dcpo_async.weights.tensor_file import write_tensors

GENERATION_CONFIG = "generation_config.json"


def write_skeleton(folder: Path, model: Any, tokenizer: Any, source: Path) -> None:
    """Write all of a Hugging Face model folder but the weights; `source` is the folder that the model came from."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    # Copied: saving it anew refuses settings that transformers finds at odds, and shipped models have them.
    if (source / GENERATION_CONFIG).exists():
        shutil.copyfile(source / GENERATION_CONFIG, folder / GENERATION_CONFIG)
    tokenizer.save_pretrained(folder)


def export_weights(folder: Path, skeleton: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a Hugging Face model folder; one that is there already is replaced once the new one stands whole."""
    writing = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(writing, ignore_errors=True)
    shutil.copytree(skeleton, writing)
    write_tensors(writing / "model.safetensors", weights)
    replace_folder(writing, folder)
