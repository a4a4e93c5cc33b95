"""Handles of runs: what a caller may ask and tell one run, from any process that knows its id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from html import escape
from typing import Any, Generic, TypeVar, overload

from treadle.authoring import codec
from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.commands import Refusal
from treadle.core.documents import Document
from treadle.core.events import AnyEvent, Arg, Handle, decode_events
from treadle.core.plan import Block
from treadle.core.state import ScopeState
from treadle.core.tables import LIVE, SUCCEEDED
from treadle.errors import (
    ConflictError,
    MissingPathError,
    NotApplicableError,
    RunCancelledError,
    RunError,
    RunNotActiveError,
    RunNotFoundError,
    RunNotPausedError,
    RunNotRunningError,
    RunNotSettledError,
    StepBusyError,
    StepCancelledError,
    StepFailedError,
    StepNotFoundError,
    StepSkippedError,
    UsageError,
)
from treadle.runtime.answers import BlockLook, failed_run, no_result, no_value, shown_message, shown_snapshot
from treadle.runtime.children import last_settlement
from treadle.runtime.cloud_events import cloud_events
from treadle.runtime.failures import Account, account_of
from treadle.runtime.folding import CAUSE_SEPARATOR
from treadle.runtime.inspection import Snapshot, snapshot
from treadle.runtime.node import Node
from treadle.runtime.outcomes import EffectOperations
from treadle.runtime.payloads import assemble, handles_of
from treadle.runtime.receipts import receipt_of_run
from treadle.runtime.requests import request, request_joined
from treadle.runtime.run_analysis import RunAnalysis, analyse
from treadle.runtime.undo import UndoOperations, reopened
from treadle.runtime.why import Reason, why
from treadle.runtime.why_capacity import look
from treadle.runtime.why_turns import with_runs_before
from treadle.store.base import Loaded, RunRow, StepRow

R = TypeVar("R")
T = TypeVar("T")
_REFUSALS: dict[str, type[RunError]] = {
    "run_not_found": RunNotFoundError,
    "step_not_found": StepNotFoundError,
    "step_busy": StepBusyError,
    "run_not_settled": RunNotSettledError,
    "not_applicable": NotApplicableError,
}
_INACTIVE: dict[str, type[RunNotActiveError]] = {
    "run_not_running": RunNotRunningError,
    "run_not_paused": RunNotPausedError,
    "run_not_active": RunNotActiveError,
}
# How often whoever waits for another process looks by himself.
LOOK_SECONDS = 5.0


class Run(UndoOperations, EffectOperations, Generic[R]):
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

    def _repr_html_(self) -> str:
        """What a notebook shows: a handle reads nothing by itself."""
        return f"<b>run {escape(self.id)}</b>: <code>await run.inspect()</code> shows how it is"

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
                if row.status not in LIVE:
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
            StepSkippedError, StepFailedError: what the result needs was skipped by its condition, or failed though the
                run did not.
            MissingPathError: the result is a part of a value that has no such part.
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
            raise await no_result(self._node, await self.key(), self.id, settled.missing[0])
        try:
            value: R = await self._value(settled.result, self._adapter)
        except MissingPathError as error:
            raise MissingPathError(f"run {self.id!r} has no result: {error}") from None
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
                if (scope := await self._block(look, closed=answer.status not in LIVE)) is not None:
                    if scope.status != SUCCEEDED:
                        raise no_value(scope, self.id)
                    return await self._value(scope.result, codec.adapter(type))
                if answer.status not in LIVE:
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
        message = await shown_message(self._node, await self.key(), step.message, step.detail)
        text = f"{where} failed: {step.code}: {message}"
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
        found = snapshot(loaded, sessions, self._node.environment.clock.now())
        return await shown_snapshot(self._node, await self.key(), found)

    async def analysis(self) -> RunAnalysis:
        """The run's graph, with the times that its steps took."""
        return analyse(await self.load(), self._node.environment.clock.now())

    async def why(self, step: str | None = None) -> list[Reason]:
        """Why the run, or one step, is not going on: each fence and each lack of capacity, by name."""
        loaded, node = await self.load(), self._node
        reasons = why(loaded, await look(node.read, node.reader, loaded, node.environment.clock.now()), step)
        return await with_runs_before(node.read, node.reader, loaded.head.key, reasons)

    async def receipt(self, context: Mapping[str, str] | None = None) -> Document:
        """The plan with what happened, as a document; for open, failed and cancelled runs too."""
        return await receipt_of_run(self._node, await self.load(), context)

    async def account(self, handle: Handle) -> Account:
        """The whole account of a failure by its `detail`: the text with the traceback, the details, the causes."""
        texts = await self._node.payloads.load(await self.key(), [handle])
        return account_of(codec.plain(texts[handle]))

    async def events(self, *, after: int = 0, follow: bool = False) -> AsyncIterator[tuple[int, float, AnyEvent]]:
        """The journal as (version, time, event); with `follow`, until the run has its outcome."""
        async for version, time, text in self._rows(after, follow=follow):
            for event in decode_events(text):
                yield version, time, event

    async def cloud_events(self, *, after: int = 0, follow: bool = False) -> AsyncIterator[dict[str, Any]]:
        """The journal as CloudEvents 1.0; with `follow`, until the run has its outcome."""
        key = await self.key()
        found = await self._node.read(lambda: self._node.reader.head(key))
        if found is None:
            raise self._not_found()
        async for version, time, text in self._rows(after, follow=follow):
            for _kind, event in cloud_events(found[0], version, time, text):
                yield event

    async def _rows(self, after: int, *, follow: bool) -> AsyncIterator[tuple[int, float, str]]:
        key = await self.key()
        async with aclosing(self.changes()) as changes:
            async for _ in changes:
                row = await self.row()
                while True:
                    rows = await self._node.read(partial(self._node.reader.rows, key, after))
                    for version, _commit, time, text in rows:
                        after = version
                        yield version, time, text
                    if not rows:
                        break
                if not follow or row.status not in LIVE:
                    return

    # -- operators -------------------------------------------------------------------------------------------------

    async def signal(self, name: str, payload: Any = None, *, transaction: Any = None) -> bool:
        """Deliver a signal; durable when this returns. False if one of this name came before (it is kept).

        With `transaction`, a connection to the store, it is delivered when that commits, and this is True.

        Raises:
            RunNotActiveError: the run has its outcome.
        """
        if not name:
            raise UsageError("a signal needs a name")
        value = await self._node.payloads.place(self._node.payloads.text(payload), None)
        if transaction is not None:
            await self._join(inp.Signal(name=name, value=value), transaction)
            return True
        events = await self._request(inp.Signal(name=name, value=value))
        return any(isinstance(event, ev.SignalReceived) and event.name == name for event in events)

    async def pause(self) -> str:
        """Hold the run: nothing new starts. Returns `pausing` while attempts run, else `paused`.

        Raises:
            RunNotRunningError: it is held already, or does not run; `status` is what the run shows.
        """
        try:
            await self._request(inp.Pause())
        except RunNotRunningError as error:
            if error.status == "paused" and (await self.row()).leased:
                # Who decides does not know what is executed.
                text = f"run {self.id!r} is pausing; only a running run pauses"
                raise RunNotRunningError(text, run_id=self.id, status="pausing") from None
            raise
        row = await self.row()
        return "pausing" if row.leased else "paused"

    async def resume(self) -> None:
        """Lift the hold."""
        await self._request(inp.Resume())

    async def cancel(self, *, hard: bool = False, unwind: bool = False, transaction: Any = None) -> None:
        """Stop the run: what runs may finish, or with `hard` is ended too. A finished run stays as it is.

        With `unwind` all that the run did is undone then. Without it, a run that unwinds leaves the rest as it is.
        With `transaction`, a connection to the store, the run is told when that commits.
        """
        if transaction is not None:
            await self._join(inp.Cancel(hard=hard, unwind=unwind), transaction)
            return
        await self._request(inp.Cancel(hard=hard, unwind=unwind))

    async def release(self, label: str) -> int:
        """Release the steps that stand at breakpoints of this label; returns how many."""
        events = await self._request(inp.Release(label=label))
        released = [e for e in events if isinstance(e, ev.BreakpointReleased) and e.label == label]
        return sum(len(event.before) + len(event.after) for event in released)

    async def retry(self, step: str | None = None) -> list[str]:
        """Reopen a failed or cancelled step (all of them without `step`) and what was skipped because of it."""
        return reopened(await self._request(inp.Retry(at=step or "")))

    async def delete(self) -> None:
        """Remove a closed run wholly, and with it the runs that its steps called and waited for.

        Raises:
            ConflictError: it, or one of those, is still open; cancel it first. Or another run has called it and waited
                for it: it is kept as long as that one, whose undo needs it.
        """
        key = await self.key()
        if caller := await self._caller(key):
            raise ConflictError(f"run {self.id!r} was called by run {caller!r}, and goes with it; delete that one")
        answer = await self._node.committer.call(lambda store: store.delete(key))
        if answer == "missing":
            raise self._not_found()
        if answer == "open":
            row = await self.row()
            state = f"{row.status}, {row.leased} attempts run"
            if row.status not in LIVE and not row.leased:
                state = "runs that it called go on"
            raise ConflictError(f"run {self.id!r} is still open ({state}); cancel it, then delete it")

    async def _caller(self, key: str) -> str:
        """The id of the run that has called this one and waits for it, while that is there."""
        reader = self._node.reader

        def read() -> str:
            found = reader.head(key)
            caller = reader.run(found[0].parent.partition("/")[0]) if found is not None and found[0].parent else None
            return caller.id if found is not None and caller is not None and not found[0].detached else ""

        return await self._node.read(read)

    async def _join(self, value: inp.AnyInput, transaction: Any) -> None:
        said = await request_joined(self._node, await self.key(), value, transaction)
        if said == "missing":
            raise self._not_found()
        if said != "posted" and not isinstance(value, inp.Cancel):
            raise RunNotActiveError(f"run {self.id!r} has its outcome, {said}", run_id=self.id, status=said)

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
