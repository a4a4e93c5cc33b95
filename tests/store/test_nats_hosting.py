"""The connection's loop, run by the program's own event loop: see `store/nats/loop.py`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import pairwise
from typing import Any, TypeVar, cast

import pytest

from treadle import connect
from treadle.bench.graphs import chain
from treadle.store.nats import loop as loops
from treadle.store.nats.loop import Loop, LoopBell

T = TypeVar("T")
# Longer than any wait of these tests.
LONG = 600.0
WAIT = 30.0


async def thread_of() -> int:
    return threading.get_ident()


class Guest:
    """A loop whose borrower has nothing to do."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.bell: LoopBell
        self.waits = 0
        self.going = True
        self.thread = threading.Thread(target=self._rest)
        self._borrowed = threading.Event()
        self.thread.start()
        assert self._borrowed.wait(WAIT)

    def _rest(self) -> None:
        with self.loop.bell() as self.bell:
            self._borrowed.set()
            while self.going:
                self.bell.wait(LONG)
                self.waits += 1

    def on_loop(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop.loop))

    async def hosted(self) -> None:
        """Until this thread runs the loop."""
        async with asyncio.timeout(WAIT):
            self.loop.ask()
            while await self.on_loop(thread_of()) != threading.get_ident():
                self.loop.ask()


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    found = Guest(Loop("guest"))
    yield found
    found.going = False
    found.bell.ring()
    await asyncio.to_thread(found.thread.join)
    # What the borrower has left to do here is done before its loop is closed.
    await asyncio.sleep(0)
    found.loop.close()


async def test_it_runs_on_the_hosts_thread_until_the_borrower_is_needed(guest: Guest) -> None:
    borrower = guest.thread.ident
    assert await guest.on_loop(thread_of()) == borrower

    await guest.hosted()
    guest.bell.ring()
    async with asyncio.timeout(WAIT):
        while await guest.on_loop(thread_of()) != borrower:
            pass

    await guest.hosted()
    assert guest.waits >= 2


async def test_its_timers_ring(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "HOSTED_SECONDS", 0.05)
    await guest.hosted()

    async with asyncio.timeout(WAIT):
        await guest.on_loop(asyncio.sleep(0.01))


async def test_the_hosts_own_calls_are_answered(guest: Guest) -> None:
    await guest.hosted()

    assert guest.loop.call(thread_of()) == guest.thread.ident


async def test_who_has_much_to_do_there_holds_up_nothing_else(guest: Guest) -> None:
    await guest.hosted()
    turns: list[str] = []

    async def many() -> None:
        for _ in range(20 * loops.ROUNDS):
            turns.append("there")
            await asyncio.sleep(0)

    work = guest.on_loop(many())
    while not work.done():
        turns.append("here")
        await asyncio.sleep(0)

    assert turns[-1] == "here"
    assert ("there", "here") in pairwise(turns)
    assert turns.count("there") == 20 * loops.ROUNDS


@pytest.mark.nats
async def test_the_program_hears_the_answers_to_the_commits_of_a_chain_itself(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []

    async with connect(nats_url, lease=LONG) as app:
        driver: Any = app._node.committer.driver
        answered: Callable[[Any], None] = driver._answered

        def note(done: Any) -> None:
            heard.append(threading.get_ident())
            answered(done)

        monkeypatch.setattr(driver, "_answered", note)
        assert await (await app.start(chain(200))).result() == 200

    assert heard.count(threading.get_ident()) > 140


def deaf_loop() -> asyncio.AbstractEventLoop:
    """An event loop that waits for no sockets but its own, as that of Windows."""

    def refuse(*_: object) -> None:
        raise NotImplementedError

    loop: Any = asyncio.SelectorEventLoop()
    loop.add_reader = refuse
    return cast(asyncio.AbstractEventLoop, loop)


@pytest.mark.nats
def test_a_loop_that_can_be_no_host_is_none(nats_url: str) -> None:
    async def main() -> bool:
        async with connect(nats_url, lease=LONG) as app:
            assert await (await app.start(chain(30))).result() == 30
            store: Any = app._node.store
            refused: bool = store._loop._refused
            return refused

    with asyncio.Runner(loop_factory=deaf_loop) as runner:
        assert runner.run(main())
