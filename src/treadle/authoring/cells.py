"""What cells, rules and compensations of a Phases block are given, and what a cell may give back beside its value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec

T_co = TypeVar("T_co", covariant=True)


class Patch(Generic[T_co]):
    """A cell's result with variables to set: `return Patch(score, {"best": score})`.

    `value` is the lane value, which the next row sees. The variables are set at the row's barrier, if all awaited
    cells of the row succeed; cells of the same row do not see them.
    """

    __slots__ = ("state", "value")

    def __init__(self, value: T_co = None, state: Mapping[str, Any] | None = None) -> None:  # type: ignore[assignment]  # None is the value of a cell that only sets variables
        self.value = value
        self.state: dict[str, Any] = dict(state) if state is not None else {}

    def __repr__(self) -> str:
        return f"Patch({self.value!r}, {self.state!r})"


class Cell(msgspec.Struct, frozen=True):
    """Where a cell is executed, and what it may read.

    `state` and `previous` (lane values of the row that was executed before) are what they were when the row began,
    whatever happens since. `pending` counts, by lane, detached cells of earlier rows that had not ended then.
    """

    phase: str
    index: int
    step: int
    entry: int
    state: Mapping[str, Any]
    previous: Mapping[str, Any]
    pending: Mapping[str, int] = {}


class Compensation(msgspec.Struct, frozen=True):
    """What a cell of a compensating phase is told of the row that it compensates.

    `phase`, `index`, `step` and `entry` are those of that row. `state` are the variables as they were after the row's
    barrier, `lanes` the values of its awaited cells; neither can be changed.
    """

    phase: str
    index: int
    step: int
    entry: int
    state: Mapping[str, Any]
    lanes: Mapping[str, Any]


class Row(msgspec.Struct, frozen=True):
    """What a rule decides by: the row that was just executed, and the state after its barrier.

    `step` counts rows from 0, `entry` how often this phase was entered; `lanes` are the values of its awaited cells.
    `outcomes` says what became of each cell, by lane: its outcome, or `detached` if nobody waits for it. `phases` are
    the ids of all phases of the block, in their order.
    """

    policy: str
    phase: str
    index: int
    step: int
    entry: int
    state: Mapping[str, Any]
    lanes: Mapping[str, Any]
    pending: Mapping[str, int] = {}
    phases: tuple[str, ...] = ()
    outcomes: Mapping[str, str] = {}
