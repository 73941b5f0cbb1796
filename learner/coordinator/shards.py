"""From stored groups to the samples of one optimizer step, shared among ranks; and its metrics. No tensors."""

import dataclasses
import heapq
import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from dcpo_async.algorithm import constant_weights, only_token_mean_weights, rur, token_mean_weights
from dcpo_async.columns import joined
from dcpo_async.config import RunConfig
from dcpo_async.protocol.trainer_messages import ShardMessage
from dcpo_async.records import Group, Prompt, Response, TrainingSample, VersionSegment
from learner.ledger.reader import LedgerReader


@dataclasses.dataclass(frozen=True, slots=True)
class StepGroup:
    """A group of a committed batch, with all that the ledger knows about it."""

    group: Group
    prompt_token_ids: NDArray[np.int32]
    advantages: tuple[float, ...]
    visit: int
    old_logprobs: tuple[NDArray[np.float32] | None, ...]
    source: str = ""


def step_groups(ledger: LedgerReader, step: int, prompts: Mapping[str, Prompt], *, with_old: bool) -> list[StepGroup]:
    """The groups of a committed step as the ledger has them, in lease order.

    Args:
        prompts: by id.
        with_old: read stored old log-probs too (`old: proximal`).
    """
    return [_step_group(ledger, position, prompts, with_old) for position in ledger.step_positions(step)]


def _step_group(ledger: LedgerReader, position: int, prompts: Mapping[str, Prompt], with_old: bool) -> StepGroup:
    stored, visit = ledger.read_group(position), ledger.visit(position)
    assert visit is not None
    group, prompt = stored.group, prompts[visit.prompt_id]
    stored_old = (ledger.read_old_logprobs(position, i) if with_old else None for i in range(len(group.responses)))
    return StepGroup(
        group=group,
        prompt_token_ids=np.asarray(prompt.token_ids, dtype=np.int32),
        advantages=stored.advantages,
        visit=visit.visit,
        old_logprobs=tuple(None if data is None else np.frombuffer(data, dtype="<f4") for data in stored_old),
        source=prompt.source,
    )


def token_lags(segments: Sequence[VersionSegment], step: int, version_steps: Mapping[int, int]) -> NDArray[np.int32]:
    """Optimizer steps between each token's weights and the first step of its batch, int32 [tokens].

    Segments [(3, 2), (4, 1)] with version 3 of step 5 and version 4 of step 6 give [2, 2, 1] at step 7.
    """
    lags = [step - version_steps[segment.weights_version] for segment in segments]
    return np.repeat(np.asarray(lags, dtype=np.int32), [segment.num_tokens for segment in segments])


def step_samples(
    groups: Sequence[StepGroup], step: int, config: RunConfig, version_steps: Mapping[int, int]
) -> list[TrainingSample]:
    """All samples of one optimizer step, in lease order.

    Denominators come from the whole step, so that neither sharding nor packing can change the loss.
    """
    algorithm = config.algorithm
    first_step = step - step % algorithm.updates_per_batch
    answered = [(entry, index) for entry in groups for index in range(len(entry.group.responses))]
    lengths = [_trained_length(entry.group.responses[index], config) for entry, index in answered]
    weights = _token_weights(lengths, len(groups), config)
    return [
        TrainingSample(
            position=entry.group.position,
            index=index,
            prompt_token_ids=entry.prompt_token_ids,
            token_ids=entry.group.responses[index].token_ids,
            behavior_logprobs=entry.group.responses[index].behavior_logprobs,
            old_logprobs=_old_logprobs(entry, index, config),
            token_lags=token_lags(entry.group.responses[index].segments, first_step, version_steps),
            advantage=0.0 if algorithm.zero_advantages else entry.advantages[index],
            token_weight=weight,
            kl_coefficient=algorithm.kl_coefficient,
        )
        for (entry, index), weight in zip(answered, weights, strict=True)
    ]


def _trained_length(response: Response, config: RunConfig) -> int:
    is_masked = config.algorithm.mask_truncated and response.finish_reason == "length"
    return 0 if is_masked else len(response.token_ids)


def _old_logprobs(entry: StepGroup, index: int, config: RunConfig) -> NDArray[np.float32]:
    behavior = entry.group.responses[index].behavior_logprobs
    if config.algorithm.old == "behavior":
        return behavior
    stored = entry.old_logprobs[index]
    return np.full_like(behavior, np.nan) if stored is None else stored


def step_metrics(groups: Sequence[StepGroup], group_size: int) -> dict[str, float]:
    """What a step's batch says about reward and learning signal.

    rur counts responses with a non-zero stored advantage; rur_later the same over second and later visits.
    """
    advantages = [value for entry in groups for value in entry.advantages]
    later = [value for entry in groups if entry.visit > 1 for value in entry.advantages]
    responses = [response for entry in groups for response in entry.group.responses]
    rewards = [reward for entry in groups for reward in entry.group.rewards]
    metrics = {
        "reward": fmean(rewards),
        "rur": rur(advantages),
        "advantage_abs_mean": fmean(map(abs, advantages)),
        "visit_mean": fmean(entry.visit for entry in groups),
        "response_tokens": float(sum(len(response.token_ids) for response in responses)),
        "response_length": fmean(len(response.token_ids) for response in responses),
        "truncated": fmean(response.finish_reason == "length" for response in responses),
        "mixed_versions": fmean(len(response.segments) > 1 for response in responses),
        "groups": float(len(groups)),
        "responses": float(len(groups) * group_size),
    }
    if later:
        metrics["rur_later"] = rur(later)
    return metrics | _by_source(groups)


def _by_source(groups: Sequence[StepGroup]) -> dict[str, float]:
    """Of a run with several sources: the mean reward, the share of responses that teach, and the groups of each."""
    metrics = dict[str, float]()
    for source in sorted({entry.source for entry in groups} - {""}):
        own = [entry for entry in groups if entry.source == source]
        metrics[f"reward/{source}"] = fmean(reward for entry in own for reward in entry.group.rewards)
        metrics[f"rur/{source}"] = rur([value for entry in own for value in entry.advantages])
        metrics[f"groups/{source}"] = float(len(own))
    return metrics


def _token_weights(lengths: Sequence[int], num_groups: int, config: RunConfig) -> list[float]:
    """What each token of a response weighs, by the denominators of the whole step."""
    algorithm, sampling = config.algorithm, config.sampling
    match algorithm.loss_mean:
        case "token":
            return token_mean_weights(lengths)
        case "constant":
            return constant_weights(lengths, sampling.group_size, num_groups, sampling.max_response_tokens)
        case "response":
            return only_token_mean_weights(lengths, sampling.group_size, num_groups, algorithm.otm_scale)


def looked_at(samples: Sequence[TrainingSample], share: float) -> list[TrainingSample]:
    """The samples that ranks compute: all that have a gradient, and a share of the others, which stands for them all.

    Token counts of the others are such that diagnostics are over as many tokens as the batch has.

    Args:
        samples: of a whole step, in lease order.
        share: of responses without a gradient, above 0; at least one is looked at.
    """
    others = [sample for sample in samples if not sample.has_gradient and len(sample.token_ids)]
    measured = [others[min(int(number / share), len(others) - 1)] for number in range(math.ceil(len(others) * share))]
    num_tokens = sum(len(sample.token_ids) for sample in measured)
    count = sum(len(sample.token_ids) for sample in others) / max(1, num_tokens)
    with_gradient = [sample for sample in samples if sample.has_gradient]
    return with_gradient + [dataclasses.replace(sample, token_count=count) for sample in measured]


def omitted_share(samples: Sequence[TrainingSample]) -> float:
    """Share of a step's prompt and response tokens whose samples have no gradient, and are not trained on."""
    lengths = [len(sample.prompt_token_ids) + len(sample.token_ids) for sample in samples]
    omitted = (n for n, sample in zip(lengths, samples, strict=True) if not sample.has_gradient)
    return sum(omitted) / sum(lengths)


def sample_cost(sample: TrainingSample, pair_cost: float) -> float:
    """Work of n tokens, in tokens that are trained: n + pair_cost · n², a third of it without a backward pass."""
    num_tokens = len(sample.prompt_token_ids) + len(sample.token_ids)
    cost = num_tokens + pair_cost * num_tokens**2
    return cost if sample.has_gradient else cost / 3


def split_by_cost(costs: Sequence[float], num_ranks: int) -> list[list[int]]:
    """Share samples among ranks so that each gets about the same work.

    Costliest first, each to the rank with the least so far; ties go to the lower rank, so that every rank and every
    resumed run sees the same shards. `split_by_cost([5, 1, 4, 2], 2)` is `[[0, 1], [2, 3]]`.

    Args:
        costs: of each sample.
        num_ranks: number of shards.

    Returns:
        For each rank the numbers of its samples, ascending.
    """
    loads = [(0.0, rank) for rank in range(num_ranks)]
    shards: list[list[int]] = [[] for _ in range(num_ranks)]
    for sample in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, rank = heapq.heappop(loads)
        shards[rank].append(sample)
        heapq.heappush(loads, (load + costs[sample], rank))
    return [sorted(shard) for shard in shards]


def shard_message(samples: Sequence[TrainingSample], step: int) -> tuple[ShardMessage, dict[str, NDArray[np.generic]]]:
    """A rank's samples as one message: columns in the header, tokens in the arrays."""
    message = ShardMessage(
        step=step,
        positions=tuple(sample.position for sample in samples),
        indices=tuple(sample.index for sample in samples),
        prompt_lengths=tuple(len(sample.prompt_token_ids) for sample in samples),
        lengths=tuple(len(sample.token_ids) for sample in samples),
        advantages=tuple(sample.advantage for sample in samples),
        token_weights=tuple(sample.token_weight for sample in samples),
        token_counts=tuple(sample.token_count for sample in samples),
        kl_coefficient=max((sample.kl_coefficient for sample in samples), default=0.0),
    )
    arrays = {
        name: joined([getattr(sample, name) for sample in samples], dtype)
        for name, dtype in ShardMessage.array_dtypes.items()
    }
    return message, arrays
