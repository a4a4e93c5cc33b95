"""A program that starts a run with a deadline on a store, says so, and dies before that."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from treadle import Registry, connect, step, workflow

registry = Registry()


@step(registry=registry, name="late:one")
async def one(value: int) -> int:
    return value


@workflow(registry=registry, name="late:waits")
def waits() -> int:
    """A step that waits for a signal, and one that needs it."""
    return one.options(id="second").bind(one.options(id="first", signals=["go"]).bind(1))


async def main(url: str) -> None:
    async with connect(url, registry=registry, lease=1) as app:
        await app.start(waits, id="orphan", deadline="2s")
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
