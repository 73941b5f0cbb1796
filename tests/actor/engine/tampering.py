"""What goes wrong in a worker when a version says so: for tests of the canary."""

from pathlib import Path

import torch

from actor.engine.workers.vllm_worker import WorkerExtension, mapped_tensors

ORDER_NAME = "tamper.txt"


def order(folder: Path, kind: str, tensor: str = "") -> None:
    """Have workers spoil the next update from this folder; vLLM's own loader, at a start, reads it as it is."""
    (folder / ORDER_NAME).write_text(f"{kind} {tensor}")


class TamperingExtension(WorkerExtension):
    """The real extension, but for folders with an order in them."""

    def score_tokens(self, token_ids: list[int]) -> list[float]:
        """Score, and fail where a byte of the KV cache is another one then; block 0 is never read."""
        before = [cache[1:].clone() for cache in self.model_runner.kv_caches]
        found = super().score_tokens(token_ids)
        for cache, kept in zip(self.model_runner.kv_caches, before, strict=True):
            if not torch.equal(cache[1:], kept):
                raise AssertionError("scoring has left other keys and values than there were")
        return found

    def load_folder(self, folder: str) -> None:
        """Exchange the weights as the order says."""
        path = Path(folder) / ORDER_NAME
        kind, _, tensor = path.read_text().partition(" ") if path.exists() else ("none", "", "")
        if kind == "skip":
            left = ((name, value) for name, value in mapped_tensors(Path(folder)) if name != tensor)
            self.reload_weights(weights_iterator=left)
        elif kind == "unpacked":
            self.reload_weights(weights_iterator=mapped_tensors(Path(folder)))
        else:
            super().load_folder(folder)
        if kind == "change":
            dict(self.model_runner.get_model().named_parameters())[tensor].data.mul_(1.5)
