"""Values that a step asks for: an async step awaits them, a sync step calls `result`."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

from treadle.errors import UsageError

T = TypeVar("T")


class OnLoop(Generic[T]):
    """A coroutine's value, from the event loop or from any thread."""

    def __init__(self, work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # Somebody looks at what comes of it.
        self.observed = False
        self._future: concurrent.futures.Future[T] = asyncio.run_coroutine_threadsafe(work, loop)

    def __await__(self) -> Generator[Any, None, T]:
        self.observed = True
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
        self.observed = True
        return self._future.result(timeout)


class Ready(Generic[T]):
    """A value that is there."""

    def __init__(self, value: T) -> None:
        self._value = value

    def __await__(self) -> Generator[None, None, T]:
        return self._value
        yield

    def result(self, timeout: float | None = None) -> T:
        """The value."""
        return self._value
