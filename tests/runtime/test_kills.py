"""Real processes killed with -9 at any instant, on one store: nothing lost, nothing recorded twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from treadle import connect
from treadle.core import events as ev

TARGET = Path(__file__).with_name("kill_target.py")
KILLS = int(os.environ.get("TREADLE_KILLS", "10"))
LANES = 10


@pytest.fixture(params=["sqlite", pytest.param("nats", marks=pytest.mark.nats)])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/kill.db"
    monkeypatch.setenv("KILL_LEASE", "1")
    return str(request.getfixturevalue("nats_url"))


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("nats", marks=pytest.mark.nats),
        pytest.param("postgres", marks=pytest.mark.postgres),
    ]
)
def any_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new store of any kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/kill.db"
        return
    monkeypatch.setenv("KILL_LEASE", "1")
    if request.param == "nats":
        yield str(request.getfixturevalue("nats_url"))
        return
    request.getfixturevalue("postgres_server")
    from tests.postgres_kit import empty_schema, shared_server, url_of

    with empty_schema() as schema:
        yield url_of(shared_server(), schema)


def kills_of(url: str) -> int:
    """How often a process is killed: less often where each death takes a lease time to be noticed."""
    return KILLS if url.startswith("sqlite") else max(3, KILLS // 3)


def start(url: str, length: int, log: Path) -> subprocess.Popen[str]:
    """One life of the program."""
    return start_program(log, TARGET, url, LANES, length)


def start_program(log: Path, program: Path, *arguments: object) -> subprocess.Popen[str]:
    """One life of a program."""
    return subprocess.Popen(
        [sys.executable, str(program), *map(str, arguments)],
        env={**os.environ, "KILL_LOG": str(log)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def lines(log: Path) -> int:
    """How many steps were begun so far."""
    return log.read_bytes().count(b"\n") if log.exists() else 0


def wait_for_lines(log: Path, count: int, lives: list[subprocess.Popen[str]]) -> bool:
    """Wait until the log has so many lines; False if every process ended before."""
    deadline = time.monotonic() + 60
    while lines(log) < count:
        if all(life.poll() is not None for life in lives):
            return False
        assert time.monotonic() < deadline, "no progress for a minute"
    return True


async def check(url: str, length: int, log: Path) -> None:
    """The run succeeded, each step has exactly one outcome, and every execution is accounted for by an attempt."""
    async with connect(url, worker=False) as app:
        run = app.run("victim")
        assert await run.result() == LANES * length
        succeeded: Counter[str] = Counter()
        attempts: Counter[str] = Counter()
        async for _version, _time, event in run.events():
            if isinstance(event, ev.StepSucceeded):
                succeeded[event.at] += 1
            elif isinstance(event, ev.StepDispatched):
                attempts[event.at] += 1
        steps = LANES * length + LANES + LANES + LANES * 5 + 1
        assert len(succeeded) == steps
        assert set(succeeded.values()) == {1}
        executed = Counter(line.rsplit(" ", 1)[0] for line in log.read_text().splitlines())
        assert all(executed[step] <= attempts[step] for step in executed)
        children = await app.runs(parent=await run.key())
        assert [row.status for row in children] == ["succeeded"] * LANES
        assert not (await app.check()).problems


@pytest.mark.soak
def test_one_process_at_a_time_killed_again_and_again(url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    kills = kills_of(url)
    length = max(30, kills * 2)
    dice = random.Random(7)

    for _ in range(kills):
        before = lines(log)
        life = start(url, length, log)
        if wait_for_lines(log, before + dice.randint(0, 12), [life]):
            life.send_signal(signal.SIGKILL)
        life.communicate()
    last = start(url, length, log)
    out, err = last.communicate(timeout=300)

    assert last.returncode == 0, err
    assert int(out) == LANES * length
    asyncio.run(check(url, length, log))


@pytest.mark.soak
def test_a_run_killed_again_and_again_while_it_acts_and_while_it_unwinds_restores_what_it_touched(
    any_url: str, tmp_path: Path
) -> None:
    url, log, folder, kills = any_url, tmp_path / "log", tmp_path / "files", kills_of(any_url)
    folder.mkdir()
    (folder / "f0-0").write_text("was here")
    lanes, length = 4, max(8, kills * 2)
    dice = random.Random(9)

    for _ in range(2 * kills):
        before = lines(log)
        life = start_program(log, TARGET.with_name("undo_target.py"), url, folder, lanes, length)
        if wait_for_lines(log, before + dice.randint(0, 24), [life]):
            life.send_signal(signal.SIGKILL)
        life.communicate()
    last = start_program(log, TARGET.with_name("undo_target.py"), url, folder, lanes, length)
    out, err = last.communicate(timeout=300)

    assert last.returncode == 0, err
    assert out.split() == ["failed", "fully"]
    assert {file.name: file.read_text() for file in folder.iterdir()} == {"f0-0": "was here"}
    told = [line.split() for line in log.read_text().splitlines()]
    assert "prepare" not in {role for role, _ in told[next(n for n, line in enumerate(told) if line[0] == "undo") :]}


@pytest.mark.soak
def test_three_processes_share_the_work_while_one_after_the_other_is_killed(url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    kills = kills_of(url)
    length = max(40, kills * 4)
    dice = random.Random(8)
    lives = [start(url, length, log) for _ in range(3)]

    for _ in range(kills):
        if not wait_for_lines(log, lines(log) + dice.randint(5, 30), lives):
            break
        victim = lives.pop(dice.randrange(len(lives)))
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        lives.append(start(url, length, log))
    answers = [life.communicate(timeout=300) for life in lives]

    assert all(life.returncode == 0 for life in lives), [err for _, err in answers]
    asyncio.run(check(url, length, log))


@pytest.mark.soak
def test_a_saga_killed_again_and_again_while_it_acts_unwinds_and_compensates_leaves_nothing(
    any_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, gathers, branches and runs that were called: each undo and each compensation is made, in its order."""
    url, log, folder, kills = any_url, tmp_path / "log", tmp_path / "files", kills_of(any_url)
    folder.mkdir()
    (folder / "item-0").write_text("was here")
    monkeypatch.setenv("KILL_FOLDER", str(folder))
    program, rounds = TARGET.with_name("saga_target.py"), max(3, kills // 2)
    dice = random.Random(11)

    for _ in range(2 * kills):
        before = lines(log)
        life = start_program(log, program, url, rounds)
        if wait_for_lines(log, before + dice.randint(0, 12), [life]):
            life.send_signal(signal.SIGKILL)
        life.communicate()
    last = start_program(log, program, url, rounds)
    out, err = last.communicate(timeout=300)

    assert last.returncode == 0, err
    assert out.split() == ["failed", "fully"]
    assert {file.name: file.read_text() for file in folder.iterdir()} == {"item-0": "was here"}
    asyncio.run(check_saga(url, rounds))


async def check_saga(url: str, rounds: int) -> None:
    """Every run was unwound fully: steps first, then each row once, the last one first."""
    tried_again = 0
    async with connect(url, worker=False) as app:
        for name in ("victim", "victim/sub0", "victim/sub1"):
            run = app.run(name)
            assert (await run.row()).unwound == "fully"
            events = [event async for _version, _time, event in run.events()]
            started = max(place for place, event in enumerate(events) if isinstance(event, ev.UnwindingStarted))
            undone = [place for place, event in enumerate(events) if isinstance(event, ev.StepUndone)]
            # Rows that were unwound before they were tried again, in the middle of the run.
            tried_again += min(undone) < started
            opened = [place for place, event in enumerate(events) if isinstance(event, ev.CompensationOpened)]
            assert max(undone) < min(opened)
            rows = [event.at for event in events if isinstance(event, ev.PhaseCompensated)]
            entries = [f"accounts/account#{entry}" for entry in range(rounds, 1, -1)]
            assert rows == [*entries, "accounts/account"]
        assert not (await app.check()).problems
    assert tried_again > 0
