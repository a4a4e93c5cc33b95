"""Projections: databases that hold read models, each with its migrations and its statements for records.

A record is applied once. In the database of the store that is done by the transaction that commits the step's outcome;
elsewhere a follower does it, in one transaction with the position that it has reached in the run's journal.

`ProjectionDatabase` is the port. `Projections` is what all databases of it have in common: which migrations are made,
what a projection may call its tables, and what is recorded already when one is new. An append whose records or writes
are refused is `unfit`, and the group is written without it (`fitting`).
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import msgspec

from treadle.core.effects import ProjectionSpec
from treadle.core.events import StepSucceeded, decode_events
from treadle.core.values import bare, key_id_of
from treadle.errors import ProjectionError, SchemaVersionError, StoreUnavailableError
from treadle.store.base import Answer, Append
from treadle.store.offers import Offer

# Decodes a list of records whose handle says that it is encoded; what the handle holds itself comes as its text.
Opened = Callable[[str, bytes | str], bytes]

# The tables in which projections are known: those that outcomes are given to, and those that a follower serves. Both
# may be in one database: what is followed into a store gets nothing of its outcomes.
REGISTERS = {True: "treadle_projections", False: "treadle_followed"}

decode_records = msgspec.json.Decoder(list[tuple[str, str, msgspec.Raw]]).decode


class Recorded(msgspec.Struct, frozen=True):
    """A record as a projection gets it: `data` is JSON text, `run` the run's id, `at` the time of the success."""

    collection: str
    key: str
    data: str
    run: str
    step: str
    at: float


class ProjectionDatabase(Protocol):
    """A database with projections. Usable from any thread."""

    def define(self, spec: ProjectionSpec) -> None:
        """Bring a projection's tables to its last migration; a new one in the store's database gets what was recorded.

        Raises:
            ProjectionError: a migration fails or was changed, or the name is taken; nothing was changed.
            SchemaVersionError: the tables are newer than the code.
        """
        ...

    def rebuild(self, spec: ProjectionSpec) -> None:
        """Make the tables anew, in the store's database with all that was recorded; elsewhere a follower fills them."""
        ...

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The rows of a statement by column name. Nothing is changed."""
        ...

    def execute(self, name: str, sql: str, values: Sequence[Any] = ()) -> int:
        """Carry out a statement on a projection's tables in a transaction of its own; how many rows it changed."""
        ...

    def check(self, name: str, sql: str) -> None:
        """Raise ProjectionError if the statement could not be carried out, or changes what is not the projection's."""
        ...

    def position(self, name: str, run: str) -> int:
        """Up to which version of a run's journal records were applied, by a follower."""
        ...

    def apply(self, spec: ProjectionSpec, run: str, after: int, version: int, records: Sequence[Recorded]) -> bool:
        """Apply a run's records up to that version, if its position is `after`; False if it is another one.

        Raises:
            ProjectionError: a statement fails; nothing was applied.
        """
        ...

    def close(self) -> None:
        """End the connection."""
        ...


@runtime_checkable
class HostsProjections(Protocol):
    """What a store has besides, if projections can live in its own database."""

    # Decodes records on their way into projections, where values are encoded; set before the store is opened.
    opened: Opened | None

    def projections(self) -> ProjectionDatabase:
        """A handle for the projections in it, with a connection of its own."""
        ...


class StatementError(Exception):
    """A statement of a projection's that its database does not take; the message is the database's."""


class Known(msgspec.Struct, frozen=True):
    """What a database knows of a projection: hashes of the migrations it has had, and its statements."""

    migrations: list[str]
    statements: dict[str, str]


def belongs(name: str, table: str) -> bool:
    """Whether a table, or something of its kind, is by its name a projection's."""
    name, table = name.lower(), table.lower()
    return table == name or table.startswith(f"{name}_")


class Projections(ABC):
    """Read models in one database, which `shown` names. `hosted`: it is the store's own."""

    shown: str
    hosted: bool

    def define(self, spec: ProjectionSpec) -> None:
        """Bring the tables to the last migration; in the store's database with all that was recorded before."""
        hashes = _hashes(spec)
        if self._known(spec.name) == Known(hashes, spec.statements):
            return
        with self._changing():
            known = self._known(spec.name)
            if known is None:
                self._check_name(spec.name)
            had = known.migrations if known is not None else []
            self._check_migrations(spec.name, had, hashes)
            for number in range(len(had), len(hashes)):
                self._migrate(spec, number)
            self._enter(spec, Known(hashes, spec.statements))
            if self.hosted and known is None:
                self._replay(spec)

    def rebuild(self, spec: ProjectionSpec) -> None:
        """Make the tables anew, in one transaction: until it ends nobody sees anything of it."""
        with self._changing():
            if self._known(spec.name) is None:
                self._check_name(spec.name)
            before = self._tables()
            self._forget(spec.name)
            for lost in sorted(before - self._tables()):
                if not belongs(spec.name, lost):
                    raise ProjectionError(f"{lost!r} depends on projection {spec.name!r}; drop it, then rebuild")
            for number in range(len(spec.migrations)):
                self._migrate(spec, number)
            self._enter(spec, Known(_hashes(spec), spec.statements))
            if self.hosted:
                self._replay(spec)

    def ready(self) -> None:
        """Make the place for positions; see `store.positions`."""
        with self._changing():
            pass

    def move(self, name: str, run: str, after: int, version: int) -> bool:
        """Move a follower's position, if it is at `after`."""
        return self.apply(ProjectionSpec(name=name, migrations=(), statements={}), run, after, version, ())

    @abstractmethod
    def apply(self, spec: ProjectionSpec, run: str, after: int, version: int, records: Sequence[Recorded]) -> bool:
        """See `ProjectionDatabase`."""

    def _check_name(self, name: str) -> None:
        """A new projection's name is nobody's, so that its tables can be told from others."""
        for table in sorted(self._tables()):
            if belongs(name, table):
                raise ProjectionError(
                    f"projection {name!r} cannot live in {self.shown}: {table!r} is there already, and is not"
                    " the projection's; choose another name"
                )
        for other in self._names():
            if belongs(name, other) or belongs(other, name):
                raise ProjectionError(
                    f"projection {name!r} cannot live in {self.shown} beside {other!r}: tables of the one could be"
                    " the other's; choose another name"
                )

    def _check_migrations(self, name: str, had: Sequence[str], hashes: Sequence[str]) -> None:
        if len(had) > len(hashes):
            raise SchemaVersionError(
                f"projection {name!r} in {self.shown} has had {len(had)} migrations, this code knows"
                f" {len(hashes)}: upgrade the package"
            )
        for number, (one, other) in enumerate(zip(had, hashes, strict=False), 1):
            if one != other:
                raise ProjectionError(
                    f"migration {number} of projection {name!r} was changed after it was applied in"
                    f" {self.shown}; put the change into a new one, or rebuild the projection"
                )

    def _migrate(self, spec: ProjectionSpec, number: int) -> None:
        before = self._tables()
        try:
            self._script(spec.name, spec.migrations[number])
        except StatementError as error:
            raise ProjectionError(
                f"migration {number + 1} of projection {spec.name!r} fails: {error}; nothing was changed"
            ) from error
        for table in sorted(self._tables() ^ before):
            if not belongs(spec.name, table):
                verb = "drops" if table in before else "makes"
                raise ProjectionError(
                    f"migration {number + 1} of projection {spec.name!r} {verb} {table!r}; its tables are called"
                    f" {spec.name} or {spec.name}_..., so that they can be told from others"
                )

    @abstractmethod
    def _changing(self) -> AbstractContextManager[object]:
        """A transaction in which nobody else defines, and no outcome with records is committed meanwhile."""

    @abstractmethod
    def _known(self, name: str) -> Known | None:
        """What the database knows of a projection, None if nothing."""

    @abstractmethod
    def _names(self) -> list[str]:
        """The projections that the database knows."""

    @abstractmethod
    def _tables(self) -> set[str]:
        """The names of all tables, and of what else has a name beside them."""

    @abstractmethod
    def _script(self, name: str, text: str) -> None:
        """Carry out a migration.

        Raises:
            StatementError: it fails, changes what is not the projection's, or would end the transaction.
        """

    @abstractmethod
    def _enter(self, spec: ProjectionSpec, known: Known) -> None:
        """Take over the statements of a projection; its tables are there.

        Raises:
            ProjectionError: one of them cannot be used.
        """

    @abstractmethod
    def _forget(self, name: str) -> None:
        """Drop what belongs to a projection, and forget what is known of it, positions included."""

    @abstractmethod
    def _replay(self, spec: ProjectionSpec) -> None:
        """Apply all that was recorded, in the order of the commits."""


def _hashes(spec: ProjectionSpec) -> list[str]:
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in spec.migrations]


# -- lists of records as journals and appends have them --------------------------------------------------------------


def recorded(events: str) -> Iterator[tuple[str, str]]:
    """The handles of all lists of records in the text of a journal row, each with its step."""
    for event in decode_events(events):
        if isinstance(event, StepSucceeded) and event.effects is not None:
            for handle in event.effects.records:
                yield event.at, handle


def text_of(run: str, handle: str, find: Callable[[str], bytes | None], opened: Opened | None) -> bytes:
    """A list of records as JSON; `find` gives what is stored under a digest.

    Raises:
        ProjectionError: the list is missing.
        StoreUnavailableError: it is encoded, and nobody here decodes it.
    """
    where = bare(handle)
    data = where[1:] if where.startswith("=") else find(where[1:])
    if data is None:
        raise ProjectionError(f"records {handle} of run {run!r} are missing; see `treadle doctor`")
    if key_id := key_id_of(handle):
        if opened is None:
            # No fault of the step's: another process, which has the key, can take them.
            raise StoreUnavailableError(
                f"records of run {run!r} are encoded with key {key_id!r}, which is not here; open the store with it"
            )
        return opened(handle, data)
    return data.encode() if isinstance(data, str) else data


# -- appends that are not taken -------------------------------------------------------------------------------------


class UnfitError(Exception):
    """What an attempt gives is not taken by a projection."""

    def __init__(self, append: Append, lease: int, message: str) -> None:
        super().__init__(message)
        self.append = append
        self.lease = lease
        self.message = message


def fitting(
    appends: Sequence[Append], offer: Offer | None, write: Callable[[Sequence[Append]], list[Answer]]
) -> list[Answer]:
    """Write a group in one transaction, without those that a projection refuses; what is stacked on these conflicts."""
    mark = offer.mark() if offer is not None else None
    unfit: dict[int, Answer] = {}
    while True:
        taken = [append for append in appends if id(append) not in unfit] if unfit else appends
        try:
            answers = iter(write(taken) if taken or not unfit else ())
        except UnfitError as error:
            unfit[id(error.append)] = Answer("unfit", unfit=(error.lease, error.message))
            if offer is not None:
                offer.reset(mark)
            continue
        if not unfit:
            return list(answers)
        return [unfit[id(append)] if id(append) in unfit else next(answers) for append in appends]


__all__ = [
    "REGISTERS",
    "HostsProjections",
    "Known",
    "Opened",
    "ProjectionDatabase",
    "ProjectionSpec",
    "Projections",
    "Recorded",
    "StatementError",
    "UnfitError",
    "belongs",
    "decode_records",
    "fitting",
    "recorded",
    "text_of",
]
