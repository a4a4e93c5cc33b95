"""Why what is being unwound is not undone yet, and what the journal tells of an undo: of a step, a call or a row.

Part of `why`, which adds why a task waits for a worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from treadle.core import events as ev
from treadle.core.events import AnyEvent
from treadle.core.plan import Phase
from treadle.core.state import RunState, ScopeState
from treadle.core.tables import PENDING, RUNNING, UNDONE
from treadle.core.undo import UNFINISHED, Unwinding
from treadle.core.undo_attempts import undo_runs
from treadle.runtime.reasons import Reason, count

CODES: Final[dict[str, str]] = {
    "unwinding": "the run, a block or a row is being unwound: what its steps did is undone",
    "undo": "the undo of the step, or of the row, waits for others that come first, or for room",
    "undoing": "the step's undo is being executed, or follows",
    "compensating": "the row's phase is being compensated",
    "prepared": "the step's undo state was kept before it acted",
    "undo_failed": "an attempt to undo the step, or to compensate the row, failed",
    "undone": "what the step or the row did was taken back, or will not be",
}


def unwinding_reason(unwinding: Unwinding) -> Reason:
    """How far an unwinding is."""
    where = unwinding.scope.node.address or "the run"
    ends = sum(1 for step in unwinding.below if step.tasked and not undo_runs(step))
    text = f"{where} is being unwound: {count(unwinding.left, 'undo')} left of {len(unwinding.taken)}"
    if unwinding.rows:
        text += f", {count(unwinding.rows_left, 'row')} to be compensated"
    text += f", once {count(ends, 'attempt')} ended" if ends else ""
    return Reason(code="unwinding", message=text)


def row_reasons(run: RunState, row: ScopeState) -> Iterator[Reason]:
    """Why a row is not compensated yet, or what became of that."""
    undo, at, phase = row.undo, row.node.address, row.node.spec
    if undo is None or not isinstance(phase, Phase) or undo.status == "none":
        return
    by = phase.compensate
    if undo.status == PENDING:
        text = f"{by} compensates it when the undos of all steps are final, and those of the rows that ended after it"
        yield Reason(step=at, code="undo", kind="fence", message=text)
    elif undo.status == RUNNING:
        unwinding = run.unwindings[undo.scope]
        assert unwinding.compensation is not None
        scope = unwinding.compensation.node.address
        text = f"it is being compensated by {scope}; ask why that is not done"
        yield Reason(step=at, code="compensating", message=text, on=[scope])
    else:
        said = f": {undo.failure.code}: {undo.failure.message}" if undo.failure is not None else ""
        said = f" ({undo.reason})" if undo.reason else said
        word = f"it was compensated by {by}" if undo.status == UNDONE else f"its compensation is {undo.status}"
        yield Reason(step=at, code="undone", message=word + said, at=undo.changed_at or None)


def all_rows(run: RunState) -> Iterator[Reason]:
    """The reasons of all rows that wait for their compensation, or are being compensated."""
    for row in run.compensable:
        if row.undo is not None and row.undo.status in UNFINISHED:
            yield from row_reasons(run, row)


def history_of(event: AnyEvent) -> tuple[str, str] | None:
    """What an event tells of the undo of its step: a code and a text."""
    match event:
        case ev.StepPrepared():
            return "prepared", "prepared: its undo state is kept"
        case ev.UndoDispatched(check=check):
            return "undoing", "asked whether its undo is safe" if check else "an attempt to undo it was dispatched"
        case ev.ChildAsked():
            return "undoing", "the run that it called was asked to undo what it did"
        case ev.UndoAttemptFailed(failure=failure) | ev.UndoFailed(failure=failure):
            return "undo_failed", f"its undo failed: {failure.code}: {failure.message}"
        case ev.UndoNotCompensable(failure=failure):
            return "undone", f"cannot be undone: {failure.message}"
        case ev.UndoNotNeeded():
            return "undone", "the run that it called has nothing to undo"
        case ev.UndoSkipped(reason=reason) | ev.UndoParked(reason=reason):
            return "undone", f"its undo was {'skipped' if isinstance(event, ev.UndoSkipped) else 'parked'} ({reason})"
        case ev.StepUndone():
            return "undone", "undone"
        case _:
            return None
