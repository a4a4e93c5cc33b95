"""Connections to one SQLite file: how they are opened and configured, and what the driver's errors mean."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, cast

import apsw

from treadle.errors import (
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
    StoreReadOnlyError,
    StoreUnavailableError,
)

# How long a lock is waited for: far longer than any transaction of ours, short enough to be told of a stuck one.
BUSY_SECONDS = 60.0
# After so long a wait the sleeps grow, since whoever holds the lock is not in one of our short transactions.
_PATIENCE_SECONDS = 2.0
_SHORT_SLEEP = 50e-6
_SPREAD = 200
_LONG_SLEEP = 2e-3
# 16 MiB of page cache; the rest is the operating system's.
_CACHE_KIB = 16 * 1024
# Pages in the WAL before a commit moves them into the file. SQLite's default of 1000 checkpoints hot pages too often.
_CHECKPOINT_PAGES = 4000

# A row as the driver returns it: the schema says which types its columns have.
Record = tuple[Any, ...]


def copy_database(con: Database, path: str) -> None:
    """Copy what a connection sees, in one read, to a new file; synced, checked and renamed into its place.

    In one step: SQLite begins again whenever another process writes between two of them.
    """
    part = f"{path}.part"
    try:
        target = apsw.Connection(part)
        try:
            with target.backup("main", cast(apsw.Connection, con), "main") as copying:
                copying.step(-1)
            # One file, that can be moved: the copy has the WAL mode of its source.
            copy = cast(Database, target)
            copy.pragma("journal_mode", "delete")
            found = copy.pragma("quick_check")
            if found != "ok":
                raise StoreCorruptError(f"the copy in {path} is not sound: {found}; see `treadle doctor`")
        finally:
            target.close()
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


class Records(Protocol):
    """The rows of a statement, fetched as they are asked for."""

    def fetchall(self) -> list[Record]:
        """All rows that are left; runs the statement to its end."""
        ...

    def __iter__(self) -> Iterator[Record]: ...


class Database(Protocol):
    """What this store uses of an `apsw.Connection`, whose own types leave rows partly unknown."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        ...

    def execute(self, statements: str, bindings: Sequence[object] = ..., /) -> Records:
        """Run statements up to the first row."""
        ...

    def executemany(self, statements: str, bindings: Iterable[Sequence[object]], /) -> Records:
        """Run a statement for each bindings."""
        ...

    def pragma(self, name: str, value: object = ..., /) -> Any:
        """The value of a pragma, or what it is after setting it."""
        ...

    def create_scalar_function(self, name: str, function: Callable[..., Any], arguments: int, /) -> None:
        """Let statements call a function."""
        ...

    def changes(self) -> int:
        """How many rows the last statement changed."""
        ...

    def total_changes(self) -> int:
        """How many rows were changed since the connection was opened."""
        ...

    def last_insert_rowid(self) -> int:
        """The row id of the last insertion."""
        ...

    def close(self) -> None:
        """End the connection."""
        ...


@contextmanager
def map_exceptions(path: str) -> Generator[None, None, None]:
    """Let the driver's errors leave as ours, naming the file and what to do."""
    try:
        yield
    except apsw.Error as error:
        raise _mapped(error, path) from error


def _mapped(error: apsw.Error, path: str) -> StoreError:
    for kinds, make in _MEANINGS:
        if isinstance(error, kinds):
            return make(error, path)
    return StoreError(f"{path}: {error} ({type(error).__name__}); see `treadle doctor`")


def _unavailable(_: apsw.Error, path: str) -> StoreError:
    return StoreUnavailableError(
        f"{path} is locked by another connection, and was for {BUSY_SECONDS:g} s; end what holds it, then try again"
    )


def _read_only(error: apsw.Error, path: str) -> StoreError:
    if getattr(error, "extendedresult", 0) == apsw.SQLITE_READONLY_DBMOVED:
        return StoreNotFoundError(f"{path} was moved or removed while it was open; put it back, or check the URL")
    return StoreReadOnlyError(f"{path} cannot be written; check the permissions of the file and its directory")


def _cannot_open(error: apsw.Error, path: str) -> StoreError:
    if not os.path.isdir(os.path.dirname(path) or "."):
        return StoreNotFoundError(f"{path} does not exist, nor does its directory; check the URL")
    return StoreReadOnlyError(f"{path} cannot be opened ({error}); check the permissions of the file and its directory")


def _full(_: apsw.Error, path: str) -> StoreError:
    return StoreFullError(f"no room is left for {path}; free some space, then go on: nothing committed is lost")


def _corrupt(error: apsw.Error, path: str) -> StoreError:
    return StoreCorruptError(f"{path} is damaged ({error}); restore a backup, or see `treadle doctor`")


def _not_a_database(_: apsw.Error, path: str) -> StoreError:
    return StoreCorruptError(f"{path} is not a SQLite database; choose another file for the store")


_MEANINGS: tuple[tuple[tuple[type[apsw.Error], ...], Callable[[apsw.Error, str], StoreError]], ...] = (
    ((apsw.BusyError, apsw.LockedError, apsw.ProtocolError), _unavailable),
    ((apsw.ReadOnlyError,), _read_only),
    ((apsw.CantOpenError, apsw.PermissionsError, apsw.AuthError), _cannot_open),
    ((apsw.FullError,), _full),
    ((apsw.NotADBError,), _not_a_database),
    ((apsw.CorruptError,), _corrupt),
)


class _FairWait:
    """A busy handler with short sleeps.

    SQLite's own handler backs off to 100 ms while the winner takes the lock again within microseconds: with
    synchronous=FULL a second process then starves.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.began = 0.0

    def __call__(self, calls: int) -> bool:
        now = time.monotonic()  # noqa: TID251 - the wait for a lock of the operating system is measured where it happens
        if calls == 0:
            self.began = now
        waited = now - self.began
        if waited > self.limit:
            return False
        if waited > _PATIENCE_SECONDS:
            pause = _LONG_SLEEP
        else:
            # Spread over 50 to 250 us, by other numbers in each process, so that two waiters do not keep step.
            pause = _SHORT_SLEEP + (os.getpid() * 89 + calls * 37) % _SPREAD * 1e-6
        time.sleep(pause)  # noqa: TID251 - as above; the thread is the committer's own
        return True


def connect(path: str, *, sync: str, create: bool, read_only: bool = False) -> Database:
    """Open and configure a connection; call it within `map_exceptions`."""
    if read_only:
        flags = apsw.SQLITE_OPEN_READONLY
    else:
        flags = apsw.SQLITE_OPEN_READWRITE | (apsw.SQLITE_OPEN_CREATE if create else 0)
    # One thread at a time uses a connection, so SQLite need not lock it for every row.
    opened = apsw.Connection(path, flags=flags | apsw.SQLITE_OPEN_NOMUTEX, statementcachesize=200)
    con = cast(Database, opened)
    try:
        # Before anything reads the file, else concurrent openers get "database is locked".
        opened.set_busy_handler(_FairWait(BUSY_SECONDS))
        if not read_only and opened.readonly("main"):
            raise StoreReadOnlyError(f"{path} cannot be written; check the permissions of the file and its directory")
        full = sync == "full"
        for name, value in (
            ("synchronous", 2 if full else 1),
            # On macOS fsync alone does not reach the disk. Elsewhere these do nothing.
            ("fullfsync", int(full)),
            ("checkpoint_fullfsync", int(full)),
            ("wal_autocheckpoint", _CHECKPOINT_PAGES),
            ("cache_size", -_CACHE_KIB),
            ("temp_store", 2),
        ):
            con.pragma(name, value)
    except BaseException:
        con.close()
        raise
    _living.add(opened)
    return con


def use_wal(con: Database, path: str) -> None:
    """Put the file into WAL mode; call it within `map_exceptions`, after the file is known to be ours to change."""
    if con.pragma("journal_mode") == "wal":
        return
    # The change needs the file alone. Another opener that makes it at the same time is told "busy" without its
    # handler being asked, where waiting might be a deadlock: so it waits here.
    wait, calls, mode = _FairWait(BUSY_SECONDS), 0, None
    while mode is None:
        try:
            mode = con.pragma("journal_mode", "wal")
        except apsw.BusyError:
            if not wait(calls):
                raise
            calls += 1
    if mode != "wal":
        raise StoreError(f"{path} cannot use a write-ahead log here (journal mode {mode}); choose a local disk")


# A forked child must never close its parent's connections: that would act on the parent's locks and WAL. It keeps
# them until it exits.
_living: weakref.WeakSet[apsw.Connection] = weakref.WeakSet()
_inherited: list[apsw.Connection] = []


def _after_fork() -> None:
    _inherited.extend(_living)
    _living.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
