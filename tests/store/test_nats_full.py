"""Streams of a NATS store that are full, and servers that store nothing and do not say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.disk_kit import small_disk
from tests.nats_kit import ask_api, limit

from treadle.errors import StoreFullError, StoreUnavailableError
from treadle.store.nats import NatsStore
from treadle.store.nats import link as nats_link
from treadle.store.nats.development import Node, free_ports, start_all
from treadle.testing.contract_kit import NOW, RUN, Party

pytestmark = pytest.mark.nats


def fill(one: Party) -> None:
    """Write messages until one is refused."""
    renewals = iter(lambda: one.store.renew("one"), None)
    with pytest.raises(StoreFullError, match="has no room"):
        list(renewals)


def test_a_full_stream_is_told_and_the_work_goes_on_when_there_is_room(
    nats_url: str, open_nats: Callable[..., NatsStore]
) -> None:
    store = open_nats(f"{nats_url}?max_bytes=60000")
    one = Party(store, "one")
    one.start()
    appends = iter(lambda: one.append(payloads=[(f"d{one.row().version}", b"x" * 4000)]), None)
    with pytest.raises(StoreFullError, match="has no room"):
        list(appends)
    before = one.row().version

    for stream in (store.location.log, store.location.values):
        limit(store, stream, None)

    one.append(status="succeeded")
    assert one.row().version == before + 1
    assert store.check().problems == []


def test_a_full_log_is_cleared_of_what_nobody_needs(open_nats: Callable[..., NatsStore]) -> None:
    """So that runs can be deleted to make more room: a deletion is written too."""
    store = open_nats()
    one = Party(store, "one")
    one.start()
    one.append(status="succeeded")
    limit(store, store.location.log, 30_000)
    fill(one)
    before = ask_api(store, f"STREAM.INFO.{store.location.log}")["state"]["bytes"]

    store.sweep("one", NOW)

    assert ask_api(store, f"STREAM.INFO.{store.location.log}")["state"]["bytes"] < before / 4
    assert store.delete(RUN) == "deleted"
    assert store.check().problems == []
    assert open_nats().load(RUN) is None


def test_room_is_sought_once_where_there_is_none_to_be_found(open_nats: Callable[..., NatsStore]) -> None:
    store = open_nats()
    one = Party(store, "one")
    store.sweep("one", NOW)
    limit(store, store.location.log, 30_000)
    limit(store, store.location.values, 100)
    fill(one)

    with pytest.raises(StoreFullError, match="has no room"):
        store.sweep("one", NOW)
    fill(one)
    store.sweep("one", NOW)

    limit(store, store.location.values, None)
    limit(store, store.location.log, None)
    one.start()
    assert store.check().problems == []


def test_a_server_that_stores_nothing_and_does_not_say_so_is_told_of(
    tmp_path: Any, nats_server: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows the reason without the monitoring port, and whether the message is stored neither."""
    monkeypatch.setattr(nats_link, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(nats_link, "PATIENCE_SECONDS", 0.5)
    with small_disk() as disk:
        node = Node(disk.path / "node", free_ports(1)[0])
        start_all([node])
        store = NatsStore.from_url(f"{node.url}/full")
        try:
            store.open()
            one = Party(store, "one")
            one.start()
            disk.fill()
            with pytest.raises(
                StoreUnavailableError, match=r"may be stored or not .*If its disk was full, make room and restart it"
            ):
                one.append(payloads=[("large", b"x" * 100_000)])

            disk.clear()
            node.stop()
            start_all([node])

            assert one.append(payloads=[("large", b"x" * 100_000)]).status == "committed"
            assert store.check().problems == []
        finally:
            store.close()
            node.kill()
