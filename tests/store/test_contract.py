"""Every store keeps the promises of `treadle.store.base`: the contract, and random histories against the model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from treadle.store.base import Store
from treadle.store.memory import MemoryData, MemoryStore
from treadle.store.nats import NatsStore
from treadle.store.sqlite import SqliteStore
from treadle.testing import LimitsContract, StoreContract
from treadle.testing.contract_keys import ClocksContract
from treadle.testing.contract_kit import MakeStore
from treadle.testing.store_model import StoreModel


def open_sqlite(path: Path) -> SqliteStore:
    # Durability is not what the contract tests; a flush for every commit would only make it slow.
    store = SqliteStore(path, sync="normal")
    store.open()
    return store


def open_postgres(url: str) -> Store:
    from treadle.store.postgres import PostgresStore

    store = PostgresStore.from_url(url)
    store.open()
    return store


@contextmanager
def empty_store_url() -> Iterator[str]:
    # Imported here, since the server's package may not exist for this platform.
    from tests.postgres_kit import empty_schema, shared_server, url_of

    with empty_schema() as schema:
        yield url_of(shared_server(), schema)


@pytest.fixture
def postgres_url() -> Iterator[str]:
    with empty_store_url() as url:
        yield url


def _with_server(case: Any) -> Any:
    return pytest.mark.postgres(pytest.mark.usefixtures("postgres_server")(case))


class TestMemoryStore(StoreContract, LimitsContract, ClocksContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        data = MemoryData()
        return lambda: MemoryStore(data)


class TestSqliteStore(StoreContract, LimitsContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> Iterator[MakeStore]:
        with ExitStack() as stack:

            def make() -> Store:
                store = open_sqlite(tmp_path / "runs.db")
                stack.callback(store.close)
                return store

            yield make


@pytest.mark.postgres
@pytest.mark.usefixtures("postgres_server")
class TestPostgresStore(StoreContract, LimitsContract, ClocksContract):
    @pytest.fixture
    def make_store(self, postgres_url: str) -> Iterator[MakeStore]:
        with ExitStack() as stack:

            def make() -> Store:
                store = open_postgres(postgres_url)
                stack.callback(store.close)
                return store

            yield make


@pytest.mark.nats
class TestNatsStore(StoreContract, LimitsContract, ClocksContract):
    @pytest.fixture
    def make_store(self, nats_url: str) -> Iterator[MakeStore]:
        with ExitStack() as stack:

            def make() -> Store:
                store = NatsStore.from_url(nats_url)
                store.open()
                stack.callback(store.close)
                return store

            yield make


class MemoryModel(StoreModel):
    def make_handles(self) -> list[Store]:
        data = MemoryData()
        return [MemoryStore(data), MemoryStore(data)]


class SqliteModel(StoreModel):
    def make_handles(self) -> list[Store]:
        self.directory = tempfile.TemporaryDirectory(prefix="treadle-model-")
        path = Path(self.directory.name, "runs.db")
        return [open_sqlite(path), open_sqlite(path)]

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            if hasattr(self, "directory"):
                self.directory.cleanup()


class PostgresModel(StoreModel):
    def make_handles(self) -> list[Store]:
        self.stack = ExitStack()
        url = self.stack.enter_context(empty_store_url())
        return [open_postgres(url), open_postgres(url)]

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            if hasattr(self, "stack"):
                self.stack.close()


class LongMemoryModel(MemoryModel):
    pass


class LongSqliteModel(SqliteModel):
    pass


class LongPostgresModel(PostgresModel):
    pass


TestMemoryHistories = MemoryModel.TestCase
TestMemoryHistories.settings = settings(max_examples=100, stateful_step_count=40, report_multiple_bugs=False)
TestSqliteHistories = SqliteModel.TestCase
TestSqliteHistories.settings = settings(max_examples=25, stateful_step_count=30, report_multiple_bugs=False)
TestPostgresHistories = _with_server(PostgresModel.TestCase)
TestPostgresHistories.settings = settings(max_examples=12, stateful_step_count=25, report_multiple_bugs=False)
TestLongMemoryHistories = pytest.mark.slow(LongMemoryModel.TestCase)
TestLongMemoryHistories.settings = settings(max_examples=3000, stateful_step_count=60, report_multiple_bugs=False)
TestLongSqliteHistories = pytest.mark.slow(LongSqliteModel.TestCase)
TestLongSqliteHistories.settings = settings(max_examples=1000, stateful_step_count=60, report_multiple_bugs=False)
TestLongPostgresHistories = pytest.mark.slow(_with_server(LongPostgresModel.TestCase))
TestLongPostgresHistories.settings = settings(max_examples=500, stateful_step_count=60, report_multiple_bugs=False)
