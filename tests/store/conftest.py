"""Fixtures of the stores' tests: a file for SQLite, and stores that are closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from treadle.store.nats import NatsStore
from treadle.store.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[Callable[..., SqliteStore]]:
    stores: list[SqliteStore] = []

    def make(**options: Any) -> SqliteStore:
        store = SqliteStore(path, **({"sync": "normal"} | options))
        stores.append(store)
        store.open()
        return store

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(open_store: Callable[..., SqliteStore]) -> SqliteStore:
    return open_store()


@pytest.fixture
def open_nats(nats_url: str) -> Iterator[Callable[..., NatsStore]]:
    stores: list[NatsStore] = []

    def make(url: str = nats_url, *, create: bool = True) -> NatsStore:
        store = NatsStore.from_url(url)
        stores.append(store)
        store.open(create=create)
        return store

    yield make
    for store in stores:
        store.close()
