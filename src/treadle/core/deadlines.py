"""Deadlines: when that of a run passes, all of the run that waits fails, whatever it waits for.

`decide` finds it with the first input that comes then; who decides the run brings one in time (`runtime.alarms`). It is
journaled once. From then on a fence holds nothing any more: a step that stands at one fails, and so does a block that
waits for its signals. What waits for an upstream is skipped with it, or fails when its turn has come. Attempts that
nobody has claimed are taken back, and those that run are ended. Runs that steps have called have the same deadline.

What takes something back has no deadline, and who has the run go on by a retry or a rewind lifts it.
"""

from __future__ import annotations

from heapq import heappush
from typing import Final

from treadle.core import events as ev
from treadle.core.decision import Decision
from treadle.core.events import Failure
from treadle.core.state import RunState, ScopeState, StepState, settled
from treadle.core.tables import READY, RUNNING, WAITING

LATE: Final = Failure(code="deadline", message="the run's deadline has passed")


def is_awaited(run: RunState) -> bool:
    """Whether the run has a deadline that has not passed, and that something comes of when it does."""
    return run.deadline > 0 and run.status == RUNNING and not run.cancelling


def pass_deadline(run: RunState, decision: Decision) -> None:
    """Journal that the deadline has passed, if its time has come, and end the attempts that there are."""
    if run.now >= run.deadline and is_awaited(run):
        decision.record(run, ev.DeadlinePassed())
        # The store takes back those that nobody has. Here, since no event tells later which ones were.
        decision.interrupts += tuple([step.node.number for step in run.late_attempts()])


def is_late(run: RunState, step: StepState) -> bool:
    """Whether a step that was stopped was so by the deadline: nobody has cancelled it."""
    return run.is_late(step.around) and not (run.cancelling or step.around.stopping)


def fail_late(run: RunState, decision: Decision, step: StepState, cause: str = "") -> bool:
    """Fail a step that would wait, if the deadline has passed; whether it has."""
    if run.is_late(step.around):
        # The attempt that was taken back, if it has one.
        attempt = max(step.tasked, 0)
        decision.settle(run, step, ev.StepFailed(at=step.node.address, attempt=attempt, failure=LATE, cause=cause))
        return True
    return False


def late_block(run: RunState, scope: ScopeState) -> Failure | None:
    """Why a block fails that has not begun: the deadline came before its signals."""
    if run.is_late(scope) and any(name not in run.signals for name in scope.node.signals):
        return LATE
    return None


def end_waiting(run: RunState, decision: Decision, bound: int) -> None:
    """Fail all that waits, if the deadline has passed, or put it where it is looked at. Goes on where it stopped."""
    while run.deadline < 0 and run.status == RUNNING and run.cancel_at < len(run.states):
        if len(decision.events) >= bound:
            decision.more = True
            return
        state = run.states[run.cancel_at]
        run.cancel_at += 1
        if settled(state) or not run.is_late(state.around) or (isinstance(state, StepState) and state.tasked):
            continue
        if isinstance(state, StepState) and state.status == READY:
            fail_late(run, decision, state)
        elif isinstance(state, ScopeState) or state.status == WAITING:
            heappush(run.frontier, state.node.number)
