"""apply: the only code that changes a run's state, one event at a time.

It checks every status change against `tables`, before anything has changed, and is total over the event kinds of
`events`. Folding a journal with it gives the live state; nothing is ever un-applied. Its parts are here (attempts,
steps, signals, breakpoints, scopes, the run), in `reshaping` (steps added and reopened) and in `counts`. For the most
frequent kinds `decide`, which has the steps at hand, calls what an event does to them, and no name is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from heapq import heappush
from typing import Any

from treadle.core import events as ev
from treadle.core import opened, undoing
from treadle.core.beginning import make_states
from treadle.core.counts import (
    allowed_scope_status,
    allowed_status,
    mark_ended,
    release,
    scope_at,
    settle,
    settle_success,
    step_of,
    task,
    untask,
)
from treadle.core.events import Event, Handle
from treadle.core.graph import Graph
from treadle.core.opened import settled_inside
from treadle.core.progress import GatherProgress, PhasesProgress
from treadle.core.reshaping import steps_added, steps_reopened
from treadle.core.resolve import phases_around, scope_value
from treadle.core.sparse import writable
from treadle.core.state import (
    PASSED,
    PASSED_UNBEGUN,
    RunState,
    StepState,
    WindowState,
    ready_key,
)
from treadle.core.tables import READY, RUN, SKIPPED, STEP, SUCCEEDED, WAITING
from treadle.errors import InternalError


def apply(run: RunState, event: Event) -> None:
    """Change the state by one event.

    Raises:
        InternalError: the event is not allowed in this state, which is unchanged; the run may not be decided further.
    """
    _APPLY[type(event)](run, event)


def fold(run: RunState, events: Sequence[Event], version: int, time: float) -> None:
    """Apply one journal row."""
    run.now = time
    for event in events:
        _APPLY[type(event)](run, event)
    run.version = version


def new_state(
    key: str,
    run_id: str,
    graph: Graph,
    constants: list[str],
    breakpoints: Sequence[str],
    *,
    data: Handle = "",
    data_names: Sequence[str] = (),
    dry_run: bool = False,
    deadline: float = 0.0,
    trace: str = "",
) -> RunState:
    """The state of a run before its first event."""
    run = RunState(key, run_id, graph, constants, breakpoints)
    run.data = data
    if data_names:
        run.data_names = frozenset(data_names)
    run.dry_run = dry_run
    run.deadline = deadline
    run.trace = trace
    return run


def _run_status(run: RunState, kind: str) -> str:
    status = RUN.get((run.status, kind))
    if status is None:
        raise InternalError(f"run {run.run_id!r} is {run.status or 'not started'}: {kind} is not allowed")
    return status


def _no_attempt(step: StepState, kind: str) -> InternalError:
    return InternalError(f"step {step.node.address!r} has no such attempt under way: {kind} is not allowed")


# -- the run -------------------------------------------------------------------------------------------------------


def _run_started(run: RunState, event: ev.RunStarted) -> None:
    run.status = _run_status(run, "run_started")
    run.started_at = run.now
    run.on_failure = event.on_failure or run.on_failure
    run.not_before = event.not_before
    run.depth = event.depth
    run.parent = event.parent
    if event.singleton:
        writable(run, "names", run.names)[event.singleton] = None
    if event.window is not None:
        run.window = WindowState(event.window, {event.trigger: None})
    if run.graph.dedup:
        writable(run, "dedup", run.dedup).update(run.graph.dedup)
    make_states(run)


def _run_settled(run: RunState, event: ev.RunSettled) -> None:
    kind = f"settled:{event.outcome}"
    status = _run_status(run, f"run_{kind}")
    root = run.root
    if run.unwindings:
        raise InternalError(f"run {run.run_id!r} cannot settle: it is being unwound")
    if root.unsettled:
        raise InternalError(f"run {run.run_id!r} cannot settle: {root.unsettled} of its blocks have not")
    root.status = allowed_scope_status(root, f"scope_{kind}")
    run.status = status
    run.result = event.result
    run.missing = event.missing
    run.hold = 0
    run.asked = 0
    root.unwound = event.unwound


def _paused(run: RunState, event: ev.Paused) -> None:
    run.status = _run_status(run, "paused")
    run.hold = event.hold


def _resumed(run: RunState, event: ev.Resumed) -> None:
    run.status = _run_status(run, "resumed")
    run.hold = 0


def _name_taken(run: RunState, event: ev.NameTaken) -> None:
    run.status = _run_status(run, "name_taken")
    writable(run, "names", run.names)[event.name] = None
    if event.waits:
        writable(run, "awaits", run.awaits)[event.name] = None


def _turn_came(run: RunState, event: ev.TurnCame) -> None:
    run.status = _run_status(run, "turn_came")
    run.awaits.pop(event.name, None)


def _trigger_received(run: RunState, event: ev.TriggerReceived) -> None:
    step = step_of(run, event.at)
    step.status = allowed_status(step, "trigger_received")
    if run.window is not None:
        run.window.names[event.name] = None
    # A new list: the run's head has the old one.
    run.constants = event.args if event.attempt else [*run.constants, *event.args]
    if event.attempt:
        step.attempt = step.tasked = event.attempt
        step.not_before = event.not_before


def _deadline_passed(run: RunState, event: ev.DeadlinePassed) -> None:
    run.status = _run_status(run, "deadline_passed")
    run.deadline = PASSED_UNBEGUN if run.awaits else PASSED
    # Neither its turn nor the release of a breakpoint makes it go on.
    run.awaits.clear()
    run.cancel_at = 1
    for step in run.steps() if run.labels else ():
        if step.holding and run.is_late(step.around):
            _let_go(run, step)


def _cancel_requested(run: RunState, event: ev.CancelRequested) -> None:
    run.status = _run_status(run, "cancel_requested")
    # It starts nothing any more, so it waits for nothing.
    run.awaits.clear()
    run.cancelling = "hard" if event.hard else "soft"
    run.unwind = run.unwind or event.unwind
    run.cancel_at = 1
    run.hold = 0
    undoing.park_all(run, hard=event.hard)


def _signal_received(run: RunState, event: ev.SignalReceived) -> None:
    writable(run, "signals", run.signals).setdefault(event.name, event.value)
    for number in run.signal_waiters.pop(event.name, ()):
        heappush(run.frontier, number)


def _nothing(run: RunState, event: Event) -> None:
    """Evidence for readers of the journal; the state does not change."""


# -- steps and attempts --------------------------------------------------------------------------------------------

# What the table allows for the most frequent kinds.
_DISPATCHED = {before: after for (before, kind), after in STEP.items() if kind == "step_dispatched"}
_SUCCEEDED = {before: after for (before, kind), after in STEP.items() if kind == "step_succeeded"}


def _steps_ready(run: RunState, event: ev.StepsReady) -> None:
    # Each once, by whatever name.
    steps_ready(run, dict.fromkeys([step_of(run, at) for at in event.at]))


def steps_ready(run: RunState, steps: Collection[StepState]) -> None:
    """Apply `StepsReady` to the steps that it names."""
    # One for each status that there is among them.
    for step in {step.status: step for step in steps}.values():
        allowed_status(step, "steps_ready")
    now, ready = run.now, run.ready
    for step in steps:
        step.status = READY
        step.ready_at = now
        heappush(ready, ready_key(step))
    run.readied += len(steps)


def _step_dispatched(run: RunState, event: ev.StepDispatched) -> None:
    step_dispatched(run, step_of(run, event.at), event)


def step_dispatched(run: RunState, step: StepState, event: ev.StepDispatched) -> None:
    """Apply `StepDispatched` to the step that it names."""
    before = step.status
    # Looked up here, not by `allowed_status`: this and `step_succeeded` are the hot path.
    status = _DISPATCHED.get(before)
    if status is None or step.tasked:
        allowed_status(step, "step_dispatched")
        raise _no_attempt(step, "step_dispatched")
    step.status = status
    now = run.now
    if before == WAITING:
        step.ready_at = now
    elif before == READY:
        run.readied -= 1
    step.dispatched_at = now
    if event.not_before or step.not_before:
        step.not_before = event.not_before
    step.attempt = step.tasked = event.attempt
    run.tasks += 1
    if step.node.undoable and step.undo is None:
        undoing.began(run, step)
    if event.deadline:
        writable(run, "deadlines", run.deadlines)[step.node.number] = event.deadline
    if run.calls:
        run.calls.pop(step.node.number, None)


def _child_started(run: RunState, event: ev.ChildStarted) -> None:
    step = step_of(run, event.at)
    status = allowed_status(step, "child_started")
    if not step.tasked or step.tasked != event.attempt:
        raise _no_attempt(step, "child_started")
    step.status = status
    untask(run, step)
    step.worker = event.session
    if event.worker:
        run.workers[event.session] = event.worker
    step.started_at = event.started_at
    writable(run, "calls", run.calls)[step.node.number] = event.child
    if step.undo is not None:
        step.undo.state = f'="{event.child}"'


def _step_succeeded(run: RunState, event: ev.StepSucceeded) -> None:
    step_succeeded(run, step_of(run, event.at), event)


def step_succeeded(run: RunState, step: StepState, event: ev.StepSucceeded) -> None:
    """Apply `StepSucceeded` to the step that it names."""
    status = _SUCCEEDED.get(step.status)
    if status is None or (step.tasked != event.attempt and step.node.number not in run.calls):
        allowed_status(step, "step_succeeded")
        raise _no_attempt(step, "step_succeeded")
    step.status = status
    step.result = event.result
    if step.tasked:
        step.tasked = 0
        run.tasks -= 1
        step.worker = event.session
        step.started_at = event.started_at
    else:
        # Its last attempt ended when the run that it called was made.
        run.calls.pop(step.node.number, None)
    step.finished_at = run.now
    if run.labels and "a" not in step.released and not run.is_late(step.around):
        step.holding = not run.labels.isdisjoint(step.node.step.break_after)
    if event.patch or event.items is not None:
        _hand_over(run, step, event)
    if event.worker:
        run.workers[event.session] = event.worker
    settle_success(run, step)


def _hand_over(run: RunState, step: StepState, event: ev.StepSucceeded) -> None:
    """Give what a step found to the block around: variables at the row's barrier, a gather's items at once."""
    if event.patch and (found := phases_around(run, step.node)) is not None:
        progress = found[0].block
        if isinstance(progress, PhasesProgress) and found[1] is progress.row:
            progress.patches[step.node.number] = event.patch
    if event.items is not None and isinstance(step.around.block, GatherProgress):
        step.around.block.set_items(event.items)


def _attempt_failed(run: RunState, event: ev.AttemptFailed) -> None:
    step = step_of(run, event.at)
    status = allowed_status(step, "attempt_failed")
    if step.tasked != event.attempt:
        raise _no_attempt(step, "attempt_failed")
    step.status = status
    untask(run, step)
    step.failures += 1
    step.failure = event.failure
    step.worker = event.session
    step.started_at = event.started_at
    _keep_report(run, step, event.progress)


def _keep_report(run: RunState, step: StepState, progress: str) -> None:
    """Keep what an attempt reported last, for the attempts after it."""
    if progress:
        writable(run, "reports", run.reports)[step.node.number] = progress


def _attempt_lost(run: RunState, event: ev.AttemptLost) -> None:
    step = step_of(run, event.at)
    status = allowed_status(step, "attempt_lost")
    if not step.tasked or step.tasked != event.attempt:
        raise _no_attempt(step, "attempt_lost")
    step.status = status
    untask(run, step)
    step.lost += 1
    step.worker = event.session
    _keep_report(run, step, event.progress)
    _look_again(run, step)


def _attempt_ended(run: RunState, event: ev.AttemptEnded) -> None:
    step = step_of(run, event.at)
    status = allowed_status(step, "attempt_ended")
    if not run.is_live(step):
        raise _no_attempt(step, "attempt_ended")
    step.status = status
    untask(run, step)
    run.calls.pop(step.node.number, None)
    if run.undoes:
        # It may have acted until now.
        mark_ended(run, step)
    # A row is tried again when nothing of it lives any more.
    _wake_around(run, step)


def _wake_around(run: RunState, step: StepState) -> None:
    """Let the blocks and rows around a step be looked at."""
    scope = step.around
    while scope is not scope.around:
        if scope.watches:
            heappush(run.frontier, scope.node.number)
        scope = scope.around


def _step_failed(run: RunState, event: ev.StepFailed) -> None:
    step = step_of(run, event.at)
    _end(run, step, "step_failed")
    step.failures += 1
    step.failure = event.failure
    if run.calls.pop(step.node.number, None) is None:
        untask(run, step)
        step.worker = event.session
        step.started_at = event.started_at
    _keep_report(run, step, event.progress)
    settle(run, step)


def _step_skipped(run: RunState, event: ev.StepSkipped) -> None:
    step = step_of(run, event.at)
    if step.tasked:
        raise _no_attempt(step, "step_skipped")
    _end(run, step, "step_skipped")
    step.causes = event.causes
    step.by_condition = event.by_condition
    step.removed, step.dropped = False, step.removed
    settle(run, step)


def _step_cancelled(run: RunState, event: ev.StepCancelled) -> None:
    step = step_of(run, event.at)
    _end(run, step, "step_cancelled")
    if not event.live:
        untask(run, step)
        run.calls.pop(step.node.number, None)
    _keep_report(run, step, event.progress)
    settle(run, step)


def _end(run: RunState, step: StepState, kind: str) -> None:
    """Give a step its outcome."""
    status = allowed_status(step, kind)
    if step.status == READY:
        run.readied -= 1
    step.status = status
    step.finished_at = run.now


def _evaluation_asked(run: RunState, event: ev.EvaluationAsked) -> None:
    step = step_of(run, event.at)
    status = allowed_status(step, "evaluation_asked")
    if step.tasked:
        raise _no_attempt(step, "evaluation_asked")
    step.status = status
    step.asking = event.number
    task(run, step, -event.number)


def _condition_evaluated(run: RunState, event: ev.ConditionEvaluated) -> None:
    step = step_of(run, event.at)
    step.status = allowed_status(step, "condition_evaluated")
    step.condition = event.value
    untask(run, step)
    _look_again(run, step)


def _key_evaluated(run: RunState, event: ev.KeyEvaluated) -> None:
    step = step_of(run, event.at)
    step.status = allowed_status(step, "key_evaluated")
    writable(run, "keys", run.keys)[step.node.number] = event.key
    untask(run, step)
    _look_again(run, step)


def _look_again(run: RunState, step: StepState) -> None:
    """Put a step that is not dispatched where `decide` finds it."""
    if step.status == WAITING:
        heappush(run.frontier, step.node.number)
    elif step.status == READY:
        heappush(run.ready, ready_key(step))


# -- breakpoints and scopes ----------------------------------------------------------------------------------------


def _breakpoint_reached(run: RunState, event: ev.BreakpointReached) -> None:
    step_of(run, event.at).reached += event.position[0]


def _breakpoint_released(run: RunState, event: ev.BreakpointReleased) -> None:
    before = [step_of(run, at) for at in event.before]
    after = [step_of(run, at) for at in event.after]
    for step in before:
        step.released += "b"
        heappush(run.frontier, step.node.number)
    for step in after:
        step.released += "a"
        if step.holding:
            _let_go(run, step)


def _let_go(run: RunState, step: StepState) -> None:
    """Let go on what waits for a step that a breakpoint after it holds."""
    step.holding = False
    release(run, step)
    _wake_around(run, step)


def _scope_opened(run: RunState, event: ev.ScopeOpened) -> None:
    scope = scope_at(run, event.at)
    status = allowed_scope_status(scope, "scope_opened")
    if not scope.gated:
        raise InternalError(f"scope {event.at!r} is open already")
    scope.status = status
    scope.gated = False
    for state in run.content(scope):
        state.waiting -= 1
        if state.waiting == 0:
            heappush(run.frontier, state.node.number)
    if scope.unsettled == 0:
        heappush(run.frontier, scope.node.number)


def _scope_settled(run: RunState, event: ev.ScopeSettled) -> None:
    scope = scope_at(run, event.at)
    status = allowed_scope_status(scope, f"scope_settled:{event.outcome}")
    if scope.unsettled or scope is run.root:
        raise InternalError(f"scope {event.at!r} cannot settle: {scope.unsettled} of its blocks have not")
    scope.status = status
    scope.causes = event.causes
    scope.by_condition = event.by_condition
    scope.failure = event.failure
    if event.outcome == SKIPPED:
        scope.removed, scope.dropped = False, scope.removed
    elif event.outcome == SUCCEEDED:
        scope.result = scope_value(run, scope)
    settled_inside(run, scope)
    settle(run, scope)


_APPLY: dict[type, Callable[[RunState, Any], None]] = {
    ev.RunStarted: _run_started,
    ev.StepsAdded: steps_added,
    ev.StepsReady: _steps_ready,
    ev.StepDispatched: _step_dispatched,
    ev.PrepareDispatched: undoing.prepare_dispatched,
    ev.StepPrepared: undoing.step_prepared,
    ev.ChildStarted: _child_started,
    ev.StepSucceeded: _step_succeeded,
    ev.AttemptFailed: _attempt_failed,
    ev.AttemptLost: _attempt_lost,
    ev.AttemptEnded: _attempt_ended,
    ev.StepFailed: _step_failed,
    ev.StepSkipped: _step_skipped,
    ev.StepCancelled: _step_cancelled,
    ev.EvaluationAsked: _evaluation_asked,
    ev.ConditionEvaluated: _condition_evaluated,
    ev.KeyEvaluated: _key_evaluated,
    ev.SignalReceived: _signal_received,
    ev.BreakpointReached: _breakpoint_reached,
    ev.BreakpointReleased: _breakpoint_released,
    ev.Paused: _paused,
    ev.Resumed: _resumed,
    ev.NameTaken: _name_taken,
    ev.TurnCame: _turn_came,
    ev.TriggerReceived: _trigger_received,
    ev.DeadlinePassed: _deadline_passed,
    ev.CancelRequested: _cancel_requested,
    ev.StepsReopened: steps_reopened,
    ev.ScopeOpened: _scope_opened,
    ev.ScopeSettled: _scope_settled,
    ev.ScopeStopped: opened.scope_stopped,
    ev.ScopeAsked: opened.scope_asked,
    ev.RowOpened: opened.row_opened,
    ev.DecisionMade: opened.decision_made,
    ev.IterationsOpened: opened.iterations_opened,
    ev.IterationsSettled: opened.iterations_settled,
    ev.BranchChosen: opened.branch_chosen,
    ev.RunSettled: _run_settled,
    ev.UnwindingStarted: undoing.unwinding_started,
    ev.UndoDispatched: undoing.undo_dispatched,
    ev.ChildAsked: undoing.child_asked,
    ev.UndoConfirmed: undoing.undo_confirmed,
    ev.UndoAttemptFailed: undoing.undo_attempt_failed,
    ev.UndoAttemptLost: undoing.undo_attempt_lost,
    ev.StepUndone: undoing.step_undone,
    ev.UndoFailed: undoing.undo_failed,
    ev.UndoNotCompensable: undoing.undo_failed,
    ev.UndoNotNeeded: undoing.undo_not_needed,
    ev.CompensationOpened: undoing.compensation_opened,
    ev.PhaseCompensated: undoing.phase_compensated,
    ev.UndoSkipped: undoing.undo_put_off,
    ev.UndoParked: undoing.undo_put_off,
    ev.UndoReopened: undoing.undo_reopened,
    ev.UnwindingAsked: undoing.unwinding_asked,
    ev.UnwindingParked: undoing.unwinding_parked,
    ev.Unwound: undoing.unwound,
    ev.InputRefused: _nothing,
    ev.InputAccepted: _nothing,
}
