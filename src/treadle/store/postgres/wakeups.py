"""Wake-ups between machines: NOTIFY on the channel of each session that waits, heard on a connection of its own.

Listening and telling share that connection, which is served on the event loop and asks for no thread. All that is to be
told while one statement is on its way goes into the next: one statement wakes any number of sessions. It is not part of
the transaction that it tells of, since commits that notify wait for each other in the server.

A wake-up is a hint. While the connection is away they are lost, and the sweep covers that; when it is there again, the
session looks once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from treadle.errors import StoreError
from treadle.store.postgres.arrays import TEXT_ARRAY, texts
from treadle.store.postgres.connection import Ear, Link
from treadle.store.postgres.location import Location

_TELL = b"SELECT pg_notify(c, '') FROM unnest($1) c"
_FIRST_WAIT_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 5.0


class NotifyWakeups:
    """One channel a session. See `ports.Wakeups`."""

    def __init__(self, location: Location, name: str) -> None:
        listened = location if location.listen in ("", "off") else location._replace(conninfo=location.listen)
        self._location = listened
        self._channel = f"treadle_{name}"
        self._ear: Ear | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._to_tell: dict[str, None] = {}
        self._closed = False
        # Nobody is told of a session that cannot be woken; it does not wake others either, as they may be many.
        self.address = "" if location.listen == "off" else self._channel

    async def open(self, on_wake: Callable[[], None]) -> None:
        """Listen, from now on or as soon as the server answers, and call `on_wake` for whatever comes."""
        self._loop = asyncio.get_running_loop()
        self._on_wake = on_wake
        self._lost = asyncio.Event()
        if self.address:
            connected = asyncio.Event()
            self._keeper = self._loop.create_task(self._keep(connected))
            await connected.wait()

    async def _keep(self, tried: asyncio.Event) -> None:
        """Be connected, again and again."""
        wait = _FIRST_WAIT_SECONDS
        while not self._closed:
            connecting = self._loop.run_in_executor(None, self._connect)
            try:
                ear = await asyncio.shield(connecting)
            except asyncio.CancelledError:
                connecting.add_done_callback(_discard)
                raise
            except StoreError:
                tried.set()
                await asyncio.sleep(wait)
                wait = min(wait * 2, _LONGEST_WAIT_SECONDS)
                continue
            wait = _FIRST_WAIT_SECONDS
            self._ear = ear
            self._lost.clear()
            self._loop.add_reader(ear.socket, self._heard)
            if tried.is_set():
                # Something may have been told while nobody listened.
                self._on_wake()
            tried.set()
            await self._lost.wait()

    def _connect(self) -> Ear:
        """In a thread: a connection that listens."""
        return Ear(Link(self._location, name="treadle wakeups"), self._channel)

    def _heard(self) -> None:
        ear = self._ear
        if ear is None:
            return
        try:
            woken = ear.hear()
        except StoreError:
            self._drop()
            return
        if woken and not self._closed:
            self._on_wake()
        self._tell()

    def send(self, address: str) -> None:
        """Wake the session at `address`, with the next statement."""
        with contextlib.suppress(RuntimeError):
            # The loop may be closed: the program is ending.
            self._loop.call_soon_threadsafe(self._collect, address)

    def _collect(self, address: str) -> None:
        if not self._to_tell:
            # What else is told in this iteration of the loop goes along.
            self._loop.call_soon(self._tell)
        self._to_tell[address] = None

    def _tell(self) -> None:
        ear = self._ear
        if ear is None:
            self._to_tell.clear()
        elif self._to_tell and not ear.busy:
            addresses = list(self._to_tell)
            self._to_tell.clear()
            try:
                ear.ask(_TELL, [texts(addresses)], [TEXT_ARRAY])
            except StoreError:
                self._drop()

    def _drop(self) -> None:
        ear, self._ear = self._ear, None
        if ear is not None:
            self._loop.remove_reader(ear.socket)
            ear.close()
        self._lost.set()

    def close(self) -> None:
        """Stop listening and forget the address."""
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            if self._ear is not None and self._to_tell:
                # The last words of a session that ends: that its runs and tasks are free.
                self._tell()
            self._drop()


def _discard(connecting: asyncio.Future[Ear]) -> None:
    """A connection that nobody waits for any more."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()
