"""What ends an attempt from outside: it takes too long, it reports no progress, or its run's deadline comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from treadle.core.events import Failure
from treadle.runtime.attempts import Attempt
from treadle.runtime.failures import ErrorText

# Ends an attempt with a failure and the verdict on it; an attempt that has ended stays as it is.
End = Callable[[Attempt, Failure, str], None]


class TimeLimits:
    """The alarms of attempts. All methods are for the event loop's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, errors: ErrorText, end: End) -> None:
        self._loop = loop
        self._errors = errors
        self._end = end

    def arm(self, attempt: Attempt) -> Failure | None:
        """Set the alarms of an attempt that begins; gives why it must not, if its run's deadline has passed."""
        call = attempt.task.call
        left = call.deadline - attempt.started_at
        if not call.deadline or (call.timeout is not None and call.timeout < left):
            if call.timeout is not None:
                attempt.timer = self._loop.call_later(call.timeout, self._too_long, attempt, call.timeout)
        elif left > 0:
            attempt.timer = self._loop.call_later(left, lambda: self._end(attempt, self._late(), "final"))
        else:
            return self._late()
        if call.progress_timeout:
            attempt.heard_at = self._loop.time()
            attempt.silence = self._loop.call_later(call.progress_timeout, self._silent, attempt)
        return None

    def heard(self, attempt: Attempt) -> None:
        """The attempt has reported progress."""
        # Its alarm looks when it rings: some steps report a thousand times a second.
        attempt.heard_at = self._loop.time()

    def _silent(self, attempt: Attempt) -> None:
        seconds = attempt.task.call.progress_timeout
        at = attempt.heard_at + seconds
        if at > self._loop.time():
            attempt.silence = self._loop.call_at(at, self._silent, attempt)
        else:
            self._end(attempt, self._failure("timeout", f"the attempt reported no progress for {seconds:g} s"), "")

    def _too_long(self, attempt: Attempt, timeout: float) -> None:
        self._end(attempt, self._failure("timeout", f"the attempt took longer than {timeout:g} s"), "")

    def _late(self) -> Failure:
        return self._failure("deadline", "the run's deadline has passed")

    def _failure(self, code: str, message: str) -> Failure:
        return self._errors.failure(code, message, "TimeoutError")
