"""Commands: what the core asks of the runtime and the store, beside its events.

A command may be performed twice; its identity is derived (run, address, generation, attempt), so the second
time changes nothing.
"""

from __future__ import annotations

import msgspec

from treadle.core.events import Arg, Handle
from treadle.core.plan import Placement


class Polling(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """How an attempt's function is asked again while its value is not true; `probes` tells how often it was not."""

    interval: float
    # The time from which "not yet" is a failure; 0 is never.
    deadline: float = 0.0
    probes: int = 0


class ChildRun(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The run that an attempt is to make: its key, and how many runs have called each other down to it."""

    key: str
    depth: int = 1
    detached: bool = False
    # If it is to be asked to undo what it did: the number that its answer repeats; whether to try again what failed;
    # whether it is known to have been made.
    unwind: int = 0
    again: bool = False
    made: bool = False
    # Whether the breakpoints of its caller are armed in it.
    breakpoints: bool = False


class Call(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a worker needs to execute an attempt, without the run's state."""

    args: dict[str, Arg] = {}
    timeout: float | None = None
    # "step", or "condition": an evaluation of a predicate.
    purpose: str = "step"
    placement: Placement | None = None
    # The run's data, and whether it is a dry run: what a step may ask of its run beside its arguments.
    data: Handle = ""
    dry_run: bool = False
    poll: Polling | None = None
    child: ChildRun | None = None
    # What an earlier attempt of this generation reported last, and what the step's plan says about it for people.
    progress: str = ""
    annotations: dict[str, str] = {}
    # No attempt begins after it, or goes on; 0 is never.
    deadline: float = 0.0
    # Seconds without a report of progress after which the attempt fails; 0 is without limit.
    progress_timeout: float = 0.0
    # The trace that the run is a part of, as a W3C `traceparent`; "" for none.
    trace: str = ""


# Of no step.
NO_CALL = Call()


class Task(msgspec.Struct, gc=False):
    """A dispatched attempt, waiting in the store or leased to a session.

    `number` is the step's dense number in its run; a run has at most one task of a number. For an evaluation
    `attempt` is 0 or less. `lease` is the fencing token of a leased task, 0 while it waits.
    """

    run: str
    number: int
    address: str
    generation: int
    attempt: int
    action: str
    queue: str
    priority: int
    not_before: float
    call: Call
    run_id: str = ""
    lease: int = 0
    # What its queue's limits by key go by, and what a session must name among its targets to get it; empty for none.
    key: str = ""
    target: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """Why an input was not applied: a code of `errors`, a message, and the run's status where it matters."""

    code: str
    message: str
    status: str = ""
