"""What comes of a Phases block that was executed in process: the result, or an error that carries as much of it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from treadle.authoring.values import value_of
from treadle.core.addresses import encode_id
from treadle.core.events import DecisionMade
from treadle.core.phases import asked_rule
from treadle.core.plan import Phase
from treadle.core.state import NodeState, RunState, ScopeState, StepState, settled
from treadle.core.tables import NONE, SUCCEEDED
from treadle.errors import PhasesFailedError, StepLimitError, TransitionError

if TYPE_CHECKING:
    from treadle.authoring.in_process import Execution

Mode = Literal["awaited", "detached"]


class Ticket:
    """A detached cell: `await ticket` gives its value or raises its error, as often as one asks."""

    __slots__ = ("_future", "lane", "step")

    def __init__(self, lane: str, step: int, future: asyncio.Future[Any]) -> None:
        self.lane = lane
        # The number of the row that launched it.
        self.step = step
        self._future = future

    @property
    def done(self) -> bool:
        """Whether the cell has ended."""
        return self._future.done()

    @property
    def error(self) -> BaseException | None:
        """What the cell raised; None while it runs, or if it returned."""
        return self._future.exception() if self._future.done() else None

    def __await__(self) -> Generator[Any, None, Any]:
        # Whoever gives up waiting does not cancel the cell.
        return asyncio.shield(self._future).__await__()

    def settle(self, value: Any, error: BaseException | None) -> None:
        """Enter the outcome."""
        if self._future.done():
            return
        if error is None:
            self._future.set_result(value)
            return
        if isinstance(error, asyncio.CancelledError):
            error = RuntimeError(f"the detached cell {self.lane!r} was cancelled")
        self._future.set_exception(error)
        # Nobody has to ask.
        self._future.exception()

    def __repr__(self) -> str:
        return f"<ticket of {self.lane!r}, row {self.step}: {'done' if self.done else 'pending'}>"


@dataclass(frozen=True)
class LaneRun:
    """One cell of an executed row. `status` is its outcome, or how far it is; `value` what it returned.

    `undo` is the status of its undo, `undo_error` what the last attempt to undo it raised.
    """

    lane: str
    mode: Mode
    status: str
    value: Any = None
    ticket: Ticket | None = None
    error: BaseException | None = None
    undo: str = NONE
    undo_error: BaseException | None = None


@dataclass(frozen=True)
class RowRun:
    """One executed row, with what its policy decided; `move` is empty if that did not come to pass.

    `pending` counts the detached cells that had not ended when the decision was made, by lane. `undo` is the status of
    its compensation, if its phase has one. For a compensating phase `compensates` is the phase that it took back, and
    `step` and `entry` are that row's.
    """

    phase: str
    step: int
    entry: int
    lanes: tuple[LaneRun, ...]
    pending: Mapping[str, int]
    move: str = ""
    target: str = ""
    policy: str = ""
    rule: str = ""
    overwritten: tuple[str, ...] = ()
    undo: str = NONE
    compensates: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """The values of the awaited cells that succeeded, by lane: what the next row saw."""
        return {run.lane: run.value for run in self.lanes if run.mode == "awaited" and run.status == SUCCEEDED}


class PhasesResult:
    """What a block has come to.

    `end_reason` is `stop`, `advanced_past_end`, or empty if it did not end by a decision. Rows are put together when
    they are first asked for.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._rows: list[RowRun] | None = None
        self._compensations: list[RowRun] | None = None

    @property
    def state(self) -> dict[str, Any]:
        """The variables, after the last barrier that was passed."""
        return {name: value_of(arg) for name, arg in self._execution.progress.state.items()}

    @property
    def tickets(self) -> list[Ticket]:
        """The detached cells, in the order they were launched."""
        return list(self._execution.tickets)

    @property
    def end_reason(self) -> str:
        """Why the block ended."""
        decisions = self._execution.decisions
        if not decisions or decisions[-1].target:
            return ""
        return "stop" if decisions[-1].move == "stop" else "advanced_past_end"

    @property
    def rows(self) -> list[RowRun]:
        """All rows that were executed, the last one of a failure included."""
        if self._rows is None:
            self._rows = [*_rows(self._execution)]
        return self._rows

    @property
    def compensations(self) -> list[RowRun]:
        """The compensating phases that were executed, in that order."""
        if self._compensations is None:
            execution = self._execution
            self._compensations = [*_compensations(execution)] if execution.run.compensable else []
        return self._compensations

    @property
    def unwound(self) -> str:
        """How much of what a block did that failed is undone: `fully`, `partly`, or empty if nothing had to be."""
        return self._execution.block.unwound

    async def wait_detached(self, timeout: float | None = None) -> list[Ticket]:
        """Wait until all detached cells have ended (or `timeout` seconds are over); gives those that have."""
        tickets = self._execution.tickets
        if tickets:
            await asyncio.wait([asyncio.ensure_future(_ended(ticket)) for ticket in tickets], timeout=timeout)
        return [ticket for ticket in tickets if ticket.done]

    def __repr__(self) -> str:
        return f"<result of {len(self._execution.decisions)} rows: {self.end_reason or 'not ended'}>"


async def _ended(ticket: Ticket) -> None:
    try:
        await ticket
    except Exception:  # noqa: BLE001 - that it has ended is what is waited for; the error stays in the ticket
        return


class PhasesCancelled(asyncio.CancelledError):
    """The task that executed a block was cancelled. `partial` is what had been done."""

    def __init__(self, partial: PhasesResult) -> None:
        super().__init__("the block was cancelled")
        self.partial = partial


def _rows(execution: Execution) -> Generator[RowRun]:
    run = execution.run
    decisions = {made.step: made for made in execution.decisions}
    tickets = {(ticket.step, ticket.lane): ticket for ticket in execution.tickets}
    entries: dict[str, int] = {}
    rows = [
        state
        for state in run.states
        if isinstance(state, ScopeState) and isinstance(state.node.spec, Phase) and state.compensates is None
    ]
    for place, state in enumerate(rows):
        phase = state.node.spec
        assert isinstance(phase, Phase)
        entries[phase.id] = entry = entries.get(phase.id, 0) + 1
        lanes = tuple(_lane(run, execution, state, block.id, phase, tickets) for block in phase.blocks)
        made: DecisionMade | None = decisions.get(state.index)
        undo = state.undo.status if state.undo is not None else NONE
        following = rows[place + 1] if place + 1 < len(rows) else None
        # A row that was tried again was followed by nothing but itself.
        if made is None or (following is not None and following.index == state.index):
            yield RowRun(phase.id, state.index, entry, lanes, {}, undo=undo)
            continue
        # What the next row saw is what there was when this one was decided, whatever has ended or begun since.
        after = following.sight if following is not None else None
        yield RowRun(
            phase.id,
            state.index,
            entry,
            lanes,
            dict(after.pending if after is not None else execution.pending),
            made.move,
            made.target,
            made.policy,
            made.rule,
            tuple(made.overwritten),
            undo,
        )


def _compensations(execution: Execution) -> Generator[RowRun]:
    run = execution.run
    for scope in run.states:
        own = scope.compensates if isinstance(scope, ScopeState) else None
        if isinstance(scope, ScopeState) and isinstance(scope.node.spec, Phase) and own is not None:
            phase, row = scope.node.spec, own.node.spec
            assert isinstance(row, Phase)
            lanes = tuple(_lane(run, execution, scope, block.id, phase, {}) for block in phase.blocks)
            entry = own.sight.entry if own.sight is not None else 1
            yield RowRun(phase.id, own.index, entry, lanes, {}, compensates=row.id)


def _lane(
    run: RunState,
    execution: Execution,
    row: ScopeState,
    lane: str,
    phase: Phase,
    tickets: dict[tuple[int, str], Ticket],
) -> LaneRun:
    state = _cell(run, row, lane)
    number = state.node.number
    value = value_of(state.result) if state.status == SUCCEEDED else None
    mode: Mode = "detached" if lane in phase.detached else "awaited"
    ticket = tickets.get((row.index, lane))
    status = state.status if settled(state) else "running"
    undo = state.undo.status if state.undo is not None else NONE
    error = execution.errors.get(number)
    return LaneRun(lane, mode, status, value, ticket, error, undo, execution.undo_errors.get(number))


def _cell(run: RunState, row: ScopeState, lane: str) -> NodeState:
    node = run.find(row.node, encode_id(lane))
    assert node is not None
    return run.states[node.number]


def failed(partial: PhasesResult, execution: Execution) -> PhasesFailedError:
    """The error of a block that failed: the first cell that did, or what is wrong with a decision."""
    block = execution.block
    own = block.failure
    if own is not None:
        kind = {"step_limit": StepLimitError}.get(own.code, TransitionError)
        return kind(own.message, partial=partial, kind=own.code)
    cause = _root_cause(execution, block)
    if isinstance(cause, ScopeState):
        failure = cause.failure
        assert failure is not None
        return PhasesFailedError(failure.message, partial=partial, kind=failure.code)
    error = execution.errors.get(cause.node.number)
    where = _where(execution, cause)
    made = PhasesFailedError(f"{where} failed: {_said(error)}", partial=partial, kind=getattr(error, "code", "error"))
    made.__cause__ = error
    return made


def _said(error: BaseException | None) -> str:
    if error is None:
        return "no reason is known"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _where(execution: Execution, step: StepState) -> str:
    around = step.node.scope
    if around is not None and isinstance(around.spec, Phase):
        return f"phase {around.spec.id!r} lane {step.spec.id!r}"
    return asked_rule(execution.block)


def _root_cause(execution: Execution, scope: ScopeState) -> StepState | ScopeState:
    """The first mandatory cell that failed by itself, or the scope that did."""
    for number in scope.bad:
        state = execution.run.states[number]
        if isinstance(state, StepState):
            return state
        return state if state.failure is not None else _root_cause(execution, state)
    return scope
