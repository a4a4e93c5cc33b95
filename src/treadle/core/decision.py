"""What `decide` gives back, and the bounds it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from treadle.core.apply import apply
from treadle.core.commands import NO_CALL, Call, Refusal, Task
from treadle.core.effects import Given
from treadle.core.events import AnyEvent, StepsReopened
from treadle.core.inputs import AnyInput
from treadle.core.state import RunState, StepState
from treadle.core.tables import RUNNING

# Most decisions end one task. What waits for a commit is not to hold a list of its own for it.
_ALONE = [(number,) for number in range(1024)]


class Limits(msgspec.Struct, frozen=True):
    """The bounds of a decision and of a run."""

    # Tasks that a run may have in the store at a time.
    dispatched: int = 1000
    # How many runs may call each other down to one.
    depth: int = 32
    # Events of one decision, beyond those of its inputs.
    events: int = 1000


class Decision(msgspec.Struct, eq=False, gc=False):
    """What `decide` found: events to commit, and commands for the store.

    What most decisions do not have is a tuple: the garbage collector looks at every list that lives.
    """

    events: list[AnyEvent] = []
    # Attempts to put into the store, after what `ended` names is taken out of it.
    tasks: list[Task] = []
    # Numbers of steps whose task is over; steps that settled; numbers of steps that were reopened.
    ended: Sequence[int] = ()
    settled: list[StepState] = []
    # Steps whose undo came to an end.
    undone: tuple[StepState, ...] = ()
    unsettled: tuple[int, ...] = ()
    # Numbers of steps whose leased task is to be interrupted.
    interrupts: tuple[int, ...] = ()
    # Inputs for the inboxes of other runs, by their keys.
    posts: tuple[tuple[str, AnyInput], ...] = ()
    # What the run does in the lines of names, in this order: `take`, `line`, `replace` or `leave`.
    names: tuple[tuple[str, str], ...] = ()
    # What successes bring to projections.
    given: tuple[Given, ...] = ()
    # The run's new hold, if it changes; whether all waiting tasks of the run are to be taken back.
    hold: int | None = None
    revoke: bool = False
    # How much of what the run did is undone, if that changes.
    unwound: str | None = None
    # Position of the input -> why it was refused.
    refusals: Mapping[int, Refusal] = MappingProxyType({})
    # Position of an operator's input -> where in `events` those that it led to by itself begin and end.
    spans: Mapping[int, tuple[int, int]] = MappingProxyType({})
    # The run's status before.
    was: str = RUNNING
    # There is more to do at once; decide again after the commit.
    more: bool = False
    # The call of the steps that are `alike`, as the first of them was dispatched.
    alike: int = 0
    call: Call = NO_CALL

    def record(self, run: RunState, event: AnyEvent) -> None:
        """Enter an event, and apply it."""
        self.events.append(event)
        apply(run, event)

    def settle(self, run: RunState, step: StepState, event: AnyEvent) -> None:
        """Enter the event that gives a step its outcome, and apply it."""
        self.events.append(event)
        apply(run, event)
        self.settled.append(step)

    def end(self, number: int) -> None:
        """The task of a step is over."""
        if isinstance(self.ended, list):
            self.ended.append(number)
        elif self.ended:
            self.ended = [*self.ended, number]
        else:
            self.ended = _ALONE[number] if number < len(_ALONE) else (number,)

    def note(self, position: int, begin: int, refusal: Refusal | None) -> None:
        """Note the answer to an input that somebody may wait for: its events are the last ones, from `begin` on."""
        if not isinstance(self.spans, dict):
            self.spans, self.refusals = dict[int, tuple[int, int]](), dict[int, Refusal]()
        self.spans[position] = (begin, len(self.events))
        if refusal is not None and isinstance(self.refusals, dict):
            self.refusals[position] = refusal

    def note_reopened(self, run: RunState, event: AnyEvent) -> None:
        """Note the steps that an applied event has reopened, if it is one that does."""
        if isinstance(event, StepsReopened):
            states = [run.at(at) for at in (*event.at, *event.removed)]
            self.reopen([state.node.number for state in states if isinstance(state, StepState)])
            if run.undoes:
                self.unwound = run.root.unwound

    def reopen(self, numbers: list[int]) -> None:
        """Note steps that have no outcome any more."""
        self.unsettled += tuple(numbers)
        # One that settled by another input of this decision has no outcome to store.
        again = set(numbers)
        self.settled = [step for step in self.settled if step.node.number not in again]
