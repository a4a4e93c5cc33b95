"""Events out: what journals say is brought to event sinks, at least once, each run in its order.

The journals are the queue. A sink has a cursor for each run, kept durably; it is moved when a row's events were
delivered, so that a process that dies delivers the last ones again, under the same ids. A receiver that is down holds
up its sink alone: nothing is kept for it but the keys of runs with news, and if these are too many, that all runs have
to be looked at.

One session at a time delivers for a sink, by the store's election. It hears of its own commits, and looks for those of
others when it is woken, at intervals, and when it begins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

from treadle.core.tables import LIVE
from treadle.errors import UsageError
from treadle.runtime.cloud_events import cloud_events
from treadle.runtime.event_sinks import DeliveryError, EventSink
from treadle.runtime.patience import RETRY_SECONDS
from treadle.store.base import Append, RunHead, RunQuery, RunRow
from treadle.store.positions import Positions

if TYPE_CHECKING:
    from treadle.runtime.node import Node
    from treadle.runtime.owned import Owned

_log = logging.getLogger("treadle.events")
# The first delay after a failed delivery, and the longest: short for a restart, seldom enough for a night.
FIRST_SECONDS: Final = 0.5
LONGEST_SECONDS: Final = 300.0
# How often a session that is not elected asks again, and an elected one looks for what nobody told it.
ELECT_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 10.0
# So many looks at the newest and open runs, then one at all of them.
_LOOKS: Final = 30
# After a wake-up, others that come at once are taken along.
_GATHER_SECONDS: Final = 0.05
# Above so many runs with news it is cheaper to look at all.
MOST_NEWS: Final = 10_000
_PAGE: Final = 100


class Feeds:
    """The event sinks of an open application."""

    def __init__(self, node: Node, sinks: Mapping[EventSink, Positions]) -> None:
        self._node = node
        self._feeds = [_Feed(node, sink, cursor) for sink, cursor in sinks.items()]

    async def prepare(self) -> None:
        """Sinks that are new take note of what is there already."""
        for feed in self._feeds:
            await feed.prepare()

    def start(self) -> None:
        """Begin to deliver."""
        for feed in self._feeds:
            self._node.spawn(feed.run())

    def committed(self, _owned: Owned, append: Append) -> None:
        """An append of this session was committed."""
        for feed in self._feeds:
            feed.ring(append.key)

    def woken(self) -> None:
        """Another session has committed something."""
        for feed in self._feeds:
            feed.woken()

    async def delivered(self) -> None:
        """Wait until all that is committed now was delivered, or another session is elected to deliver it."""
        for feed in self._feeds:
            await feed.idle()

    def close(self) -> None:
        """Let go of cursors and connections."""
        for feed in self._feeds:
            feed.sink.close()
            feed.cursor.close()


class _Feed:
    """One sink's events."""

    def __init__(self, node: Node, sink: EventSink, cursor: Positions) -> None:
        self.sink = sink
        self.cursor = cursor
        self._node = node
        # Keys of runs with news, in the order of these; whether there may be others.
        self._news: dict[str, None] = {}
        self._missed = True
        # Whether other sessions may have committed something.
        self._elsewhere = False
        # Open runs of the last look: they may have ended since.
        self._open: set[str] = set()
        self._looks = 0
        self._bell = asyncio.Event()
        # Set while there is nothing to do, or somebody else does it.
        self._idle = asyncio.Event()

    def ring(self, key: str) -> None:
        """A run has news."""
        if len(self._news) < MOST_NEWS:
            self._news[key] = None
        else:
            self._missed = True
        self._idle.clear()
        self._bell.set()

    def woken(self) -> None:
        """Another session has committed something."""
        self._elsewhere = True
        self._bell.set()

    async def idle(self) -> None:
        """Wait until nothing is left to do."""
        await self._idle.wait()

    # -- cursors -----------------------------------------------------------------------------------------------------

    async def _position(self, key: str) -> int:
        found: int = await self._node.beside(partial(self.cursor.position, self.sink.name, key))
        return found

    async def _move(self, key: str, after: int, version: int) -> None:
        await self._node.beside(partial(self.cursor.move, self.sink.name, key, after, version))

    async def prepare(self) -> None:
        """Make the cursor ready. A new one begins behind what is there, unless the sink wants the history."""
        await self._node.beside(self.cursor.ready)
        if await self._position(""):
            return
        if not self.sink.history:
            async for row in self._runs():
                await self._move(row.key, await self._position(row.key), row.version)
        await self._move("", 0, 1)

    # -- what is to be done --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver while this session is elected to."""
        node = self._node
        while not node.closing:
            try:
                if not await self._elected():
                    self._missed = True
                    self._idle.set()
                    await asyncio.sleep(ELECT_SECONDS)
                    continue
                self._bell.clear()
                if self._missed:
                    self._missed = self._elsewhere = False
                    await self._look_at_all()
                elif self._elsewhere:
                    self._elsewhere = False
                    await self._look_around()
                if not await self._bring_news():
                    continue
            except Exception as error:  # noqa: BLE001 - whatever it is, events are not lost by it, and others go on
                _log.warning("events for %r wait: %r", self.sink.name, error)
                self._missed = True
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if not self._bell.is_set():
                self._idle.set()
                await self._wait()

    async def _elected(self) -> bool:
        node = self._node
        role = f"events:{self.sink.name}"
        return await node.committer.call(lambda store: store.elect(role, node.session))

    async def _bring_news(self) -> bool:
        """Deliver for the runs with news; False if another session is to."""
        while self._news:
            key = next(iter(self._news))
            # Before its journal is read: what is committed after that is news again.
            del self._news[key]
            if not await self._bring(key):
                self._news[key] = None
                return False
        return True

    async def _wait(self) -> None:
        """Wait for a commit here, a wake-up from elsewhere, or a while."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._bell.wait()
        except TimeoutError:
            self._elsewhere = True
        else:
            if self._elsewhere:
                await asyncio.sleep(_GATHER_SECONDS)

    async def _look_at_all(self) -> None:
        self._looks = 0
        async for row in self._runs():
            await self._note(row)

    async def _look_around(self) -> None:
        """Look at what others may have committed: open runs, those that were open, and the newest."""
        node = self._node
        sessions = await node.read(node.reader.sessions)
        if len(sessions) < 2:
            return
        self._looks += 1
        if self._looks >= _LOOKS:
            self._missed = True
            return
        before, self._open = self._open, set()
        for status in sorted(LIVE):
            async for row in self._runs(status):
                self._open.add(row.key)
                await self._note(row)
        for row in await node.read(partial(node.reader.runs, RunQuery(limit=_PAGE))):
            await self._note(row)
        for key in sorted(before - self._open):
            self._news[key] = None

    async def _note(self, row: RunRow) -> None:
        if await self._position(row.key) < row.version:
            self._news[row.key] = None

    async def _runs(self, status: str = "") -> AsyncIterator[RunRow]:
        after = ""
        while True:
            query = RunQuery(status=status, after=after, limit=_PAGE)
            rows = await self._node.read(partial(self._node.reader.runs, query))
            for row in rows:
                yield row
            if len(rows) < _PAGE:
                return
            after = rows[-1].key

    # -- delivery ------------------------------------------------------------------------------------------------------

    async def _bring(self, key: str) -> bool:
        """Deliver what a run's journal has beyond the cursor; False if another session is to."""
        node = self._node
        after = await self._position(key)
        head: RunHead | None = None
        wanted = False
        while rows := await node.read(partial(node.reader.rows, key, after, _PAGE)):
            if head is None:
                found = await node.read(partial(node.reader.head, key))
                if found is None:
                    return True
                head = found[0]
                wanted = self.sink.wants(head)
            for version, _commit, time, text in rows:
                told = list(cloud_events(head, version, time, text, self.sink.source)) if wanted else []
                events = [event for kind, event in told if kind in self.sink.kinds]
                for event in events:
                    if not await self._deliver(event):
                        return False
                if events:
                    await self._move(key, after, version)
                    after = version
            if after != rows[-1][0]:
                await self._move(key, after, rows[-1][0])
                after = rows[-1][0]
        return True

    async def _deliver(self, event: Mapping[str, Any]) -> bool:
        """Deliver an event, again and again until it is; False if another session is to."""
        tries = 0
        while True:
            wait = 0.0
            try:
                await self.sink.deliver(event, self._node.environment.clock.now())
            except Exception as error:  # noqa: BLE001 - a callback may raise anything; the event stays where it is
                wait = error.wait if isinstance(error, DeliveryError) else 0.0
                _log.warning("event %s was not delivered to %r: %s", event["id"], self.sink.name, error)
            else:
                return True
            # Between half of the delay and all of it, so that receivers are not all asked at one instant.
            delay = min(LONGEST_SECONDS, FIRST_SECONDS * 2**tries)
            delay *= 0.5 + crc32(f"{event['id']} {tries}".encode()) / 2**33
            await asyncio.sleep(max(delay, min(wait, LONGEST_SECONDS)))
            tries = min(tries + 1, 16)
            if self._node.closing or not await self._elected():
                return False


def checked_sinks(sinks: Sequence[EventSink]) -> tuple[EventSink, ...]:
    """The sinks, if their names differ."""
    names = [sink.name for sink in sinks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"two event sinks are called {', '.join(map(repr, twice))}; each cursor needs a name of its own"
        )
    return tuple(sinks)
