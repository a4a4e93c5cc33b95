"""Windows: runs that collect triggers before their work begins.

Such a run has two steps: a timer, and the call of the workflow that the triggers are for. Each trigger is an input of
the run. While the timer has no outcome, the trigger is taken: it becomes the run's constants, and the timer begins anew
(debounce); or it is one more of them, and the timer is over when there are enough (batch). So what counts is one order,
that of the journal: a trigger is in this window, or refused, and then a new window is opened for it.

A window that was closed stays so: when an operator has its timer run again, that takes nothing.

While its window is open the run holds the window's name in the store; and for good the names of the triggers that were
named, by which one that is sent twice is known.
"""

from __future__ import annotations

from typing import Final

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.commands import Refusal
from treadle.core.decision import Decision
from treadle.core.dispatching import task_of
from treadle.core.singletons import LEAVE
from treadle.core.state import RunState, StepState
from treadle.core.tables import DISPATCHED

# The ids of the two steps.
TIMER: Final = "window"
WORK: Final = "run"


def trigger_name(window: str, trigger: str) -> str:
    """The name that a run holds for good once a named trigger has come to it."""
    return f"trigger:{window}/{trigger}"


def window_names(window: str, trigger: str) -> tuple[tuple[str, str], ...]:
    """What a run that opens a window takes; an empty trigger has no name."""
    taken = ((trigger_name(window, trigger), "take"),) if trigger else ()
    return ((window, "take"), *taken)


def _timer(run: RunState) -> StepState | None:
    """The timer of the run's window, while that takes triggers."""
    step = run.step_at(TIMER)
    if run.window is None or run.window.closed or run.cancelling or run.deadline < 0:
        return None
    return step if step is not None and step.status == DISPATCHED else None


def is_open(run: RunState) -> bool:
    """Whether the run's window takes triggers."""
    return _timer(run) is not None


def leave_when_open(run: RunState, decision: Decision) -> None:
    """Give the window's name back if the window, which was open, is not any more."""
    if run.window is not None and not is_open(run):
        decision.names += ((run.window.window.name, LEAVE),)


def trigger(run: RunState, decision: Decision, value: inp.Trigger, cause: str) -> Refusal | None:
    """A trigger came."""
    step = _timer(run)
    if step is None or run.window is None:
        return Refusal("window_closed", f"the window of run {run.run_id!r} is closed", run.status)
    known, window = run.window.names, run.window.window
    if value.name in known:
        return None
    number = step.node.number
    if window.size:
        decision.record(run, ev.TriggerReceived(at=TIMER, name=value.name, args=value.args, cause=cause))
        if len(known) >= window.size:
            _take_back(decision, number)
            decision.settle(run, step, ev.StepSucceeded(at=TIMER, attempt=step.tasked))
    else:
        _take_back(decision, number)
        opens_at = run.now + window.period
        if window.timeout:
            opens_at = min(opens_at, run.started_at + window.timeout)
        decision.record(
            run,
            ev.TriggerReceived(
                at=TIMER,
                name=value.name,
                args=value.args,
                attempt=step.attempt + 1,
                not_before=max(opens_at, run.now),
                cause=cause,
            ),
        )
        decision.tasks.append(task_of(run, step, {}))
    if value.keep:
        decision.names += ((trigger_name(window.name, value.name), "note"),)
    return None


def _take_back(decision: Decision, number: int) -> None:
    """End the timer's task, in the store and in this very decision."""
    decision.end(number)
    decision.tasks = [task for task in decision.tasks if task.number != number]
