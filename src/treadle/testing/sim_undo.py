"""What the oracle checks of undo: the order, the two halves of a step, and that an unwinding leaves nothing open.

It keeps its own notes of what began and ended when, and asks the folded state only what an unwinding took on.
"""

from __future__ import annotations

from typing import Final

from treadle.core import events as ev
from treadle.core.events import AnyEvent
from treadle.core.state import RunState, StepState
from treadle.core.undo import UNFINISHED, has_effect
from treadle.testing.invariants import ORDER, UNDONE, Fail

_FINAL: Final = (ev.StepUndone, ev.UndoFailed, ev.UndoNotCompensable, ev.UndoSkipped, ev.UndoParked)
_ENDS: Final = (ev.StepSucceeded, ev.StepFailed, ev.StepCancelled, ev.AttemptEnded)


class UndoOracle:
    """Reads one run's journal, event by event, after each was applied."""

    def __init__(self, fail: Fail) -> None:
        self._fail = fail
        self._position = 0
        self._began: dict[str, int] = {}
        self._ended: dict[str, int] = {}
        self._prepared: set[str] = set()
        # Of the unwindings that go on: what is not final, with the scope that is unwound, and what was dispatched.
        self._open: dict[str, str] = {}
        self._running: set[str] = set()

    def after(self, state: RunState, event: AnyEvent) -> None:
        """Check and note an event."""
        self._position += 1
        match event:
            case ev.StepDispatched(at=at) | ev.PrepareDispatched(at=at):
                self._dispatched(state, event, at)
            case ev.StepPrepared(at=at):
                if at in self._prepared:
                    self._fail(UNDONE, f"{state.run_id} {at} was prepared twice")
                self._prepared.add(at)
            case ev.StepsReopened(rewind=True):
                for at in (*event.at, *event.removed):
                    self._began.pop(at, None)
                    self._prepared.discard(at)
            case ev.RunSettled():
                self._settled(state, event)
            case _:
                self._of_undo(state, event)

    def _of_undo(self, state: RunState, event: AnyEvent) -> None:
        if isinstance(event, _ENDS):
            self._ended[event.at] = self._position
        elif isinstance(event, _FINAL):
            self._open.pop(event.at, None)
            self._running.discard(event.at)
        elif isinstance(event, ev.UnwindingStarted):
            scope = state.at(event.at)
            assert scope is not None
            taken = state.unwindings[scope.node.number].taken
            self._open.update({step.node.address: event.at for step in taken})
        elif isinstance(event, ev.UndoReopened):
            undo = _step(state, event.at).undo
            assert undo is not None
            self._open[event.at] = state.states[undo.scope].node.address
        elif isinstance(event, ev.UndoDispatched) and event.at not in self._running:
            self._running.add(event.at)
            self._starts(state, event.at)

    def _dispatched(self, state: RunState, event: AnyEvent, at: str) -> None:
        self._began.setdefault(at, self._position)
        step = _step(state, at)
        declared = step.spec.undo
        prepares = declared is not None and bool(declared.prepare)
        if isinstance(event, ev.StepDispatched) and prepares and at not in self._prepared:
            self._fail(UNDONE, f"{state.run_id} {at} acts before its undo state is stored")

    def _starts(self, state: RunState, at: str) -> None:
        """The first attempt to undo a step."""
        limit = state.graph.plan.undo_limit
        scope = self._open[at]
        together = sorted(other for other in self._running if self._open[other] == scope)
        if limit and len(together) > limit:
            self._fail(ORDER, f"{state.run_id}: {together} are undone together, the limit is {limit}")
        resource = _resource(_step(state, at))
        for other in sorted(name for name, around in self._open.items() if around == scope and name != at):
            if self._began[other] > self._ended[at]:
                self._fail(ORDER, f"{state.run_id} {at} is undone before {other}, which began after it ended")
            if resource and other in self._running and _resource(_step(state, other)) == resource:
                self._fail(ORDER, f"{state.run_id} {at} and {other} are undone together and share {resource!r}")

    def _settled(self, state: RunState, event: ev.RunSettled) -> None:
        """A run that settles has no undo open; one that is unwound fully has no effect left."""
        for step in state.steps():
            undo = step.undo
            if undo is None:
                continue
            at = step.node.address
            if undo.status in UNFINISHED:
                self._fail(UNDONE, f"{state.run_id} settled while the undo of {at} was {undo.status}")
            if event.unwound == "fully" and has_effect(step) and undo.status != "undone":
                self._fail(UNDONE, f"{state.run_id} is unwound, but the undo of {at} is {undo.status}")


def _step(state: RunState, at: str) -> StepState:
    step = state.step_at(at)
    assert step is not None
    return step


def _resource(step: StepState) -> str:
    return step.spec.undo.resource if step.spec.undo is not None else ""
