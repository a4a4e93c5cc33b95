"""The failures of a run as its snapshot has them: of steps, and of scopes that failed by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from treadle.core.state import RunState, StepState
from treadle.core.tables import FAILED
from treadle.runtime.scopes import fails_run


class FailureView(msgspec.Struct, frozen=True, kw_only=True):
    """A step that failed for good, or a scope that failed by itself (attempt 0). `detail` is the full text's handle.

    `optional`: it does not fail the run, by its own option or by what became of the scopes around it.
    """

    address: str
    code: str
    message: str
    type: str
    detail: str
    attempt: int
    optional: bool
    finished_at: float | None


def failures_of(run: RunState, roots: Sequence[str], finished: Mapping[str, float]) -> list[FailureView]:
    """What failed for good: first `roots`, in their order; `finished` says when scopes ended."""
    found: list[FailureView] = []
    for state in run.states:
        if state.status != FAILED or state.removed or state.failure is None:
            continue
        at, failure = state.node.address, state.failure
        attempt, finished_at = 0, finished.get(at)
        if isinstance(state, StepState):
            attempt, finished_at = state.attempt, state.finished_at or None
        found.append(
            FailureView(
                address=at,
                code=failure.code,
                message=failure.message,
                type=failure.type,
                detail=failure.detail,
                attempt=attempt,
                optional=not fails_run(state),
                finished_at=finished_at,
            )
        )
    place = {at: position for position, at in enumerate(roots)}
    found.sort(key=lambda view: (view.optional, place.get(view.address, len(place)), view.finished_at or 0.0))
    return found
