"""Names and the lines of runs in SQLite (promise 13): all of it inside a transaction that is open."""

from __future__ import annotations

from collections.abc import Sequence

from treadle.core.inputs import Cancel, Turn, encode_input
from treadle.store.base import Append
from treadle.store.sqlite.connection import Database

LINE = "SELECT r.key FROM names l JOIN runs r ON r.n = l.run WHERE l.name = ? ORDER BY l.place"
_LINE = "SELECT r.n, r.key, r.version FROM names l JOIN runs r ON r.n = l.run WHERE l.name = ? ORDER BY l.place"
_ENTER = "INSERT INTO names (name, place, run) SELECT ?1, coalesce(max(place), 0) + 1, ?2 FROM names WHERE name = ?1"
_INSERT_INPUT = "INSERT OR IGNORE INTO inbox (run, id, body) VALUES (?, ?, ?)"


def holder_of(con: Database, append: Append) -> str:
    """The key of another run that holds a name which the append wants to take; empty if there is none."""
    return holder_of_names(con, append.key, append.names)


def holder_of_names(con: Database, key: str, names: Sequence[tuple[str, str]]) -> str:
    """The key of another run that holds a name which this one wants to take."""
    for name, verb in names:
        line = con.execute(LINE, (name,)).fetchall() if verb == "take" else []
        if line and (key,) not in line:
            return str(line[0][0])
    return ""


def change_names(con: Database, n: int, key: str, changes: Sequence[tuple[str, str]]) -> list[str]:
    """Let a run, whose row is written, enter and leave lines; the keys of the runs that got inputs by that."""
    told: list[str] = []
    for name, verb in changes:
        before = con.execute(_LINE, (name,)).fetchall()
        others = [row for row in before if row[0] != n]
        if verb == "leave":
            con.execute("DELETE FROM names WHERE name = ? AND run = ?", (name, n))
        elif len(others) == len(before):
            if verb == "replace":
                ((version,),) = con.execute("SELECT version FROM runs WHERE n = ?", (n,))
                body = encode_input(Cancel(hard=True))
                con.executemany(_INSERT_INPUT, [(other, f"replaced:{key}:{version}", body) for other, *_ in others])
                told += [other for _, other, _ in others]
            con.execute(_ENTER, (name, n))
        after = con.execute(_LINE, (name,)).fetchall()
        if verb not in ("take", "note") and after and (not before or before[0][0] != after[0][0]):
            first, first_key, version = after[0]
            con.execute(_INSERT_INPUT, (first, f"turn:{version}:{name}", encode_input(Turn(name=name))))
            told.append(first_key)
    return list(dict.fromkeys(told))


def leave_all(con: Database, n: int, key: str) -> None:
    """Let a run that is deleted leave all lines."""
    names = con.execute("SELECT name FROM names WHERE run = ? ORDER BY name", (n,)).fetchall()
    change_names(con, n, key, [(name, "leave") for (name,) in names])
