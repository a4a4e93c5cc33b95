"""What a running step can ask: the real form of `authoring.context.StepContext`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast

import msgspec

from treadle.authoring import codec
from treadle.authoring.bound import kind_of
from treadle.authoring.builder import Additions
from treadle.authoring.cells import Patch
from treadle.authoring.context import Content, Dependency, RunRecord
from treadle.authoring.projections import lists_of, record_text
from treadle.core.commands import Task
from treadle.core.effects import Artifact, Effects, Write
from treadle.core.events import Handle, Items
from treadle.core.plan import Fragment, Plan
from treadle.core.values import ENCODED
from treadle.errors import StepInterrupt, UsageError
from treadle.runtime.artifacts import ArtifactRoom, ArtifactStream, Making
from treadle.runtime.builtins import Listed
from treadle.runtime.output import LineOutput
from treadle.runtime.patience import patiently
from treadle.runtime.payloads import Payloads, Row
from treadle.runtime.projections import ProjectionRoom, StepProjection, step_hop
from treadle.runtime.readings import OnLoop, Ready
from treadle.runtime.streams import Stream, Yielded

if TYPE_CHECKING:
    from treadle.runtime.processes import Processes
    from treadle.runtime.worker import Worker

T = TypeVar("T")
# Results that bring more than their value.
UNUSUAL: Final = frozenset({Patch, Listed, Yielded})
_NO_DATA: Mapping[str, Any] = MappingProxyType({})
_data_of = codec.adapter(dict[str, Any]).decode
# A report is journaled when its attempt does not succeed, so it has to be small.
PROGRESS_BYTES: Final = 4096


class Surroundings(Protocol):
    """What is around a running step: the worker, or in a process of its own what stands for it there."""

    @property
    def name(self) -> str:
        """The worker's name."""
        ...

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that must not be blocked by waiting for an answer."""
        ...

    @property
    def package_settings(self) -> Mapping[str, Any]:
        """The settings of the application's packages, by package."""
        ...

    def now(self) -> float:
        """Seconds since the epoch, by the worker's clock."""
        ...

    def ask(self, question: str, task: Task, *details: str) -> concurrent.futures.Future[Any]:
        """Ask one of `questions.Questions`, by its name."""
        ...

    @property
    def artifacts(self) -> ArtifactRoom:
        """Where artifacts are made and opened."""
        ...

    @property
    def projections(self) -> ProjectionRoom:
        """The application's projections."""
        ...

    def to_loop(self, function: Callable[[], None]) -> None:
        """Run a function soon where the worker's own code runs; from any thread."""
        ...

    def send_progress(self, task: Task, text: str) -> None:
        """Store a progress text; where the worker's own code runs."""
        ...

    def shown_progress(self, text: str) -> str:
        """A stored progress text as it was before a payload codec encoded it."""
        ...

    def add_now(self, task: Task, fragments: list[Fragment]) -> Awaitable[None]:
        """Add steps at once."""
        ...


class Answer(Generic[T]):
    """The answer to a question, from the event loop or from any thread."""

    def __init__(
        self,
        future: concurrent.futures.Future[Any],
        loop: asyncio.AbstractEventLoop | None,
        read: Callable[[Any], T],
    ) -> None:
        self._future = future
        self._loop = loop
        self._read = read

    def __await__(self) -> Generator[Any, None, T]:
        found = yield from asyncio.wrap_future(self._future).__await__()
        return self._read(found)

    def result(self, timeout: float | None = None) -> T:
        """Block until the value is there.

        Raises:
            UsageError: on the event loop, which has to go on for that.
        """
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not None and running is self._loop:
            raise UsageError("result() would block the event loop; await the value instead")
        return self._read(self._future.result(timeout))


class _Done:
    """An awaitable that is done."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_DONE = _Done()
_log = logging.getLogger("treadle.step")


def progress_text(value: Any) -> str:
    """The stored form of a report: a text as it is, anything else as `=` and its JSON, before any codec encodes it.

    Raises:
        UsageError: it is too large.
        EncodeError: it cannot be stored as JSON.
    """
    text = value if isinstance(value, str) and not value.startswith(("=", ENCODED)) else "=" + codec.encode(value)
    if len(text.encode("utf-8", "surrogatepass")) > PROGRESS_BYTES:
        raise UsageError(
            f"progress of {len(text)} characters: at most {PROGRESS_BYTES} bytes are kept; say where the rest is"
        )
    return text


def progress_value(text: str) -> Any:
    """What was reported, from its stored form."""
    return codec.decode(text[1:]) if text.startswith("=") else text


class RunningStep(msgspec.Struct, eq=False):
    """The context of one attempt. Usable from the step's own thread or task."""

    _worker: Surroundings
    _task: Task
    started_at: float = 0.0
    # Its code has a thread of its own, and may block.
    _in_thread: bool = False
    _cancelled: bool = False
    _progress: str = ""
    # The step reports by `progress`, so its lines are no longer taken for reports.
    _reports: bool = False
    # A report is on its way to the loop, and takes later ones with it.
    _sending: bool = False
    _additions: Additions | None = None
    _logger: logging.LoggerAdapter[logging.Logger] | None = None
    _data: Mapping[str, Any] | None = None
    # The run's data as JSON text, read before the step's code starts; "" for none.
    data_text: str = ""
    # What it writes, once it has begun to.
    lines: LineOutput | None = None
    # What the step adds when it succeeds, the variables that it sets, the trees of items that it found for a gather.
    fragments: tuple[Fragment, ...] = ()
    patch: dict[str, Any] | None = None
    items: list[object] | None = None
    # Where the items lie, if they are stored already.
    chunks: Items | None = None
    # What it makes beside its value.
    making: Making | None = None
    records: list[str] | None = None
    writes: list[Write] | None = None
    # Ends its process, if it has one of its own.
    on_cancel: Callable[[], None] | None = None
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
        if kind is Yielded:
            self.chunks = value.items
            self.brings_more = self.brings_more or value.items is not None
            return value.text
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
    def annotations(self) -> Mapping[str, str]:
        """The step's own annotations."""
        return MappingProxyType(self._task.call.annotations)

    @property
    def queue(self) -> str:
        """The queue that the attempt waited in."""
        return self._task.queue

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the application's packages, by package."""
        return self._worker.package_settings

    @property
    def lease(self) -> int:
        """The number that fences this attempt."""
        return self._task.lease

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
    def worker_id(self) -> str:
        """The id of the worker that executes the attempt."""
        return self._worker.name

    @property
    def target(self) -> str:
        """The target that the attempt was placed on; empty if any worker could have it."""
        return self._task.target

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

    # -- time ------------------------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The time by the worker's clock, in UTC."""
        return datetime.fromtimestamp(self._worker.now(), UTC)

    @property
    def deadline(self) -> datetime | None:
        """When the attempt will be ended: by its timeout, or by the run's deadline."""
        call = self._task.call
        ends = [] if call.timeout is None else [self.started_at + call.timeout]
        if call.deadline:
            ends.append(call.deadline)
        return datetime.fromtimestamp(min(ends), UTC) if ends else None

    # -- progress --------------------------------------------------------------------------------------------------

    @property
    def last_progress(self) -> Any:
        """What this attempt reported last, or before that an earlier one."""
        return progress_value(self._progress or self.earlier_progress)

    @property
    def earlier_progress(self) -> str:
        """What an earlier attempt reported last."""
        text = self._task.call.progress
        return self._worker.shown_progress(text) if text.startswith(ENCODED) else text

    @property
    def reported(self) -> str:
        """What this attempt reported last, as it is stored; "" if it reported nothing."""
        return self._progress

    def progress(self, value: Any) -> None:
        """Report how far the step is. Journaled only if the attempt does not succeed."""
        text = progress_text(value)
        self._reports = True
        self._report(text)

    def note(self, line: str) -> None:
        """Take a line for a report, unless the step reports by itself."""
        if not self._reports:
            self._report(progress_text(line[: PROGRESS_BYTES // 8]))

    def _report(self, text: str) -> None:
        self._progress = text
        if not self._sending:
            # A step that reports much stores one text for each turn of the loop, not one a report.
            self._sending = True
            self._worker.to_loop(self._send)

    def _send(self) -> None:
        self._sending = False
        self._worker.send_progress(self._task, self._progress)

    # -- questions -------------------------------------------------------------------------------------------------

    def plan(self) -> Answer[Plan]:
        """The plan that the run was started with; await it, or in a thread ask its `result`."""
        return self._ask("plan", lambda found: found)

    def run(self) -> Answer[RunRecord]:
        """The record of the run."""
        return self._ask("record", lambda found: found)

    def dependency(self, step: str, type: Any = Any) -> Answer[Dependency]:
        """What became of a step or block of this run."""
        adapter = codec.adapter(type)

        def read(found: tuple[Dependency, str]) -> Dependency:
            known, text = found
            return msgspec.structs.replace(known, value=adapter.decode(text)) if text else known

        return self._ask("dependency", read, step)

    def raw_input(self) -> Answer[dict[str, Any]]:
        """The arguments as JSON trees."""
        return self._ask("raw_input", _data_trees)

    def _ask(self, question: str, read: Callable[[Any], T], *details: str) -> Answer[T]:
        worker = self._worker
        return Answer(worker.ask(question, self._task, *details), worker.loop, read)

    # -- lists that are stored and read piece by piece ---------------------------------------------------------------

    def store_chunk(self, text: str) -> concurrent.futures.Future[Handle]:
        """Store some items of what the step yields."""
        self.check_cancelled()
        return self._worker.ask("store_chunk", self._task, text)

    def stream(self, pieces: Sequence[Any], convert: Callable[[object], T], stored: Items | None = None) -> Stream[T]:
        """A list that is read while the step goes through it."""
        return Stream(
            pieces, convert, lambda handles: self._worker.ask("texts", self._task, *handles), self._worker.loop, stored
        )

    # -- adding steps ----------------------------------------------------------------------------------------------

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

    # -- effects -------------------------------------------------------------------------------------------------

    def artifact(
        self,
        name: str,
        content: Content,
        *,
        id: str = "",
        kind: str = "",
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> OnLoop[Artifact] | Ready[Artifact]:
        """Store a file that the step makes; an async step awaits its reference, a sync step calls `result`.

        In a thread it is written when the call returns. It counts when the step succeeds.

        Raises:
            UsageError: a name, id, metadata or content that cannot be one.
            StoreError: it could not be stored; the attempt is tried again by the step's policy.
            StepInterrupt: the attempt no longer counts.
        """
        self._check_effects("make artifacts")
        if self.making is None:
            self.making = self._worker.artifacts.making(self._task.address)
            self.brings_more = True
        making = self.making
        draft = making.named(name, content, id, kind, content_type, metadata)
        loop = self._worker.loop
        if loop is None or self._may_block(loop):
            return Ready(making.write(draft, content))
        return making.pend(OnLoop(making.write_beside(draft, content), loop))

    def open(self, artifact: Artifact) -> ArtifactStream:
        """The bytes of an artifact that this step was given: `with` and `read` in a thread, `async for` on the loop."""
        return self._worker.artifacts.open(artifact)

    def record(self, collection: str, key: str, data: Any) -> None:
        """Give a record to the projections that take the collection, once, if the step succeeds.

        Raises:
            EncodeError: it cannot be one, or is of another type than a projection takes.
        """
        self._check_effects("give records")
        self.brings_more = True
        text = record_text(self._worker.projections.projections, collection, key, data)
        if self.records is None:
            self.records = []
        self.records.append(text)

    def projection(self, name: str) -> StepProjection:
        """A projection of the application, by name: `query`, `execute`, and `write` with the step's success.

        Raises:
            UsageError: there is none of this name.
        """
        room, loop = self._worker.projections, self._worker.loop
        self._check_effects("use projections")
        self.brings_more = True
        hop = step_hop(loop, room.beside, blocks=loop is None or self._may_block(loop))
        if self.writes is None:
            self.writes = []
        return StepProjection(room.find(name), hop, self.writes)

    async def effects(self, payloads: Payloads, rows: list[Row]) -> Effects | None:
        """What the step has made, once all of it is stored, or has its place in `rows`."""
        if self.making is None and not self.records:
            return None
        artifacts = await self.making.settled() if self.making is not None else ()
        records = [await patiently(partial(payloads.place, text, rows)) for text in lists_of(self.records or ())]
        return Effects(artifacts=artifacts, records=tuple(records))

    def _check_effects(self, what: str) -> None:
        self.check_cancelled()
        if self._task.call.purpose != "step":
            raise UsageError(f"a {self._task.call.purpose} cannot {what}")

    def _may_block(self, loop: asyncio.AbstractEventLoop) -> bool:
        if self._in_thread:
            return True
        try:
            return asyncio.get_running_loop() is not loop
        except RuntimeError:
            return True

    def cancel(self) -> None:
        """Mark the attempt as interrupted, and end its process if it has one."""
        self._cancelled = True
        if self.on_cancel is not None:
            self.on_cancel()

    # -- for a step in a process of its own, in the worker -------------------------------------------------------

    @property
    def task(self) -> Task:
        """What the attempt was given."""
        return self._task

    @property
    def processes(self) -> Processes:
        """The processes of steps."""
        return cast("Worker", self._worker).processes

    def relay(self, text: str) -> None:
        """Take a report that is encoded already."""
        self._reports = True
        self._report(text)

    def ask_for(
        self, question: str, details: list[str], then: Callable[[str, Any, BaseException | None], None]
    ) -> None:
        """Ask a question; `then` is told the answer, on any thread."""
        future = self._worker.ask(question, self._task, *details)

        def done(found: concurrent.futures.Future[Any]) -> None:
            error = found.exception()
            then(question, None if error is not None else found.result(), error)

        future.add_done_callback(done)

    def add_fragments(self, fragments: list[Fragment]) -> None:
        """Add steps at once; returns when they are added."""
        self.check_cancelled()
        self._worker.add_now(self._task, fragments)


def _data_trees(text: str) -> dict[str, Any]:
    return cast("dict[str, Any]", codec.plain(text))
