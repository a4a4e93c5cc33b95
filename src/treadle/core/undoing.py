"""Part of `apply`: the events that prepare steps for their undo, and that undo them.

A step's undo changes by `tables.UNDO` only, and changes neither the step's outcome nor what follows from it.
"""

from __future__ import annotations

from heapq import heappush

from treadle.core import events as ev
from treadle.core.compensation import AGAIN, compensable, open_compensation, row_at, rows_below
from treadle.core.counts import allowed_scope_status, allowed_status, scope_at, step_of, task, untask
from treadle.core.plan import Phases
from treadle.core.reopening import rewound_effects, rewound_rows
from treadle.core.reshaping import steps_below
from treadle.core.sparse import writable
from treadle.core.state import NodeState, RunState, ScopeState, StepState
from treadle.core.tables import NONE, OPEN, PENDING, READY, RUN, RUNNING, UNDO, UNDONE, WAITING
from treadle.core.undo import STANDING, StepUndo, Unwinding, has_effect, undo_of
from treadle.errors import InternalError

# -- the forward half ------------------------------------------------------------------------------------------------


def began(run: RunState, step: StepState) -> None:
    """A step that can be undone is dispatched for the first time."""
    run.position += 1
    step.undo = StepUndo(run.position)


def prepare_dispatched(run: RunState, event: ev.PrepareDispatched) -> None:
    """Let the first half of the step be made."""
    step = step_of(run, event.at)
    before = step.status
    status = allowed_status(step, "prepare_dispatched")
    if step.tasked or (step.undo is not None and step.undo.state):
        raise InternalError(f"step {event.at!r} is being executed or is prepared: it cannot be prepared")
    step.status = status
    if before == WAITING:
        step.ready_at = run.now
    elif before == READY:
        run.readied -= 1
    if step.undo is None:
        began(run, step)
    step.dispatched_at = run.now
    step.not_before = event.not_before
    step.asking = event.number
    task(run, step, -event.number)


def step_prepared(run: RunState, event: ev.StepPrepared) -> None:
    """Keep the undo state: all attempts of this generation have it in common."""
    step = step_of(run, event.at)
    status = allowed_status(step, "step_prepared")
    if step.tasked != event.attempt or step.undo is None or step.undo.state:
        raise InternalError(f"step {event.at!r} is not being prepared: step_prepared is not allowed")
    step.status = status
    step.undo.state = event.state
    step.worker = event.session
    untask(run, step)


# -- unwinding a scope ---------------------------------------------------------------------------------------------


def effects(
    run: RunState, below: list[StepState], *, to: str = "", only: str = "", again: bool = False
) -> list[StepState]:
    """Those of the steps below a scope whose undo an unwinding takes on (see `events.UnwindingStarted`)."""
    statuses = AGAIN if again else STANDING
    after = step_of(run, to).ended if to else 0
    return [
        step
        for step in below
        if step.undo is not None
        and step.undo.status in statuses
        and has_effect(step)
        and (step.ended > after or not step.ended)
        and (not only or step.node.address == only)
    ]


def standing_rows(
    run: RunState, scope: ScopeState, *, to: str = "", only: str = "", again: bool = False
) -> list[ScopeState]:
    """As `effects`, the rows below a scope that an unwinding compensates."""
    if not run.compensable:
        return []
    return compensable(rows_below(run, scope), after=step_of(run, to).ended if to else 0, only=only, again=again)


def how_far(run: RunState) -> str:
    """How much of what the run did is undone: `fully`, `partly`, or "" (a row that is tried again does not count)."""
    if run.root.unwound or not run.unwound:
        return run.root.unwound
    left = any(undo_of(step).status != UNDONE for step in run.steps() if has_effect(step))
    left = left or any(undo_of(row).status != UNDONE for row in rows_below(run, run.root))
    return "partly" if left else "fully"


def unwinding_started(run: RunState, event: ev.UnwindingStarted) -> None:
    """Take on the undos of what stands below the scope."""
    scope = scope_at(run, event.at)
    below = steps_below(run, scope)
    if event.rewind:
        taken, rows = rewound_effects(run, event.rewind), rewound_rows(run, event.rewind)
    else:
        taken = effects(run, below, to=event.to, only=event.only, again=event.again)
        rows = standing_rows(run, scope, to=event.to, only=event.only, again=event.again)
    if scope.unwinding is not None:
        raise InternalError(f"scope {event.at!r} is being unwound already")
    status = _run_status(run, scope, "unwinding_started")
    scope.status = _after(scope, "unwinding_started")
    run.status = status
    both: list[NodeState] = [*taken, *rows]
    for state in both:
        undo = undo_of(state)
        undo.again = undo.status not in STANDING
        undo.status = _allowed(state, "unwinding_started")
        undo.scope = scope.node.number
        undo.checking = undo.confirmed = False
        undo.failures = undo.lost = 0
        undo.failure = None
        undo.reason = ""
    if scope is run.root:
        # All that it could stop has its outcome; what compensates is not stopped by it.
        run.cancelled = run.cancelled or run.cancelling != ""
        run.cancelling = ""
    scope.unwound = ""
    scope.unwinding = Unwinding(scope, below, taken, rows, event.rewind)
    writable(run, "unwindings", run.unwindings)[scope.node.number] = scope.unwinding


def _run_status(run: RunState, scope: ScopeState, kind: str) -> str:
    if scope is scope.around:
        return _root_status(run, kind)
    if run.status != RUNNING:
        raise InternalError(f"run {run.run_id!r} is {run.status}: {kind} is not allowed below it")
    return run.status


def _root_status(run: RunState, kind: str) -> str:
    status = RUN.get((run.status, kind))
    if status is None:
        raise InternalError(f"run {run.run_id!r} is {run.status or 'not started'}: {kind} is not allowed")
    return status


def unwound(run: RunState, event: ev.Unwound) -> None:
    """The scope goes on where its unwinding had stopped it."""
    scope = scope_at(run, event.at)
    unwinding = scope.unwinding
    if unwinding is None or not unwinding.is_over:
        raise InternalError(f"scope {event.at!r} has undos that are not final, or is not being unwound")
    run.status = _run_status(run, scope, "unwound")
    scope.status = _after(scope, "unwound")
    scope.unwinding = None
    scope.unwound = "fully" if event.fully else "partly"
    del run.unwindings[scope.node.number]
    run.unwound = run.unwound or isinstance(scope.node.spec, Phases)
    heappush(run.frontier, scope.node.number)
    heappush(run.frontier, scope.around.wakes)
    if not run.unwindings:
        # The run does not settle before.
        heappush(run.frontier, 0)


def _after(scope: ScopeState, kind: str) -> str:
    """The status of a scope after an event; the root goes by the table of its run, and is open until that settles."""
    return OPEN if scope is scope.around else allowed_scope_status(scope, kind)


def unwinding_parked(run: RunState, event: ev.UnwindingParked) -> None:
    """Nothing more is undone; what runs may end."""
    run.status = _root_status(run, "unwinding_parked")
    run.hold = 0
    run.awaits.clear()
    park_all(run, hard=event.hard)


def park_all(run: RunState, *, hard: bool) -> None:
    """Let no unwinding start another undo."""
    for unwinding in run.unwindings.values():
        unwinding.parked = True
        unwinding.hard = unwinding.hard or hard


def unwinding_asked(run: RunState, event: ev.UnwindingAsked) -> None:
    """The caller waits for an answer."""
    run.asked = event.number


# -- the undo of one step, or of one row -----------------------------------------------------------------------------


def _allowed(state: NodeState, kind: str) -> str:
    undo = state.undo
    status = UNDO.get((undo.status, kind)) if undo is not None else None
    if status is None:
        shown = undo.status if undo is not None else NONE
        raise InternalError(f"the undo of {state.node.address!r} is {shown}: {kind} is not allowed")
    return status


def _subject(run: RunState, at: str) -> NodeState:
    """The step, or the row, whose undo an event is about."""
    return row_at(run, at) or step_of(run, at)


def _live(step: StepState, number: int, kind: str) -> None:
    if step.tasked != -number:
        raise InternalError(f"step {step.node.address!r} has no such attempt to undo under way: {kind} is not allowed")


def _unwinding_of(run: RunState, undo: StepUndo) -> Unwinding | None:
    return run.unwindings.get(undo.scope)


def undo_dispatched(run: RunState, event: ev.UndoDispatched) -> None:
    """Let an attempt to undo be made."""
    step = step_of(run, event.at)
    status = _allowed(step, "undo_dispatched")
    undo = undo_of(step)
    unwinding = _unwinding_of(run, undo)
    if step.tasked or unwinding is None:
        raise InternalError(f"step {event.at!r} is being executed, or its scope is not being unwound")
    if undo.status == PENDING:
        unwinding.started(step)
    undo.status = status
    undo.checking = event.check
    undo.changed_at = run.now
    step.asking = event.number
    task(run, step, -event.number)


def child_asked(run: RunState, event: ev.ChildAsked) -> None:
    """The attempt to undo is over; the undo goes on in the run that the step has called."""
    step = step_of(run, event.at)
    status = _allowed(step, "child_asked")
    _live(step, event.number, "child_asked")
    undo_of(step).status = status
    untask(run, step)
    run.asked_runs |= {step.node.number}


def undo_not_needed(run: RunState, event: ev.UndoNotNeeded) -> None:
    """The run that the step has called has left nothing to undo."""
    step = step_of(run, event.at)
    _finish(run, step, "undo_not_needed")
    undo_of(step).state = ev.NULL


def undo_confirmed(run: RunState, event: ev.UndoConfirmed) -> None:
    """The undo is safe."""
    step = step_of(run, event.at)
    status = _allowed(step, "undo_confirmed")
    _live(step, event.number, "undo_confirmed")
    undo = undo_of(step)
    undo.status = status
    undo.checking = False
    undo.confirmed = True
    untask(run, step)


def undo_attempt_failed(run: RunState, event: ev.UndoAttemptFailed) -> None:
    """An attempt to undo failed, and is made again."""
    step = step_of(run, event.at)
    status = _allowed(step, "undo_attempt_failed")
    _live(step, event.number, "undo_attempt_failed")
    undo = undo_of(step)
    undo.status = status
    undo.failures += 1
    undo.failure = event.failure
    untask(run, step)


def undo_attempt_lost(run: RunState, event: ev.UndoAttemptLost) -> None:
    """An attempt to undo was lost with its session."""
    step = step_of(run, event.at)
    status = _allowed(step, "undo_attempt_lost")
    _live(step, event.number, "undo_attempt_lost")
    undo = undo_of(step)
    undo.status = status
    undo.lost += 1
    untask(run, step)


def step_undone(run: RunState, event: ev.StepUndone) -> None:
    """What the step did is taken back."""
    step = step_of(run, event.at)
    _allowed(step, "step_undone")
    if step.node.number not in run.asked_runs:
        _live(step, event.number, "step_undone")
    _finish(run, step, "step_undone")


def compensation_opened(run: RunState, event: ev.CompensationOpened) -> None:
    """Let a row be compensated."""
    row = scope_at(run, event.at)
    status = _allowed(row, "compensation_opened")
    undo = undo_of(row)
    unwinding = _unwinding_of(run, undo)
    if unwinding is None or unwinding.row is not None or unwinding.left:
        raise InternalError(f"row {event.at!r} is in no scope that is being unwound, or it is not its turn")
    unwinding.compensation = open_compensation(run, event)
    unwinding.row = row
    undo.status = status
    undo.changed_at = run.now


def phase_compensated(run: RunState, event: ev.PhaseCompensated) -> None:
    """What the row's phase did is taken back."""
    row = scope_at(run, event.at)
    _allowed(row, "phase_compensated")
    _finish(run, row, "phase_compensated")


def undo_failed(run: RunState, event: ev.UndoFailed | ev.UndoNotCompensable) -> None:
    """What the step or the row did stands."""
    state = _subject(run, event.at)
    _finish(run, state, ev.kind_of(event))
    undo_of(state).failure = event.failure


def undo_put_off(run: RunState, event: ev.UndoSkipped | ev.UndoParked) -> None:
    """The undo is not made, or not now."""
    state = _subject(run, event.at)
    _finish(run, state, ev.kind_of(event))
    undo_of(state).reason = event.reason


def _finish(run: RunState, state: NodeState, kind: str) -> None:
    """Give an undo its final status, and end what runs of it."""
    status = _allowed(state, kind)
    undo = undo_of(state)
    before = undo.status
    undo.status = status
    undo.checking = False
    undo.changed_at = run.now
    if before not in (PENDING, RUNNING):
        return
    unwinding = _unwinding_of(run, undo)
    assert unwinding is not None
    if isinstance(state, ScopeState):
        unwinding.row_ended(state)
        return
    untask(run, state)
    run.asked_runs -= {state.node.number}
    unwinding.ended(state, before)


def undo_reopened(run: RunState, event: ev.UndoReopened) -> None:
    """Take an undo on again."""
    state = _subject(run, event.at)
    status = _allowed(state, "undo_reopened")
    undo = undo_of(state)
    unwinding = _unwinding_of(run, undo)
    if unwinding is None:
        raise InternalError(f"{event.at!r} is in no scope that is being unwound")
    undo.status = status
    undo.confirmed = False
    undo.again = True
    undo.failures = undo.lost = 0
    undo.failure = None
    undo.reason = ""
    if isinstance(state, ScopeState):
        unwinding.row_again()
    else:
        unwinding.again()
