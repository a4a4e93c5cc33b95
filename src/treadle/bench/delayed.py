"""`delayed`: runs that wait for their time, first spread over seconds, then all due at one instant."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import msgspec

from treadle.authoring.builder import PlanBuilder, Planned
from treadle.authoring.decorators import step
from treadle.connect import connect
from treadle.runtime.client import App
from treadle.runtime.clock import SystemClock

# So many fall due in a second where they are spread: 10,000 over ten seconds.
PER_SECOND = 1000
# How many are made at a time.
_BATCH = 500
# Seconds between the last run's making, at the latest, and the first one's time.
_SOON = 0.5
# Clocks tell a time of day to a quarter of a microsecond.
_SECONDS_EARLY = 1e-6
# When each step began, by the same clock that runs are due by.
_starts: list[tuple[float, float]] = []
_now = SystemClock().now


@step(name="treadle.bench:due")
async def note(due: float) -> float:
    """Note when this step began."""
    _starts.append((due, _now()))
    return due


class Turn(msgspec.Struct):
    """What became of runs that waited: how late each began, in seconds, and when the last one had ended."""

    late: list[float]
    # From the last due time to the last start, and to the end of all.
    begun_seconds: float
    seconds: float
    busy: float


def _planned(due: float) -> Planned:
    builder = PlanBuilder("bench-delayed")
    builder.output(builder.step("note", note, due))
    return builder.build()


async def _make(app: App, dues: list[float]) -> list[asyncio.Task[object]]:
    """Start runs for these times; gives who waits for their results."""
    waiting: list[asyncio.Task[object]] = []
    for first in range(0, len(dues), _BATCH):
        batch = dues[first : first + _BATCH]
        runs = await asyncio.gather(
            *[app.start(_planned(due), run_at=datetime.fromtimestamp(due, UTC)) for due in batch]
        )
        waiting += [asyncio.ensure_future(run.result()) for run in runs]
    return waiting


async def _made(app: App, count: int, spread: float) -> tuple[list[float], list[asyncio.Task[object]]]:
    """Runs that wait, made before the first one falls due: how long that takes `many` measures."""
    began = time.perf_counter()
    first = await _make(app, [_now() + _SOON] * min(count, _BATCH))
    await asyncio.gather(*first)
    seconds = (time.perf_counter() - began) * count / len(first)
    for patience in (2, 4, 8, 16):
        _starts.clear()
        base = _now() + seconds * patience + _SOON
        dues = [base + spread * number / count for number in range(count)]
        waiting = await _make(app, dues)
        if _now() + _SOON < base:
            return dues, waiting
        await asyncio.gather(*waiting)
    raise TimeoutError("this machine has too much else to do: runs were due before all of them were made")


async def _turn(app: App, count: int, spread: float) -> Turn:
    """Make runs that fall due within `spread` seconds, and see them through."""
    dues, waiting = await _made(app, count, spread)
    await asyncio.sleep(dues[0] - _now() - _SOON / 2)
    busy = time.process_time()
    await asyncio.gather(*waiting)
    ended, busy = _now(), time.process_time() - busy
    late = sorted(at - due for due, at in _starts)
    assert len(late) == count
    assert late[0] > -_SECONDS_EARLY, "a run began before its time"
    return Turn(late, max(at for _, at in _starts) - dues[-1], ended - dues[-1], busy)


async def delayed(store: str, size: int) -> tuple[float, int, list[float], str]:
    """Runs of one step: `size` of them spread, by whose lateness it is judged, then as many due at one instant."""
    spread = size / PER_SECOND
    async with connect(store) as app:
        one = await _turn(app, size, spread)
        two = await _turn(app, size, 0.0)
        busy = one.busy / (spread + _SOON / 2)
        notes = (
            f"{app.durability}; ms from the due time to the start of a run, {size} of them spread over {spread:g} s, at"
            f" most {one.late[-1] * 1000:.0f} ms, with {busy:.0%} of a processor; as many due at one instant had all"
            f" started within {two.begun_seconds:.2f} s and ended within {two.seconds:.2f} s"
        )
    return two.seconds, size, one.late, notes
