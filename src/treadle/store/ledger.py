"""What one transaction knows of queues with limits: leases, buckets and turns, as it finds and changes them.

Stores that keep limits in tables extend it with how each fact is read, and write what `spent`, `turns` and `shares`
hold at the end of the transaction. The rules are here, once for all of them.
"""

from __future__ import annotations

import math
import sys
from typing import Final

import msgspec
from msgspec import UNSET

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

# Of tasks, where nothing limits them.
ENDLESS: Final = sys.maxsize
# A queue's number, and a key of it; the key is empty for the queue itself.
Place = tuple[int, str]

_encode = msgspec.json.Encoder().encode
decode_limits = msgspec.json.Decoder(QueueLimits).decode


class Gate(msgspec.Struct, frozen=True):
    """A queue that was defined."""

    n: int
    name: str
    limits: QueueLimits
    paused: bool


def in_force(defined: str | None, override: str | None) -> QueueLimits:
    """The limits that hold, of those that are stored as JSON."""
    text = override or defined
    return NO_LIMITS if text is None else decode_limits(text)


def stored_limits(limits: QueueLimits | None) -> str | None:
    """Limits as they are stored."""
    return None if limits is None else _encode(limits).decode()


# What a program and an operator have set, as JSON, and whether the queue is paused.
Definition = tuple[str | None, str | None, bool]


def redefined(before: Definition, change: QueueChange) -> Definition:
    """A queue's definition after a change."""
    defined, override, paused = before
    return (
        defined if change.defined is UNSET else stored_limits(change.defined),
        override if change.override is UNSET else stored_limits(change.override),
        paused if change.paused is UNSET else change.paused,
    )


class Ledger:
    """The facts of one transaction. Without a time (`now` is None) buckets are as they are stored."""

    def __init__(self) -> None:
        # Leased tasks, those included whose rows are not written yet.
        self.counts: dict[int, int] = {}
        self.key_counts: dict[Place, int] = {}
        self.buckets: dict[Place, Bucket] = {}
        self.spent: dict[Place, None] = {}
        # By queue and priority: the turn of what was leased last; and by key: its next turn.
        self.turns: dict[tuple[int, int], float] = {}
        self.shares: dict[tuple[int, int, str], float] = {}

    def clear(self) -> None:
        """Know nothing."""
        for facts in (self.counts, self.key_counts, self.buckets, self.spent, self.turns, self.shares):
            facts.clear()

    # -- how facts are read ----------------------------------------------------------------------------

    def read_count(self, n: int) -> int:
        """How many tasks of a queue are leased."""
        raise NotImplementedError

    def read_key_count(self, place: Place) -> int:
        """How many tasks of a key are leased."""
        raise NotImplementedError

    def read_bucket(self, place: Place) -> Bucket | None:
        """The bucket as it is stored."""
        raise NotImplementedError

    def read_turn(self, n: int, priority: int) -> float:
        """The turn of what was leased last; 0 if nothing was."""
        raise NotImplementedError

    def read_share(self, n: int, priority: int, key: str) -> float:
        """The next turn of a key; 0 if it is not ahead."""
        raise NotImplementedError

    # -- what may start --------------------------------------------------------------------------------

    def count(self, gate: Gate) -> int:
        """How many tasks of a queue are leased."""
        found = self.counts.get(gate.n)
        if found is None:
            found = self.counts[gate.n] = self.read_count(gate.n)
        return found

    def is_open(self, gate: Gate) -> bool:
        """Whether a queue is not paused and has room for another leased task, whatever its rate says."""
        most = gate.limits.concurrency
        return not gate.paused and (not most or self.count(gate) < most)

    def has_room(self, gate: Gate, now: float | None) -> bool:
        """Whether a queue has room for another leased task."""
        limits = gate.limits
        if gate.paused or (limits.concurrency and self.count(gate) >= limits.concurrency):
            return False
        rate = limits.rate
        return not rate or allows(self.bucket((gate.n, ""), rate, limits.burst, now), rate)

    def room(self, gate: Gate, now: float | None) -> int:
        """For how many leased tasks more a queue has room."""
        limits = gate.limits
        if not self.has_room(gate, now):
            return 0
        most = limits.concurrency - self.count(gate) if limits.concurrency else ENDLESS
        if limits.rate:
            most = min(most, math.ceil(self.bucket((gate.n, ""), limits.rate, limits.burst, now).allowance))
        return most

    def may_start(self, gate: Gate, key: str, now: float | None) -> bool:
        """Whether a key has room for another leased task."""
        limits = gate.limits
        if not key or not limits.by_key:
            return True
        place = (gate.n, key)
        if limits.key_concurrency:
            found = self.key_counts.get(place)
            if found is None:
                found = self.key_counts[place] = self.read_key_count(place)
            if found >= limits.key_concurrency:
                return False
        rate = limits.key_rate
        return not rate or allows(self.bucket(place, rate, limits.key_burst, now), rate)

    def bucket(self, place: Place, rate: float, burst: int, now: float | None) -> Bucket:
        """The bucket of a queue or of a key."""
        bucket = self.buckets.get(place)
        if bucket is None:
            bucket = self.read_bucket(place)
        if now is not None:
            bucket = refill(bucket, rate, burst, now)
        elif bucket is None:
            # Of no time yet: whoever has a time makes it a bucket of its own.
            return Bucket(float(burst), 0.0)
        self.buckets[place] = bucket
        return bucket

    def full_at(self, gate: Gate, key: str) -> float:
        """From when on a bucket that was read is full."""
        limits = gate.limits
        rate, burst = (limits.key_rate, limits.key_burst) if key else (limits.rate, limits.burst)
        return full_at(self.buckets[gate.n, key], rate, burst)

    def next_start(self, gate: Gate, now: float) -> float | None:
        """When a queue that has no room has some by its rate; None if it waits for something else."""
        limits = gate.limits
        if not self.is_open(gate) or not limits.rate:
            return None
        return next_start(self.bucket((gate.n, ""), limits.rate, limits.burst, now), limits.rate, now)

    def key_opens_at(self, gate: Gate, key: str, now: float | None) -> float | None:
        """When a key that may not start may by its rate; None if it is not its rate that forbids it."""
        rate = gate.limits.key_rate
        if not rate:
            return None
        bucket = self.bucket((gate.n, key), rate, gate.limits.key_burst, now)
        return None if allows(bucket, rate) else next_start(bucket, rate, bucket.at if now is None else now)

    # -- what changes ----------------------------------------------------------------------------------

    def started(self, gate: Gate, key: str, now: float, priority: int, turn: float) -> None:
        """A task was leased; `has_room` and `may_start` were asked before."""
        limits = gate.limits
        n = gate.n
        counts = self.counts
        if n in counts:
            counts[n] += 1
        if limits.rate:
            spend(self.bucket((n, ""), limits.rate, limits.burst, now))
            self.spent[n, ""] = None
        if key:
            place = (n, key)
            if place in self.key_counts:
                self.key_counts[place] += 1
            if limits.key_rate:
                spend(self.bucket(place, limits.key_rate, limits.key_burst, now))
                self.spent[place] = None
        if limits.fair and turn > self._turn(n, priority):
            self.turns[n, priority] = turn

    def dropped(self, n: int, key: str) -> None:
        """A lease has ended, perhaps one whose row was never written."""
        if n in self.counts:
            self.counts[n] -= 1
        if key and (n, key) in self.key_counts:
            self.key_counts[n, key] -= 1

    def _turn(self, n: int, priority: int) -> float:
        found = self.turns.get((n, priority))
        if found is None:
            found = self.turns[n, priority] = self.read_turn(n, priority)
        return found

    def turn_of(self, gate: Gate, key: str, priority: int) -> float:
        """The turn of a task that comes in, which moves its key's next one back."""
        place = (gate.n, priority, key)
        share = self.shares.get(place)
        if share is None:
            share = self.read_share(*place)
        turn = max(self._turn(gate.n, priority), share)
        self.shares[place] = turn + length_of_turn(gate.limits, key)
        return turn

    def shares_ahead(self) -> list[tuple[int, int, str, float]]:
        """The shares that need be kept, in order: who has had no more than others is as one who was never there."""
        return [(*place, turn) for place, turn in sorted(self.shares.items()) if turn > self.turns.get(place[:2], 0.0)]
