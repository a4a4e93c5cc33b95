"""connect: from a URL to an application. The only place that names stores."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from treadle.authoring.options import Retry, policy_of
from treadle.authoring.registry import Registry, default_registry
from treadle.errors import StoreUrlError
from treadle.ports import Elector, Environment, Wakeups
from treadle.runtime.blocking import BlockingApp
from treadle.runtime.builtins import with_builtins
from treadle.runtime.client import App
from treadle.runtime.clock import RandomIds, SystemClock
from treadle.runtime.hooks import Hooks, check_hooks
from treadle.runtime.middleware import Middleware, check_middleware
from treadle.runtime.node import Node, Settings
from treadle.runtime.threads import ThreadPool
from treadle.runtime.wakeups import DatagramWakeups, NoWakeups
from treadle.store.base import Blobs, Store
from treadle.store.committer import Driver, InlineDriver, ThreadDriver


class Opening:
    """What `connect` returns: `async with` gives an `App`, `with` a `BlockingApp`."""

    def __init__(self, url: str, registry: Registry, settings: Settings, *, create: bool) -> None:
        self._url = url
        self._registry = registry
        self._settings = settings
        self._create = create
        self._app: App | None = None
        self._blocking: BlockingApp | None = None

    async def open(self) -> App:
        """Open the store and begin a session.

        Raises:
            StoreError: of the kind that says what to do.
        """
        return await _open(self._url, self._registry, self._settings, create=self._create)

    async def __aenter__(self) -> App:
        self._app = await self.open()
        return self._app

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._app is not None
        await self._app.close()

    def __enter__(self) -> BlockingApp:
        self._blocking = BlockingApp(self.open)
        return self._blocking

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._blocking is not None
        self._blocking.close()

    def __await__(self) -> Any:
        return self.open().__await__()


def connect(
    url: str = "sqlite:///.treadle/treadle.db",
    *,
    worker: bool = True,
    slots: int = 1000,
    threads: int = 16,
    worker_id: str = "",
    registry: Registry | None = None,
    create: bool = True,
    lease: float = 15.0,
    retry: Retry | int | None = None,
    hooks: Sequence[Hooks] = (),
    middleware: Sequence[Middleware] = (),
    elector: Elector | None = None,
    settings: Settings | None = None,
) -> Opening:
    """Open an application on a store.

    `url` is `memory://`, `sqlite:///relative.db`, `sqlite:////absolute.db` or `nats://host:4222/NAME`. With
    `worker=False` it executes no steps: it starts, reads and operates runs, and decides those that nobody else decides.
    `slots` is how many async steps run at a time, `threads` how many sync ones; `lease` seconds without a sign of life
    end a session; `retry` is the policy of steps that have none, nor their workflow. `hooks` are told of what begins
    and ends here; `middleware` is around each attempt that is executed here, the first one outermost. `elector` says
    which session sweeps, instead of the store. Use the result with `async with`, or with `with`.

    Raises:
        UsageError: a hook is no `Hooks`, or a middleware is no coroutine function.
    """
    check_hooks(hooks)
    check_middleware(middleware)
    chosen = settings or Settings(
        worker=worker,
        slots=slots,
        threads=threads,
        worker_id=worker_id,
        lease_seconds=lease,
        retry=policy_of(retry),
        hooks=tuple(hooks),
        middleware=tuple(middleware),
        elector=elector,
    )
    return Opening(url, registry if registry is not None else default_registry, chosen, create=create)


class _ReaderThread:
    """One thread that owns the reader."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="treadle-reader")

    def run(self, function: Callable[[], Any]) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(self._pool, function)

    def close(self) -> None:
        self._pool.shutdown(wait=False)


async def _direct(function: Callable[[], Any]) -> Any:
    return function()


async def _open(url: str, registry: Registry, settings: Settings, *, create: bool) -> App:
    scheme = url.partition(":")[0]
    clock, ids = SystemClock(), RandomIds()
    store: Store
    blobs: Blobs
    driver: Callable[[], Driver]
    wakeups: Wakeups
    read: Callable[[Callable[[], Any]], Awaitable[Any]]
    renew = settings.lease_seconds / 3
    reader = _ReaderThread()
    if scheme == "memory":
        from treadle.store.blobs import MemoryBlobs
        from treadle.store.memory import MemoryStore

        store, blobs, wakeups, read = MemoryStore(), MemoryBlobs(), NoWakeups(), _direct
        driver = lambda: InlineDriver(renew_seconds=renew)  # noqa: E731 - a factory of one line
    elif scheme == "sqlite":
        from treadle.store.blobs import DirectoryBlobs
        from treadle.store.sqlite import SqliteStore

        sqlite = SqliteStore.from_url(url)
        store, wakeups, read = sqlite, DatagramWakeups(ids.key()), reader.run
        blobs = DirectoryBlobs(Path(f"{sqlite.path}-blobs"))
        driver = lambda: ThreadDriver(clock, renew_seconds=renew)  # noqa: E731 - as above
    elif scheme in ("nats", "tls"):
        from treadle.store.nats import NatsStore

        nats = NatsStore.from_url(url)
        store, blobs, wakeups, read = nats, nats.blobs(), nats.wakeups(ids.key()), reader.run
        driver = lambda: ThreadDriver(clock, renew_seconds=renew)  # noqa: E731 - as above
    else:
        raise StoreUrlError(f"{url!r} names no store; use memory://, sqlite:///file.db or nats://host:4222/NAME")
    store.open(create=create)
    environment = Environment(clock=clock, ids=ids, threads=ThreadPool(settings.threads), wakeups=wakeups, store=store)
    node = Node(
        environment,
        driver=driver,
        blobs=blobs,
        registry=with_builtins(registry),
        settings=settings,
        in_reader=read,
    )
    await node.open()

    def closed() -> None:
        store.close()
        reader.close()

    return App(node, closed)


__all__ = ["Opening", "connect"]
