"""Serving: an application that works until its program is asked to end; and inside the life of a web application."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.runtime.client import App

# What ends a program in order: Ctrl-C, and what service managers send.
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# What a web framework calls: its application in, a mapping for the state of requests out.
Lifespan = Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]


async def serve(app: App, *, grace: float | None, stop: asyncio.Event | None) -> bool:
    """Work until a signal comes or `stop` is set, then drain; see `App.serve`."""
    asked = stop if stop is not None else asyncio.Event()
    with _caught(asked):
        tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(asked.wait())]
        if app.is_driven:
            tasks.append(asyncio.ensure_future(app.work()))
        await _first(tasks)
    again = asyncio.Event()
    with _caught(again):
        return bool(await _first([asyncio.ensure_future(app.drain(grace)), asyncio.ensure_future(again.wait())], None))


async def _first(tasks: Sequence[asyncio.Future[Any]], default: Any = None) -> Any:
    """The value of the first task if that is the one to end; `default` if another ends. None of them is left over."""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    return default if tasks[0].cancelled() else tasks[0].result()


@contextlib.contextmanager
def _caught(event: asyncio.Event) -> Generator[None, None, None]:
    """Let signals set an event, where this program may catch them."""
    loop = asyncio.get_running_loop()
    caught: list[signal.Signals] = []
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            # Windows has no handlers on its loop; there Ctrl-C is a KeyboardInterrupt.
            with contextlib.suppress(NotImplementedError):
                loop.add_signal_handler(number, event.set)
                caught.append(number)
    try:
        yield
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


def lifespan_of(
    opening: Callable[[], AbstractAsyncContextManager[App]],
    *,
    state: str,
    grace: float | None,
    around: Lifespan | None,
) -> Lifespan:
    """The lifespan of a Starlette or FastAPI application; see `treadle.lifespan`."""

    @asynccontextmanager
    async def lifespan(asgi: Any) -> AsyncGenerator[dict[str, Any], None]:
        async with contextlib.AsyncExitStack() as stack:
            app = await stack.enter_async_context(opening())
            stack.push_async_callback(app.drain, grace)
            # For code that has the web application at hand and no request.
            with contextlib.suppress(AttributeError):
                setattr(asgi.state, state, app)
            found: dict[str, Any] = {}
            if around is not None:
                found = await stack.enter_async_context(around(asgi)) or {}
            found = {**found, state: app}
            yield found

    return lifespan
