"""Model folders in Hugging Face's layout, found on disk or fetched from the hub, and their tokenizers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dcpo_async.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ADVICE = "name an existing folder, or a hub id such as Qwen/Qwen2.5-Math-7B while the hub can be reached"


WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pth", "*.gguf")


def model_folder(name: str, setting: str, *, with_weights: bool = True) -> Path:
    """The folder of a model; one that is no folder here is fetched from the hub.

    Args:
        name: a folder, or a hub id.
        setting: what errors call it.
        with_weights: whether what is fetched has to have them.

    Raises ConfigError where there is no such model.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _fetched(name, setting, () if with_weights else WEIGHT_FILES)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{setting} {name}: no config.json in it; it must be a Hugging Face model folder")
    return folder


def load_tokenizer(folder: Path, setting: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder; raises ConfigError."""
    # Imported here because it takes seconds, and processes that import this module do not all need it.
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{setting} {folder}: no tokenizer can be loaded from it ({reason})") from None
    return tokenizer


def context_tokens(folder: Path) -> int | None:
    """Most tokens of prompt and response that the model's configuration allows; None where it does not say."""
    config = json.loads((folder / "config.json").read_text())
    tokens = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    return int(tokens) if tokens else None


def _fetched(name: str, setting: str, without: Sequence[str]) -> Path:
    # Imported here because it takes a second and most models lie in a folder.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(f"{setting} {name}: no such folder; {ADVICE}")
    try:
        return Path(snapshot_download(name, ignore_patterns=list(without) or None))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{setting} {name}: no such folder, and not to be had from the hub ({reason}); {ADVICE}"
        ) from None
