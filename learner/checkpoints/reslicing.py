"""A checkpoint that other ranks wrote, cut up anew for those that load it, and a digest that no cutting changes.

Each rank maps the files and copies what it is to hold, so that nothing is written and nothing is merged as a whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from dcpo_async.errors import CheckpointError
from learner.checkpoints.folder import CheckpointLayout
from learner.checkpoints.slicing import Slicing, Stretch, copies

WEIGHTS = "weights"
_BLOCK = 1 << 20
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# Of splitmix64, as signed integers.
_FACTORS = tuple(f - (1 << 64) for f in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True, slots=True)
class OptimizerPart:
    """What one rank holds of the optimizer.

    Attributes:
        groups: for each flat tensor its values by kind, [elements]: float32 weights, and the moments that AdamW names.
        num_updates: that the moments have seen; None before the first.
    """

    groups: list[dict[str, Tensor]]
    num_updates: float | None

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "OptimizerPart":
        """From `state_dict()` of DeepSpeed's optimizer under ZeRO, whether of a file or alive; shares its memory.

        Raises:
            KeyError, IndexError: it has another form.
            ValueError: its flat tensors have seen different numbers of updates.
        """
        by_parameter = "fp32_flat_groups" in state
        weights = state["fp32_flat_groups" if by_parameter else "single_partition_of_fp32_groups"]
        moments = state["optimizer_state_dict" if by_parameter else "base_optimizer_state"]["state"]
        groups: list[dict[str, Tensor]] = [{WEIGHTS: flat.detach().reshape(-1)} for flat in weights]
        counts = set()
        for number, group in enumerate(groups):
            for kind, value in moments.get(number, {}).items():
                if kind == "step":
                    counts.add(float(value))
                else:
                    group[kind] = value.detach().reshape(-1)
        if len(counts) > 1:
            raise ValueError(f"numbers of updates differ: {sorted(counts)}")
        return cls(groups, counts.pop() if counts else None)

    def into(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A `state_dict()` of the same form as `state` with these values, for `load_state_dict`."""
        by_parameter = "fp32_flat_groups" in state
        inner = "optimizer_state_dict" if by_parameter else "base_optimizer_state"
        moments: dict[int, dict[str, Tensor]] = {}
        if self.num_updates is not None:
            for number, group in enumerate(self.groups):
                moments[number] = {kind: values for kind, values in group.items() if kind != WEIGHTS}
                moments[number]["step"] = torch.tensor(self.num_updates)
        weights = [group[WEIGHTS] for group in self.groups]
        return {
            **state,
            inner: {**state[inner], "state": moments},
            "fp32_flat_groups" if by_parameter else "single_partition_of_fp32_groups": weights,
        }

    def digest(self, stretches: Iterable[Stretch]) -> int:
        """A number of 64 bits; modulo 2^64 those of all ranks add up to the same, however parameters are cut.

        It changes with every bit of every element, and with parameter, kind and place that it stands at.
        """
        total = 0
        for stretch in stretches:
            for kind, values in self.groups[stretch.group].items():
                seed = xxhash.xxh3_64_intdigest(f"{kind} of {stretch.name} after {self.num_updates}".encode())
                total += _digest(values[stretch.start : stretch.start + stretch.length], stretch.first, seed)
        return total % (1 << 64)


class SlicedCheckpoint:
    """The files that ranks of another layout wrote; tensors stay on disk until they are copied.

    Attributes:
        path: their folder.
        layout: of the ranks that wrote them.
        model: what DeepSpeed keeps beside the optimizer: buffers, counts of steps.
        slicing: how the optimizer's part is cut.
    """

    def __init__(self, path: Path, layout: CheckpointLayout) -> None:
        """Open the files; raises CheckpointError where they do not hold what the layout promises."""
        self.path, self.layout = path, layout
        by_parameter = layout.zero_stage == 3
        name = "zero_pp_rank_0_mp_rank_00" if by_parameter else "mp_rank_00"
        self.model: Mapping[str, Any] = _read(path / f"{name}_model_states.pt")
        self.slicing = Slicing.of(self.model["param_shapes"], layout.num_ranks, by_parameter=by_parameter)
        self._parts = [self._part(rank) for rank in range(layout.num_ranks)]
        if len({(part.num_updates, *part.groups[0]) for part in self._parts}) > 1:
            raise CheckpointError(f"{path}: its ranks do not agree about the number of updates")

    def part(self, slicing: Slicing, rank: int) -> OptimizerPart:
        """What a rank of another slicing is to hold; filling is zero.

        Raises:
            CheckpointError: the parameters are not those of the slicing.
        """
        kinds = self._parts[0].groups[0]
        groups = [
            {kind: torch.zeros(slicing.size(group), dtype=like.dtype) for kind, like in kinds.items()}
            for group in range(len(slicing.groups))
        ]
        if self.slicing.lengths() != slicing.lengths():
            raise CheckpointError(f"{self.path} is of a model with other parameters")
        for rank_before, source, target in copies(slicing.stretches(rank), self.slicing):
            for kind, values in self._parts[rank_before].groups[source.group].items():
                taken = values[source.start : source.start + source.length]
                groups[target.group][kind][target.start : target.start + target.length] = taken
        return OptimizerPart(groups, self._parts[0].num_updates)

    def digest(self, ranks: Iterable[int]) -> int:
        """The sum of the digests of what these ranks wrote."""
        return sum(self._parts[rank].digest(self.slicing.stretches(rank)) for rank in ranks) % (1 << 64)

    def _part(self, rank: int) -> OptimizerPart:
        files = list(self.path.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"))
        if len(files) != 1:
            raise CheckpointError(f"{self.path} holds {len(files)} files of the optimizer of rank {rank}, not one")
        state = _read(files[0])["optimizer_state_dict"]
        try:
            part = OptimizerPart.of(state)
            self._require_sizes(part, rank)
            self._require_places(state.get("param_slice_mappings"), rank)
        except (LookupError, ValueError) as error:
            raise CheckpointError(
                f"{files[0]} cannot be cut up for another number of ranks ({error}); start the learner with "
                f"{self.layout.num_ranks} ranks, as before"
            ) from None
        return part

    def _require_sizes(self, part: OptimizerPart, rank: int) -> None:
        """DeepSpeed fills up moments, and weights only under ZeRO 3."""
        needed = [0] * len(self.slicing.groups)
        for stretch in self.slicing.stretches(rank):
            needed[stretch.group] = stretch.start + stretch.length
        if len(part.groups) != len(needed):
            raise ValueError(f"{len(part.groups)} flat tensors in place of {len(needed)}")
        for number, group in enumerate(part.groups):
            found = {len(values) for values in group.values()}
            if not found <= {needed[number], self.slicing.size(number)}:
                raise ValueError(f"flat tensors of {sorted(found)} elements in place of {self.slicing.size(number)}")

    def _require_places(self, mappings: Sequence[Mapping[str, Any]] | None, rank: int) -> None:
        """Where ZeRO 1 and 2 say themselves what lies where, it must be what the slicing says."""
        if mappings is None:
            return
        expected: list[dict[str, tuple[int, int]]] = [{} for _ in self.slicing.groups]
        for stretch in self.slicing.stretches(rank):
            expected[stretch.group][stretch.name] = (stretch.start, stretch.length)
        found = [{name: (place.start, place.numel) for name, place in mapping.items()} for mapping in mappings]
        if found != expected:
            raise ValueError("its parameters lie in other places")


def _read(path: Path) -> Mapping[str, Any]:
    # The learner's own file, every byte of which was verified.
    state: Mapping[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    return state


def _digest(values: Tensor, first: int, seed: int) -> int:
    total = 0
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        bits = block.view(_INTEGERS[block.element_size()]).to(torch.int64)
        place = torch.arange(first + start, first + start + len(block), device=block.device)
        key = place.mul_(_FACTORS[0]).add_(seed - (1 << 64) if seed >> 63 else seed)
        total += int(_mixed(key.add_(bits.mul_(_FACTORS[1]))).sum())
    return total


def _mixed(values: Tensor) -> Tensor:
    """Spread each bit over all others, in place, as the last steps of splitmix64 do (Steele et al., 2014)."""
    for factor in _FACTORS[1:]:
        values.bitwise_xor_(values >> 32).mul_(factor)
    return values.bitwise_xor_(values >> 32)
