"""The event loop that the connection to NATS lives on, and the threads that call it.

The store's callers are threads, and each waits for its call. The loop has a thread of its own; a committer borrows it
for as long as it lives (`Loop.bell`): then its thread runs the loop while it has nothing to do, and works its calls off
itself. That spares two changes of threads a commit, which cost more than the server's answer takes.

Another thread may also step in (`Loop.step_in`): as long as it is inside, nothing else happens on the loop, so it may
use what is the loop's thread's alone. What runs the loop is outside only while it waits for sockets and timers.
"""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from treadle.errors import StoreError, StoreUnavailableError
from treadle.store.nats.link import RefusedError

T = TypeVar("T")


class _OpenSelector(selectors.DefaultSelector):
    """A selector that lets others step in while it waits."""

    def __init__(self, inside: threading.Lock) -> None:
        super().__init__()
        self._inside = inside
        self.outside: list[Callable[[], object]] = []

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for sockets."""
        self._inside.release()
        try:
            if self.outside:
                self.call_outside()
            return super().select(timeout)
        finally:
            self._inside.acquire()

    def call_outside(self) -> None:
        """Do what was to be done outside."""
        calls, self.outside = self.outside, []
        for call in calls:
            call()


class Loop:
    """An event loop, for callers in other threads."""

    def __init__(self, name: str) -> None:
        # Held by who is inside.
        self._inside = threading.Lock()
        self._selector = _OpenSelector(self._inside)
        self.loop = asyncio.SelectorEventLoop(self._selector)
        # Its checks would tell a thread that has stepped in from the one that runs it.
        self.loop.set_debug(False)
        # The thread that has borrowed the loop; it is held by one at a time.
        self._borrower: int | None = None
        self._lent = threading.Lock()
        self._stopped = threading.Event()
        self._goes_on = threading.Event()
        self._closing = False
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._closing:
            self.run()
            self._stopped.set()
            self._goes_on.wait()
            self._goes_on.clear()

    def run(self) -> None:
        """Run the loop until it is stopped; for the thread whose turn it is."""
        with self._inside:
            self.loop.run_forever()
        self._selector.call_outside()

    def outside(self, call: Callable[[], object]) -> None:
        """Do something from the loop, but when it is left next: so that whoever wakes by it can step in."""
        self._selector.outside.append(call)

    def step_in(self) -> bool:
        """Be inside from now on, if nobody is; never waits. Who is inside must not wait, and call `step_out` soon."""
        return self._inside.acquire(blocking=False)

    def step_out(self) -> None:
        """Let the loop go on."""
        # It waits already, and would not see what a broken connection has left it to do.
        left: Any = self.loop
        if left._ready:  # noqa: SLF001 - there is no public way to ask
            self.soon(lambda: None)
        self._inside.release()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work on the loop and wait for it."""
        if self.loop.is_closed() or not self.thread.is_alive():
            work.close()
            raise StoreUnavailableError("the store is closed")
        try:
            if threading.get_ident() == self._borrower:
                try:
                    with self._inside:
                        return self.loop.run_until_complete(work)
                finally:
                    self._selector.call_outside()
            return asyncio.run_coroutine_threadsafe(work, self.loop).result()
        except RefusedError as error:
            raise StoreError(f"the NATS server refuses: {error.description} ({error.code})") from error

    def soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Call the function on the loop; never waits, never raises."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function, *arguments)

    def bell(self) -> LoopBell:
        """What a thread sleeps in that borrows the loop."""
        return LoopBell(self)

    def borrow(self) -> None:
        """Let this thread run the loop from now on, instead of its own."""
        self._lent.acquire()
        self._stopped.clear()
        self.soon(self.loop.stop)
        self._stopped.wait()
        self._borrower = threading.get_ident()

    def give_back(self) -> None:
        """Let the loop's own thread run it again."""
        self._borrower = None
        self._goes_on.set()
        self._lent.release()

    def close(self) -> None:
        """End the thread."""
        if self.loop.is_closed():
            return
        # Whoever has borrowed the loop gives it back first.
        with self._lent:
            self._closing = True
            self._goes_on.set()
            self.soon(self.loop.stop)
            self.thread.join()
        self.loop.close()


class LoopBell:
    """A committer's bell: its thread runs the loop until it rings. See `store.committer.Bell`."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._rung = False
        self._waiting = False

    def __enter__(self) -> LoopBell:
        self._loop.borrow()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.give_back()

    def ring(self) -> None:
        """End the wait, or the next one; from any thread."""
        self._rung = True
        self._loop.soon(self._stop)

    def wait(self, seconds: float) -> None:
        """Run the loop until it rings, or for so long."""
        loop = self._loop.loop
        if not self._rung:
            timer = loop.call_later(seconds, self._stop)
            self._waiting = True
            # It may have rung since: then `_stop` is called in the first round.
            self._loop.run()
            self._waiting = False
            timer.cancel()
        self._rung = False

    def _stop(self) -> None:
        # A call that is worked off on the loop must not be stopped.
        if self._waiting:
            self._loop.loop.stop()
