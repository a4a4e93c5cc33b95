"""Queues with limits: what is stored of them, and the arithmetic of rates and turns that all stores share.

A queue needs no definition; one without limits costs nothing. Limits are facts of the store: whichever process defines
them, they hold for all. What a program defines (`defined`) gives way to what an operator sets (`override`).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType

# A bucket whose time is further ahead than this is of a clock that has been set back since: one begins with a full one.
MOST_AHEAD_SECONDS = 60.0
# Clocks tell a time of day to a quarter of a microsecond; what is missing for less than this is there.
_TOLERANCE_SECONDS = 1e-6
# The policies of a full queue by which starts are refused, and by which the oldest runs make place for new ones.
REJECT = "reject"
DROP_OLDEST = "drop_oldest"
# What begins the id of the input that cancels such a run; behind it is the key of the new one.
DROPPED = "dropped:"
# A claim for each of many thousand starts a second would cost more than it gives.
_LEAST_WAIT_SECONDS = 0.001


class QueueLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What limits a queue; 0 is without limit. Rates are in tasks a second; a burst is how many may start at once."""

    # Tasks that may be leased at a time.
    concurrency: int = 0
    rate: float = 0.0
    burst: int = 1
    # The same for the tasks of each key; a task without a key has no such limit.
    key_concurrency: int = 0
    key_rate: float = 0.0
    key_burst: int = 1
    # Keys take turns among tasks of equal priority, by their weights (1 where none is given).
    fair: bool = False
    weights: dict[str, float] = {}
    # So many tasks may wait; while they do, no run is made whose first tasks would wait there too.
    length: int = 0
    # What becomes of such a run: "reject" (it is refused), "wait" (whoever starts it waits for a place) or
    # "drop_oldest" (the oldest runs of which nothing has begun are cancelled for it).
    on_full: str = REJECT

    @property
    def by_key(self) -> bool:
        """Whether tasks of one key may have to wait while those of another may start."""
        return self.key_concurrency > 0 or self.key_rate > 0


NO_LIMITS = QueueLimits()


class Bucket(msgspec.Struct):
    """How many tasks may start (`allowance`), as of a time. Where none is stored, it is full."""

    allowance: float
    at: float


class QueueChange(msgspec.Struct, frozen=True, kw_only=True):
    """What is to change of a queue's row; the rest stays. `override=None` lets the program's limits hold again."""

    name: str
    defined: QueueLimits | UnsetType = UNSET
    override: QueueLimits | UnsetType | None = UNSET
    paused: bool | UnsetType = UNSET
    # What its rates allow from now on, in place of all that is stored of that: by key, and of the queue itself ("").
    # Those that have no rate by then are left out.
    buckets: dict[str, Bucket] | UnsetType = UNSET

    def kept(self, limits: QueueLimits) -> dict[str, Bucket] | None:
        """The buckets that are to be stored under these limits; None if they stay as they are."""
        if self.buckets is UNSET:
            return None
        return {
            key: msgspec.structs.replace(bucket)
            for key, bucket in sorted(self.buckets.items())
            if (limits.key_rate if key else limits.rate)
        }


class QueueRow(msgspec.Struct, kw_only=True):
    """A queue as stored: one that was defined, or that tasks wait or are executed in."""

    name: str
    defined: QueueLimits | None = None
    override: QueueLimits | None = None
    paused: bool = False
    # Counts the changes; 0 if nothing was ever defined.
    version: int = 0
    # Tasks that wait and are due, that wait and are not due, and that are leased.
    waiting: int = 0
    delayed: int = 0
    running: int = 0
    # Since when the oldest due task waits; 0 if none does.
    oldest_at: float = 0.0
    bucket: Bucket | None = None

    @property
    def limits(self) -> QueueLimits:
        """What is in force."""
        return self.override or self.defined or NO_LIMITS


class KeyRow(msgspec.Struct, kw_only=True):
    """A key of a queue's tasks: how many of them wait (due or not) and are leased, and what its rate allows."""

    key: str
    waiting: int = 0
    running: int = 0
    bucket: Bucket | None = None


def refill(bucket: Bucket | None, rate: float, burst: int, now: float) -> Bucket:
    """The bucket at a time. Time that runs backwards adds nothing, and takes nothing."""
    if bucket is None:
        return Bucket(float(burst), now)
    passed = now - bucket.at
    if passed > 0.0:
        allowance = bucket.allowance + passed * rate
        return Bucket(allowance if allowance < burst else float(burst), now)
    if passed < -MOST_AHEAD_SECONDS:
        return Bucket(float(burst), now)
    return bucket if bucket.allowance <= burst else Bucket(float(burst), bucket.at)


def allows(bucket: Bucket, rate: float) -> bool:
    """Whether a task may start, as of the bucket's time."""
    return bucket.allowance >= 1.0 - min(rate * _TOLERANCE_SECONDS, 0.01)


def spend(bucket: Bucket) -> None:
    """A task starts."""
    bucket.allowance = max(0.0, bucket.allowance - 1.0)


def next_start(bucket: Bucket, rate: float, now: float) -> float:
    """When a task may start, for a bucket that allows none now."""
    return max(bucket.at + (1.0 - bucket.allowance) / rate, now + _LEAST_WAIT_SECONDS)


def full_at(bucket: Bucket, rate: float, burst: int) -> float:
    """From when on the bucket need not be kept: it is full by any clock that does not make it begin anew anyway."""
    return bucket.at + (burst - bucket.allowance) / rate + MOST_AHEAD_SECONDS


def length_of_turn(limits: QueueLimits, key: str) -> float:
    """By how much a task of a key moves the key's next turn back."""
    return 1.0 / limits.weights.get(key, 1.0)


def to_drop(only_wait: Sequence[tuple[str, int]], length: int, most: int) -> list[str] | None:
    """The runs that make place for another one in a queue; None if there are not enough of them.

    `only_wait` are the keys of the runs of which nothing has begun, the oldest first, with their tasks among the
    `length` that wait there.
    """
    found: list[str] = []
    for key, count in only_wait:
        if length < most:
            break
        found.append(key)
        length -= count
    return found if length < most else None
