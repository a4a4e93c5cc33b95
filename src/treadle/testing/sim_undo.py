"""What the oracle checks of undo: the order of steps and rows, the halves of a step, and that nothing is left open.

It keeps its own notes of what began and ended when, and asks the folded state only what an unwinding took on.
"""

from __future__ import annotations

from typing import Final

from treadle.core import events as ev
from treadle.core.events import AnyEvent
from treadle.core.opened import compensation_address
from treadle.core.state import RunState, ScopeState, StepState, settled
from treadle.core.tables import SUCCEEDED
from treadle.core.undo import UNFINISHED, has_effect
from treadle.testing.invariants import ORDER, UNDONE, Fail

_FINAL: Final = (
    ev.StepUndone,
    ev.UndoFailed,
    ev.UndoNotCompensable,
    ev.UndoNotNeeded,
    ev.UndoSkipped,
    ev.UndoParked,
    ev.PhaseCompensated,
)
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
        # Rows likewise; where those are compensated that are.
        self._rows: dict[str, str] = {}
        self._compensations: dict[str, str] = {}

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
            self._row_ends(state, event.at)
        elif isinstance(event, ev.UnwindingStarted):
            scope = state.at(event.at)
            assert scope is not None
            unwinding = state.unwindings[scope.node.number]
            self._open.update({step.node.address: event.at for step in unwinding.taken})
            self._rows.update({row.node.address: event.at for row in unwinding.rows})
        elif isinstance(event, ev.UndoReopened):
            found = state.at(event.at)
            assert found is not None
            assert found.undo is not None
            around = state.states[found.undo.scope].node.address
            (self._open if isinstance(found, StepState) else self._rows)[event.at] = around
        elif isinstance(event, ev.ScopeSettled):
            self._ended[event.at] = self._position
        elif isinstance(event, ev.CompensationOpened):
            self._compensates(state, event)
        elif isinstance(event, ev.UndoDispatched) and event.at not in self._running:
            self._running.add(event.at)
            self._starts(state, event.at)

    def _dispatched(self, state: RunState, event: AnyEvent, at: str) -> None:
        self._began.setdefault(at, self._position)
        step = _step(state, at)
        declared = step.spec.undo
        # What a compensating phase does is never undone.
        prepares = declared is not None and bool(declared.prepare) and step.node.undoable
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

    def _compensates(self, state: RunState, event: ev.CompensationOpened) -> None:
        """A row is compensated: when all undos of steps are final, and those of rows that ended after it."""
        at, around = event.at, self._rows[event.at]
        if steps := sorted(other for other, scope in self._open.items() if scope == around):
            self._fail(ORDER, f"{state.run_id} {at} is compensated before {steps} are undone")
        for other in sorted(name for name, scope in self._rows.items() if scope == around and name != at):
            if self._ended[other] > self._ended[at]:
                self._fail(ORDER, f"{state.run_id} {at} is compensated before {other}, which ended after it")
            if other in self._compensations:
                self._fail(ORDER, f"{state.run_id} {at} is compensated while {other} is")
        row = state.at(at)
        if row is None or row.status != SUCCEEDED:
            self._fail(UNDONE, f"{state.run_id} {at} is compensated, and it has not succeeded")
        self._compensations[at] = compensation_address(at, event.phase, event.entry)

    def _row_ends(self, state: RunState, at: str) -> None:
        """The undo of a row is final: nothing of its compensating phase is executed any more."""
        self._rows.pop(at, None)
        scope = state.at(self._compensations.pop(at, ""))
        if isinstance(scope, ScopeState) and scope is not state.root and (not settled(scope) or state.is_busy(scope)):
            self._fail(UNDONE, f"{state.run_id} the undo of {at} has ended, and {scope.node.address} has not")

    def _settled(self, state: RunState, event: ev.RunSettled) -> None:
        """A run that settles has no undo open; one that is unwound fully has no effect left."""
        if open_ := sorted([*self._open, *self._rows]):
            self._fail(UNDONE, f"{state.run_id} settled while the undos of {open_} were not final")
        for row in state.compensable:
            if (
                event.unwound == "fully"
                and row.status == SUCCEEDED
                and (row.undo is None or row.undo.status != "undone")
            ):
                self._fail(UNDONE, f"{state.run_id} is unwound, but the phase of {row.node.address} is not compensated")
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
