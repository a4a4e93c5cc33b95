"""Random histories on a real NATS server, with snapshots and processes that begin in the middle of the log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule
from tests.nats_kit import new_name

from treadle.store.base import Store
from treadle.store.nats import NatsStore
from treadle.store.nats.development import Node
from treadle.store.nats.snapshots import decode_snapshot, encode_snapshot
from treadle.testing.store_model import StoreModel

pytestmark = pytest.mark.nats

_handles = st.integers(0, 1)
_servers: list[Node] = []


@pytest.fixture(autouse=True)
def _server(nats_server: Node) -> Iterator[None]:
    _servers.append(nats_server)
    yield
    _servers.clear()


def state_of(store: NatsStore) -> bytes:
    """All that a process knows, as bytes."""
    log = store._rooms.log
    store._loop.call(log.follow())
    return encode_snapshot(log.applied, log.machine)


class NatsModel(StoreModel):
    def make_handles(self) -> list[Store]:
        url = f"{_servers[0].url}/{new_name()}"
        self.stores = [NatsStore.from_url(url) for _ in range(2)]
        for store in self.stores:
            store.open()
        return list(self.stores)

    @rule(handle=_handles)
    def clear_up(self, handle: int) -> None:
        """A process stores a snapshot, and clears the log of what it covers."""
        store = self.stores[handle]
        store._loop.call(store._rooms.log.follow())
        store._loop.call(store._rooms.log.store_snapshot())

    @rule(handle=_handles)
    def begin_anew(self, handle: int) -> None:
        """A process forgets what it knows, and loads it from the newest snapshot and the log."""
        store = self.stores[handle]
        before = state_of(store)
        log = store._rooms.log
        log.machine, log.applied = type(log.machine)(), 0

        store._loop.call(log.load())

        assert state_of(store) == before

    def read_all(self, store: Store) -> None:
        """In the end all processes, those that begin now included, have come to the same state."""
        super().read_all(store)
        assert isinstance(store, NatsStore)
        late = NatsStore(store.location)
        late.open()
        try:
            assert state_of(late) == state_of(store)
            assert encode_snapshot(1, decode_snapshot(state_of(store)).machine()) == encode_snapshot(
                1, store._rooms.log.machine
            )
        finally:
            late.close()


class LongNatsModel(NatsModel):
    pass


TestNatsHistories = NatsModel.TestCase
TestNatsHistories.settings = settings(max_examples=25, stateful_step_count=30, report_multiple_bugs=False)
TestLongNatsHistories = pytest.mark.slow(LongNatsModel.TestCase)
TestLongNatsHistories.settings = settings(max_examples=500, stateful_step_count=60, report_multiple_bugs=False)
