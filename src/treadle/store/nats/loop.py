"""The event loop that the connection to NATS lives on, and the threads that call it.

The store's callers are threads, and each waits for its call. The loop has a thread of its own; a committer borrows it
for as long as it lives (`Loop.bell`): then its thread runs the loop while it has nothing to do, and works its calls off
itself. That spares two changes of threads a commit, which cost more than the server's answer takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from treadle.errors import StoreError, StoreUnavailableError
from treadle.store.nats.link import RefusedError

T = TypeVar("T")


class Loop:
    """An event loop, for callers in other threads."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
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
            self.loop.run_forever()
            self._stopped.set()
            self._goes_on.wait()
            self._goes_on.clear()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work on the loop and wait for it."""
        if self.loop.is_closed() or not self.thread.is_alive():
            work.close()
            raise StoreUnavailableError("the store is closed")
        try:
            if threading.get_ident() == self._borrower:
                return self.loop.run_until_complete(work)
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
            loop.run_forever()
            self._waiting = False
            timer.cancel()
        self._rung = False

    def _stop(self) -> None:
        # A call that is worked off on the loop must not be stopped.
        if self._waiting:
            self._loop.loop.stop()
