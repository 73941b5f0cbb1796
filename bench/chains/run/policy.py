"""The policy in this process: what `Passes` asks of a rank's engine, without DeepSpeed and without other ranks."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcpo_async.config import RunConfig
from learner.policy.fitting import fit_to_model
from learner.policy.head import TokenLoss, TokenScores
from learner.policy.model import PolicyModel
from learner.policy.packing import MicroBatch
from learner.trainer.settings import learning_rate


class Policy:
    """A model that trains and samples, on the CPU, in float32.

    Attributes:
        sampler: the same parameters, in the form that generates.
        tokenizer: of the model.
        device, is_packed, micro_batch_tokens, reference: as those of `TrainEngine`.
    """

    def __init__(self, config: RunConfig) -> None:
        folder = Path(config.model.path)
        self.device = torch.device("cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.sampler: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        trained = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        trained.load_state_dict(self.sampler.state_dict(keep_vars=True), assign=True)
        trained.tie_weights()
        self._policy = PolicyModel(trained, config.sampling.temperature).train()
        fit_to_model(self._policy, self.device)
        self.is_packed, self.reference = self._policy.is_packed, None
        # The samples of a step in one pass.
        self.micro_batch_tokens = 1 << 20
        self._training = config.training
        self._optimizer = torch.optim.AdamW(
            self._policy.parameters(),
            lr=config.training.learning_rate,
            betas=config.training.betas,
            weight_decay=config.training.weight_decay,
            fused=True,
        )

    def policy(self, batch: MicroBatch, loss: TokenLoss | None, *, is_whole: bool = False) -> TokenScores:
        """As `TrainEngine.policy`."""
        scores: TokenScores = self._policy(batch, loss, is_whole=is_whole)
        return scores

    def largest_of_ranks(self, value: int) -> int:
        """As `TrainEngine.largest_of_ranks`, of a single rank."""
        return value

    def update(self, step: int) -> tuple[float, float]:
        """Take optimizer step number `step`, from 0, on the gradient that was added up; returns its norm and rate."""
        rate = learning_rate(step, self._training)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        for parameter in self._policy.parameters():
            if parameter.grad is None:
                # A rank's empty micro-batch has one of zeros, and AdamW takes its step by momentum alone.
                parameter.grad = torch.zeros_like(parameter)
        norm = torch.nn.utils.clip_grad_norm_(self._policy.parameters(), self._training.gradient_clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm), rate
