"""The worker: executes leased tasks and hands their outcomes on. It needs no run state.

An async step runs on the loop, as `turns` tells; a sync step runs in a thread. Each attempt ends exactly once for
the engine, whatever user code does: an attempt that timed out or was interrupted is settled at once, and what
its thread returns later is dropped; its slot stays taken until the thread has ended.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import msgspec

from treadle.authoring.bound import kind_of
from treadle.authoring.context import step_context
from treadle.authoring.durations import seconds_of
from treadle.authoring.registry import Registry
from treadle.authoring.turns import RETURNED, Turns, rest
from treadle.core.commands import NO_CALL, Task
from treadle.core.events import Failure, Handle, Pick
from treadle.core.inputs import Outcome
from treadle.core.plan import Fragment
from treadle.core.tables import SUCCEEDED
from treadle.errors import DefinitionError, MissingKeyError, StoreError, TreadleError
from treadle.ports import Environment
from treadle.runtime.artifacts import ArtifactRoom
from treadle.runtime.attempts import Attempt, Finish, Postpone, Steps
from treadle.runtime.callee import Callee, Callees
from treadle.runtime.coding import hidden_report, report_text
from treadle.runtime.exchange import (
    KEY_SECONDS,
    fetch,
    inline,
    may_share,
    place_failure,
    place_more,
    place_result,
    read,
    values_of,
)
from treadle.runtime.failures import ErrorText, verdict_of
from treadle.runtime.middleware import Middleware, around
from treadle.runtime.patience import patiently
from treadle.runtime.payloads import Payloads, Row
from treadle.runtime.probes import next_probe
from treadle.runtime.shared_reads import SharedReads
from treadle.runtime.slots import ASYNC, THREAD, TIMER, Slots
from treadle.runtime.step_context import UNUSUAL, RunningStep
from treadle.runtime.time_limits import TimeLimits

if TYPE_CHECKING:
    from treadle.runtime.processes import Processes

_log = logging.getLogger("treadle.worker")
# Shared by the outcomes without payload rows; never changed.
_NO_ROWS: list[Row] = []


class Worker:
    """Executes tasks for one session."""

    def __init__(
        self,
        *,
        session: str,
        name: str,
        registry: Registry,
        slots: Slots,
        environment: Environment,
        payloads: Payloads,
        errors: ErrorText,
        finish: Finish,
        postpone: Postpone,
        on_free: Callable[[], None],
        steps: Steps,
        middleware: Sequence[Middleware] = (),
        package_settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.session = session
        self.name = name
        self.registry = registry
        self.slots = slots
        clock = self.clock = environment.clock
        self.threads = environment.threads
        self.payloads = payloads
        self.errors = errors
        self.steps = steps
        self._inline_bytes = payloads.inline_bytes
        self.artifacts = ArtifactRoom(payloads, clock.monotonic)
        self.projections = steps.projections
        self.middleware = middleware
        self.package_settings = package_settings
        self._finish = finish
        self._postpone = postpone
        self._on_free = on_free
        self._loop = asyncio.get_running_loop()
        self._now: Callable[[], float] = clock.now
        self._spawn = environment.spawn
        self._processes: Processes | None = None
        self._process_lock = threading.Lock()
        self._callees = Callees(registry, middleware, hides=payloads.hides)
        self._known = self._callees.known
        # By lease: a store gives no number twice.
        self.active: dict[int, Attempt] = {}
        self._limits = TimeLimits(self._loop, errors, self._overdue)
        self._turns = Turns(self._loop, self._run_async)
        self._shared_reads = SharedReads(payloads, self._loop, self._turns.add)
        # Attempts whose thread goes on after their outcome was settled.
        self.stuck = 0
        self._done: deque[Callable[[], None]] = deque()
        self._ringing = False
        self._abandoned = False
        # Where somebody waits until no attempt is live.
        self._idle: asyncio.Event | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that all of this runs on."""
        return self._loop

    # -- life ------------------------------------------------------------------------------------------------

    def start(self, tasks: Sequence[Task]) -> None:
        """Execute leased tasks; their slots are taken already."""
        if self._callees.changes != Registry.changes:
            self._callees.look()
        active, kind_of, now = self.active, self.slots.kind_of, self._now()
        waiting, shared_reads = self._turns.waiting, self._shared_reads
        known, plain, picks = NO_CALL, True, False
        for task in tasks:
            kind = kind_of(task.action)
            if kind is None and (kind := self.slots.kind(task.action)) is None:
                # It was leased for a session that executes more than this process knows now.
                continue
            attempt = active[task.lease] = Attempt(task, kind, now)
            if (call := task.call) is not known:
                # Those of alike steps are one.
                known, picks = call, Pick in map(type, call.args.values())
                plain = call.timeout is None and not (call.deadline or call.progress_timeout or call.child)
            if plain and kind == ASYNC:
                if not picks or not shared_reads.wait(attempt):
                    waiting.append(attempt)
            else:
                self._start(attempt)
                if self._abandoned:
                    # It has ended at once, and in telling that the session was found to be lost.
                    return
        self._turns.go_on()

    def _start(self, attempt: Attempt) -> None:
        task = attempt.task
        if attempt.kind == TIMER:
            self._ring_timer(attempt)
            return
        if (late := self._limits.arm(attempt)) is not None:
            self._settle(attempt, Outcome(**self._failed(attempt), failure=late, verdict="final"), [])
            self._slot_free(attempt)
            return
        if task.call.child is not None:
            attempt.handle = self._loop.create_task(self._run_child(attempt))
        elif attempt.kind == ASYNC:
            if not self._shared_reads.wait(attempt):
                self._turns.add(attempt)
        else:
            attempt.handle = self._loop.create_task(self._run_in_thread(attempt))

    @property
    def processes(self) -> Processes:
        """The processes of steps; from any thread."""
        with self._process_lock:
            if self._processes is None:
                from treadle.runtime.processes import Processes

                self._processes = Processes(self._spawn)
            return self._processes

    def close(self) -> None:
        """End the processes of steps."""
        if self._processes is not None:
            self._processes.close()

    def knows(self, task: Task) -> bool:
        """Whether this very lease is being executed."""
        return task.lease in self.active

    def interrupt(self, run: str, number: int, lease: int | None = None) -> None:
        """End the live attempt of a step; its outcome is `cancelled`."""
        for token, attempt in list(self.active.items()):
            if attempt.task.run == run and attempt.task.number == number and lease in (None, token):
                self._stop(attempt, Outcome(**self._failed(attempt, "cancelled")))

    def abandon(self) -> None:
        """The session is lost: end everything and report nothing."""
        self._abandoned = True
        for attempt in list(self.active.values()):
            if attempt.context is not None:
                attempt.context.cancel()
            handle = attempt.end()
            if handle is not None and attempt.cancellable:
                handle.cancel()
        self.active.clear()
        self._turns.clear()
        self._shared_reads.clear()
        self._tell_idle()

    async def drained(self) -> None:
        """Wait until no attempt is live."""
        while self.active:
            self._idle = asyncio.Event()
            await self._idle.wait()

    def _ring_timer(self, attempt: Attempt) -> None:
        """A sleep is over, or its length is known only now."""
        self.slots.put_back(TIMER)
        if attempt.task.call.args:
            attempt.handle = self._loop.create_task(self._fall_asleep(attempt))
        else:
            self._settle(attempt, Outcome(**self._base(attempt)), _NO_ROWS)

    async def _fall_asleep(self, attempt: Attempt) -> None:
        task = attempt.task
        try:
            callee = self._callees.of(task)
            values = inline(self.payloads, callee, task)
            if values is None:
                values = await fetch(self.payloads, callee, task)
            seconds = seconds_of(values["duration"])
        except TreadleError as error:
            if not attempt.settled:
                await self._raised(attempt, error, verdict="final")
            return
        if not attempt.settled:
            self._leave(attempt)
            self._postpone(task, msgspec.structs.replace(task.call, args={}), self._now() + seconds)

    # -- execution ---------------------------------------------------------------------------------------------

    def _run_async(self, attempts: Iterator[Attempt]) -> Coroutine[Any, Any, None] | None:
        """Run async steps until one waits; gives the rest of that one, None if all are over."""
        known, payloads, carrier, ended = self._known, self.payloads, self._turns.carrier, self._ended
        # Alike steps share a call; what its arguments are is found once where they cannot be changed.
        values: dict[str, Any] = {}
        before, caller, shares = NO_CALL, None, False
        for attempt in attempts:
            task = attempt.task
            call = task.call
            context = attempt.context = RunningStep(self, task, attempt.started_at)
            try:
                callee = known.get(task.action)
                if callee is None or call.poll is not None:
                    callee = self._callees.of(task)
                if call is not before or callee is not caller or not (shares := shares or may_share(values)):
                    found = inline(payloads, callee, task)
                    if found is None or call.data:
                        return self._go_on(attempt, callee, context, self._read_and_run(task, callee, found, context))
                    values, before, caller, shares = found, call, callee, False
                scope = contextvars.copy_context()
                awaited = scope.run(carrier.send, (context, callee.invoke, (values,)))
                if awaited is not RETURNED:
                    return self._go_on(attempt, callee, context, rest(scope, carrier, awaited))
                value = carrier.take()
                text = callee.encode(context.take(value) if kind_of(value) in UNUSUAL else value)
            except BaseException as error:  # noqa: BLE001 - whatever user code raises becomes the attempt's outcome
                return self._caught(attempt, error)
            if (more := ended(attempt, context, text)) is not None:
                return more
        return None

    async def _read_and_run(
        self, task: Task, callee: Callee, values: dict[str, Any] | None, context: RunningStep
    ) -> Any:
        """An async step whose arguments have to be read first."""
        values = await read(self.payloads, callee, task, values, context)
        step_context.set(context)
        return await callee.invoke(values)

    async def _go_on(self, attempt: Attempt, callee: Callee, context: RunningStep, ending: Awaitable[Any]) -> None:
        """Await the end of a step that has begun."""
        try:
            value = await ending
            text = callee.encode(context.take(value) if kind_of(value) in UNUSUAL else value)
        except BaseException as error:  # noqa: BLE001 - as in _run_async
            await self._caught(attempt, error)
            return
        if (more := self._ended(attempt, context, text)) is not None:
            await more

    def _ended(self, attempt: Attempt, context: RunningStep, text: str) -> Coroutine[Any, Any, None] | None:
        """An async step has returned: hand in its outcome, or give what there is to do for that."""
        self.slots.freed[ASYNC] += 1
        if attempt.settled:
            self._on_free()
        elif text and len(text) <= self._inline_bytes and not context.brings_more:
            task = attempt.task
            # By position: one for every step.
            outcome = Outcome(
                task.number, task.generation, task.attempt, task.lease,
                self.session, self.name, attempt.started_at, SUCCEEDED, "=" + text,
            )  # fmt: skip
            if attempt.timer is None and attempt.silence is None and context.lines is None and self._idle is None:
                # The plain case of `_leave`; nothing refers to the attempt any more.
                del self.active[task.lease]
            else:
                self._leave(attempt)
            self._finish(task, outcome, _NO_ROWS)
        else:
            return self._returned(attempt, text)
        return None

    async def _caught(self, attempt: Attempt, error: BaseException) -> None:
        """An async step has raised, or could not begin."""
        self._slot_free(attempt)
        if not attempt.settled:
            if isinstance(error, asyncio.CancelledError):
                # Cancelled by something else than the worker: the step cancelled itself.
                error = RuntimeError("the step was cancelled from inside the program")
            await self._raised(attempt, error)

    async def _run_in_thread(self, attempt: Attempt) -> None:
        task = attempt.task
        try:
            callee = self._callees.of(task)
            values = inline(self.payloads, callee, task)
            context = attempt.context = RunningStep(self, task, attempt.started_at, True)
            values = await read(self.payloads, callee, task, values, context)
        except BaseException as error:  # noqa: BLE001 - as in _run_async
            self._slot_free(attempt)
            if not attempt.settled:
                await self._raised(attempt, error)
            return
        if callee.middleware:
            await self._run_around_thread(attempt, callee, values)
            return
        scope = contextvars.copy_context()
        scope.run(step_context.set, context)
        self.threads.submit(partial(self._in_thread, attempt, callee, values, scope))

    def _in_thread(self, attempt: Attempt, callee: Callee, values: dict[str, Any], scope: contextvars.Context) -> None:
        text = ""
        raised: BaseException | None = None
        if not attempt.settled:
            try:
                value = scope.run(callee.invoke, values)
                if kind_of(value) in UNUSUAL and attempt.context is not None:
                    value = attempt.context.take(value)
                text = callee.encode(value)
            except BaseException as error:  # noqa: BLE001 - SystemExit and the like included: it ends the attempt only
                raised = error
        self.to_loop(partial(self._thread_ended, attempt, text, raised))

    def _thread_ended(self, attempt: Attempt, text: str, raised: BaseException | None) -> None:
        if attempt.settled:
            self.stuck -= 1
        self._slot_free(attempt)
        if attempt.settled:
            return
        ending = self._raised(attempt, raised) if raised is not None else self._returned(attempt, text)
        attempt.handle = self._loop.create_task(ending)

    async def _run_around_thread(self, attempt: Attempt, callee: Callee, values: dict[str, Any]) -> None:
        """Run the middleware here, and the function in a thread whenever it calls for it."""
        hops: list[asyncio.Future[Any]] = []

        def hop(values: dict[str, Any]) -> asyncio.Future[Any]:
            # With the context as the middleware has left it, as `asyncio.to_thread` does.
            scope = contextvars.copy_context()
            done: asyncio.Future[Any] = self._loop.create_future()
            hops.append(done)
            self.threads.submit(partial(self._hop, lambda: scope.run(callee.invoke, values), done))
            # A thread cannot be cancelled: who waits for it can.
            return asyncio.shield(done)

        text = ""
        raised: BaseException | None = None
        if not attempt.settled:
            attempt.around_thread = True
            step_context.set(cast("RunningStep", attempt.context))
            try:
                value = await around(hop, callee.middleware)(values)
                if kind_of(value) in UNUSUAL and attempt.context is not None:
                    value = attempt.context.take(value)
                text = callee.encode(value)
            except BaseException as error:  # noqa: BLE001 - as in _run_async
                raised = error
                if isinstance(error, asyncio.CancelledError) and not attempt.settled:
                    raised = RuntimeError("the step was cancelled from inside the program")
            attempt.around_thread = False
        if hops:
            # The slot is the thread's as long as it runs.
            await asyncio.wait(hops)
        self._thread_ended(attempt, text, raised)

    def _hop(self, work: Callable[[], Any], done: asyncio.Future[Any]) -> None:
        """In a thread: call the function, and hand its end to the loop."""
        try:
            value = work()
        except StopIteration as error:
            # A future cannot hold one.
            fault = RuntimeError(f"the step raised {error!r}")
            fault.__cause__ = error
            self.to_loop(partial(done.set_exception, fault))
        except BaseException as error:  # noqa: BLE001 - as in _in_thread
            self.to_loop(partial(done.set_exception, error))
        else:
            self.to_loop(partial(done.set_result, value))

    async def _run_child(self, attempt: Attempt) -> None:
        """Make the run that the step calls, or ask it to undo what it did: with that the attempt ends.

        The step, or its undo, goes on without a slot.
        """
        attempt.calling = True
        task = attempt.task
        rows: list[Row] = []
        result: Handle | None = None
        try:
            # To undo a call neither the arguments are needed, nor the workflow.
            unwinds = task.call.child is not None and task.call.child.unwind
            values = {} if unwinds else await values_of(self.payloads, self._callees.of(task), task)
            text = await patiently(partial(self.steps.call, task, values, attempt.started_at))
            if text is not None:
                result = await patiently(partial(self.payloads.place, text, rows))
        except BaseException as error:  # noqa: BLE001 - the workflow's own code may raise anything
            self._slot_free(attempt)
            if not attempt.settled:
                # What cannot be planned now cannot be planned in a second attempt either.
                await self._raised(attempt, error, verdict="final" if isinstance(error, DefinitionError) else "")
            return
        self._slot_free(attempt)
        if attempt.settled:
            return
        if result is None:
            self._leave(attempt)
        else:
            self._settle(attempt, Outcome(**self._base(attempt), result=result), rows)

    def add_now(self, task: Task, fragments: list[Fragment]) -> Awaitable[None]:
        """Add steps for a live attempt: a task on the event loop; in a thread, done when this returns."""
        work = self.steps.add_now(task, fragments)
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            return self._loop.create_task(work)
        ended = asyncio.run_coroutine_threadsafe(work, self._loop)
        ended.result()
        return asyncio.wrap_future(ended, loop=self._loop)

    def to_loop(self, function: Callable[[], None]) -> None:
        """Run a function on the event loop soon, from any thread; many of them cost one wake-up."""
        self._done.append(function)
        if not self._ringing:
            self._ringing = True
            # A thread may end after the loop is closed: nobody is left to be told.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        self._ringing = False
        while self._done:
            self._done.popleft()()

    # -- step_context.Surroundings ---------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._now()

    def ask(self, question: str, task: Task, *details: str) -> concurrent.futures.Future[Any]:
        """Ask one of the store's `Questions`; from any thread."""
        return asyncio.run_coroutine_threadsafe(getattr(self.steps.questions, question)(task, *details), self._loop)

    def send_progress(self, task: Task, text: str) -> None:
        """Store a progress text, while the attempt is live."""
        if (attempt := self.active.get(task.lease)) is not None:
            self._limits.heard(attempt)
            self.steps.progress(task, hidden_report(self.payloads.codec, text))

    def shown_progress(self, text: str) -> str:
        """A stored progress text as it was before a payload codec encoded it."""
        return report_text(self.payloads.codec, text)

    # -- arguments and results -----------------------------------------------------------------------------------

    async def _returned(self, attempt: Attempt, text: str) -> None:
        if not text:
            self._not_yet(attempt)
            return
        rows: list[Row] = []
        context = attempt.context
        assert context is not None
        try:
            result = await patiently(lambda: place_result(self.payloads, self._callees, attempt.task, text, rows))
            more = await place_more(self.payloads, attempt.task, context, rows)
        except Exception as error:  # noqa: BLE001 - a stream that the step gave for an artifact may raise anything
            await self._raised(attempt, error, verdict="retry" if isinstance(error, (StoreError, OSError)) else "")
            return
        if not attempt.settled:
            self._settle(attempt, Outcome(**self._base(attempt), result=result, **more), rows)

    async def _raised(self, attempt: Attempt, error: BaseException, *, verdict: str = "") -> None:
        """The outcome of an attempt that raised."""
        if isinstance(error, MissingKeyError):
            self._without_key(attempt, error)
            return
        found, given = verdict_of(error)
        verdict = found or verdict
        delay = None if given is None else self.errors.seconds(given)
        failure, rows = await place_failure(self.payloads, self.errors, error)
        if not attempt.settled:
            outcome = Outcome(**self._failed(attempt), failure=failure, verdict=verdict, delay=delay)
            self._settle(attempt, outcome, rows)

    # -- ends ------------------------------------------------------------------------------------------------------

    def _base(self, attempt: Attempt) -> dict[str, Any]:
        return {**attempt.facts(), "session": self.session, "worker": self.name}

    def _failed(self, attempt: Attempt, status: str = "failed") -> dict[str, Any]:
        """What the outcome of an attempt that did not succeed says: what it reported is for the next one."""
        context = attempt.context
        progress = hidden_report(self.payloads.codec, context.reported) if context is not None else ""
        return {**self._base(attempt), "status": status, "progress": progress}

    def _settle(self, attempt: Attempt, outcome: Outcome, rows: list[Row]) -> None:
        self._leave(attempt)
        self._finish(attempt.task, outcome, rows)

    def _leave(self, attempt: Attempt) -> None:
        """Let go of an attempt: whatever its code still does no longer counts."""
        attempt.end()
        context = attempt.context
        if context is not None and context.lines is not None:
            # The attempt has its outcome: a line that was begun counts as one.
            context.lines.flush()
        self.active.pop(attempt.task.lease, None)
        if self._idle is not None:
            self._tell_idle()

    def _tell_idle(self) -> None:
        if self._idle is not None and not self.active:
            self._idle.set()

    def _not_yet(self, attempt: Attempt) -> None:
        """The probe's value is not true: the task waits for the next one, or the step's time is up."""
        task = attempt.task
        found = next_probe(task, self._now())
        if found is None:
            assert task.call.poll is not None
            text = f"it was not true in time; {task.call.poll.probes + 1} probes were made"
            failure = self.errors.failure("timeout", text, "TimeoutError")
            self._settle(attempt, Outcome(**self._base(attempt), status="failed", failure=failure, verdict="final"), [])
            return
        self._leave(attempt)
        self._postpone(task, *found)

    def _without_key(self, attempt: Attempt, error: MissingKeyError) -> None:
        """A value cannot be read here: the task waits for a worker that has the key, and counts no attempt."""
        if not attempt.settled:
            task = attempt.task
            _log.warning("step %s of run %s waits for a worker with a key: %s", task.address, task.run_id, error)
            self._leave(attempt)
            self._postpone(task, task.call, self._now() + KEY_SECONDS)

    def _overdue(self, attempt: Attempt, failure: Failure, verdict: str) -> None:
        self._stop(attempt, Outcome(**self._failed(attempt), failure=failure, verdict=verdict))

    def _stop(self, attempt: Attempt, outcome: Outcome) -> None:
        """Settle a live attempt from outside and tell its code to end."""
        if attempt.settled:
            return
        if attempt.context is not None:
            attempt.context.cancel()
        if attempt.kind == THREAD:
            self.stuck += 1
        handle = attempt.handle
        self._settle(attempt, outcome, [])
        if attempt.kind == ASYNC and (handle is None or attempt.is_unborn_call):
            # It never begins, so nothing in it frees the slot.
            self._slot_free(attempt)
        if handle is not None and attempt.cancellable:
            handle.cancel()

    def _slot_free(self, attempt: Attempt) -> None:
        self.slots.put_back(attempt.kind)
        if attempt.settled:
            # Its outcome has long gone its way, so nothing else tells that there is room again.
            self._on_free()
