"""A worker process of the limits proof: it executes steps until its input ends, and leaves a line for each of them."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time

from treadle import Queue, connect, context, step, workflow

# What must hold, for all processes together.
CONCURRENCY, KEY_CONCURRENCY, RATE, BURST = 6, 2, 400, 50
QUEUES = [
    Queue("busy", concurrency=CONCURRENCY, key_concurrency=KEY_CONCURRENCY, fair=True),
    Queue("rated", rate=RATE, burst=BURST),
]


def note(began: float) -> None:
    """One line: what was executed, with whose key, from when to when by the clock that all processes share."""
    me = context()
    line = f"{me.run_id} {me.step} {me.attempt} {me.queue} {began:.6f} {time.monotonic():.6f}\n"
    descriptor = os.open(os.environ["LIMITS_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


@step(name="limits:busy", queue="busy", key="key")
async def busy(key: str) -> str:
    """A step of a queue with room for a few, and for fewer of a key."""
    began = time.monotonic()
    await asyncio.sleep(0.001)
    note(began)
    return key


@step(name="limits:rated", queue="rated")
def rated(key: str) -> str:
    """A step of a queue with a rate, in a thread."""
    note(time.monotonic())
    return key


@step(name="limits:free")
async def free(key: str) -> str:
    """A step without limits."""
    note(time.monotonic())
    return key


@workflow(name="limits:mixed")
def mixed(count: int):
    """Steps of all kinds, each third one of a kind; keys are in the ids."""
    kinds = (busy, rated, free)
    return [kinds[number % 3].options(id=f"k{number % 5}-{number}").bind(f"k{number % 5}") for number in range(count)]


async def work(url: str, name: str) -> None:
    """Execute until the input ends."""
    async with connect(url, worker_id=name, slots=50, threads=4, queues=QUEUES):
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    # Whatever the library would warn of, such as a lock, is a finding.
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(work(*sys.argv[1:]))
