"""What runs inside vLLM's worker processes: called by name, with strings and numbers for arguments."""

import os
import select
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from safetensors import safe_open
from torch import Tensor, nn

from actor.engine.canary_worker import CanaryScoring


class WorkerExtension(CanaryScoring):
    """Methods that vLLM adds to its worker class."""

    reload_weights: Any

    def load_folder(self, folder: str) -> None:
        """Exchange the model's weights for those of a Hugging Face folder, in place."""
        model = self.model_runner.get_model()
        forget_packed_experts(model)
        self.reload_weights(weights_iterator=mapped_tensors(Path(folder)))
        pack_tied_heads(model)

    def exit_with(self, process_id: int) -> None:
        """End this process when the given one ends: vLLM's own would live on after a SIGKILL of its parent."""
        threading.Thread(target=_exit_with, args=(process_id,), daemon=True).start()


def mapped_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a folder's safetensors files, mapped rather than read.

    Raises:
        FileNotFoundError: there are none; vLLM would take that for an update without changes.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no safetensors file in {folder}")
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                yield name, file.get_tensor(name)


def forget_packed_experts(model: nn.Module) -> None:
    """Have the next reload pack the experts of a mixture as the first load did.

    On a CPU the kernel of experts takes weights that are padded and packed for it. vLLM does both once, when it makes
    the kernel; where there is one, a reload would hand it the weights as they stand in the checkpoint, and the engine
    would sample from noise. On other devices nothing is packed, and the kernel must stay the one that was captured.
    """
    modules: Iterator[Any] = model.modules()
    for module in modules:
        method: Any = getattr(module, "quant_method", None)
        if hasattr(method, "moe_kernel") and all(weight.device.type == "cpu" for weight in module.parameters()):
            method.moe_kernel = None


def pack_tied_heads(model: nn.Module) -> None:
    """Pack output heads anew that share their weight with the embedding, in place.

    A CPU multiplies with a packed copy of the weight. No checkpoint names a tied head, so vLLM's reload leaves its copy
    as it was, and the engine would sample from new layers under the head of the weights that it was started with.
    """
    modules: Iterator[Any] = model.modules()
    layers = [module for module in modules if hasattr(module, "quant_method") and hasattr(module, "weight")]
    uses = Counter(layer.weight.data_ptr() for layer in layers if layer.weight.numel())
    for layer in layers:
        if uses[layer.weight.data_ptr()] > 1:
            layer.quant_method.process_weights_after_loading(layer)


def _exit_with(process_id: int) -> NoReturn:
    try:
        select.select([os.pidfd_open(process_id)], [], [])
    finally:
        os._exit(1)
