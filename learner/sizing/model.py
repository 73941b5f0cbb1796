"""The model of a run, by its config.json alone: its size, and whether prompts, responses and tokenizer fit it."""

from functools import cache
from pathlib import Path

import torch
from transformers import AutoConfig

from dcpo_async.config import AdapterSettings, RunConfig
from dcpo_async.errors import ConfigError
from dcpo_async.model_folder import context_tokens
from learner.ranks import require_sequence_parallel
from learner.sizing.memory import ModelSize, Plan, RankMemory, rank_memory
from learner.sizing.rehearsal import Rehearsal, policy_without_data, rehearse
from learner.weights.loading import require_checkpoint

_DTYPES = {2: torch.bfloat16, 4: torch.float32}


class SizedModel:
    """A model without data, which can be asked what training it would take.

    Attributes:
        size: its elements.
        num_embeddings: token ids that it knows.
    """

    def __init__(self, folder: Path, value_bytes: int, adapter: AdapterSettings | None = None) -> None:
        """Build the model on the meta device; raises ConfigError where that, or its adapter, cannot be built.

        Args:
            adapter: None for training without one.
        """
        self._folder = folder
        try:
            settings = AutoConfig.from_pretrained(folder)
            self._policy = policy_without_data(settings, _DTYPES[value_bytes], adapter)
            self._stored = self._policy if adapter is None else policy_without_data(settings, _DTYPES[value_bytes])
        except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
            raise ConfigError(f"model {folder} cannot be built from its config.json: {error}".splitlines()[0]) from None
        parameters = [parameter.numel() for parameter in self._policy.parameters()]
        trained = [parameter.numel() for parameter in self._policy.parameters() if parameter.requires_grad]
        buffer_bytes = sum(buffer.nbytes for buffer in self._policy.buffers())
        self.size = ModelSize(
            sum(parameters),
            max(parameters),
            buffer_bytes,
            sum(trained) if adapter else None,
            getattr(settings.get_text_config(), "num_attention_heads", 1),
        )
        self.num_embeddings: int = self._policy.model.get_input_embeddings().num_embeddings
        self._rehearsed = cache(self._rehearse)

    def require_weights(self) -> None:
        """Refuse a folder whose safetensors files lack what the model has, or have what it does not; by their headers.

        Raises ConfigError, also for a model that could not be published. A folder without such files is not judged.
        """
        require_checkpoint(self._folder, self._stored.model)

    def require_shared_by(self, num_ranks: int) -> None:
        """Raise ConfigError where so many ranks (`training.sequence_parallel`) cannot share a micro-batch's tokens."""
        require_sequence_parallel(num_ranks, self.size.heads, f"attention heads of {self._folder}")
        if num_ranks > 1 and not self._policy.is_packed:
            raise ConfigError(
                f"training.sequence_parallel = {num_ranks}: not all layers of {self._folder} are plain attention, "
                "which alone can be shared among ranks; leave it at 1"
            )

    def memory(self, plan: Plan, rows: int | None = None) -> RankMemory:
        """What a rank takes under a plan; rows are the response tokens of its micro-batch, all of it where unknown."""
        tokens = plan.own_tokens if self._policy.is_packed else plan.length
        device, rows = "cuda" if plan.on_gpus else "cpu", rows or tokens
        whole = self._rehearsed(device, tokens, rows, plan.checkpointing)
        body = self._rehearsed(device, tokens, 1, plan.checkpointing)
        heap = whole if plan.on_gpus else self._rehearsed(device, tokens, rows, True)
        return rank_memory(self.size, plan, whole, body, heap)

    def _rehearse(self, device: str, tokens: int, rows: int, checkpointing: bool) -> Rehearsal:
        return rehearse(self._policy, device=device, tokens=tokens, rows=rows, checkpointing=checkpointing)


def check_model(config: RunConfig, num_embeddings: int, last_token: int) -> None:
    """Refuse lengths beyond the model's context, and tokens beyond its embedding: the tokenizer's, or stop tokens.

    Args:
        num_embeddings: rows of the embedding.
        last_token: highest id of the tokenizer.

    Raises ConfigError.
    """
    folder, prompt, response = config.model.path, config.data.max_prompt_tokens, config.sampling.max_response_tokens
    context = context_tokens(Path(folder))
    if context is not None and prompt + response > context:
        raise ConfigError(
            f"model {folder} takes {context} tokens, data.max_prompt_tokens {prompt} and "
            f"sampling.max_response_tokens {response} are {prompt + response}; {_shorter(context, prompt, response)}"
        )
    if last_token >= num_embeddings:
        raise ConfigError(
            f"model {folder}: the tokenizer has ids up to {last_token}, the embedding {num_embeddings} rows; "
            "take the model's own tokenizer, or resize the embedding (resize_token_embeddings)"
        )
    unknown = [token for token in config.sampling.stop_token_ids if token >= num_embeddings]
    if unknown:
        raise ConfigError(
            f"sampling.stop_token_ids {unknown[0]}: model {folder} has no such token, its last is {num_embeddings - 1}"
        )


def _shorter(context: int, prompt: int, response: int) -> str:
    if context > prompt:
        return f"--sampling.max_response_tokens {context - prompt} would fit"
    half = context // 2
    return f"--data.max_prompt_tokens {half} --sampling.max_response_tokens {context - half} would fit"
