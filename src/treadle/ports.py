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


class Elector(Protocol):
    """Who does the work that one session does for all. The store's own election is used where none is given."""

    async def elected(self, role: str, session: str) -> bool:
        """Whether `session` holds `role` now; asked about once a second, by every session.

        Two that believe it at once do no harm. Where nobody does, work that was stranded waits.
        """
        ...


class Environment:
    """All ports of one node."""

    __slots__ = ("clock", "ids", "store", "threads", "wakeups")

    def __init__(self, *, clock: Clock, ids: Ids, threads: Threads, wakeups: Wakeups, store: Any) -> None:
        self.clock = clock
        self.ids = ids
        self.threads = threads
        self.wakeups = wakeups
        self.store = store
