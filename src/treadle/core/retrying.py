"""When a failed attempt is tried again, and whether it is."""

from __future__ import annotations

from zlib import crc32

from treadle.core.events import Failure
from treadle.core.plan import RetryPolicy
from treadle.core.state import RunState, StepState

DEFAULT_RETRY = RetryPolicy()
# No start is put off further than this (about a century): JSON has no infinity.
LONGEST_DELAY = 3.2e9


def may_retry(policy: RetryPolicy, failures: int, failure: Failure) -> bool:
    """Whether the policy allows another attempt after this failure; `failures` are those before it."""
    return failure.code not in policy.never and (policy.attempts == 0 or failures + 1 < policy.attempts)


def fraction_of(run: RunState, step: StepState, attempt: int) -> float:
    """A fixed fraction for the jitter of an attempt: the core draws no random numbers."""
    text = f"{run.key}/{step.node.address}/{step.generation}/{attempt}"
    return crc32(text.encode()) / 0xFFFFFFFF


def due_at(since: float, delay: float) -> float:
    """When a delay is over; 0 for none, and for what is no number."""
    return since + min(delay, LONGEST_DELAY) if delay > 0 else 0.0
