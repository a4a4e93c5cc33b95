"""Connections to a PostgreSQL server: opened, found broken, opened again, and what the driver's errors mean.

The one module that imports psycopg. A `Link` is one connection for one thread. It opens itself when it is needed and
when it was found broken; after a failure it waits a little longer each time before it tries again, and answers at once
in between, so that no thread is blocked for a server that is away. Nothing is ever sent twice without a reason: a
statement whose answer was lost is in doubt, and its caller decides (a read asks again, an append is looked up).

Hot statements go through `call`, one round trip each, with parameters that are packed already. They are all calls of
functions that live in the store's schema, whose plans the server keeps, so nothing is prepared by name: a pooler that
hands each transaction another connection does no harm.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from treadle.errors import (
    MissingExtraError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
    StoreReadOnlyError,
    StoreUnavailableError,
    StoreUrlError,
)
from treadle.store.postgres.location import SHAPE, Location

try:
    import psycopg
    from psycopg import pq
    from psycopg.conninfo import conninfo_to_dict
except ImportError as error:
    raise MissingExtraError(f"a PostgreSQL store needs psycopg: pip install 'treadle[postgres]' ({error})") from error

# Connections of the caller.
SyncConnection = psycopg.Connection
AsyncConnection = psycopg.AsyncConnection
# A row as the driver returns it: the schema says which types its columns have.
Record = tuple[Any, ...]
# A statement and its packed parameters with the numbers of their types; one of type 0 is text, and the server finds out
# what it is to be.
Statement = tuple[bytes, Sequence[bytes | None], Sequence[int]]

_FIRST_WAIT_SECONDS = 0.05
_LONGEST_WAIT_SECONDS = 2.0
# How often a transaction is made again that the server took back for the sake of another one.
_REPEATS = 10

# Unless the URL says otherwise. A silent network is noticed within half a minute.
_PARAMETERS = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "4",
    "tcp_user_timeout": "30000",
    "client_encoding": "UTF8",
}
# A client that hangs inside a transaction (a claim is two round trips) must not hold its locks for ever.
_OPTIONS = "-c idle_in_transaction_session_timeout=30s"


def _wait_by_poll(socket: int, sends: bool) -> None:
    poll = select.poll()
    poll.register(socket, select.POLLIN | select.POLLOUT if sends else select.POLLIN)
    poll.poll()


def _wait_by_select(socket: int, sends: bool) -> None:
    select.select([socket], [socket] if sends else [], [])


# `select` knows no descriptor above 1023, `poll` is not there on Windows.
wait_for = _wait_by_poll if hasattr(select, "poll") else _wait_by_select


class RaisedError(Exception):
    """An error of our own functions: `code` is one of theirs (`TR...`), `detail` what they say with it."""

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(f"{code} {detail}")


class Guest(NamedTuple):
    """A statement of a user's among those of the store: that it is refused is no trouble of the store's."""

    text: bytes
    values: Sequence[bytes | None] = ()
    types: Sequence[int] = ()


class GuestError(Exception):
    """The server refuses a user's statement: the statement (if it was packed), and what the server says."""

    def __init__(self, guest: Guest | None, message: str, detail: str = "") -> None:
        self.guest = guest
        self.message = message
        self.detail = detail
        super().__init__(message)


class TakenBackError(Exception):
    """The server has undone the open transaction for the sake of another one; it may be made again as it was."""


class Link:
    """One connection to the server, for one thread at a time."""

    def __init__(self, location: Location, *, name: str) -> None:
        self.location = location
        self.name = name
        # Called with each new connection before anything else is done with it.
        self.on_connect: Callable[[], None] = lambda: None
        # Round trips made so far.
        self.trips = 0
        self._con: psycopg.Connection[Record] | None = None
        self._pid = os.getpid()
        self._ended = False
        self._wait = 0.0
        self._not_before = 0.0
        self._failure = ""
        # The schema's name with a dot, as it is written before a name.
        self.schema = '"' + location.schema.replace('"', '""') + '".'
        # Where users' statements look for their tables.
        self.search_path = f"{self.schema.removesuffix('.')}, public"
        self._texts: dict[str, bytes] = {}

    # -- the connection --------------------------------------------------------------------------------

    def connection(self) -> psycopg.Connection[Record]:
        """The connection, opened if there is none that works.

        Raises:
            StoreError: it was closed for good.
            StoreUnavailableError: the server cannot be reached now.
        """
        if self._pid != os.getpid():
            raise StoreError(
                f"{self.location.shown} was opened by process {self._pid} and cannot be used in its child"
                f" {os.getpid()}: they would talk over one socket; open a store of its own after the fork"
            )
        if self._ended:
            raise StoreError(f"{self.location.shown} was closed; open it again")
        con = self._con
        if con is not None and not con.closed:
            return con
        now = time.monotonic()  # noqa: TID251 - measures the patience with a server, not the time of a run
        if now < self._not_before:
            raise StoreUnavailableError(self._failure)
        try:
            self._con = con = self._opened()
            self.on_connect()
        except StoreError as error:
            if isinstance(error, StoreUnavailableError):
                self._wait = min(max(self._wait * 2, _FIRST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS)
                self._not_before = time.monotonic() + self._wait  # noqa: TID251 - as above
                self._failure = str(error)
            self.close()
            raise
        self._wait = 0.0
        return con

    def _opened(self) -> psycopg.Connection[Record]:
        location = self.location
        parameters: dict[str, Any] = {"application_name": self.name, **_PARAMETERS}
        if not location.pooled:
            # A pooler would refuse what it does not know.
            parameters["options"] = _OPTIONS
        try:
            given: dict[str, Any] = conninfo_to_dict(location.conninfo)
        except psycopg.ProgrammingError as error:
            raise StoreUrlError(f"{location.shown}: {str(error).strip()}; {SHAPE}") from error
        if "options" in parameters and "options" in given:
            given["options"] = f"{_OPTIONS} {given['options']}"
        try:
            return psycopg.connect(**{**parameters, **given}, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            raise _refused(error, location) from error

    def close(self) -> None:
        """Close the connection; in a forked child this does nothing."""
        con, self._con = self._con, None
        if con is not None and self._pid == os.getpid():
            con.close()

    def end(self) -> None:
        """Close the connection for good: who comes late, from another thread, opens none that nobody would close."""
        self._ended = True
        self.close()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection that is not known to be broken."""
        return self._con is not None and not self._con.closed

    # -- statements ------------------------------------------------------------------------------------

    def sql(self, text: str) -> bytes:
        """The statement with `@name` written as the name in the store's schema."""
        found = self._texts.get(text)
        if found is None:
            found = self._texts[text] = text.replace("@", self.schema).encode()
        return found

    def all(self, sql: str, values: Sequence[Any] = ()) -> list[Record]:
        """The rows of a statement; what it writes is committed, unless a transaction is open."""
        con = self.connection()
        self.trips += 1
        with self.mapped():
            return con.execute(self.sql(sql), values or None).fetchall()

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run a statement that gives no rows; how many it has changed."""
        con = self.connection()
        self.trips += 1
        with self.mapped():
            return con.execute(self.sql(sql), values or None).rowcount

    def script(self, text: str) -> None:
        """Run statements that take no values."""
        con = self.connection()
        self.trips += 1
        with self.mapped():
            con.execute(self.sql(text))

    def read(self, *queries: tuple[str, Sequence[Any]]) -> list[list[Record]]:
        """The rows of several queries as of one moment, asked in one round trip; asked again if the answer is lost."""
        try:
            return self._read(queries)
        except StoreUnavailableError:
            if self.is_open:
                raise
            # The connection had died before; that is noticed only by using it.
            return self._read(queries)

    def _read(self, queries: Sequence[tuple[str, Sequence[Any]]]) -> list[list[Record]]:
        con = self.connection()
        if con.info.transaction_status != pq.TransactionStatus.IDLE:
            return [self.all(sql, values) for sql, values in queries]
        self.trips += 1
        with self.mapped():
            if len(queries) == 1:
                ((sql, values),) = queries
                return [con.execute(self.sql(sql), values or None).fetchall()]
            try:
                with con.pipeline():
                    con.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    cursors = [con.execute(self.sql(sql), values or None) for sql, values in queries]
                    con.execute("COMMIT")
                return [cursor.fetchall() for cursor in cursors]
            except psycopg.Error:
                self._give_up(con)
                raise

    def call(self, *statements: Statement) -> list[bytes | None]:
        """Run packed statements in one transaction and one round trip; the first value of each.

        Raises:
            RaisedError: one of our functions refused; nothing was written.
            GuestError: a user's statement was refused; nothing was written.
            TakenBackError: the same of a transaction that was open before.
            StoreError: of the kind that says what to do. If it is StoreUnavailableError, nothing is known.
        """
        for attempt in range(_REPEATS):
            pgconn = self.connection().pgconn
            inside = pgconn.transaction_status == pq.TransactionStatus.INTRANS
            self.trips += 1
            with self.mapped():
                results = _pipelined(pgconn, statements) if len(statements) > 1 else [_executed(pgconn, *statements)]
            failed = next((result for result in results if result.status not in _GOOD), None)
            if failed is None and len(results) == len(statements):
                return [result.get_value(0, 0) if result.ntuples else None for result in results]
            code = ""
            if failed is not None:
                code = (failed.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
            if pgconn.transaction_status not in (pq.TransactionStatus.IDLE, pq.TransactionStatus.UNKNOWN):
                self._give_up(self.connection())
            if failed is not None and _is_statements_own(code):
                guest = statements[results.index(failed)]
                if isinstance(guest, Guest):
                    raise GuestError(guest, _said_by(failed), _said_by(failed, pq.DiagnosticField.MESSAGE_DETAIL))
            if code.startswith("TR"):
                assert failed is not None
                raise RaisedError(code, (failed.error_field(pq.DiagnosticField.MESSAGE_DETAIL) or b"").decode())
            if code in _TAKEN_BACK and inside:
                raise TakenBackError
            if code in _TAKEN_BACK and attempt + 1 < _REPEATS:
                continue
            said = _said_by(failed) if failed is not None else ""
            raise _meaning(code, said or pgconn.get_error_message(), self.location)
        raise AssertionError("the last attempt returns or raises")

    def ask(self, sql: str, values: Sequence[Any], *, reads: bool) -> tuple[list[str], list[Record], int]:
        """Carry out a user's statement in a transaction of its own, with the schema's tables at hand.

        Gives names of columns, rows, and how many were changed. One that reads is asked again if the answer is lost.

        Raises:
            GuestError: the statement is wrong, or changes something though it is to read.
        """
        for attempt in range(_REPEATS):
            con = self.connection()
            try:
                return self._ask(con, sql, values, reads=reads)
            except psycopg.Error as error:
                self._give_up(con)
                code = error.sqlstate or ""
                if reads and code == "25006":
                    raise GuestError(None, "query() changes nothing; use execute()") from error
                if _is_statements_own(code) or (not code and not isinstance(error, psycopg.OperationalError)):
                    raise GuestError(None, error.diag.message_primary or str(error)) from error
                again = code in _TAKEN_BACK or (reads and attempt == 0 and not self.is_open)
                if not again or attempt + 1 == _REPEATS:
                    raise _meaning(code, str(error), self.location) from error
        raise AssertionError("the last attempt returns or raises")

    def _ask(
        self, con: psycopg.Connection[Record], sql: str, values: Sequence[Any], *, reads: bool
    ) -> tuple[list[str], list[Record], int]:
        self.trips += 1
        # It takes `$1`, and with a list of values, be it empty, one statement only.
        cursor = psycopg.RawCursor(con)
        with con.pipeline():
            con.execute(b"BEGIN READ ONLY" if reads else b"BEGIN")
            con.execute(b"SELECT set_config('search_path', %s, true)", (self.search_path,))
            cursor.execute(sql.encode(), list(values))
            con.execute(b"COMMIT")
        if cursor.description is None:
            return [], [], cursor.rowcount
        return [column.name for column in cursor.description], cursor.fetchall(), cursor.rowcount

    @contextmanager
    def transaction(self) -> Generator[None, None, None]:
        """Statements in between belong together."""
        con = self.connection()
        with self.mapped():
            con.execute("BEGIN")
            try:
                yield
                self.trips += 1
                con.execute("COMMIT")
            except BaseException:
                self._give_up(con)
                raise

    def _give_up(self, con: psycopg.Connection[Record]) -> None:
        """Leave a transaction that has failed; a connection that cannot do that is closed."""
        try:
            if not con.closed and con.info.transaction_status != pq.TransactionStatus.IDLE:
                con.execute("ROLLBACK")
        except psycopg.Error:
            self.close()

    def abandon(self) -> None:
        """Undo the transaction that is open, if one is."""
        if self._con is not None:
            self._give_up(self._con)

    def repeated(self, work: Callable[[], Any]) -> Any:
        """Do the work of a transaction, again if the server took it back for the sake of another one."""
        for attempt in range(_REPEATS):
            try:
                with self.transaction():
                    return work()
            except StoreUnavailableError as error:
                if attempt + 1 == _REPEATS or not isinstance(error.__cause__, psycopg.errors.TransactionRollback):
                    raise
            except TakenBackError:
                continue
        raise StoreUnavailableError(f"{self.location.shown}: rivals took it back again and again; try again")

    @contextmanager
    def mapped(self) -> Generator[None, None, None]:
        """Let the driver's errors leave as ours, naming the store and what to do."""
        try:
            yield
        except psycopg.Error as error:
            raise _meaning(error.sqlstate or "", str(error), self.location) from error


class Ear:
    """A connection that is served by an event loop: it hears what is told on one channel, and asks without waiting."""

    def __init__(self, link: Link, channel: str) -> None:
        self._link = link
        self._con = link.connection()
        with link.mapped():
            self._con.execute(f'LISTEN "{channel}"'.encode())
            self._con.pgconn.nonblocking = 1
        self.socket = self._con.pgconn.socket
        # Whether an answer is awaited.
        self.busy = False

    def ask(self, sql: bytes, values: Sequence[bytes], types: Sequence[int]) -> None:
        """Send a statement; `hear` takes its answer."""
        with self._link.mapped():
            self._con.pgconn.send_query_params(sql, values, types, [1] * len(values), 1)
            # It is far shorter than the socket's buffer.
            self._con.pgconn.flush()
        self.busy = True

    def hear(self) -> bool:
        """Take what has come; whether anything was told.

        Raises:
            StoreUnavailableError: the connection is gone.
        """
        pgconn, told = self._con.pgconn, False
        with self._link.mapped():
            pgconn.consume_input()
            while pgconn.notifies() is not None:
                told = True
            while self.busy and not pgconn.is_busy():
                self.busy = pgconn.get_result() is not None
        return told

    def close(self) -> None:
        """End it."""
        self._link.close()


_GOOD = frozenset({pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK})
# Serialization failure, deadlock: the server has undone the transaction, which may be made again as it is.
_TAKEN_BACK = frozenset({"40001", "40P01"})


def _executed(pgconn: pq.abc.PGconn, statement: Statement) -> pq.abc.PGresult:
    sql, values, types = statement
    return pgconn.exec_params(sql, values, types, _formats(types), 1)


def _formats(types: Sequence[int]) -> list[int]:
    return [int(type != 0) for type in types] if 0 in types else [1] * len(types)


def _pipelined(pgconn: pq.abc.PGconn, statements: Sequence[Statement]) -> list[pq.abc.PGresult]:
    """All statements up to the sync are one transaction: none takes effect without the others."""
    results: list[pq.abc.PGresult] = []
    pgconn.enter_pipeline_mode()
    try:
        for sql, values, types in statements:
            pgconn.send_query_params(sql, values, types, _formats(types), 1)
        pgconn.pipeline_sync()
        while True:
            result = _awaited(pgconn)
            if result is None:
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                break
            results.append(result)
            if pgconn.status == pq.ConnStatus.BAD:
                break
    finally:
        if pgconn.status != pq.ConnStatus.BAD:
            pgconn.exit_pipeline_mode()
    return results


def _awaited(pgconn: pq.abc.PGconn) -> pq.abc.PGresult | None:
    """The next result. The driver's own wait for it would keep all other threads of the process from working."""
    # The server says nothing before it has all of a statement, which may be more than the socket takes at once.
    while (unsent := pgconn.flush()) or pgconn.is_busy():
        wait_for(pgconn.socket, bool(unsent))
        pgconn.consume_input()
    return pgconn.get_result()


# -- what errors mean -----------------------------------------------------------------------------------

# Parts of the messages with which a server refuses a connection; they carry no code.
_REFUSALS = (
    ("password authentication failed", "check the user and the password in the URL, or in ~/.pgpass"),
    ("no password supplied", "put the password into the URL, PGPASSWORD or ~/.pgpass"),
    ("no pg_hba.conf entry", "let the server's pg_hba.conf allow this user, database and address"),
    ("pg_hba.conf rejects", "let the server's pg_hba.conf allow this user, database and address"),
    ("is not permitted to log in", "give the role the right to log in"),
)
# The same of a server that takes no more of them now.
_CROWDED = ("too many clients", "too many connections", "remaining connection slots")


def _refused(error: psycopg.Error, location: Location) -> StoreError:
    text = " ".join(str(error).split())
    where = location.shown
    for part, advice in _REFUSALS:
        if part in text:
            return StoreError(f"{where} refused the connection; {advice} ({text})")
    if "does not exist" in text and "database" in text:
        return StoreNotFoundError(f"{where}: there is no such database; create it, or check the URL ({text})")
    if "does not exist" in text and "role" in text:
        return StoreError(f"{where} refused the connection; create the role, or check the URL ({text})")
    if any(part in text for part in _CROWDED):
        return StoreUnavailableError(
            f"{where} has no connection left; raise max_connections of the server, or use a pooler ({text})"
        )
    return StoreUnavailableError(
        f"{where} cannot be reached; check that the server runs and that host and port are right ({text})"
    )


def _said_by(failed: pq.abc.PGresult, field: pq.DiagnosticField = pq.DiagnosticField.MESSAGE_PRIMARY) -> str:
    return (failed.error_field(field) or b"").decode()


# Connections, transactions taken back, resources, locks, operators, the machine, damage: no statement is to blame. The
# one exception is a wrong number of parameters.
_OF_THE_SERVER = frozenset({"", "08", "25", "40", "53", "55", "57", "58", "XX"})


def _is_statements_own(code: str) -> bool:
    return code == "08P01" or code[:2] not in _OF_THE_SERVER


def _meaning(code: str, text: str, location: Location) -> StoreError:
    """The error of ours that tells what to do about one of the server's."""
    where, said = location.shown, " ".join(text.split())
    if code in _MEANINGS:
        kind, advice = _MEANINGS[code]
    elif code[:2] in ("08", "57", "") or code in _TAKEN_BACK or code.startswith("53"):
        kind, advice = StoreUnavailableError, "try again; what was under way is looked up"
    else:
        kind, advice = StoreError, "see `treadle doctor`"
    return kind(f"{where}: {said} ({code or 'connection lost'}); {advice}")


_GONE = (StoreNotFoundError, "the store was removed, or was never made; open it with create=True, or check the URL")
_DAMAGED = (StoreCorruptError, "the database is damaged: restore a backup")
_MEANINGS: dict[str, tuple[type[StoreError], str]] = {
    "53100": (StoreFullError, "free some space on the server, then go on: nothing committed is lost"),
    "25006": (StoreReadOnlyError, "this server takes no writes (a standby?); name the primary in the URL"),
    "42501": (StoreReadOnlyError, "grant the role USAGE on the schema and all rights on what is in it"),
    "42P01": _GONE,
    "3F000": _GONE,
    "42883": _GONE,
    "XX001": _DAMAGED,
    "XX002": _DAMAGED,
}
