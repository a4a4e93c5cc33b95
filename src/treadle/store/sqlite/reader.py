"""Reads of a SQLite store: the `Reader` port over one connection, which the writing store extends."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

from treadle.errors import StoreError
from treadle.store.base import (
    Health,
    InboxInput,
    Loaded,
    RunHead,
    RunQuery,
    RunRow,
    SessionRow,
    StepAnswer,
    StepRow,
    TaskRow,
)
from treadle.store.queues import Bucket, KeyRow, QueueRow
from treadle.store.rows import decode_head, run_row, task_row
from treadle.store.sqlite.connection import Database, Record, connect, copy_database, map_exceptions
from treadle.store.sqlite.health import examine
from treadle.store.sqlite.location import Sync
from treadle.store.sqlite.names import LINE
from treadle.store.sqlite.queue_rows import read_buckets, read_keys, read_queues

_FOUND_AT_MOST = 20
# No text of 512 bytes that starts with a prefix sorts behind the prefix and so many of the last character.
_LAST = "\U0010ffff" * 130

# An owner or holder counts while its session lives.
_OWNER = "coalesce((SELECT s.id FROM sessions s WHERE s.n = r.owner AND s.ended = 0), '')"
_RUN_COLUMNS = (
    f"r.key, r.id, r.workflow, r.status, r.hold, r.version, {_OWNER}, r.labels, r.created_at, r.updated_at,"
    " (SELECT count(*) FROM tasks t WHERE t.run = r.n AND t.state = 3), r.unwound, r.parent,"
    " r.name, r.metadata"
)
_RUN_WIDTH = len(RunRow.__struct_fields__)
# Some of a run's metadata; no JSON is read of runs without any.
_MANY = "r.metadata != '' AND EXISTS (SELECT 1 FROM json_each(r.metadata) m WHERE"
_SPEAKS_OF = (
    "(instr(lower(r.id), lower(?)) OR instr(lower(r.name), lower(?)) OR instr(lower(r.workflow), lower(?))"
    f" OR {_MANY} instr(lower(m.value), lower(?))))"
)
TASK_COLUMNS = (
    "r.key, t.number, t.address, t.generation, t.attempt, t.action, t.queue, t.priority, t.not_before, t.call, r.id,"
    " t.lease, t.key, t.target, coalesce(s.id, ''), coalesce(s.worker, ''),"
    " CASE t.state WHEN 3 THEN t.started_at ELSE 0.0 END, t.interrupt, t.progress"
)
_HOLDER = "LEFT JOIN sessions s ON s.n = t.session AND t.state = 3"
STEP_FIELDS = StepRow.__struct_fields__
_STEP_COLUMNS = ", ".join(f"s.{name}" for name in STEP_FIELDS)


def _condition(query: RunQuery) -> tuple[list[str], list[Any]]:
    """What the rows of a query must fulfil, and the values for it."""
    where: list[str] = []
    values: list[Any] = []

    def want(sql: str, *found: str | float) -> None:
        where.append(sql)
        values.extend(found)

    for given, sql, found in (
        (query.status, "r.status = ?", (query.status,)),
        (query.workflow, "r.workflow = ?", (query.workflow,)),
        (query.id_prefix, "r.id BETWEEN ? AND ?", (query.id_prefix, query.id_prefix + _LAST)),
        # All that begins with the text and a slash; a zero is what follows the slash.
        (query.parent, "r.parent != '' AND r.parent > ? AND r.parent < ?", (query.parent + "/", query.parent + "0")),
        (query.package, "r.workflow > ? AND r.workflow < ?", (query.package + "/", query.package + "0")),
        (query.before, "r.updated_at < ?", (query.before,)),
        (query.text, _SPEAKS_OF, (query.text,) * 4),
        (query.after, "r.key < ?", (query.after,)),
    ):
        if given:
            want(sql, *found)
    for name, value in query.labels.items():
        want("r.n IN (SELECT l.run FROM labels l WHERE l.name = ? AND l.value = ?)", name, value)
    for name, value in query.metadata.items():
        want(f"{_MANY} m.key = ? AND m.value = ?)", name, value)
    return where, values


class SqliteReader:
    """Consistent reads of a SQLite store. See `store.base.Reader`."""

    def __init__(self, path: str, sync: Sync) -> None:
        self.path = path
        self._sync: Sync = sync
        self._con: Database | None = None
        self._pid = os.getpid()

    def open(self, *, create: bool = False) -> None:
        """Connect for reading; `create` is the writing store's."""
        with map_exceptions(self.path):
            self._con = connect(self.path, sync=self._sync, create=False, read_only=True)
        self._pid = os.getpid()

    def close(self) -> None:
        """Close the connection; a second time, or in a forked child, this does nothing."""
        con, self._con = self._con, None
        if con is not None and self._pid == os.getpid():
            with map_exceptions(self.path):
                con.close()

    def backup(self, path: str) -> None:
        """Copy the whole file, as it is at one moment, to a new one. See `store.copied.BackupReader`."""
        con = self._connected()
        with map_exceptions(path):
            copy_database(con, path)

    def _connected(self) -> Database:
        con = self._con
        if con is None:
            raise StoreError(f"{self.path} is not open; call open() first")
        if self._pid != os.getpid():
            raise StoreError(
                f"{self.path} was opened by process {self._pid} and cannot be used in its child {os.getpid()}:"
                " SQLite's locks do not survive a fork; open a store of its own after the fork"
            )
        return con

    def _all(self, sql: str, values: tuple[Any, ...] = ()) -> list[Record]:
        con = self._connected()
        with map_exceptions(self.path):
            return con.execute(sql, values).fetchall()

    def _one(self, sql: str, values: tuple[Any, ...] = ()) -> Record | None:
        found = self._all(sql, values)
        return found[0] if found else None

    @contextmanager
    def _snapshot(self) -> Generator[None, None, None]:
        """One state for several reads. Within a write transaction that is given already."""
        con = self._connected()
        if con.in_transaction:
            yield
            return
        with map_exceptions(self.path):
            try:
                con.execute("BEGIN")
                yield
            finally:
                if con.in_transaction:
                    con.execute("ROLLBACK")

    # -- runs ------------------------------------------------------------------------------------------

    def find(self, id_or_prefix: str) -> list[str]:
        """Keys of the runs with this id, or whose key or id starts with it, newest first."""
        with self._snapshot():
            exact = self._one("SELECT key FROM runs WHERE id = ?", (id_or_prefix,))
            if exact is not None:
                return [exact[0]]
            last = id_or_prefix + _LAST
            found = self._all(
                "SELECT key FROM runs WHERE key BETWEEN ?1 AND ?2 UNION SELECT key FROM runs WHERE id BETWEEN ?1 AND ?2"
                " ORDER BY key DESC LIMIT ?3",
                (id_or_prefix, last, _FOUND_AT_MOST),
            )
            return [key for (key,) in found]

    def load(self, key: str) -> Loaded | None:
        """The whole run, or None."""
        with self._snapshot():
            record = self._one(
                f"SELECT r.n, h.head, p.body, r.version, r.status, r.hold, {_OWNER}"
                " FROM runs r JOIN heads h ON h.run = r.n JOIN plans p ON p.n = r.plan WHERE r.key = ?",
                (key,),
            )
            if record is None:
                return None
            n, head, plan, version, status, hold, owner = record
            rows = self._all(
                "SELECT version, commit_id, time, events FROM journal WHERE run = ? ORDER BY version", (n,)
            )
            inbox = [
                InboxInput(id, key, body)
                for id, body in self._all("SELECT id, body FROM inbox WHERE run = ? ORDER BY seq", (n,))
            ]
            tasks = self._all(
                f"SELECT {TASK_COLUMNS} FROM tasks t JOIN runs r ON r.n = t.run {_HOLDER} WHERE t.run = ?", (n,)
            )
            return Loaded(
                head=decode_head(head),
                plan=plan,
                version=version,
                status=status,
                hold=hold,
                owner=owner,
                rows=rows,
                inbox=inbox,
                tasks=[task_row(task) for task in tasks],
            )

    def head(self, key: str) -> tuple[RunHead, bytes] | None:
        """The head and the encoded plan of a run, or None."""
        record = self._one(
            "SELECT h.head, p.body FROM runs r JOIN heads h ON h.run = r.n JOIN plans p ON p.n = r.plan"
            " WHERE r.key = ?",
            (key,),
        )
        return None if record is None else (decode_head(record[0]), record[1])

    def rows(self, key: str, after: int, limit: int = 1000) -> list[tuple[int, int, float, str]]:
        """Journal rows with a version above `after`, in order."""
        return self._all(
            "SELECT j.version, j.commit_id, j.time, j.events FROM runs r JOIN journal j ON j.run = r.n"
            " WHERE r.key = ? AND j.version > ? ORDER BY j.version LIMIT ?",
            (key, after, limit),
        )

    def run(self, key: str) -> RunRow | None:
        """The run's row, or None."""
        record = self._one(f"SELECT {_RUN_COLUMNS} FROM runs r WHERE r.key = ?", (key,))
        return None if record is None else run_row(record)

    def runs(self, query: RunQuery) -> list[RunRow]:
        """Runs by key, newest first."""
        where, values = _condition(query)
        condition = f"WHERE {' AND '.join(where)}" if where else ""
        sql = f"SELECT {_RUN_COLUMNS} FROM runs r {condition} ORDER BY r.key DESC LIMIT ?"
        return [run_row(record) for record in self._all(sql, (*values, query.limit))]

    # -- steps, tasks, payloads ------------------------------------------------------------------------

    def step(self, key: str, address: str) -> StepAnswer:
        """What is known of one step."""
        record = self._one(
            f"SELECT r.status, r.version, {_STEP_COLUMNS} FROM runs r"
            " LEFT JOIN steps s ON s.run = r.n AND s.address = ? WHERE r.key = ?",
            (address, key),
        )
        if record is None:
            return StepAnswer("", 0)
        return StepAnswer(record[0], record[1], None if record[2] is None else StepRow(*record[2:]))

    def dead(self, limit: int = 100) -> list[tuple[RunRow, StepRow]]:
        """Steps that failed for good, newest first."""
        found = self._all(
            f"SELECT {_RUN_COLUMNS}, {_STEP_COLUMNS} FROM steps s JOIN runs r ON r.n = s.run"
            " WHERE s.status = 'failed' ORDER BY s.finished_at DESC, r.key DESC, s.number DESC LIMIT ?",
            (limit,),
        )
        return [(run_row(record[:_RUN_WIDTH]), StepRow(*record[_RUN_WIDTH:])) for record in found]

    def payloads(self, key: str, digests: Iterable[str]) -> dict[str, bytes]:
        """Payload rows of a run by digest; missing ones are absent."""
        found = self._all(
            "SELECT p.digest, p.body FROM runs r CROSS JOIN json_each(?) d"
            " CROSS JOIN payloads p ON p.run = r.n AND p.digest = d.value WHERE r.key = ?",
            (json.dumps(list(digests)), key),
        )
        return dict(found)

    def waiting(self, limit: int = 100) -> list[TaskRow]:
        """Tasks that wait, in claim order; those not due and those of held runs included."""
        found = self._all(
            f"SELECT {TASK_COLUMNS} FROM tasks t JOIN runs r ON r.n = t.run {_HOLDER}"
            " WHERE t.state < 3 ORDER BY t.priority DESC, t.age LIMIT ?",
            (limit,),
        )
        return [task_row(record) for record in found]

    def inbox(self, key: str) -> list[InboxInput]:
        """The inputs that wait, oldest first."""
        found = self._all(
            "SELECT i.id, i.body FROM runs r JOIN inbox i ON i.run = r.n WHERE r.key = ? ORDER BY i.seq", (key,)
        )
        return [InboxInput(id, key, body) for id, body in found]

    # -- the store -------------------------------------------------------------------------------------

    def sessions(self) -> list[SessionRow]:
        """All living sessions, oldest first."""
        found = self._all(
            "SELECT id, worker, wake, beat, waits, actions, info, targets FROM sessions WHERE ended = 0 ORDER BY n"
        )
        return [SessionRow(*record[:5], *(json.loads(text) for text in record[5:])) for record in found]

    def queues(self, now: float) -> list[QueueRow]:
        """Queues that were defined, or that have tasks, by name."""
        return read_queues(self._all, now)

    def queue_keys(self, queue: str, *, key: str | None = None, limit: int = 100) -> list[KeyRow]:
        """Keys of a queue's tasks, those with the most waiting ones first, or one of them."""
        return read_keys(self._all, queue, key, limit)

    def buckets(self, queue: str) -> dict[str, Bucket]:
        """What is stored of what a queue's rates allow."""
        return read_buckets(self._all, queue)

    def line(self, name: str) -> list[str]:
        """Keys of the runs in the line of a name."""
        return [key for (key,) in self._all(LINE, (name,))]

    def holders(self, queue: str, *, key: str | None = None, limit: int = 20) -> list[TaskRow]:
        """Leased tasks of a queue (or of one key in it), those that were leased first."""
        found = self._all(
            f"SELECT {TASK_COLUMNS} FROM tasks t JOIN runs r ON r.n = t.run {_HOLDER}"
            " WHERE t.state = 3 AND t.queue = ?1 AND (?2 IS NULL OR t.key = ?2)"
            " ORDER BY t.started_at, t.lease LIMIT ?3",
            (queue, key, limit),
        )
        return [task_row(record) for record in found]

    def committed(self, key: str, version: int) -> int | None:
        """The commit id of the journal row of that version, None if there is none."""
        record = self._one(
            "SELECT j.commit_id FROM runs r JOIN journal j ON j.run = r.n WHERE r.key = ? AND j.version = ?",
            (key, version),
        )
        return None if record is None else record[0]

    def check(self) -> Health:
        """Examine the file's structure, the references between rows, and how SQLite is configured."""
        return examine(self._connected(), self.path)
