"""Limits hold for many processes on one SQLite file: never above one, no error, and each step once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from tests.runtime.limits_target import BURST, CONCURRENCY, KEY_CONCURRENCY, RATE, mixed

from treadle import connect
from treadle.core.events import StepSucceeded

TARGET = Path(__file__).with_name("limits_target.py")
# Three processes and 300 steps; `make soak` has eight and 10,000.
KILLS = int(os.environ.get("TREADLE_KILLS", "0"))
PROCESSES, RUNS, STEPS = (8, 50, 200) if KILLS else (3, 6, 50)


@pytest.mark.soak
async def test_no_limit_is_passed_and_no_lock_is_seen(tmp_path: Path) -> None:
    url, log = f"sqlite:///{tmp_path}/limits.db", tmp_path / "log"
    lives = [start(url, f"w{number}", log) for number in range(PROCESSES)]
    try:
        async with connect(url, worker=False) as app:
            runs = [await app.start(mixed, STEPS, id=f"run-{number}") for number in range(RUNS)]
            for run in runs:
                assert len(await run.result(timeout=1200)) == STEPS
            succeeded: Counter[tuple[str, str]] = Counter()
            for run in runs:
                async for _version, _time, event in run.events():
                    if isinstance(event, StepSucceeded):
                        succeeded[run.id, event.at] += 1
            assert (await app.check()).problems == []
            left = [(row.name, row.waiting, row.running) for row in await app.queues() if row.waiting or row.running]
    finally:
        said = [life.communicate(timeout=120) for life in lives]

    assert [life.returncode for life in lives] == [0] * PROCESSES
    assert said == [("", "")] * PROCESSES
    assert left == []
    lines = [line.split() for line in log.read_text().splitlines()]
    executed = Counter((run, at) for run, at, *_ in lines)
    assert set(executed.values()) == set(succeeded.values()) == {1}
    assert executed.keys() == succeeded.keys()
    assert len(executed) == RUNS * STEPS
    spans = [(at.split("-")[0], queue, float(began), float(ended)) for _, at, _, queue, began, ended in lines]
    crowd = most_at_a_time((began, ended) for _, queue, began, ended in spans if queue == "busy")
    assert crowd <= CONCURRENCY
    for key in {key for key, *_ in spans}:
        own = ((began, ended) for other, queue, began, ended in spans if (other, queue) == (key, "busy"))
        assert most_at_a_time(own) <= KEY_CONCURRENCY
    starts = sorted(began for _, queue, began, _ in spans if queue == "rated")
    # What waited for a thread begins later than it was given out, so only the whole is compared.
    assert len(starts) <= BURST + RATE * (starts[-1] - starts[0] + 1.0)


def start(url: str, name: str, log: Path) -> subprocess.Popen[str]:
    """A worker process."""
    return subprocess.Popen(
        [sys.executable, str(TARGET), url, name],
        env={**os.environ, "LIMITS_LOG": str(log)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def most_at_a_time(spans: Iterable[tuple[float, float]]) -> int:
    """The largest number of spans that overlap."""
    changes = sorted(change for began, ended in spans for change in ((began, 1), (ended, -1)))
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most
