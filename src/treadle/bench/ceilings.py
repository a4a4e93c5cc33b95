"""What the machine can do without an engine: the same graph in plain asyncio, or the same rows in raw commits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import apsw

EVENTS = (
    '[{"kind":"step_succeeded","at":"s17","attempt":1,"result":"=18","session":"0190f7a2-3a4b-7c5d-8e9f-0a1b2c3d4e5f",'
    '"token":4294967313,"started_at":1700000000.123456},{"kind":"step_dispatched","at":"s18"}]'
)
CALL = '{"args":{"value":"=18"}}'
_SCHEMA = """
create table runs(n integer primary key, version integer, status text) strict;
create table journal(run integer, version integer, commit_id integer, time real, events text,
  primary key(run, version)) without rowid, strict;
create table tasks(run integer, number integer, attempt integer, action text, session text, lease integer, call text,
  primary key(run, number)) without rowid, strict;
create table steps(run integer, number integer, address text, status text, result text, finished_at real,
  primary key(run, number)) without rowid, strict;
"""
# One step's worth of rows, with the final state of each row written once.
_STATEMENTS = (
    "update runs set version = ?2 where n = ?1",
    "insert into journal values(?1, ?2, 7, 1700000000.5, ?3)",
    "delete from tasks where run = ?1 and number = ?2 - 1",
    "insert into tasks values(?1, ?2, 1, 'treadle.bench:bump', 's', 42, ?3)",
    "insert into steps values(?1, ?2, 's17', 'succeeded', '=18', 1700000000.5)",
)

# When each step began. The steps of the engine note it too, so that both sides do the same in a step.
_starts: list[float] = []


async def _bump(value: int) -> int:
    _starts.append(time.perf_counter())
    return value + 1


async def plain_chain(length: int) -> float:
    """Seconds of a chain of asyncio tasks, one created and awaited per step."""
    began = time.perf_counter()
    value = 0
    for _ in range(length):
        value = await asyncio.create_task(_bump(value))
    return time.perf_counter() - began


async def plain_fan(width: int) -> float:
    """Seconds of a fan of asyncio tasks, one created and awaited per step."""
    began = time.perf_counter()
    first = await asyncio.create_task(_bump(0))
    tasks = [asyncio.create_task(_bump(first)) for _ in range(width)]
    sum([await task for task in tasks])
    return time.perf_counter() - began


async def plain_phases(rows: int) -> float:
    """Seconds of rows of four asyncio tasks, each row gathered before the next."""

    async def lane() -> int:
        return 1

    began = time.perf_counter()
    for _ in range(rows):
        await asyncio.gather(lane(), lane(), lane(), lane())
    return time.perf_counter() - began


async def plain_many(runs: int, length: int) -> float:
    """Seconds of many chains of asyncio tasks at once."""

    async def one() -> None:
        value = 0
        for _ in range(length):
            value = await asyncio.create_task(_bump(value))

    began = time.perf_counter()
    await asyncio.gather(*[asyncio.create_task(one()) for _ in range(runs)])
    return time.perf_counter() - began


def raw_commits(folder: Path, steps: int, group: int, sync: str) -> list[float]:
    """Seconds of each commit of the rows of `steps` steps in groups, by apsw at the same durability."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        # apsw's stubs leave some types open.
        connection: Any = apsw.Connection(str(Path(place) / "raw.db"))
        with contextlib.closing(connection):
            list(
                connection.execute(
                    f"pragma journal_mode=wal; pragma synchronous={sync}; pragma wal_autocheckpoint=4000"
                )
            )
            list(connection.execute(_SCHEMA))
            connection.executemany("insert into runs values(?, 0, 'running')", [(n,) for n in range(group)])
            cursor = connection.cursor()
            rounds = max(1, steps // group)
            taken: list[float] = []
            for version in range(1, rounds + 1):
                began = time.perf_counter()
                cursor.execute("begin immediate")
                plain = [(run, version) for run in range(group)]
                cursor.executemany(_STATEMENTS[0], plain)
                cursor.executemany(_STATEMENTS[1], [(run, version, EVENTS) for run in range(group)])
                cursor.executemany(_STATEMENTS[2], plain)
                cursor.executemany(_STATEMENTS[3], [(run, version, CALL) for run in range(group)])
                cursor.executemany(_STATEMENTS[4], plain)
                cursor.execute("commit")
                taken.append(time.perf_counter() - began)
            return taken


def plain_copy(source: Path, target: Path) -> float:
    """Seconds that copying a file takes until the copy is on disk."""
    began = time.perf_counter()
    shutil.copyfile(source, target)
    with target.open("rb+") as copy:
        os.fsync(copy.fileno())
    return time.perf_counter() - began


# What an append of one step's end comes to in the log of a NATS store.
_MESSAGE_BYTES = 650


def raw_publishes(store: str, amount: int, group: int) -> float:
    """Seconds to publish messages of an append's size, `group` in flight, each acknowledged.

    One at a time by the client's own `publish`. For many in flight the client has a task each; the store's connection
    does three times as many, and that is the limit then.
    """
    from treadle.store.nats import streams
    from treadle.store.nats.link import Link
    from treadle.store.nats.location import parse_url

    location = parse_url(store)
    link = Link(location._replace(name=f"{location.name}-ceiling"))

    async def main() -> float:
        await link.open()
        try:
            await streams.prepare(link, create=True)
            data = b"x" * _MESSAGE_BYTES
            publish = link.client.jetstream().publish
            began = time.perf_counter()
            for first in range(0, amount, group):
                keys = range(first, min(first + group, amount))
                subjects = [link.location.journal(str(key)) for key in keys]
                if group == 1:
                    await publish(subjects[0], data, headers={"Nats-Msg-Id": link.new_id()})
                else:
                    await link.publish([(subject, data, link.new_id()) for subject in subjects])
            return time.perf_counter() - began
        finally:
            for stream in (link.location.log, link.location.values):
                await link.api(f"STREAM.DELETE.{stream}")
            await link.close()

    return asyncio.run(main())


def raw_inserts(table: str, statement: str, rows: list[tuple[str, str]]) -> float:
    """Seconds to carry out a statement for each (key, data), in memory and in one transaction."""
    # Its types leave rows partly unknown.
    con: Any = apsw.Connection(":memory:")
    con.execute(table)
    began = time.perf_counter()
    with con:
        for key, data in rows:
            con.execute(statement, {"key": key, "data": data})
    spent = time.perf_counter() - began
    con.close()
    return spent
