"""The learning rate of each step, as a function of the step alone: a resumed run needs no state of a scheduler."""

import math

from dcpo_async.config import TrainingSettings


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Return the rate of the update that leads from `step` to `step + 1`.

    Linear warm-up over `warmup_steps`, then constant, or falling to `final_rate_share` of the peak by a line or half a
    cosine, which it reaches at `schedule_steps`, by default at the last step of the run, and keeps.

    Args:
        step: optimizer steps done before, from 0.
        settings: peak and shape.

    Example: peak 1e-6 with 10 warm-up steps gives 1e-7 at step 0 and 1e-6 at step 9. With a line to a tenth of it at
    step 110, step 60 has 0.55e-6, and all from 110 on 1e-7.
    """
    peak, warmup = settings.learning_rate, settings.warmup_steps
    if step < warmup:
        return peak * ((step + 1) / warmup)
    end = settings.schedule_steps or settings.max_steps
    if settings.schedule == "constant" or end is None:
        return peak
    done = min(1.0, (step - warmup) / (end - warmup))
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return peak * (settings.final_rate_share + (1 - settings.final_rate_share) * left)
