"""After which steps a checkpoint is due: by steps, by the clock, or by whichever comes first."""

from dataclasses import dataclass

from dcpo_async.config import CheckpointSettings


@dataclass(slots=True)
class Schedule:
    """Says whether a checkpoint is due; one that was put off stays due until one is taken.

    Attributes:
        settings: intervals and milestones.
        step: of the newest checkpoint that was taken, or of the state that this start began from.
        taken_at: when that was, in seconds of a monotonic clock.
    """

    settings: CheckpointSettings
    step: int
    taken_at: float

    def is_due_by_steps(self, step: int) -> bool:
        """Whether a multiple of interval_steps was passed since the newest checkpoint.

        With interval_steps 10 and the newest at step 21, put off from 20, the next is due at 30.
        """
        interval = self.settings.interval_steps
        return interval is not None and step // interval > self.step // interval

    def is_due_by_clock(self, step: int, now: float) -> bool:
        """Whether interval_minutes are over, and there is something new to write."""
        minutes = self.settings.interval_minutes
        return minutes is not None and step > self.step and now - self.taken_at >= 60 * minutes

    def is_milestone(self, step: int) -> bool:
        """Whether the checkpoint of this very step is to be kept for good, so that it must not be put off."""
        every = self.settings.keep_every_steps
        return every is not None and step % every == 0

    def take(self, step: int, now: float) -> None:
        """A checkpoint of this step is taken."""
        self.step, self.taken_at = step, now
