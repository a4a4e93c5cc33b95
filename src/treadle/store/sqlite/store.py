"""The SQLite store: any number of processes on one file, one writer at a time.

Every write is one `BEGIN IMMEDIATE` transaction; those that may find nothing to do look first, without the lock.
What a failed transaction did is undone wholly, and the connection stays usable. A session is looked up at the
start of each transaction that writes for it, so a buried one writes nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from treadle.core.commands import Task
from treadle.core.inputs import Look, Lost, encode_input
from treadle.core.tables import LIVE
from treadle.errors import LeaseLostError, StoreError, StoreNotFoundError, StoreReadOnlyError
from treadle.store.base import (
    WAITS_CHANGES,
    WAITS_TASKS,
    Acquired,
    Answer,
    Append,
    InboxInput,
    Postponement,
    Renewal,
    Report,
    Reported,
    SessionRow,
    Swept,
)
from treadle.store.joined import JoinedInput, JoinedStart
from treadle.store.offers import Offer
from treadle.store.projection import Opened, fitting
from treadle.store.queues import QueueChange
from treadle.store.rows import task_of
from treadle.store.sqlite.appends import Appends
from treadle.store.sqlite.connection import Database, connect, map_exceptions, use_wal
from treadle.store.sqlite.deletion import family_of, forget_run
from treadle.store.sqlite.group import INSERT_INPUT, INSERT_PAYLOAD
from treadle.store.sqlite.joining import join, join_input
from treadle.store.sqlite.limits import Limits
from treadle.store.sqlite.location import Sync, parse_url, refuse_network
from treadle.store.sqlite.process_locks import ProcessLocks, host_name
from treadle.store.sqlite.projections import SqliteProjections
from treadle.store.sqlite.reader import TASK_COLUMNS, SqliteReader
from treadle.store.sqlite.schema import behind, migrate
from treadle.store.sqlite.tokens import OwnSession, count_up
from treadle.store.sqlite.waiting import Claim, all_closed, anything_due, next_due, postpone

_DURABILITY: dict[Sync, str] = {
    "full": "SQLite WAL, synchronous=FULL: on disk before it is answered",
    "normal": "SQLite WAL, synchronous=NORMAL: survives any crash of processes; a power cut may take the last commits",
}

# The living session that decides a run, and its address.
_DECIDER = "SELECT s.id, s.wake FROM runs r JOIN sessions s ON s.n = r.owner AND s.ended = 0 WHERE r.n = ?"


class SqliteStore(SqliteReader):
    """A store in one SQLite file. See `store.base` for the promises.

    `sync` is "full" (a commit is on disk when it returns) or "normal" (a power cut may take the last commits, never
    more). `kernel` is the version that journal rows are marked with. `unsafe_network` lets the file lie on a network
    file system.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, sync: Sync = "full", kernel: str = "0.1.0", unsafe_network: bool = False
    ) -> None:
        super().__init__(os.fspath(path), sync)
        self.kernel = kernel
        self.durability = _DURABILITY[sync]
        self._unsafe_network = unsafe_network
        # Decodes records on their way into projections, where values are encoded; set before the store is opened.
        self.opened: Opened | None = None
        self._locks = ProcessLocks(self.path)
        self._own: dict[str, OwnSession] = {}
        # Sessions whose lock this store took.
        self._held: set[str] = set()
        # The living sessions as they were last read: number, id, wake address, what it waits for, and of which change
        # of the queues it was told.
        self._wake_rows: list[tuple[int, str, str, int, int]] = []
        self._room = False
        # When queues were served last.
        self._served: dict[str, int] = {}

    @classmethod
    def from_url(cls, url: str, *, kernel: str = "0.1.0") -> SqliteStore:
        """The store that a URL names: `sqlite:///relative.db`, `sqlite:////absolute.db`, `?sync=normal`.

        Raises:
            StoreUrlError: the URL is not of that form, or has an unknown option.
        """
        path, sync, unsafe_network = parse_url(url)
        return cls(path, sync=sync, kernel=kernel, unsafe_network=unsafe_network)

    @property
    def made_room(self) -> bool:
        """Whether some call since this was asked last has made room."""
        found, self._room = self._room, False
        return found

    # -- connecting ------------------------------------------------------------------------------------

    def open(self, *, create: bool = True) -> None:
        """Connect, and make or migrate the schema; opening an open store does nothing."""
        if self._con is not None and self._pid == os.getpid():
            return
        if not self._unsafe_network:
            refuse_network(self.path)
        directory = os.path.dirname(os.path.abspath(self.path))
        if os.path.isdir(self.path):
            raise StoreNotFoundError(f"{self.path} is a directory; name a file for the store")
        if create:
            try:
                os.makedirs(directory, exist_ok=True)
            except OSError as error:
                raise StoreReadOnlyError(f"the directory of {self.path} cannot be made: {error}") from error
        elif not os.path.exists(self.path):
            raise StoreNotFoundError(f"{self.path} does not exist; check the URL")
        with map_exceptions(self.path):
            con = connect(self.path, sync=self._sync, create=create)
            try:
                # A file that is not ours is left as it is.
                behind(con, self.path, create=create)
                use_wal(con, self.path)
                migrate(con, self.path, create=create)
            except BaseException:
                con.close()
                raise
        self._con = con
        self._pid = os.getpid()
        self._appends = Appends(con)
        self._appends.opened = self.opened

    def close(self) -> None:
        """End the connection and what tells others that this store's sessions live; bury them first."""
        if self._pid == os.getpid():
            for session in sorted(self._held):
                self._locks.drop(session)
        self._held.clear()
        self._own.clear()
        super().close()

    def join(self, transaction: Any, start: JoinedStart) -> str:
        """Write a start through a connection of the caller to the store's file."""
        return join(self.path, transaction, start)

    def join_input(self, transaction: Any, given: JoinedInput) -> str:
        """Put an input into an inbox through a connection of the caller to the store's file."""
        return join_input(self.path, transaction, given)

    def reader(self) -> SqliteReader:
        """A handle for reads on another thread, with a connection of its own."""
        self._connected()
        reader = SqliteReader(self.path, self._sync)
        reader.open()
        return reader

    @contextmanager
    def _writing(self) -> Generator[Database, None, None]:
        con = self._connected()
        with map_exceptions(self.path):
            try:
                con.execute("BEGIN IMMEDIATE")
                yield con
                con.execute("COMMIT")
            except BaseException:
                self._undo(con)
                raise

    def _undo(self, con: Database) -> None:
        for own in self._own.values():
            own.forget_range()
        self._appends.limits.forget()
        # Some errors (a full disk) have rolled back already.
        if con.in_transaction:
            con.execute("ROLLBACK")

    # -- sessions --------------------------------------------------------------------------------------

    def _living(self, con: Database, session: str) -> OwnSession:
        own = self._own.get(session)
        if own is not None:
            # All that live, not the one alone: so `wakes` needs no read of its own after a commit.
            for living, _, _, _, queues in self._read_living(con):
                if living == own.n:
                    self._appends.limits.begin(queues)
                    return own
            del self._own[session]
        own = self._own[session] = OwnSession(session, self._living_number(con, session))
        self._begin_limits(con)
        return own

    def _begin_limits(self, con: Database) -> Limits:
        """The limits of queues, in a transaction that is not of a session."""
        ((version,),) = con.execute("SELECT value FROM counters WHERE name = 'queues'")
        assert isinstance(version, int)
        self._appends.limits.begin(version)
        return self._appends.limits

    def _living_number(self, con: Database, session: str) -> int:
        n = self._session_number(con, session)
        if n is None:
            raise LeaseLostError(
                f"session {session} was declared dead; its runs and tasks went to others, nothing was written"
            )
        return n

    def _session_number(self, con: Database, session: str) -> int | None:
        found = con.execute("SELECT n FROM sessions WHERE id = ? AND ended = 0", (session,)).fetchall()
        return found[0][0] if found else None

    def open_session(self, session: SessionRow) -> None:
        """Enter a session, and take the lock that proves its life.

        Raises:
            StoreError: a session of this id lives already.
        """
        self._connected()
        self._locks.hold(session.id)
        try:
            with self._writing() as con:
                if self._session_number(con, session.id) is not None:
                    raise StoreError(f"a session {session.id} lives already; take a new session id")
                n = count_up(con, "session")
                con.execute(
                    "INSERT INTO sessions (n, id, worker, wake, beat, waits, actions, info, targets, host, kernel,"
                    " queues, ended) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, value, 0 FROM counters"
                    " WHERE name = 'queues'",
                    (
                        n,
                        session.id,
                        session.worker,
                        session.wake,
                        session.beat,
                        session.waits,
                        json.dumps(session.actions),
                        json.dumps(session.info),
                        json.dumps(session.targets),
                        str(session.info.get("host") or host_name()),
                        self.kernel,
                    ),
                )
        except BaseException:
            self._locks.drop(session.id)
            raise
        self._own[session.id] = OwnSession(session.id, n)
        self._held.add(session.id)
        self._wake_rows = []

    def renew(self, session: str, waits: int | None = None) -> Renewal:
        """Count the beat up; interrupts are told again until their attempt has ended."""
        with self._writing() as con:
            own = self._living(con, session)
            con.execute("UPDATE sessions SET beat = beat + 1, waits = coalesce(?, waits) WHERE n = ?", (waits, own.n))
            found = self._all(
                "SELECT r.key, t.number, t.lease FROM tasks t INDEXED BY tasks_interrupted JOIN runs r ON r.n = t.run"
                " WHERE t.interrupt = 1 AND t.session = ? AND t.state = 3",
                (own.n,),
            )
        if waits is not None:
            self._wake_rows = []
        return Renewal([(key, number, lease) for key, number, lease in found])

    def set_targets(self, session: str, targets: Sequence[str]) -> None:
        """Change what the session's row says of its targets."""
        with self._writing() as con:
            own = self._living(con, session)
            con.execute("UPDATE sessions SET targets = ? WHERE n = ?", (json.dumps(list(targets)), own.n))

    def set_queues(self, changes: Sequence[QueueChange], now: float) -> list[bool]:
        """Change the limits of queues; what waits in them is lined up anew."""
        with self._writing() as con:
            limits = self._begin_limits(con)
            answers = limits.set_queues(changes, now)
            limits.write(now)
        self._wake_rows = []
        self._room = self._room or any(answers)
        return answers

    def dead_sessions(self) -> list[str]:
        """Sessions of this machine whose process is gone, told by their record locks."""
        here = host_name()
        found = self._all("SELECT id FROM sessions WHERE ended = 0 AND host = ? ORDER BY n", (here,))
        return [session for (session,) in found if self._locks.is_dead(session)]

    def bury(self, session: str) -> list[str]:
        """End a session; burying it twice changes nothing."""
        with self._writing() as con:
            n = self._session_number(con, session)
            limits = self._begin_limits(con)
            keys = [] if n is None else self._end_session(con, session, n)
            room = limits.write(None)
        self._room = self._room or room
        self._own.pop(session, None)
        self._held.discard(session)
        self._locks.drop(session)
        self._wake_rows = []
        return keys

    def _end_session(self, con: Database, session: str, n: int) -> list[str]:
        leased = self._all(
            "SELECT run, number, generation, attempt, lease, progress FROM tasks WHERE state = 3 AND session = ?", (n,)
        )
        con.executemany(
            INSERT_INPUT,
            [
                (
                    run,
                    f"lost:{lease}",
                    encode_input(
                        Lost(number=number, generation=generation, attempt=attempt, session=session, progress=progress)
                    ),
                )
                for run, number, generation, attempt, lease, progress in leased
            ],
        )
        con.executemany("DELETE FROM tasks WHERE run = ? AND number = ?", [row[:2] for row in leased])
        # A scan of the runs, once in a session's life: an index on the owner would cost every run two writes.
        con.execute(
            "INSERT OR IGNORE INTO inbox (run, id, body) SELECT n, ?, ? FROM runs WHERE owner = ? AND status IN (?, ?)"
            " AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.run = runs.n)",
            (f"look:{session}", encode_input(Look(session=session)), n, *sorted(LIVE)),
        )
        con.execute("DELETE FROM roles WHERE session = ?", (n,))
        # The row stays: journal rows name it. Owned runs need no change, since an ended session owns nothing.
        con.execute("UPDATE sessions SET ended = 1, wake = '', actions = '[]', info = '{}' WHERE n = ?", (n,))
        touched = json.dumps(sorted({row[0] for row in leased}))
        found = self._all(
            "SELECT r.key FROM (SELECT DISTINCT run FROM inbox) i JOIN runs r ON r.n = i.run"
            " WHERE r.owner = ? OR r.n IN (SELECT value FROM json_each(?)) ORDER BY r.n",
            (n, touched),
        )
        return [key for (key,) in found]

    def elect(self, role: str, session: str) -> bool:
        """Hold the role, if no living session holds it."""
        with self._writing() as con:
            own = self._living(con, session)
            holder = self._one(
                "SELECT s.n FROM roles o JOIN sessions s ON s.n = o.session AND s.ended = 0 WHERE o.role = ?", (role,)
            )
            if holder is not None:
                return bool(holder[0] == own.n)
            con.execute("INSERT OR REPLACE INTO roles (role, session) VALUES (?, ?)", (role, own.n))
            return True

    def wakes(self, session: str, *, tasks: bool, keys: Sequence[str]) -> list[str]:
        """Addresses, each once; sessions that wait for changes are always among them."""
        if keys or not self._wake_rows:
            with map_exceptions(self.path):
                self._read_living(self._connected())
        rows = [(id, wake, waits) for _, id, wake, waits, _ in self._wake_rows if wake]
        wanted = WAITS_CHANGES | (WAITS_TASKS if tasks else 0)
        owners: set[str] = set()
        # With no other session to wake there is no question who owns what.
        if any(id != session for id, _, _ in rows):
            for key in keys:
                owner = self._one(
                    "SELECT s.id FROM runs r JOIN sessions s ON s.n = r.owner AND s.ended = 0 WHERE r.key = ?", (key,)
                )
                if owner is not None:
                    owners.add(owner[0])
        found = {wake: None for id, wake, waits in rows if id != session and (waits & wanted or id in owners)}
        return list(found)

    def _read_living(self, con: Database) -> list[tuple[int, str, str, int, int]]:
        """The living sessions, as of the transaction that is open, or of now."""
        rows: list[Any] = con.execute("SELECT n, id, wake, waits, queues FROM sessions WHERE ended = 0").fetchall()
        self._wake_rows = rows
        return rows

    # -- appends and tasks -----------------------------------------------------------------------------

    def commit(self, session: str, appends: Sequence[Append], offer: Offer | None) -> list[Answer]:
        """Commit appends; one answer each, in order. If it raises, the caller resets the offer."""
        return fitting(appends, offer, lambda taken: self._commit(session, taken, offer))

    def _commit(self, session: str, appends: Sequence[Append], offer: Offer | None) -> list[Answer]:
        with self._writing() as con:
            own = self._living(con, session)

            def restart() -> None:
                con.execute("ROLLBACK")
                # The triggers, too, are gone if this transaction made them.
                self._appends.limits.forget()
                con.execute("BEGIN IMMEDIATE")
                self._living(con, session)

            answers = self._appends.write(own, appends, offer, restart) if appends else []
            room = bool(appends) and self._appends.limits.write(appends[-1].time)
        self._room = self._room or room
        self._appends.settled()
        return answers

    def projections(self) -> SqliteProjections:
        """A handle for projections in this file, for any thread."""
        self._connected()
        return SqliteProjections(self.path, hosted=True, sync=self._sync, opened=self.opened)

    def claim(self, session: str, offer: Offer, now: float) -> tuple[list[Task], float | None]:
        """Lease due tasks, over all queues by priority, then age."""
        con = self._connected()
        with map_exceptions(self.path):
            if not anything_due(con, now):
                self._living(con, session)
                return [], next_due(con, now)
            if self._appends.limits.gates and (closed := self._all_closed(con, session, offer, now)) is not None:
                return [], min((time for time in (*closed, next_due(con, now)) if time is not None), default=None)
        with self._writing():
            own = self._living(con, session)
            claim = Claim(con, own, self._appends.limits, offer, now)
            claimed = claim.take(self._served)
            self._appends.limits.write(now)
            times = [time for time in (claim.due, next_due(con, now)) if time is not None]
        self._room = self._room or claim.left_room
        return claimed, min(times, default=None)

    def _all_closed(self, con: Database, session: str, offer: Offer, now: float) -> list[float] | None:
        """When queues may go on by their rates, if no waiting task's queue has room; None if one may have.

        Looked at without the lock of those who write: tasks often wait for a queue that is full.
        """
        try:
            con.execute("BEGIN")
            self._living(con, session)
            found = all_closed(con, self._appends.limits, offer, now)
            con.execute("COMMIT")
        except BaseException:
            self._undo(con)
            raise
        return found

    def leased(self, session: str) -> list[Task]:
        """All tasks leased to the session."""
        own = self._living(self._connected(), session)
        found = self._all(
            f"SELECT {TASK_COLUMNS} FROM tasks t JOIN runs r ON r.n = t.run LEFT JOIN sessions s ON s.n = t.session"
            " WHERE t.state = 3 AND t.session = ? ORDER BY t.lease",
            (own.n,),
        )
        return [task_of(record) for record in found]

    def report(self, session: str, reports: Sequence[Report]) -> list[Reported]:
        """End leased tasks whose token is live."""
        answers: list[Reported] = []
        with self._writing() as con:
            own = self._living(con, session)
            for report in reports:
                n = self._appends.number(report.input.key)
                con.execute(
                    "DELETE FROM tasks WHERE run = ? AND number = ? AND lease = ? AND session = ? AND state = 3",
                    (n, report.number, report.lease, own.n),
                )
                live = con.changes() == 1
                if live:
                    con.execute(INSERT_INPUT, (n, report.input.id, report.input.body))
                    if report.payloads:
                        con.executemany(INSERT_PAYLOAD, [(n, digest, body) for digest, body in report.payloads])
                answers.append(Reported(live, *next(iter(con.execute(_DECIDER, (n,))), ())))
            room = self._appends.limits.write(None)
        self._room = self._room or room
        return answers

    def postpone(self, session: str, items: Sequence[Postponement], now: float) -> list[bool]:
        """Let tasks whose token is live wait again."""
        with self._writing() as con:
            own = self._living(con, session)
            limits = self._appends.limits
            answers = [postpone(con, own, limits, self._appends.number(item.key), item, now) for item in items]
            room = limits.write(now)
        self._room = self._room or room
        return answers

    def progress(self, session: str, items: Sequence[tuple[str, int, int, str]]) -> None:
        """Set the progress text of tasks whose token is live."""
        with self._writing() as con:
            own = self._living(con, session)
            con.executemany(
                "UPDATE tasks SET progress = ?"
                " WHERE run = ? AND number = ? AND lease = ? AND session = ? AND state = 3",
                [(text, self._appends.number(key), number, lease, own.n) for key, number, lease, text in items],
            )

    # -- inboxes and owners ----------------------------------------------------------------------------

    def post(self, inputs: Sequence[InboxInput]) -> list[bool]:
        """Insert inputs; one that is there already stays as it is."""
        answers: list[bool] = []
        rows: list[tuple[int, str, bytes]] = []
        with self._writing() as con:
            for value in inputs:
                # Not from the cache of numbers: the run may have been deleted by another process.
                found = self._one("SELECT n FROM runs WHERE key = ?", (value.key,))
                answers.append(found is not None)
                if found is not None:
                    rows.append((found[0], value.id, value.body))
            con.executemany(INSERT_INPUT, rows)
        return answers

    def owned_inboxes(self, session: str) -> dict[str, list[InboxInput]]:
        """What waits in the inboxes of runs that the session owns, by run, oldest first."""
        found = self._all(
            "SELECT r.key, i.id, i.body FROM inbox i JOIN runs r ON r.n = i.run"
            " JOIN sessions s ON s.n = r.owner AND s.ended = 0 WHERE s.id = ? ORDER BY r.n, i.seq",
            (session,),
        )
        inboxes: dict[str, list[InboxInput]] = {}
        for key, id, body in found:
            inboxes.setdefault(key, []).append(InboxInput(id, key, body))
        return inboxes

    def acquire(self, session: str, key: str, *, steal: bool = False) -> Acquired | None:
        """Own the run if nobody alive does, or with `steal`."""
        with self._writing() as con:
            own = self._living(con, session)
            found = self._one(
                "SELECT r.n, coalesce(s.n, 0), coalesce(s.id, '') FROM runs r"
                " LEFT JOIN sessions s ON s.n = r.owner AND s.ended = 0 WHERE r.key = ?",
                (key,),
            )
            if found is None:
                return None
            n, owner, owner_id = found
            if owner not in (0, own.n) and not steal:
                return Acquired(None, owner_id)
            if owner != own.n:
                con.execute("UPDATE runs SET owner = ? WHERE n = ?", (own.n, n))
            return Acquired(self.load(key), own.id)

    def release(self, session: str, keys: Sequence[str]) -> None:
        """Give runs back; those of others are left alone."""
        with self._writing() as con:
            own = self._living(con, session)
            con.executemany("UPDATE runs SET owner = 0 WHERE key = ? AND owner = ?", [(key, own.n) for key in keys])

    def sweep(self, session: str, now: float) -> Swept:
        """Find runs that nobody alive decides although they have inputs. Nothing is changed."""
        with self._snapshot():
            con = self._connected()
            # Not `_living`: the triggers that new limits need would be rolled back with the snapshot.
            self._living_number(con, session)
            found = self._all(
                "SELECT r.key FROM (SELECT DISTINCT run FROM inbox) i JOIN runs r ON r.n = i.run"
                " WHERE NOT EXISTS (SELECT 1 FROM sessions s WHERE s.n = r.owner AND s.ended = 0) ORDER BY r.n"
            )
            return Swept([key for (key,) in found], next_due(con, now))

    def delete(self, key: str) -> Literal["deleted", "missing", "open"]:
        """Remove a closed run and those below it, leaving the tombstones of their keys."""
        with self._writing() as con:
            family = family_of(con, key)
            if not family:
                return "missing"
            if any(has_tasks or status in LIVE for _, _, _, _, status, has_tasks in family):
                return "open"
            for n, run_key, id, plan, _, _ in family:
                forget_run(con, n, run_key, id, plan)
        for _, run_key, _, _, _, _ in family:
            self._appends.numbers.pop(run_key, None)
        return "deleted"
