"""Queues as programs define them: limits that hold for all processes on the store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from treadle.core.addresses import check_id
from treadle.core.plan import UNLIMITED
from treadle.errors import DefinitionError
from treadle.store.queues import QueueChange, QueueLimits

# What a start does that would begin in a queue which is as long as it may be.
OnFull = Literal["reject", "wait", "drop_oldest"]
_PERIODS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Queue:
    """What limits the steps of a queue, in all processes together.

    Args:
        name: the queue's name, as in `@step(queue=...)`.
        concurrency: steps that may be executed at a time.
        rate: steps that may start in a period: "10/s", "100/m", "5/h", "1/d", or a number a second.
        burst: how many may start at once after a pause; 1 without it.
        key_concurrency: as `concurrency`, for the steps of each key (`@step(key=...)`).
        key_rate: as `rate`, for the steps of each key.
        key_burst: as `burst`, for the steps of each key.
        fair: keys take turns, so that one with many steps keeps no other waiting; a mapping gives keys their weights.
        length: so many steps may wait; while they do, no run is made that would begin in this queue.
        on_full: what becomes of such a start: "reject" (also without it) raises `QueueFullError`, "wait" waits for a
            place, "drop_oldest" cancels the oldest runs that only wait in this queue and of which nothing has begun.
    """

    name: str
    concurrency: int | None = None
    rate: str | float | None = None
    burst: int | None = None
    key_concurrency: int | None = None
    key_rate: str | float | None = None
    key_burst: int | None = None
    fair: bool | Mapping[str, float] = False
    length: int | None = None
    on_full: OnFull | None = None


def changes_of(queues: Sequence[Queue]) -> tuple[QueueChange, ...]:
    """Definitions of queues as they are stored.

    Raises:
        DefinitionError: a limit makes no sense, or a queue is defined twice; all mistakes at once.
    """
    mistakes: list[str] = []
    changes = tuple(QueueChange(name=queue.name, defined=limits_of(queue, mistakes)) for queue in queues)
    names = [queue.name for queue in queues]
    mistakes += [f"queue {name!r} is defined twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    if mistakes:
        raise DefinitionError("; ".join(mistakes))
    return changes


def limits_of(queue: Queue, mistakes: list[str]) -> QueueLimits:
    """The limits of a definition; what is wrong with it is added to the mistakes."""
    where = f"queue {queue.name!r}"
    try:
        check_id(queue.name, "name of a queue")
    except DefinitionError as error:
        mistakes.append(str(error))
    if queue.name == UNLIMITED:
        mistakes.append(f"{where}: sleeps and calls wait there, which take up nothing; give them a queue= of their own")

    def whole(name: str) -> int:
        value = getattr(queue, name)
        if value is None:
            return 0
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            mistakes.append(f"{where}: {name}={value!r}: a whole number from 1; leave it out for no limit")
            return 0
        return value

    def rate(name: str) -> float:
        value = getattr(queue, name)
        found = 0.0 if value is None else per_second(value)
        if found is None:
            mistakes.append(f"{where}: {name}={value!r}: like '10/s', '100/m', '5/h' or '1/d', and more than none")
        return found or 0.0

    def burst(name: str, of: str) -> int:
        if getattr(queue, name) is not None and getattr(queue, of) is None:
            mistakes.append(f"{where}: {name}= without {of}= limits nothing; give both")
        return whole(name) or 1

    weights = _weights(queue, where, mistakes)
    return QueueLimits(
        concurrency=whole("concurrency"),
        rate=rate("rate"),
        burst=burst("burst", "rate"),
        key_concurrency=whole("key_concurrency"),
        key_rate=rate("key_rate"),
        key_burst=burst("key_burst", "key_rate"),
        fair=bool(queue.fair) or isinstance(queue.fair, Mapping),
        weights={key: float(weight) for key, weight in weights.items()},
        length=whole("length"),
        on_full=_on_full(queue, where, mistakes),
    )


def _on_full(queue: Queue, where: str, mistakes: list[str]) -> str:
    policy = queue.on_full
    if policy is None:
        return "reject"
    if policy not in get_args(OnFull):
        known = ", ".join(map(repr, get_args(OnFull)))
        mistakes.append(f"{where}: on_full={policy!r}: one of {known}")
    elif queue.length is None:
        mistakes.append(f"{where}: on_full= without length= limits nothing; give both")
    return policy


def _weights(queue: Queue, where: str, mistakes: list[str]) -> dict[str, float]:
    weights = dict(queue.fair) if isinstance(queue.fair, Mapping) else {}
    for key, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]  # callers without a checker
            mistakes.append(f"{where}: fair={{{key!r}: {weight!r}}}: a weight is a number above 0")
    return weights


def per_second(rate: str | float) -> float | None:
    """A rate as it is written, in starts a second; None if it is none."""
    if isinstance(rate, bool):
        return None
    if isinstance(rate, int | float):
        return float(rate) if 0 < rate < math.inf else None
    count, slash, period = rate.partition("/")
    try:
        found = float(count) / _PERIODS[period.strip() or "s"] if slash else float(count)
    except (KeyError, ValueError):
        return None
    return found if 0 < found < math.inf else None


def rate_text(rate: float) -> str:
    """A rate as people write it."""
    for period, seconds in _PERIODS.items():
        if rate * seconds >= 1 or period == "d":
            return f"{rate * seconds:g}/{period}"
    raise AssertionError(rate)


def limits_text(limits: QueueLimits) -> str:
    """Limits in a few words; empty for none."""
    said: list[str] = []
    for prefix in ("", "key_"):
        if most := getattr(limits, f"{prefix}concurrency"):
            said.append(f"{prefix}concurrency {most}")
        if rate := getattr(limits, f"{prefix}rate"):
            said.append(f"{prefix}rate {rate_text(rate)} burst {getattr(limits, f'{prefix}burst')}")
    if limits.fair:
        said.append("fair" + "".join(f" {key}={weight:g}" for key, weight in limits.weights.items()))
    if limits.length:
        policy = f" {limits.on_full.replace('_', ' ')}" if limits.on_full != "reject" else ""
        said.append(f"length {limits.length}{policy}")
    return ", ".join(said)
