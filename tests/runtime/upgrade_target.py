"""The program of the tests of upgrades: starts runs, and serves the store until it is killed or told to end."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from treadle import PlanBuilder, Planned, connect, step

LENGTH = int(os.environ.get("UPGRADE_LENGTH", "12"))
LEASE = float(os.environ.get("UPGRADE_LEASE", "2"))


@step(name="upgrade:work", lost_limit=1000)
async def work(before: int) -> int:
    """Add one; in the middle of the run once the gate is open."""
    while before == LENGTH // 2 and not Path(os.environ["UPGRADE_GATE"]).exists():
        await asyncio.sleep(0.02)
    return before + 1


def plan() -> Planned:
    """A chain."""
    builder = PlanBuilder("upgrade")
    value = builder.step("s0", work, 0)
    for number in range(1, LENGTH):
        value = builder.step(f"s{number}", work, value)
    builder.output(value)
    return builder.build()


async def ended(app: Any, run_id: str) -> tuple[str, list[str]]:
    """How a run has ended, and which steps its journal says to have succeeded, once for each time that it does."""
    row = await app.run(run_id).wait()
    events = [event for *_, text in (await app.run(run_id).load()).rows for event in json.loads(text)]
    return row.status, sorted(event["at"] for event in events if event["kind"] == "step_succeeded")


async def carry_out(app: Any, words: list[str]) -> str:
    """What comes of a command; those for NATS reach into the store."""
    match words:
        case ["rise", level]:
            while log_of(app._node.store).machine.level < int(level):
                await asyncio.sleep(0.02)
            return "risen"
        case ["snapshot"]:
            store = app._node.store
            await asyncio.to_thread(lambda: store._loop.call(log_of(store).store_snapshot()))
            return "stored"
        case ["leader"]:
            store = app._node.store
            stream = f"STREAM.INFO.{store.location.log}"
            info = await asyncio.to_thread(lambda: store._loop.call(store._rooms.link.api(stream)))
            return str(info["cluster"].get("leader", ""))
        case ["step", "down"]:
            store = app._node.store
            stream = f"STREAM.LEADER.STEPDOWN.{store.location.log}"
            await asyncio.to_thread(lambda: store._loop.call(store._rooms.link.api(stream)))
            return "stepped down"
        case ["check"]:
            # A node that has just come back may still copy what it has missed.
            return json.dumps([text for text in (await app.check()).problems if "lags behind" not in text])
        case ["wait", *ids]:
            return json.dumps({run_id: await ended(app, run_id) for run_id in ids})
        case _:
            raise ValueError(words)


def log_of(store: Any) -> Any:
    """The log of a NATS store."""
    return store._rooms.log


def told(store: Any) -> str:
    """Up to where a process has applied the log of a NATS store, and what it has come to."""
    from treadle.store.nats.snapshots import encode_snapshot

    log = log_of(store)
    state = msgspec.msgpack.decode(encode_snapshot(log.applied, log.machine))
    # What another version has besides is empty while nobody writes it.
    filled = msgspec.msgpack.encode({name: value for name, value in state.items() if value})
    return f"{log.applied} {log.machine.level} {hashlib.sha256(filled).hexdigest()}"


async def main(url: str, worker: bool, ids: list[str]) -> None:
    """Start runs, say so, and go on until the commands end."""
    async with connect(url, worker=worker, lease=LEASE) as app:
        for run_id in ids:
            await app.start(plan(), id=run_id)
        print("ready", flush=True)
        while (line := await asyncio.to_thread(sys.stdin.readline)) not in ("", "end\n"):
            print(await carry_out(app, line.split()), flush=True)
    if line:
        print(told(app._node.store), flush=True)


def look(url: str) -> None:
    """Say what the whole log comes to, without a session."""
    from treadle.store.nats import NatsStore

    store = NatsStore.from_url(url)
    store.open(create=False)
    print(told(store), flush=True)
    store.close()


if __name__ == "__main__":
    if sys.argv[2] == "look":
        look(sys.argv[1])
    else:
        asyncio.run(main(sys.argv[1], sys.argv[2] == "worker", sys.argv[3:]))
