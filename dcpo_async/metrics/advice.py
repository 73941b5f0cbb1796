"""Which side of a run waits for the other, and what would help: a few sentences from measured times. Pure."""

from dataclasses import dataclass

EVEN = 0.1
"""A side that waits less than this share of the time is not waiting."""
WORTH = 1.1
"""Times the steps, from which on it is said that GPUs should be moved."""


@dataclass(frozen=True, slots=True)
class Balance:
    """What was measured over some steps.

    Attributes:
        busy_seconds: of the trainer in a step: compute, publication, checkpoint.
        wait_seconds: of the trainer for the groups of a step.
        actor_use: share of the actors' places for groups that were taken, 0 to 1.
        learner_gpus, actor_gpus: of both sides; 0 where there are none.
    """

    busy_seconds: float
    wait_seconds: float
    actor_use: float
    learner_gpus: int = 0
    actor_gpus: int = 0


def advice(balance: Balance) -> str:
    """Say which side waits, and how GPUs should be shared out.

    A step takes as long as the slower side. It is assumed that both are as fast as they have GPUs, so that the gain
    is about what will be seen, and no more.

    Example: 4 + 4 GPUs, 42 s of training, no wait, actors with 0.28 of their places taken:
    "The trainer is the bottleneck: actors have 28 % of their places taken. 6 : 2 GPUs (learner : actors) would give
    about 1.5 times the steps."
    """
    period = balance.busy_seconds + balance.wait_seconds
    if period <= 0:
        return "Nothing is measured yet."
    wait_share = balance.wait_seconds / period
    if wait_share >= EVEN:
        said = f"Generation is the bottleneck: the trainer waits {100 * wait_share:.0f} % of the time."
        generating = period
        without_gpus = "More actors would help, or a larger actor.groups_in_flight."
    elif balance.actor_use <= 1 - EVEN:
        said = f"The trainer is the bottleneck: actors have {100 * balance.actor_use:.0f} % of their places taken."
        generating = period * balance.actor_use
        without_gpus = "Fewer actors would do, or a lower lag.max_lag at no cost."
    else:
        return "Both sides are busy: neither waits for the other."
    shares = best_shares(balance, generating)
    if shares is None:
        return f"{said} {without_gpus}"
    (learner, actors), gain = shares
    if gain < WORTH:
        return f"{said} Their shares of the GPUs are as good as any."
    return f"{said} {learner} : {actors} GPUs (learner : actors) would give about {gain:.1f} times the steps."


def best_shares(balance: Balance, generating_seconds: float) -> tuple[tuple[int, int], float] | None:
    """How to share out the GPUs, and how many times the steps that gives; None without GPUs on both sides.

    Args:
        generating_seconds: that actors need for the groups of a step.
    """
    total = balance.learner_gpus + balance.actor_gpus
    if not (balance.learner_gpus and balance.actor_gpus):
        return None

    def seconds(learner: int) -> float:
        training = balance.busy_seconds * balance.learner_gpus / learner
        return max(training, generating_seconds * balance.actor_gpus / (total - learner))

    best = min(range(1, total), key=seconds)
    return (best, total - best), (balance.busy_seconds + balance.wait_seconds) / seconds(best)
