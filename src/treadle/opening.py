"""opening: what a URL stands for, and an application on it. The only place that names stores."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from treadle.authoring.options import Retry, policy_of
from treadle.authoring.packages import Package, check_packages
from treadle.authoring.projections import Projection, check_projections
from treadle.authoring.registry import Registry, default_registry
from treadle.errors import StoreUrlError, UsageError
from treadle.ports import Clock, Environment, Ids, PayloadCodec, Wakeups
from treadle.runtime.builtins import with_builtins
from treadle.runtime.client import App
from treadle.runtime.clock import RandomIds, SystemClock
from treadle.runtime.coding import opener
from treadle.runtime.event_sinks import EventSink
from treadle.runtime.events_out import checked_sinks
from treadle.runtime.hooks import Hooks, check_hooks
from treadle.runtime.middleware import Middleware, check_middleware
from treadle.runtime.node import Node, Settings
from treadle.runtime.projections import Live
from treadle.runtime.queues import Queue, changes_of
from treadle.runtime.retention import Retention, rule_of
from treadle.runtime.targets import Targets, check_targets
from treadle.runtime.threads import ThreadPool
from treadle.runtime.wakeups import DatagramWakeups, NoWakeups
from treadle.store.base import Store
from treadle.store.blob_port import Blobs
from treadle.store.committer import Driver, InlineDriver, ThreadDriver
from treadle.store.positions import KeepsPositions, Positions
from treadle.store.projection import HostsProjections, ProjectionDatabase

# Where artifacts are kept: a path, a URL, or an object that keeps them.
Place = str | os.PathLike[str] | Blobs


def settings_of(
    *,
    worker: bool | Literal["cycles"],
    lease: float,
    retry: Retry | int | None,
    hooks: Sequence[Hooks],
    middleware: Sequence[Middleware],
    packages: Sequence[Package],
    package_settings: Mapping[str, Mapping[str, Any]],
    queues: Sequence[Queue],
    targets: Targets,
    retention: Retention | None,
    codec: PayloadCodec | str | None,
    events: Sequence[EventSink],
    **more: Any,
) -> Settings:
    """The settings of a node, as `connect` was given them, checked."""
    check_hooks(hooks)
    check_middleware(middleware)
    return Settings(
        worker=bool(worker),
        cycles=worker == "cycles",
        events=checked_sinks(events),
        lease_seconds=lease,
        retry=policy_of(retry),
        hooks=tuple(hooks),
        middleware=tuple(middleware),
        packages=tuple(packages),
        package_settings=check_packages(packages, package_settings),
        queues=changes_of(queues) if queues else (),
        targets=check_targets(targets),
        retention=None if retention is None else rule_of(retention),
        codec=None if codec is None else _codec_of(codec),
        **more,
    )


def _codec_of(given: PayloadCodec | str) -> PayloadCodec | None:
    """The payload codec that is given or named."""
    # What looks for keys is imported where there are any.
    from treadle.runtime.encryption import codec_of

    return codec_of(given)


def registry_of(registry: Registry | None, actions: str | Sequence[str]) -> Registry:
    """The registry of an application, with the steps of entry points."""
    known = registry if registry is not None else default_registry
    if actions:
        plugins().add_actions(known, actions)
    return known


def projections_of(given: Sequence[Projection | str], packages: Sequence[Package]) -> dict[str, Projection]:
    """The read models that are given or named, and those of packages, by name."""
    named = [plugins().plugin("projections", one) if isinstance(one, str) else one for one in given]
    return check_projections([*named, *(one for package in packages for one in package.projections)])


def plugins() -> Any:
    """The module that reads what is installed."""
    # Reading what is installed is not quick; a program that names no plugin does without.
    from treadle.authoring import plugins as found

    return found


class _ReaderThread:
    """One thread that owns the reader."""

    def __init__(self, count: int = 1, name: str = "treadle-reader") -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._closed = False

    def run(self, function: Callable[[], Any]) -> Awaitable[Any]:
        if self._closed:
            raise UsageError("the application was closed; open it again with connect()")
        return asyncio.get_running_loop().run_in_executor(self._pool, function)

    def close(self) -> None:
        self._closed = True
        self._pool.shutdown(wait=False)


class _Beside(_ReaderThread):
    """A few threads that read and write blobs."""

    def __init__(self) -> None:
        super().__init__(4, "treadle-blobs")


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

    if scheme not in SCHEMES and scheme in plugins().installed("artifacts"):
        found: Blobs = plugins().plugin("artifacts", scheme)(place)
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


async def open_app(
    url: str,
    registry: Registry,
    settings: Settings,
    *,
    create: bool,
    artifacts: Place | None,
    clock: Clock | None,
    projections: Mapping[str, Projection],
    rebuild: bool,
) -> App:
    """Open a store and begin a session on it; see `connect`."""
    clock, ids = clock or SystemClock(), RandomIds()
    parts = _parts(url, clock, ids, settings)
    blobs = parts.blobs if artifacts is None else blobs_of(artifacts)
    parts.store.open(create=create)
    beside = _Beside()

    def closed() -> None:
        parts.store.close()
        parts.close()
        beside.close()

    try:
        live = _live(projections, parts.store, rebuild=rebuild) if projections else {}
        sinks = {sink: _cursor(sink, parts.store) for sink in settings.events}
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
        sinks=sinks,
    )
    await node.open()
    return App(node, closed)


def _live(projections: Mapping[str, Projection], store: Store, *, rebuild: bool) -> dict[str, Live]:
    """Open the databases of projections, and bring them to their last migrations.

    Raises:
        ProjectionError: a migration fails, or was changed.
    """
    databases: dict[str, ProjectionDatabase] = {}
    live: dict[str, Live] = {}
    try:
        for name, projection in projections.items():
            url = projection.url
            if url not in databases:
                databases[url] = _database(name, url, store)
            (databases[url].rebuild if rebuild else databases[url].define)(projection.spec)
            live[name] = Live(projection, databases[url], hosted=not url and isinstance(store, HostsProjections))
    except BaseException:
        for database in databases.values():
            database.close()
        raise
    return live


def _database(name: str, url: str, store: Store) -> ProjectionDatabase:
    """Where a projection lives: at its URL, in the store itself, or for a store in memory there too."""
    if not url and isinstance(store, HostsProjections):
        return store.projections()
    scheme = url.partition(":")[0]
    if scheme in ("postgresql", "postgres"):
        from treadle.store.postgres import PostgresProjections
        from treadle.store.postgres import parse_url as parse_location

        return PostgresProjections(parse_location(url), hosted=False)
    from treadle.store.sqlite import SqliteProjections, parse_url

    if scheme == "sqlite":
        return SqliteProjections(parse_url(url)[0], hosted=False)
    if url or store.durability != "process":
        raise StoreUrlError(
            f"projection {name!r} cannot live at {url or 'this store'!r}; give it a sqlite:/// URL, or postgresql://"
        )
    return SqliteProjections(":memory:", hosted=False)


def _cursor(sink: EventSink, store: Store) -> Positions:
    """Where an event sink has its cursor: at its URL, in the store, or beside the store's file.

    Raises:
        StoreUrlError: it has no place, or one that keeps no cursors.
    """
    if not sink.cursor and isinstance(store, KeepsPositions):
        return store.positions()
    if sink.cursor.partition(":")[0] in ("postgresql", "postgres"):
        from treadle.store.postgres import PostgresProjections
        from treadle.store.postgres import parse_url as parse_location

        return PostgresProjections(parse_location(sink.cursor), hosted=False)
    from treadle.store.sqlite import SqliteProjections, SqliteStore, parse_url

    if sink.cursor.startswith("sqlite:"):
        path = parse_url(sink.cursor)[0]
    elif not sink.cursor and isinstance(store, SqliteStore):
        path = f"{store.path}-events.db"
    elif not sink.cursor and store.durability == "process":
        path = ":memory:"
    else:
        raise StoreUrlError(
            f"the cursor of event sink {sink.name!r} cannot be kept at {sink.cursor or 'this store'!r}; give it a"
            " sqlite:/// or postgresql:// URL by cursor="
        )
    # A power cut may take the last moves of a cursor: then events are delivered once more.
    return SqliteProjections(path, hosted=False, sync="normal")


def _parts(url: str, clock: Clock, ids: Ids, settings: Settings) -> StoreParts:
    """What a URL stands for."""
    renew_seconds = settings.lease_seconds / 3
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
        if settings.codec is not None:
            sqlite.opened = opener(settings.codec)
        blobs = DirectoryBlobs(f"{sqlite.path}-blobs")
        return StoreParts(sqlite, blobs, threaded, DatagramWakeups(ids.key()), reader.run, reader.close)
    if scheme in ("postgresql", "postgres"):
        from treadle.store.postgres import PostgresStore

        postgres, reader = PostgresStore.from_url(url), _ReaderThread()
        if settings.codec is not None:
            postgres.opened = opener(settings.codec)
        return StoreParts(postgres, postgres.blobs(), threaded, postgres.wakeups(ids.key()), reader.run, reader.close)
    if scheme in ("nats", "tls"):
        from treadle.store.nats import NatsStore

        nats, reader = NatsStore.from_url(url), _ReaderThread()

        def on_its_loop() -> Driver:
            return ThreadDriver(clock, renew_seconds=renew_seconds, bell=nats.bell(), express=nats.express())

        return StoreParts(nats, nats.blobs(), on_its_loop, nats.wakeups(ids.key()), reader.run, reader.close)
    if "://" in url and scheme in plugins().installed("stores"):
        store, found = plugins().plugin("stores", scheme)(url)
        reader = _ReaderThread()
        return StoreParts(store, found, threaded, DatagramWakeups(ids.key()), reader.run, reader.close)
    raise StoreUrlError(
        f"{url!r} names no store; use memory://, sqlite:///file.db, postgresql://user@host/database"
        " or nats://host:4222/NAME"
    )
