"""The program that the kill tests of starts run again and again: it starts runs, leaves lines, and executes steps."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from typing import Any

import apsw
import psycopg

from treadle import App, Batch, Debounce, connect, context, step, workflow


def note(what: str) -> None:
    """Append one line to the log, atomically."""
    descriptor = os.open(os.environ["KILL_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{what}\n".encode())
    finally:
        os.close(descriptor)


@step(name="start:work", lost_limit=1000)
async def work(name: str) -> str:
    """Leave a line."""
    note(f"work {name} {context().attempt}")
    return name


@workflow(name="start:alone", singleton=True, on_conflict="queue")
def alone(name: str) -> str:
    """One run of it at a time goes on."""
    return work.bind(work.bind(name))


async def queue_up(app: App, life: str, count: int) -> None:
    """Start runs of a singleton, and acknowledge each."""
    for number in range(count):
        name = f"{life}-{number}"
        await app.start(alone, name, id=name)
        note(f"ack {name}")


@step(name="start:load", lost_limit=1000)
async def load(rows: list[str]) -> list[str]:
    """Leave a line."""
    note(f"load {context().attempt} {' '.join(rows)}")
    return rows


@workflow(name="start:insert", triggers=Batch(4, "200ms"))
def insert(rows: list[str]) -> list[str]:
    """One run for up to four triggers."""
    return load.bind(rows)


@workflow(name="start:publish", triggers=Debounce("100ms", timeout="400ms"))
def publish(name: str) -> str:
    """One run for triggers that come close, with the last of them."""
    return work.bind(name)


async def trigger(app: App, life: str, count: int, workflow: Any = insert) -> None:
    """Send triggers, each of them twice, and acknowledge them."""
    for number in range(3 * count):
        name = f"{life}-{number}"
        await app.trigger(workflow, name, id=name)
        note(f"ack {name}")
        await app.trigger(workflow, name, id=name)


async def trigger_latest(app: App, life: str, count: int) -> None:
    """Send triggers of which the last one counts."""
    await trigger(app, life, count, publish)


async def join(app: App, life: str, count: int) -> None:
    """Start runs in transactions that also write a row of the program's own; every third one is rolled back."""
    url = sys.argv[1]
    con: Any
    if url.startswith("sqlite"):
        con = apsw.Connection(url.removeprefix("sqlite:///").partition("?")[0])
        con.set_busy_timeout(60_000)
    else:
        con = psycopg.connect(re.sub("&schema=[^&]*", "", url), autocommit=True)
        con.execute(f"SET search_path TO {re.findall('schema=([^&]*)', url)[0]}")
    for number in range(3 * count):
        name = f"{life}-{number}"
        con.execute("BEGIN IMMEDIATE" if url.startswith("sqlite") else "BEGIN")
        con.execute(f"INSERT INTO orders VALUES ('{name}')")
        run = await app.start(shipped, name, id=name, transaction=con)
        await run.signal("go", transaction=con)
        note(f"open {name}")
        con.execute("ROLLBACK" if number % 3 == 2 else "COMMIT")
    con.close()


@workflow(name="start:shipped")
def shipped(name: str) -> str:
    """A run that is started in a transaction, and told to go in the same."""
    return work.options(signals=["go"]).bind(name)


MODES = {"singleton": queue_up, "batch": trigger, "latest": trigger_latest, "join": join}


async def main() -> None:
    """Start, then work until nothing is open."""
    url, mode, life, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    async with connect(url, lease=float(os.environ.get("KILL_LEASE", "15"))) as app:
        await MODES[mode](app, life, count)
        while await app.runs(status="running", limit=1):
            await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(main())
