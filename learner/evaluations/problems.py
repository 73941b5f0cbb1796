"""The problems by which a run measures itself: read, encoded as its own prompts are, and kept out of its training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcpo_async.config import DataSettings, RunConfig
from dcpo_async.errors import ConfigError
from dcpo_async.evaluation.results import of_grading
from dcpo_async.prompts import LoadedProblems, encode_prompts, load, problem_source
from dcpo_async.records import Prompt
from learner.evaluations.schedule import MAX_PROBLEMS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What an evaluation asks.

    Attributes:
        sets: prompts by the name of their set; empty where nothing is measured.
        vocab_size: tokens of a response are below it.
        settings: what shapes every result, by the names that `dcpo eval` has for it.
    """

    sets: Mapping[str, tuple[Prompt, ...]] = field(default_factory=dict)
    vocab_size: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)


def apart_from(config: RunConfig) -> DataSettings:
    """The data settings; among the sets that no training prompt may stand in are those of the evaluation."""
    tested = dict.fromkeys((*config.data.evaluation, *config.evaluation.data))
    return config.data.model_copy(update={"evaluation": tuple(tested)})


def held_out_problems(config: RunConfig) -> dict[str, LoadedProblems]:
    """The sets of `evaluation.data` by their names.

    Raises ConfigError where two have one name, DatasetError where one cannot be read.
    """
    # An own reward may ask for what a row brings; the built-in grader does not.
    fields = asked_fields(config) if config.grading.reward is not None else ()
    sets: dict[str, LoadedProblems] = {}
    for word in config.evaluation.data:
        source = problem_source(word, metadata_fields=fields)
        name = Path(source.name).name
        if name in sets:
            raise ConfigError(f"evaluation.data: two problem sets are called {name}; rename a file")
        sets[name] = load(source)
    return sets


def asked_fields(config: RunConfig) -> tuple[str, ...]:
    """Columns that the run's own reward may ask for: those of all sources that it grades."""
    graded = [source for source in config.data.sources if config.grading_of(source.name or "") == config.grading]
    found = dict.fromkeys(field for source in graded or (config.data,) for field in source.metadata_fields)
    return tuple(found)


def held_out(
    config: RunConfig,
    problems: Mapping[str, LoadedProblems],
    tokenizer: "PreTrainedTokenizerBase",
    vocab_size: int,
    now: datetime,
) -> HeldOut:
    """Encode the sets as the training's prompts are; raises ConfigError and DatasetError as `encode_prompts` does."""
    data, sampling, evaluation = config.data, config.sampling, config.evaluation
    sets = {
        name: encode_prompts(
            loaded.problems[: evaluation.limit],
            tokenizer,
            system_prompt=data.system_prompt,
            template=data.prompt_template,
            max_prompt_tokens=data.max_prompt_tokens,
            arguments=data.template_arguments,
            now=now,
        ).prompts
        for name, loaded in problems.items()
    }
    number = sum(map(len, sets.values()))
    if number > MAX_PROBLEMS:
        raise ConfigError(f"evaluation.data: {number} problems, at most {MAX_PROBLEMS} can be measured; set a limit")
    settings = {
        "greedy": evaluation.temperature == 0,
        "samples": evaluation.samples,
        "temperature": evaluation.temperature,
        "max_prompt_tokens": data.max_prompt_tokens,
        "max_response_tokens": sampling.max_response_tokens,
        "seed": config.seed,
        "system_prompt": data.system_prompt,
        "prompt_template": data.prompt_template,
        "top_p": 1.0,
        "dtype": config.model.dtype,
        **of_grading(config.grading),
    }
    rare = {
        "template_arguments": data.template_arguments,
        "stop": list(sampling.stop),
        "stop_token_id": list(sampling.stop_token_ids),
    }
    settings |= {name: value for name, value in rare.items() if value}
    settings |= {f"set {name}": loaded.digest for name, loaded in problems.items()}
    return HeldOut(sets, vocab_size, settings)
