"""`workers`: what two worker processes do beside one, with steps that use the processor."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

from treadle.bench.burner import STEP_SECONDS, burning
from treadle.connect import connect
from treadle.errors import UsageError
from treadle.runtime.client import App

# How often one worker and two have their turn; an odd number, for a median.
ROUNDS = 3
# Of each turn's workers before they are measured.
WARM_STEPS = 20


class Turn(NamedTuple):
    """Seconds of one turn, and of the processor by the workers together and by the program that started the run."""

    seconds: float
    workers: float
    starter: float


async def workers(store: str, steps: int) -> tuple[float, int, list[float], float, str]:
    """Take turns with one worker and with two; the ceiling is what one does."""
    if store.startswith("memory"):
        raise UsageError("workers are processes of their own, so they need a store that several can open")
    turns: dict[int, list[Turn]] = {1: [], 2: []}
    async with connect(store, worker=False) as app:
        durability = app.durability
        for _ in range(ROUNDS):
            for count, found in turns.items():
                found.append(await _turn(app, store, steps, count))
    one, two = (statistics.median(turn.seconds for turn in found) for found in turns.values())
    shares = [
        f"{count}: {_share([turn.workers for turn in found], steps + WARM_STEPS) - STEP_SECONDS * 1000:.2f} in workers,"
        f" {_share([turn.starter for turn in found], steps):.2f} in the program that started the run"
        for count, found in turns.items()
    ]
    notes = (
        f"{durability}; {STEP_SECONDS * 1000:.0f} ms of processor time a step, one thread a process; ms of it beside"
        f" that a step, with {'; with '.join(shares)}; ceiling: one worker"
    )
    return two, steps, [turn.seconds / steps for turn in turns[2]], steps / one, notes


def _share(seconds: list[float], steps: int) -> float:
    return statistics.median(seconds) / steps * 1000


async def _turn(app: App, store: str, steps: int, count: int) -> Turn:
    spent: list[float] = []
    with _processes(store, count, spent):
        # What is made at its first use is there, in the server's processes too.
        await (await app.start(burning(WARM_STEPS))).result()
        began, own = time.perf_counter(), time.process_time()
        run = await app.start(burning(steps))
        found = await run.result()
        seconds, own = time.perf_counter() - began, time.process_time() - own
    if found != steps:
        raise AssertionError(f"{found} of {steps} steps were counted")
    return Turn(seconds, sum(spent), own)


@contextmanager
def _processes(store: str, count: int, spent: list[float]) -> Generator[None, None, None]:
    """Workers that wait for tasks; at the end `spent` has the seconds of the processor that each took."""
    command = [sys.executable, "-m", "treadle.bench.burner", store]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ})
        for _ in range(count)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in started:
            said, _ = process.communicate()
            spent.append(float(said or 0))
