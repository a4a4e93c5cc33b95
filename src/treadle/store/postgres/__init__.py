"""The PostgreSQL store: a workflow engine's state in one schema of a database, for any number of machines."""

from treadle.store.postgres.blobs import PostgresBlobs
from treadle.store.postgres.location import Location, parse_url
from treadle.store.postgres.projections import PostgresProjections
from treadle.store.postgres.reader import PostgresReader
from treadle.store.postgres.store import PostgresStore
from treadle.store.postgres.wakeups import NotifyWakeups

__all__ = [
    "Location",
    "NotifyWakeups",
    "PostgresBlobs",
    "PostgresProjections",
    "PostgresReader",
    "PostgresStore",
    "parse_url",
]
