"""Names that one run at a time may hold, and the lines of those that wait for them.

A run that is a singleton is in the line of a name from its start until it is closed: it has its outcome, and nothing of
it goes on. The first in the line holds the name. Who is in it, and in which order, is a fact of the store, kept in the
transaction of the append (`store.base`, promise 13); so no two runs ever hold a name. The others wait: nothing of them
starts, until the store tells the next one by a `Turn` input, written when the run before it leaves.

A closed run that an operator reopens, or has undone, goes to the end of the line. A cancel ends the waiting.
"""

from __future__ import annotations

from typing import Final, Literal

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.commands import Refusal
from treadle.core.decision import Decision
from treadle.core.state import RunState
from treadle.core.tables import LIVE

# How a run comes into a line: only if nobody is in it; at its end; or so that all who are in it are cancelled.
Enters = Literal["take", "line", "replace"]
LEAVE: Final = "leave"


def is_closed(run: RunState) -> bool:
    """Whether a run has its outcome and nothing of it, or of the runs that it waits for, goes on."""
    return run.status not in LIVE and not run.tasks and not run.calls and not run.asked_runs


def enter(run: RunState, decision: Decision, name: str, how: Enters) -> None:
    """Put a new run into the line of its name."""
    decision.names += ((name, how),)
    if how != "take":
        decision.record(run, ev.NameTaken(name=name, waits=True))


def wait_again(run: RunState, decision: Decision) -> bool:
    """Put a run that was closed, and is not any more, back into its lines; whether it still is closed."""
    if is_closed(run):
        return True
    for name in run.names:
        decision.names += ((name, "line"),)
        decision.record(run, ev.NameTaken(name=name, waits=not run.cancelling))
    return False


def leave_when_closed(run: RunState, decision: Decision) -> None:
    """Let a run that was not closed leave its lines if it is now."""
    if is_closed(run):
        decision.names += tuple([(name, LEAVE) for name in run.names])


def take_name(run: RunState, decision: Decision, value: inp.TakeName, cause: str) -> Refusal | None:
    """Let a run that goes on hold a name as well. It does not wait for it."""
    if is_closed(run):
        return Refusal("run_not_active", f"run {run.run_id!r} is {run.status}", run.status)
    if value.name not in run.names:
        decision.names += ((value.name, "line"),)
        decision.record(run, ev.NameTaken(name=value.name, cause=cause))
    return None


def turn_came(run: RunState, decision: Decision, value: inp.Turn, cause: str) -> Refusal | None:
    """It is the run's turn, unless it has stopped waiting."""
    if value.name in run.awaits:
        decision.record(run, ev.TurnCame(name=value.name, cause=cause))
    return None
