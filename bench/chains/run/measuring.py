"""What a model is worth: held-out responses in the form of `dcpo eval`, and the facts that it knows."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from bench.chains.plan import FACTS_NAME, SET
from bench.chains.run.rollout import is_right
from bench.chains.run.sampling import Sampled, reader_of, sampled_groups
from dcpo_async.config import RunConfig
from dcpo_async.demo.chain_reading import read_facts
from dcpo_async.demo.chains import ChainTask
from dcpo_async.durable import write_json
from dcpo_async.errors import ConfigError
from dcpo_async.evaluation.results import SETTINGS_NAME, SUMMARY_NAME, GradedResponse, ProblemResult
from dcpo_async.evaluation.summary import rows_of
from dcpo_async.prompts import Problem, encode_prompts
from dcpo_async.records import Prompt

AT_ONCE = 64
"""Problems whose responses are sampled side by side."""


def encoded(config: RunConfig, problems: Sequence[Any], tokenizer: Any) -> tuple[Prompt, ...]:
    """A task's problems as the run's prompts; raises ConfigError where one is too long to be one."""
    rows = [Problem(problem=problem.problem, answer=problem.answer) for problem in problems]
    data = config.data
    found = encode_prompts(rows, tokenizer, data.system_prompt, data.prompt_template, data.max_prompt_tokens)
    if found.num_too_long:
        raise ConfigError(f"{found.num_too_long} problems have more than {data.max_prompt_tokens} prompt tokens")
    return found.prompts


def responses_to(
    prompts: Sequence[Prompt], model: Any, samples: int, config: RunConfig, end_id: int, seed: int
) -> list[list[Sampled]]:
    """Sample so many responses to each prompt; the same seed gives the same."""
    generator, found = torch.Generator().manual_seed(seed), []
    for start in range(0, len(prompts), AT_ONCE):
        found += sampled_groups(
            model,
            [prompt.token_ids for prompt in prompts[start : start + AT_ONCE]],
            samples,
            max_tokens=config.sampling.max_response_tokens,
            end_id=end_id,
            generator=generator,
        )
    return found


class Measuring:
    """Measures a run's weights, and writes the figures into its folder as they come.

    Args:
        run_id: of the run.

    Attributes:
        facts: a line for each measurement: what is known, and the entropy of held-out responses.
    """

    def __init__(self, config: RunConfig, task: ChainTask, tokenizer: Any, run_id: str) -> None:
        self._config, self._table, self._tokenizer, self._run_id = config, task.table, tokenizer, run_id
        self._prompts = encoded(config, task.held_out, tokenizer)
        self._text = reader_of(tokenizer)
        self._entries: dict[str, Any] = {}
        self.facts: list[dict[str, float]] = []

    def measure(self, step: int, model: Any, samples: int) -> None:
        """Measure the weights behind an optimizer step.

        Args:
            model: has them.
            samples: responses to each held-out problem.
        """
        end_id = self._tokenizer.eos_token_id
        found = responses_to(self._prompts, model, samples, self._config, end_id, seed=step)
        results = [self._result(prompt, group, step) for prompt, group in zip(self._prompts, found, strict=True)]
        name = f"step{step:04d}"
        rows = {row.set: asdict(row) for row in rows_of(name, {SET: results})}
        self._entries[name] = {"run": self._run_id, "weights_version": step, "step": step, "sets": rows}
        reading = read_facts(model, self._tokenizer, self._table)
        entropy = fmean(response.entropy for group in found for response in group)
        self.facts.append({"step": step, "entropy": entropy, **asdict(reading)})

    def write(self, folder: Path) -> None:
        """Write all measurements into an evaluation's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SETTINGS_NAME, {"temperature": 1.0, "extraction": "boxed"})
        write_json(folder / SUMMARY_NAME, self._entries)
        write_json(folder / FACTS_NAME, self.facts)

    def _result(self, prompt: Prompt, group: Sequence[Sampled], step: int) -> ProblemResult:
        texts = [self._text(response.token_ids) for response in group]
        return ProblemResult(
            id=prompt.id,
            problem=prompt.problem,
            answer=prompt.answer,
            responses=tuple(
                GradedResponse(
                    mode="sampled",
                    index=index,
                    seed=None,
                    text=text,
                    extracted=text,
                    correct=is_right(text, prompt.answer),
                    reason="",
                    num_tokens=len(response.token_ids),
                    finish_reason="length" if response.is_cut else "stop",
                )
                for index, (text, response) in enumerate(zip(texts, group, strict=True))
            ),
            weights_version=step,
            step=step,
            elapsed_seconds=0.0,
        )
