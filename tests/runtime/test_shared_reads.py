"""Attempts that need parts of one stored value wait for it together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from treadle.core.commands import Call, Task
from treadle.core.events import Handle, Pick
from treadle.runtime.attempts import Attempt
from treadle.runtime.payloads import CACHED_BYTES, Payloads
from treadle.runtime.shared_reads import SharedReads
from treadle.runtime.slots import ASYNC
from treadle.store.base import Reader
from treadle.store.blobs import MemoryBlobs


class Room:
    """Shared reads over blobs that are read when the gate opens."""

    def __init__(self) -> None:
        self.blobs = MemoryBlobs()
        self.gate = asyncio.Event()
        self.reads = 0
        self.again: list[Attempt] = []
        # Rows of a run are not read here.
        payloads = Payloads(cast(Reader, None), self.blobs, cast(Any, None), self.beside)
        self.shared = SharedReads(payloads, asyncio.get_running_loop(), self.again.append)

    async def beside(self, work: Callable[[], Any]) -> Any:
        self.reads += 1
        await self.gate.wait()
        return work()

    def stored(self, text: str) -> Handle:
        return f"#{self.blobs.put(text.encode())}"

    async def given_back(self, count: int) -> None:
        self.gate.set()
        async with asyncio.timeout(10):
            while len(self.again) < count:
                await asyncio.sleep(0)


@pytest.fixture
async def room() -> Room:
    return Room()


def needing(handle: Handle, part: int) -> Attempt:
    call = Call(args={"value": Pick(handle, (part,))})
    task = Task("run", part, f"g[{part}]/x", 1, 1, "x", "default", 0, 0.0, call, "r", part + 1)
    return Attempt(task, ASYNC, 0.0)


async def test_many_attempts_wait_for_one_read_and_begin_in_their_order(room: Room) -> None:
    handle = room.stored("[1,2,3]")
    attempts = [needing(handle, part) for part in range(3)]

    assert [room.shared.wait(attempt) for attempt in attempts] == [True, True, True]
    await room.given_back(3)

    assert room.again == attempts
    assert room.reads == 1
    assert not room.shared.wait(needing(handle, 0)), "it is at hand now"


async def test_a_value_that_cannot_be_read_holds_up_nobody(room: Room) -> None:
    attempt = needing("#sha256:" + "0" * 64, 0)

    assert room.shared.wait(attempt)
    await room.given_back(1)

    assert room.again == [attempt]
    assert not room.shared.wait(attempt), "it finds out for itself"


async def test_a_value_too_large_to_keep_is_read_by_each_for_itself(room: Room) -> None:
    handle = room.stored(f'["{"x" * CACHED_BYTES}"]')

    assert room.shared.wait(needing(handle, 0))
    await room.given_back(1)

    assert not room.shared.wait(needing(handle, 0))


async def test_who_is_forgotten_is_not_given_back(room: Room) -> None:
    handle = room.stored("[1,2]")
    assert room.shared.wait(needing(handle, 0))

    room.shared.clear()
    assert room.shared.wait(needing(handle, 1))
    await room.given_back(1)

    assert [attempt.task.number for attempt in room.again] == [1]


async def test_what_rides_in_the_arguments_is_not_waited_for(room: Room) -> None:
    assert not room.shared.wait(needing("=[1,2]", 0))
    assert not room.shared.wait(needing("!key=[1,2]", 0))
