"""The limits of queues, as one connection sees and keeps them inside its transactions.

Tasks of a queue that was ever defined carry its number (`tasks.gate`); all others carry 0, and nothing here touches
them. What is counted are leased rows, by the index that holds such tasks only. So a lease that ends makes room, however
it ends.

Where keys have limits, one task of each key, action and target is WAITING, and the others are LINED behind it; of a key
that may not start, all are. A claim therefore meets at most one task a key, and none of those that have to wait. A
temporary trigger notes the keys of which a row came, went or changed its state; `settle` then puts their first tasks
where they belong, in the same transaction. The trigger is made when the connection first hears of a queue with limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from treadle.core.commands import Task
from treadle.store.queues import (
    NO_LIMITS,
    Bucket,
    QueueChange,
    QueueLimits,
    allows,
    full_at,
    length_of_turn,
    next_start,
    refill,
    spend,
)
from treadle.store.sqlite.connection import Database
from treadle.store.sqlite.schema import DELAYED, LEASED, LINED, WAITING
from treadle.store.sqlite.tokens import count_up

_TRIGGERS = """
CREATE TEMP TRIGGER IF NOT EXISTS gated_came AFTER INSERT ON main.tasks WHEN new.gate != 0
    BEGIN SELECT touch(new.gate, new.key, 0, new.state); END;
CREATE TEMP TRIGGER IF NOT EXISTS gated_moved AFTER UPDATE OF state ON main.tasks WHEN new.gate != 0
    BEGIN SELECT touch(new.gate, new.key, old.state, new.state); END;
CREATE TEMP TRIGGER IF NOT EXISTS gated_went AFTER DELETE ON main.tasks WHEN old.gate != 0
    BEGIN SELECT touch(old.gate, old.key, old.state, 0); END;
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

_encode = msgspec.json.Encoder().encode
decode_limits = msgspec.json.Decoder(QueueLimits).decode

Place = tuple[int, str]


class Gate(msgspec.Struct, frozen=True):
    """A queue that was defined."""

    n: int
    name: str
    limits: QueueLimits
    paused: bool


class Limits:
    """The limits of all queues, for the transaction that is open."""

    def __init__(self, con: Database) -> None:
        self.con = con
        # Of the definitions, as the sessions' rows tell it.
        self.version = 0
        self.gates: dict[str, Gate] = {}
        self.keyed = ""
        self._numbers: dict[int, Gate] = {}
        # Keys of which a row came, went or changed, with how many leases fewer there are.
        self._touched: dict[Place, int] = {}
        # Leased tasks, those included whose rows are not written yet.
        self._counts: dict[int, int] = {}
        self._key_counts: dict[Place, int] = {}
        self._buckets: dict[Place, Bucket] = {}
        self._spent: dict[Place, None] = {}
        self._turns: dict[tuple[int, int], float] = {}
        self._shares: dict[tuple[int, int, str], float] = {}
        self.opened = False

    # -- definitions -----------------------------------------------------------------------------------

    def begin(self, version: int) -> None:
        """A transaction begins, and sees this version of the definitions."""
        if version != self.version:
            self._read(version)
        if self.gates:
            for cache in (self._touched, self._counts, self._key_counts, self._buckets, self._spent, self._turns):
                cache.clear()
            self._shares.clear()
            self.opened = False

    def forget(self) -> None:
        """The transaction is rolled back: what it has read or made may not be so."""
        self.version = -1

    def _read(self, version: int) -> None:
        rows = self.con.execute("SELECT n, name, defined, override, paused FROM queues").fetchall()
        gates = [
            Gate(n, name, _in_force(defined, override), bool(paused)) for n, name, defined, override, paused in rows
        ]
        self.gates = {gate.name: gate for gate in gates}
        self._numbers = {gate.n: gate for gate in gates}
        self.keyed = ", ".join(str(gate.n) for gate in gates if gate.limits.by_key)
        if gates:
            self.con.create_scalar_function("touch", self._touch, 4)
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
            before = found[0] if found else (None, None, 0)
            after = (
                before[0] if change.defined is msgspec.UNSET else _encode(change.defined).decode(),
                before[1] if change.override is msgspec.UNSET else _text(change.override),
                before[2] if change.paused is msgspec.UNSET else int(change.paused),
            )
            answers.append(before != after)
            if before != after:
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
                    self._begin_anew(self.gates[change.name])
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

    # -- what may start --------------------------------------------------------------------------------

    def _touch(self, gate: int, key: str, was: int, now: int) -> None:
        place = (gate, key)
        left = (was == LEASED) - (now == LEASED)
        self._touched[place] = self._touched.get(place, 0) + left
        if left > 0:
            self.dropped(gate, key)

    def dropped(self, gate: int, key: str) -> None:
        """A lease has ended, perhaps one whose row was never written."""
        if gate in self._counts:
            self._counts[gate] -= 1
        if (gate, key) in self._key_counts:
            self._key_counts[gate, key] -= 1

    def count(self, gate: Gate) -> int:
        """How many tasks of a queue are leased."""
        found = self._counts.get(gate.n)
        if found is None:
            ((found,),) = self.con.execute(_COUNT, (gate.n, LEASED))
            assert isinstance(found, int)
            self._counts[gate.n] = found
        return found

    def is_open(self, gate: Gate) -> bool:
        """Whether a queue is not paused and has room for another leased task, whatever its rate says."""
        most = gate.limits.concurrency
        return not gate.paused and (not most or self.count(gate) < most)

    def has_room(self, gate: Gate, now: float | None) -> bool:
        """Whether a queue has room for another leased task. Without a time its bucket is not refilled."""
        if not self.is_open(gate):
            return False
        limits = gate.limits
        return not limits.rate or allows(self.bucket((gate.n, ""), limits.rate, limits.burst, now), limits.rate)

    def may_start(self, gate: Gate, key: str, now: float | None) -> bool:
        """Whether a key has room for another leased task."""
        limits = gate.limits
        if not key or not limits.by_key:
            return True
        place = (gate.n, key)
        if limits.key_concurrency:
            found = self._key_counts.get(place)
            if found is None:
                ((found,),) = self.con.execute(_COUNT_KEY, place)
                assert isinstance(found, int)
                self._key_counts[place] = found
            if found >= limits.key_concurrency:
                return False
        rate = limits.key_rate
        return not rate or allows(self.bucket(place, rate, limits.key_burst, now), rate)

    def bucket(self, place: Place, rate: float, burst: int, now: float | None) -> Bucket:
        """The bucket of a queue (the key is empty) or of a key."""
        bucket = self._buckets.get(place)
        if bucket is None:
            found = self.con.execute("SELECT allowance, at FROM buckets WHERE queue = ? AND key = ?", place).fetchall()
            bucket = Bucket(*found[0]) if found else None
        if now is not None:
            bucket = refill(bucket, rate, burst, now)
        elif bucket is None:
            # Of no time yet: whoever has a time makes it a bucket of its own.
            return Bucket(float(burst), 0.0)
        self._buckets[place] = bucket
        return bucket

    def started(self, gate: Gate, key: str, now: float, priority: int, turn: float) -> None:
        """A task was leased; `has_room` and `may_start` were asked before."""
        limits = gate.limits
        n = gate.n
        if n in self._counts:
            self._counts[n] += 1
        if (n, key) in self._key_counts:
            self._key_counts[n, key] += 1
        if limits.rate:
            spend(self.bucket((n, ""), limits.rate, limits.burst, now))
            self._spent[n, ""] = None
        if limits.key_rate and key:
            spend(self.bucket((n, key), limits.key_rate, limits.key_burst, now))
            self._spent[n, key] = None
        if limits.fair and turn > self._turn(n, priority):
            self._turns[n, priority] = turn

    def next_start(self, gate: Gate, now: float) -> float | None:
        """When a queue that has no room has some by its rate; None if it waits for something else."""
        limits = gate.limits
        if not self.is_open(gate) or not limits.rate:
            return None
        return next_start(self.bucket((gate.n, ""), limits.rate, limits.burst, now), limits.rate, now)

    def _turn(self, n: int, priority: int) -> float:
        found = self._turns.get((n, priority))
        if found is None:
            rows = self.con.execute("SELECT turn FROM turns WHERE queue = ? AND priority = ?", (n, priority)).fetchall()
            found = self._turns[n, priority] = rows[0][0] if rows else 0.0
        return found

    def turn_of(self, gate: Gate, key: str, priority: int) -> float:
        """The turn of a task that comes in, which moves its key's next one back."""
        place = (gate.n, priority, key)
        share = self._shares.get(place)
        if share is None:
            rows = self.con.execute(
                "SELECT turn FROM shares WHERE queue = ? AND priority = ? AND key = ?", place
            ).fetchall()
            share = rows[0][0] if rows else 0.0
        turn = max(self._turn(gate.n, priority), share)
        self._shares[place] = turn + length_of_turn(gate.limits, key)
        return turn

    def state_of(self, task: Task, due: bool) -> int:
        """How a task waits that comes in: a due one of a key with limits is lined up, until `settle`."""
        if not due:
            return DELAYED
        gate = self.gates.get(task.queue)
        return LINED if gate is not None and task.key and gate.limits.by_key else WAITING

    def is_full(self, gate: Gate) -> bool:
        """Whether as many due tasks wait in a queue as may."""
        length = gate.limits.length
        if not length:
            return False
        ((count,),) = self.con.execute(
            f"SELECT count(*) FROM (SELECT 1 {_GATED} AND state IN (-1, 0, 2) LIMIT ?)", (gate.n, length)
        )
        assert isinstance(count, int)
        return count >= length

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
            if found or con.changes():
                self._await_rate(gate, key, now)
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

    def _await_rate(self, gate: Gate, key: str, now: float | None) -> None:
        """Note when a key may start again, if it is its rate that forbids it."""
        rate = gate.limits.key_rate
        if not rate:
            return
        bucket = self.bucket((gate.n, key), rate, gate.limits.key_burst, now)
        if not allows(bucket, rate):
            self._put_bucket(gate, key, next_start(bucket, rate, bucket.at if now is None else now))

    def _put_bucket(self, gate: Gate, key: str, opens_at: float | None) -> None:
        limits = gate.limits
        rate, burst = (limits.key_rate, limits.key_burst) if key else (limits.rate, limits.burst)
        bucket = self._buckets[gate.n, key]
        full = full_at(bucket, rate, burst)
        self.con.execute(_PUT_BUCKET, (gate.n, key, bucket.allowance, bucket.at, full, opens_at))
        self._spent.pop((gate.n, key), None)

    def write(self, now: float | None) -> bool:
        """Settle and write all that changed; whether there is room that was not there before."""
        if not self.gates:
            return False
        self.settle(now)
        con = self.con
        for n, key in sorted(self._spent):
            self._put_bucket(self._numbers[n], key, None)
        if self._turns:
            con.executemany(
                "INSERT OR REPLACE INTO turns (queue, priority, turn) VALUES (?, ?, ?)",
                [(*place, turn) for place, turn in sorted(self._turns.items())],
            )
            # Who has had no more than others is as one who was never there.
            con.executemany(
                "DELETE FROM shares WHERE queue = ? AND priority = ? AND turn <= ?",
                [(*place, turn) for place, turn in sorted(self._turns.items())],
            )
        shares = [(*place, turn) for place, turn in sorted(self._shares.items()) if turn > self._turns[place[:2]]]
        if shares:
            con.executemany("INSERT OR REPLACE INTO shares (queue, priority, key, turn) VALUES (?, ?, ?, ?)", shares)
        return self.opened


def _in_force(defined: str | None, override: str | None) -> QueueLimits:
    text = override or defined
    return NO_LIMITS if text is None else decode_limits(text)


def _text(limits: QueueLimits | None) -> str | None:
    return None if limits is None else _encode(limits).decode()
