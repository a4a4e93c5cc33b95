"""Observers: tell hooks of boundaries, one after the other, beside the work that they watch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from treadle.authoring import codec
from treadle.authoring.codec import Adapter
from treadle.authoring.registry import Registry
from treadle.core.commands import Task
from treadle.core.events import Arg, Handle
from treadle.core.inputs import Outcome
from treadle.core.values import bare
from treadle.errors import DecodeError, MissingKeyError, StoreError, StoreUnavailableError
from treadle.ports import Clock
from treadle.runtime.boundaries import Notice, notices_of
from treadle.runtime.hooks import Boundary, Hooks, overridden
from treadle.runtime.payloads import Payloads, Row, assemble, handles_of
from treadle.store.base import Append

if TYPE_CHECKING:
    from treadle.runtime.owned import Owned

_log = logging.getLogger("treadle.hooks")
# Seconds between tries while the store does not answer.
RETRY_SECONDS = 0.2
# A hook that hangs keeps a closing program for so long.
LAST_SECONDS = 10.0
_ANYTHING = codec.adapter(Any)


class Observers:
    """The hooks of one node, and the boundaries that they are still to be told of."""

    def __init__(
        self, hooks: Sequence[Hooks], *, payloads: Payloads, registry: Registry, clock: Clock, worker: str
    ) -> None:
        self._payloads = payloads
        self._registry = registry
        self._clock = clock
        self._worker = worker
        self._told: dict[str, list[Hooks]] = {}
        for one in hooks:
            for name in overridden(one):
                self._told.setdefault(name, []).append(one)
        # The rows of an attempt's outcome go with it: they may not be stored yet.
        self._queue: asyncio.Queue[tuple[Notice, Sequence[Row]]] = asyncio.Queue()
        self.failures = 0

    # -- what happens ------------------------------------------------------------------------------------------------

    def committed(self, owned: Owned, append: Append) -> None:
        """An append of a run is durable."""
        try:
            notices = notices_of(owned.state, owned.head, append, self._told)
        except Exception:  # noqa: BLE001 - a fault of ours; the engine that calls this must go on
            self.failures += 1
            _log.exception("boundaries of run %s cannot be told", owned.head.id)
            return
        for notice in notices:
            self._queue.put_nowait((notice, ()))

    def attempt_started(self, task: Task) -> None:
        """The worker begins an attempt."""
        if "attempt_started" in self._told and task.call.purpose == "step":
            self._queue.put_nowait((Notice("attempt_started", self._attempt(task), task.call.args), ()))

    def attempt_ended(self, task: Task, outcome: Outcome, rows: Sequence[Row]) -> None:
        """The worker has ended an attempt."""
        if "attempt_ended" in self._told and task.call.purpose == "step":
            boundary = self._attempt(task, outcome=outcome.status, failure=outcome.failure)
            result = outcome.result if outcome.status == "succeeded" else None
            self._queue.put_nowait((Notice("attempt_ended", boundary, result=result), rows))

    def _attempt(self, task: Task, **facts: Any) -> Boundary:
        return Boundary(
            run_id=task.run_id,
            run_key=task.run,
            time=self._clock.now(),
            address=task.address,
            block="step",
            action=task.action,
            generation=task.generation,
            attempt=task.attempt,
            worker=self._worker,
            dry_run=task.call.dry_run,
            **facts,
        )

    # -- telling -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Tell the hooks of what happens, for ever."""
        while True:
            notice, rows = await self._queue.get()
            try:
                boundary = await self._with_values(notice, rows)
                for hooks in self._told[notice.name]:
                    await self._call(hooks, notice.name, boundary)
            finally:
                self._queue.task_done()

    async def finish(self) -> None:
        """Wait until the hooks were told of all that has happened, but not for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                await self._queue.join()
                return
        _log.warning("hooks were still busy after %g s; %d boundaries are not told", LAST_SECONDS, self._queue.qsize())

    async def _call(self, hooks: Hooks, name: str, boundary: Boundary) -> None:
        try:
            awaitable = getattr(hooks, name)(boundary)
            if awaitable is not None:
                await awaitable
        except (Exception, SystemExit, asyncio.CancelledError) as error:
            current = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and current is not None and current.cancelling():
                raise
            self.failures += 1
            where = f"{boundary.run_id} {boundary.address}".rstrip()
            _log.exception("hook %s of %r raised at %s", name, hooks, where)

    # -- values ------------------------------------------------------------------------------------------------------

    async def _with_values(self, notice: Notice, rows: Sequence[Row]) -> Boundary:
        """The boundary with its values decoded, by the functions' own types where these are known here."""
        boundary = notice.boundary
        handles: list[Handle] = []
        for arg in notice.arguments.values():
            handles_of(arg, handles)
        if notice.result is not None:
            handles_of(notice.result, handles)
        if not handles:
            return boundary
        try:
            texts = await self._texts(boundary.run_key, handles, dict(rows))
            trees = {handle: codec.plain(text) for handle, text in texts.items()}
            arguments = {name: self._value(boundary, name, arg, trees) for name, arg in notice.arguments.items()}
            result = None if notice.result is None else self._value(boundary, "", notice.result, trees)
        except (StoreError, DecodeError, MissingKeyError, LookupError, OSError) as error:
            # The run was deleted meanwhile, or a path leads to nothing: the attempt fails for it too.
            _log.warning("%s of %s %s is told without its values: %s", notice.name, *_where(boundary), error)
            return boundary
        return msgspec.structs.replace(boundary, arguments=MappingProxyType(arguments), result=result)

    async def _texts(self, key: str, handles: list[Handle], rows: dict[str, bytes]) -> dict[Handle, str]:
        texts = {
            handle: self._payloads.text_of(handle, rows[where[1:]])
            for handle in handles
            if (where := bare(handle))[0] == "@" and where[1:] in rows
        }
        rest = [handle for handle in handles if handle not in texts]
        while True:
            try:
                return texts | await self._payloads.load(key, rest)
            except StoreUnavailableError:
                await asyncio.sleep(RETRY_SECONDS)

    def _value(self, boundary: Boundary, parameter: str, arg: Arg, trees: dict[Handle, object]) -> Any:
        adapter = self._adapter(boundary, parameter)
        tree = assemble(arg, trees)
        if adapter is not None:
            with contextlib.suppress(DecodeError):
                return adapter.convert(tree)
        return _ANYTHING.convert(tree)

    def _adapter(self, boundary: Boundary, parameter: str) -> Adapter | None:
        """How the function itself reads the value; None if this process does not have it."""
        if not boundary.action:
            workflow = self._registry.workflow(boundary.workflow)
            return workflow.result if workflow is not None else None
        definition = self._registry.find(boundary.action)
        if definition is None:
            return None
        if not parameter:
            return definition.result
        known = definition.parameters.get(parameter)
        return known.adapter if known is not None else None


def _where(boundary: Boundary) -> tuple[str, str]:
    return boundary.run_id, boundary.address
