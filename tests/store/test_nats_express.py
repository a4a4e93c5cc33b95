"""Commits of the NATS store that another thread begins: see `store/nats/express.py`."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable
from typing import Any

import pytest
from tests.nats_kit import Proxy, new_name

from treadle import connect
from treadle.bench.graphs import chain
from treadle.store.base import Answer
from treadle.store.nats import NatsStore
from treadle.store.nats.development import Node
from treadle.testing.contract_kit import OTHER, RUN, Party, append_of, key_of, numbers, task_of
from treadle.testing.contract_kit import Slots as Offer

pytestmark = pytest.mark.nats

# Until a test gives up: an answer that is lost is asked for again after two seconds.
WAIT = 30


def link_of(store: Any) -> Any:
    return store._rooms.link


class Commit:
    """One commit by an express, from this thread."""

    def __init__(self, party: Party, append: Any, slots: int = 1) -> None:
        assert isinstance(party.store, NatsStore)
        self.express = party.store.express()
        self.told: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self.offer = Offer(slots, ("act",))
        loop: Any = party.store._loop
        for _ in range(20):
            # What the last call has left to do on the loop is done before.
            with loop._inside:
                pass
            self.begun = self.express.begin(party.id, append, self.offer, self.told.put)
            if self.begun:
                break

    def answer(self) -> Answer:
        """What the committer comes to."""
        assert self.begun
        found = self.told.get(timeout=WAIT)
        return self.express.finish() if found is None else found


def test_it_is_one_message_with_the_answer_of_any_commit(open_nats: Callable[..., NatsStore]) -> None:
    one = Party(open_nats(), "one")
    one.start(tasks=[task_of(RUN, 1)], slots=1)
    before = link_of(one.store).requests

    commit = Commit(one, append_of(RUN, 1, ended=[1], tasks=[task_of(RUN, 2), task_of(RUN, 3)]))
    answer = commit.answer()

    assert (answer.status, numbers(answer.leased), answer.queued) == ("committed", [2], 1)
    assert link_of(one.store).requests == before + 1
    assert commit.told.empty()
    assert commit.offer.free() == 0
    assert [row[0] for row in one.load().rows] == [1, 2]


def test_what_would_be_refused_or_needs_more_than_a_message_is_not_begun(open_nats: Callable[..., NatsStore]) -> None:
    one = Party(open_nats(), "one")
    one.start(tasks=[task_of(RUN, 1)], slots=1)
    before = link_of(one.store).requests
    large = "x" * 2_000_000
    appends = [
        append_of(RUN, 7, ended=[1], tasks=[task_of(RUN, 2)]),
        append_of(RUN, 1, ended=[1], tasks=[task_of(RUN, 2)], payloads=[("d", b"1")]),
        append_of(RUN, 1, ended=[1], tasks=[task_of(RUN, 2)], undos=[(large, "done")]),
    ]

    commits = [Commit(one, append) for append in appends]

    assert [commit.begun for commit in commits] == [False] * 3
    assert [commit.offer.free() for commit in commits] == [1] * 3
    assert link_of(one.store).requests == before
    assert one.append(ended=[1]).status == "committed"


def test_what_another_process_wrote_before_comes_first(open_nats: Callable[..., NatsStore]) -> None:
    one, two = Party(open_nats(), "one"), Party(open_nats(), "two")
    one.start(tasks=[task_of(RUN, 1)], slots=1)
    two.start(OTHER, tasks=[task_of(OTHER, 1)])

    commit = Commit(one, append_of(RUN, 1, ended=[1], tasks=[task_of(RUN, 2)]))
    answer = commit.answer()

    # The other run's task was there first, so the slot is not for that of this run.
    assert (answer.status, numbers(answer.leased)) == ("committed", [])
    assert commit.offer.free() == 1
    assert one.row().version == two.row().version == 2


def test_an_answer_that_comes_late_is_not_told_twice(open_nats: Callable[..., NatsStore]) -> None:
    one = Party(open_nats(), "one")
    one.start(tasks=[task_of(RUN, 1)], slots=1)
    store: Any = one.store

    async def reconnected() -> None:
        await link_of(store)._on_reconnected()

    commit = Commit(one, append_of(RUN, 1, ended=[1], tasks=[task_of(RUN, 2)]))
    # With its first answer on the way, or there already.
    store._loop.call(reconnected())
    answer = commit.answer()

    assert (answer.status, numbers(answer.leased)) == ("committed", [2])
    assert one.load().version == 2
    assert commit.told.empty()


def test_an_operation_that_is_asked_for_is_told_by_nothing_else(open_nats: Callable[..., NatsStore]) -> None:
    one = Party(open_nats(), "one")
    one.start(tasks=[task_of(RUN, 1)], slots=1)
    store: Any = one.store
    told: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
    store._loop._inside.acquire()
    try:
        express = store.express()
        # Inside of the loop nothing is answered: the connection is made anew before that.
        assert express._begin(one.id, append_of(RUN, 1, ended=[1]), None, told.put)
        for wait in list(link_of(store)._waits):
            wait.end(True)
    finally:
        store._loop.step_out()

    assert express.finish().status == "committed"

    assert told.get(timeout=WAIT) is None
    assert told.empty()
    assert one.load().version == 2


def test_a_commit_survives_a_connection_that_is_cut_anywhere_in_its_answer(
    nats_server: Node, open_nats: Callable[..., NatsStore]
) -> None:
    proxy = Proxy(nats_server.port)
    try:
        store = open_nats(f"nats://127.0.0.1:{proxy.port}/{new_name()}")
        for place, cut in enumerate(range(0, 140, 20), 1):
            one = Party(store, f"one-{place}")
            key = key_of(place)
            one.start(key, tasks=[task_of(key, 1)], slots=1)
            proxy.cut_after(cut)

            answer = Commit(one, append_of(key, 1, ended=[1], tasks=[task_of(key, 2)])).answer()
            proxy.left = None

            assert (answer.status, numbers(answer.leased)) == ("committed", [2])
            assert [row[0] for row in one.load(key).rows] == [1, 2]
        assert store.check().problems == []
    finally:
        proxy.close()


def test_nothing_happens_on_the_loop_while_a_thread_is_inside(open_nats: Callable[..., NatsStore]) -> None:
    loop: Any = open_nats()._loop
    turns: queue.SimpleQueue[str] = queue.SimpleQueue()

    loop._inside.acquire()
    assert not loop.step_in()
    loop.soon(turns.put, "a turn")
    loop.soon(lambda: None)
    before = turns.qsize()
    loop.step_out()

    assert turns.get(timeout=WAIT) == "a turn"
    assert before == 0


async def test_the_hops_of_a_chain_go_that_way(nats_url: str) -> None:
    planned = chain(200)

    async with connect(nats_url, lease=600) as app:
        run = await app.start(planned)
        assert await run.result() == 200
        begun = link_of(app._node.store)._begun
        appended = app._node.committer.appended

    # Those that the thread could not be found at rest for, and the first and the last, go the other way.
    assert begun > 0.7 * appended > 140


async def test_runs_beside_each_other_end_whichever_way_their_commits_go(nats_url: str) -> None:
    planned = chain(30)

    async with connect(nats_url, lease=600) as app:
        runs = [await app.start(planned) for _ in range(10)]
        assert await asyncio.gather(*[run.result() for run in runs]) == [30] * 10
        assert (await app.check()).problems == []
