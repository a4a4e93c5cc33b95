"""The limits of queues, as one connection sees and keeps them inside its transactions.

Tasks of a queue that was ever defined carry its number (`tasks.gate`); all others carry 0, and nothing here touches
them. What is counted are leased rows, by the index that holds such tasks only. So a lease that ends makes room, however
it ends.

Where keys have limits, one task of each key, action and target is WAITING, and the others are LINED behind it; of a key
that may not start, all are. A claim therefore meets at most one task a key, and none of those that have to wait.
Temporary triggers note the leases that ended, and the keys of which a row went or changed its state; of rows that came
`came` is told. `settle` then puts the first tasks of these keys where they belong, in the same transaction. The
triggers are made when the connection first hears of a queue with limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from treadle.core.commands import Task
from treadle.store.ledger import Gate, Ledger, Place, in_force, redefined
from treadle.store.queues import Bucket, QueueChange
from treadle.store.sqlite.connection import Database
from treadle.store.sqlite.queue_rows import read_buckets
from treadle.store.sqlite.schema import DELAYED, LEASED, LINED, WAITING
from treadle.store.sqlite.tokens import count_up

# Without a key, all that matters is that a lease has ended. Each call costs about as much as the row itself.
_TRIGGERS = """
CREATE TEMP TRIGGER IF NOT EXISTS gated_moved AFTER UPDATE OF state ON main.tasks
    WHEN new.gate != 0 AND (old.state = 3 OR new.key != '')
    BEGIN SELECT touch(new.gate, new.key, (old.state = 3) - (new.state = 3)); END;
CREATE TEMP TRIGGER IF NOT EXISTS gated_went AFTER DELETE ON main.tasks
    WHEN old.gate != 0 AND (old.state = 3 OR old.key != '')
    BEGIN SELECT touch(old.gate, old.key, old.state = 3); END;
"""
# The second condition is what tells SQLite that the index has all such rows.
_GATED = "FROM tasks INDEXED BY tasks_gated WHERE gate = ? AND gate != 0"
_IN_ORDER = "ORDER BY priority DESC, turn, age LIMIT 1"
_COUNT = f"SELECT count(*) {_GATED} AND state = ?"
_COUNT_KEY = f"SELECT count(*) {_GATED} AND state = 3 AND key = ?"
_LINES = (
    f"SELECT action, target {_GATED} AND state = -1 AND key = ? AND (action, target) > (?, ?)"
    " ORDER BY action, target LIMIT 1"
)
_FIRST = (
    f"SELECT run, number, -priority, turn, age {_GATED} AND state = ? AND key = ? AND action = ? AND target = ?"
    f" {_IN_ORDER}"
)
_STATE = "UPDATE tasks SET state = ? WHERE run = ? AND number = ?"
_CLOSE = "UPDATE tasks INDEXED BY tasks_gated SET state = -1 WHERE gate = ? AND gate != 0 AND state = 0 AND key = ?"
_PUT_BUCKET = "INSERT OR REPLACE INTO buckets (queue, key, allowance, at, full_at, opens_at) VALUES (?, ?, ?, ?, ?, ?)"


def is_full(con: Database, n: int, length: int) -> bool:
    """Whether `length` due tasks wait in a queue; never, if that is 0."""
    if not length:
        return False
    sql = f"SELECT count(*) FROM (SELECT 1 {_GATED} AND state IN (-1, 0, 2) LIMIT ?)"
    ((count,),) = con.execute(sql, (n, length)).fetchall()
    return bool(count >= length)


class Limits(Ledger):
    """The limits of all queues, for the transaction that is open."""

    def __init__(self, con: Database) -> None:
        super().__init__()
        self.con = con
        # Of the definitions, as the sessions' rows tell it.
        self.version = 0
        self.gates: dict[str, Gate] = {}
        self.keyed = ""
        self._numbers: dict[int, Gate] = {}
        # Keys of which a row came, went or changed, with how many leases have ended.
        self._touched: dict[Place, int] = {}
        self.opened = False

    # -- definitions -----------------------------------------------------------------------------------

    def begin(self, version: int) -> None:
        """A transaction begins, and sees this version of the definitions."""
        if version != self.version:
            self._read(version)
        if self.gates:
            self._touched.clear()
            self.clear()
            self.opened = False

    def forget(self) -> None:
        """The transaction is rolled back: what it has read or made may not be so."""
        self.version = -1

    def _read(self, version: int) -> None:
        rows = self.con.execute("SELECT n, name, defined, override, paused FROM queues").fetchall()
        gates = [
            Gate(n, name, in_force(defined, override), bool(paused)) for n, name, defined, override, paused in rows
        ]
        self.gates = {gate.name: gate for gate in gates}
        self._numbers = {gate.n: gate for gate in gates}
        self.keyed = ", ".join(str(gate.n) for gate in gates if gate.limits.by_key)
        if gates:
            self.con.create_scalar_function("touch", self._touch, 3)
            # So that a row which replaces another tells of both.
            self.con.pragma("recursive_triggers", True)
            self.con.execute(_TRIGGERS).fetchall()
        self.version = version

    def set_queues(self, changes: Iterable[QueueChange], now: float) -> list[bool]:
        """Change definitions; whether each changed anything."""
        con = self.con
        answers: list[bool] = []
        for change in changes:
            found = con.execute(
                "SELECT defined, override, paused FROM queues WHERE name = ?", (change.name,)
            ).fetchall()
            before = found[0] if found else (None, None, False)
            after = redefined(before, change)
            kept = change.kept(in_force(after[0], after[1]))
            changed = before != after or (kept is not None and kept != read_buckets(self._all, change.name))
            answers.append(changed)
            if changed:
                con.execute(
                    "INSERT INTO queues (name, defined, override, paused, version) VALUES (?1, ?2, ?3, ?4, 1)"
                    " ON CONFLICT (name) DO UPDATE SET defined = ?2, override = ?3, paused = ?4, version = version + 1",
                    (change.name, *after),
                )
        if any(answers):
            version = count_up(con, "queues")
            con.execute("UPDATE sessions SET queues = ? WHERE ended = 0", (version,))
            self._read(version)
            for change, changed in zip(list(changes), answers, strict=True):
                if changed:
                    gate = self.gates[change.name]
                    self._begin_anew(gate)
                    self._put_buckets(gate, change.kept(gate.limits))
            self.settle(now)
        return answers

    def _begin_anew(self, gate: Gate) -> None:
        """Line the tasks of a queue up by the limits that hold now."""
        con, n, limits = self.con, gate.n, gate.limits
        con.execute("UPDATE tasks SET gate = ? WHERE queue = ? AND gate = 0", (n, gate.name))
        if not limits.rate:
            con.execute("DELETE FROM buckets WHERE queue = ? AND key = ''", (n,))
        if not limits.key_rate:
            con.execute("DELETE FROM buckets WHERE queue = ? AND key != ''", (n,))
        if not limits.fair:
            con.execute("UPDATE tasks SET turn = 0 WHERE gate = ? AND turn != 0", (n,))
            con.execute("DELETE FROM shares WHERE queue = ?", (n,))
            con.execute("DELETE FROM turns WHERE queue = ?", (n,))
        if limits.by_key:
            con.execute("UPDATE tasks SET state = -1 WHERE gate = ? AND state = 0 AND key != ''", (n,))
            for (key,) in con.execute(f"SELECT DISTINCT key {_GATED} AND state = -1", (n,)).fetchall():
                self._touched.setdefault((n, key), 0)
        else:
            con.execute("UPDATE tasks SET state = 0 WHERE gate = ? AND state = -1", (n,))

    def _put_buckets(self, gate: Gate, buckets: dict[str, Bucket] | None) -> None:
        """Let the rates of a queue allow this, and nothing else; None: what they do."""
        if buckets is None:
            return
        self.con.execute("DELETE FROM buckets WHERE queue = ?", (gate.n,))
        for key, bucket in buckets.items():
            self.buckets[gate.n, key] = bucket
            self._put_bucket(gate, key, None)
        # What is read of them from here on is what is stored.
        self.buckets.clear()

    def _all(self, sql: str, values: tuple[Any, ...]) -> list[Any]:
        return self.con.execute(sql, values).fetchall()

    # -- what may start --------------------------------------------------------------------------------

    def _touch(self, gate: int, key: str, left: int) -> None:
        place = (gate, key)
        touched = self._touched
        touched[place] = touched.get(place, 0) + left
        if left > 0:
            self.dropped(gate, key)

    def came(self, rows: Iterable[Place]) -> None:
        """Rows were written, of tasks of these queues and keys; there is a queue whose keys have limits."""
        for place in rows:
            if place[1] and place[0]:
                self._touched.setdefault(place, 0)

    def read_count(self, n: int) -> int:
        """See `Ledger`."""
        return self._number(_COUNT, n, LEASED)

    def read_key_count(self, place: Place) -> int:
        """See `Ledger`."""
        return self._number(_COUNT_KEY, *place)

    def _number(self, sql: str, *values: int | str) -> int:
        ((found,),) = self.con.execute(sql, values)
        assert isinstance(found, int)
        return found

    def read_bucket(self, place: Place) -> Bucket | None:
        """See `Ledger`."""
        found = self.con.execute("SELECT allowance, at FROM buckets WHERE queue = ? AND key = ?", place).fetchall()
        return Bucket(*found[0]) if found else None

    def read_turn(self, n: int, priority: int) -> float:
        """See `Ledger`."""
        rows = self.con.execute("SELECT turn FROM turns WHERE queue = ? AND priority = ?", (n, priority)).fetchall()
        return float(rows[0][0]) if rows else 0.0

    def read_share(self, n: int, priority: int, key: str) -> float:
        """See `Ledger`."""
        rows = self.con.execute(
            "SELECT turn FROM shares WHERE queue = ? AND priority = ? AND key = ?", (n, priority, key)
        ).fetchall()
        return float(rows[0][0]) if rows else 0.0

    def state_of(self, task: Task, due: bool) -> int:
        """How a task waits that comes in: a due one of a key with limits is lined up, until `settle`."""
        if not due:
            return DELAYED
        gate = self.gates.get(task.queue)
        return LINED if gate is not None and task.key and gate.limits.by_key else WAITING

    def is_full(self, gate: Gate) -> bool:
        """Whether as many due tasks wait in a queue as may."""
        return is_full(self.con, gate.n, gate.limits.length)

    # -- the end of a transaction ----------------------------------------------------------------------

    def open_due(self, now: float) -> None:
        """Open the keys that may start again by their rate, and forget the buckets that are full."""
        con = self.con
        for place in con.execute("SELECT queue, key FROM buckets WHERE opens_at <= ?", (now,)).fetchall():
            n, key = place
            con.execute("UPDATE buckets SET opens_at = NULL WHERE queue = ? AND key = ?", (n, key))
            self._touched.setdefault((n, key), 0)
        con.execute("DELETE FROM buckets WHERE full_at <= ? AND opens_at IS NULL", (now,))
        self.settle(now)

    def settle(self, now: float | None) -> None:
        """Put the first tasks of all keys that were touched where they belong."""
        touched = list(self._touched.items())
        self._touched.clear()
        left: dict[int, int] = {}
        for (n, key), fewer in touched:
            gate = self._numbers.get(n)
            if gate is None:
                continue
            left[n] = left.get(n, 0) + fewer
            if key and gate.limits.by_key and self.settle_key(gate, key, now):
                self.opened = self.opened or self.has_room(gate, now)
        for gate, fewer in ((self._numbers[n], fewer) for n, fewer in left.items() if fewer > 0):
            most = gate.limits.concurrency
            # It was full before, if so many fewer are leased now.
            was_full = most and self.count(gate) < most <= self.count(gate) + fewer
            self.opened = self.opened or bool(was_full and self.has_work(gate, now)) or self._anything_late(now)
        # What was touched by settling is settled.
        self._touched.clear()

    def _anything_late(self, now: float | None) -> bool:
        """Whether a task fell due that no claim has met yet, so that nothing is known of its limits."""
        latest = float("inf") if now is None else now
        return bool(
            self.con.execute(
                f"SELECT 1 FROM tasks WHERE state = {DELAYED} AND not_before <= ? LIMIT 1", (latest,)
            ).fetchall()
        )

    def has_work(self, gate: Gate, now: float | None) -> bool:
        """Whether a task waits in a queue that may be leased now."""
        found = (
            self.has_room(gate, now)
            and self.con.execute(f"SELECT 1 {_GATED} AND state = 0 LIMIT 1", (gate.n,)).fetchall()
        )
        return bool(found)

    def settle_key(self, gate: Gate, key: str, now: float | None) -> list[tuple[str, str]]:
        """Let the first task of each line of a key wait in front if the key may start, else none.

        Gives the lines, by action and target, of which another task is first now.
        """
        con, n = self.con, gate.n
        lines: list[tuple[str, str]] = []
        found: list[Any] = con.execute(_LINES, (n, key, "", "")).fetchall()
        if not self.may_start(gate, key, now):
            con.execute(_CLOSE, (n, key))
            if (found or con.changes()) and (opens_at := self.key_opens_at(gate, key, now)) is not None:
                self._put_bucket(gate, key, opens_at)
            return []
        while found:
            action, target = found[0]
            lined = con.execute(_FIRST, (n, LINED, key, action, target)).fetchall()[0]
            front = con.execute(_FIRST, (n, WAITING, key, action, target)).fetchall()
            if not front or lined[2:] < front[0][2:]:
                con.execute(_STATE, (WAITING, *lined[:2]))
                lines.append((action, target))
            found = con.execute(_LINES, (n, key, action, target)).fetchall()
        return lines

    def _put_bucket(self, gate: Gate, key: str, opens_at: float | None) -> None:
        bucket = self.buckets[gate.n, key]
        values = (gate.n, key, bucket.allowance, bucket.at, self.full_at(gate, key), opens_at)
        self.con.execute(_PUT_BUCKET, values)
        self.spent.pop((gate.n, key), None)

    def write(self, now: float | None) -> bool:
        """Settle and write all that changed; whether there is room that was not there before."""
        if not self.gates:
            return False
        self.settle(now)
        con = self.con
        for n, key in sorted(self.spent):
            self._put_bucket(self._numbers[n], key, None)
        if self.turns:
            con.executemany(
                "INSERT OR REPLACE INTO turns (queue, priority, turn) VALUES (?, ?, ?)",
                [(*place, turn) for place, turn in sorted(self.turns.items())],
            )
            # Who has had no more than others is as one who was never there.
            con.executemany(
                "DELETE FROM shares WHERE queue = ? AND priority = ? AND turn <= ?",
                [(*place, turn) for place, turn in sorted(self.turns.items())],
            )
        if shares := self.shares_ahead():
            con.executemany("INSERT OR REPLACE INTO shares (queue, priority, key, turn) VALUES (?, ?, ?, ?)", shares)
        return self.opened
