"""The client: an application on a store. `runtime.blocking` is its synchronous form."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, overload

from treadle.authoring import codec
from treadle.authoring.builder import Planned, check_about, plan_value
from treadle.authoring.conflicts import OnConflict, name_of, on_conflict_of
from treadle.authoring.decorators import WorkflowFunction
from treadle.authoring.durations import Duration
from treadle.authoring.options import OnFailure, on_failure_of
from treadle.authoring.packages import named_workflow, planning_settings
from treadle.authoring.registry import Registry
from treadle.authoring.triggers import triggering
from treadle.core.addresses import check_id
from treadle.errors import (
    DefinitionError,
    UsageError,
)
from treadle.runtime.backup import backup
from treadle.runtime.conflicts import start_run
from treadle.runtime.copying import CopyReport, copy_store
from treadle.runtime.cycles import Cycle, Cycles
from treadle.runtime.data import DataOperations
from treadle.runtime.dead_letters import DeadLetters
from treadle.runtime.node import Node
from treadle.runtime.retention import CLOSED, Removal, Retention, remove, rule_of
from treadle.runtime.run import Run
from treadle.runtime.serving import serve
from treadle.runtime.starting import Deadline, Start, closing_time, data_text, opening_time, trace_of
from treadle.runtime.targets import Targets
from treadle.runtime.triggers import send_trigger
from treadle.store.base import Health, RunQuery, RunRow, SessionRow
from treadle.store.queues import QueueChange, QueueRow

R = TypeVar("R")


class App(DeadLetters, DataOperations):
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
        name: str | None = ...,
        labels: Mapping[str, str] | None = ...,
        metadata: Mapping[str, str] | None = ...,
        breakpoints: Iterable[str] = ...,
        data: Mapping[str, Any] | None = ...,
        dry_run: bool = ...,
        singleton: str | None = ...,
        on_conflict: OnConflict | None = ...,
        on_failure: OnFailure | None = ...,
        delay: Duration | None = ...,
        run_at: datetime | None = ...,
        deadline: Deadline | None = ...,
        trace: str | None = ...,
        transaction: Any = ...,
        **kwargs: Any,
    ) -> Run[R]: ...
    @overload
    async def start(
        self,
        workflow: str,
        *args: Any,
        id: str | None = ...,
        name: str | None = ...,
        labels: Mapping[str, str] | None = ...,
        metadata: Mapping[str, str] | None = ...,
        breakpoints: Iterable[str] = ...,
        data: Mapping[str, Any] | None = ...,
        dry_run: bool = ...,
        singleton: str | None = ...,
        on_conflict: OnConflict | None = ...,
        on_failure: OnFailure | None = ...,
        delay: Duration | None = ...,
        run_at: datetime | None = ...,
        deadline: Deadline | None = ...,
        trace: str | None = ...,
        transaction: Any = ...,
        **kwargs: Any,
    ) -> Run[Any]: ...
    @overload
    async def start(
        self,
        workflow: Planned,
        *,
        id: str | None = ...,
        name: str | None = ...,
        labels: Mapping[str, str] | None = ...,
        metadata: Mapping[str, str] | None = ...,
        breakpoints: Iterable[str] = ...,
        data: Mapping[str, Any] | None = ...,
        dry_run: bool = ...,
        singleton: str | None = ...,
        on_conflict: OnConflict | None = ...,
        on_failure: OnFailure | None = ...,
        delay: Duration | None = ...,
        run_at: datetime | None = ...,
        deadline: Deadline | None = ...,
        trace: str | None = ...,
        transaction: Any = ...,
    ) -> Run[Any]: ...
    async def start(
        self,
        workflow: Any,
        *args: Any,
        id: str | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        breakpoints: Iterable[str] = (),
        data: Mapping[str, Any] | None = None,
        dry_run: bool = False,
        singleton: str | None = None,
        on_conflict: OnConflict | None = None,
        on_failure: OnFailure | None = None,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        deadline: Deadline | None = None,
        trace: str | None = None,
        transaction: Any = None,
        **kwargs: Any,
    ) -> Run[Any]:
        """Start a run; durable when this returns, or with `transaction`, a connection to the store, when that commits.

        `workflow` is a workflow function, a plan, or a text: the stored name of a workflow, or the name of a package
        with one entrypoint. `name`, `labels` and `metadata` are for people and listings, and go before what the
        workflow says of itself by `describe_run`.

        `id` is an idempotency key (a new key where it is left out), `singleton` a key of the workflow of which one run
        at a time goes on. If there is a run of that id, or an open one of that singleton, `on_conflict` decides (else
        the workflow, else it is `reuse`): `reuse` attaches to it if workflow and input are the same; `reject` raises;
        `replace` cancels it hard and begins when it is closed (one of the same id is deleted first); `queue` begins
        when all that came before are closed. With a singleton, `queue` is about that alone. `breakpoints` are the
        labels to arm. `data` is what every step can read, and what fills parameters declared with `FROM_DATA`. With
        `dry_run` every step is told to change nothing. With `delay` or `run_at` no step starts before that time; after
        `deadline` (a time, or a duration from now) no attempt begins or goes on, and what was to run fails with the
        code `deadline`. `trace` is a W3C `traceparent` that steps can read and child runs inherit; inside a step it is
        the step's own if none is given. `on_failure` (stop or unwind) overrides the workflow's.

        Raises:
            DefinitionError: the workflow as written is wrong, or data that it needs is missing; all mistakes at once.
            RunExistsError: the id, or the singleton, is taken by a run that does something else.
        """
        planned = self._plan(workflow, args, kwargs)
        if id is not None:
            check_id(id, "run id")
        failing = on_failure_of(on_failure)
        armed = (breakpoints,) if isinstance(breakpoints, str) else tuple(breakpoints)
        if any(not label for label in armed):
            raise DefinitionError("a breakpoint label is empty; give the label that the steps carry")
        if singleton is not None:
            check_id(singleton, "singleton")
        conflict = on_conflict_of(on_conflict) or planned.on_conflict or "reuse"
        given = dict(data or {})
        now = self._node.environment.clock.now()
        start = Start(
            id=id or "",
            not_before=opening_time(now, delay, run_at),
            deadline=closing_time(now, deadline),
            trace=trace_of(trace),
            name=check_about({"name": name}, "name=")["name"] if name else "",
            labels=check_about(labels, "labels=") if labels else {},
            metadata=check_about(metadata, "metadata=") if metadata else {},
            breakpoints=armed,
            data=data_text(given),
            names=tuple(given),
            dry_run=dry_run,
            on_failure=failing,
            singleton=planned.singleton if singleton is None else name_of("singleton", planned.workflow, singleton),
        )
        return await start_run(self._node, planned, start, conflict, transaction)

    async def enqueue(
        self,
        value: R,
        *,
        id: str | None = None,
        labels: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | None = None,
        singleton: str | None = None,
        on_conflict: OnConflict | None = None,
        delay: Duration | None = None,
        run_at: datetime | None = None,
        deadline: Deadline | None = None,
        trace: str | None = None,
        transaction: Any = None,
    ) -> Run[R]:
        """Run one call without a workflow: `task = await app.enqueue(fetch.bind(url))`; durable when this returns.

        `value` is what `.bind` gives outside a workflow; what it takes from other such calls runs before it. The result
        is that of the call, for who awaits it; the rest is as for `start`, of which this is the shortest form.

        Raises:
            DefinitionError: it is no planned call, or an argument does not fit; all mistakes at once.
            RunExistsError: the id, or the singleton, is taken by a run that does something else.
        """
        return await self.start(
            plan_value(value, self.registry),
            id=id,
            labels=labels,
            data=data,
            singleton=singleton,
            on_conflict=on_conflict,
            delay=delay,
            run_at=run_at,
            deadline=deadline,
            trace=trace,
            transaction=transaction,
        )

    async def trigger(
        self,
        workflow: WorkflowFunction[..., R] | str,
        *args: Any,
        id: str | None = None,
        labels: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        deadline: Deadline | None = None,
        trace: str | None = None,
        **kwargs: Any,
    ) -> Run[R]:
        """Ask for a run of a workflow that collects triggers (`@workflow(triggers=...)`); durable when this returns.

        Gives the run of the window that has taken it; its result is that of the workflow's run, which it calls when the
        window closes. `id` is an idempotency key: a trigger of an id counts once, as long as that run is kept. `labels`
        (which the workflow's run inherits), `metadata`, `deadline` and `trace` are as for `start`, and those of the
        trigger that opens the window.

        Raises:
            DefinitionError: the workflow collects no triggers.
            SlotError: an argument does not fit.
        """
        settings = self._node.settings
        function = named_workflow(workflow, self.registry, settings.packages) if isinstance(workflow, str) else workflow
        if id is not None:
            check_id(id, "trigger id")
        ready = triggering(function.definition, args, kwargs)
        start = Start(
            deadline=closing_time(self._node.environment.clock.now(), deadline),
            trace=trace_of(trace),
            labels=check_about(labels or {}, "labels="),
            metadata=check_about(metadata or {}, "metadata="),
        )
        return await send_trigger(self._node, ready, id or "", start)

    def _plan(self, workflow: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Planned:
        if isinstance(workflow, Planned):
            return workflow
        settings = self._node.settings
        function = named_workflow(workflow, self.registry, settings.packages) if isinstance(workflow, str) else workflow
        if not hasattr(function, "plan"):
            text = f"{workflow!r} is no workflow: pass a @workflow function, a plan, or its name"
            raise UsageError(f"{text}; one step alone is started by `app.enqueue`")
        scope = contextvars.copy_context()
        scope.run(planning_settings.set, settings.package_settings)
        planned: Planned = scope.run(partial(function.plan, *args, **kwargs))
        return planned

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
        package: str = "",
        metadata: Mapping[str, str] | None = None,
        text: str = "",
    ) -> list[RunRow]:
        """Runs, newest first; `after` is the key of the last row of the page before, `parent` that of the caller.

        `package` names the package whose entrypoints they are runs of; `text` is a part of their id, name, workflow or
        metadata. All that is given must hold.
        """
        query = RunQuery(
            status=status,
            workflow=workflow,
            labels=dict(labels or {}),
            id_prefix=id_prefix,
            after=after,
            limit=limit,
            parent=parent,
            package=package,
            metadata=dict(metadata or {}),
            text=text,
        )
        return await self._node.read(lambda: self._node.reader.runs(query))

    async def sessions(self) -> list[SessionRow]:
        """Live sessions."""
        return await self._node.read(self._node.reader.sessions)

    async def check(self) -> Health:
        """Integrity and configuration of the store."""
        return await self._node.read(self._node.reader.check)

    async def copy_to(self, other: App, progress: Callable[[str], None] | None = None) -> CopyReport:
        """Copy all runs, those in flight included, into another store of any kind, and compare both.

        Both applications must be alone on their stores, and opened with `worker=False`. What is in the target already
        is brought up to date, so a copy that was cut off is made whole by another one. `progress` is told the id of
        each run that was copied. Deleted runs leave no trace in the copy.

        Raises:
            ConflictError: somebody works on one of the stores, or the target has another run of an id.
            MissingKeyError: an encoded value may name artifacts, and this application does not have its key.
        """
        return await copy_store(self._node, other._node, progress)

    async def run_once(self, limit: int | None = None) -> Cycle:
        """One cycle: execute what is due and what follows from it at once, at most `limit` attempts; what was done.

        For an application that was opened with `worker="cycles"`. It returns when nothing that it began is under way
        any more. A task whose delay is not over yet is left for a later cycle; `Cycle.due_at` says when.

        Raises:
            UsageError: the application works by itself, or not at all.
            StoreError: the store does not answer; nothing is lost, and the next cycle goes on.
        """
        return await self._cycles().run(limit)

    async def work(
        self, *, max_cycles: int | None = None, until_idle: bool | Duration = False, limit: int | None = None
    ) -> Cycle:
        """Cycles whenever there is something to do; what they did together.

        They end after `max_cycles`, or with `until_idle` when nothing is due; a duration waits as long for tasks that
        fall due. Without both they go on until cancelled. While the store does not answer they wait. For an application
        opened with `worker="cycles"`.
        """
        return await self._cycles().work(max_cycles=max_cycles, until_idle=until_idle, limit=limit)

    @property
    def is_driven(self) -> bool:
        """Whether it executes only in the cycles that it is asked for."""
        return self._node.cycles is not None

    def _cycles(self) -> Cycles:
        cycles = self._node.cycles
        if cycles is None:
            raise UsageError('this application works by itself, or not at all; open it with connect(worker="cycles")')
        return cycles

    async def serve(self, *, grace: float | None = None, stop: asyncio.Event | None = None) -> bool:
        """Work until SIGINT or SIGTERM, or until `stop` is set; then take nothing new, and let running steps end.

        Returns whether all of them did within the grace; a second signal ends the waiting. Signals are only caught in a
        program's main thread; elsewhere `stop` is the way to end it.
        """
        return await serve(self, grace=grace, stop=stop)

    async def queues(self) -> list[QueueRow]:
        """Queues that have limits or tasks, with what goes on in them."""
        node = self._node
        now = node.environment.clock.now()
        return await node.read(lambda: node.reader.queues(now))

    async def change_queue(self, change: QueueChange) -> bool:
        """Change what is stored of a queue, for all processes at once; False if it was so already."""
        node = self._node
        now = node.environment.clock.now()
        changed = (await node.committer.call(lambda store: store.set_queues([change], now)))[0]
        node.places.look()
        return changed

    async def set_targets(self, targets: Targets) -> None:
        """Execute steps that are placed on these from now on, beside those on its `worker_id`; as for `connect`.

        Attempts that it executes go on, and what waits for a target that nobody offers any more waits on.

        Raises:
            UsageError: they are no names, or this application executes no steps.
            StoreUnavailableError: the store does not answer; it is told with the next renewal of the session.
        """
        if not self._node.settings.worker:
            raise UsageError("this application was opened with worker=False: it executes no steps, whatever the target")
        await self._node.targets.change(targets)

    async def gc(
        self,
        *,
        older_than: Duration = "30d",
        keep: int = 0,
        status: Sequence[str] = CLOSED,
        dry_run: bool = False,
    ) -> Removal:
        """Delete closed runs that have not changed for so long, but for the newest `keep` of each workflow.

        `status` says which outcomes go. A run goes with the runs that its steps called and waited for, and these are
        never deleted alone; a run of which anything is still open is left. With `dry_run` nothing is deleted.

        Raises:
            DefinitionError: something of this makes no sense; all mistakes at once.
        """
        rule = rule_of(Retention(older_than=older_than, keep=keep, status=status))
        return await remove(self._node, rule, dry_run=dry_run)

    async def backup(self, path: str | os.PathLike[str]) -> Path:
        """Copy the store while it is in use, as it is at one moment; its blobs go to a folder beside the file.

        Raises:
            UsageError: the file exists, or this store has no backup of its own.
            StoreError: it could not be done; no file was made.
        """
        return await backup(self._node, path)

    async def drain(self, grace_seconds: float | None = None) -> bool:
        """Take no new attempts and wait for those that run; False if some still ran after the grace."""
        return await self._node.drain(grace_seconds)

    async def close(self) -> None:
        """End the session. Attempts that still run are given up; they run again elsewhere."""
        await self._node.close()
        self._on_close()
