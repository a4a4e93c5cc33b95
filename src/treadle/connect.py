"""connect: from a URL to an application. The only place that names stores."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, Literal

from treadle.authoring.options import Retry, policy_of
from treadle.authoring.packages import JoinedRegistry, Package, check_packages
from treadle.authoring.projections import Projection, check_projections
from treadle.authoring.registry import Registry, default_registry
from treadle.errors import StoreUrlError
from treadle.ports import Clock, Elector, Environment, Ids, Wakeups
from treadle.runtime.blocking import BlockingApp
from treadle.runtime.builtins import with_builtins
from treadle.runtime.client import App
from treadle.runtime.clock import RandomIds, SystemClock
from treadle.runtime.hooks import Hooks, check_hooks
from treadle.runtime.middleware import Middleware, check_middleware
from treadle.runtime.node import Node, Settings
from treadle.runtime.projections import Live
from treadle.runtime.queues import Queue, changes_of
from treadle.runtime.retention import Retention, rule_of
from treadle.runtime.serving import Lifespan, lifespan_of
from treadle.runtime.threads import ThreadPool
from treadle.runtime.wakeups import DatagramWakeups, NoWakeups
from treadle.store.base import Store
from treadle.store.blob_port import Blobs
from treadle.store.committer import Driver, InlineDriver, ThreadDriver
from treadle.store.projection import ProjectionDatabase

# Where artifacts are kept: a path, a URL, or an object that keeps them.
Place = str | os.PathLike[str] | Blobs


class Opening:
    """What `connect` returns: `async with` gives an `App`, `with` a `BlockingApp`."""

    def __init__(
        self,
        url: str,
        registry: Registry,
        settings: Settings,
        *,
        create: bool,
        artifacts: Place | None,
        clock: Clock | None = None,
        projections: Mapping[str, Projection] = MappingProxyType({}),
        rebuild: bool = False,
    ) -> None:
        self._url = url
        self._registry = registry
        self._settings = settings
        self._create = create
        self._clock = clock
        self._artifacts = artifacts
        self._projections = projections
        self._rebuild = rebuild
        self._app: App | None = None
        self._blocking: BlockingApp | None = None

    async def open(self) -> App:
        """Open the store and begin a session.

        Raises:
            StoreError: of the kind that says what to do.
        """
        clock = self._clock or SystemClock()
        return await _open(
            self._url,
            self._registry,
            self._settings,
            clock,
            create=self._create,
            artifacts=self._artifacts,
            projections=self._projections,
            rebuild=self._rebuild,
        )

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
    worker: bool | Literal["cycles"] = True,
    slots: int = 1000,
    threads: int = 16,
    worker_id: str = "",
    registry: Registry | None = None,
    create: bool = True,
    lease: float = 15.0,
    retry: Retry | int | None = None,
    hooks: Sequence[Hooks] = (),
    middleware: Sequence[Middleware] = (),
    packages: str | Sequence[Package | str] = (),
    package_settings: Mapping[str, Mapping[str, Any]] | None = None,
    actions: str | Sequence[str] = (),
    elector: Elector | None = None,
    queues: Sequence[Queue] = (),
    targets: Sequence[str] = (),
    artifacts: Place | None = None,
    projections: Sequence[Projection | str] = (),
    rebuild: bool = False,
    retention: Retention | None = None,
    clock: Clock | None = None,
    settings: Settings | None = None,
) -> Opening:
    """Open an application on a store.

    `url` is `memory://`, `sqlite:///relative.db`, `sqlite:////absolute.db`, `postgresql://user@host/database` or
    `nats://host:4222/NAME`. With `worker=False` it executes no steps: it starts, reads and operates runs, and decides
    those that nobody else decides; with `worker="cycles"` it executes when `run_once` and `work` ask for it. `slots`
    is how many async steps run at a time, `threads` how many sync ones; `lease` seconds without a sign of life end a
    session; `retry` is the policy of steps that have none, nor their workflow. `hooks` are told of what begins and
    ends here; `middleware` is around each attempt that is executed here, the first one outermost. `packages` are the
    domains that it serves beside the registry, `package_settings` what they are set to, by package and setting; a
    package may be given by the name of its entry point, and "installed" is all of those. `actions` names entry points
    with steps. `elector` says which session sweeps, instead of the store. `queues` are limits, stored and kept by all
    processes; an operator's go before. `targets` are the names, beside its `worker_id`, for which it executes steps
    that are placed `on` them. `artifacts` is where artifacts and large values are kept: a directory, or a URL with the
    extra `objects`; by default beside the store's file. `projections` are read models, besides those of the packages;
    `rebuild` makes their tables anew. `retention` deletes closed runs by and by; `clock` is another than the machine's.

    Raises:
        UsageError: a hook is no `Hooks`, or a middleware is no coroutine function.
        DefinitionError: a package or a setting is wrong; all mistakes at once.
        PluginError: what is named is not installed, or cannot be imported.
    """
    brought: list[Package] = _plugins().packages_of(packages) if packages else []
    known = _registry_of(registry, actions)
    _check_boundaries(hooks, middleware)
    chosen = settings or Settings(
        worker=bool(worker),
        cycles=worker == "cycles",
        slots=slots,
        threads=threads,
        worker_id=worker_id,
        lease_seconds=lease,
        retry=policy_of(retry),
        hooks=tuple(hooks),
        middleware=tuple(middleware),
        packages=tuple(brought),
        package_settings=check_packages(brought, package_settings or {}),
        elector=elector,
        queues=changes_of(queues) if queues else (),
        targets=tuple(targets),
        retention=None if retention is None else rule_of(retention),
    )
    found = _projections_of(projections, brought)
    more: dict[str, Any] = {"artifacts": artifacts, "clock": clock, "projections": found, "rebuild": rebuild}
    return Opening(url, JoinedRegistry(known, brought) if brought else known, chosen, create=create, **more)


def _check_boundaries(hooks: Sequence[Hooks], middleware: Sequence[Middleware]) -> None:
    check_hooks(hooks)
    check_middleware(middleware)


def lifespan(
    url: str = "sqlite:///.treadle/treadle.db",
    *,
    state: str = "treadle",
    grace: float | None = 30.0,
    around: Lifespan | None = None,
    **options: Any,
) -> Lifespan:
    """The lifespan of a Starlette or FastAPI application that has an open `App` as long as it lives.

    It is at `request.state.treadle` and `app.state.treadle` (by another name with `state`). At the end running steps
    have `grace` seconds; what still runs then is executed again elsewhere, or at the next start. `around` is a lifespan
    of the web application's own, which lives inside. `options` are those of `connect`, checked at once.
    """
    connect(url, **options)
    return lifespan_of(lambda: connect(url, **options), state=state, grace=grace, around=around)


def _registry_of(registry: Registry | None, actions: str | Sequence[str]) -> Registry:
    known = registry if registry is not None else default_registry
    if actions:
        _plugins().add_actions(known, actions)
    return known


def _projections_of(given: Sequence[Projection | str], packages: Sequence[Package]) -> dict[str, Projection]:
    named = [_plugins().plugin("projections", one) if isinstance(one, str) else one for one in given]
    return check_projections([*named, *(one for package in packages for one in package.projections)])


def _plugins() -> Any:
    # Reading what is installed is not quick; a program that names no plugin does without.
    from treadle.authoring import plugins

    return plugins


class _ReaderThread:
    """One thread that owns the reader."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="treadle-reader")

    def run(self, function: Callable[[], Any]) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(self._pool, function)

    def close(self) -> None:
        self._pool.shutdown(wait=False)


class _Beside(_ReaderThread):
    """A few threads that read and write blobs."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="treadle-blobs")


def blobs_of(place: Place) -> Blobs:
    """The blobs at a place: a directory, a URL, or an object that keeps them.

    Raises:
        StoreUrlError: the URL names nothing that is known.
        MissingExtraError: it needs the extra `objects`.
    """
    from treadle.store.blobs import DirectoryBlobs

    if isinstance(place, os.PathLike):
        return DirectoryBlobs(place)
    if not isinstance(place, str):
        return place
    scheme, separator, _ = place.partition("://")
    if not separator:
        return DirectoryBlobs(place)
    from treadle.store.objects import SCHEMES, ObjectBlobs

    if scheme not in SCHEMES and scheme in _plugins().installed("artifacts"):
        found: Blobs = _plugins().plugin("artifacts", scheme)(place)
        return found
    return ObjectBlobs.from_url(place)


@dataclass(frozen=True)
class StoreParts:
    """A store with what a node needs around it."""

    store: Store
    blobs: Blobs
    driver: Callable[[], Driver]
    wakeups: Wakeups
    # Runs a read where the store's reader lives.
    read: Callable[[Callable[[], Any]], Awaitable[Any]]
    close: Callable[[], None] = lambda: None


async def _direct(function: Callable[[], Any]) -> Any:
    return function()


async def _open(
    url: str,
    registry: Registry,
    settings: Settings,
    clock: Clock,
    *,
    create: bool,
    artifacts: Place | None,
    projections: Mapping[str, Projection],
    rebuild: bool,
) -> App:
    ids = RandomIds()
    parts = _parts(url, clock, ids, settings.lease_seconds / 3)
    blobs = parts.blobs if artifacts is None else blobs_of(artifacts)
    parts.store.open(create=create)
    beside = _Beside()

    def closed() -> None:
        parts.store.close()
        parts.close()
        beside.close()

    try:
        live = _live(projections, parts.store, rebuild=rebuild) if projections else {}
    except BaseException:
        closed()
        raise
    environment = Environment(
        clock=clock, ids=ids, threads=ThreadPool(settings.threads), wakeups=parts.wakeups, store=parts.store
    )
    node = Node(
        environment,
        driver=parts.driver,
        blobs=blobs,
        registry=with_builtins(registry),
        settings=settings,
        in_reader=parts.read,
        beside=beside.run,
        projections=live,
    )
    await node.open()
    return App(node, closed)


def _live(projections: Mapping[str, Projection], store: Store, *, rebuild: bool) -> dict[str, Live]:
    """Open the databases of projections, and bring them to their last migrations.

    Raises:
        ProjectionError: a migration fails, or was changed.
    """
    from treadle.store.sqlite import SqliteProjections, SqliteStore, parse_url

    databases: dict[str, ProjectionDatabase] = {}
    live: dict[str, Live] = {}
    for name, projection in projections.items():
        url = projection.url
        hosted = not url and isinstance(store, SqliteStore)
        if url not in databases:
            if hosted:
                assert isinstance(store, SqliteStore)
                databases[url] = store.projections()
            elif url.startswith("sqlite:"):
                databases[url] = SqliteProjections(parse_url(url)[0], hosted=False)
            elif url or store.durability != "process":
                raise StoreUrlError(
                    f"projection {name!r} cannot live at {url or 'this store'!r}; give it a sqlite:/// URL"
                )
            else:
                databases[url] = SqliteProjections(":memory:", hosted=False)
        (databases[url].rebuild if rebuild else databases[url].define)(projection.spec)
        live[name] = Live(projection, databases[url], hosted=hosted)
    return live


def _parts(url: str, clock: Clock, ids: Ids, renew_seconds: float) -> StoreParts:
    """What a URL stands for."""
    scheme = url.partition(":")[0]
    if scheme == "memory":
        from treadle.store.blobs import MemoryBlobs
        from treadle.store.memory import MemoryStore

        inline = partial(InlineDriver, renew_seconds=renew_seconds)
        return StoreParts(MemoryStore(), MemoryBlobs(), inline, NoWakeups(), _direct)
    threaded = partial(ThreadDriver, clock, renew_seconds=renew_seconds)
    if scheme == "sqlite":
        from treadle.store.blobs import DirectoryBlobs
        from treadle.store.sqlite import SqliteStore

        sqlite, reader = SqliteStore.from_url(url), _ReaderThread()
        blobs = DirectoryBlobs(f"{sqlite.path}-blobs")
        return StoreParts(sqlite, blobs, threaded, DatagramWakeups(ids.key()), reader.run, reader.close)
    if scheme in ("postgresql", "postgres"):
        from treadle.store.postgres import PostgresStore

        postgres, reader = PostgresStore.from_url(url), _ReaderThread()
        return StoreParts(postgres, postgres.blobs(), threaded, postgres.wakeups(ids.key()), reader.run, reader.close)
    if scheme in ("nats", "tls"):
        from treadle.store.nats import NatsStore

        nats, reader = NatsStore.from_url(url), _ReaderThread()
        return StoreParts(nats, nats.blobs(), threaded, nats.wakeups(ids.key()), reader.run, reader.close)
    if "://" in url and scheme in _plugins().installed("stores"):
        store, found = _plugins().plugin("stores", scheme)(url)
        reader = _ReaderThread()
        return StoreParts(store, found, threaded, DatagramWakeups(ids.key()), reader.run, reader.close)
    raise StoreUrlError(
        f"{url!r} names no store; use memory://, sqlite:///file.db, postgresql://user@host/database"
        " or nats://host:4222/NAME"
    )


__all__ = ["Opening", "connect", "lifespan"]
