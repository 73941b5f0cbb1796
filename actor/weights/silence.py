"""A bound on how long nothing may be heard."""

import time

from dcpo_async.errors import WeightsError


class Silence:
    """Ends a wait once nothing has been heard for too long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.broken()

    def broken(self) -> None:
        """Something was heard."""
        self._ends = time.monotonic() + self._seconds

    def is_over(self) -> bool:
        """Whether nothing was heard for too long."""
        return time.monotonic() > self._ends

    def check(self, peer: str) -> None:
        """Raise WeightsError, naming the peer, once it is over."""
        if self.is_over():
            raise WeightsError(f"{peer} made no progress for {self._seconds:g} s; try again, or restart it")
