"""Calls: what a step that calls a workflow does, from the making of its child run to the child's end.

The step's task makes the child, in a transaction that also ends the task and puts `ChildStarted` into the parent's
inbox. From then on the step is dispatched without a task. When the child settles, `ChildEnded` goes into the parent's
inbox in the transaction of the child's own last append. So neither is lost, and each is decided once.

A child is known by its key, which is derived from the parent's key, the step's address and its generation: making it
twice makes one. A result that is too large to travel in the inbox is fetched by another attempt of the step, which
finds the child settled.

Cancel, pause and resume of the parent are inputs for its children's inboxes, written with the parent's decision. After
a cancel no child is made any more: the store refuses the append that would end a task of a revoked run. A detached
child (`wait=False`) is left alone once it was made.

To undo the step is to let its child undo what that did. A task asks it (`inputs.Unwind`); the child answers when it has
its outcome again (`inputs.ChildUnwound`), and that is the end of the step's undo. A child that goes on, since somebody
has reopened it, is cancelled first. Where there is no child, none was made, or somebody has deleted it.
"""

from __future__ import annotations

import msgspec

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.advance import reach
from treadle.core.children import child_key
from treadle.core.commands import Refusal
from treadle.core.decision import Decision
from treadle.core.dispatching import dispatch
from treadle.core.events import NULL, Handle
from treadle.core.placement import new_worker
from treadle.core.state import RunState, StepState
from treadle.core.tables import CANCELLED, DISPATCHED, NONE, NOT_COMPENSABLE, OUTCOMES, PENDING, SUCCEEDED
from treadle.core.undo_attempts import end_undo, undo_runs

_encode = msgspec.json.Encoder().encode


def _caller(run: RunState, at: str, child: str) -> StepState | None:
    """The step that calls this very child in its present generation."""
    step = run.step_at(at)
    return step if step is not None and child_key(run.key, at, step.generation) == child else None


def child_started(run: RunState, decision: Decision, value: inp.ChildStarted, cause: str) -> Refusal | None:
    """The child of a step was made, or was found running."""
    step = _caller(run, value.at, value.child)
    if step is not None and value.attempt not in (0, step.tasked):
        # The child's end came before this report, and another attempt fetches its result.
        return None
    if step is None or step.status in OUTCOMES:
        # An attempt of its undo has a number below 0, and is another matter.
        if step is not None and step.tasked > 0:
            ended = ev.AttemptEnded(at=value.at, attempt=step.tasked, outcome="succeeded", session=value.session)
            decision.end(step.node.number)
            decision.record(run, msgspec.structs.replace(ended, cause=cause))
        if not value.detached and (step is None or step.status != SUCCEEDED):
            # The step was cancelled, or rewound, while its child was being made.
            decision.posts += ((value.child, inp.Cancel(hard=True)),)
        return None
    if step.status != DISPATCHED or not step.tasked:
        return None
    _start(run, decision, step, value, cause)
    if value.detached:
        _succeed(run, decision, step, f"={_encode(value.id).decode()}", cause)
    elif run.cancelling:
        decision.posts += ((value.child, inp.Cancel(hard=run.cancelling == "hard")),)
    elif run.hold:
        decision.posts += ((value.child, inp.Pause()),)
    return None


def _start(run: RunState, decision: Decision, step: StepState, value: inp.ChildStarted, cause: str) -> None:
    """Note that the child runs; the task that made it is over."""
    decision.end(step.node.number)
    started = ev.ChildStarted(
        at=step.node.address,
        attempt=step.tasked,
        child=value.child,
        id=value.id,
        session=value.session,
        token=value.lease,
        started_at=value.started_at,
        worker=new_worker(run, value.session, value.worker),
        cause=cause,
    )
    decision.record(run, started)


def child_ended(run: RunState, decision: Decision, value: inp.ChildEnded, cause: str) -> Refusal | None:
    """The child of a step has its outcome."""
    step = _caller(run, value.at, value.child)
    if step is None:
        return None
    waits = step.status == DISPATCHED and step.spec.child is not None and not step.spec.child.detached
    if waits and step.tasked:
        # A retry has reopened the child, whose end was quicker than the report of the attempt that asked for it. An end
        # that is told twice looks the same, and costs an attempt.
        _start(run, decision, step, inp.ChildStarted(at=value.at, child=value.child, id=""), cause)
    undo = step.undo
    nothing = not value.undoes and undo is not None and undo.status in (NONE, PENDING) and undo.state != NULL
    # While an attempt lives that may still make or reopen the child, it is not known what there will be to undo.
    if nothing and not step.tasked:
        end_undo(run, decision, step, ev.UndoNotNeeded(at=value.at))
    if step.status in OUTCOMES:
        if step.node.number in run.calls:
            # It was cancelled without waiting for its child.
            event = ev.AttemptEnded(at=value.at, attempt=step.attempt, outcome=value.outcome, cause=cause)
            decision.record(run, event)
        return None
    if not waits:
        return None
    if value.failure is None and value.result:
        _succeed(run, decision, step, value.result, cause)
    elif run.cancelling and (value.failure is None or value.outcome == CANCELLED):
        decision.settle(run, step, ev.StepCancelled(at=value.at, cause=cause))
    elif value.failure is not None:
        failed = ev.StepFailed(at=value.at, attempt=step.attempt, failure=value.failure, cause=cause)
        decision.settle(run, step, failed)
    else:
        dispatch(run, decision, step, 0.0)
    return None


def _succeed(run: RunState, decision: Decision, step: StepState, result: Handle, cause: str) -> None:
    event = ev.StepSucceeded(at=step.node.address, attempt=step.attempt, result=result, cause=cause)
    decision.settle(run, step, event)
    if step.holding:
        reach(run, decision, step, "after", step.spec.break_after)


def child_asked(run: RunState, decision: Decision, value: inp.ChildAsked, cause: str) -> Refusal | None:
    """The child of a step was asked to undo what it did; the task that asked is over."""
    step = _caller(run, value.at, value.child)
    if step is None or not undo_runs(step) or step.tasked != value.attempt:
        # The child's answer was quicker than this report.
        return None
    decision.end(step.node.number)
    decision.record(run, ev.ChildAsked(at=value.at, number=-value.attempt, session=value.session, cause=cause))
    if _is_parked(run, step):
        decision.posts += ((value.child, inp.Cancel()),)
    elif run.hold:
        decision.posts += ((value.child, inp.Pause()),)
    return None


def child_unwound(run: RunState, decision: Decision, value: inp.ChildUnwound, cause: str) -> Refusal | None:
    """The child of a step says how much of what it did is undone."""
    step = _caller(run, value.at, value.child)
    if step is None or not undo_runs(step) or step.asking != value.number:
        return None
    if step.tasked:
        decision.end(step.node.number)
    end_undo(run, decision, step, _end_of_undo(run, step, value, cause))
    return None


def _end_of_undo(run: RunState, step: StepState, value: inp.ChildUnwound, cause: str) -> ev.AnyEvent:
    at, failure = value.at, value.failure
    if value.unwound == "fully":
        return ev.StepUndone(at=at, number=value.number, cause=cause)
    if failure is None:
        return ev.UndoNotNeeded(at=at, cause=cause)
    if failure.code == NOT_COMPENSABLE:
        return ev.UndoNotCompensable(at=at, failure=failure, cause=cause)
    if _is_parked(run, step):
        return ev.UndoParked(at=at, reason="cancel", cause=cause)
    return ev.UndoFailed(at=at, failure=failure, cause=cause)


def _is_parked(run: RunState, step: StepState) -> bool:
    return step.undo is not None and run.unwindings[step.undo.scope].parked


def tell_children(run: RunState, decision: Decision, event: ev.AnyEvent) -> None:
    """Pass a cancel, a pause or a resume on to the children that the run waits for, or has asked to undo their work."""
    value: inp.AnyInput
    match event:
        case ev.CancelRequested() | ev.UnwindingParked():
            value = inp.Cancel(hard=event.hard)
        case ev.Paused():
            value = inp.Pause()
        case ev.Resumed():
            value = inp.Resume()
        case _:
            return
    # While the run unwinds, the children that it waits for are those of compensating phases, and cancelled ones.
    decision.posts += tuple([(child, value) for child in run.calls.values()])
    decision.posts += tuple([(asked_child(run, number), value) for number in sorted(run.asked_runs)])


def asked_child(run: RunState, number: int) -> str:
    """The run that a step has called and that was asked to undo what it did."""
    step = run.step(number)
    assert step is not None
    return child_key(run.key, step.node.address, step.generation)
