"""Where each tensor of a model lies in a shared buffer, and which stretches of it are a rank's own."""

from collections.abc import Iterator, Mapping
from typing import Annotated, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from dcpo_async.errors import ConfigError

ALIGNMENT = 64
"""Each tensor begins at a multiple, for whatever copies it."""
LORA = ".lora_"
"""In the names that peft gives to the parameters of an adapter, and in no others."""

Count = Annotated[int, Field(ge=0)]
_FROZEN = ConfigDict(extra="forbid", frozen=True, strict=True)


Shape = tuple[int, ...]


class TensorView(NamedTuple):
    """How a tensor of the checkpoint lies within one tensor of the model, as torch.as_strided has it.

    Attributes:
        source: name of the model's tensor in its state_dict; of a tied one the first.
        shape: of the checkpoint's tensor.
        stride, offset: in elements of the source, which is contiguous.
    """

    source: str
    shape: Shape
    stride: Shape
    offset: int


class Place(BaseModel):
    """One tensor: its type as torch spells it, its shape, and its first byte."""

    model_config = _FROZEN
    dtype: str
    shape: tuple[Count, ...]
    start: Count

    def of(self, whole: Tensor) -> Tensor:
        """The tensor within a buffer's bytes (uint8 [num_bytes]); it shares their memory."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        num_bytes = dtype.itemsize * torch.Size(self.shape).numel()
        return whole[self.start : self.start + num_bytes].view(dtype).reshape(self.shape)


def in_checkpoint_format(state: Mapping[str, Tensor], views: Mapping[str, TensorView]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, as views that share the memory of the model's own.

    Args:
        state: whole tensors by their names in the model's state_dict, contiguous; there may be more than views need.
        views: where they lie.
    """
    return {
        name: state[view.source].as_strided(view.shape, view.stride, state[view.source].storage_offset() + view.offset)
        for name, view in views.items()
    }


class Layout(BaseModel):
    """The places of a model's parameters and persistent buffers, by their names in the model, one after another."""

    model_config = _FROZEN
    places: dict[str, Place]
    num_bytes: Count

    @classmethod
    def of(cls, model: nn.Module, dtype: torch.dtype) -> Self:
        """The layout of a model, partitioned or not; a tensor with several names has its first.

        Args:
            dtype: type in which parameters are published; buffers keep their own.
        """
        places, start = {}, 0
        for name, tensor in published_tensors(model).items():
            shape = whole_shape(tensor)
            kind = dtype if isinstance(tensor, nn.Parameter) else tensor.dtype
            places[name] = Place(dtype=str(kind).removeprefix("torch."), shape=shape, start=start)
            end = start + kind.itemsize * torch.Size(shape).numel()
            start = -(-end // ALIGNMENT) * ALIGNMENT
        return cls(places=places, num_bytes=start)

    def tensors(self, state: Tensor) -> dict[str, Tensor]:
        """The tensors of a state (uint8 [num_bytes]) by their names in the model, sharing its memory."""
        return {name: place.of(state) for name, place in self.places.items()}


class Schema(BaseModel):
    """What all states of a model have in common.

    Attributes:
        layout: where the tensors of the model lie in a state.
        views: where those of its checkpoint lie in them, by the names that they have there.
        tied: further names in the checkpoint, each with the name that the tensor stands under.
    """

    model_config = _FROZEN
    layout: Layout
    views: dict[str, TensorView]
    tied: dict[str, str]

    def tensors(self, state: Tensor) -> dict[str, Tensor]:
        """What is published of a state (uint8 [layout.num_bytes]), sharing its memory."""
        return in_checkpoint_format(self.layout.tensors(state), self.views)


class Part(NamedTuple):
    """A stretch of a tensor, flattened.

    Attributes:
        name: of the tensor in the model.
        start: of the stretch, in elements.
        values: [n], wherever the model is; shares its memory.
    """

    name: str
    start: int
    values: Tensor


class SlicePlace(NamedTuple):
    """Where a rank's slice of a parameter lies in it, in elements, without padding."""

    name: str
    start: int
    length: int


def whole_shape(tensor: Tensor) -> Shape:
    """The shape of a tensor of a model, of which this rank may hold a slice."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def own_parts(model: nn.Module, rank: int, num_ranks: int) -> Iterator[Part]:
    """What a rank copies of the model, so that all ranks together copy all of it: nothing is gathered.

    Where ZeRO-3 has partitioned the parameters, each rank has its slice of each. Otherwise every rank holds the model
    whole, and takes the 1/num_ranks of it that begins at rank/num_ranks, tensors one after another. Buffers are whole
    on every rank in either case, and rank 0's.

    Raises ConfigError for slices that lie on a disk (offload to NVMe).
    """
    yield from own_slices(model)
    tensors = published_tensors(model)
    whole = {name: tensor for name, tensor in tensors.items() if not hasattr(tensor, "ds_tensor")}
    num_elements = sum(tensor.numel() for tensor in whole.values())
    first, last = num_elements * rank // num_ranks, num_elements * (rank + 1) // num_ranks
    position = 0
    for name, tensor in whole.items():
        start, end = max(first - position, 0), min(last - position, tensor.numel())
        if start < end:
            yield Part(name, start, tensor.detach().reshape(-1)[start:end])
        position += tensor.numel()


def published_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and persistent buffers by their first names; where it has a LoRA adapter, that alone."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    if adapter := {name: parameter for name, parameter in parameters.items() if LORA in name}:
        return adapter
    persistent = model.state_dict().keys()
    return parameters | {name: buffer for name, buffer in model.named_buffers() if name in persistent}


def own_slices(model: nn.Module) -> Iterator[Part]:
    """This rank's slices of parameters that ZeRO-3 has partitioned; raises ConfigError where they lie on a disk."""
    for name, parameter in published_tensors(model).items():
        if not hasattr(parameter, "ds_tensor"):
            continue
        partition: Tensor = parameter.ds_tensor
        if str(getattr(partition, "final_location", None)).endswith("nvme"):
            raise ConfigError(
                f"{name} is offloaded to NVMe, from where weights cannot be published; "
                "set zero_optimization.offload_param.device to cpu in training.deepspeed"
            )
        start, length = _place_of(parameter, parameter.ds_zero_partition_rank)  # type: ignore[attr-defined]
        if length > 0:
            yield Part(name, start, partition.detach().reshape(-1)[:length])


def slice_places(model: nn.Module, rank: int) -> list[SlicePlace]:
    """Where the slices of any rank lie, in the order in which it has them."""
    sliced = ((name, tensor) for name, tensor in published_tensors(model).items() if hasattr(tensor, "ds_tensor"))
    places = (SlicePlace(name, *_place_of(parameter, rank)) for name, parameter in sliced)
    return [place for place in places if place.length > 0]


def _place_of(parameter: Tensor, rank: int) -> tuple[int, int]:
    partition: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
    num_elements: int = parameter.ds_numel  # type: ignore[attr-defined]
    start = partition.numel() * rank
    return start, min(partition.numel(), num_elements - start)
