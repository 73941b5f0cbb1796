"""How many tokens come in each second."""

from collections import deque


class TokenRate:
    """Tokens per second over the last `window_seconds`."""

    def __init__(self, window_seconds: float = 30.0) -> None:
        self._window = window_seconds
        self._events: deque[tuple[float, int]] = deque()

    def add(self, now: float, num_tokens: int) -> None:
        """Note that tokens came in."""
        self._forget(now)
        self._events.append((now, num_tokens))

    def per_second(self, now: float) -> float:
        """Tokens per second; 0 until two reports lie in the window."""
        self._forget(now)
        if len(self._events) < 2:
            return 0.0
        (first_at, first_tokens), *_ = self._events
        return (sum(tokens for _, tokens in self._events) - first_tokens) / max(now - first_at, 1e-9)

    def _forget(self, now: float) -> None:
        while self._events and now - self._events[0][0] > self._window:
            self._events.popleft()
