"""Projections in SQLite files: in the store's own, where records are applied with the outcomes, or in others."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import apsw
import apsw.ext

from treadle.errors import ProjectionError, StoreError
from treadle.store.base import Append
from treadle.store.projection import (
    REGISTERS,
    Known,
    Opened,
    Projections,
    ProjectionSpec,
    Recorded,
    StatementError,
    UnfitError,
    belongs,
    decode_records,
    recorded,
    text_of,
)
from treadle.store.sqlite.connection import Database, connect, map_exceptions, use_wal

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS {register} (
    name TEXT PRIMARY KEY,
    -- Hashes of the migrations that were applied, and the statement of each collection, both as JSON.
    migrations TEXT NOT NULL,
    statements TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS treadle_positions (
    projection TEXT NOT NULL,
    run TEXT NOT NULL,
    version INTEGER NOT NULL,
    PRIMARY KEY (projection, run)
) WITHOUT ROWID;
"""
_DEFINED: Final = "SELECT 1 FROM sqlite_schema WHERE name = ?"
_JOURNAL: Final = (
    "SELECT r.n, r.id, j.time, j.events FROM journal j JOIN runs r ON r.n = j.run"
    " WHERE j.events LIKE '%\"records\":%' ORDER BY j.rowid"
)
# So many statements are known to be good; more are looked at again.
_CHECKED: Final = 1000


def statements_of(con: Database) -> dict[str, list[tuple[str, str]]]:
    """Collection -> (projection, statement) of each projection that takes it."""
    found: dict[str, list[tuple[str, str]]] = {}
    if con.execute(_DEFINED, (REGISTERS[True],)).fetchall():
        for name, text in con.execute("SELECT name, statements FROM treadle_projections ORDER BY name").fetchall():
            for collection, sql in json.loads(text).items():
                found.setdefault(collection, []).append((name, sql))
    return found


def give(con: Database, n: int, run: str, append: Append, opened: Opened | None) -> None:
    """Apply what successes of one append bring, in the transaction that is open.

    Raises:
        UnfitError: a statement fails; the caller rolls back.
    """
    statements = statements_of(con)
    for one in append.given:
        try:
            for write in one.writes:
                con.execute(write.sql, write.values).fetchall()
            if statements:
                for handle in one.records:
                    _apply(con, statements, _records_of(con, n, run, one.at, append.time, handle, opened))
        except (apsw.BusyError, apsw.FullError, apsw.IOError):
            raise
        except (apsw.Error, TypeError, ProjectionError) as error:
            raise UnfitError(append, one.lease, f"{error} ({type(error).__name__})") from error


def _records_of(
    con: Database, n: int, run: str, at: str, time: float, handle: str, opened: Opened | None
) -> Iterator[Recorded]:
    """The records of a stored list; raises as `text_of`."""

    def find(digest: str) -> bytes | None:
        found = con.execute("SELECT body FROM payloads WHERE run = ? AND digest = ?", (n, digest)).fetchall()
        return found[0][0] if found else None

    for collection, key, raw in decode_records(text_of(run, handle, find, opened)):
        yield Recorded(collection, key, bytes(raw).decode(), run, at, time)


def _apply(con: Database, statements: dict[str, list[tuple[str, str]]], records: Iterable[Recorded]) -> None:
    # The driver takes named parameters as a dict, which is more than this store uses otherwise.
    named: Any = con
    for record in records:
        for name, sql in statements.get(record.collection, ()):
            try:
                named.execute(sql, _bindings(record)).fetchall()
            except apsw.Error as error:
                if isinstance(error, (apsw.BusyError, apsw.FullError, apsw.IOError)):
                    raise
                raise ProjectionError(
                    f"projection {name!r} does not take record {record.key!r} of {record.collection!r}: {error}"
                ) from error


def _bindings(record: Recorded) -> dict[str, Any]:
    return {
        "key": record.key,
        "data": record.data,
        "collection": record.collection,
        "run": record.run,
        "step": record.step,
        "at": record.at,
    }


@contextmanager
def _guarded(con: Database, name: str, *, changes_schema: bool) -> Generator[None, None, None]:
    """Let statements change a projection's own tables only, and never end the transaction."""
    changes = {apsw.SQLITE_INSERT, apsw.SQLITE_UPDATE, apsw.SQLITE_DELETE}
    reads = {apsw.SQLITE_SELECT, apsw.SQLITE_READ, apsw.SQLITE_FUNCTION, apsw.SQLITE_RECURSIVE}
    never = {apsw.SQLITE_TRANSACTION, apsw.SQLITE_SAVEPOINT, apsw.SQLITE_ATTACH, apsw.SQLITE_DETACH, apsw.SQLITE_PRAGMA}

    def allow(operation: int, first: str | None, _second: str | None, _db: str | None, _trigger: str | None) -> int:
        if operation in reads:
            return apsw.SQLITE_OK
        if operation in changes:
            own = first is not None and (belongs(name, first) or first.startswith("sqlite_"))
            return apsw.SQLITE_OK if own else apsw.SQLITE_DENY
        return apsw.SQLITE_OK if changes_schema and operation not in never else apsw.SQLITE_DENY

    guarded: Any = con
    guarded.authorizer = allow
    try:
        yield
    finally:
        guarded.authorizer = None


class SqliteProjections(Projections):
    """Projections in one SQLite file. `hosted`: it is the store's file."""

    def __init__(self, path: str, *, hosted: bool, sync: str = "full", opened: Opened | None = None) -> None:
        self.path = self.shown = path
        self._opened = opened
        self.hosted = hosted
        self._register = REGISTERS[hosted]
        self._lock = threading.RLock()
        self._checked: set[tuple[str, str]] = set()
        with map_exceptions(path):
            self._con = connect(path, sync=sync, create=not hosted)
            if not hosted and path != ":memory:":
                use_wal(self._con, path)

    @contextmanager
    def _writing(self) -> Generator[Database, None, None]:
        with self._lock, map_exceptions(self.path):
            con = self._con
            con.execute("BEGIN IMMEDIATE")
            try:
                yield con
                con.execute("COMMIT")
            except BaseException:
                if con.in_transaction:
                    con.execute("ROLLBACK")
                raise

    # -- what `Projections` asks for --------------------------------------------------------------------------------

    @contextmanager
    def _changing(self) -> Generator[None, None, None]:
        with self._writing() as con:
            con.execute(_SCHEMA.format(register=self._register)).fetchall()
            yield

    def _known(self, name: str) -> Known | None:
        with self._lock, map_exceptions(self.path):
            if not self._con.execute(_DEFINED, (self._register,)).fetchall():
                return None
            sql = f"SELECT migrations, statements FROM {self._register} WHERE name = ?"
            found = self._con.execute(sql, (name,)).fetchall()
        return Known(json.loads(found[0][0]), json.loads(found[0][1])) if found else None

    def _names(self) -> list[str]:
        return [name for (name,) in self._con.execute(f"SELECT name FROM {self._register}").fetchall()]

    def _tables(self) -> set[str]:
        sql = "SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        return {name for (name,) in self._con.execute(sql).fetchall()}

    def _script(self, name: str, text: str) -> None:
        con = self._con
        try:
            with _guarded(con, name, changes_schema=True):
                con.execute(text).fetchall()
        except apsw.Error as error:
            raise StatementError(str(error)) from error
        if not con.in_transaction:
            raise StatementError("it ends the transaction; leave that")

    def _enter(self, spec: ProjectionSpec, known: Known) -> None:
        con = self._con
        for collection, sql in spec.statements.items():
            self._compile(con, spec.name, sql, f"the statement of {spec.name!r} for {collection!r}")
        con.execute(
            f"INSERT OR REPLACE INTO {self._register} (name, migrations, statements) VALUES (?, ?, ?)",
            (spec.name, json.dumps(known.migrations), json.dumps(known.statements)),
        ).fetchall()

    def _forget(self, name: str) -> None:
        con = self._con
        for kind, table in con.execute("SELECT type, name FROM sqlite_schema").fetchall():
            if kind in ("table", "view") and belongs(name, table):
                con.execute(f'DROP {kind} IF EXISTS "{table}"').fetchall()
        con.execute(f"DELETE FROM {self._register} WHERE name = ?", (name,))
        con.execute("DELETE FROM treadle_positions WHERE projection = ?", (name,))

    def _replay(self, spec: ProjectionSpec) -> None:
        con = self._con
        statements = {collection: [(spec.name, sql)] for collection, sql in spec.statements.items()}
        for n, run, time, text in con.execute(_JOURNAL).fetchall():
            for at, handle in recorded(text):
                _apply(con, statements, _records_of(con, n, run, at, time, handle, self._opened))

    # -- statements ------------------------------------------------------------------------------------------------

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows of a statement by column name; one that writes is refused."""
        with self._lock, self._said():
            con: Any = self._con
            con.pragma("query_only", 1)
            try:
                cursor = con.execute(sql, values)
                # Asked first: after the last row there is none. A statement without rows has ended already.
                names = [column[0] for column in cursor.get_description()]
                rows = cursor.fetchall()
            except apsw.ExecutionCompleteError:
                return []
            finally:
                con.pragma("query_only", 0)
            return [dict(zip(names, row, strict=True)) for row in rows]

    def execute(self, name: str, sql: str, values: Sequence[Any] = ()) -> int:
        """Carry out a statement in a transaction of its own."""
        self.check(name, sql)
        with self._said(), self._writing() as con:
            before = con.total_changes()
            con.execute(sql, values).fetchall()
            return con.total_changes() - before

    def check(self, name: str, sql: str) -> None:
        """Raise for a statement that cannot be compiled, or that is not the projection's to carry out."""
        if (name, sql) in self._checked:
            return
        with self._lock:
            self._compile(self._con, name, sql, "the statement")
        if len(self._checked) < _CHECKED:
            self._checked.add((name, sql))

    def _compile(self, con: Database, name: str, sql: str, what: str) -> None:
        with _guarded(con, name, changes_schema=False):
            try:
                # Compiled and not carried out, so it needs no values.
                # Its types leave parts unknown.
                details: Any = apsw.ext
                info = details.query_info(con, sql)
                if info.query_remaining and info.query_remaining.strip():
                    raise ProjectionError(f"{what} is more than one: {sql}")
            except apsw.AuthError as error:
                raise ProjectionError(
                    f"{what} may change only tables called {name} or {name}_..., and nothing of the transaction: {sql}"
                ) from error
            except apsw.Error as error:
                raise ProjectionError(f"{what} cannot be used: {error}: {sql}") from error

    @contextmanager
    def _said(self) -> Generator[None, None, None]:
        """A statement's own mistake is its caller's; the file's troubles are the store's."""
        try:
            yield
        except (apsw.SQLError, apsw.ConstraintError, apsw.BindingsError, apsw.MismatchError) as error:
            raise ProjectionError(f"{self.path}: {error}") from error
        except apsw.ReadOnlyError as error:
            raise ProjectionError(f"{self.path}: query() changes nothing; use execute()") from error
        except StoreError as error:
            cause = error.__cause__
            if isinstance(cause, (apsw.SQLError, apsw.ConstraintError, apsw.BindingsError, apsw.MismatchError)):
                raise ProjectionError(f"{self.path}: {cause}") from cause
            raise

    # -- following -------------------------------------------------------------------------------------------------

    def position(self, name: str, run: str) -> int:
        """Up to which version of a run's journal records were applied."""
        with self._lock, map_exceptions(self.path):
            found = self._con.execute(
                "SELECT version FROM treadle_positions WHERE projection = ? AND run = ?", (name, run)
            ).fetchall()
        return found[0][0] if found else 0

    def apply(self, spec: ProjectionSpec, run: str, after: int, version: int, records: Sequence[Recorded]) -> bool:
        """Apply a run's records, and move its position, in one transaction."""
        with self._writing() as con:
            if self.position(spec.name, run) != after:
                return False
            _apply(con, {name: [(spec.name, sql)] for name, sql in spec.statements.items()}, records)
            con.execute(
                "INSERT OR REPLACE INTO treadle_positions (projection, run, version) VALUES (?, ?, ?)",
                (spec.name, run, version),
            ).fetchall()
        return True

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            self._con.close()
