"""What a run keeps of undos: the undo of one step, and the unwinding of a scope with the order it goes by.

A step's undo may start when the undos of all steps that began after it ended are final. Looked at by falling end,
the steps that may forbid an undo only become fewer: so the first one that is forbidden forbids all behind it, and
one pass with a heap of beginnings finds the whole order in O(n log n).

The order is a hint in the sense of `state`: it is made from the steps' positions and statuses whenever it is missing,
and one that was made late, of what is left, goes on exactly like one that was there from the start.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

import msgspec

from treadle.core.events import NULL, Failure
from treadle.core.tables import NONE, PARKED, PENDING, RUNNING

if TYPE_CHECKING:
    from treadle.core.state import NodeState, ScopeState, StepState

# Nothing is left to do about an undo that is neither of these, but by an operator's word.
UNFINISHED: Final = frozenset({PENDING, RUNNING})
# What an unwinding takes on of itself.
STANDING: Final = frozenset({NONE, PARKED})


class StepUndo(msgspec.Struct, gc=False):
    """The undo of a step that has begun, or of a row whose phase can be compensated."""

    # The run's position when the step was first dispatched.
    began: int = 0
    status: str = NONE
    # The handle of the undo state, once the step is prepared; of the key of the run that it calls, once that is
    # known to be there (null: it has nothing to undo).
    state: str = ""
    # The number of the scope whose unwinding took it on.
    scope: int = 0
    # The live task asks `reconcile`; it was asked, and found the undo safe.
    checking: bool = False
    confirmed: bool = False
    # It did not undo before, and is tried again.
    again: bool = False
    # Attempts of this unwinding that failed and that were lost; why the last one failed.
    failures: int = 0
    lost: int = 0
    failure: Failure | None = None
    # Why it is skipped or parked.
    reason: str = ""
    # When it became what it is.
    changed_at: float = 0.0


def undo_of(state: NodeState) -> StepUndo:
    """The undo of a step or a row that has one."""
    assert state.undo is not None
    return state.undo


def has_effect(step: StepState) -> bool:
    """Whether the step may have done something that its undo takes back.

    A step whose `prepare` did not come to an end has not started to act. Of a call only the run that it has called
    knows; if that has said that there is nothing, so it is.
    """
    undo = step.undo
    if undo is None or not step.node.undoable:
        return False
    declared = step.spec.undo
    if declared is None:
        return undo.state != NULL
    return bool(undo.state) or not declared.prepare


def is_standing(step: StepState) -> bool:
    """Whether what the step did stands, and an unwinding would take it on of itself."""
    return step.undo is not None and step.undo.status in STANDING and has_effect(step)


def resource_of(step: StepState) -> str:
    """The resource that the step's undo takes for itself, or ""."""
    declared = step.spec.undo
    return declared.resource if declared is not None else ""


class UndoOrder:
    """Which of the undos of an unwinding comes next."""

    __slots__ = ("_begins", "_freed", "_held", "_next", "_steps")

    def __init__(self, steps: list[StepState]) -> None:
        self._steps = sorted((s for s in steps if undo_of(s).status in UNFINISHED), key=_by_end)
        # Heap of the beginnings, latest first, each with its place; those of final undos go when they come up.
        self._begins = [(-undo_of(step).began, place) for place, step in enumerate(self._steps)]
        heapify(self._begins)
        self._next = 0
        # Places of undos that only wait for their resource; those of them whose resource is free now.
        self._held: dict[str, deque[int]] = {}
        self._freed: list[int] = []

    def first(self, busy: set[str]) -> StepState | None:
        """The undo that may start now and comes first, or None. It stays first until its status changes."""
        return self._first_freed(busy) or self._first_fresh(busy)

    def _first_freed(self, busy: set[str]) -> StepState | None:
        while self._freed:
            step = self._steps[self._freed[0]]
            resource = resource_of(step)
            if undo_of(step).status == PENDING and resource not in busy:
                return step
            place = heappop(self._freed)
            if undo_of(step).status == PENDING:
                self._held.setdefault(resource, deque()).appendleft(place)
            elif resource not in busy:
                self.free(resource)
        return None

    def _first_fresh(self, busy: set[str]) -> StepState | None:
        steps, begins = self._steps, self._begins
        while self._next < len(steps):
            step = steps[self._next]
            if undo_of(step).status == PENDING:
                while begins and undo_of(steps[begins[0][1]]).status not in UNFINISHED:
                    heappop(begins)
                if begins and -begins[0][0] > step.ended:
                    return None
                resource = resource_of(step)
                if not resource or resource not in busy:
                    return step
                self._held.setdefault(resource, deque()).append(self._next)
            self._next += 1
        return None

    def free(self, resource: str) -> None:
        """The resource's undo has ended: the next one of it may start."""
        held = self._held.get(resource)
        if held:
            heappush(self._freed, held.popleft())


def _by_end(state: NodeState) -> int:
    return -state.ended


class Unwinding:
    """The unwinding of a scope: what it took on, and how far it is."""

    __slots__ = (
        "below",
        "busy",
        "compensation",
        "hard",
        "left",
        "live",
        "looked",
        "looked_at",
        "order",
        "parked",
        "parked_to",
        "rewind",
        "row",
        "rows",
        "rows_left",
        "running",
        "scope",
        "taken",
    )

    def __init__(
        self, scope: ScopeState, below: list[StepState], taken: list[StepState], rows: list[ScopeState], rewind: str
    ) -> None:
        self.scope = scope
        # The steps below the scope, and those of them that it undoes; rows that it compensates, the last one first.
        self.below = below
        self.taken = taken
        self.rows = sorted(rows, key=_by_end)
        self.rewind = rewind
        # Undos of steps that are not final; those that run; the resources that these take.
        self.left = len(taken)
        self.running = 0
        self.busy: set[str] = set()
        # Rows whose undo is not final; the one that is being compensated, and the scope in which that is done.
        self.rows_left = len(rows)
        self.row: ScopeState | None = None
        self.compensation: ScopeState | None = None
        # Nothing more is begun; what runs of it is interrupted.
        self.parked = False
        self.hard = False
        # Hints: how many of the steps below are known to be over, of the undos to be parked, and of the rows to be
        # compensated; attempts that still run; the order of undos.
        self.looked = 0
        self.parked_to = 0
        self.looked_at = 0
        self.live: list[StepState] = []
        self.order: UndoOrder | None = None

    @property
    def is_over(self) -> bool:
        """Whether all undos are final."""
        return not self.left and not self.rows_left

    def first(self) -> StepState | None:
        """The undo that may start now and comes first, or None."""
        if self.order is None:
            self.order = UndoOrder(self.taken)
        return self.order.first(self.busy)

    def first_row(self) -> ScopeState | None:
        """The row that is compensated next, or None."""
        while self.looked_at < len(self.rows):
            row = self.rows[self.looked_at]
            if undo_of(row).status == PENDING:
                return row
            self.looked_at += 1
        return None

    def started(self, step: StepState) -> None:
        """An undo got its first task."""
        self.running += 1
        if resource := resource_of(step):
            self.busy.add(resource)

    def ended(self, step: StepState, before: str) -> None:
        """An undo that was `before` is final."""
        self.left -= 1
        if before != RUNNING:
            return
        self.running -= 1
        if resource := resource_of(step):
            self.busy.discard(resource)
            if self.order is not None:
                self.order.free(resource)

    def row_ended(self, row: ScopeState) -> None:
        """The undo of a row is final."""
        self.rows_left -= 1
        if self.row is row:
            self.row = self.compensation = None

    def again(self) -> None:
        """The undo of a step that was final is not any more."""
        self.left += 1
        self.order = None
        self.parked_to = 0

    def row_again(self) -> None:
        """The undo of a row that was final is not any more."""
        self.rows_left += 1
        self.looked_at = 0
