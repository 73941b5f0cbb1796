"""Which published weights versions leases may ask for. Pure: no clock, no socket, no file."""

from collections.abc import Mapping
from dataclasses import dataclass

from learner.scheduling.staleness import StalenessGate


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A weights version that stands in the weight store."""

    weights_version: int
    step: int


class PublishedVersions:
    """The versions that leases may ask for, oldest first; their steps go up.

    Args:
        gate: bounds how old the weights of a group may be.
        publish_interval: steps between two publications.
        steps: optimizer step of every version that was ever granted.

    Attributes:
        steps: the same, with those that are granted from now on.
    """

    def __init__(self, gate: StalenessGate, publish_interval: int, steps: Mapping[int, int]) -> None:
        self.steps = dict(steps)
        self._gate, self._publish_interval = gate, publish_interval
        self._published: list[PublishedVersion] = []
        self._repeats_until = 0

    @property
    def published(self) -> tuple[PublishedVersion, ...]:
        """What leases may ask for, oldest first."""
        return tuple(self._published)

    @property
    def newest(self) -> PublishedVersion:
        """What actors should know of; version 0 while there is none."""
        return self._published[-1] if self._published else PublishedVersion(0, 0)

    def granted(self, weights_version: int, step: int) -> None:
        """A number was given out for the state after `step`."""
        self.steps[weights_version] = step

    def publish(self, weights_version: int, next_step: int) -> bool:
        """A granted version stands; returns whether actors should hear of it, and leases may ask for it.

        While a trainer that came back repeats batches, it publishes weights that lag behind those which actors have.
        Adopted, they would only make groups too old; the version that stands when it needs new groups is offered.
        Otherwise each is, whatever batches have been committed by the time that it stands.

        Args:
            next_step: first step that no committed batch covers.
        """
        step = self.steps[weights_version]
        if (step // self._publish_interval + 1) * self._publish_interval <= self._repeats_until:
            return False
        self._abandon(step - 1)
        self._published.append(PublishedVersion(weights_version, step))
        self.forget_old(next_step)
        return True

    def offer(self, weights_version: int) -> None:
        """A version of an earlier start is the newest in the store: leases may ask for it until the trainer says more.

        Its step counts as that of any other. A trainer that comes back at an earlier step abandons it (`resume`).
        """
        self._published = [PublishedVersion(weights_version, self.steps[weights_version])]

    def resume(self, step: int, next_step: int) -> None:
        """The trainer starts from the state after `step`: versions that it had published beyond are abandoned.

        What actors generated with them stays valid, but the weight store does not keep them.

        Args:
            next_step: first step that no committed batch covers; until then it repeats.
        """
        self._repeats_until = next_step
        self._abandon(step)

    def forget_old(self, next_step: int) -> None:
        """Drop all that no lease can ask for any more, but the newest."""
        oldest_step = self._gate.oldest_step(0, next_step)
        newest = self._published[-1:]
        self._published = [version for version in self._published if version.step >= oldest_step] or newest

    def oldest_for(self, number: int, next_step: int, at_least: int = 0) -> PublishedVersion | None:
        """The oldest version that group `number` may start from; all after it may serve too.

        Args:
            at_least: version that its actor has already: one that stands no more, or is too old, changes nothing.
        """
        oldest_step = self._gate.oldest_step(number, next_step)
        fitting = [version for version in self._published if version.step >= oldest_step]
        has = [version for version in fitting if version.weights_version <= at_least]
        return has[-1] if has else next(iter(fitting), None)

    def _abandon(self, step: int) -> None:
        self._published = [version for version in self._published if version.step <= step]
