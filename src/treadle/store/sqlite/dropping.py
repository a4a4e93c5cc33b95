"""Runs that make place for new ones in SQLite, in a queue that is full and drops the oldest (promise 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from treadle.core.inputs import Cancel, Revoked, encode_input
from treadle.core.tables import RUNNING
from treadle.store.ledger import Gate
from treadle.store.queues import DROPPED, to_drop
from treadle.store.sqlite.connection import Database

_DUE = "FROM tasks INDEXED BY tasks_gated WHERE gate = ?1 AND gate != 0 AND state IN (-1, 0, 2)"
_ONLY_WAIT = f"""
SELECT r.key, r.n, w.count FROM (SELECT run, count(*) AS count {_DUE} GROUP BY run) w JOIN runs r ON r.n = w.run
WHERE r.status = '{RUNNING}' AND r.parent = ''
    AND NOT EXISTS (
        SELECT 1 FROM tasks t WHERE t.run = w.run AND (
            t.gate != ?1 OR t.state = 3 OR t.attempt > 1 OR t.generation > 1
            OR coalesce(json_extract(t.call, '$.poll.probes'), 0) > 0
        )
    )
    AND NOT EXISTS (SELECT 1 FROM steps s WHERE s.run = w.run)
    AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.run = w.run AND substr(i.id, 1, 5) != 'look:')
ORDER BY r.key
"""
_INSERT_INPUT = "INSERT OR IGNORE INTO inbox (run, id, body) VALUES (?, ?, ?)"


class Dropped(NamedTuple):
    """A run that makes place."""

    key: str
    n: int


def oldest(con: Database, gate: Gate) -> list[Dropped] | None:
    """The runs that make place for another one in a full queue; None if there are not enough of them."""
    found: dict[str, tuple[int, int]] = {}
    for key, n, count in con.execute(_ONLY_WAIT, (gate.n,)).fetchall():
        found[key] = (n, count)
    ((length,),) = con.execute(f"SELECT count(*) {_DUE}", (gate.n,)).fetchall()
    keys = to_drop([(key, count) for key, (_, count) in found.items()], int(length), gate.limits.length)
    return None if keys is None else [Dropped(key, found[key][0]) for key in keys]


def drop(con: Database, runs: Sequence[Dropped], by: str) -> None:
    """Cancel runs hard, and take back what waits of them."""
    cancel = encode_input(Cancel(hard=True))
    for run in runs:
        con.execute(_INSERT_INPUT, (run.n, f"{DROPPED}{by}", cancel))
        numbers = [number for (number,) in con.execute("SELECT number FROM tasks WHERE run = ?", (run.n,)).fetchall()]
        con.execute("DELETE FROM tasks WHERE run = ?", (run.n,))
        con.execute(_INSERT_INPUT, (run.n, f"revoked:{by}", encode_input(Revoked(numbers=sorted(numbers)))))
