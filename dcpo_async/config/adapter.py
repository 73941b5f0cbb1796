"""The table of a LoRA adapter: without a rank there is none, and all weights are trained."""

from typing import Annotated

from pydantic import Field

from dcpo_async.config.sections import Section

MAX_RANK = 512
"""Of vLLM's kernels."""
Module = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$", max_length=200)]


class AdapterSettings(Section):
    """A LoRA adapter (arXiv 2106.09685) that is trained while the model's own weights stay as they are (docs/lora.md).

    There is no dropout: old log-probs are those of the engine, which drops nothing, and the ratio to them has to be 1
    where the weights are the same.
    """

    rank: Annotated[int, Field(gt=0, le=MAX_RANK)] | None = None
    """Rank r of the adapter's matrices; none trains all weights. Its learning rate is some ten times that of all
    weights."""
    alpha: Annotated[int, Field(gt=0, le=1 << 20)] = 32
    """What the matrices add to a weight is multiplied by alpha / rank."""
    target_modules: Annotated[tuple[Module, ...], Field(min_length=1, max_length=64)] = (
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    )
    """Linear layers that get the matrices, by the ends of their names; each has to be in the model, but not its head.
    """
