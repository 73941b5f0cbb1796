"""LoRA adapters: their files, as peft and vLLM read them, and the weights with what they add to them."""

from dcpo_async.adapters.merging import PREFIX, merged, rank_of, scale_of
from dcpo_async.adapters.version import write_merged

__all__ = ["PREFIX", "merged", "rank_of", "scale_of", "write_merged"]
