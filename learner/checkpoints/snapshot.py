"""A copy of a rank's state in memory of the host, from which a checkpoint is written while the training goes on."""

import contextlib
import copy
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from learner.weights.host_memory import pin, populate, require, unpin

_ALIGNMENT = 64


class Snapshot:
    """The files of one rank's part of a checkpoint, as they are to be written.

    Attributes:
        files: their contents by path; tensors in them lie in memory of the snapshot's own, which the next one uses
            again: there is one snapshot, whatever its age.
    """

    def __init__(self) -> None:
        self.files: dict[Path, Any] = {}
        self._regions: dict[str, _Region] = {}

    def clear(self) -> None:
        """Forget the files; their memory stays for the next ones."""
        self.files.clear()

    def add(self, path: Path, state: Any) -> None:
        """Copy what is to be a file's content; copies from a GPU may still be on their way when this returns.

        Tensors that share memory share it in the copy. Of larger storages only what a tensor shows is copied.

        Args:
            path: of the file; what had the same name in the snapshot before is overwritten.
            state: tensors in dictionaries, lists and tuples, and whatever pickles.

        Raises:
            MemoryError: there is no room for it on the host.
        """
        alike: dict[Any, list[Tensor]] = {}
        for tensor in _tensors(state):
            alike.setdefault(_identity(tensor), []).append(tensor)
        region = self._region(path.name, sum(_room(tensors[0]) for tensors in alike.values()))
        copies: dict[int, Any] = {}
        start = 0
        for tensors in alike.values():
            host = region.tensor(start, tensors[0])
            start += _room(tensors[0])
            copies.update((id(tensor), host) for tensor in tensors)
        self.files[path] = copy.deepcopy(state, copies)

    def _region(self, name: str, num_bytes: int) -> "_Region":
        region = self._regions.get(name)
        if region is None or region.num_bytes < num_bytes:
            if region is not None:
                # First, so that there are never two.
                self._regions.pop(name).close()
            region = self._regions[name] = _Region(num_bytes)
        return region


class _Region:
    """A stretch of memory that holds the tensors of one file."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        require(num_bytes)
        self._mapping = mmap.mmap(-1, max(1, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A kernel built without huge pages does not know the advice.
        with contextlib.suppress(OSError):
            self._mapping.madvise(mmap.MADV_HUGEPAGE)
        populate(self._mapping)
        self._bytes = torch.frombuffer(self._mapping, dtype=torch.uint8)
        pin(self._bytes)

    def tensor(self, start: int, source: Tensor) -> Tensor:
        """A copy of a tensor, as a storage of its own: torch writes storages whole."""
        if source.numel() == 0:
            return torch.empty(source.shape, dtype=source.dtype)
        flat = torch.frombuffer(self._mapping, dtype=source.dtype, count=source.numel(), offset=start)
        return flat.view(source.shape).copy_(source.detach(), non_blocking=True)

    def close(self) -> None:
        """Give the memory back once nothing points into it."""
        unpin(self._bytes)


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)


def _identity(tensor: Tensor) -> Any:
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _room(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT


def without_restored(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A state of DeepSpeed's without the weights that ranks restore from the optimizer's float32 ones.

    Those are rounded to the type of the forward pass after each update, so that no bit is lost. Without ZeRO in
    bfloat16 DeepSpeed does not restore them, and they stay.
    """
    restored = {name for group in state.get("param_shapes") or () for name in group}
    restored |= {alias for alias, name in (state.get("shared_params") or {}).items() if name in restored}
    if not restored:
        return state
    return {**state, "module": {name: value for name, value in state["module"].items() if name not in restored}}
