"""Tasks that wait: which of them come first, and for whom.

Waiting tasks that are due are indexed by queue and action. A claim looks at the head of each such pair that its
session can execute, so tasks that it cannot take cost it nothing, however many they are. Tasks that are not due
are apart, by time, and are moved over when their time comes. A task of a held run is parked by the first claim that
meets it, until the hold is lifted: a hold costs nothing by itself, and then once for each such task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import merge

import msgspec

from treadle.core.commands import Task
from treadle.store.base import Offer, Postponement
from treadle.store.sqlite.connection import Database, Record
from treadle.store.sqlite.reader import TASK_COLUMNS, task_of
from treadle.store.sqlite.schema import DELAYED, WAITING
from treadle.store.sqlite.tokens import OwnSession, count_up

_HEAD = "FROM tasks t INDEXED BY tasks_waiting CROSS JOIN runs r ON r.n = t.run"
_DUE = "t.state = 0 AND t.queue = ? AND t.action = ? AND t.not_before <= ?"
_IN_ORDER = "ORDER BY t.priority DESC, t.age LIMIT ?"
_TOP = f"SELECT t.priority {_HEAD} WHERE {_DUE} AND r.hold = 0 {_IN_ORDER}"
_CANDIDATES = (
    # The columns of the holder are empty: nobody holds a waiting task.
    f"SELECT {TASK_COLUMNS}, t.run, t.age, r.hold {_HEAD}"
    f" LEFT JOIN sessions s ON s.n = t.session AND t.state = 3 WHERE {_DUE} {_IN_ORDER}"
)
_NEXT_ACTION = (
    "SELECT action FROM tasks INDEXED BY tasks_waiting WHERE state = 0 AND queue = ? AND action > ?"
    " ORDER BY action LIMIT 1"
)
_NEXT_QUEUE = "SELECT queue FROM tasks INDEXED BY tasks_waiting WHERE state = 0 AND queue > ? ORDER BY queue LIMIT 1"
_PARK = "UPDATE tasks SET state = 2 WHERE run = ? AND number = ?"
_LEASE = "UPDATE tasks SET state = 3, session = ?, lease = ?, started_at = ? WHERE run = ? AND number = ?"

_POSTPONE = (
    "UPDATE tasks SET state = ?, session = 0, lease = 0, started_at = 0, age = ?, not_before = ?, call = ?"
    " WHERE run = ? AND number = ? AND lease = ? AND session = ? AND state = 3 AND interrupt = 0"
)

# How many tasks a claim looks at together, so that many held ones are passed in few steps.
_LOOK_AHEAD = 64
_encode = msgspec.json.Encoder().encode
# Below every priority.
NOBODY = -float("inf")


def promote(con: Database, now: float) -> None:
    """Let the tasks that are due by now wait among the due ones."""
    con.execute("UPDATE tasks SET state = 0 WHERE state = 1 AND not_before <= ?", (now,))


def next_due(con: Database, now: float) -> float | None:
    """The first time after `now` at which a waiting task falls due."""
    ((value,),) = con.execute("SELECT min(not_before) FROM tasks WHERE state = 1 AND not_before > ?", (now,))
    assert value is None or isinstance(value, float)
    return value


def anything_due(con: Database, now: float) -> bool:
    """Whether a claim could find a task."""
    found = con.execute(
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM tasks WHERE state = 0)"
        " OR EXISTS (SELECT 1 FROM tasks WHERE state = 1 AND not_before <= ?)",
        (now,),
    ).fetchall()
    return bool(found)


def ceiling(con: Database, queue: str, actions: Callable[[], Sequence[str]], now: float) -> float:
    """The highest priority of the queue's tasks that the session could claim now; NOBODY if there are none."""
    top = NOBODY
    executable: frozenset[str] | None = None
    for action in _actions(con, queue):
        if executable is None:
            executable = frozenset(actions())
        if action in executable:
            found = con.execute(_TOP, (queue, action, now, 1)).fetchall()
            if found and found[0][0] > top:
                top = found[0][0]
    return top


def _names(con: Database, sql: str, *values: str) -> Iterator[str]:
    """Step from one distinct name to the next, skipping the rows between them."""
    found = con.execute(sql.replace(" > ?", " >= ?"), (*values, "")).fetchall()
    while found:
        ((name,),) = found
        assert isinstance(name, str)
        yield name
        found = con.execute(sql, (*values, name)).fetchall()


def _actions(con: Database, queue: str) -> Iterator[str]:
    return _names(con, _NEXT_ACTION, queue)


def unpark(con: Database, run: int) -> None:
    """Let the parked tasks of a run, whose hold was lifted, wait among the due ones again."""
    con.execute("UPDATE tasks SET state = 0 WHERE run = ? AND state = 2", (run,))


def _candidates(con: Database, queue: str, action: str, now: float, count: int) -> list[Record]:
    """The first tasks of a queue and action that may be claimed; those of held runs before them are parked."""
    while True:
        found = con.execute(_CANDIDATES, (queue, action, now, max(count, _LOOK_AHEAD))).fetchall()
        # The last columns are run, age and hold; the second one is the task's number.
        held = [(record[-3], record[1]) for record in found if record[-1]]
        con.executemany(_PARK, held)
        free = [record for record in found if not record[-1]]
        if not held or len(free) >= count:
            return free[:count]


def postpone(con: Database, own: OwnSession, run: int | None, item: Postponement, now: float) -> bool:
    """Let a leased task wait again, if its token is live."""
    state = DELAYED if item.not_before > now else WAITING
    call = _encode(item.call).decode()
    age = count_up(con, "age")
    con.execute(_POSTPONE, (state, age, item.not_before, call, run, item.number, item.lease, own.n))
    return con.changes() == 1


def claim_tasks(con: Database, own: OwnSession, offer: Offer, now: float) -> list[Task]:
    """Lease due tasks, over all queues by priority, then age."""
    promote(con, now)
    free = offer.free()
    if free <= 0:
        return []
    executable = frozenset(offer.actions())
    heads: list[list[tuple[int, int, Record]]] = []
    for queue in _names(con, _NEXT_QUEUE):
        for action in _actions(con, queue):
            if action in executable:
                # No more than the free slots can be taken from any of them.
                found = _candidates(con, queue, action, now, free)
                heads.append([(-record[7], record[-2], record) for record in found])
    claimed: list[Task] = []
    leases: list[tuple[int, int, float, int, int]] = []
    refused: set[tuple[str, str]] = set()
    for *_, record in merge(*heads):
        action, queue = record[5], record[6]
        if (action, queue) in refused:
            continue
        if not offer.take(action, queue):
            # The answer depends on action and queue alone.
            refused.add((action, queue))
            if offer.free() <= 0:
                break
            continue
        task = task_of(record)
        task.lease = own.token(con)
        leases.append((own.n, task.lease, now, record[-3], task.number))
        claimed.append(task)
    leases.sort(key=lambda lease: lease[3:])
    con.executemany(_LEASE, leases)
    return claimed
