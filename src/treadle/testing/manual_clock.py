"""A clock that a test moves: with `connect(url, clock=ManualClock(), worker="cycles")` a run goes step by step."""

from __future__ import annotations


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float = 1_893_456_000.0) -> None:
        self._now = now
        self._monotonic = 1000.0

    def now(self) -> float:
        """Seconds since the epoch; 2030-01-01 at first."""
        return self._now

    def monotonic(self) -> float:
        """Seconds since some time."""
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds
        self._monotonic += seconds

    def set(self, now: float) -> None:
        """Set the wall clock, as a machine's owner may; what is monotonic does not move."""
        self._now = now
