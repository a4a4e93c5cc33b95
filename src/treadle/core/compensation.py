"""Part of `apply`: rows whose phase can be compensated, and the compensating phases that are executed for them.

A compensating phase is executed like any row, in a scope of its own that nobody counts: it changes no outcome, and
nothing takes it back. Its cells see what the row had left: the state after its barrier and the values of its cells.
"""

from __future__ import annotations

from typing import ClassVar

from treadle.core import events as ev
from treadle.core.addresses import encode_id
from treadle.core.counts import scope_at
from treadle.core.graph import Node
from treadle.core.opened import compensation_address, fill
from treadle.core.plan import Phase
from treadle.core.progress import PhasesProgress
from treadle.core.state import RunState, ScopeState, new_scope
from treadle.core.tables import FAILED, NONE, NOT_COMPENSABLE, PARKED, SKIPPED, SUCCEEDED
from treadle.core.undo import STANDING
from treadle.errors import InternalError

# What an unwinding takes on that is told to try again.
AGAIN = frozenset({NONE, PARKED, FAILED, SKIPPED, NOT_COMPENSABLE})


def rows_below(run: RunState, scope: ScopeState) -> list[ScopeState]:
    """The rows that can be compensated of a scope's present entry, at any depth."""
    if scope is run.root:
        return [row for row in run.compensable if row.status == SUCCEEDED]
    return [row for row in run.compensable if row.status == SUCCEEDED and _lies_in(run, row, scope)]


def _lies_in(run: RunState, row: ScopeState, scope: ScopeState) -> bool:
    inner, around = row.node, row.node.scope
    while around is not None and around is not scope.node:
        inner, around = around, around.scope
    if around is None:
        return False
    # What a block has left behind with an entry before has kept that entry's progress.
    return scope.block is None or run.states[inner.number].around.block is scope.block


def compensable(rows: list[ScopeState], *, after: int = 0, only: str = "", again: bool = False) -> list[ScopeState]:
    """Those of the rows that an unwinding takes on; see `undoing.effects`."""
    statuses = AGAIN if again else STANDING
    return [
        row
        for row in rows
        if row.undo is not None
        and row.undo.status in statuses
        and row.ended > after
        and (not only or row.node.address == only)
    ]


def row_at(run: RunState, at: str) -> ScopeState | None:
    """The row at an address whose phase can be compensated, or None."""
    state = run.at(at)
    return state if isinstance(state, ScopeState) and state.undo is not None else None


class _Names:
    """What names mean to a compensating phase: the phase that it compensates is the very row."""

    is_run: ClassVar[bool] = True

    def __init__(self, run: RunState, row: ScopeState) -> None:
        self.run = run
        self.row = row

    def find(self, scope: Node, segment: str) -> Node | None:
        """The child of a scope, or None."""
        phase = self.row.node.spec
        assert isinstance(phase, Phase)
        if scope is self.row.node.scope and segment == encode_id(phase.id):
            return self.row.node
        return self.run.find(scope, segment)

    def scope_of(self, step: Node) -> Node:
        """The scope of all that a step adds."""
        return self.run.scope_of(step)


def open_compensation(run: RunState, event: ev.CompensationOpened) -> ScopeState:
    """Make the scope in which a row is compensated, and all that lies in it."""
    row = scope_at(run, event.at)
    progress, block = row.around.block, row.node.scope
    if not isinstance(progress, PhasesProgress) or block is None or row.left is None:
        raise InternalError(f"scope {event.at!r} is no row that can be compensated")
    phase = progress.phases[event.phase].phase
    node = run.new(compensation_address(event.at, event.phase, event.entry), block, phase)
    node.constants = block.constants
    progress.entries[event.phase] = event.entry
    scope = run.states[node.number]
    assert isinstance(scope, ScopeState)
    apart = new_scope(block, None)
    apart.block = progress
    apart.unsettled = 1
    scope.around = apart
    scope.stopping = ""
    scope.compensates = row
    scope.index = row.index
    scope.sight = row.left
    fill(run, scope, phase.blocks, names=_Names(run, row))
    return scope
