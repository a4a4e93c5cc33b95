"""The SQLite store: a workflow engine's state in one file, for any number of processes on one machine."""

from treadle.store.sqlite.location import parse_url
from treadle.store.sqlite.projections import SqliteProjections
from treadle.store.sqlite.reader import SqliteReader
from treadle.store.sqlite.store import SqliteStore

__all__ = ["SqliteProjections", "SqliteReader", "SqliteStore", "parse_url"]
