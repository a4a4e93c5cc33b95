"""The SQLite store: a workflow engine's state in one file, for any number of processes on one machine."""

from treadle.store.sqlite.reader import SqliteReader
from treadle.store.sqlite.store import SqliteStore

__all__ = ["SqliteReader", "SqliteStore"]
