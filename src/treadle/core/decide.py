"""decide: what follows from an input. Pure, bounded, and the only source of events.

    decide(run, inputs, now=..., limits=...) -> Decision(events, tasks, ...)

It advances the run in place: it records an event, applies it, and goes on, so every prefix of its events is a
legal state. It never calls user code and never reads a clock. Equal run, inputs, `now` and limits give equal
decisions, whether the run is live or was folded from its journal.

The order of work: first each input by its handler (`attempts`, `operators`), then `advance` looks at the frontier,
the nodes that may have become decidable, until it is empty or the decision is full; then `Decision.more` is set,
and the caller commits and decides again with no input.

An input that comes twice changes nothing the second time. One that came through the inbox leaves an event in any
case, so that the journal tells what became of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.advance import advance, causes_of, root_causes, withdraw
from treadle.core.attempts import add_steps, lost, outcome, revoked
from treadle.core.calls import child_asked, child_ended, child_started, child_unwound, tell_children
from treadle.core.children import answer_caller
from treadle.core.commands import Refusal
from treadle.core.deadlines import pass_deadline
from treadle.core.decision import Decision, Limits
from treadle.core.dispatching import task_of
from treadle.core.operators import operator_events
from treadle.core.retrying import DEFAULT_RETRY
from treadle.core.singletons import (
    Enters,
    enter,
    is_closed,
    leave_when_closed,
    take_name,
    turn_came,
    wait_again,
)
from treadle.core.state import RunState
from treadle.core.undo_attempts import undo_runs
from treadle.core.unwinding import asked_events, undo_run, undo_step
from treadle.core.windows import is_open, leave_when_open, trigger, window_names

# What is said of a run of which there is nothing to say.
_STARTED = ev.RunStarted()


def start(
    run: RunState, *, now: float, limits: Limits, started: ev.RunStarted = _STARTED, enters: Enters = "take"
) -> Decision:
    """The first decision of a new run. `enters` is how it enters the line of its singleton, if it is one."""
    decision = Decision()
    run.now = now
    decision.record(run, started)
    if started.singleton:
        enter(run, decision, started.singleton, enters)
    if started.window is not None:
        decision.names += window_names(started.window.name, started.trigger)
    advance(run, decision, limits)
    if run.names:
        leave_when_closed(run, decision)
    if run.window is not None:
        # A deadline may have closed it before it was open.
        leave_when_open(run, decision)
    return decision


def decide(run: RunState, inputs: Iterable[tuple[inp.AnyInput, str]], *, now: float, limits: Limits) -> Decision:
    """Decide inputs, each with its inbox id ("" for one that did not come through the inbox)."""
    decision = Decision(was=run.status)
    # Journal time never runs backwards.
    run.now = max(run.now, now)
    events = decision.events
    was_closed = bool(run.names) and is_closed(run)
    was_open = run.window is not None and is_open(run)
    if run.deadline:
        pass_deadline(run, decision)
    for position, (value, cause) in enumerate(inputs):
        begin = len(events)
        refusal = _HANDLERS[type(value)](run, decision, value, cause)
        if refusal is not None or cause:
            _say(run, decision, refusal, cause, led=len(events) > begin)
        if type(value) is not inp.Outcome:
            decision.note(position, begin, refusal)
    if was_closed:
        was_closed = wait_again(run, decision)
    advance(run, decision, limits)
    if run.names or was_open:
        _leave(run, decision, was_closed=was_closed, was_open=was_open)
    return decision


def _say(run: RunState, decision: Decision, refusal: Refusal | None, cause: str, *, led: bool) -> None:
    """Record what became of an input from the inbox that led to no event."""
    if refusal is not None and cause:
        decision.record(run, ev.InputRefused(code=refusal.code, message=refusal.message, cause=cause))
    elif cause and not led:
        decision.record(run, ev.InputAccepted(cause=cause))


def _leave(run: RunState, decision: Decision, *, was_closed: bool, was_open: bool) -> None:
    """Give back the names that the run does not need any more, if it did before."""
    if run.names and not was_closed:
        leave_when_closed(run, decision)
    if was_open:
        leave_when_open(run, decision)


def _operate(run: RunState, decision: Decision, value: Any, cause: str) -> Refusal | None:
    found = operator_events(run, value, cause)
    if isinstance(found, Refusal):
        return found
    _steer(run, decision, found)
    return None


def _unwind(run: RunState, decision: Decision, value: inp.Unwind, cause: str) -> Refusal | None:
    """The caller asks for what this run did to be undone, and waits for an answer."""
    found = asked_events(run, value, cause)
    if not found:
        answer_caller(run, decision, value.number)
    _steer(run, decision, found)
    return None


def _steer(run: RunState, decision: Decision, found: Sequence[ev.AnyEvent]) -> None:
    """Record what somebody's word leads to, with all that has to follow at once."""
    for event in found:
        decision.record(run, event)
        if run.calls or run.asked_runs:
            tell_children(run, decision, event)
        if isinstance(event, ev.Paused):
            decision.hold = event.hold
        elif isinstance(event, ev.Resumed):
            decision.hold = 0
        elif isinstance(event, ev.CancelRequested | ev.UnwindingParked):
            # A held run's hold ends with the cancel: nothing of it is claimed any more in any case.
            decision.hold = 0
            decision.revoke = True
            if event.hard and run.unwindings:
                decision.interrupts += tuple(
                    [step.node.number for step in run.steps() if undo_runs(step) and step.tasked]
                )
            withdraw(run, decision)
        else:
            decision.note_reopened(run, event)


def _look(run: RunState, decision: Decision, value: inp.Look, cause: str) -> Refusal | None:
    """Nothing to do: that the run is decided at all goes on with what its last decider had left."""
    return None


_HANDLERS: dict[type, Callable[[RunState, Decision, Any, str], Refusal | None]] = {
    inp.Outcome: outcome,
    inp.Lost: lost,
    inp.ChildStarted: child_started,
    inp.ChildEnded: child_ended,
    inp.ChildAsked: child_asked,
    inp.ChildUnwound: child_unwound,
    inp.Unwind: _unwind,
    inp.Revoked: revoked,
    inp.Look: _look,
    inp.AddSteps: add_steps,
    inp.Signal: _operate,
    inp.Pause: _operate,
    inp.Resume: _operate,
    inp.Cancel: _operate,
    inp.TakeName: take_name,
    inp.Turn: turn_came,
    inp.Trigger: trigger,
    inp.Release: _operate,
    inp.Retry: _operate,
    inp.Rewind: _operate,
    inp.Undo: undo_run,
    inp.UndoStep: undo_step,
}

__all__ = ["DEFAULT_RETRY", "Decision", "Limits", "causes_of", "decide", "root_causes", "start", "task_of"]
