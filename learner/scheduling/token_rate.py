"""How many tokens come in each second."""

import math
from collections import deque


class TokenRate:
    """Tokens per second over the last `window_seconds`; reports of one second are kept as one."""

    def __init__(self, window_seconds: float = 30.0) -> None:
        self._window = window_seconds
        self._seconds: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, now: float, num_tokens: int) -> None:
        """Note that tokens came in."""
        self._forget(now)
        self._sum += num_tokens
        if self._seconds and math.floor(self._seconds[-1][0]) == math.floor(now):
            first_at, tokens = self._seconds.pop()
            self._seconds.append((first_at, tokens + num_tokens))
        else:
            self._seconds.append((now, num_tokens))

    def per_second(self, now: float) -> float:
        """Tokens per second; 0 until two reports lie in the window."""
        self._forget(now)
        if len(self._seconds) < 2:
            return 0.0
        first_at, first_tokens = self._seconds[0]
        return (self._sum - first_tokens) / max(now - first_at, 1e-9)

    def _forget(self, now: float) -> None:
        while self._seconds and now - self._seconds[0][0] > self._window:
            self._sum -= self._seconds.popleft()[1]
