"""The port of projections: databases that hold read models, each with its migrations and its statements for records.

A record is applied once. In the database of the store that is done by the transaction that commits the step's outcome;
elsewhere a follower does it, in one transaction with the position that it has reached in the run's journal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from treadle.core.effects import ProjectionSpec

# Decodes a list of records whose handle says that it is encoded; what the handle holds itself comes as its text.
Opened = Callable[[str, bytes | str], bytes]


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
            ProjectionError: a migration fails or was changed; nothing was changed.
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


__all__ = ["ProjectionDatabase", "ProjectionSpec", "Recorded"]
