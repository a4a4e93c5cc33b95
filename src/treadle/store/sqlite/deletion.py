"""Deletion: a run goes with the runs that its steps called and waited for, and leaves tombstones."""

from __future__ import annotations

from treadle.store.sqlite.connection import Database, Record
from treadle.store.sqlite.names import leave_all

# A zero is the character after the slash between a parent's key and the address of its step.
_FAMILY = """
WITH RECURSIVE family (n, key) AS (
    SELECT n, key FROM runs WHERE key = ?
    UNION ALL
    SELECT r.n, r.key FROM family f
    JOIN runs r ON r.parent != '' AND r.parent > f.key || '/' AND r.parent < f.key || '0'
    JOIN heads h ON h.run = r.n WHERE coalesce(h.head ->> '$.detached', 0) = 0
)
SELECT r.n, r.key, r.id, r.plan, r.status, EXISTS (SELECT 1 FROM tasks t WHERE t.run = r.n)
FROM family f JOIN runs r ON r.n = f.n
"""
# By name and value, the key of that table; by run alone it would be read wholly.
_LABELS = (
    "DELETE FROM labels WHERE run = ?1 AND (name, value) IN"
    " (SELECT l.key, l.value FROM heads h, json_each(h.head, '$.labels') l WHERE h.run = ?1)"
)


def family_of(con: Database, key: str) -> list[Record]:
    """A run and those below it that are not detached: (number, key, id, plan, status, whether it has tasks)."""
    return con.execute(_FAMILY, (key,)).fetchall()


def forget_run(con: Database, n: int, key: str, id: str, plan: int) -> None:
    """Remove all rows of a run."""
    leave_all(con, n, key)
    con.execute(_LABELS, (n,))
    for table in ("journal", "steps", "payloads", "inbox", "heads"):
        con.execute(f"DELETE FROM {table} WHERE run = ?", (n,))
    con.execute("DELETE FROM runs WHERE n = ?", (n,))
    con.execute("UPDATE plans SET uses = uses - 1 WHERE n = ?", (plan,))
    con.execute("DELETE FROM plans WHERE n = ? AND uses = 0", (plan,))
    con.execute("INSERT INTO tombstones (n, key, id) VALUES (?, ?, ?)", (n, key, id))
