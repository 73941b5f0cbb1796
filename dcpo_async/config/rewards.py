"""How responses are graded, source by source, and what settings of rewards may not be together. Pure."""

from collections.abc import Iterator

from dcpo_async.config.data import GYM, GYM_REWARD, DataSettings, SourceSettings
from dcpo_async.config.sections import GradingSettings

GYM_ALONE = ("gym_size", "gym_seed", "gym_settings")
OTHERS_ALONE = (
    *("split", "subset", "problem_field", "answer_field", "answer_pattern", "metadata_fields", "language", "levels"),
)
"""Settings of a source that only a task of Reasoning Gym reads, and those that it does not read."""


def grading_for(source: SourceSettings, grading: GradingSettings) -> GradingSettings:
    """How responses to the problems of one of several sources are graded: as it says itself, else as `[grading]` does.

    Example: beside `extraction = "boxed"` a source without settings of its own is graded by the last box.
    """
    own: dict[str, object] = {} if source.extraction is None else {"extraction": source.extraction}
    if reward := own_reward(source):
        own |= {"reward": reward, "reward_repeats": source.reward_repeats, "reward_digest": source.reward_digest}
    return grading.model_copy(update=own)


def own_reward(source: SourceSettings) -> str | None:
    """The reward that a source names, or brings as a task of Reasoning Gym; None where it has none of its own."""
    return source.reward or (GYM_REWARD if source.source.startswith(GYM) else None)


def reward_problems(data: DataSettings, grading: GradingSettings) -> Iterator[str]:
    """Why the settings of a run's rewards contradict each other, or would not be read."""
    for source in data.each_source:
        yield from _source_problems(source, grading, "data.sources: " if data.sources else "data.")
    rewards = [own_reward(source) or grading.reward for source in data.each_source]
    yield from _grading_problems(data, grading, rewards)
    (low, high) = grading.reward_range
    if not low <= 0 <= high or low == high:
        yield (
            f"grading.reward_range {[low, high]}: it goes from the lowest to the highest reward, and 0 is among "
            "them, which a response has whose reward cannot be worked out"
        )
    if None in rewards and any(rewards) and (low, high) != (0, 1):
        yield (
            f"grading.reward_range {[low, high]}: the built-in grader, which grades another source of this run, gives "
            "0 and 1, and rewards of one run have one scale; leave the range out and scale the rewards"
        )


def _source_problems(source: SourceSettings, grading: GradingSettings, place: str) -> Iterator[str]:
    defaults, reward = SourceSettings.model_fields, own_reward(source)
    is_gym, is_one_of_several = source.source.startswith(GYM), place != "data."
    for name in OTHERS_ALONE if is_gym else GYM_ALONE:
        if getattr(source, name) != defaults[name].default:
            yield f"{place}{name} would not be read, {_said(source, place)}"
    if source.metadata_fields and not (reward or grading.reward):
        needed = "reward in its table, or grading.reward" if is_one_of_several else "grading.reward"
        yield f"{place}metadata_fields would not be read, it needs {needed}"
    if is_one_of_several and is_gym and source.reward is None and grading.reward is not None:
        yield (
            f"{place}{source.source} has a scorer of its own, and grading.reward names {grading.reward}; say which of "
            f"them grades it with reward = in its table ({GYM_REWARD} is its own)"
        )
    if source.extraction is not None and (reward or grading.reward):
        yield f"{place}extraction of {source.source} would not be read: its reward is given the whole response"
    for name in ("reward_repeats", "reward_digest"):
        if reward is None and getattr(source, name) != defaults[name].default:
            yield f"{place}{name} of {source.source} would not be read, it needs reward in its table"


def _grading_problems(data: DataSettings, grading: GradingSettings, rewards: list[str | None]) -> Iterator[str]:
    defaults, is_alone = GradingSettings.model_fields, not data.sources
    if grading.reward is not None and data.sources and all(map(own_reward, data.sources)):
        yield "grading.reward would not be read: every one of data.sources has a reward of its own"
    read_by = {"reward_range": any(rewards)}
    for name in ("reward_range", "reward_repeats", "reward_digest"):
        is_read = read_by.get(name, bool(grading.reward or (is_alone and any(rewards))))
        if not is_read and getattr(grading, name) != defaults[name].default:
            yield f"grading.{name} would not be read, it needs grading.reward"
    if grading.format_penalty and None not in rewards:
        yield (
            "grading.format_penalty would not be read: what a response without an answer is worth, grading.reward "
            "says itself"
        )


def _said(source: SourceSettings, place: str) -> str:
    return f"data.source is {source.source}" if place == "data." else f"source is {source.source}"
