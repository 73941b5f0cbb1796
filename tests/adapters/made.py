"""A store with the versions of a run that trains an adapter: frozen weights, then adapters to them."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcpo_async.adapters import merged
from dcpo_async.config import AdapterSettings
from dcpo_async.weights.canary import Canary
from dcpo_async.weights.manifest import Manifest
from dcpo_async.weights.store import write_snapshot
from dcpo_async.weights.tensor_file import WEIGHTS_NAME, map_tensors
from learner.trainer.canary import canary_tokens
from learner.weights.adapter import add_adapter, write_adapter_skeleton
from learner.weights.adapter_folders import write_base
from learner.weights.loading import loaded_model
from tests.tiny_model import make_tiny_model

SETTINGS = AdapterSettings(rank=3, alpha=6)
SCALE = 2.0


class AdapterRun:
    """What a learner would have published.

    Args:
        folder: made; the model lies in `model`, the store in `weights`.
        vocab_size: more of it makes the model larger, and leaves the adapter as it is.
    """

    def __init__(self, folder: Path, seed: int = 0, vocab_size: int = 64, run_id: str = "run") -> None:
        self.folder, self.store, self.run_id = folder, folder / "weights", run_id
        make_tiny_model(folder / "model", seed, vocab_size=vocab_size)
        model = loaded_model(folder / "model", torch.float32)
        write_base(folder / "base", model, AutoTokenizer.from_pretrained(folder / "model"), folder / "model")
        self.base = map_tensors(folder / "base" / WEIGHTS_NAME)
        views = add_adapter(model, SETTINGS, seed=0)
        write_adapter_skeleton(folder / "adapter", SETTINGS, "the model")
        self._shapes = {name: view.shape for name, view in views.items()}

    def publish_base(self, version: int) -> Manifest:
        return self._publish(version, self.base, self.folder / "base", is_base=True)

    def publish_adapter(self, version: int, base_version: int, canary: Canary | None = None) -> Manifest:
        """An adapter that follows from its version."""
        adapter = self.adapter(version)
        return self._publish(version, adapter, self.folder / "adapter", base_version=base_version, canary=canary)

    def adapter(self, version: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(version)
        return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in self._shapes.items()}

    def model(self, version: int) -> torch.nn.Module:
        """By transformers, of the merged weights, float32."""
        model = AutoModelForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32)
        model.load_state_dict(dict(merged(self.base, self.adapter(version), SCALE)))
        return model.eval()

    def logprobs(self, version: int, token_ids: list[int]) -> Tensor:
        """Of each token given all before it, from the second on, [tokens - 1]."""
        tokens = torch.tensor(token_ids)
        with torch.no_grad():
            logits = self.model(version)(tokens[None]).logits[0, :-1]
        return logits.log_softmax(-1).gather(-1, tokens[1:, None])[:, 0]

    def canary(self, version: int) -> Canary:
        token_ids = canary_tokens(64, 64, seed=3)
        logprobs = tuple(self.logprobs(version, list(token_ids)).clamp(max=0).tolist())
        return Canary(token_ids=token_ids, logprobs=logprobs, bound=1e-3)

    def _publish(self, version: int, tensors: dict[str, Tensor], skeleton: Path, **fields: object) -> Manifest:
        return write_snapshot(
            self.store,
            weights_version=version,
            run_id=self.run_id,
            incarnation=1,
            step=version,
            tensors=tensors,
            skeleton_folder=skeleton,
            **fields,  # type: ignore[arg-type]
        )
