"""Scores a canary inside vLLM's worker processes, while the scheduler is paused and responses in flight wait.

A request of the scheduler's own could not run then: a pause holds them all. So the worker is handed a step that the
scheduler knows nothing of, through the same two calls that vLLM makes for each step, and as vLLM's warm-up does it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput

from actor.engine.model_files import LORA_ID, LORA_NAME

REQUEST_ID = "_canary_"


class CanaryScoring:
    """A part of the extension that vLLM adds to its worker class."""

    model_runner: Any
    vllm_config: Any
    execute_model: Any
    sample_tokens: Any

    @torch.inference_mode()
    def score_tokens(self, token_ids: list[int]) -> list[float]:
        """Log-probs at temperature 1 of each token given all before it, from the second on, by the weights as they are.

        All workers of an engine call it at once. Keys and values are written to blocks that responses in flight may
        own; their bytes are put back.

        Raises:
            ValueError: the sequence does not fit the model's length or the KV cache.
            RuntimeError: no slot is free, or this runner cannot take a step in between.
        """
        self._check_room(len(token_ids))
        runner, cache = self.model_runner, self.model_runner.kv_cache_config
        block_ids, first = [], 1  # block 0 is where vLLM sends what nobody reads
        for group in cache.kv_cache_groups:
            num_blocks = cdiv(len(token_ids) + 1, group.kv_cache_spec.block_size)
            block_ids.append(list(range(first, first + num_blocks)))
            first += num_blocks
        if first > cache.num_blocks:
            raise ValueError(f"a canary needs {first} blocks of KV cache, there are {cache.num_blocks}")
        with kept_blocks(runner.kv_caches, cache.num_blocks, range(1, first)):
            try:
                output = self.execute_model(_step(token_ids, tuple(block_ids), self._lora_request()))
                output = self.sample_tokens(None) if output is None else output
                output = output.get_output() if hasattr(output, "get_output") else output
            finally:
                self.execute_model(_farewell())
        return list(map(float, output.prompt_logprobs_dict[REQUEST_ID].logprobs[:, 0].tolist()))

    def _lora_request(self) -> LoRARequest | None:
        """The adapter that responses are sampled with, if the engine has one: it is loaded, and no path is read."""
        return LoRARequest(LORA_NAME, LORA_ID, LORA_NAME) if self.vllm_config.lora_config is not None else None

    def _check_room(self, num_tokens: int) -> None:
        runner = self.model_runner
        # vLLM writes the token that it samples behind the sequence.
        if num_tokens >= runner.max_model_len:
            raise ValueError(f"a canary of {num_tokens} tokens does not fit a model length of {runner.max_model_len}")
        states = getattr(runner, "req_states", None)
        if states is None and self.vllm_config.scheduler_config.async_scheduling:
            raise RuntimeError(
                "vLLM's first model runner keeps the last tokens of responses in its batch under asynchronous "
                "scheduling, where a canary's step would lose them: unset VLLM_USE_V2_MODEL_RUNNER"
            )
        if states is not None and not states.free_indices:
            raise RuntimeError(f"all {states.max_num_reqs} slots of the engine are taken: no room for a canary")


@contextmanager
def kept_blocks(caches: list[Tensor], num_blocks: int, blocks: range) -> Iterator[None]:
    """Put the contents of these blocks of the KV caches back at the end.

    Args:
        caches: a layer's each, blocks along the first dimension; layers may share their memory.
        num_blocks: blocks as the scheduler counts them; a cache may cut each into several.
    """
    kept = {}
    for cache in caches:
        cuts, rest = divmod(cache.shape[0], num_blocks)
        if rest:
            raise RuntimeError(f"a KV cache of {cache.shape[0]} blocks is not {num_blocks} blocks, each cut alike")
        part = cache[blocks.start * cuts : blocks.stop * cuts]
        kept[part.data_ptr(), part.shape, part.stride()] = part, part.clone()
    try:
        yield
    finally:
        for part, contents in kept.values():
            part.copy_(contents)


def _step(token_ids: list[int], block_ids: tuple[list[int], ...], lora_request: LoRARequest | None) -> SchedulerOutput:
    """One request for the log-probs of its prompt, alone; the likeliest next token needs no random number."""
    step = SchedulerOutput.make_empty()
    step.scheduled_new_reqs = [
        NewRequestData(
            req_id=REQUEST_ID,
            prompt_token_ids=token_ids,
            mm_features=[],
            sampling_params=SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0),
            pooling_params=None,
            block_ids=block_ids,
            num_computed_tokens=0,
            lora_request=lora_request,
            prefill_token_ids=token_ids,
        )
    ]
    step.num_scheduled_tokens = {REQUEST_ID: len(token_ids)}
    step.total_num_scheduled_tokens = len(token_ids)
    return step


def _farewell() -> SchedulerOutput:
    step = SchedulerOutput.make_empty()
    step.finished_req_ids = {REQUEST_ID}
    return step
