"""A Phases block executed here and now, by the kernel that decides stored runs, without a store.

The kernel asks for attempts and is told their outcomes; in between there is nothing but asyncio: each async cell is a
task, plain functions are called on the event loop. Values pass as the objects they are: a handle is a text that carries
its value, and is readable to the kernel only where the value is a small scalar (so that expressions see it).
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import msgspec

from treadle.authoring.bound import kind_of
from treadle.authoring.cells import Cell, Compensation, Patch, Row
from treadle.authoring.outcomes import PhasesCancelled, PhasesResult, Ticket, failed
from treadle.authoring.turns import RETURNED, Turns, rest
from treadle.authoring.undoable import UndoCall
from treadle.authoring.values import Held, held, value_of
from treadle.core.apply import new_state
from treadle.core.commands import Task
from treadle.core.conditions import parsed
from treadle.core.decide import Decision, Limits, decide, start
from treadle.core.events import Arg, DecisionMade, Failure, RowOpened
from treadle.core.expressions import holds, lookup_in
from treadle.core.graph import Graph
from treadle.core.inputs import AnyInput, Cancel, Outcome
from treadle.core.opened import PAUSE, TEST
from treadle.core.plan import Phase
from treadle.core.progress import PhasesProgress
from treadle.core.resolve import outcomes_of, pending_of, phase_ids
from treadle.core.state import RunState, ScopeState, StepState
from treadle.core.tables import RUNNING, SUCCEEDED

_UNBOUNDED: Final = Limits(dispatched=2**31, events=2**31)
# What attempts are for that belong to the undo of a cell.
_OF_UNDO: Final = frozenset({"prepare", "reconcile", "undo"})


class Table:
    """What the names of a block's plan stand for."""

    def __init__(self) -> None:
        # Action -> the function, whether it takes the cell (or row), and whether it is a coroutine function.
        self.functions: dict[str, tuple[Callable[..., Any], bool, bool]] = {}
        self.undos: dict[str, UndoCall] = {}

    def add(self, name: str, function: Callable[..., Any]) -> None:
        """Enter a function under a name."""
        takes = _takes_one(function)
        self.functions[name] = (function, takes, inspect.iscoroutinefunction(function))


def _takes_one(function: Callable[..., Any]) -> bool:
    """Whether a function takes what it is told, or nothing."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(known.kind in (known.POSITIONAL_ONLY, known.POSITIONAL_OR_KEYWORD) for known in parameters)


class _Live(msgspec.Struct, eq=False):
    """An attempt of an async cell or rule."""

    task: Task
    function: Callable[..., Any]
    args: tuple[Any, ...]
    handle: asyncio.Task[None] | None = None
    settled: bool = False


class Execution:
    """One execution of a block."""

    def __init__(self, graph: Graph, table: Table, constants: list[Held]) -> None:
        self.graph = graph
        self.table = table
        self.run: RunState = new_state("", "in process", graph, list(constants), [])
        # The state of the block, and how far it is; set when it is executed.
        self.block: ScopeState
        self.progress: PhasesProgress
        # What cells and rules have raised, and the last attempts to undo cells, by the numbers of their steps.
        self.errors: dict[int, BaseException] = {}
        self.undo_errors: dict[int, BaseException] = {}
        self.decisions: list[DecisionMade] = []
        # The detached cells that had not ended at the last decision, by lane.
        self.pending: dict[str, int] = {}
        self.tickets: list[Ticket] = []
        self._tickets: dict[int, Ticket] = {}
        self._ended: list[tuple[AnyInput, str]] = []
        self._waiter: asyncio.Future[None] | None = None
        # The task that executes the block; what it is to perform, or to raise, when it wakes.
        self._task: asyncio.Task[Any] | None = None
        self._decided: Decision | None = None
        self._fault: BaseException | None = None
        self._live: dict[int, _Live] = {}
        # Cells that were told to stop.
        self._stopping: list[asyncio.Task[None]] = []
        self._loop = asyncio.get_running_loop()
        self._turns = Turns(self._loop, self._run_cells, self._go_on)
        self._cell: Cell | None = None

    async def execute(self) -> PhasesResult:
        """Run the block to its end.

        Raises:
            PhasesFailedError: it failed; the error carries what had been done.
            PhasesCancelled: the task was cancelled; as above.
        """
        run = self.run
        self._task = asyncio.current_task()
        decision = start(run, now=0.0, limits=_UNBOUNDED)
        # The only block of the plan, which is never opened anew.
        block = run.states[1]
        assert isinstance(block, ScopeState)
        assert isinstance(block.block, PhasesProgress)
        self.block, self.progress = block, block.block
        try:
            self._note(decision)
            self._perform(decision)
            while run.status == RUNNING or self._decided is not None:
                if self._fault is not None:
                    raise self._fault
                if self._decided is not None:
                    decision, self._decided = self._decided, None
                    self._perform(decision)
                elif self._ended:
                    self._perform(self._decide())
                else:
                    self._waiter = self._loop.create_future()
                    await self._waiter
            if self._stopping:
                await asyncio.wait(self._stopping)
        except asyncio.CancelledError as error:
            await self._stop()
            # What was told to stop has its outcome then, and undos that have not been made are parked.
            decide(run, [(Cancel(hard=True), ""), *self._ended], now=0.0, limits=_UNBOUNDED)
            raise PhasesCancelled(PhasesResult(self)) from error
        if run.status != SUCCEEDED:
            raise failed(PhasesResult(self), self)
        return PhasesResult(self)

    def _decide(self) -> Decision:
        inputs, self._ended = self._ended, []
        decision = decide(self.run, inputs, now=0.0, limits=_UNBOUNDED)
        self._note(decision)
        return decision

    def _go_on(self) -> None:
        """No cell waits for its turn any more: begin what follows here, if it is async cells only.

        So rows of cells that do not wait share a task, and the loop's turns. Whatever else follows, plain functions
        among it, is done by the block's own task, which has the context of who executes the block.
        """
        if not self._ended or self._decided is not None:
            return
        if self._task is not None and not self._task.cancelling():
            try:
                decision = self._decide()
                if decision.interrupts or not self._await_all(decision.tasks):
                    self._decided = decision
                elif self.run.status == RUNNING:
                    return
            except Exception as error:  # noqa: BLE001 - a fault of the kernel: the block's own task raises it
                self._fault = error
        self._wake()

    def _await_all(self, tasks: Sequence[Task]) -> bool:
        """Begin these tasks if they all are async cells or rules that begin at once; whether they are."""
        functions = self.table.functions
        found = [functions.get(task.action) for task in tasks]
        begun: list[tuple[Task, Callable[..., Any], bool]] = []
        for task, called in zip(tasks, found, strict=True):
            if called is None or not called[2] or task.not_before > 0 or task.call.purpose in _OF_UNDO:
                return False
            begun.append((task, called[0], called[1]))
        for task, function, takes in begun:
            self._await(task, function, self._given_to(task, takes))
        return True

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _stop(self) -> None:
        """Cancel all that is alive, detached cells included, and wait for it."""
        tasks = [live.handle for live in self._live.values() if live.handle is not None]
        for live in list(self._live.values()):
            self._cancel(live)
        if tasks:
            await asyncio.wait(tasks)

    # -- what the kernel asks for ------------------------------------------------------------------------------

    def _note(self, decision: Decision) -> None:
        for event in decision.events:
            kind = type(event)
            if kind is RowOpened:
                self._cell = None
            elif kind is DecisionMade:
                self.decisions.append(event)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # its kind is known
                progress = self.progress
                self.pending = pending_of(self.run, progress) if progress.background else {}

    def _perform(self, decision: Decision) -> None:
        for number in decision.interrupts:
            live = self._live.get(number)
            if live is not None:
                if live.handle is not None:
                    self._stopping.append(live.handle)
                self._cancel(live)
        for asked in decision.tasks:
            self._begin(asked)

    def _begin(self, task: Task) -> None:
        action = task.action
        if action == PAUSE:
            self._loop.call_later(task.not_before, self._end, task, None)
        elif task.not_before > 0:
            self._loop.call_later(task.not_before, self._start, task)
        else:
            self._start(task)

    def _start(self, task: Task) -> None:
        action = task.action
        if action == TEST:
            self._test(task)
            return
        if task.call.purpose in _OF_UNDO:
            step = self.run.states[task.number]
            assert isinstance(step, StepState)
            call = self.table.undos[action]
            given = {name: value_of(arg) for name, arg in task.call.args.items()}
            self._call(task, call, (self._told(step), given), call.is_async)
            return
        function, takes, is_async = self.table.functions[action]
        self._call(task, function, self._given_to(task, takes), is_async)

    def _given_to(self, task: Task, takes: bool) -> tuple[Any, ...]:
        """The arguments of a cell or rule that begins; one that is detached gets its ticket."""
        step = self.run.states[task.number]
        assert isinstance(step, StepState)
        if step.around is self.progress.detached:
            ticket = Ticket(step.spec.id, self.progress.step, self._loop.create_future())
            self._tickets[task.number] = ticket
            self.tickets.append(ticket)
        if not takes:
            return ()
        row = step.node.scope
        return (self._told(step) if row is not None and isinstance(row.spec, Phase) else self._row(),)

    def _call(self, task: Task, function: Callable[..., Any], args: tuple[Any, ...], is_async: bool) -> None:
        if is_async:
            self._await(task, function, args)
            return
        try:
            value = function(*args)
        except Exception as error:  # noqa: BLE001 - whatever user code raises becomes the cell's outcome
            self._end(task, None, error)
            return
        if inspect.isawaitable(value):
            self._await(task, lambda: _awaited(value), ())
        else:
            self._end(task, value)

    def _await(self, task: Task, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        live = self._live[task.number] = _Live(task, function, args)
        self._turns.add(live)

    def _cancel(self, live: _Live) -> None:
        if live.handle is not None:
            live.handle.cancel()
        else:
            # It never begins.
            live.settled = True
            self._end(live.task, None, asyncio.CancelledError())

    def _told(self, step: StepState) -> Cell | Compensation:
        """What the cells of a row are told; one object for all of those of the present row."""
        assert step.node.scope is not None
        row = self.run.states[step.node.scope.number]
        assert isinstance(row, ScopeState)
        if row is not self.progress.row:
            return self._cell_of(row) if row.compensates is None else self._compensation(row, row.compensates)
        cell = self._cell
        if cell is None:
            cell = self._cell = self._cell_of(row)
        return cell

    def _cell_of(self, row: ScopeState) -> Cell:
        phase, sight = row.node.spec, row.sight
        assert isinstance(phase, Phase)
        assert sight is not None
        return Cell(
            phase.id,
            self.progress.phases[phase.id].position,
            row.index,
            sight.entry,
            _view(sight.state),
            _view(sight.previous),
            MappingProxyType(sight.pending),
        )

    def _compensation(self, scope: ScopeState, row: ScopeState) -> Compensation:
        """What the cells of a compensating phase are told of the row that they take back."""
        phase, sight = row.node.spec, scope.sight
        assert isinstance(phase, Phase)
        assert sight is not None
        position = self.progress.phases[phase.id].position
        return Compensation(phase.id, position, row.index, sight.entry, _view(sight.state), _view(sight.previous))

    def _row(self) -> Row:
        progress = self.progress
        row = progress.row
        assert row is not None
        phase = row.node.spec
        assert isinstance(phase, Phase)
        return Row(
            phase.policy,
            phase.id,
            progress.phases[phase.id].position,
            row.index,
            progress.entries[phase.id],
            _view(progress.state),
            _view(progress.previous),
            MappingProxyType(pending_of(self.run, progress)),
            tuple(phase_ids(self.block)),
            MappingProxyType(outcomes_of(self.run, row)),
        )

    def _test(self, task: Task) -> None:
        args = task.call.args
        try:
            found = holds(parsed(value_of(args["text"])), lookup_in(value_of(args["values"])))
        except Exception as error:  # noqa: BLE001 - an expression over objects that are no JSON may raise anything
            self._end(task, None, error)
            return
        self._end(task, found)

    # -- what happened -------------------------------------------------------------------------------------------

    def _run_cells(self, cells: Iterable[_Live]) -> Coroutine[Any, Any, None] | None:
        """Run cells until one waits; gives its rest."""
        for live in cells:
            if (ending := self._run(live)) is not None:
                return ending
        return None

    def _run(self, live: _Live) -> Coroutine[Any, Any, None] | None:
        """Run a cell until it waits; gives the rest."""
        if live.task.call.timeout is not None:
            return self._finish(live, self._timed(live))
        scope = contextvars.copy_context()
        carrier = self._turns.carrier
        try:
            awaited = scope.run(carrier.send, (None, live.function, live.args))
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - as in _start
            self._turns.renew()
            self._end(live.task, None, error)
            return None
        if awaited is not RETURNED:
            return self._finish(live, rest(scope, carrier, awaited))
        self._end(live.task, carrier.take())
        return None

    async def _timed(self, live: _Live) -> Any:
        async with asyncio.timeout(live.task.call.timeout):
            return await live.function(*live.args)

    async def _finish(self, live: _Live, ending: Awaitable[Any]) -> None:
        try:
            value = await ending
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - as in _start
            self._end(live.task, None, error)
        else:
            self._end(live.task, value)

    def _end(self, task: Task, value: Any, error: BaseException | None = None) -> None:
        number = task.number
        self._live.pop(number, None)
        if error is None and not self._tickets and kind_of(value) is not Patch and task.call.purpose == "step":
            # The plain case of what follows.
            outcome = Outcome(number=number, generation=task.generation, attempt=task.attempt, result=held(value))
        else:
            outcome = self._ending(task, value, error)
        self._ended.append((outcome, ""))
        if not self._turns.busy:
            # Else `_go_on` follows.
            self._wake()

    def _ending(self, task: Task, value: Any, error: BaseException | None) -> Outcome:
        """The outcome of an attempt."""
        number = task.number
        patch: Mapping[str, Any] = {}
        of_undo = task.call.purpose in _OF_UNDO
        if kind_of(value) is Patch and not of_undo:
            value, patch = value.value, value.state
        ticket = self._tickets.get(number) if not of_undo else None
        if ticket is not None and patch and error is None:
            error = TypeError(f"the detached cell {ticket.lane!r} cannot return state patch: nobody waits for it")
        if error is None:
            outcome = Outcome(
                number=number,
                generation=task.generation,
                attempt=task.attempt,
                result=held(value),
                patch={name: held(item) for name, item in patch.items()} if patch else None,
            )
        else:
            outcome = self._failed(task, error)
        if ticket is not None:
            ticket.settle(value, error)
        return outcome

    def _failed(self, task: Task, error: BaseException) -> Outcome:
        if isinstance(error, asyncio.CancelledError):
            return Outcome(number=task.number, generation=task.generation, attempt=task.attempt, status="cancelled")
        errors = self.undo_errors if task.call.purpose in ("undo", "reconcile") else self.errors
        errors[task.number] = error
        failure = Failure(code=getattr(error, "code", "error"), message=str(error), type=type(error).__name__)
        return Outcome(
            number=task.number, generation=task.generation, attempt=task.attempt, status="failed", failure=failure
        )


async def _awaited(value: Any) -> Any:
    return await value


def _view(values: Mapping[str, Arg]) -> Mapping[str, Any]:
    """Values by name, which nobody can change."""
    return MappingProxyType({name: value_of(arg) for name, arg in values.items()})
