"""The prompts of a run: encoded source by source, each by its own system message and template."""

from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dcpo_async.config import DataSettings
from dcpo_async.errors import ConfigError
from dcpo_async.prompts import EncodedPrompts, encode_prompts, prompts_digest
from learner.problems import SourceProblems, TrainingProblems

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class RunPrompts:
    """The prompts of all sources.

    Attributes:
        encoded: one source after another.
        left_out: rows of each source that are no prompts, by the source's name and the reason.
    """

    encoded: EncodedPrompts
    left_out: dict[str, dict[str, int]]


def run_prompts(
    data: DataSettings, problems: TrainingProblems, tokenizer: "PreTrainedTokenizerBase", now: datetime
) -> RunPrompts:
    """Encode the problems of a run.

    Args:
        now: what a template that writes the date is told.

    Raises ConfigError and DatasetError as `encode_prompts` does.
    """
    sources = problems.sources
    each = []
    for source in sources:
        try:
            each.append(_encoded(data, source, tokenizer, now))
        except ConfigError as error:
            raise type(error)(f"{source.name}: {error}" if len(sources) > 1 else str(error)) from None
    left_out = {
        source.name: {**source.loaded.left_out, "too long": encoded.num_too_long}
        for source, encoded in zip(sources, each, strict=True)
    }
    if not data.sources:
        return RunPrompts(each[0], left_out)
    prompts = tuple(
        replace(prompt, source=source.name)
        for source, encoded in zip(sources, each, strict=True)
        for prompt in encoded.prompts
    )
    num_too_long, tells_time = sum(one.num_too_long for one in each), any(one.tells_time for one in each)
    return RunPrompts(EncodedPrompts(prompts, num_too_long, prompts_digest(prompts), tells_time), left_out)


def data_record(problems: TrainingProblems, prompts: RunPrompts) -> dict[str, Any]:
    """What `data.json` says: rows, prompts and what was left out, by reason; of several sources also each alone."""
    total = Counter[str]()
    for reasons in prompts.left_out.values():
        # Reasons without a row are told too.
        total.update(reasons)
    record = {"rows": problems.num_rows, "prompts": len(prompts.encoded.prompts), "left_out": dict(total)}
    if len(problems.sources) == 1:
        return record
    counts = Counter(prompt.source for prompt in prompts.encoded.prompts)
    return record | {
        "sources": {
            source.name: {
                "rows": source.loaded.num_rows,
                "prompts": counts[source.name],
                "left_out": prompts.left_out[source.name],
            }
            for source in problems.sources
        }
    }


def _encoded(
    data: DataSettings, source: SourceProblems, tokenizer: "PreTrainedTokenizerBase", now: datetime
) -> EncodedPrompts:
    own = source.settings
    return encode_prompts(
        source.loaded.problems,
        tokenizer,
        system_prompt=data.system_prompt if own.system_prompt is None else own.system_prompt,
        template=data.prompt_template if own.prompt_template is None else own.prompt_template,
        max_prompt_tokens=data.max_prompt_tokens,
        arguments=data.template_arguments,
        now=now,
    )
