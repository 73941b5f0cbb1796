"""What goes wrong in a worker when a version says so: for tests of the canary."""

from pathlib import Path

from actor.engine.vllm_worker import WorkerExtension, mapped_tensors

ORDER_NAME = "tamper.txt"


def order(folder: Path, kind: str, tensor: str = "") -> None:
    """Have workers spoil the next update from this folder; vLLM's own loader, at a start, reads it as it is."""
    (folder / ORDER_NAME).write_text(f"{kind} {tensor}")


class TamperingExtension(WorkerExtension):
    """The real extension, but for folders with an order in them."""

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
