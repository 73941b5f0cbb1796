"""Where problems come from: the table `[data]`, and one for each of several sources."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from dcpo_async.config.sections import Extraction, FunctionName, Positive, Section, SourceDigest
from dcpo_async.limits import MAX_SOURCES

GYM = "reasoning-gym:"
"""How a source begins that is a task of Reasoning Gym."""
GYM_REWARD = "dcpo_async.gym.scoring:score"
"""What grades the problems of Reasoning Gym where the settings name no reward: each task's own scorer."""


class SourceSettings(Section):
    """One of several sources of problems, `[[data.sources]]`; what is not said here is read as in `[data]`."""

    source: str
    """A preset's name, NAME=FILE, a file, a folder or a Hugging Face dataset id, as `data.source`."""
    name: Annotated[str, Field(max_length=200, pattern=r"^[\w.-]+$")] | None = None
    """What metrics and messages call it; none is the preset's name, or that of the file or folder."""
    weight: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Its part of all visits is this over the sum of all weights. Every source has one, or none has: then all prompts
    are visited equally often."""
    split: str | None = None
    """As `data.split`."""
    subset: str | None = None
    """As `data.subset`."""
    problem_field: str | None = None
    """As `data.problem_field`."""
    answer_field: str | None = None
    """As `data.answer_field`."""
    answer_pattern: str | None = None
    """As `data.answer_pattern`."""
    metadata_fields: tuple[str, ...] = ()
    """As `data.metadata_fields`."""
    language: Literal["any", "en", "zh"] = "any"
    """As `data.language`."""
    levels: tuple[int, ...] = ()
    """As `data.levels`."""
    gym_size: Positive = 5000
    """As `data.gym_size`."""
    gym_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """As `data.gym_seed`."""
    gym_settings: dict[str, Any] = {}
    """As `data.gym_settings`."""
    system_prompt: str | None = None
    """System message of its prompts, empty for none; none is `data.system_prompt`."""
    prompt_template: str | None = None
    """User message of its prompts; none is `data.prompt_template`."""
    reward: FunctionName | None = None
    """Grades responses to its problems, as `grading.reward`; none is the scorer of reasoning-gym:TASK, or what
    `[grading]` says."""
    reward_repeats: bool = True
    """As `grading.reward_repeats`, of its own reward."""
    reward_digest: SourceDigest = ""
    """As `grading.reward_digest`, of its own reward."""
    extraction: Extraction | None = None
    """As `grading.extraction`, for its problems; none is that one."""


class DataSettings(Section):
    """Where problems come from and how they become prompts."""

    sources: Annotated[tuple[SourceSettings, ...], Field(max_length=MAX_SOURCES)] = ()
    """Several sources in one run, each a table `[[data.sources]]`; then `source` and what describes it stay unset."""
    source: str = "dapo-math-17k"
    """A preset's name, NAME=FILE for a local copy of one, a .jsonl or .parquet file, a Hugging Face dataset id, or
    reasoning-gym:TASK."""
    split: str | None = None
    """Split of a Hugging Face dataset; none is the preset's, or train."""
    subset: str | None = None
    """Configuration of a Hugging Face dataset, such as 'main' of openai/gsm8k; none is the preset's."""
    problem_field: str | None = None
    """Field that holds the problem, dots reach into nested fields; none is the preset's, or problem."""
    answer_field: str | None = None
    """Field that holds the reference answer, dots reach into nested fields; none is the preset's, or answer."""
    answer_pattern: str | None = None
    """Regular expression with one group that takes the answer out of a longer solution, such as '#### (.+)', or boxed
    for what the last \\boxed{} holds; none is the preset's."""
    metadata_fields: tuple[str, ...] = ()
    """Fields that travel with a problem, dots and all, for an own reward that asks for metadata."""
    gym_size: Positive = 5000
    """Problems that reasoning-gym:TASK generates; those that repeat one are left out."""
    gym_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of these problems."""
    gym_settings: dict[str, Any] = {}
    """The task's own settings, such as {min_terms = 2, max_terms = 3} of chain_sum."""
    language: Literal["any", "en", "zh"] = "any"
    """zh keeps the problems with a Chinese character, en those without one."""
    levels: tuple[int, ...] = ()
    """Keeps the problems of these levels, in sources that have levels (math); empty keeps all."""
    evaluation: tuple[str, ...] = ()
    """Sets that will measure the model, named as source is: no training prompt should stand in one of them."""
    contamination: Literal["refuse", "drop", "allow"] = "refuse"
    """What becomes of prompts that stand in an evaluation set, word for word or nearly; refuse does not start."""
    system_prompt: str = "Please reason step by step, and put your final answer within \\boxed{}."
    """System message of the chat template; empty for none."""
    prompt_template: str = "{problem}"
    """User message; {problem} stands for the problem."""
    template_arguments: dict[str, JsonValue] = {}
    """More variables of the chat template, such as {enable_thinking = false}; one that it never reads is refused."""
    max_prompt_tokens: Positive = 1024
    """Longer prompts are left out at load, with a count."""
    selection: Literal["none", "solved", "pass_rate"] = "none"
    """solved lets prompts rest whose pass rate, by the counts of the ledger, is near 1; pass_rate also those near 0,
    which may keep what is improbable at first from ever being found (docs/data.md)."""
    selection_bound: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """A prompt rests where the lower 95 % bound of its pass rate is at least 1 less this, or, with pass_rate, the
    upper one at most this."""
    selection_half_life_visits: Annotated[float, Field(gt=0)] = 4.0
    """In that pass rate an earlier visit weighs 2^(-1/this) for each visit since."""
    selection_look_again_epochs: Annotated[int, Field(ge=2)] = 4
    """A prompt that rests is visited again so many epochs after its last counted visit."""

    @property
    def each_source(self) -> tuple[SourceSettings, ...]:
        """The sources of the run, one or several."""
        alone = {name: getattr(self, name) for name in _OF_ONE_SOURCE}
        return self.sources or (SourceSettings.model_validate(alone),)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        """Settings of a single source beside several, or weights for some of them, would be dropped in silence."""
        defaults = type(self).model_fields
        unread = [name for name in _OF_ONE_SOURCE if getattr(self, name) != defaults[name].default]
        if self.sources and unread:
            raise ValueError(
                f"{' and '.join(unread)} would not be read beside sources; set {'them' if unread[1:] else 'it'} in "
                "each [[data.sources]]"
            )
        weighted = [source.source for source in self.sources if source.weight is not None]
        if weighted and len(weighted) < len(self.sources):
            without = next(source.source for source in self.sources if source.weight is None)
            raise ValueError(f"sources: {weighted[0]} has a weight and {without} has none; give each one, or none")
        for name in ("selection_bound", "selection_half_life_visits", "selection_look_again_epochs"):
            if self.selection == "none" and getattr(self, name) != defaults[name].default:
                raise ValueError(f"{name} would not be read, it needs selection = solved or pass_rate")
        return self


_OF_ONE_SOURCE = (
    *(
        "source",
        "split",
        "subset",
        "problem_field",
        "answer_field",
        "answer_pattern",
        "metadata_fields",
        "language",
        "levels",
        "gym_size",
        "gym_seed",
        "gym_settings",
    ),
)
"""Settings of `[data]` that describe its single source."""
