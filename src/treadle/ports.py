"""The ports of the runtime to the outside world, all of them replaceable by the simulator.

No other module of `treadle` reads a clock, draws a random number or makes an id. The store is a port too
(`treadle.store.base`). One `Environment` serves one node (a process, or a simulated one).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Clock(Protocol):
    """Time: the wall clock for the journal, a monotonic one for intervals."""

    def now(self) -> float:
        """Seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""
        ...


class Ids(Protocol):
    """Unique names."""

    def key(self) -> str:
        """A new UUIDv7 as text."""
        ...

    def number(self) -> int:
        """A new positive 62-bit number; equal numbers are practically excluded."""
        ...


class Threads(Protocol):
    """Runs blocking functions beside the event loop."""

    def submit(self, function: Callable[[], None]) -> None:
        """Run `function` in a thread soon. It never raises."""
        ...

    def close(self, *, wait: bool) -> None:
        """Take no more; with `wait`, return when all have ended."""
        ...


class Wakeups(Protocol):
    """Datagrams between sessions: hints only, each may be lost, doubled or late."""

    @property
    def address(self) -> str:
        """Where others reach this session; stored in its row."""
        ...

    async def open(self, on_wake: Callable[[], None]) -> None:
        """Start listening; `on_wake` runs on the event loop for one or more datagrams."""
        ...

    def send(self, address: str) -> None:
        """Wake the session at `address`. Never raises, never blocks; callable from any thread."""
        ...

    def close(self) -> None:
        """Stop listening and forget the address."""
        ...


class StepProcess(Protocol):
    """A process that executes steps for a worker. Any thread may send and kill, one at a time receives."""

    def send(self, *message: Any) -> None:
        """Send a message.

        Raises:
            OSError: the process is gone.
        """
        ...

    def receive(self) -> list[Any] | None:
        """The next message, waited for; None when the process is gone."""
        ...

    def kill(self) -> None:
        """End it at once; also if it has ended."""
        ...

    def ended(self) -> int:
        """Wait for its end; its exit code, or the signal's number below zero."""
        ...


class Elector(Protocol):
    """Who does the work that one session does for all. The store's own election is used where none is given."""

    async def elected(self, role: str, session: str) -> bool:
        """Whether `session` holds `role` now; asked about once a second, by every session.

        Two that believe it at once do no harm. Where nobody does, work that was stranded waits.
        """
        ...


class PayloadCodec(Protocol):
    """What stands between a value's JSON text and the store, such as encryption. Usable from any thread.

    `context` says what the bytes are a part of; what was encoded in one context is decoded in it alone.
    """

    @property
    def key_id(self) -> str:
        """What new values are encoded with, as handles name it: 1 to 64 letters, digits and `.`, `_`, `-`."""
        ...

    @property
    def hides(self) -> bool:
        """Whether nobody reads a value without a key: then it may hold secrets."""
        ...

    def encode(self, data: bytes, context: bytes, repeats: str = "") -> bytes:
        """Encode. With `repeats`, equal data give equal bytes wherever that text is the same."""
        ...

    def decode(self, key_id: str, data: bytes, context: bytes) -> bytes:
        """What was encoded with a key.

        Raises:
            MissingKeyError: there is no key of this id here.
            StoreCorruptError: the bytes are not those that were encoded.
        """
        ...


class Environment:
    """All ports of one node."""

    __slots__ = ("clock", "ids", "spawn", "store", "threads", "wakeups")

    def __init__(
        self,
        *,
        clock: Clock,
        ids: Ids,
        threads: Threads,
        wakeups: Wakeups,
        store: Any,
        spawn: Callable[[Any], StepProcess] | None = None,
    ) -> None:
        self.clock = clock
        self.ids = ids
        self.threads = threads
        self.wakeups = wakeups
        self.store = store
        # Starts a process for steps of one isolation (`authoring.isolation`); None: one of the system.
        self.spawn = spawn
