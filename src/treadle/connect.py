"""connect: from a URL to an application.

What it takes to open one is imported when it is opened: a program that plans steps, or starts up, does not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

from treadle.authoring.packages import JoinedRegistry, Package

if TYPE_CHECKING:
    from treadle.authoring.options import Retry
    from treadle.authoring.projections import Projection
    from treadle.authoring.registry import Registry
    from treadle.opening import Place
    from treadle.ports import Clock, Elector, PayloadCodec
    from treadle.runtime.blocking import BlockingApp
    from treadle.runtime.client import App
    from treadle.runtime.event_sinks import EventSink
    from treadle.runtime.hooks import Hooks
    from treadle.runtime.middleware import Middleware
    from treadle.runtime.node import Settings
    from treadle.runtime.queues import Queue
    from treadle.runtime.retention import Retention
    from treadle.runtime.serving import Lifespan
    from treadle.runtime.targets import Targets


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
        from treadle.opening import open_app

        return await open_app(
            self._url,
            self._registry,
            self._settings,
            create=self._create,
            artifacts=self._artifacts,
            clock=self._clock,
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
        from treadle.runtime.blocking import BlockingApp

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
    targets: Targets = (),
    artifacts: Place | None = None,
    projections: Sequence[Projection | str] = (),
    rebuild: bool = False,
    retention: Retention | None = None,
    codec: PayloadCodec | str | None = None,
    events: Sequence[EventSink] = (),
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
    processes; an operator's go before. `targets` are names, or a function that tells them, for which it executes steps
    that are placed there. `artifacts` is where artifacts and large values are kept: a directory, or a URL with the
    extra `objects`; by default beside the store's file. `projections` are read models, besides those of the packages;
    `rebuild` makes their tables anew. `retention` deletes closed runs by and by. `codec` encodes what is stored: an
    `Encryption`, or where its keys are (`file:PATH`, `env:NAME`, an entry point). `clock` replaces the machine's.

    Raises:
        UsageError: a hook is no `Hooks`, or a middleware is no coroutine function.
        DefinitionError: a package or a setting is wrong; all mistakes at once.
        PluginError: what is named is not installed, or cannot be imported.
    """
    from treadle import opening

    brought: list[Package] = opening.plugins().packages_of(packages) if packages else []
    known = opening.registry_of(registry, actions)
    wide: dict[str, Any] = {"elector": elector, "queues": queues, "retention": retention, "codec": codec}
    wide.update(hooks=hooks, middleware=middleware, targets=targets, events=events)
    chosen = settings or opening.settings_of(
        worker=worker,
        slots=slots,
        threads=threads,
        worker_id=worker_id,
        lease=lease,
        retry=retry,
        packages=brought,
        package_settings=package_settings or {},
        **wide,
    )
    found = opening.projections_of(projections, brought)
    more: dict[str, Any] = {"artifacts": artifacts, "clock": clock, "projections": found, "rebuild": rebuild}
    return Opening(url, JoinedRegistry(known, brought) if brought else known, chosen, create=create, **more)


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
    from treadle.runtime.serving import lifespan_of

    connect(url, **options)
    return lifespan_of(lambda: connect(url, **options), state=state, grace=grace, around=around)


__all__ = ["Opening", "connect", "lifespan"]
