"""What the tests of the SQLite store share: stores on a file, and looks at that file from outside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import apsw
import pytest

from treadle.store.sqlite.reader import SqliteReader

posix = pytest.mark.skipif(sys.platform == "win32", reason="record locks and permission bits are POSIX")


def connected(store: SqliteReader) -> apsw.Connection:
    assert store._con is not None
    return cast(apsw.Connection, store._con)


def query(path: Path, sql: str, *values: Any) -> list[dict[str, Any]]:
    """What a person with another SQLite tool sees."""
    con = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        cursor = con.execute(sql, values)
        names = [name for name, *_ in cursor.get_description()]
        return [dict(zip(names, row, strict=True)) for row in cursor]
    except apsw.ExecutionCompleteError:
        return []
    finally:
        con.close()
