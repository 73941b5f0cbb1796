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
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.checkpoint_weight_patch import (
    CheckpointWeightPatch,
    load_checkpoint_weight_patches,
)

from actor.engine.loading import INDICES, VALUES
from actor.engine.model_files import LORA_ID, LORA_NAME, tensor_shapes
from actor.engine.workers.canary_worker import CanaryScoring


class WorkerExtension(CanaryScoring):
    """Methods that vLLM adds to its worker class."""

    reload_weights: Any
    add_lora: Any
    device: Any
    taken_changes: list[tuple[str, Tensor, Tensor]]

    def load_folder(self, folder: str) -> None:
        """Exchange the model's weights for those of a Hugging Face folder, in place."""
        # Taken for an exchange that did not come about: they would keep their memory.
        self.taken_changes = []
        model = self.model_runner.get_model()
        forget_packed_experts(model)
        self.reload_weights(weights_iterator=mapped_tensors(Path(folder)))
        pack_tied_heads(model)

    def load_adapter(self, folder: str) -> None:
        """Exchange the adapter for that of a folder, or bring in the first one; it is whole in the engine, or not.

        Responses in flight go on under the new one: for vLLM it is the adapter that they began with.
        """
        self.add_lora(LoRARequest(LORA_NAME, LORA_ID, folder, load_inplace=True))

    def why_not_in_place(self) -> str:
        """Why changed elements cannot be written over those in the engine; empty where they can."""
        return why_not_in_place(self.model_runner.get_model())

    def take_changes(self, path: str) -> None:
        """Bring changed elements (see `loading`) to this worker's device, for `apply_changes`."""
        with safe_open(path, framework="pt") as file:
            names = [key.removeprefix(VALUES) for key in file.keys() if key.startswith(VALUES)]  # noqa: SIM118
            self.taken_changes = [
                (name, file.get_tensor(VALUES + name).to(self.device), file.get_tensor(INDICES + name).to(self.device))
                for name in names
            ]

    def apply_changes(self, folder: str) -> None:
        """Write the changed elements over those in the model, through the model's own loaders.

        Raises:
            RuntimeError: a loader wrote something else than they are; the whole folder has to be loaded then.
        """
        model, changes, self.taken_changes = self.model_runner.get_model(), self.taken_changes, []
        shapes, before = tensor_shapes(Path(folder)), dict(model.named_parameters())
        # Indices are unique by the way patches are coded; a sort would cost more than all else.
        load_checkpoint_weight_patches(
            model,
            [CheckpointWeightPatch(name, shapes[name], new.dtype, new, places) for name, new, places in changes],
            validate_unique_indices=False,
        )
        named: Iterator[tuple[str, Tensor]] = model.named_parameters()
        for name, weight in named:
            # As of a head's bias that vLLM's loader for models of transformers makes anew: what did not change is lost.
            if weight is not before.get(name):
                raise RuntimeError(f"{name} is another tensor than before: its loader does not write to what is there")
            # vLLM marks what does not change with NaN, which a loader that computes would leave behind.
            if weight.is_floating_point() and bool(weight.isnan().any()):
                raise RuntimeError(f"{name} has NaN in it: its loader does not copy weights as they are")

    def exit_with(self, process_id: int) -> int:
        """End this process when the given one ends: vLLM's own would live on after a SIGKILL of its parent.

        Returns this process's id.
        """
        threading.Thread(target=_exit_with, args=(process_id,), daemon=True).start()
        return os.getpid()


def why_not_in_place(model: nn.Module) -> str:
    """Why elements of a model's weights cannot be exchanged while it stands; empty where they can.

    What vLLM makes of weights once they are loaded would stay as it was: packed copies for a CPU's kernels, experts in
    the order of theirs, matrices that latent attention absorbs. So only layers are allowed that use weights as they are
    in the checkpoint.
    """
    modules: Iterator[Any] = model.modules()
    for module in modules:
        kind, method = type(module).__name__, getattr(module, "quant_method", None)
        if method is not None and type(method) not in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod):
            return f"{kind} has weights of a form of its own ({type(method).__name__})"
        if method is not None and getattr(module, "weight", None) is not None and not module.weight.numel():
            return f"{kind} multiplies with a packed copy of its weight"
        is_derived = hasattr(module, "process_weights_after_loading") and type(module) is not Attention
        if is_derived or getattr(getattr(module, "impl", None), "sinks", None) is not None:
            return f"{kind} derives something from its weights"
    return ""


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
