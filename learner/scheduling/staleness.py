"""The staleness gate: which prompt visits may be leased, and which unfinished ones a batch may pass over."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StalenessGate:
    """Bounds lag in optimizer steps without throwing work away.

    A batch of U·B groups is trained as a whole, in U steps of B: its lag is counted from its first step. The groups
    that are in no committed batch are numbered 0, 1, 2, … in lease order, so a group's number says which batch it
    will train in at the latest.

    Attributes:
        max_lag: largest lag allowed, in optimizer steps.
        groups_per_step: B.
        updates_per_batch: U; a batch moves the step by U.
    """

    max_lag: int
    groups_per_step: int
    updates_per_batch: int = 1

    @property
    def groups_per_batch(self) -> int:
        """U·B, groups that are assembled together."""
        return self.updates_per_batch * self.groups_per_step

    def batch_step(self, number: int, next_step: int) -> int:
        """First step of the batch that trains group `number` at the latest, when the next batch starts at `next_step`.

        With 16 groups to a step, group 40 trains in the third step from now, `next_step + 2`; with two such steps to
        a batch, in the batch that starts there.
        """
        return next_step + number // self.groups_per_batch * self.updates_per_batch

    def oldest_step(self, number: int, next_step: int) -> int:
        """Oldest optimizer step whose weights may generate group `number`; never below 0."""
        return max(0, self.batch_step(number, next_step) - self.max_lag)

    def may_train(self, weights_step: int, number: int, next_step: int) -> bool:
        """Whether weights of `weights_step` are within max_lag of the batch that trains group `number`."""
        return self.batch_step(number, next_step) - weights_step <= self.max_lag
