"""Tasks that wait: which of them come first, and for whom.

Waiting tasks that are due are indexed by queue, action and target. A claim looks at the head of each such line that its
session can execute, so tasks that it cannot take cost it nothing, however many they are. Tasks that are not due
are apart, by time, and are moved over when their time comes. A task of a held run is parked by the first claim that
meets it, until the hold is lifted: a hold costs nothing by itself, and then once for each such task. What limits hold
back is not met at all: `limits` tells how.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

import msgspec

from treadle.core.commands import Task
from treadle.store.base import Postponement
from treadle.store.ledger import Gate
from treadle.store.offers import Offer
from treadle.store.rows import task_of
from treadle.store.sqlite.connection import Database, Record
from treadle.store.sqlite.limits import Limits
from treadle.store.sqlite.reader import TASK_COLUMNS
from treadle.store.sqlite.schema import DELAYED, LINED, WAITING
from treadle.store.sqlite.tokens import OwnSession, count_up

_HEAD = "FROM tasks t INDEXED BY tasks_waiting CROSS JOIN runs r ON r.n = t.run"
_DUE = "t.state = 0 AND t.queue = ? AND t.action = ? AND t.target = ? AND t.not_before <= ?"
_IN_ORDER = "ORDER BY t.priority DESC, t.turn, t.age LIMIT ?"
_TOP = f"SELECT t.priority {_HEAD} WHERE {_DUE} AND r.hold = 0 {_IN_ORDER}"
_CANDIDATES = (
    # The columns of the holder are empty: nobody holds a waiting task.
    f"SELECT {TASK_COLUMNS}, t.turn, t.gate, t.run, t.age, r.hold {_HEAD}"
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
    "UPDATE tasks SET state = ?, session = 0, lease = 0, started_at = ?, age = ?, not_before = ?, call = ?, turn = ?"
    " WHERE run = ? AND number = ? AND lease = ? AND session = ? AND state = 3 AND interrupt = 0"
)

# How many tasks a claim looks at together once it has met a held one, so that many are passed in few steps.
_LOOK_AHEAD = 64
_encode = msgspec.json.Encoder().encode
# Below every priority.
NOBODY = -float("inf")


def promote(con: Database, limits: Limits, now: float) -> None:
    """Let the tasks that are due by now wait among the due ones, and the keys start that may again."""
    _let_wait(con, limits, "state = 1 AND not_before <= ?", now)
    if limits.gates:
        limits.open_due(now)


def unpark(con: Database, limits: Limits, run: int) -> None:
    """Let the parked tasks of a run, whose hold was lifted, wait among the due ones again."""
    _let_wait(con, limits, "run = ? AND state = 2", run)


def _let_wait(con: Database, limits: Limits, which: str, value: float) -> None:
    state = f"CASE WHEN gate IN ({limits.keyed}) AND key != '' THEN {LINED} ELSE {WAITING} END" if limits.keyed else "0"
    con.execute(f"UPDATE tasks SET state = {state} WHERE {which}", (value,))


def next_due(con: Database, now: float) -> float | None:
    """The first time after `now` at which a waiting task falls due, or a key may start again."""
    ((task, key),) = con.execute(
        "SELECT (SELECT min(not_before) FROM tasks WHERE state = 1 AND not_before > ?1),"
        " (SELECT min(opens_at) FROM buckets WHERE opens_at > ?1)",
        (now,),
    )
    times: list[float] = [time for time in (task, key) if time is not None]
    return min(times, default=None)


def anything_due(con: Database, now: float) -> bool:
    """Whether a claim could find a task."""
    found = con.execute(
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM tasks WHERE state = 0)"
        " OR EXISTS (SELECT 1 FROM tasks WHERE state = 1 AND not_before <= ?1)"
        " OR EXISTS (SELECT 1 FROM buckets WHERE opens_at <= ?1)",
        (now,),
    ).fetchall()
    return bool(found)


def all_closed(con: Database, limits: Limits, offer: Offer, now: float) -> list[float] | None:
    """If every task that waits does so for its queue: when those that the session takes from may go on by their rate.

    Nothing is changed.
    """
    if con.execute(
        "SELECT 1 WHERE EXISTS (SELECT 1 FROM tasks WHERE state = 1 AND not_before <= ?1)"
        " OR EXISTS (SELECT 1 FROM buckets WHERE opens_at <= ?1)",
        (now,),
    ).fetchall():
        return None
    times: list[float] = []
    for name in _names(con, _NEXT_QUEUE):
        gate = limits.gates.get(name)
        if gate is None or limits.has_room(gate, now):
            return None
        due = limits.next_start(gate, now)
        if due is not None and ceiling(con, name, offer, now) != NOBODY:
            times.append(due)
    return times


def ceiling(con: Database, queue: str, offer: Offer, now: float) -> float:
    """The highest priority of the queue's tasks that the session could claim now; NOBODY if there are none."""
    top = NOBODY
    executable: frozenset[str] | None = None
    for action in _actions(con, queue):
        if executable is None:
            executable = frozenset(offer.actions())
        if action in executable:
            for target in ("", *offer.targets()):
                found = con.execute(_TOP, (queue, action, target, now, 1)).fetchall()
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


def postpone(con: Database, own: OwnSession, limits: Limits, run: int | None, item: Postponement, now: float) -> bool:
    """Let a leased task wait again, if its token is live."""
    state = DELAYED if item.not_before > now else WAITING
    call = _encode(item.call).decode()
    age = count_up(con, "age")
    turn = 0.0
    if limits.gates:
        sql = "SELECT queue, key, priority FROM tasks WHERE run = ? AND number = ?"
        for queue, key, priority in con.execute(sql, (run, item.number)).fetchall():
            gate = limits.gates.get(queue)
            if gate is not None and gate.limits.fair:
                turn = limits.turn_of(gate, key, priority)
            if gate is not None and state == WAITING and key and gate.limits.by_key:
                state = LINED
    values = (state, now, age, item.not_before, call, turn)
    con.execute(_POSTPONE, (*values, run, item.number, item.lease, own.n))
    return con.changes() == 1


# -- claims ------------------------------------------------------------------------------------------------------


class Claim:
    """One claim of a session; `due` is when a queue may go on by its rate, `left_room` as `Store.made_room` tells."""

    def __init__(self, con: Database, own: OwnSession, limits: Limits, offer: Offer, now: float) -> None:
        self.con = con
        self.own = own
        self.limits = limits
        self.offer = offer
        self.now = now
        self.due: float | None = None
        self.left_room = False
        self._leases: list[tuple[int, int, float, int, int]] = []

    def take(self, served: dict[str, int]) -> list[Task]:
        """Lease due tasks, over all queues by priority, then age.

        `served` tells when queues were served last. Where a fair one serves young tasks first, queues take turns
        instead, for else it might wait for others without end.
        """
        promote(self.con, self.limits, self.now)
        claimed: list[Task] = []
        by_turns = any(gate.limits.fair for gate in self.limits.gates.values())
        queues = self._queues() if self.offer.free() > 0 else []
        firsts = [queue.rank(served, by_turns) for queue in queues]
        heapify(firsts)
        while firsts:
            queue = heappop(firsts)[-1]
            record = queue.first()
            if not self.offer.take(record[5], record[6]):
                # The answer depends on action and queue alone.
                queue.give_up()
                if self.offer.free() <= 0:
                    break
            else:
                claimed.append(self._lease(queue, record))
                if by_turns:
                    served[queue.name] = max(served.values(), default=0) + 1
            if queue.go_on():
                heappush(firsts, queue.rank(served, by_turns))
        self.write()
        if self.limits.gates:
            names = list(_names(self.con, _NEXT_QUEUE))
            gates = [gate for name in names if (gate := self.limits.gates.get(name)) is not None]
            self.left_room = any(self.limits.has_work(gate, self.now) for gate in gates)
        return claimed

    def _queues(self) -> list[_Queue]:
        executable = frozenset(self.offer.actions())
        targets = ("", *self.offer.targets())
        found: list[_Queue] = []
        for name in list(_names(self.con, _NEXT_QUEUE)):
            queue = _Queue(self, name, self.limits.gates.get(name))
            lines = [
                (action, target)
                for action in list(_actions(self.con, name))
                if action in executable
                for target in targets
            ]
            if queue.look(lines):
                found.append(queue)
        return found

    def _lease(self, queue: _Queue, record: Record) -> Task:
        task = task_of(record)
        task.lease = self.own.token(self.con)
        queue.pop()
        self._leases.append((self.own.n, task.lease, self.now, record[-3], task.number))
        if queue.gate is not None:
            self.limits.started(queue.gate, task.key, self.now, task.priority, record[-5])
            if queue.keyed:
                self.write()
                queue.settle(task)
        return task

    def write(self) -> None:
        """Write the leases that were given."""
        self._leases.sort(key=_place)
        self.con.executemany(_LEASE, self._leases)
        self._leases.clear()


class _Queue:
    """The first tasks of a queue's lines, for one claim."""

    def __init__(self, claim: Claim, name: str, gate: Gate | None) -> None:
        self.claim = claim
        self.name = name
        self.gate = gate
        self.lines: dict[tuple[str, str], deque[Record]] = {}
        self.keyed = gate is not None and gate.limits.by_key
        # Negative priority, turn, age, line.
        self.heads: list[tuple[int, float, int, tuple[str, str]]] = []

    def look(self, lines: Sequence[tuple[str, str]]) -> bool:
        """Read the first tasks of some lines; whether one may be taken."""
        gate = self.gate
        # Of the tasks of a queue that is full one is read, to know whether it is worth while to wait for its rate.
        count = 1 if gate is not None and not self.claim.limits.has_room(gate, self.claim.now) else 0
        for line in lines:
            self._read(line, count)
        return self.go_on()

    def _read(self, line: tuple[str, str], count: int = 0) -> None:
        # No more than the free slots can be taken from any line. One by one where each changes who is first.
        count = count or (1 if self.keyed else self._most(line[0]))
        self.lines[line] = deque(self._candidates(line, count))
        self._push(line)

    def _most(self, action: str) -> int:
        """How many tasks may be taken of a line; one more than there is room for, to know whether the rate ends it."""
        offer = self.claim.offer
        if self.gate is None:
            return min(offer.free(), offer.room(action))
        # Whether something waits is to be known also where there is no slot for it.
        return min(max(1, offer.room(action)), offer.free(), self.claim.limits.room(self.gate, self.claim.now) + 1)

    def _push(self, line: tuple[str, str]) -> None:
        if self.lines[line]:
            record = self.lines[line][0]
            heappush(self.heads, (-record[7], record[-5], record[-2], line))

    def _candidates(self, line: tuple[str, str], count: int) -> list[Record]:
        """The first tasks of a line that may be claimed; those of held runs before them are parked."""
        con, now = self.claim.con, self.claim.now
        look = count
        while True:
            found = con.execute(_CANDIDATES, (self.name, *line, now, look)).fetchall()
            # The last columns are run, age and hold; the second one is the task's number.
            held = [record for record in found if record[-1]]
            con.executemany(_PARK, [(record[-3], record[1]) for record in held])
            free = [record for record in found if not record[-1]]
            if not held or len(free) >= count:
                return free[:count]
            # Others of their runs may follow; of a key, who follows is found out by `settle_key`.
            look = 1 if self.keyed else max(count, _LOOK_AHEAD)
            if self.gate is not None and self.keyed:
                for record in held:
                    self.claim.limits.settle_key(self.gate, record[12], now)

    def first(self) -> Record:
        """The first task of all."""
        return self.lines[self.heads[0][-1]][0]

    def pop(self) -> None:
        """The first task was taken."""
        line = heappop(self.heads)[-1]
        self.lines[line].popleft()
        if not self.keyed:
            self._push(line)

    def give_up(self) -> None:
        """Nothing of the first task's line is taken."""
        action = heappop(self.heads)[-1][0]
        self.lines = {line: records for line, records in self.lines.items() if line[0] != action}
        self.heads = [head for head in self.heads if head[-1][0] != action]
        heapify(self.heads)

    def settle(self, task: Task) -> None:
        """A task was leased: others of its key are first now, or none is."""
        line = (task.action, task.target)
        changed: list[tuple[str, str]] = []
        stale: list[tuple[str, str]] = []
        if task.key and self.gate is not None:
            changed = self.claim.limits.settle_key(self.gate, task.key, self.claim.now)
            # Those of its key may have been first in other lines too.
            stale = [head[-1] for head in self.heads if self.lines[head[-1]][0][12] == task.key]
        again = [one for one in dict.fromkeys([line, *changed, *stale]) if one in self.lines]
        self.heads = [head for head in self.heads if head[-1] not in again]
        heapify(self.heads)
        for one in again:
            self._read(one)

    def go_on(self) -> bool:
        """Whether another task may be taken; notes when one may, if it is the rate that forbids it."""
        claim, gate = self.claim, self.gate
        if not self.heads:
            return False
        if gate is None or claim.limits.has_room(gate, claim.now):
            return True
        due = claim.limits.next_start(gate, claim.now)
        if due is not None and (claim.due is None or due < claim.due):
            claim.due = due
        return False

    def rank(self, served: dict[str, int], by_turns: bool) -> tuple[int, int, int, str, _Queue]:
        """What queues go by."""
        priority, _, age, _ = self.heads[0]
        return priority, served.get(self.name, 0) if by_turns else 0, age, self.name, self


def _place(lease: tuple[int, int, float, int, int]) -> Any:
    return lease[3:]
