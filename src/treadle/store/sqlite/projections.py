"""Projections in SQLite files: in the store's own, where records are applied with the outcomes, or in others."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import apsw
import apsw.ext
import msgspec

from treadle.core.effects import Given
from treadle.core.events import StepSucceeded, decode_events
from treadle.core.values import bare, key_id_of
from treadle.errors import ProjectionError, SchemaVersionError, StoreError, StoreUnavailableError
from treadle.store.projection import Opened, ProjectionSpec, Recorded
from treadle.store.sqlite.connection import Database, connect, map_exceptions, use_wal

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS treadle_projections (
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
_DEFINED: Final = "SELECT 1 FROM sqlite_schema WHERE name = 'treadle_projections'"
_JOURNAL: Final = (
    "SELECT r.n, r.id, j.time, j.events FROM journal j JOIN runs r ON r.n = j.run"
    " WHERE j.events LIKE '%\"records\":%' ORDER BY j.rowid"
)
_decode_chunk = msgspec.json.Decoder(list[tuple[str, str, msgspec.Raw]]).decode


# So many statements are known to be good; more are looked at again.
_CHECKED: Final = 1000


class UnfitError(Exception):
    """What an attempt gives is not taken by a projection."""

    def __init__(self, key: str, expect: int, lease: int, message: str) -> None:
        super().__init__(message)
        self.key = key
        self.expect = expect
        self.lease = lease
        self.message = message


def statements_of(con: Database) -> dict[str, list[tuple[str, str]]]:
    """Collection -> (projection, statement) of each projection that takes it."""
    found: dict[str, list[tuple[str, str]]] = {}
    if con.execute(_DEFINED).fetchall():
        for name, text in con.execute("SELECT name, statements FROM treadle_projections ORDER BY name").fetchall():
            for collection, sql in json.loads(text).items():
                found.setdefault(collection, []).append((name, sql))
    return found


def give(
    con: Database,
    n: int,
    key: str,
    expect: int,
    run: str,
    time: float,
    given: Sequence[Given],
    opened: Opened | None,
) -> None:
    """Apply what successes of one append bring, in the transaction that is open.

    Raises:
        UnfitError: a statement fails; the caller rolls back.
    """
    statements = statements_of(con)
    for one in given:
        try:
            for write in one.writes:
                con.execute(write.sql, write.values).fetchall()
            if statements and one.records:
                _apply(con, statements, records_of(con, n, run, one.at, time, one.records, opened))
        except (apsw.BusyError, apsw.FullError, apsw.IOError):
            raise
        except (apsw.Error, TypeError, ProjectionError) as error:
            raise UnfitError(key, expect, one.lease, f"{error} ({type(error).__name__})") from error


def records_of(
    con: Database, n: int, run: str, at: str, time: float, chunks: Iterable[str], opened: Opened | None
) -> Iterator[Recorded]:
    """The records of stored lists.

    Raises:
        ProjectionError: a list is missing.
        StoreUnavailableError: it is encoded, and nobody here decodes it.
    """
    for handle in chunks:
        where = bare(handle)
        data: bytes | str = where[1:]
        if not where.startswith("="):
            found = con.execute("SELECT body FROM payloads WHERE run = ? AND digest = ?", (n, where[1:])).fetchall()
            if not found:
                raise ProjectionError(f"records {handle} of run {run!r} are missing; see `treadle doctor`")
            data = found[0][0]
        if key_id := key_id_of(handle):
            if opened is None:
                # No fault of the step's: another process, which has the key, can take them.
                raise StoreUnavailableError(
                    f"records of run {run!r} are encoded with key {key_id!r}, which is not here; open the store with it"
                )
            data = opened(handle, data)
        for collection, key, raw in _decode_chunk(data):
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
            own = first is not None and (first == name or first.startswith((f"{name}_", "sqlite_")))
            return apsw.SQLITE_OK if own else apsw.SQLITE_DENY
        return apsw.SQLITE_OK if changes_schema and operation not in never else apsw.SQLITE_DENY

    guarded: Any = con
    guarded.authorizer = allow
    try:
        yield
    finally:
        guarded.authorizer = None


class SqliteProjections:
    """Projections in one SQLite file. `hosted`: it is the store's file."""

    def __init__(self, path: str, *, hosted: bool, sync: str = "full", opened: Opened | None = None) -> None:
        self.path = path
        self._opened = opened
        self.hosted = hosted
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

    # -- tables --------------------------------------------------------------------------------------------------

    def define(self, spec: ProjectionSpec) -> None:
        """Bring the tables to the last migration; in the store's file with all that was recorded before."""
        with self._writing() as con:
            con.execute(_SCHEMA).fetchall()
            found = con.execute("SELECT migrations FROM treadle_projections WHERE name = ?", (spec.name,)).fetchall()
            hashes = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in spec.migrations]
            known: list[str] = json.loads(found[0][0]) if found else []
            if len(known) > len(hashes):
                raise SchemaVersionError(
                    f"projection {spec.name!r} in {self.path} has had {len(known)} migrations, this code knows"
                    f" {len(hashes)}: upgrade the package"
                )
            for number, (one, other) in enumerate(zip(known, hashes, strict=False), 1):
                if one != other:
                    raise ProjectionError(
                        f"migration {number} of projection {spec.name!r} was changed after it was applied in"
                        f" {self.path}; put the change into a new one, or rebuild the projection"
                    )
            for number in range(len(known), len(hashes)):
                self._migrate(con, spec, number)
            self._enter(con, spec, hashes)
            if self.hosted and not found:
                self._replay(con, spec)

    def rebuild(self, spec: ProjectionSpec) -> None:
        """Make the tables anew, in one transaction: until it ends the old ones are read."""
        with self._writing() as con:
            con.execute(_SCHEMA).fetchall()
            for kind, name in self._own(con, spec.name):
                if kind in ("table", "view"):
                    con.execute(f'DROP {kind} IF EXISTS "{name}"').fetchall()
            con.execute("DELETE FROM treadle_projections WHERE name = ?", (spec.name,))
            con.execute("DELETE FROM treadle_positions WHERE projection = ?", (spec.name,))
            for number in range(len(spec.migrations)):
                self._migrate(con, spec, number)
            self._enter(con, spec, [hashlib.sha256(text.encode()).hexdigest()[:16] for text in spec.migrations])
            if self.hosted:
                self._replay(con, spec)

    def _migrate(self, con: Database, spec: ProjectionSpec, number: int) -> None:
        before = set(con.execute("SELECT name FROM sqlite_schema").fetchall())
        try:
            with _guarded(con, spec.name, changes_schema=True):
                con.execute(spec.migrations[number]).fetchall()
        except apsw.Error as error:
            raise ProjectionError(
                f"migration {number + 1} of projection {spec.name!r} fails: {error}; nothing was changed"
            ) from error
        if not con.in_transaction:
            raise ProjectionError(
                f"migration {number + 1} of projection {spec.name!r} ends the transaction; leave that"
            )
        for (name,) in set(con.execute("SELECT name FROM sqlite_schema").fetchall()) - before:
            if name != spec.name and not name.startswith((f"{spec.name}_", "sqlite_")):
                raise ProjectionError(
                    f"migration {number + 1} of projection {spec.name!r} makes {name!r}; its tables are called"
                    f" {spec.name} or {spec.name}_..., so that they can be told from others"
                )

    def _enter(self, con: Database, spec: ProjectionSpec, hashes: list[str]) -> None:
        for collection, sql in spec.statements.items():
            self._compile(con, spec.name, sql, f"the statement of {spec.name!r} for {collection!r}")
        con.execute(
            "INSERT OR REPLACE INTO treadle_projections (name, migrations, statements) VALUES (?, ?, ?)",
            (spec.name, json.dumps(hashes), json.dumps(spec.statements)),
        ).fetchall()

    def _replay(self, con: Database, spec: ProjectionSpec) -> None:
        """Apply all that was recorded, in the order of the commits."""
        statements = {collection: [(spec.name, sql)] for collection, sql in spec.statements.items()}
        for n, run, time, text in con.execute(_JOURNAL).fetchall():
            for event in decode_events(text):
                if isinstance(event, StepSucceeded) and event.effects is not None:
                    _apply(
                        con, statements, records_of(con, n, run, event.at, time, event.effects.records, self._opened)
                    )

    def _own(self, con: Database, name: str) -> list[tuple[str, str]]:
        rows: list[Any] = con.execute(
            "SELECT type, name FROM sqlite_schema WHERE name = ? OR substr(name, 1, ?) = ?",
            (name, len(name) + 1, f"{name}_"),
        ).fetchall()
        return rows

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
