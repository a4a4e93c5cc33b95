"""Unwinding: what the steps of a scope have done is undone, as durable work like the steps themselves.

A scope is unwound by `begin_unwinding`: the root when a run fails under `on_failure="unwind"`, when a cancel asks for
it, and by an operator for a run that has its outcome; a Phases block that fails, unless its run says `stop`; a row
before it is tried again. What still runs below is interrupted and waited for. Then undos start in the order of
`undo.UndoOrder`, as tasks of their steps (`undo_attempts`); one that fails is reported and holds back nothing. When all
are final, rows are compensated (`compensating`), and when that is done, `unwound` puts the scope on the frontier, where
whoever began the unwinding finds `scope.unwinding` None and goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.children import child_key
from treadle.core.commands import Refusal
from treadle.core.compensating import compensate, stop
from treadle.core.compensation import row_at, rows_below
from treadle.core.decision import Decision, Limits
from treadle.core.progress import GatherProgress
from treadle.core.reopening import rewind
from treadle.core.reshaping import steps_below
from treadle.core.state import PASSED_UNBEGUN, NodeState, RunState, ScopeState, StepState, settled
from treadle.core.tables import FAILED, OUTCOMES, PENDING, RUNNING, UNDO, UNDONE, UNWINDING
from treadle.core.undo import Unwinding, has_effect, undo_of
from treadle.core.undo_attempts import dispatch_undo, end_undo, undo_runs
from treadle.core.undoing import effects, standing_rows

# What an operator says of an undo -> the event it leads to.
_VERBS = {"retry": "undo_reopened", "skip": "undo_skipped", "park": "undo_parked"}


# -- a scope ---------------------------------------------------------------------------------------------------------


def begin_unwinding(run: RunState, decision: Decision, scope: ScopeState, *, reason: str = "", cause: str = "") -> bool:
    """Undo all that stands below a scope; False if nothing does: there is nothing to wait for.

    Steps below that have no outcome are cancelled, and attempts that run are interrupted and waited for. When it is
    done, `scope.unwinding` is None, `scope.unwound` tells how much was undone (`fully` or `partly`), and the scope is
    on the frontier. What one unwinding has dealt with is not taken on by the next, but for what it parked.

    Nothing is unwound in a detached cell that outlives its run: an operator may undo the run then.
    """
    if scope is not run.root and run.status != RUNNING:
        return False
    if run.deadline == PASSED_UNBEGUN:
        # Only rows without any work can have succeeded, and others have their turn.
        return False
    if not effects(run, steps_below(run, scope)) and not standing_rows(run, scope):
        return False
    decision.record(run, ev.UnwindingStarted(at=scope.node.address, reason=reason, cause=cause))
    return True


def must_unwind(run: RunState, outcome: str) -> bool:
    """Whether a run that is to settle with this outcome is unwound first."""
    if run.status != RUNNING or not run.undoes:
        return False
    return run.unwind if run.cancelling else outcome == FAILED and run.on_failure == "unwind"


def unwind_block(run: RunState, decision: Decision, scope: ScopeState) -> bool:
    """Undo what a Phases block did that is to fail; False if nothing has to be waited for.

    Not if its run says `stop`, and not if its run fails with it and is unwound as a whole, in one order.
    """
    if not run.undoes or scope.unwound or run.cancelling or scope.stopping or run.on_failure == "stop":
        return False
    if run.on_failure == "unwind" and _fails_run(run, scope):
        return False
    return begin_unwinding(run, decision, scope, reason=FAILED)


def _fails_run(run: RunState, scope: ScopeState) -> bool:
    while scope is not run.root:
        around = scope.around
        tolerated = isinstance(around.block, GatherProgress) and around.block.first
        # Detached cells, and what was left behind, lie apart.
        if scope.node.optional or around is scope or tolerated:
            return False
        scope = around
    return True


def undo_stack(run: RunState, to: str = "") -> list[NodeState]:
    """What stands and would be undone now, in that order: steps, the last ended first, and then rows likewise.

    With `to`, only what ended after that step. Which of the steps may be undone together see `undo.UndoOrder`.
    """
    steps = sorted(effects(run, run.steps(), to=to), key=lambda step: -step.ended)
    return [*steps, *sorted(standing_rows(run, run.root, to=to), key=lambda row: -row.ended)]


def unwind(run: RunState, decision: Decision, limits: Limits, bound: int) -> None:
    """Go on with all unwindings, as far as the decision has room."""
    for unwinding in list(run.unwindings.values()):
        if not _is_quiet(run, decision, unwinding, bound):
            continue
        if unwinding.parked:
            _park_pending(run, decision, unwinding, bound)
        else:
            _start_undos(run, decision, unwinding, limits, bound)
        if unwinding.rows_left:
            compensate(run, decision, unwinding, bound)
        if unwinding.is_over and len(decision.events) < bound:
            _finish(run, decision, unwinding)


def _is_quiet(run: RunState, decision: Decision, unwinding: Unwinding, bound: int) -> bool:
    """Cancel what has no outcome yet below, and tell whether no attempt runs there any more."""
    below, live = unwinding.below, unwinding.live
    while unwinding.looked < len(below):
        if len(decision.events) >= bound:
            return False
        step = below[unwinding.looked]
        unwinding.looked += 1
        if step.undo is not None and step.undo.status == RUNNING:
            continue
        if run.is_live(step):
            live.append(step)
            _interrupt(run, decision, step)
        if not settled(step):
            decision.settle(run, step, ev.StepCancelled(at=step.node.address, live=run.is_live(step)))
    # One that has ended since may have a task again: that of its undo.
    while live and (not run.is_live(live[-1]) or undo_runs(live[-1])):
        live.pop()
    return not live


def _interrupt(run: RunState, decision: Decision, step: StepState) -> None:
    """End what a worker executes of a step, or the run that the step has called."""
    if step.tasked:
        decision.interrupts += (step.node.number,)
    else:
        decision.posts += ((run.calls[step.node.number], inp.Cancel(hard=True)),)


def _start_undos(run: RunState, decision: Decision, unwinding: Unwinding, limits: Limits, bound: int) -> None:
    most = run.graph.plan.undo_limit or limits.dispatched
    while unwinding.running < most and run.tasks < limits.dispatched and len(decision.events) < bound:
        step = unwinding.first()
        if step is None:
            return
        dispatch_undo(run, decision, step, 0.0)


def _park_pending(run: RunState, decision: Decision, unwinding: Unwinding, bound: int) -> None:
    while unwinding.parked_to < len(unwinding.taken) and len(decision.events) < bound:
        step = unwinding.taken[unwinding.parked_to]
        unwinding.parked_to += 1
        if undo_of(step).status == PENDING:
            end_undo(run, decision, step, ev.UndoParked(at=step.node.address, reason="cancel"))
    while len(decision.events) < bound and (row := unwinding.first_row()) is not None:
        decision.record(run, ev.UndoParked(at=row.node.address, reason="cancel"))


def _finish(run: RunState, decision: Decision, unwinding: Unwinding) -> None:
    scope = unwinding.scope
    stood: list[NodeState] = [step for step in unwinding.below if has_effect(step)]
    stood += rows_below(run, scope)
    fully = all(undo_of(state).status == UNDONE for state in stood)
    taken: list[NodeState] = [step for step in unwinding.taken if has_effect(step)]
    taken += unwinding.rows
    reopened = unwinding.rewind and all(undo_of(state).status == UNDONE for state in taken)
    decision.record(run, ev.Unwound(at=scope.node.address, fully=fully))
    if reopened:
        found = rewind(run, unwinding.rewind, "", keep=True)
        for event in [] if isinstance(found, Refusal) else found:
            decision.record(run, event)
            decision.note_reopened(run, event)


# -- the run that has called this one ------------------------------------------------------------------------------


def asked_events(run: RunState, value: inp.Unwind, cause: str) -> list[ev.AnyEvent]:
    """What follows when the caller asks this run to undo what it did; nothing, if that can be answered at once."""
    asked = ev.UnwindingAsked(number=value.number, cause=cause)
    if run.status == UNWINDING:
        return [asked]
    if run.status not in OUTCOMES:
        # Somebody has reopened it, and may have cancelled it since.
        ends = run.cancelling == "hard" and run.unwind
        return [asked] if ends else [asked, ev.CancelRequested(hard=True, unwind=True, cause=cause)]
    again = value.again
    if effects(run, run.steps(), again=again) or standing_rows(run, run.root, again=again):
        return [asked, ev.UnwindingStarted(reason="caller", again=again, cause=cause)]
    return []


# -- operators -------------------------------------------------------------------------------------------------------


def undo_run(run: RunState, decision: Decision, value: inp.Undo, cause: str) -> Refusal | None:
    """Undo what a run that has its outcome has done, or what of it ended after a step."""
    if run.status not in OUTCOMES:
        text = f"run {run.run_id!r} is {run.status}; only a settled run is undone (cancel it, with unwind)"
        return Refusal("run_not_settled", text, run.status)
    if value.to:
        step = run.step_at(value.to)
        if step is None:
            return Refusal("step_not_found", f"run {run.run_id!r} has no step {value.to!r}")
    if effects(run, run.steps(), to=value.to) or standing_rows(run, run.root, to=value.to):
        decision.record(run, ev.UnwindingStarted(reason="operator", to=value.to, cause=cause))
    return None


def undo_step(run: RunState, decision: Decision, value: inp.UndoStep, cause: str) -> Refusal | None:
    """Retry, skip or park the undo of a step or of a row; a retry without an address is of all that did not undo."""
    if run.status not in OUTCOMES and not run.unwindings:
        text = f"run {run.run_id!r} is {run.status}; undos are steered while it unwinds, or once it has its outcome"
        return Refusal("run_not_settled", text, run.status)
    found = _steered(run, value)
    if isinstance(found, Refusal):
        return found
    if value.verb != "retry":
        _put_off(run, decision, found[0], value.verb, cause)
    elif run.unwindings:
        for state in found:
            decision.record(run, ev.UndoReopened(at=state.node.address, cause=cause))
    else:
        decision.record(run, ev.UnwindingStarted(reason="operator", only=value.at, again=True, cause=cause))
    return None


def _steered(run: RunState, value: inp.UndoStep) -> Sequence[NodeState] | Refusal:
    """The steps and rows that an operator means, or why there are none."""
    if not value.at:
        known: list[NodeState] = [*run.steps(), *run.compensable] if value.verb == "retry" else []
        if found := [state for state in known if _may(run, state, value.verb)]:
            return found
        if value.verb == "retry":
            return Refusal("not_applicable", f"run {run.run_id!r} has no undo to retry")
        return Refusal("usage", f"run {run.run_id!r} has many undos; name the step to {value.verb}")
    state = run.step_at(value.at) or row_at(run, value.at)
    if state is None:
        text = f"run {run.run_id!r} has no step {value.at!r}, and no row of that name that could be compensated"
        return Refusal("step_not_found", text)
    if not _may(run, state, value.verb):
        shown = state.undo.status if state.undo is not None else "none"
        return Refusal("not_applicable", f"the undo of {value.at!r} is {shown}; there is nothing to {value.verb}")
    return [state]


def _may(run: RunState, state: NodeState, verb: str) -> bool:
    undo = state.undo
    if undo is None or (undo.status, _VERBS[verb]) not in UNDO:
        return False
    # What an unwinding that is over has left is steered when the run has its outcome.
    return not run.unwindings or undo.scope in run.unwindings


def _put_off(run: RunState, decision: Decision, state: NodeState, verb: str, cause: str) -> None:
    if isinstance(state, ScopeState):
        _put_off_row(run, decision, state, verb, cause)
        return
    step = state
    at, number = step.node.address, step.node.number
    if step.tasked:
        # Its task goes, whoever holds it; what that attempt reports is not heard any more.
        decision.end(number)
        decision.interrupts += (number,)
    elif number in run.asked_runs:
        decision.posts += ((child_key(run.key, at, step.generation), inp.Cancel(hard=True)),)
    if verb == "skip":
        end_undo(run, decision, step, ev.UndoSkipped(at=at, reason="operator", cause=cause))
    else:
        end_undo(run, decision, step, ev.UndoParked(at=at, reason="operator", cause=cause))


def _put_off_row(run: RunState, decision: Decision, row: ScopeState, verb: str, cause: str) -> None:
    at, undo = row.node.address, undo_of(row)
    if undo.status == RUNNING:
        # What its compensating phase has under way ends first.
        scope = run.unwindings[undo.scope].compensation
        assert scope is not None
        stop(run, decision, scope, "skipped" if verb == "skip" else "parked")
    elif verb == "skip":
        decision.record(run, ev.UndoSkipped(at=at, reason="operator", cause=cause))
    else:
        decision.record(run, ev.UndoParked(at=at, reason="operator", cause=cause))
