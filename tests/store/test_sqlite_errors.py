"""The SQLite store and its file: opening, migrating, URLs, and what goes wrong with files, disks and locks."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from tests.store.sqlite_kit import connected, posix, query

from treadle.core.events import (
    StepDispatched,
)
from treadle.errors import (
    SchemaVersionError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
    StoreReadOnlyError,
    StoreUnavailableError,
    StoreUrlError,
)
from treadle.store.sqlite import SqliteStore, connection, schema
from treadle.store.sqlite.location import parse_url, refuse_network
from treadle.testing.contract_kit import (
    OTHER,
    RUN,
    Party,
    Slots,
    append_of,
    signal_of,
    snapshot,
    start_of,
    step_of,
    task_of,
)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Permission bits mean nothing to root."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


# -- opening ---------------------------------------------------------------------------------------------


def test_a_new_store_makes_its_directories_and_is_empty(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a" / "b" / "runs.db")
    store.open()
    store.open()

    health = store.check()

    assert health.problems == []
    assert (health.facts["journal mode"], health.facts["synchronous"], health.facts["runs"]) == ("wal", "FULL", "0")
    assert health.facts["schema version"] == f"{schema.VERSION} of {schema.VERSION}"
    assert store.durability.startswith("SQLite WAL, synchronous=FULL")
    store.close()
    store.close()


def test_synchronous_normal_is_by_choice(open_store: Callable[..., SqliteStore]) -> None:
    store = open_store(sync="normal")

    assert store.check().facts["synchronous"] == "NORMAL"
    assert store.reader().check().facts["synchronous"] == "NORMAL"
    assert "NORMAL" in store.durability


def test_what_was_committed_is_there_after_reopening(open_store: Callable[..., SqliteStore]) -> None:
    one = Party(open_store(), "one")
    one.start(tasks=[task_of(RUN, 1)], slots=1)
    before = snapshot(one.load())
    one.store.bury("one")
    one.store.close()

    again = open_store()

    assert snapshot(again.load(RUN))["rows"] == before["rows"]
    with pytest.raises(StoreError, match="is not open"):
        one.store.load(RUN)


def test_migrating_twice_changes_nothing(open_store: Callable[..., SqliteStore], path: Path) -> None:
    def dump() -> list[dict[str, Any]]:
        return query(path, "SELECT name, sql FROM sqlite_schema ORDER BY name")

    store = open_store()
    before, version = dump(), query(path, "PRAGMA schema_version")

    schema.migrate(connected(store), str(path), create=True)
    open_store()

    assert dump() == before
    assert query(path, "PRAGMA schema_version") == version
    assert {row["name"] for row in before} >= {"v_runs", "v_steps", "v_attempts", "v_events", "runs", "journal"}


def test_an_older_file_gets_what_it_lacks(
    open_store: Callable[..., SqliteStore], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Party(open_store(), "one").start()
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE more (n); CREATE TABLE still (n);"))
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)

    store = open_store()

    assert query(path, "SELECT count(*) AS n FROM more") == [{"n": 0}]
    assert query(path, "SELECT count(*) AS n FROM still") == [{"n": 0}]
    assert store.load(RUN) is not None
    assert store.check().problems == []


def test_a_file_of_the_first_version_learns_of_parents(path: Path) -> None:
    con = apsw.Connection(str(path))
    con.execute(schema.MIGRATIONS[0]).fetchall()
    con.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}; PRAGMA user_version = 1").fetchall()
    con.execute(
        "INSERT INTO runs (n, key, id, workflow, plan, status, hold, version, owner, labels, created_at, updated_at)"
        " VALUES (1, 'k', 'old', 'w', 1, 'failed', 0, 1, 0, '', 1.0, 1.0)"
    ).fetchall()
    con.close()
    store = SqliteStore(path)

    store.open()

    row = store.run("k")
    assert row is not None
    assert (row.id, row.parent) == ("old", "")
    store.close()
    assert query(path, "SELECT id, parent FROM v_runs") == [{"id": "old", "parent": ""}]


def test_a_migration_that_fails_leaves_the_file_as_it_was(
    open_store: Callable[..., SqliteStore], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store()
    before = query(path, "SELECT name FROM sqlite_schema ORDER BY name")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE more (n); CREATE TABLE runs (n);"))
        patch.setattr(schema, "VERSION", schema.VERSION + 1)
        with pytest.raises(StoreError):
            open_store()

    assert query(path, "SELECT name FROM sqlite_schema ORDER BY name") == before
    open_store()


# -- URLs and places -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///runs.db", ("runs.db", "full", False)),
        ("sqlite:///a/b%20c/r%23.db", ("a/b c/r#.db", "full", False)),
        ("sqlite:////var/lib/runs.db?sync=normal", ("/var/lib/runs.db", "normal", False)),
        ("sqlite:////net/runs.db?unsafe_network=1&sync=full", ("/net/runs.db", "full", True)),
    ],
)
def test_urls(url: str, expected: tuple[str, str, bool]) -> None:
    assert tuple(parse_url(url)) == expected
    assert SqliteStore.from_url(url).path == expected[0]


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:runs.db",
        "sqlite://host/runs.db",
        "sqlite:///:memory:",
        "sqlite:///runs.db?sync=off",
        "sqlite:///runs.db?mode=ro",
        "sqlite:///runs.db?unsafe_network=maybe",
        "sqlite:///runs.db#part",
        "sqlite:///a%00b",
        "postgresql:///runs",
        "runs.db",
        "",
    ],
)
def test_wrong_urls_say_what_is_wrong(url: str) -> None:
    with pytest.raises(StoreUrlError) as caught:
        SqliteStore.from_url(url)
    assert repr(url) in str(caught.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts are listed on Linux")
@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs"])
def test_network_file_systems_are_refused(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "with space"
    mounts = tmp_path / "mounts"
    escaped = str(place).replace(" ", "\\040")
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nhost:/x {escaped} {kind} rw 0 0\n/dev/vdb {tmp_path}/loc xfs rw 0 0\n")

    with pytest.raises(StoreError, match=f"{kind} at .*unsafe_network=1"):
        refuse_network(str(place / "runs.db"), str(mounts))
    refuse_network(str(tmp_path / "runs.db"), str(mounts))
    refuse_network(str(tmp_path / "loc" / "runs.db"), str(mounts))
    refuse_network(str(tmp_path / "with spaces.db"), str(mounts))
    refuse_network(str(place), str(tmp_path / "no such list"))


def test_the_refusal_can_be_overridden(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise StoreError("refused")

    monkeypatch.setattr("treadle.store.sqlite.store.refuse_network", refuse)
    with pytest.raises(StoreError, match="refused"):
        SqliteStore(path).open()
    store = SqliteStore(path, unsafe_network=True)
    store.open()
    store.close()


# -- errors ----------------------------------------------------------------------------------------------


def refused(store: SqliteStore, kind: type[StoreError], match: str, *, create: bool = True) -> None:
    with pytest.raises(kind, match=match) as caught:
        store.open(create=create)
    assert type(caught.value) is kind
    assert store.path in str(caught.value)


def test_a_missing_file_is_not_made_for_a_reader(path: Path) -> None:
    refused(SqliteStore(path), StoreNotFoundError, "does not exist", create=False)
    refused(SqliteStore(path.parent / "no" / "runs.db"), StoreNotFoundError, "does not exist", create=False)
    path.touch()
    refused(SqliteStore(path), StoreNotFoundError, "empty", create=False)
    assert path.read_bytes() == b""


def test_a_directory_is_not_a_store(tmp_path: Path) -> None:
    refused(SqliteStore(tmp_path), StoreNotFoundError, "is a directory")


def test_a_file_in_the_way_of_a_directory(path: Path) -> None:
    path.write_text("")
    refused(SqliteStore(path / "runs.db"), StoreReadOnlyError, "cannot be made")


def test_text_is_not_a_database(path: Path) -> None:
    path.write_text("It is a truth universally acknowledged. " * 100)
    before = path.read_bytes()
    refused(SqliteStore(path), StoreCorruptError, "not a SQLite database")
    assert path.read_bytes() == before


def test_the_database_of_another_program_is_left_alone(path: Path) -> None:
    con = apsw.Connection(str(path))
    con.execute("CREATE TABLE bookmarks (url)")
    con.close()
    before = path.read_bytes()

    refused(SqliteStore(path), StoreCorruptError, "another program")

    assert path.read_bytes() == before


def test_a_newer_schema_is_refused_and_left_alone(path: Path, open_store: Callable[..., SqliteStore]) -> None:
    open_store().close()
    con = apsw.Connection(str(path))
    list(con.execute(f"PRAGMA user_version = {schema.VERSION + 5}"))
    list(con.execute("UPDATE counters SET value = ? WHERE name = 'serves'", (schema.VERSION + 1,)))
    con.close()

    refused(SqliteStore(path), SchemaVersionError, "newer Treadle.*upgrade")


def test_a_damaged_page_is_found(path: Path, open_store: Callable[..., SqliteStore]) -> None:
    one = Party(open_store(), "one")
    one.start()
    for _ in range(200):
        one.append(events=[StepDispatched(at="x" * 500)])
    one.store.bury("one")
    one.store.close()
    data = bytearray(path.read_bytes())
    assert len(data) > 20 * 4096
    # The middle of the file holds journal rows; the schema is at its start.
    data[10 * 4096 : 15 * 4096] = os.urandom(5 * 4096)
    path.write_bytes(data)

    store = open_store()
    health = store.check()
    with pytest.raises(StoreCorruptError, match="restore a backup"):
        store.load(RUN)

    assert health.problems
    assert all(str(path) in problem for problem in health.problems)


def test_a_truncated_file_is_found(path: Path, open_store: Callable[..., SqliteStore]) -> None:
    one = Party(open_store(), "one")
    one.start(events=[StepDispatched(at="x" * 100_000)])
    one.store.bury("one")
    one.store.close()
    os.truncate(path, 10 * 4096 + 100)

    store = SqliteStore(path)

    def read() -> None:
        # Found at the first or at the second, as the version of SQLite has it.
        store.open()
        store.load(RUN)

    with pytest.raises(StoreCorruptError, match="damaged"):
        read()
    store.close()


@posix
def test_a_file_or_directory_without_write_permission(open_store: Callable[..., SqliteStore]) -> None:
    # Not below tmp_path: others than root could not even reach that.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "runs.db"
        made = SqliteStore(file)
        made.open()
        made.close()
        file.chmod(0o444)
        folder.chmod(0o555)
        try:
            with unprivileged():
                refused(SqliteStore(file), StoreReadOnlyError, "permissions")
                refused(SqliteStore(folder / "other.db"), StoreReadOnlyError, "permissions")
                refused(SqliteStore(folder / "deeper" / "runs.db"), StoreReadOnlyError, "cannot be made")
        finally:
            folder.chmod(0o755)


def test_a_lock_that_is_never_freed_is_an_error_that_can_be_tried_again(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Party(store, "one")
    one.start()
    connected(store).set_busy_handler(connection._FairWait(0.05))
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreUnavailableError, match="locked by another connection"):
        one.commit(append_of(RUN, 1))
    # Readers are not held up.
    assert one.row().version == 1
    other.execute("ROLLBACK")
    other.close()

    assert one.append().status == "committed"


def test_opening_a_locked_file_is_an_error_that_can_be_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "BUSY_SECONDS", 0.05)
    other = apsw.Connection(str(path))
    other.execute("CREATE TABLE t (x); DROP TABLE t").fetchall()
    other.execute("BEGIN EXCLUSIVE")

    refused(SqliteStore(path), StoreUnavailableError, "locked")

    other.execute("ROLLBACK")
    other.close()
    store = SqliteStore(path)
    store.open()
    store.close()


def test_a_full_disk_undoes_the_whole_commit_and_the_store_goes_on(store: SqliteStore) -> None:
    one = Party(store, "one")
    one.start()
    one.start(OTHER)
    before = (snapshot(one.load(RUN)), snapshot(one.load(OTHER)), store.sessions())
    pages = connected(store).pragma("page_count")
    list(connected(store).execute(f"PRAGMA max_page_count = {pages}"))
    large = [("sha256:big", b"x" * 200_000)]

    with pytest.raises(StoreFullError, match=r"no room is left .*runs\.db"):
        one.commit(append_of(RUN, 1, tasks=[task_of(RUN, 1)]), append_of(OTHER, 1, payloads=large), slots=1)

    assert (snapshot(one.load(RUN)), snapshot(one.load(OTHER)), store.sessions()) == before
    assert store.committed(RUN, 2) is None
    assert store.check().problems == []
    list(connected(store).execute("PRAGMA max_page_count = 1000000"))
    answers = one.commit(append_of(RUN, 1, tasks=[task_of(RUN, 1)]), append_of(OTHER, 1, payloads=large), slots=1)
    assert [answer.status for answer in answers] == ["committed", "committed"]


def test_a_run_of_a_failed_commit_leaves_no_trace(store: SqliteStore, open_store: Callable[..., SqliteStore]) -> None:
    """Its number goes to another run; the store must not remember it under the first one's key."""
    one = Party(store, "one")
    pages = connected(store).pragma("page_count")
    list(connected(store).execute(f"PRAGMA max_page_count = {pages}"))
    with pytest.raises(StoreFullError):
        one.commit(start_of(RUN, payloads=[("d", b"x" * 200_000)]))
    list(connected(store).execute("PRAGMA max_page_count = 1000000"))

    Party(open_store(), "two").start(OTHER)

    assert one.commit(append_of(RUN, 1))[0].status == "conflict"
    assert store.load(RUN) is None
    one.start(RUN)
    assert one.append(RUN).status == "committed"
    assert store.check().problems == []


class _Interrupted(BaseException):
    """Not an error of any library."""


class _FailingConnection:
    """A connection whose Nth statement of a call fails, before or after it took effect."""

    def __init__(self, con: apsw.Connection) -> None:
        self.con = con
        self.left = 0
        self.before = True
        self.armed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.con, name)

    def _call(self, function: Callable[..., Any], sql: str, *args: Any) -> Any:
        if not self.armed or sql == "ROLLBACK":
            return function(sql, *args)
        self.left -= 1
        fails = self.left == 0
        if fails and self.before:
            self.armed = False
            raise _Interrupted
        result = function(sql, *args)
        if fails:
            self.armed = False
            raise _Interrupted
        return result

    def execute(self, sql: str, *args: Any) -> Any:
        return self._call(self.con.execute, sql, *args)

    def executemany(self, sql: str, *args: Any) -> Any:
        return self._call(self.con.executemany, sql, *args)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_commit_that_fails_at_any_statement_is_undone_wholly(tmp_path: Path, before: bool) -> None:
    statements = 0
    for nth in itertools.count(1):
        store = SqliteStore(tmp_path / f"{nth}.db", sync="normal")
        store.open()
        one = Party(store, "one")
        one.start(tasks=[task_of(RUN, 1), task_of(RUN, 2)], slots=1)
        store.post([signal_of(RUN, "in")])
        failing = _FailingConnection(connected(store))
        store._con = failing
        store._appends.con = failing
        state = (snapshot(store.load(RUN)), store.find(""), store.payloads(RUN, ["d"]))
        failing.left, failing.before, failing.armed = nth, before, True
        appends = [
            append_of(
                RUN,
                1,
                ended=[1],
                tasks=[task_of(RUN, 1, attempt=2), task_of(RUN, 3)],
                steps=[step_of(9)],
                consumed=["in"],
                payloads=[("d", b"1")],
                interrupts=[2],
            ),
            start_of(OTHER, tasks=[task_of(OTHER, 1)]),
            append_of(RUN, 2, unsettled=[9], status="failed"),
        ]
        try:
            store.commit("one", appends, Slots(9))
        except _Interrupted:
            durable = store.committed(RUN, 2) == appends[0].commit_id
            if not durable:
                assert (snapshot(store.load(RUN)), store.find(""), store.payloads(RUN, ["d"])) == state
                answers = store.commit("one", appends, Slots(9))
                assert [answer.status for answer in answers] == ["committed"] * 3
            # Only the answer of the statement COMMIT itself can be lost after the fact.
            assert not (durable and before)
        else:
            statements = nth - 1
        failing.armed = False
        assert store.check().problems == []
        assert one.row().version == 3
        assert one.row(OTHER).version == 1
        store.close()
        if statements:
            break
    assert statements > 10
