"""What a running step can ask: the real form of `authoring.context.StepContext`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from treadle.authoring import codec
from treadle.authoring.bound import kind_of
from treadle.authoring.builder import Additions
from treadle.authoring.cells import Patch
from treadle.core.commands import Task
from treadle.core.plan import Fragment, Plan
from treadle.errors import StepInterrupt, UsageError
from treadle.runtime.builtins import Listed
from treadle.runtime.output import LineOutput

if TYPE_CHECKING:
    from treadle.runtime.worker import Worker


T = TypeVar("T")
# Results that bring more than their value.
UNUSUAL: Final = frozenset({Patch, Listed})
_NO_DATA: Mapping[str, Any] = MappingProxyType({})
_data_of = codec.adapter(dict[str, Any]).decode


class OnLoop(Generic[T]):
    """A coroutine's value, from the event loop or from any thread."""

    def __init__(self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: concurrent.futures.Future[T] = asyncio.run_coroutine_threadsafe(work, loop)

    def __await__(self) -> Generator[Any, None, T]:
        return asyncio.wrap_future(self._future).__await__()

    def result(self, timeout: float | None = None) -> T:
        """Block until the value is there.

        Raises:
            UsageError: on the event loop, which has to go on for that.
        """
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            raise UsageError("result() would block the event loop; await the value instead")
        return self._future.result(timeout)


class _Done:
    """An awaitable that is done."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_DONE = _Done()
_log = logging.getLogger("treadle.step")


class RunningStep(msgspec.Struct, eq=False):
    """The context of one attempt. Usable from the step's own thread or task."""

    _worker: Worker
    _task: Task
    _cancelled: bool = False
    _progress: str = ""
    _additions: Additions | None = None
    _logger: logging.LoggerAdapter[logging.Logger] | None = None
    _data: Mapping[str, Any] | None = None
    # The run's data as JSON text, read before the step's code starts; "" for none.
    data_text: str = ""
    # What it writes, once it has begun to.
    lines: LineOutput | None = None
    # What the step adds when it succeeds, the variables that it sets, the items that it found for a gather.
    fragments: tuple[Fragment, ...] = ()
    patch: dict[str, Any] | None = None
    items: list[Any] | None = None
    # Whether it has any of these to give.
    brings_more: bool = False

    def take(self, value: Any) -> Any:
        """The value of what the step returned; what else it brings is kept here."""
        kind = kind_of(value)
        if kind is Patch:
            patch: Patch[Any] = value
            self.patch = patch.state
            self.brings_more = True
            return patch.value
        if kind is Listed:
            self.items = value.items
            self.brings_more = True
            return None
        return value

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self._task.run_id

    @property
    def run_key(self) -> str:
        """The key of the run."""
        return self._task.run

    @property
    def step(self) -> str:
        """The step's address."""
        return self._task.address

    @property
    def address(self) -> str:
        """The step's address."""
        return self._task.address

    @property
    def action(self) -> str:
        """The name under which the step's function is stored."""
        return self._task.action

    @property
    def dry_run(self) -> bool:
        """Whether the run was started as a dry run."""
        return self._task.call.dry_run

    @property
    def trace(self) -> str:
        """The trace that the run is a part of, as a W3C `traceparent`; empty for none."""
        return self._task.call.trace

    @property
    def data(self) -> Mapping[str, Any]:
        """The run's data by name, read-only."""
        if self._data is None:
            self._data = MappingProxyType(_data_of(self.data_text)) if self.data_text else _NO_DATA
        return self._data

    @property
    def out(self) -> LineOutput:
        """Where the step writes lines for people to read."""
        if self.lines is None:
            self.lines = LineOutput(self)
        return self.lines

    def plan(self) -> OnLoop[Plan]:
        """The plan that the run was started with; await it, or in a thread ask its `result`."""
        worker = self._worker
        return OnLoop(worker.steps.plan(self._task), worker.loop)

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1. What is done for the step's undo is counted apart."""
        return abs(self._task.attempt)

    @property
    def generation(self) -> int:
        """1, and one more for each rewind of the step."""
        return self._task.generation

    @property
    def probe(self) -> int:
        """The number of this probe, from 1; 0 for a step that is not polled."""
        poll = self._task.call.poll
        return poll.probes + 1 if poll is not None else 0

    @property
    def idempotency_key(self) -> str:
        """Equal for all attempts of the step, new after a rewind; give it to services that deduplicate."""
        return f"{self._task.run}/{self._task.address}/{self._task.generation}"

    @property
    def worker(self) -> str:
        """The id of the worker that executes the attempt."""
        return self._worker.name

    @property
    def cancelled(self) -> bool:
        """Whether the attempt was interrupted or timed out; what it returns no longer counts."""
        return self._cancelled

    def check_cancelled(self) -> None:
        """Raise StepInterrupt if the attempt was interrupted; for long loops in threads."""
        if self._cancelled:
            raise StepInterrupt

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry run, step and attempt."""
        if self._logger is None:
            extra = {"run_id": self.run_id, "step": self.step, "attempt": self.attempt}
            self._logger = logging.LoggerAdapter(_log, extra)
        return self._logger

    @property
    def last_progress(self) -> str:
        """What this attempt reported last."""
        return self._progress

    def progress(self, text: str) -> None:
        """Show a progress text in the task's row until the attempt ends. Not journaled."""
        self.note(text)
        self.to_loop(self.send_progress)

    def note(self, text: str) -> None:
        """Keep what was reported last."""
        self._progress = text

    def to_loop(self, function: Callable[[], None]) -> None:
        """Run a function on the worker's event loop soon."""
        self._worker.to_loop(function)

    def send_progress(self) -> None:
        """Store what was reported last; on the event loop."""
        self._worker.steps.progress(self._task, self._progress)

    def add(self, *bounds: object, into: object = None, now: bool = False) -> Awaitable[None]:
        """Add planned steps to the run: when this step succeeds (in the same commit), or at once with `now`.

        `into` names a scope that contains this step ("root", an address, a planned step); by default they live
        below this step. With `now` an async step awaits the result; in a thread the call returns when it is done.

        Raises:
            DefinitionError: the steps are wrong or contradict what is there; nothing of this call was added.
            StepInterrupt: the attempt no longer counts.
        """
        self.check_cancelled()
        if self._task.call.purpose != "step":
            raise UsageError(f"a {self._task.call.purpose} cannot add steps")
        if self._additions is None:
            self._additions = Additions(self._task.address)
        found = self._additions.add(bounds, into)
        fragments = [Fragment(blocks=item.blocks, constants=item.constants, into=item.into) for item in found]
        if now:
            return self._worker.add_now(self._task, fragments)
        self.fragments += tuple(fragments)
        self.brings_more = True
        return _DONE

    def cancel(self) -> None:
        """Mark the attempt as interrupted."""
        self._cancelled = True
