"""What a running step can ask of its surroundings. The runtime sets it; this module only says what it is."""

from __future__ import annotations

import logging
import os
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, Protocol, TypeVar

import msgspec

from treadle.core.effects import Artifact
from treadle.core.plan import Plan
from treadle.errors import UsageError

T_co = TypeVar("T_co", covariant=True)


class Output(Protocol):
    """Where a step writes lines for people to read; `print(..., file=context().out)` takes it."""

    def write(self, text: str, /) -> int:
        """Write text; each line counts when it is complete."""
        ...

    def flush(self) -> None:
        """Take what was written since the last line as a line."""
        ...


class Reading(Protocol[T_co]):
    """A value that is being read: an async step awaits it, a sync step calls `result`."""

    def __await__(self) -> Generator[Any, None, T_co]:
        """Wait for the value on the event loop."""
        ...

    def result(self, timeout: float | None = None) -> T_co:
        """Block until the value is there; for steps in threads."""
        ...


class Source(Protocol):
    """A file that is open for reading bytes."""

    def read(self, size: int, /) -> bytes:
        """Up to so many of the next bytes; nothing at the end."""
        ...


# What an artifact is made of. A text is stored as UTF-8; a path (not its text) is the file there.
Content = bytes | bytearray | memoryview | str | os.PathLike[str] | Source | Iterable[bytes] | AsyncIterable[bytes]


class Stream(Protocol):
    """The bytes of an artifact, in order; at the end they are checked. Use it with `with` or `async with`."""

    @property
    def artifact(self) -> Artifact:
        """The reference."""
        ...

    def read(self, size: int = -1) -> bytes:
        """Up to so many of the next bytes, all that are left without a size; nothing at the end. Blocks."""
        ...

    async def content(self) -> bytes:
        """All that is left, on the event loop."""
        ...

    def close(self) -> None:
        """Free what the stream holds."""
        ...

    def __iter__(self) -> Iterator[bytes]: ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def __enter__(self) -> Stream: ...

    def __exit__(self, *error: object) -> None: ...

    async def __aenter__(self) -> Stream: ...

    async def __aexit__(self, *error: object) -> None: ...


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a step or block that another step waited for.

    `value` is there where `outcome` is `succeeded`; a failure has its `code`, its `message` and the `details` that the
    step gave; a skip has the addresses of the steps behind it.
    """

    address: str
    outcome: str
    value: Any = None
    code: str = ""
    message: str = ""
    details: Any = None
    causes: Sequence[str] = ()


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is fixed of a run when it is made."""

    id: str
    key: str
    workflow: str
    created_at: datetime
    name: str = ""
    labels: dict[str, str] = {}
    metadata: dict[str, str] = {}
    # The run whose step called this one, and the step's address: `KEY/ADDRESS`; "" for none.
    parent: str = ""
    dry_run: bool = False


class StepProjection(Protocol):
    """A projection as a step sees it."""

    def query(self, sql: str, *values: Any) -> Reading[list[dict[str, Any]]]:
        """The rows of a statement by column name."""
        ...

    def execute(self, sql: str, *values: Any) -> Reading[int]:
        """Carry out a statement now, whatever becomes of the step; how many rows it changed."""
        ...

    def write(self, sql: str, *values: bool | int | float | str | None) -> None:
        """Carry out a statement in the transaction that commits this step's success: both or neither."""
        ...


class StepContext(Protocol):
    """The attempt that is being executed, as its code sees it."""

    @property
    def run_id(self) -> str:
        """The run's id."""
        ...

    @property
    def step(self) -> str:
        """The step's address."""
        ...

    @property
    def address(self) -> str:
        """The step's address, by the name that boundaries and middleware have for it."""
        ...

    @property
    def dry_run(self) -> bool:
        """Whether the run was started as a dry run: say what would be done, and change nothing."""
        ...

    @property
    def trace(self) -> str:
        """The trace that the run is a part of, as a W3C `traceparent`, to pass on; empty if it was given none."""
        ...

    @property
    def data(self) -> Mapping[str, Any]:
        """The data that the run was started with, by name; read-only."""
        ...

    @property
    def out(self) -> Output:
        """Lines for people: shown by `treadle run`, logged to `treadle.output`, the last one as progress."""
        ...

    @property
    def attempt(self) -> int:
        """Which try this is; counts up for ever."""
        ...

    @property
    def generation(self) -> int:
        """1, and one more after each rewind."""
        ...

    @property
    def probe(self) -> int:
        """Which probe of a polled step this is, from 1; 0 for other steps."""
        ...

    @property
    def idempotency_key(self) -> str:
        """Equal for all attempts of the step, new after a rewind: give it to services that know such keys."""
        ...

    @property
    def worker_id(self) -> str:
        """The id of the worker that executes the step: `worker_id=` of `connect`, or made of host and process."""
        ...

    @property
    def target(self) -> str:
        """The target that this attempt was placed on, a name or a worker's id; empty if any worker could have it."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether this attempt is no longer wanted; a sync step looks at it between its parts."""
        ...

    @property
    def last_progress(self) -> Any:
        """What this attempt reported last, or before that an earlier one; "" if nothing was."""
        ...

    @property
    def annotations(self) -> Mapping[str, str]:
        """The step's own annotations, as its plan has them."""
        ...

    @property
    def queue(self) -> str:
        """The queue that the attempt waited in."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the application's packages, by package; in a package's own code, `package.settings`."""
        ...

    @property
    def lease(self) -> int:
        """The number that fences this attempt: no other attempt ever has it, and only its holder may report."""
        ...

    @property
    def deadline(self) -> datetime | None:
        """When the attempt will be ended by its timeout or the run's deadline, in UTC; None without both."""
        ...

    def now(self) -> datetime:
        """The time by the clock that the worker goes by, in UTC; in a simulation, the simulated one."""
        ...

    def run(self) -> Reading[RunRecord]:
        """The record of the run, read from the store when it is asked for."""
        ...

    def dependency(self, step: str, type: Any = Any) -> Reading[Dependency]:
        """What became of a step or block of this run: its value, or its error.

        `step` is an address, or an id in a scope around this step, looked for from the inside out. `type` is what its
        value is read as.

        Raises:
            UsageError: nothing of that name has its outcome yet; `after_any=` makes a step wait for it.
        """
        ...

    def raw_input(self) -> Reading[dict[str, Any]]:
        """The arguments as JSON trees by parameter, before anything was made of them by its type."""
        ...

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger whose records carry the run, the step and the attempt."""
        ...

    def progress(self, value: Any) -> None:
        """Report how far the step is: a text, or any JSON value of up to 4 KiB.

        It is shown while the attempt runs. If that does not succeed, even because its process died, the next attempt
        finds it in `last_progress`. Of many reports in a moment, the last one counts.

        Raises:
            UsageError: it is too large; an artifact or a row of one's own is the place for it.
            EncodeError: it cannot be stored as JSON.
        """
        ...

    def check_cancelled(self) -> None:
        """Raise StepInterrupt if this attempt is no longer wanted; for long loops in threads."""
        ...

    def plan(self) -> Reading[Plan]:
        """The plan that the run was started with, read from the store when it is asked for."""
        ...

    def add(self, *bounds: object, into: object = None, now: bool = False) -> Awaitable[None]:
        """Add planned steps, and all they refer to, to the run.

        A function among them plans as that of a workflow does: steps, groups, `gather`, `choose` and `Phases`.
        They appear when this step succeeds, or at once with `now`: then an async step awaits the result, and in
        a thread the call returns when it is done. `into` is "root" or the address of a scope
        that contains this step; without it they live below this step.
        """
        ...

    def artifact(
        self,
        name: str,
        content: Content,
        *,
        id: str = "",
        kind: str = "",
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Reading[Artifact]:
        """Store a file that this step makes, in constant memory: bytes, text, a `Path`, an open file, or chunks.

        An async step awaits the reference; in a thread the file is stored when the call returns. It counts when the
        step succeeds. Without `id` it is `<step>:artifact:001` and so on; `kind` and `content_type` are told by the
        name.
        """
        ...

    def record(self, collection: str, key: str, data: Any) -> None:
        """Give a record to the projections that take the collection, exactly once, if this step succeeds."""
        ...

    def projection(self, name: str) -> StepProjection:
        """A projection of the application, by name: to query, to change at once, or together with this success."""
        ...

    def open(self, artifact: Artifact) -> Stream:
        """The bytes of an artifact that another step, or another run, has made."""
        ...


step_context: Final[ContextVar[StepContext]] = ContextVar("treadle_step")


def context() -> StepContext:
    """The context of the step that is being executed.

    Raises:
        UsageError: no step is being executed here.
    """
    try:
        return step_context.get()
    except LookupError:
        raise UsageError("context() works inside a running step; in a unit test, pass what the step needs") from None
