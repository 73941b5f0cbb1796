"""What `dcpo-learner --check` prints: all that is known of a run before it is started."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from dcpo_async.config import RunConfig
from dcpo_async.prompts import EncodedPrompts
from dcpo_async.records import Prompt
from learner.sizing.fit import Needs, gb
from learner.sizing.machine import Machine
from learner.sizing.memory import ModelSize, Plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_PROMPTS, SHOWN_CHARACTERS, SHOWN_END_CHARACTERS, SHOWN_TOKENS = 3, 400, 100, 24


def data_lines(
    left_out: Mapping[str, Mapping[str, int]], encoded: EncodedPrompts, tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[str]:
    """Lines about prompts: how many, what was left out by source and reason, the first of them as text and as tokens.

    Args:
        left_out: by the names of the sources.
    """
    prompts = encoded.prompts
    longest = max(len(prompt.token_ids) for prompt in prompts)
    yield (
        f"data: {len(prompts)} prompts of {', '.join(left_out)}, the longest has {longest} tokens; "
        f"left out: {in_words(left_out)}"
    )
    starts = [place for place, prompt in enumerate(prompts) if not place or prompt.source != prompts[place - 1].source]
    places = range(min(SHOWN_PROMPTS, len(prompts))) if len(starts) == 1 else starts
    for prompt in (prompts[place] for place in places):
        tokens = list(prompt.token_ids)
        yield f"prompt {prompt.id[:8]}, answer {prompt.answer!r}: {shown(prompt, tokenizer)}"
        more = f" … {len(tokens)} in all" if len(tokens) > SHOWN_TOKENS else ""
        yield f"  tokens: {' '.join(map(str, tokens[:SHOWN_TOKENS]))}{more}"


def evaluation_lines(config: RunConfig, sets: Mapping[str, Sequence[Prompt]]) -> Iterator[str]:
    """A line about what the run measures itself by, where it does."""
    if sets:
        sizes = ", ".join(f"{len(prompts)} problems of {name}" for name, prompts in sets.items())
        evaluation = config.evaluation
        yield (
            f"evaluation every {evaluation.every_steps} steps: {sizes}, {evaluation.samples} responses to each at "
            f"temperature {evaluation.temperature:g}"
        )


def shown(prompt: Prompt, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A prompt as its tokens read, special ones among them: control characters escaped, the middle of a long one cut.

    Its end stays in sight, which says whether the answer is opened, and a thought.
    """
    text = tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False)
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[: SHOWN_CHARACTERS - SHOWN_END_CHARACTERS]} … {text[-SHOWN_END_CHARACTERS:]}"
    return repr(text)


def in_words(left_out: Mapping[str, Mapping[str, int]]) -> str:
    """Counts by reason, those that are not 0: `no answer 3, too long 2`; of several sources `gsm8k: none; math: …`."""
    words = {
        source: ", ".join(f"{reason} {count}" for reason, count in reasons.items() if count) or "none"
        for source, reasons in left_out.items()
    }
    if len(words) == 1:
        return next(iter(words.values()))
    return "; ".join(f"{source}: {reasons}" for source, reasons in words.items())


def grading_line(config: RunConfig) -> str:
    """What grades the responses, source by source where they differ: `graded by: sums my:reward; own boxed`."""
    words = {name: own.reward or own.extraction for name, own in config.grading_by_source.items()}
    each = "; ".join(f"{name} {word}" for name, word in words.items())
    return f"graded by: {each or config.grading.reward or config.grading.extraction}"


def size_lines(
    config: RunConfig, size: ModelSize, plan: Plan, need: Needs, machine: Machine, *, is_elsewhere: bool
) -> Iterator[str]:
    """Lines about memory, disk and the admission window; bytes in GB of 1e9."""
    rank, device = need.rank, "GPU" if plan.on_gpus else "process"
    dtype = "bfloat16" if plan.value_bytes == 2 else "float32"
    adapter = "" if size.adapter is None else f", {size.adapter / 1e6:.3g} M of them an adapter's"
    yield (
        f"model: {config.model.path}, {size.parameters / 1e9:.3g} B parameters{adapter}, {dtype}; "
        f"ZeRO {plan.zero_stage} over {plan.num_ranks}, micro-batches of {plan.tokens} tokens"
        f"{f' shared by {plan.sequence_parallel} ranks' if plan.sequence_parallel > 1 else ''}, "
        f"gradient checkpointing {'on' if plan.checkpointing else 'off'}"
    )
    yield f"each {device}: {gb(rank.total)} GB" + (f" of {gb(machine.gpu)} GB" if machine.gpu else "")
    yield from (f"  {name:<12}{gb(value):>8} GB" for name, value in rank.parts.items())
    if rank.offloaded:
        yield f"  offloaded   {gb(rank.offloaded):>8} GB of the host's memory"
    there = "" if is_elsewhere else f" of {gb(machine.host)} GB available"
    yield f"host memory: {gb(need.host)} GB{there}, two versions in shared buffers among them"
    there = "" if is_elsewhere else f" of {gb(machine.disk)} GB"
    below = f", twice the {gb(need.frozen)} GB below the adapter" if need.frozen else ""
    yield (
        f"disk: {gb(need.disk)} GB{there}: {config.checkpoint.keep_last} + 1 checkpoints of {gb(need.checkpoint)} GB, "
        f"{config.lag.keep_versions} + 1 versions of {gb(need.version)} GB, the export{below}; beside them "
        f"the ledger, at most {gb(need.ledger)} GB"
    )
    yield (
        f"/dev/shm: nothing here{'' if is_elsewhere else f' ({gb(machine.shared)} GB free)'}; "
        f"{gb(2 * need.version + need.frozen)} GB on every other machine with actors"
    )
    window = config.admission_window
    yield (
        f"admission window: {window} prompts = {window // config.training.groups_per_step} steps of "
        f"{config.training.groups_per_step} groups of {config.sampling.group_size} responses"
    )
