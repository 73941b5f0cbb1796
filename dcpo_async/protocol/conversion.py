"""Groups, leases and settings as messages, and back; and the check of a group that a peer sent."""

import hashlib
from collections.abc import Iterator, Mapping
from itertools import chain

import numpy as np

from dcpo_async import __version__, limits
from dcpo_async.columns import joined, parted
from dcpo_async.config import GradingSettings, RunConfig, SamplingSettings
from dcpo_async.protocol.messages import Array, GroupMessage, LeaseMessage, Welcome
from dcpo_async.records import Group, Hold, Lease, Response, Sampling, VersionSegment

MAX_LOGPROB = 1e-6
"""Rounding may lift the log-probability of a certain token a little above 0."""


def welcome_of(
    config: RunConfig, weights_port: int, weights_version: int, ask: str = "", hold: Hold | None = None
) -> Welcome:
    """What a run tells an actor that joins; `model.dtype` has been decided by then."""
    assert config.model.dtype != "auto"
    return Welcome(
        weights_port=weights_port,
        weights_version=weights_version,
        ask=ask,
        hold=hold,
        seed=config.seed,
        dtype=config.model.dtype,
        max_prompt_tokens=config.data.max_prompt_tokens,
        sampling=config.sampling,
        grading=config.grading,
        grading_by_source=config.grading_by_source,
        actor=config.actor,
        heartbeat_seconds=config.network.heartbeat_seconds,
        silence_seconds=config.network.silence_seconds,
        chunk_bytes=config.network.chunk_bytes,
        release=__version__,
    )


def sampling_of(welcome: Welcome, lease: Lease | None = None) -> Sampling:
    """How the run samples; an evaluation's lease says itself how many responses, and at what temperature."""
    sampling, terms = welcome.sampling, lease.terms if lease is not None else None
    return Sampling(
        terms.samples if terms is not None else sampling.group_size,
        terms.temperature if terms is not None else sampling.temperature,
        sampling.max_response_tokens,
        welcome.seed,
        sampling.stop,
        sampling.stop_token_ids,
    )


def made_by(welcome: Welcome) -> str:
    """What a group says that is made under these settings."""
    return settings_digest(welcome.sampling, welcome.grading, welcome.grading_by_source)


def settings_digest(
    sampling: SamplingSettings, grading: GradingSettings, by_source: Mapping[str, GradingSettings] | None = None
) -> str:
    """What tells groups apart that were sampled or graded by other settings; it does not matter by how many workers."""
    shape = sampling.model_dump_json() + grading.model_dump_json(exclude={"workers"})
    for name, own in sorted((by_source or {}).items()):
        shape += name + own.model_dump_json(exclude={"workers"})
    return hashlib.blake2b(shape.encode(), digest_size=8).hexdigest()


def group_to_message(group: Group) -> tuple[GroupMessage, dict[str, Array]]:
    """The header and the arrays of a group, its responses one after another."""
    responses = group.responses
    texts = [response.text.encode() for response in responses]
    message = GroupMessage(
        position=group.position,
        attempt=group.attempt,
        lengths=tuple(len(response.token_ids) for response in responses),
        segments=tuple(response.segments for response in responses),
        finish_reasons=tuple(response.finish_reason for response in responses),
        rewards=group.rewards,
        reasons=group.reasons,
        text_lengths=tuple(map(len, texts)),
        seconds=group.seconds,
        made_by=group.made_by,
    )
    arrays = {
        "texts": np.frombuffer(b"".join(texts), "|u1"),
        "token_ids": joined([response.token_ids for response in responses], "<i4"),
        "behavior_logprobs": joined([response.behavior_logprobs for response in responses], "<f4"),
    }
    return message, arrays


def group_from_message(message: GroupMessage, arrays: Mapping[str, Array]) -> Group:
    """The group of a message that `check_group` finds nothing wrong with; its arrays are views."""
    responses = tuple(
        Response(token_ids, logprobs, tuple(VersionSegment(*s) for s in segments), finish_reason, text)
        for token_ids, logprobs, segments, finish_reason, text in zip(
            parted(arrays["token_ids"], message.lengths),
            parted(arrays["behavior_logprobs"], message.lengths),
            message.segments,
            message.finish_reasons,
            texts_of(message, arrays),
            strict=True,
        )
    )
    return Group(
        message.position, message.attempt, responses, message.rewards, message.reasons, made_by=message.made_by
    )


def texts_of(message: GroupMessage, arrays: Mapping[str, Array]) -> list[str]:
    """The texts of a group's responses; raises UnicodeDecodeError where they are not UTF-8."""
    return [part.tobytes().decode() for part in parted(arrays["texts"], message.text_lengths)]


def check_group(
    message: GroupMessage,
    arrays: Mapping[str, Array],
    group_size: int,
    vocab_size: int,
    max_response_tokens: int,
    grading: GradingSettings,
) -> str | None:
    """Why a group must be refused; None when it is sound.

    Args:
        message: header of a decoded message.
        arrays: `token_ids` int32 [tokens of all responses], `behavior_logprobs` float32 of the same shape.
        group_size: G.
        vocab_size: token ids are below it.
        max_response_tokens: longest allowed response.
        grading: says which rewards there are: those of the built-in grader, compared exactly, or the whole billionths
            of an own reward's range.
    """
    problems = chain(
        _wrong_columns(message, group_size),
        _wrong_lengths(message, arrays, max_response_tokens),
        _wrong_texts(message, arrays),
        _wrong_segments(message),
        _wrong_rewards(message, grading),
        _wrong_numbers(arrays, vocab_size),
    )
    return next(problems, None)


def lease_to_message(lease: Lease) -> tuple[LeaseMessage, dict[str, Array]]:
    """The header and the array of a lease."""
    message = LeaseMessage(
        position=lease.position,
        attempt=lease.attempt,
        prompt_id=lease.prompt_id,
        visit=lease.visit,
        min_version=lease.min_version,
        answer=lease.answer,
        problem=lease.problem,
        metadata=lease.metadata,
        source=lease.source,
        terms=lease.terms,
    )
    return message, {"prompt_token_ids": np.asarray(lease.prompt_token_ids, dtype="<i4")}


def lease_from_message(message: LeaseMessage, arrays: Mapping[str, Array]) -> Lease:
    """The lease of a message; its array is a view."""
    words = message.model_dump(exclude={"number", "terms"})
    return Lease(prompt_token_ids=arrays["prompt_token_ids"], terms=message.terms, **words)


def _wrong_columns(message: GroupMessage, group_size: int) -> Iterator[str]:
    for name in ("lengths", "segments", "finish_reasons", "rewards", "reasons", "text_lengths"):
        found = len(getattr(message, name))
        if found != group_size:
            yield f"{found} {name}, a group has {group_size} responses"


def _wrong_lengths(message: GroupMessage, arrays: Mapping[str, Array], max_response_tokens: int) -> Iterator[str]:
    if max(message.lengths, default=0) > max_response_tokens:
        yield f"a response of {max(message.lengths)} tokens, at most {max_response_tokens} are allowed"
    for name in ("token_ids", "behavior_logprobs"):
        if arrays[name].size != sum(message.lengths):
            yield f"{arrays[name].size} {name} for responses of {sum(message.lengths)} tokens"


def _wrong_texts(message: GroupMessage, arrays: Mapping[str, Array]) -> Iterator[str]:
    if arrays["texts"].size != sum(message.text_lengths):
        yield f"{arrays['texts'].size} bytes of texts that should take {sum(message.text_lengths)}"
    try:
        longest = max(map(len, texts_of(message, arrays)), default=0)
    except UnicodeDecodeError as error:
        yield f"a text that is not UTF-8: {error.reason}"
    else:
        if longest > limits.MAX_TEXT:
            yield f"a text of {longest} characters, at most {limits.MAX_TEXT} are allowed"


def _wrong_segments(message: GroupMessage) -> Iterator[str]:
    for index, (length, segments) in enumerate(zip(message.lengths, message.segments, strict=True)):
        if sum(num_tokens for _, num_tokens in segments) != length:
            yield f"segments {segments} of response {index} do not add up to its {length} tokens"
        if any(num_tokens == 0 for _, num_tokens in segments):
            yield f"segments {segments} of response {index} hold an empty one"
        versions = [weights_version for weights_version, _ in segments]
        if versions != sorted(versions):
            yield f"weights versions {versions} of response {index} go down"


def _wrong_rewards(message: GroupMessage, grading: GradingSettings) -> Iterator[str]:
    allowed, (low, high) = (1.0, 0.0, -grading.format_penalty), grading.reward_range
    for index, reward in enumerate(message.rewards):
        if grading.reward is None:
            if reward not in allowed:
                yield f"reward {reward} of response {index}, allowed are {sorted(set(allowed))}"
        # Negated, so that NaN, which compares false, is caught too.
        elif not low <= reward <= high:
            yield f"reward {reward} of response {index}, the range is {low:g} to {high:g}"
        elif reward != limits.rounded_reward(reward):
            yield f"reward {reward} of response {index} is not in whole billionths"


def _wrong_numbers(arrays: Mapping[str, Array], vocab_size: int) -> Iterator[str]:
    token_ids, logprobs = arrays["token_ids"], arrays["behavior_logprobs"]
    outside = token_ids[(token_ids < 0) | (token_ids >= vocab_size)]
    if outside.size:
        yield f"token {outside[0]}, the vocabulary has {vocab_size}"
    # Negated, so that NaN, which compares false, is caught too.
    wrong = logprobs[~((logprobs <= MAX_LOGPROB) & (logprobs > -np.inf))]
    if wrong.size:
        yield f"log-probability {wrong[0]}, it must be finite and not above 0"
