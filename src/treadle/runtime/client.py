"""The client: an application on a store, and handles of its runs. `runtime.blocking` is its synchronous form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

import msgspec

from treadle.authoring import codec
from treadle.authoring.builder import Planned
from treadle.authoring.decorators import WorkflowFunction
from treadle.authoring.durations import Duration
from treadle.authoring.registry import Registry
from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.addresses import check_id
from treadle.core.commands import Refusal
from treadle.core.documents import Document
from treadle.core.events import AnyEvent, Arg, Handle, decode_events
from treadle.core.plan import Block
from treadle.core.state import ScopeState
from treadle.core.tables import RUNNING, SUCCEEDED
from treadle.errors import (
    ConflictError,
    DefinitionError,
    RunCancelledError,
    RunError,
    RunExistsError,
    RunNotActiveError,
    RunNotFoundError,
    RunNotPausedError,
    RunNotRunningError,
    StepBusyError,
    StepCancelledError,
    StepFailedError,
    StepNotFoundError,
    StepSkippedError,
    StoreUnavailableError,
    UsageError,
)
from treadle.runtime.answers import BlockLook, failed_run, no_value
from treadle.runtime.children import last_settlement
from treadle.runtime.folding import CAUSE_SEPARATOR
from treadle.runtime.inspection import Snapshot, snapshot
from treadle.runtime.node import Node
from treadle.runtime.payloads import assemble, handles_of
from treadle.runtime.receipts import receipt_of_run
from treadle.runtime.requests import request
from treadle.runtime.run_analysis import RunAnalysis, analyse
from treadle.runtime.starting import Start, begin, data_text, is_same, opening_time
from treadle.runtime.why import Reason, why
from treadle.store.base import Health, Loaded, RunQuery, RunRow, SessionRow, StepRow

R = TypeVar("R")
T = TypeVar("T")
_REFUSALS: dict[str, type[RunError]] = {
    "run_not_found": RunNotFoundError,
    "step_not_found": StepNotFoundError,
    "step_busy": StepBusyError,
}
_INACTIVE: dict[str, type[RunNotActiveError]] = {
    "run_not_running": RunNotRunningError,
    "run_not_paused": RunNotPausedError,
    "run_not_active": RunNotActiveError,
}
# How often whoever waits for another process looks by himself.
LOOK_SECONDS = 5.0
OnConflict = Literal["reuse", "reject", "replace"]


class App:
    """An open application: starts runs and, unless it was opened with `worker=False`, executes their steps.

    Made by `treadle.connect`. Use it as an async context manager; leaving it ends its session, and what it held
    goes on in other processes, or in the next one that opens the store.
    """

    def __init__(self, node: Node, on_close: Callable[[], None]) -> None:
        self._node = node
        self._on_close = on_close

    async def __aenter__(self) -> App:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def registry(self) -> Registry:
        """The definitions that this application executes."""
        return self._node.registry

    @property
    def durability(self) -> str:
        """What survives what, in the store's words."""
        return self._node.store.durability

    @property
    def hook_failures(self) -> int:
        """How often a hook of this application has raised; each time was logged to `treadle.hooks`."""
        return 0 if self._node.observers is None else self._node.observers.failures

    @overload
    async def start(
        self,
        workflow: WorkflowFunction[..., R],
        *args: Any,
        id: str | None = ...,
        labels: Mapping[str, str] | None = ...,
        breakpoints: Iterable[str] = ...,
        data: Mapping[str, Any] | None = ...,
        dry_run: bool = ...,
        on_conflict: OnConflict = ...,
        delay: Duration | None = ...,
        run_at: datetime | None = ...,
        **kwargs: Any,
    ) -> Run[R]: ...
    @overload
    async def start(
        self,
        workflow: Planned,
        *,
        id: str | None = ...,
        labels: Mapping[str, str] | None = ...,
        breakpoints: Iterable[str] = ...,
        data: Mapping[str, Any] | None = ...,
        dry_run: bool = ...,
        on_conflict: OnConflict = ...,
        delay: Duration | None = ...,
        run_at: datetime | None = ...,
    ) -> Run[Any]: ...
    async def start(
        self,
        workflow: Any,
        *args: Any,
        id: str | None = None,
        labels: Mapping[str, str] | None = None,
        breakpoints: Iterable[str] = (),
        data: Mapping[str, Any] | None = None,
        dry_run: bool = False,
        on_conflict: OnConflict = "reuse",
        delay: Duration | None = None,
        run_at: datetime | None = None,
        **kwargs: Any,
    ) -> Run[Any]:
        """Start a run; durable when this returns.

        `id` is an idempotency key (a new key where it is left out). If a run of that id exists, `on_conflict`
        decides: `reuse` attaches to it if workflow and input are the same, `reject` raises, `replace` cancels
        hard and deletes it first. `breakpoints` are the labels to arm. `data` is what every step can read, and what
        fills parameters declared with `FROM_DATA`. With `dry_run` every step is told to change nothing. With `delay`
        or `run_at` no step starts before that time.

        Raises:
            DefinitionError: the workflow as written is wrong, or data that it needs is missing; all mistakes at once.
            RunExistsError: the id is taken by a run that does something else.
        """
        planned = workflow if isinstance(workflow, Planned) else workflow.plan(*args, **kwargs)
        if id is not None:
            check_id(id, "run id")
        armed = list(breakpoints)
        if any(not label for label in armed):
            raise DefinitionError("a breakpoint label is empty; give the label that the steps carry")
        given = dict(data or {})
        start = Start(
            id=id or "",
            not_before=opening_time(self._node.environment.clock.now(), delay, run_at),
            labels=dict(labels or {}),
            breakpoints=armed,
            data=data_text(given),
            names=list(given),
            dry_run=dry_run,
        )
        while True:
            run = await self._start(planned, start)
            if run is not None:
                return run
            assert id is not None
            existing = Run[Any](self._node, id, planned.result)
            if on_conflict == "replace":
                await self._clear(existing)
                continue
            await self._attach(existing, planned, start, reject=on_conflict == "reject")
            return existing

    async def _start(self, planned: Planned, start: Start) -> Run[Any] | None:
        node = self._node
        key = node.environment.ids.key()
        status = await begin(node, planned, msgspec.structs.replace(start, key=key))
        if status == "committed":
            return Run[Any](node, start.id or key, planned.result, key)
        if status == "exists":
            return None
        raise StoreUnavailableError(f"the run could not be made ({status}); try again")

    async def _attach(self, run: Run[Any], planned: Planned, start: Start, *, reject: bool) -> None:
        """Make sure that an existing run is the one that was to be started, and that somebody decides it."""
        head = (await run.load()).head
        same = await is_same(self._node, head, planned, start)
        if reject or not same:
            what = "exists" if same else "exists with another workflow or input"
            raise RunExistsError(f"run {run.id!r} {what}; choose another id, or on_conflict='replace'", run_id=run.id)
        await self._node.engine.acquire(head.key)

    async def _clear(self, run: Run[Any]) -> None:
        """Cancel a run hard, wait until nothing of it or of the runs below it goes on, and delete it."""
        await run.cancel(hard=True)
        key = await run.key()
        async with aclosing(run.changes()) as changes:
            async for _ in changes:
                if await self._node.committer.call(lambda store: store.delete(key)) != "open":
                    return

    def run(self, id: str, type: Any = Any) -> Run[Any]:
        """The handle of a run by its id (or a unique prefix of its id or key). Nothing is read yet."""
        return Run[Any](self._node, id, codec.adapter(type))

    async def find(self, prefix: str) -> list[RunRow]:
        """The runs whose id or key starts with `prefix`; only the exact one if there is one."""
        node = self._node

        def read() -> list[RunRow]:
            rows = [node.reader.run(key) for key in node.reader.find(prefix)]
            return [row for row in rows if row is not None]

        return await node.read(read)

    async def runs(
        self,
        *,
        status: str = "",
        workflow: str = "",
        labels: Mapping[str, str] | None = None,
        id_prefix: str = "",
        after: str = "",
        limit: int = 100,
        parent: str = "",
    ) -> list[RunRow]:
        """Runs, newest first; `after` is the key of the last row of the page before, `parent` that of the caller."""
        query = RunQuery(
            status=status,
            workflow=workflow,
            labels=dict(labels or {}),
            id_prefix=id_prefix,
            after=after,
            limit=limit,
            parent=parent,
        )
        return await self._node.read(lambda: self._node.reader.runs(query))

    async def dead(self, limit: int = 100) -> list[tuple[RunRow, StepRow]]:
        """Steps that failed for good, newest first."""
        return await self._node.read(lambda: self._node.reader.dead(limit))

    async def sessions(self) -> list[SessionRow]:
        """Live sessions."""
        return await self._node.read(self._node.reader.sessions)

    async def check(self) -> Health:
        """Integrity and configuration of the store."""
        return await self._node.read(self._node.reader.check)

    async def drain(self, grace_seconds: float | None = None) -> bool:
        """Take no new attempts and wait for those that run; False if some still ran after the grace."""
        return await self._node.drain(grace_seconds)

    async def close(self) -> None:
        """End the session. Attempts that still run are given up; they run again elsewhere."""
        await self._node.close()
        self._on_close()


class Run(Generic[R]):
    """The handle of one run. All methods may be called by any process that knows the id."""

    def __init__(self, node: Node, id: str, result: codec.Adapter, key: str = "") -> None:
        self._node = node
        self.id = id
        self._adapter = result
        self._key = key
        # The plan's, once they were asked for.
        self._blocks: list[Block] | None = None

    def __repr__(self) -> str:
        return f"<run {self.id}>"

    async def key(self) -> str:
        """The run's key.

        Raises:
            RunNotFoundError: no run has this id, or several start with it.
        """
        if not self._key:
            keys = await self._node.read(lambda: self._node.reader.find(self.id))
            if len(keys) != 1:
                raise self._not_found(len(keys))
            self._key = keys[0]
            row = await self._node.read(lambda: self._node.reader.run(self._key))
            if row is not None:
                self.id = row.id
        return self._key

    def _not_found(self, count: int = 0) -> RunNotFoundError:
        text = f"{count} runs start with {self.id!r}; give more of the id" if count else f"there is no run {self.id!r}"
        return RunNotFoundError(text, run_id=self.id)

    # -- waiting ---------------------------------------------------------------------------------------------------

    async def row(self) -> RunRow:
        """The run's row as it is now."""
        key = await self.key()
        row = await self._node.read(lambda: self._node.reader.run(key))
        if row is None:
            raise self._not_found()
        return row

    async def wait(self, timeout: float | None = None) -> RunRow:
        """Wait until the run has its outcome; the outcome itself raises nothing.

        Raises:
            TimeoutError: it has none after `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            await self._end()
        return await self.row()

    async def _end(self) -> ev.RunSettled:
        """Wait for the run's last settlement. A run that this process decides is not read at all."""
        key = await self.key()
        node = self._node
        while True:
            hub = node.hub
            ended = hub.wait(key, end=True)
            try:
                if node.engine.will_tell(key):
                    event = await ended
                    if event is not None:
                        return event
                row = await self.row()
                if row.status != RUNNING:
                    return await self._settled(row.version)
                if not node.engine.will_tell(key):
                    # The datagram of an end can be lost; a look every few seconds makes that good.
                    await asyncio.wait([ended], timeout=LOOK_SECONDS)
            finally:
                hub.drop(key, ended, end=True)

    async def changes(self) -> AsyncGenerator[None, None]:
        """Yield now, and whenever the run may have changed."""
        key = await self.key()
        while True:
            hub = self._node.hub
            changed = hub.wait(key)
            try:
                yield None
                await asyncio.wait([changed], timeout=LOOK_SECONDS)
            finally:
                hub.drop(key, changed)

    async def result(self, timeout: float | None = None) -> R:
        """Wait for the run's result.

        Raises:
            RunFailedError: naming the failed steps, root cause first.
            RunCancelledError: it was cancelled.
            StepSkippedError: a step that the result needs was skipped by its condition.
            TimeoutError: the run has no outcome after `timeout` seconds; it goes on.
        """
        if timeout is None:
            settled = await self._end()
        else:
            async with asyncio.timeout(timeout):
                settled = await self._end()
        if settled.outcome == "cancelled":
            raise RunCancelledError(f"run {self.id!r} was cancelled", run_id=self.id)
        if settled.outcome != SUCCEEDED:
            raise await failed_run(self._node, await self.key(), self.id, settled)
        if settled.missing:
            step = settled.missing[0]
            raise StepSkippedError(
                f"run {self.id!r} has no result: step {step!r} was skipped", run_id=self.id, step=step, upstream=[step]
            )
        value: R = await self._value(settled.result, self._adapter)
        return value

    async def _settled(self, version: int) -> ev.RunSettled:
        found = await last_settlement(self._node, await self.key(), version)
        if found is None:
            raise self._not_found()
        return found

    async def _value(self, arg: Arg, adapter: codec.Adapter) -> Any:
        if isinstance(arg, str) and arg.startswith("="):
            return adapter.decode(arg[1:])
        handles: list[Handle] = []
        handles_of(arg, handles)
        texts = await self._node.payloads.load(await self.key(), handles)
        if isinstance(arg, str):
            return adapter.decode(texts[arg])
        return adapter.convert(assemble(arg, {handle: codec.plain(text) for handle, text in texts.items()}))

    @overload
    async def step(self, id: str, *, type: type[T], timeout: float | None = ...) -> T: ...
    @overload
    async def step(self, id: str, *, timeout: float | None = ...) -> Any: ...
    async def step(self, id: str, *, type: Any = Any, timeout: float | None = None) -> Any:
        """Wait for the value of one step, or of a block, by its address.

        Raises:
            StepFailedError, StepSkippedError (naming the upstream), StepCancelledError: it will have none.
            StepNotFoundError: the run closed without a step or block of this address.
            TimeoutError: the step has not settled after `timeout` seconds.
        """
        key = await self.key()
        look = BlockLook(self._node, key, id)
        async with asyncio.timeout(timeout), aclosing(self.changes()) as changes:
            async for _ in changes:
                answer = await self._node.read(lambda: self._node.reader.step(key, id))
                if answer.step is not None:
                    return await self._step_value(answer.step, codec.adapter(type))
                if not answer.status:
                    raise self._not_found()
                if (scope := await self._block(look, closed=answer.status != RUNNING)) is not None:
                    if scope.status != SUCCEEDED:
                        raise no_value(scope, self.id)
                    return await self._value(scope.result, codec.adapter(type))
                if answer.status != RUNNING:
                    raise StepNotFoundError(
                        f"run {self.id!r} is {answer.status} and has no step {id!r}", run_id=self.id
                    )
        raise self._not_found()

    async def _block(self, look: BlockLook, *, closed: bool) -> ScopeState | None:
        """The block that is looked for, once it has its outcome."""
        if not closed:
            if self._blocks is None:
                self._blocks = await look.plan()
            if not look.is_block(self._blocks) or not await look.news():
                return None
        return await look.settled()

    async def _step_value(self, step: StepRow, adapter: codec.Adapter) -> Any:
        where = f"step {step.address!r} of run {self.id!r}"
        if step.status == SUCCEEDED:
            return await self._value(step.result, adapter)
        if step.status == "skipped":
            causes = [at for at in step.causes.split(CAUSE_SEPARATOR) if at]
            text = f"{where} was skipped because of {', '.join(causes) or 'its condition'}"
            raise StepSkippedError(text, run_id=self.id, step=step.address, upstream=causes)
        if step.status == "cancelled":
            raise StepCancelledError(f"{where} was cancelled", run_id=self.id, step=step.address)
        text = f"{where} failed: {step.code}: {step.message}"
        raise StepFailedError(text, run_id=self.id, step=step.address, kind=step.code)

    # -- reading ---------------------------------------------------------------------------------------------------

    async def load(self) -> Loaded:
        """The run as stored, in one consistent read."""
        key = await self.key()
        loaded = await self._node.read(lambda: self._node.reader.load(key))
        if loaded is None:
            raise self._not_found()
        return loaded

    async def inspect(self) -> Snapshot:
        """Everything about the run, in one consistent read."""
        loaded = await self.load()
        sessions = await self._node.read(self._node.reader.sessions)
        return snapshot(loaded, sessions, self._node.environment.clock.now())

    async def analysis(self) -> RunAnalysis:
        """The run's graph, with the times that its steps took."""
        return analyse(await self.load(), self._node.environment.clock.now())

    async def why(self, step: str | None = None) -> list[Reason]:
        """Why the run, or one step, is not going on: each fence and each lack of capacity, by name."""
        loaded = await self.load()
        reader = self._node.reader
        sessions = await self._node.read(reader.sessions)
        waiting = await self._node.read(reader.waiting)
        return why(loaded, sessions, waiting, self._node.environment.clock.now(), step)

    async def receipt(self, context: Mapping[str, str] | None = None) -> Document:
        """The plan with what happened, as a document; for open, failed and cancelled runs too."""
        return await receipt_of_run(self._node, await self.load(), context)

    async def detail(self, handle: Handle) -> Any:
        """The value behind a payload handle, such as a failure's full text."""
        return await self._value(handle, codec.adapter(Any))

    async def events(self, *, after: int = 0, follow: bool = False) -> AsyncIterator[tuple[int, float, AnyEvent]]:
        """The journal as (version, time, event); with `follow`, until the run has its outcome."""
        key = await self.key()
        async with aclosing(self.changes()) as changes:
            async for _ in changes:
                row = await self.row()
                while True:
                    rows = await self._node.read(partial(self._node.reader.rows, key, after))
                    for version, _commit, time, text in rows:
                        after = version
                        for event in decode_events(text):
                            yield version, time, event
                    if not rows:
                        break
                if not follow or row.status != RUNNING:
                    return

    # -- operators -------------------------------------------------------------------------------------------------

    async def signal(self, name: str, payload: Any = None) -> bool:
        """Deliver a signal; durable when this returns. False if one of this name came before (it is kept).

        Raises:
            RunNotActiveError: the run has its outcome.
        """
        if not name:
            raise UsageError("a signal needs a name")
        value = await self._node.payloads.place(codec.encode(payload), None)
        events = await self._request(inp.Signal(name=name, value=value))
        return any(isinstance(event, ev.SignalReceived) and event.name == name for event in events)

    async def pause(self) -> str:
        """Hold the run: nothing new starts. Returns `pausing` while attempts run, else `paused`."""
        await self._request(inp.Pause())
        row = await self.row()
        return "pausing" if row.leased else "paused"

    async def resume(self) -> None:
        """Lift the hold."""
        await self._request(inp.Resume())

    async def cancel(self, *, hard: bool = False) -> None:
        """Stop the run: what runs may finish, or with `hard` is ended too. A finished run stays as it is."""
        await self._request(inp.Cancel(hard=hard))

    async def release(self, label: str) -> int:
        """Release the steps that stand at breakpoints of this label; returns how many."""
        events = await self._request(inp.Release(label=label))
        released = [e for e in events if isinstance(e, ev.BreakpointReleased) and e.label == label]
        return sum(len(event.before) + len(event.after) for event in released)

    async def retry(self, step: str | None = None) -> list[str]:
        """Reopen a failed or cancelled step (all of them without `step`) and what was skipped because of it."""
        return self._reopened(await self._request(inp.Retry(at=step or "")))

    async def rewind(self, step: str) -> list[str]:
        """Reopen a settled step and all that depends on it, as the next generation; returns the addresses."""
        return self._reopened(await self._request(inp.Rewind(at=step)))

    async def delete(self) -> None:
        """Remove a closed run wholly, and with it the runs that its steps called and waited for.

        Raises:
            ConflictError: it, or one of those, is still open; cancel it first.
        """
        key = await self.key()
        answer = await self._node.committer.call(lambda store: store.delete(key))
        if answer == "missing":
            raise self._not_found()
        if answer == "open":
            row = await self.row()
            state = f"{row.status}, {row.leased} attempts run"
            if row.status != RUNNING and not row.leased:
                state = "runs that it called go on"
            raise ConflictError(f"run {self.id!r} is still open ({state}); cancel it, then delete it")

    def _reopened(self, events: list[AnyEvent]) -> list[str]:
        return [at for event in events if isinstance(event, ev.StepsReopened) for at in event.at]

    async def _request(self, value: inp.AnyInput) -> list[AnyEvent]:
        key = await self.key()
        try:
            refusal, events = await request(self._node, key, value)
        except RunNotFoundError:
            raise self._not_found() from None
        if refusal is not None:
            raise self._refused(refusal)
        return events

    def _refused(self, refusal: Refusal) -> Exception:
        if (inactive := _INACTIVE.get(refusal.code)) is not None:
            return inactive(refusal.message, run_id=self.id, status=refusal.status)
        if (known := _REFUSALS.get(refusal.code)) is not None:
            return known(refusal.message, run_id=self.id)
        return UsageError(refusal.message)
