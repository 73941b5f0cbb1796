"""The learning rate as a function of the step alone, so that a resumed run needs no scheduler state."""


def learning_rate(step: int, peak: float, warmup_steps: int) -> float:
    """Return the rate of the update that leads from `step` to `step + 1`: linear warm-up, then constant.

    Args:
        step: optimizer steps done before, from 0.
        peak: the rate after the warm-up.
        warmup_steps: updates until the peak; 0 for none.

    Example: peak 1e-6 with 10 warm-up steps gives 1e-7 at step 0 and 1e-6 from step 9 on.
    """
    return peak * min(1.0, (step + 1) / warmup_steps) if warmup_steps else peak
