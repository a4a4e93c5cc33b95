"""Projections while an application is open: where they live, who follows the journals for them, and their handles."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from treadle.authoring.context import Reading
from treadle.authoring.projections import Projection
from treadle.core.effects import Write
from treadle.errors import StoreError, TreadleError, UsageError
from treadle.runtime.readings import OnLoop, Ready
from treadle.store.base import RunQuery
from treadle.store.projection import ProjectionDatabase, Recorded, decode_records, recorded

if TYPE_CHECKING:
    from treadle.runtime.node import Node

_log = logging.getLogger("treadle.projections")
# How often runs that other processes decide are looked at.
LOOK_SECONDS: Final = 10.0
RETRY_SECONDS: Final = 0.5
_PAGE: Final = 500


class Live:
    """A projection in its database. `hosted`: that is the store's own, where outcomes bring their records along."""

    def __init__(self, projection: Projection, database: ProjectionDatabase, *, hosted: bool) -> None:
        self.projection = projection
        self.database = database
        self.hosted = hosted
        self.spec = projection.spec


class StepProjection:
    """A projection as a step sees it: an async step awaits the answers, in a thread they have a `result`."""

    def __init__(self, live: Live, hop: Callable[[Callable[[], Any]], Reading[Any]], writes: list[Write]) -> None:
        self._live = live
        self._hop = hop
        self._writes = writes

    def query(self, sql: str, *values: Any) -> Reading[list[dict[str, Any]]]:
        """The rows of a statement by column name."""
        return self._hop(partial(self._live.database.query, sql, values))

    def execute(self, sql: str, *values: Any) -> Reading[int]:
        """Carry out a statement now, whatever becomes of the step; how many rows it changed."""
        return self._hop(partial(self._live.database.execute, self._live.spec.name, sql, values))

    def write(self, sql: str, *values: bool | int | float | str | None) -> None:
        """Carry out a statement in the transaction that commits this step's success: both or neither.

        Raises:
            UsageError: the projection is not in the store's database.
            ProjectionError: the statement cannot be carried out as it is written.
        """
        if not self._live.hosted:
            raise UsageError(
                f"projection {self._live.spec.name!r} is not in the store's database, so it has no common transaction"
                " with it; record() reaches it exactly once, execute() at once"
            )
        if any(not isinstance(value, (bool, int, float, str, type(None))) for value in values):  # pyright: ignore[reportUnnecessaryIsInstance]  # users may give anything
            raise UsageError("the values of write() are None, numbers, booleans and texts")
        self._live.database.check(self._live.spec.name, sql)
        self._writes.append(Write(sql, list(values)))


class AppProjection:
    """A projection as a program sees it."""

    def __init__(self, live: Live, beside: Callable[[Callable[[], Any]], Awaitable[Any]], follower: Follower) -> None:
        self._live = live
        self._beside = beside
        self._follower = follower

    @property
    def name(self) -> str:
        """The projection's name."""
        return self._live.spec.name

    async def query(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """The rows of a statement by column name.

        Raises:
            ProjectionError: the statement is wrong, or would change something.
        """
        rows: list[dict[str, Any]] = await self._beside(partial(self._live.database.query, sql, values))
        return rows

    async def execute(self, sql: str, *values: Any) -> int:
        """Carry out a statement on the projection's tables; how many rows it changed."""
        count: int = await self._beside(partial(self._live.database.execute, self.name, sql, values))
        return count

    async def caught_up(self) -> None:
        """Wait until all records that are committed now are applied; in the store's own database they always are."""
        if not self._live.hosted:
            await self._follower.look(self._live)

    async def rebuild(self) -> None:
        """Make the tables anew, from what the journals of the runs that are there have recorded."""
        await self._beside(partial(self._live.database.rebuild, self._live.spec))
        await self.caught_up()


def step_hop(loop: asyncio.AbstractEventLoop | None, beside: Callable[..., Awaitable[Any]], *, blocks: bool) -> Any:
    """How a step does what may block: here in a thread, beside the loop otherwise."""

    async def hopping(work: Callable[[], Any]) -> Any:
        return await beside(work)

    def hop(work: Callable[[], Any]) -> Any:
        return Ready(work()) if blocks or loop is None else OnLoop(hopping(work), loop)

    return hop


class Follower:
    """Brings records to projections that do not live in the store: run by run, in the order of each journal.

    What it has applied is in the projection's own transaction, so two followers, or one that died, do no harm.
    """

    def __init__(self, node: Node, live: Mapping[str, Live], beside: Callable[..., Awaitable[Any]]) -> None:
        self._node = node
        self._followed = [one for one in live.values() if not one.hosted]
        self._beside = beside
        # Keys of runs that have given something. A dict: in the order of their news.
        self._news: dict[str, None] = {}
        self._bell = asyncio.Event()

    def start(self) -> None:
        """Begin to follow, if there is anything to follow for."""
        if self._followed:
            self._node.spawn(self._follow())

    def ring(self, key: str) -> None:
        """A run has given something."""
        if self._followed:
            self._news[key] = None
            self._bell.set()

    async def _follow(self) -> None:
        look = True
        while not self._node.closing:
            self._bell.clear()
            keys, self._news = list(self._news), {}
            try:
                for live in self._followed:
                    if look:
                        await self.look(live)
                    for key in keys:
                        await self._bring(live, key)
                look = False
            except (TreadleError, OSError) as error:
                _log.warning("projections wait: %s", error)
                self._news.update(dict.fromkeys(keys))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._bell.wait()
            except TimeoutError:
                look = True

    async def look(self, live: Live) -> None:
        """Bring what any run of the store has given."""
        node = self._node
        after = ""
        while True:
            runs = await node.read(partial(node.reader.runs, RunQuery(after=after, limit=_PAGE)))
            for run in runs:
                await self._bring(live, run.key)
            if len(runs) < _PAGE:
                return
            after = runs[-1].key

    async def _bring(self, live: Live, key: str) -> None:
        node, name = self._node, live.spec.name
        while True:
            after: int = await self._beside(partial(live.database.position, name, key))
            rows = await node.read(partial(node.reader.rows, key, after, _PAGE))
            run = await node.read(partial(node.reader.run, key))
            if not rows or run is None:
                return
            records: list[Recorded] = []
            for _version, _commit, time, text in rows:
                if '"records":' in text:
                    records += await self._records(key, run.id, time, text)
            # A run that has given nothing needs no position, until it has its outcome.
            await self._beside(partial(live.database.apply, live.spec, key, after, rows[-1][0], records))

    async def _records(self, key: str, run: str, time: float, text: str) -> list[Recorded]:
        found: list[Recorded] = []
        lists = list(recorded(text))
        texts = await self._node.payloads.load(key, [handle for _, handle in lists])
        for at, handle in lists:
            for collection, name, raw in decode_records(texts[handle]):
                found.append(Recorded(collection, name, bytes(raw).decode(), run, at, time))
        return found


class ProjectionRoom:
    """All projections of an open application."""

    def __init__(self, node: Node, live: Mapping[str, Live], beside: Callable[..., Awaitable[Any]]) -> None:
        self.live = live
        self.beside = beside
        self.follower = Follower(node, live, beside)

    @property
    def projections(self) -> Sequence[Projection]:
        """What was declared."""
        return [one.projection for one in self.live.values()]

    def find(self, name: str) -> Live:
        """A projection by its name.

        Raises:
            UsageError: none of this name was given to `connect`.
        """
        live = self.live.get(name)
        if live is None:
            there = ", ".join(self.live) or "none"
            raise UsageError(f"there is no projection {name!r} here; connect() was given: {there}")
        return live

    def for_app(self, name: str) -> AppProjection:
        """The handle of a program."""
        return AppProjection(self.find(name), self.beside, self.follower)

    async def close(self) -> None:
        """End the connections."""
        for one in {id(live.database): live.database for live in self.live.values()}.values():
            try:
                await self.beside(one.close)
            except StoreError as error:
                _log.warning("a projection could not be closed in order: %s", error)
