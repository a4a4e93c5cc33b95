"""The engine on a PostgreSQL server that fails: calls, connections, the server itself, and processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.postgres_kit import empty_schema, shared_server, url_of
from tests.postgres_proxy import CuttingProxy
from tests.runtime.test_anomalies import drive

from treadle.errors import StoreError
from treadle.store.postgres import PostgresStore

pytestmark = [pytest.mark.postgres, pytest.mark.usefixtures("postgres_server"), pytest.mark.soak]

# Every so many of the places where something may fail; `make soak` tries them all.
STRIDE = 1 if "TREADLE_KILLS" in os.environ else 13


@pytest.fixture
def proxy() -> Iterator[CuttingProxy]:
    info = shared_server().get_postmaster_info()
    proxy = CuttingProxy(Path(info.socket_dir, f".s.PGSQL.{info.port}"))
    yield proxy
    proxy.close()


def opened(url: str) -> PostgresStore:
    store = PostgresStore.from_url(url)
    store.open()
    return store


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_any_store_call_may_fail_before_or_after_it_took_effect(before: bool) -> None:
    nth, fired = 1, True
    while fired:
        with empty_schema() as schema:
            fired = drive(lambda: opened(url_of(shared_server(), schema)), nth, before=before)  # noqa: B023
        nth += STRIDE

    assert nth > 20


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_any_connection_may_be_cut_before_or_after_a_statement(proxy: CuttingProxy, before: bool) -> None:
    def make() -> PostgresStore:
        store = opened(url)
        proxy.cut_at(nth, before=before)
        return store

    nth, fired = 1, True
    while fired:
        with empty_schema() as schema:
            url = url_of(shared_server(), schema, host="127.0.0.1", port=str(proxy.port), sslmode="disable")
            drive(make, 10**9, before=True)
        fired = proxy.fired
        nth += STRIDE

    assert nth > 50


def test_a_store_is_opened_whatever_is_cut(proxy: CuttingProxy) -> None:
    for before in (True, False):
        nth, fired = 1, True
        while fired:
            with empty_schema() as schema:
                url = url_of(shared_server(), schema, host="127.0.0.1", port=str(proxy.port), sslmode="disable")
                proxy.cut_at(nth, before=before)
                store = PostgresStore.from_url(url)
                while True:
                    try:
                        store.open()
                        break
                    except StoreError:
                        continue
                fired = proxy.fired
                proxy.cut_at(0, before=before)
                assert store.check().problems == []
                store.close()
            nth += 1
