"""Servers that refuse or fail: passwords, access rules, connections, versions, and disks that are full."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import shutil
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from tests.disk_kit import SmallDisk, small_disk
from tests.postgres_kit import query, shared_server, url_of

from treadle import connect, step, workflow
from treadle.errors import StoreError, StoreFullError, StoreUnavailableError
from treadle.store.postgres import PostgresStore
from treadle.testing.contract_kit import OTHER, RUN, Party, append_of, start_of

pytestmark = [pytest.mark.postgres, pytest.mark.usefixtures("postgres_server")]


def folder() -> str:
    return str(shared_server().get_postmaster_info().socket_dir)


def plain(user: str) -> str:
    return f"postgresql://{user}@/postgres?host={quote(folder(), safe='')}"


def url(user: str, password: str = "", **options: str) -> str:
    who = f"{user}:{password}" if password else user
    return url_of(shared_server(), "guarded", **options).replace("//postgres@", f"//{who}@")


@pytest.fixture
def rules() -> Iterator[None]:
    """Roles for which the server has rules: `guarded` needs a password, `barred` never comes in.

    For one test alone: the file with the rules is one for all processes of a test session.
    """
    server = shared_server()
    query(server, "CREATE ROLE guarded LOGIN PASSWORD 'right'; CREATE ROLE barred LOGIN")
    query(server, "CREATE SCHEMA guarded AUTHORIZATION guarded")
    path = server.pgdata / "pg_hba.conf"
    before = path.read_text()
    path.write_text(f"local all guarded scram-sha-256\nlocal all barred reject\n{before}")
    query(server, "SELECT pg_reload_conf()")
    while True:
        # The server reads its rules when it comes to it.
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(plain("barred")):
            continue
        break
    yield
    path.write_text(before)
    query(server, "SELECT pg_reload_conf()")
    query(server, "DROP SCHEMA guarded CASCADE; DROP ROLE guarded; DROP ROLE barred")


@pytest.mark.usefixtures("rules")
def test_who_is_not_let_in_is_told_what_to_do() -> None:
    for user, password, message in (
        ("guarded", "s3cret", "check the user and the password"),
        ("guarded", "", "put the password into the URL"),
        ("barred", "", r"let the server's pg_hba\.conf allow"),
    ):
        store = PostgresStore.from_url(url(user, password))

        with pytest.raises(StoreError, match=message) as caught:
            store.open()

        assert not isinstance(caught.value, StoreUnavailableError)
        assert "s3cret" not in str(caught.value)
    store = PostgresStore.from_url(url("guarded", "right"))
    store.open()
    assert store.check().problems == []
    store.close()


def test_a_server_without_a_connection_left_is_unavailable_for_now() -> None:
    query(shared_server(), "CREATE ROLE once LOGIN CONNECTION LIMIT 1")
    store = PostgresStore.from_url(url("once"))

    with psycopg.connect(plain("once")), pytest.raises(StoreUnavailableError, match="max_connections of the server"):
        store.open()

    query(shared_server(), "DROP ROLE once")


class OldServer:
    """Lets one client in, and says that it is PostgreSQL 13: what a server says before any question is asked."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        with client:
            (length,) = struct.unpack(">i", client.recv(4, socket.MSG_WAITALL))
            client.recv(length - 4, socket.MSG_WAITALL)
            said = {"server_version": "13.16", "client_encoding": "UTF8", "standard_conforming_strings": "on"}
            parameters = [b"S", *(f"{name}\0{value}\0".encode() for name, value in said.items())]
            client.sendall(_message(b"R", struct.pack(">i", 0)))
            for parameter in parameters[1:]:
                client.sendall(_message(b"S", parameter))
            client.sendall(_message(b"Z", b"I"))
            while client.recv(1000):
                pass

    def close(self) -> None:
        self._thread.join()
        self._listener.close()


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">i", len(body) + 4) + body


def test_a_server_that_is_too_old_is_refused_before_anything_is_asked_of_it() -> None:
    server = OldServer()
    store = PostgresStore.from_url(f"postgresql://ada@127.0.0.1:{server.port}/shop?sslmode=disable&gssencmode=disable")

    with pytest.raises(StoreError, match=r"is PostgreSQL 13; Treadle needs 14 or newer: upgrade the server"):
        store.open()

    server.close()


# -- disks ---------------------------------------------------------------------------------------------------


class SmallDatabase(SmallDisk):
    """A database on a file system of its own, with room for little more."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path)
        self.url = f"postgresql://postgres@/{name}?host={quote(folder(), safe='')}"


@pytest.fixture
def disk() -> Iterator[SmallDatabase]:
    name = f"small_{os.getpid()}"
    with small_disk() as small:
        if getpass.getuser() == "root":
            shutil.chown(small.path, "pgserver")
        inner = small.path / "space"
        inner.mkdir(mode=0o700)
        if getpass.getuser() == "root":
            shutil.chown(inner, "pgserver")
        query(shared_server(), f"CREATE TABLESPACE {name} LOCATION '{inner}'")
        query(shared_server(), f"CREATE DATABASE {name} TABLESPACE {name}")
        yield SmallDatabase(small.path, name)
        query(shared_server(), f"DROP DATABASE {name} WITH (FORCE)")
        query(shared_server(), f"DROP TABLESPACE {name}")


def test_a_full_disk_refuses_commits_and_loses_none_that_it_took(disk: SmallDatabase) -> None:
    store = PostgresStore.from_url(disk.url)
    store.open()
    one = Party(store, "one")
    one.start()
    disk.fill()
    version = 1

    def write() -> None:
        nonlocal version
        while True:
            one.commit(append_of(RUN, version, payloads=[(f"d{version}", os.urandom(100_000))]))
            version += 1

    with pytest.raises(StoreFullError, match="free some space on the server, then go on"):
        write()

    assert store.committed(RUN, version + 1) is None
    assert one.row().version == version
    disk.clear()
    (answer,) = one.commit(append_of(RUN, version))
    assert answer.status == "committed"
    assert one.commit(start_of(OTHER))[0].status == "committed"
    assert store.check().problems == []
    store.close()


@step
async def written(size: int) -> str:
    begun.set()
    await full.wait()
    return os.urandom(size // 2).hex()


@step
def length_of(text: str) -> int:
    return len(text)


@workflow
def writing(size: int) -> int:
    return length_of.bind(written.bind(size))


begun, full = asyncio.Event(), asyncio.Event()


async def test_work_in_progress_waits_for_room_on_the_disk(disk: SmallDatabase) -> None:
    begun.clear()
    full.clear()

    def undone() -> int:
        with psycopg.connect(disk.url, autocommit=True) as con:
            ((count,),) = con.execute(
                "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"
            ).fetchall()
        return int(count)

    async with connect(disk.url) as app:
        run = await app.start(writing, 200_000)
        await begun.wait()
        disk.fill()
        before = undone()
        full.set()
        while undone() == before:
            await asyncio.sleep(0.02)
        assert (await run.row()).status == "running"

        disk.clear()

        assert await run.result() == 200_000
