"""Deletion: a run goes with the runs that its steps called and waited for, and leaves tombstones."""

from __future__ import annotations

from typing import Any, Literal

from treadle.core.tables import LIVE
from treadle.store.postgres.connection import Link, Record
from treadle.store.postgres.names import leave_all, lock_names

# By number, which is the order in which they are locked. `detached` is left out of a head that does not have it.
_FAMILY = """
WITH RECURSIVE family (n, key) AS (
    SELECT n, key FROM @runs WHERE key = %s
    UNION ALL
    SELECT r.n, r.key FROM family f JOIN @runs r ON r.parent <> '' AND split_part(r.parent, '/', 1) = f.key
    JOIN @heads h ON h.run = r.n WHERE NOT coalesce((h.head::json ->> 'detached')::boolean, false)
)
SELECT r.n, r.key, r.id, r.status, EXISTS (SELECT 1 FROM @tasks t WHERE t.run = r.n)
FROM family f JOIN @runs r ON r.n = f.n ORDER BY r.n
"""


def delete_run(link: Link, key: str) -> tuple[Literal["deleted", "missing", "open"], list[str]]:
    """Delete in one transaction; also the keys of what is gone."""
    answer, gone = link.repeated(lambda: _delete(link, key))
    if gone:
        # In a transaction of its own: whoever makes a run meanwhile is held back, and would hold back the deletion.
        link.repeated(lambda: _forget_plans(link))
    return answer, gone


def _delete(link: Link, key: str) -> tuple[Literal["deleted", "missing", "open"], list[str]]:
    family: list[Record] = []
    while True:
        found = link.all(_FAMILY, (key,))
        if not found:
            return "missing", []
        if {record[0] for record in found} <= {record[0] for record in family}:
            # Locked, and read after that: it stays so.
            family = found
            break
        family = found
        lock_names(link, [record[0] for record in family])
        link.all("SELECT 1 FROM @runs WHERE n = ANY (%s) ORDER BY n FOR UPDATE", ([record[0] for record in family],))
    if any(has_tasks or status in LIVE for _, _, _, status, has_tasks in family):
        return "open", []
    numbers: list[Any] = [record[0] for record in family]
    leave_all(link, numbers)
    for table in ("labels", "journal", "steps", "payloads", "inbox", "heads"):
        link.run(f"DELETE FROM @{table} WHERE run = ANY (%s)", (numbers,))
    link.run(
        "DELETE FROM @treadle_positions WHERE run = ANY (SELECT key FROM @runs WHERE n = ANY (%s))",
        (numbers,),
    )
    link.run(
        "WITH gone AS (DELETE FROM @runs WHERE n = ANY (%s) RETURNING n, key, id)"
        " INSERT INTO @tombstones (n, key, id) SELECT n, key, id FROM gone",
        (numbers,),
    )
    return "deleted", [record[1] for record in family]


def _forget_plans(link: Link) -> None:
    link.all("SELECT pg_advisory_xact_lock('@plans'::regclass::integer, 1)")
    link.run("DELETE FROM @plans p WHERE NOT EXISTS (SELECT 1 FROM @runs r WHERE r.plan = p.n)")
