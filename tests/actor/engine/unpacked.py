"""vLLM on a CPU as it is on GPUs: layers multiply with their weights as they stand, not with packed copies."""

import xxhash
from vllm import _custom_ops
from vllm.model_executor.layers import utils

from actor.engine.workers.vllm_worker import WorkerExtension
from dcpo_async.weights.raw import raw_bytes

# What vLLM itself asks before it packs, the second where a CPU has AMX; it takes torch's own product otherwise.
_custom_ops._supports_onednn = False
utils.check_cpu_sgl_kernel = lambda *shape_and_type: False


class UnpackedExtension(WorkerExtension):
    """The real extension, which can be looked into, and spoiled once."""

    fails = False

    def fail_once(self) -> None:
        """Have the next exchange of elements fail when some are written already."""
        self.fails = True

    def apply_changes(self, folder: str) -> None:
        """Write the changed elements, as the real one does."""
        if self.fails:
            self.fails, self.taken_changes = False, self.taken_changes[::2]
            super().apply_changes(folder)
            raise RuntimeError("half of it is written")
        super().apply_changes(folder)

    def weight_digests(self) -> dict[str, str]:
        """The xxh3_128 of each parameter and buffer as it stands in the model."""
        model = self.model_runner.get_model()
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
        return {name: xxhash.xxh3_128(raw_bytes(tensor).data).hexdigest() for name, tensor in named}
