"""The event loop that the connection to NATS lives on, and the threads that call it.

The store's callers are threads, and each waits for its call. The loop has a thread of its own; a committer borrows it
for as long as it lives (`Loop.bell`): then its thread runs the loop while it has nothing to do, and works its calls off
itself. That spares two changes of threads a commit, which cost more than the server's answer takes.

Another thread may also step in (`Loop.step_in`): as long as it is inside, nothing else happens on the loop, so it may
use what is the loop's thread's alone. What runs the loop is outside only while it waits for sockets and timers.

And the program's event loop may be the host of this one (`Loop.ask`), as long as the committer has nothing to do: then
it waits for the sockets of this one among its own, and what comes is heard without a change of threads. Timers of this
loop are late meanwhile, by `HOSTED_SECONDS` at most. A loop that can wait for no selector is no host.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from treadle.errors import StoreError, StoreUnavailableError
from treadle.store.nats.link import RefusedError

T = TypeVar("T")
# How long a loop is hosted before its timers are looked at.
HOSTED_SECONDS = 2.0
# How many rounds of what a socket has brought a host does at once: an answer takes three.
ROUNDS = 16


class _OpenSelector(selectors.DefaultSelector):
    """A selector that lets others step in while it waits."""

    def __init__(self, inside: threading.Lock) -> None:
        super().__init__()
        self._inside = inside
        self.outside: list[Callable[[], object]] = []
        # A host runs the loop, and does its waiting elsewhere.
        self.hosted = False

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for sockets."""
        if self.hosted:
            return super().select(0)
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
        # The event loop that is the host now, and its thread; both are changed by who is inside.
        self._host: asyncio.AbstractEventLoop | None = None
        self._host_thread = 0
        # The event loop that would be the host, and what ends the borrower's wait.
        self._guest_of: asyncio.AbstractEventLoop | None = None
        self._ring: Callable[[], None] = lambda: None
        # Whether no event loop here can wait for the sockets of another one.
        self._refused = not hasattr(self._selector, "fileno")
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
        if self._is_ready():
            self.soon(lambda: None)
        self._inside.release()

    def _is_ready(self) -> bool:
        loop: Any = self.loop
        return bool(loop._ready)  # noqa: SLF001 - there is no public way to ask

    # -- a host ------------------------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Let the running event loop be the host, from when the borrower has nothing to do; for its thread."""
        if self._host is None and self._guest_of is None and self._borrower is not None and not self._refused:
            self._host_thread = threading.get_ident()
            self._guest_of = asyncio.get_running_loop()
            self._ring()

    def move_in(self, ring: Callable[[], None]) -> bool:
        """Let the host run the loop from now on, if one has asked for it; `ring` ends that. For the borrower."""
        host, self._guest_of, self._ring = self._guest_of, None, ring
        if host is None:
            return False
        with self._inside:
            self._host = host
        try:
            host.call_soon_threadsafe(self._attend)
        except RuntimeError:
            self._host = None
        return self._host is not None

    def move_out(self) -> None:
        """Let the borrower run the loop again; for the borrower."""
        with self._inside:
            host, self._host = self._host, None
        if host is not None:
            with contextlib.suppress(RuntimeError):
                host.call_soon_threadsafe(self._leave, host)

    def _attend(self) -> None:
        host = self._host
        if host is not None:
            try:
                host.add_reader(self._selector.fileno(), self._turn)
            except NotImplementedError:
                self._refused = True
                self._ring()
            self._turn()

    def _leave(self, host: asyncio.AbstractEventLoop) -> None:
        if self._host is None and not self.loop.is_closed():
            host.remove_reader(self._selector.fileno())

    def _turn(self) -> None:
        """Do what there is to do on the loop; on the host's thread."""
        if not self._inside.acquire(blocking=False):
            # The borrower takes it back.
            return
        try:
            host = self._host
            if host is not None:
                self._run_hosted(host)
        finally:
            self._inside.release()
        self._selector.call_outside()

    def _run_hosted(self, host: asyncio.AbstractEventLoop) -> None:
        loop: Any = self.loop
        self._selector.hosted = True
        # Made for who runs loops.
        asyncio._set_running_loop(loop)  # noqa: SLF001 - in `asyncio.events.__all__` all the same
        try:
            for _ in range(ROUNDS):
                loop._run_once()  # noqa: SLF001 - nothing public does one round
                if not self._is_ready():
                    return
        finally:
            asyncio._set_running_loop(host)  # noqa: SLF001 - as above
            self._selector.hosted = False
        # The host's other work has its turn.
        self.soon(lambda: None)

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
            if threading.get_ident() == self._host_thread:
                # The host would wait for itself.
                self._guest_of = None
                self._ring()
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
    """A committer's bell: its thread runs the loop until it rings, or sleeps while a host runs it.

    See `store.committer.Bell`.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._rung = False
        self._waiting = False
        # Who sleeps while the loop is hosted, sleeps here.
        self._away = False
        self._rings: queue.SimpleQueue[None] = queue.SimpleQueue()

    def __enter__(self) -> LoopBell:
        self._loop.borrow()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.give_back()

    def ring(self) -> None:
        """End the wait, or the next one; from any thread."""
        # In this order: who goes away looks whether it has rung after it has said that it does.
        self._rung = True
        self._wake()

    def _wake(self) -> None:
        if self._away:
            self._rings.put(None)
        else:
            self._loop.soon(self._stop)

    def wait(self, seconds: float) -> None:
        """Run the loop until it rings, or for so long; or sleep, while it is hosted."""
        if not self._rung and not self._loop.move_in(self._wake):
            timer = self._loop.loop.call_later(seconds, self._stop)
            self._waiting = True
            # It may have rung since: then `_stop` is called in the first round.
            self._loop.run()
            self._waiting = False
            timer.cancel()
        elif not self._rung:
            self._away = True
            if not self._rung:
                with contextlib.suppress(queue.Empty):
                    self._rings.get(timeout=min(seconds, HOSTED_SECONDS))
            self._away = False
        self._loop.move_out()
        self._rung = False

    def _stop(self) -> None:
        # A call that is worked off on the loop must not be stopped.
        if self._waiting:
            self._loop.loop.stop()
