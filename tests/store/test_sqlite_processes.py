"""The SQLite store among processes: record locks, kill -9, many writers, forks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.store.sqlite_kit import posix

from treadle.errors import (
    StoreError,
)
from treadle.store.base import SessionRow
from treadle.store.sqlite import SqliteStore
from treadle.testing.contract_kit import (
    NOW,
    RUN,
    Party,
    Slots,
    append_of,
    key_of,
    task_of,
)

CHILD = """
import sys
from treadle.store.base import SessionRow
from treadle.store.sqlite import SqliteStore
from treadle.testing.contract_kit import *

path, name = sys.argv[1:3]
store = SqliteStore(path, sync="normal")
store.open()
party = Party(store, name)
"""


def start_child(path: Path, name: str, code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + code, str(path), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def child(path: Path, name: str, code: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process with an open session, after it has said so."""
    process = start_child(path, name, code + "\nprint('ready', flush=True)\nsys.stdin.readline()\n")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@posix
def test_a_killed_process_is_known_to_be_dead_at_once(store: SqliteStore, path: Path) -> None:
    one = Party(store, "one")
    code = "party.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=1)"
    with child(path, "victim", code) as victim, child(path, "other"):
        assert store.dead_sessions() == []
        assert one.store.acquire("one", RUN) is not None
        assert one.row().owner == "victim"

        victim.send_signal(signal.SIGKILL)
        victim.wait()

        assert store.dead_sessions() == ["victim"]
        assert store.bury("victim") == [RUN]
        assert store.dead_sessions() == []
    assert store.dead_sessions() == ["other"]
    assert one.row().owner == ""
    (value,) = store.inbox(RUN)
    assert b'"lost"' in value.body
    assert one.claim() != []
    assert sorted(os.listdir(f"{path}-sessions")) == ["one", "other"]


@posix
def test_the_own_sessions_are_never_dead_and_leave_no_files(open_store: Callable[..., SqliteStore], path: Path) -> None:
    first, second = open_store(), open_store()
    Party(first, "one")
    Party(second, "two/../:*?")
    Party(second, "x" * 400)
    folder = Path(f"{path}-sessions")

    for _ in range(3):
        assert first.dead_sessions() == second.dead_sessions() == []
    with child(path, "other"):
        # The child asks too: probing must not have cost this process its locks.
        code = "print(store.dead_sessions(), flush=True); store.close()"
        process = start_child(path, "asker", code)
        assert process.communicate()[0] == "[]\n"
        assert first.dead_sessions() == ["asker"]
        first.bury("asker")

    second.bury("two/../:*?")
    second.close()
    assert first.dead_sessions() == ["x" * 400, "other"]
    first.bury("x" * 400)
    first.bury("other")
    first.bury("one")
    assert list(folder.iterdir()) == []


@posix
def test_sessions_of_other_machines_are_not_judged_by_locks(store: SqliteStore) -> None:
    store.open_session(SessionRow("far", "w", "", 0, 0, [], {"host": "another-machine"}))
    store._locks.drop("far")

    assert store.dead_sessions() == []


def test_a_session_id_is_used_by_one_living_session(open_store: Callable[..., SqliteStore]) -> None:
    first, second = open_store(), open_store()
    Party(first, "one")

    with pytest.raises(StoreError, match="take a new session id"):
        Party(second, "one")
    assert first.dead_sessions() == []
    first.bury("one")
    again = Party(second, "one")

    # The buried life and the new one are not the same session.
    with pytest.raises(StoreError, match="take a new session id"):
        Party(first, "one")
    again.start()
    assert again.row().owner == "one"


def test_handles_that_share_a_session_never_give_the_same_token(open_store: Callable[..., SqliteStore]) -> None:
    first, second = open_store(), open_store()
    one = Party(first, "one")
    one.start(tasks=[task_of(RUN, number) for number in range(6)])

    tokens = [task.lease for store in (first, second, first) for task in store.claim("one", Slots(2), NOW)[0]]

    assert len(set(tokens)) == 6
    assert max(tokens) < 2**53


WRITER = """
for number in range(40):
    key = key_of(int(name) * 1000 + number)
    party.start(key, tasks=[task_of(key, 1)])
    for task in party.claim(3):
        assert party.report(report_of(task)) == [True]
print(store.sessions() != [], flush=True)
store.bury(name)
"""


def test_processes_write_to_one_file_at_the_same_time(store: SqliteStore, path: Path) -> None:
    processes = [start_child(path, str(number), WRITER) for number in range(1, 4)]

    assert [process.communicate()[0] for process in processes] == ["True\n"] * 3

    assert [process.returncode for process in processes] == [0, 0, 0]
    assert store.check().problems == []
    keys = [key_of(number * 1000 + n) for number in range(1, 4) for n in range(40)]
    inputs = sum(len(store.inbox(key)) for key in keys)
    assert inputs + len(store.waiting(1000)) == len(keys)
    assert store.sessions() == []


OPENER = """
from treadle.store.sqlite import SqliteStore
import sys
sys.stdin.readline()
store = SqliteStore(sys.argv[1])
store.open()
print(store.check().problems, flush=True)
"""


def test_processes_may_make_the_file_at_the_same_time(path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()

    assert [process.communicate()[0] for process in processes] == ["[]\n"] * 4


def _use_in_child(store: SqliteStore, path: str, results: Any) -> None:
    messages: list[str] = []
    for call in (
        lambda: store.load(RUN),
        lambda: store.commit("one", [append_of(RUN, 1)], None),
        lambda: store.claim("one", Slots(1), NOW),
    ):
        try:
            call()
        except StoreError as error:
            messages.append(str(error))
    # Neither closing it nor dropping it may touch the parent's file or locks.
    store.close()
    own = SqliteStore(path)
    own.open()
    dead = own.dead_sessions()
    run = own.run(RUN)
    own.close()
    results.put((messages, dead, run is not None and run.version))


@posix
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_connection_does_not_cross_a_fork(store: SqliteStore, path: Path) -> None:
    one = Party(store, "one")
    one.start()
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    process = context.Process(target=_use_in_child, args=(store, str(path), results))
    process.start()
    messages, dead, version = results.get()
    process.join()

    assert process.exitcode == 0
    assert len(messages) == 3
    assert all("cannot be used in its child" in message for message in messages)
    assert (dead, version) == ([], 1)
    assert one.append().status == "committed"
    with child(path, "other", "assert store.dead_sessions() == []"):
        pass
