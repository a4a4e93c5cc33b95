"""Processes killed with -9 at any instant while they start runs: what was acknowledged is there, and once."""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest
from tests.runtime.test_kills import KILLS, lines, start_program, wait_for_lines
from tests.stores_kit import empty_store, kinds

from treadle import App, connect
from treadle.core.events import RunSettled, RunStarted, StepSucceeded, TriggerReceived
from treadle.store.base import RunRow

PROGRAM = Path(__file__).with_name("start_target.py")

pytestmark = pytest.mark.soak


@pytest.fixture(params=kinds("sqlite", "postgres", "nats"))
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new store."""
    monkeypatch.setenv("KILL_LEASE", "1")
    with empty_store(request, tmp_path) as url:
        yield url


async def succeeded(app: App) -> list[RunRow]:
    """All runs, of which none ended otherwise."""
    rows = await app.runs(limit=1000)
    assert {row.status for row in rows} == {"succeeded"}
    return rows


def acknowledged(told: list[str]) -> set[str]:
    """The names that the store has taken, as the killed processes told."""
    return {line.split()[1] for line in told if line.startswith("ack ")}


def kill_again_and_again(url: str, mode: str, log: Path) -> list[str]:
    """Let three processes start runs and execute them, kill one after the other; the words of each line of the log."""
    kills = KILLS if url.startswith("sqlite") else max(3, KILLS // 3)
    dice = random.Random(mode)
    names = itertools.count()

    def life() -> subprocess.Popen[str]:
        return start_program(log, PROGRAM, url, mode, f"life{next(names)}", 8)

    lives = [life() for _ in range(3)]
    for _ in range(kills):
        if not wait_for_lines(log, lines(log) + dice.randint(1, 12), lives):
            break
        victim = lives.pop(dice.randrange(len(lives)))
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        lives.append(life())
    answers = [one.communicate(timeout=300) for one in lives]
    assert all(one.returncode == 0 for one in lives), [err for _, err in answers]
    return log.read_text().splitlines()


def test_singletons_of_killed_processes_run_once_each_and_one_at_a_time(url: str, tmp_path: Path) -> None:
    told = kill_again_and_again(url, "singleton", tmp_path / "log")

    async def check() -> None:
        async with connect(url, worker=False) as app:
            rows = await succeeded(app)
            assert acknowledged(told) <= {row.id for row in rows}
            spans: list[tuple[float, float]] = []
            for row in rows:
                events = [(time, event) async for _, time, event in app.run(row.id).events()]
                # Not when it was decided to begin: the commit takes the name, and another run may end before it.
                began = min(event.started_at for _, event in events if isinstance(event, StepSucceeded))
                # Not the last event: what a process says that was slow for longer than its lease is written down later.
                ended = next(time for time, event in events if isinstance(event, RunSettled))
                spans.append((began, ended))
            spans.sort()
            assert [(one, other) for one, other in itertools.pairwise(spans) if one[1] > other[0]] == []

    asyncio.run(check())


def test_triggers_of_killed_processes_are_in_one_run_each(url: str, tmp_path: Path) -> None:
    told = kill_again_and_again(url, "batch", tmp_path / "log")

    async def check() -> None:
        async with connect(url, worker=False) as app:
            rows = await succeeded(app)
            runs = [row for row in rows if row.workflow == "start:insert"]
            assert len(runs) == sum(1 for row in rows if row.workflow == "start:insert~window")
            found = [name for row in runs for name in await app.run(row.id, list[str]).result()]
            assert len(found) == len(set(found))
            assert acknowledged(told) <= set(found)

    asyncio.run(check())


def test_a_window_of_killed_processes_gives_the_last_of_its_triggers(url: str, tmp_path: Path) -> None:
    told = kill_again_and_again(url, "latest", tmp_path / "log")

    async def check() -> None:
        async with connect(url, worker=False) as app:
            rows = await succeeded(app)
            windows = [row for row in rows if row.workflow == "start:publish~window"]
            assert len(windows) == sum(1 for row in rows if row.workflow == "start:publish")
            found: list[str] = []
            for row in windows:
                run = app.run(row.id, str)
                events = [event async for _, _, event in run.events()]
                first = next(event.trigger for event in events if isinstance(event, RunStarted))
                names = [first, *(event.name for event in events if isinstance(event, TriggerReceived))]
                assert await run.result() == names[-1]
                found += names
            assert len(found) == len(set(found))
            assert acknowledged(told) <= set(found)

    asyncio.run(check())


def test_a_row_and_the_run_that_was_started_with_it_are_both_there_or_neither(url: str, tmp_path: Path) -> None:
    if url.startswith("nats"):
        pytest.skip("NATS has no transactions")
    asyncio.run(open_store(url))
    path = url.removeprefix("sqlite:///").partition("?")[0]
    dsn, schema = re.sub("&schema=[^&]*", "", url), re.search("schema=([^&]*)", url)
    table = f"{schema[1]}.orders" if schema else "orders"
    con: Any = apsw.Connection(path) if url.startswith("sqlite") else psycopg.connect(dsn, autocommit=True)
    con.execute(f"DROP TABLE IF EXISTS {table}")
    con.execute(f"CREATE TABLE {table} (id TEXT PRIMARY KEY)")

    kill_again_and_again(url, "join", tmp_path / "log")

    async def check() -> None:
        async with connect(url, worker=False) as app:
            rows = await succeeded(app)
            assert {row.id for row in rows} == {id for (id,) in con.execute(f"SELECT id FROM {table}").fetchall()}
            assert (await app.check()).problems == []

    asyncio.run(check())
    con.execute(f"DROP TABLE {table}")
    con.close()


async def open_store(url: str) -> None:
    """Make the tables of a store."""
    async with connect(url, worker=False):
        pass
