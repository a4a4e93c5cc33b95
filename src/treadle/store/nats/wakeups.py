"""Wake-ups between machines: plain messages of NATS, one subject a session."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from treadle.store.nats.link import Link
from treadle.store.nats.loop import Loop


class NatsWakeups:
    """Wakes by the store's own connection. A message's content means nothing: it says "look at the store"."""

    def __init__(self, loop: Loop, link: Link, name: str) -> None:
        self._loop = loop
        self._link = link
        self._subject = link.location.wake(name)
        self.address = ""

    async def open(self, on_wake: Callable[[], None]) -> None:
        """Listen; `on_wake` runs on the event loop of the caller."""
        loop = asyncio.get_running_loop()

        def heard() -> None:
            # The loop may be closed by now: then nobody is left to wake.
            if self.address:
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(on_wake)

        listening = asyncio.run_coroutine_threadsafe(self._link.listen(self._subject, heard), self._loop.loop)
        await asyncio.wrap_future(listening)
        self.address = self._subject

    def send(self, address: str) -> None:
        """Send one message; what is lost the sweep makes good."""
        if self.address and address.startswith(self._link.location.prefix):
            self._loop.soon(self._link.tell, address)

    def close(self) -> None:
        """Hear nothing more."""
        self.address = ""
