"""Events out in the simulation: a receiver that fails as receivers do, and what it must have got at the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any, Final
from zlib import crc32

from treadle.core.events import decode_events, encode_events
from treadle.runtime.event_sinks import DeliveryError, EventSink
from treadle.store.memory_data import MemoryData, StoredRun
from treadle.store.positions import Positions
from treadle.testing.invariants import Fail
from treadle.testing.sim_faults import Faults

EVENTS: Final = "each event of a journal is delivered, those of a run in order, and a cursor is never ahead"
# In calm, all is delivered within so many virtual seconds: the longest delay of a delivery, and an election.
_PATIENCE: Final = 700.0


class Mail:
    """What all nodes of a world share of events out: the receiver, and the database of cursors."""

    def __init__(self, seed: int, fail: Fail) -> None:
        # Drawn apart, so that the other worlds are what they were.
        self.on = random.Random(f"{seed} events").random() < 0.2
        self._fail = fail
        self.positions: dict[str, int] = {}
        # By run: the events in the order in which they came first, as (version, place in the row).
        self.got: dict[str, dict[tuple[int, int], None]] = {}

    def sinks(self, faults: Faults) -> Mapping[EventSink, Positions]:
        """The sink of a node's life."""
        return {_Receiver(self, faults): _Cursor(self)} if self.on else {}

    async def judge(self, data: MemoryData, now: Callable[[], float]) -> None:
        """Wait until all is delivered, and compare with the journals of the runs that are there."""
        deadline = now() + _PATIENCE
        while self.on and any(self.positions.get(key, 0) < run.version for key, run in data.runs.items()):
            if now() > deadline:
                self._fail(EVENTS, "the last events are not delivered")
                return
            await asyncio.sleep(1.0)
        if self.on:
            for key, run in data.runs.items():
                expected = _places(run)
                if list(self.got.get(key, {})) != expected:
                    self._fail(EVENTS, f"{run.head.id}: came {list(self.got.get(key, {}))}, not {expected}")


def _places(run: StoredRun) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for version, row in enumerate(run.rows, 1):
        text = row.events if isinstance(row.events, str) else encode_events(row.events)
        found += [(version, index) for index in range(len(decode_events(text)))]
    return found


class _Receiver(EventSink):
    def __init__(self, mail: Mail, faults: Faults) -> None:
        super().__init__("mail", kinds=["*"], history=True)
        self._mail = mail
        self._faults = faults
        self._calls = 0

    async def deliver(self, event: Mapping[str, Any], now: float) -> None:
        """Take an event, unless the answer, or the request, is lost."""
        self._calls += 1
        await asyncio.sleep(self._faults.delay("mail"))
        luck = crc32(f"{event['id']} {self._calls}".encode()) % 20
        if luck == 0 and not self._faults.calm:
            raise DeliveryError("nobody is there")
        key, version, index = str(event["id"]).split(":")
        self._mail.got.setdefault(key, {}).setdefault((int(version), int(index)))
        if luck == 1 and not self._faults.calm:
            raise DeliveryError("the answer is lost")


class _Cursor:
    def __init__(self, mail: Mail) -> None:
        self._mail = mail

    def ready(self) -> None:
        """It is there."""

    def position(self, name: str, run: str) -> int:
        """How far the receiver has got in a run."""
        return self._mail.positions.get(run, 0)

    def move(self, name: str, run: str, after: int, version: int) -> bool:
        """Move it."""
        if self._mail.positions.get(run, 0) != after:
            return False
        self._mail.positions[run] = version
        return True

    def close(self) -> None:
        """Nothing is open."""
