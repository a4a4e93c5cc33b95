"""A workload beside its ceiling, in turns, so that a change of the machine's speed falls to both."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Awaitable, Callable

# How often both are measured: at least so often, then until the workload has taken so many seconds in all.
LEAST = 3
MOST = 15
SECONDS = 1.0

# Seconds, steps, the delays of the workload's unit, notes.
Found = tuple[float, int, list[float], str]


async def in_turns(
    measure: Callable[[], Awaitable[Found]], ceiling: Callable[[int], Awaitable[float]]
) -> tuple[Found, float]:
    """Measure both in turns: the middle round of the workload, and of its ceiling's steps a second.

    `ceiling` gets how many steps the workload had. The first round also pays for what is kept of a plan: that it is
    compiled and stored, and its hash.
    """
    rounds: list[Found] = []
    rates: list[float] = []
    while len(rounds) < LEAST or (len(rounds) < MOST and sum(found[0] for found in rounds) < SECONDS):
        settle()
        rounds.append(await measure())
        settle()
        rates.append(await ceiling(rounds[-1][1]))
    return sorted(rounds)[len(rounds) // 2], statistics.median(rates)


def settle() -> None:
    """Let neither the engine nor a ceiling pay for the garbage that was there before, or for looking at all of that.

    One full collection costs a seventh of a small fan, and which side it falls to is chance.
    """
    gc.collect()
    gc.freeze()
