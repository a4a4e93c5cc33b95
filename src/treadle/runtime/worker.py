"""The worker: executes leased tasks and hands their outcomes on. It needs no run state.

An async step is one asyncio task on the loop; a sync step runs in a thread. Each attempt ends exactly once for
the engine, whatever user code does: an attempt that timed out or was interrupted is settled at once, and what
its thread returns later is dropped; its slot stays taken until the thread has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from copy import copy
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

from treadle.authoring import codec
from treadle.authoring.context import step_context
from treadle.authoring.durations import seconds_of
from treadle.authoring.registry import Registry, StepDefinition
from treadle.core.commands import Call, Task
from treadle.core.events import Handle
from treadle.core.inputs import Outcome
from treadle.core.plan import Fragment
from treadle.errors import (
    DecodeError,
    DefinitionError,
    EncodeError,
    Permanent,
    Retryable,
    RetryLater,
    StepInterrupt,
    StoreError,
    StoreUnavailableError,
    TreadleError,
    UnregisteredStepError,
)
from treadle.ports import Clock, Threads
from treadle.runtime.failures import ErrorText, describe
from treadle.runtime.payloads import Payloads, Row, assemble, handles_of
from treadle.runtime.probes import next_probe
from treadle.runtime.slots import ASYNC, THREAD, TIMER, Slots
from treadle.runtime.step_context import RunningStep

T = TypeVar("T")
# Seconds between tries while the store does not answer.
RETRY_SECONDS = 0.2
Finish = Callable[[Task, Outcome, list[Row]], None]
# A task is to wait until a time, with another call.
Postpone = Callable[[Task, Call, float], None]
# Shared by the outcomes without payload rows; never changed.
_NO_ROWS: list[Row] = []


class Steps(Protocol):
    """What a running step asks of the engine while it runs."""

    async def add_now(self, task: Task, fragments: list[Fragment]) -> None:
        """Add steps at once."""
        ...

    def progress(self, task: Task, text: str) -> None:
        """Store a progress text."""
        ...

    async def call(self, task: Task, values: dict[str, Any], started_at: float) -> str | None:
        """Make the run that a step calls, or find it: its result, or None while it goes on."""
        ...


class Callee:
    """What an action's name stands for here, looked up once."""

    __slots__ = ("action", "adapters", "decoders", "encode", "invoke")

    def __init__(self, action: str, definition: StepDefinition) -> None:
        self.action = action
        self.adapters = {name: parameter.adapter for name, parameter in definition.parameters.items()}
        self.decoders = {name: adapter.decode for name, adapter in self.adapters.items()}
        self.invoke = definition.invoke
        self.encode = definition.result.encode

    def probing(self) -> Callee:
        """The same as a probe: while its value is not true, it has no text."""
        probe = copy(self)
        encode = self.encode

        def encode_true(value: Any) -> str:
            return encode(value) if value else ""

        probe.encode = encode_true
        return probe

    def unknown(self, name: str) -> DecodeError:
        """The error of an argument that the function does not take."""
        return DecodeError(f"step {self.action!r} has no parameter {name!r}; its signature has changed")


class Attempt(msgspec.Struct, eq=False):
    """One live attempt."""

    task: Task
    kind: int
    started_at: float
    # Its outcome went to the engine; nothing that comes later counts.
    settled: bool = False
    handle: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None
    context: RunningStep | None = None

    def coroutine(self) -> Coroutine[Any, Any, None]:
        """The coroutine that its task runs."""
        assert self.handle is not None
        coroutine = self.handle.get_coro()
        assert inspect.iscoroutine(coroutine)
        return coroutine


class Worker:
    """Executes tasks for one session."""

    def __init__(
        self,
        *,
        session: str,
        name: str,
        registry: Registry,
        slots: Slots,
        clock: Clock,
        threads: Threads,
        payloads: Payloads,
        errors: ErrorText,
        finish: Finish,
        postpone: Postpone,
        on_free: Callable[[], None],
        steps: Steps,
    ) -> None:
        self.session = session
        self.name = name
        self.registry = registry
        self.slots = slots
        self.clock = clock
        self.threads = threads
        self.payloads = payloads
        self.errors = errors
        self.steps = steps
        self._finish = finish
        self._postpone = postpone
        self._on_free = on_free
        self._loop = asyncio.get_running_loop()
        self._now = clock.now
        self._callees: dict[StepDefinition, Callee] = {}
        self.active: dict[tuple[str, int, int], Attempt] = {}
        # Attempts whose thread goes on after their outcome was settled.
        self.stuck = 0
        self._done: deque[Callable[[], None]] = deque()
        self._ringing = False
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()

    # -- life ------------------------------------------------------------------------------------------------

    def start(self, task: Task) -> None:
        """Execute a leased task; its slot is taken already."""
        kind = self.slots.kind(task.action)
        assert kind is not None
        attempt = Attempt(task, kind, self._now())
        self.active[task.run, task.number, task.lease] = attempt
        if kind == TIMER:
            self._ring_timer(attempt)
            return
        timeout = task.call.timeout
        if timeout is not None:
            attempt.timer = self._loop.call_later(timeout, self._time_out, attempt, timeout)
        if task.call.child is not None:
            attempt.handle = self._loop.create_task(self._run_child(attempt))
        elif kind == ASYNC:
            attempt.handle = self._loop.create_task(self._run_async(attempt))
        else:
            attempt.handle = self._loop.create_task(self._run_in_thread(attempt))

    def knows(self, task: Task) -> bool:
        """Whether this very lease is being executed."""
        return (task.run, task.number, task.lease) in self.active

    def interrupt(self, run: str, number: int, lease: int | None = None) -> None:
        """End the live attempt of a step; its outcome is `cancelled`."""
        for key, attempt in list(self.active.items()):
            if key[0] == run and key[1] == number and lease in (None, key[2]):
                self._stop(attempt, Outcome(**self._base(attempt), status="cancelled"))

    def abandon(self) -> None:
        """The session is lost: end everything and report nothing."""
        for attempt in list(self.active.values()):
            attempt.settled = True
            if attempt.context is not None:
                attempt.context.cancel()
            if attempt.handle is not None and attempt.kind == ASYNC:
                attempt.handle.cancel()
        self.active.clear()
        self._idle.set()

    async def drained(self) -> None:
        """Wait until no attempt is live."""
        while self.active:
            self._idle.clear()
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
            callee = self._callee(task)
            values = self._inline(callee, task)
            if values is None:
                values = await self._fetch(callee, task)
            seconds = seconds_of(values["duration"])
        except TreadleError as error:
            if not attempt.settled:
                await self._raised(attempt, error, verdict="final")
            return
        if not attempt.settled:
            self._leave(attempt)
            self._postpone(task, msgspec.structs.replace(task.call, args={}), self._now() + seconds)

    # -- execution ---------------------------------------------------------------------------------------------

    async def _run_async(self, attempt: Attempt) -> None:
        task = attempt.task
        try:
            callee = self._callee(task)
            values = self._inline(callee, task)
            if values is None:
                values = await self._fetch(callee, task)
            context = attempt.context = RunningStep(self, task)
            step_context.set(context)
            text = callee.encode(await callee.invoke(values))
        except BaseException as error:  # noqa: BLE001 - whatever user code raises becomes the attempt's outcome
            self._slot_free(attempt)
            if not attempt.settled:
                if isinstance(error, asyncio.CancelledError):
                    # Cancelled by something else than the worker: the step cancelled itself.
                    error = RuntimeError("the step was cancelled from inside the program")
                await self._raised(attempt, error)
            return
        self._slot_free(attempt)
        if not attempt.settled:
            if text and len(text) <= 1024 and not context.fragments:
                self._settle(
                    attempt,
                    Outcome(
                        number=task.number,
                        generation=task.generation,
                        attempt=task.attempt,
                        lease=task.lease,
                        session=self.session,
                        worker=self.name,
                        started_at=attempt.started_at,
                        result="=" + text,
                    ),
                    _NO_ROWS,
                )
            else:
                await self._returned(attempt, text)

    async def _run_in_thread(self, attempt: Attempt) -> None:
        task = attempt.task
        try:
            callee = self._callee(task)
            values = self._inline(callee, task)
            if values is None:
                values = await self._fetch(callee, task)
        except BaseException as error:  # noqa: BLE001 - as in _run_async
            self._slot_free(attempt)
            if not attempt.settled:
                await self._raised(attempt, error)
            return
        context = attempt.context = RunningStep(self, attempt.task)
        scope = contextvars.copy_context()
        scope.run(step_context.set, context)
        self.threads.submit(partial(self._in_thread, attempt, callee, values, scope))

    def _in_thread(self, attempt: Attempt, callee: Callee, values: dict[str, Any], scope: contextvars.Context) -> None:
        text = ""
        raised: BaseException | None = None
        if not attempt.settled:
            try:
                text = callee.encode(scope.run(callee.invoke, values))
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

    async def _run_child(self, attempt: Attempt) -> None:
        """Make the run that the step calls; the attempt ends with that, and the step goes on without a slot."""
        task = attempt.task
        rows: list[Row] = []
        result: Handle | None = None
        try:
            callee = self._callee(task)
            values = self._inline(callee, task)
            if values is None:
                values = await self._fetch(callee, task)
            text = await self._patiently(partial(self.steps.call, task, values, attempt.started_at))
            if text is not None:
                result = await self._patiently(partial(self.payloads.place, text, rows))
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

    # -- arguments and results -----------------------------------------------------------------------------------

    def _callee(self, task: Task) -> Callee:
        action = task.action
        # By the definition, not the name: in a notebook a function is defined again under its name.
        definition = self.registry.get(action) if task.call.child is None else self.registry.workflow(action)
        if definition is None:
            raise UnregisteredStepError(f"no workflow {action!r} is registered here; import the module that defines it")
        found = self._callees.get(definition)
        if found is None:
            found = self._callees[definition] = Callee(action, definition)
        return found if task.call.poll is None else found.probing()

    def _inline(self, callee: Callee, task: Task) -> dict[str, Any] | None:
        """The decoded arguments if all of them are at hand, else None."""
        values: dict[str, Any] = {}
        decoders = callee.decoders
        for name, arg in task.call.args.items():
            if type(arg) is not str or arg[0] != "=":
                return None
            decode = decoders.get(name)
            if decode is None:
                raise callee.unknown(name)
            try:
                values[name] = decode(arg[1:])
            except DecodeError as error:
                raise DecodeError(f"argument {name!r}: {error}") from None
        return values

    async def _fetch(self, callee: Callee, task: Task) -> dict[str, Any]:
        handles: list[Handle] = []
        for arg in task.call.args.values():
            handles_of(arg, handles)
        texts = await self._patiently(lambda: self.payloads.load(task.run, handles))
        trees: dict[str, object] = {handle: codec.plain(text) for handle, text in texts.items()}
        values: dict[str, Any] = {}
        for name, arg in task.call.args.items():
            adapter = callee.adapters.get(name)
            if adapter is None:
                raise callee.unknown(name)
            try:
                if isinstance(arg, str):
                    values[name] = adapter.decode(texts[arg])
                else:
                    values[name] = adapter.convert(assemble(arg, trees))
            except (DecodeError, LookupError) as error:
                raise DecodeError(f"argument {name!r}: {error}") from None
        return values

    async def _returned(self, attempt: Attempt, text: str) -> None:
        if not text:
            self._not_yet(attempt)
            return
        rows: list[Row] = []
        context = attempt.context
        assert context is not None
        try:
            result = await self._patiently(lambda: self.payloads.place(text, rows))
            added = await self.place_fragments(context.fragments, rows)
        except (StoreError, EncodeError, OSError) as error:
            await self._raised(attempt, error, verdict="retry" if isinstance(error, (StoreError, OSError)) else "")
            return
        if not attempt.settled:
            self._settle(attempt, Outcome(**self._base(attempt), result=result, added=tuple(added)), rows)

    async def place_fragments(self, fragments: list[Fragment], rows: list[Row] | None) -> list[Fragment]:
        """Fragments with their constants' JSON texts replaced by handles."""
        placed: list[Fragment] = []
        for fragment in fragments:
            constants = [await self._patiently(partial(self.payloads.place, text, rows)) for text in fragment.constants]
            placed.append(Fragment(blocks=fragment.blocks, constants=constants, into=fragment.into))
        return placed

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something with the store until it answers: that it does not is no fault of the step's.

        Placing twice is harmless, and an attempt that takes too long has its own timeout.
        """
        while True:
            try:
                return await work()
            except StoreUnavailableError:
                await asyncio.sleep(RETRY_SECONDS)

    async def _raised(self, attempt: Attempt, error: BaseException, *, verdict: str = "") -> None:
        """The outcome of an attempt that raised."""
        delay: float | None = None
        if isinstance(error, Permanent):
            verdict = "final"
        elif isinstance(error, RetryLater):
            verdict = "retry"
            delay = self.errors.seconds(error.delay)
        elif isinstance(error, Retryable):
            verdict = "retry"
        elif isinstance(error, (EncodeError, DecodeError, StepInterrupt)):
            # The same value would fail again.
            verdict = "final"
        rows: list[Row] = []
        failure, full = describe(error, self.errors)
        if full:
            try:
                failure = failure.__class__(
                    code=failure.code,
                    message=failure.message,
                    type=failure.type,
                    detail=await self.payloads.place(self.errors.encode(full), rows),
                )
            except (TreadleError, OSError):
                rows = []
        if not attempt.settled:
            outcome = Outcome(**self._base(attempt), status="failed", failure=failure, verdict=verdict, delay=delay)
            self._settle(attempt, outcome, rows)

    # -- ends ------------------------------------------------------------------------------------------------------

    def _base(self, attempt: Attempt) -> dict[str, Any]:
        task = attempt.task
        return {
            "number": task.number,
            "generation": task.generation,
            "attempt": task.attempt,
            "lease": task.lease,
            "session": self.session,
            "worker": self.name,
            "started_at": attempt.started_at,
        }

    def _settle(self, attempt: Attempt, outcome: Outcome, rows: list[Row]) -> None:
        self._leave(attempt)
        self._finish(attempt.task, outcome, rows)

    def _leave(self, attempt: Attempt) -> None:
        """Let go of an attempt: whatever its code still does no longer counts."""
        attempt.settled = True
        if attempt.timer is not None:
            attempt.timer.cancel()
        task = attempt.task
        self.active.pop((task.run, task.number, task.lease), None)
        if not self.active:
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

    def _time_out(self, attempt: Attempt, timeout: float) -> None:
        failure = self.errors.failure("timeout", f"the attempt took longer than {timeout:g} s", "TimeoutError")
        self._stop(attempt, Outcome(**self._base(attempt), status="failed", failure=failure))

    def _stop(self, attempt: Attempt, outcome: Outcome) -> None:
        """Settle a live attempt from outside and tell its code to end."""
        if attempt.settled:
            return
        if attempt.context is not None:
            attempt.context.cancel()
        if attempt.kind == THREAD:
            self.stuck += 1
        self._settle(attempt, outcome, [])
        if attempt.kind == ASYNC and attempt.handle is not None:
            # A task that is cancelled before its first step never runs at all, so nothing in it frees the slot.
            unborn = inspect.getcoroutinestate(attempt.coroutine()) == inspect.CORO_CREATED
            attempt.handle.cancel()
            if unborn:
                self._slot_free(attempt)

    def _slot_free(self, attempt: Attempt) -> None:
        self.slots.put_back(attempt.kind)
        if attempt.settled:
            # Its outcome has long gone its way, so nothing else tells that there is room again.
            self._on_free()
