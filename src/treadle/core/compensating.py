"""Compensating phases: what is done for the rows that an unwinding takes on, once all undos of steps are final.

They are executed one after the other, for the row that succeeded last first. One that fails is reported and holds back
nothing; it is made once, and again when an operator says so. A cancel of the unwinding stops the one that is executed.
"""

from __future__ import annotations

from treadle.core import events as ev
from treadle.core.decision import Decision
from treadle.core.events import Failure
from treadle.core.opened import CANCELLING
from treadle.core.plan import Phase
from treadle.core.progress import PhasesProgress
from treadle.core.state import RunState, ScopeState, StepState, settled
from treadle.core.tables import CANCELLED, FAILED, PARKED, SKIPPED, SUCCEEDED
from treadle.core.undo import Unwinding
from treadle.core.undo_attempts import NOT_COMPENSABLE

# A failure names at most so many characters of what it was caused by.
_MAX_MESSAGE = 1000


def compensate(run: RunState, decision: Decision, unwinding: Unwinding, bound: int) -> None:
    """Go on with the rows of an unwinding, as far as the decision has room."""
    while len(decision.events) < bound:
        if unwinding.row is not None:
            if not _conclude(run, decision, unwinding, unwinding.row):
                return
            continue
        row = None if unwinding.parked or unwinding.left else unwinding.first_row()
        if row is None:
            return
        phase, progress = row.node.spec, row.around.block
        assert isinstance(phase, Phase)
        assert isinstance(progress, PhasesProgress)
        entry = progress.entries.get(phase.compensate, 0) + 1
        decision.record(run, ev.CompensationOpened(at=row.node.address, phase=phase.compensate, entry=entry))


def _conclude(run: RunState, decision: Decision, unwinding: Unwinding, row: ScopeState) -> bool:
    """Give the undo of a row its final status, if its compensating phase has come to its end."""
    scope = unwinding.compensation
    assert scope is not None
    if not settled(scope):
        if unwinding.parked:
            stop(run, decision, scope, CANCELLED if unwinding.hard else CANCELLING)
        return False
    if run.is_busy(scope):
        return False
    decision.record(run, _end_of(run, row, scope))
    return True


def stop(run: RunState, decision: Decision, scope: ScopeState, reason: str) -> None:
    """Cancel what lives of a compensating phase, unless it is cancelled already."""
    if not scope.stopping or (scope.stopping == CANCELLING and reason != CANCELLING):
        decision.record(run, ev.ScopeStopped(at=scope.node.address, reason=reason))


def _end_of(run: RunState, row: ScopeState, scope: ScopeState) -> ev.AnyEvent:
    at = row.node.address
    if scope.status == SUCCEEDED:
        return ev.PhaseCompensated(at=at)
    if scope.stopping == SKIPPED:
        return ev.UndoSkipped(at=at, reason="operator")
    if scope.status != FAILED:
        return ev.UndoParked(at=at, reason="operator" if scope.stopping == PARKED else "cancel")
    failure = _failure_of(run, scope)
    if failure.code == NOT_COMPENSABLE:
        return ev.UndoNotCompensable(at=at, failure=failure)
    return ev.UndoFailed(at=at, failure=failure)


def _failure_of(run: RunState, scope: ScopeState) -> Failure:
    """Why a compensating phase failed: what failed first in it."""
    inner: ScopeState | StepState = scope
    while isinstance(inner, ScopeState) and inner.failure is None and inner.bad:
        inner = run.states[next(iter(inner.bad))]
    cause = inner.failure or Failure(code=inner.status)
    text = f"{inner.node.address}: {cause.message}" if cause.message else inner.node.address
    return Failure(code=cause.code, message=text[:_MAX_MESSAGE], type=cause.type, detail=cause.detail)
