"""Runs one workload and prints one line about it."""

from __future__ import annotations

import asyncio
import gc
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from treadle.bench import ceilings, graphs
from treadle.bench.artifact import artifact
from treadle.bench.delayed import delayed
from treadle.bench.grow import grow
from treadle.bench.limits import limits
from treadle.bench.records import records
from treadle.bench.recover import recover
from treadle.bench.unwind import unwind
from treadle.bench.workers import workers
from treadle.connect import connect
from treadle.errors import UsageError
from treadle.runtime.client import App

# Group size of the raw commits beside `many`, `fan` and `gather`: about what the engine's own groups reach.
RAW_GROUP = 500
# How often a workload and its ceiling are measured.
ROUNDS = 3
DEFAULT_SIZES = {
    "chain": 1000,
    "fan": 10_000,
    "many": 1000,
    "gather": 10_000,
    "phases": 1000,
    "recover": 1000,
    "grow": 10_000,
    "artifact": 1024,
    "records": 10_000,
    "limits": 500,
    "delayed": 10_000,
    "unwind": 10_000,
    "unwind-fan": 10_000,
    "workers": 1000,
}

# Those that measure their ceiling themselves.
_WITH_CEILING: dict[str, Callable[[str, int], Coroutine[Any, Any, tuple[float, int, list[float], float, str]]]] = {
    "artifact": artifact,
    "grow": grow,
    "limits": limits,
    "records": records,
    "workers": workers,
}


class Line(msgspec.Struct, kw_only=True):
    """What a benchmark found. `ratio` is `steps_per_s` to `ceiling_per_s`; milliseconds are per step, or as noted."""

    workload: str
    size: int
    store: str
    seconds: float
    steps_per_s: float
    p50_ms: float
    p99_ms: float
    peak_rss_mb: float
    ceiling_per_s: float
    ratio: float
    notes: str


def run_bench(workload: str, size: int | None, store: str) -> Line:
    """Measure a workload on a store.

    Raises:
        UsageError: there is no such workload, or the size makes no sense.
    """
    if workload not in DEFAULT_SIZES:
        raise UsageError(f"there is no workload {workload!r}; choose one of {', '.join(DEFAULT_SIZES)}")
    amount = DEFAULT_SIZES[workload] if size is None else size
    if amount < 1:
        raise UsageError("the size is the number of steps or runs; it must be at least 1")
    if workload == "recover":
        return _line(workload, amount, store, *recover(store, amount))
    if workload in _WITH_CEILING:
        return _line(workload, amount, store, *asyncio.run(_WITH_CEILING[workload](store, amount)))
    if workload.startswith("unwind"):
        shape = "fan" if workload == "unwind-fan" else "chain"
        return _line(workload, amount, store, *asyncio.run(unwind(store, amount, shape)))
    if workload == "phases" and not store.startswith("memory"):
        raise UsageError("phases are measured in process, without a store; leave --store away")
    measure = {"chain": _chain, "fan": _fan, "many": _many, "phases": _phases, "gather": _gather, "delayed": delayed}[
        workload
    ]
    seconds, steps, delays, notes = asyncio.run(measure(store, amount))
    ceiling, what = _ceiling(workload, amount, steps, store)
    return _line(workload, amount, store, seconds, steps, delays, ceiling, f"{notes}; ceiling: {what}")


def _line(
    workload: str, size: int, store: str, seconds: float, steps: int, delays: list[float], ceiling: float, notes: str
) -> Line:
    rate = steps / seconds
    delays = sorted(delays) or [0.0]
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    return Line(
        workload=workload,
        size=size,
        store=store,
        seconds=round(seconds, 4),
        steps_per_s=round(rate, 1),
        p50_ms=round(statistics.median(delays) * 1000, 4),
        p99_ms=round(delays[min(len(delays) - 1, int(len(delays) * 0.99))] * 1000, 4),
        peak_rss_mb=round(rss, 1),
        ceiling_per_s=round(ceiling, 1),
        ratio=round(rate / ceiling, 3) if ceiling else 0.0,
        notes=notes,
    )


Found = tuple[float, int, list[float], str]


async def _warm(app: App) -> tuple[int, int]:
    """Run a little, so that code is compiled and memory is there; returns the engine's counters after it."""
    planned = graphs.chain(5)
    runs = [await app.start(planned) for _ in range(100)]
    await asyncio.gather(*[run.result() for run in runs])
    graphs.starts.clear()
    _settle()
    return _counters(app)


def _settle() -> None:
    """Let neither the engine nor a ceiling pay for the garbage that was there before, or for looking at all of that.

    One full collection costs a seventh of a small fan, and which side it falls to is chance.
    """
    gc.collect()
    gc.freeze()


def _counters(app: App) -> tuple[int, int]:
    committer = app._node.committer  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the engine's own counters
    return committer.commits, committer.appended


def _notes(app: App, steps: int, before: tuple[int, int], unit: str) -> str:
    commits, appended = _counters(app)
    counts = f"{commits - before[0]} commits, {(appended - before[1]) / steps:.2f} appends a step"
    return f"{app.durability}; {counts}; {unit}"


def _gaps() -> list[float]:
    return [after - before for before, after in zip(graphs.starts, graphs.starts[1:], strict=False)]


async def _rounds(store: str, once: Callable[[App], Coroutine[Any, Any, tuple[int, list[float]]]], unit: str) -> Found:
    """Measure a workload so often as its ceiling, and give the middle round; `once` gives its steps, and delays.

    The first round also pays for what is kept of a plan: that it is compiled, and its hash.
    """
    rounds: list[Found] = []
    async with connect(store) as app:
        before = await _warm(app)
        for _ in range(ROUNDS):
            began = time.perf_counter()
            steps, delays = await once(app)
            seconds = time.perf_counter() - began
            rounds.append((seconds, steps, delays or _gaps(), _notes(app, steps, before, unit)))
            graphs.starts.clear()
            before = _counters(app)
            _settle()
    return sorted(rounds)[ROUNDS // 2]


async def _chain(store: str, size: int) -> Found:
    planned = graphs.chain(size)

    async def once(app: App) -> tuple[int, list[float]]:
        run = await app.start(planned)
        assert await run.result() == size
        return size, []

    return await _rounds(store, once, "ms per hop")


async def _fan(store: str, size: int) -> Found:
    planned = graphs.fan(size)

    async def once(app: App) -> tuple[int, list[float]]:
        run = await app.start(planned)
        assert await run.result() == 2 * size
        return size + 2, []

    return await _rounds(store, once, "ms between starts")


async def _many(store: str, size: int) -> Found:
    planned = graphs.chain(5)

    async def once(app: App) -> tuple[int, list[float]]:
        began = time.perf_counter()
        ends: list[float] = []

        async def one() -> None:
            run = await app.start(planned)
            assert await run.result() == 5
            ends.append(time.perf_counter() - began)

        await asyncio.gather(*[one() for _ in range(size)])
        return size * 5, ends

    return await _rounds(store, once, "ms from the common start to a run's end")


async def _gather(store: str, size: int) -> Found:
    async def once(app: App) -> tuple[int, list[float]]:
        run = await app.start(graphs.gathering, size)
        assert await run.result() == size * (size + 1) // 2
        return size + 2, []

    return await _rounds(store, once, "ms between starts")


async def _phases(_store: str, size: int) -> Found:
    await graphs.phases(100).run()
    graphs.starts.clear()
    _settle()
    block = graphs.phases(size)
    began = time.perf_counter()
    result = await block.run()
    seconds = time.perf_counter() - began
    assert len(result.rows) == size
    return seconds, size * 4, _gaps(), "in process; ms per row"


def _ceiling(workload: str, size: int, steps: int, store: str) -> tuple[float, str]:
    """Steps a second without an engine; the median of three."""
    if store.startswith("memory"):
        plain: dict[str, Callable[[], float]] = {
            "chain": lambda: ceilings.plain_chain(size),
            "fan": lambda: ceilings.plain_fan(size),
            "gather": lambda: ceilings.plain_fan(size),
            "phases": lambda: ceilings.plain_phases(size),
            "many": lambda: ceilings.plain_many(size, 5),
            "delayed": lambda: ceilings.plain_many(size, 1),
        }
        _settle()
        return steps / statistics.median(plain[workload]() for _ in range(ROUNDS)), "plain asyncio"
    group = 1 if workload == "chain" else RAW_GROUP
    amount = min(steps, 2000) if group == 1 else max(steps, 4 * RAW_GROUP)
    if store.startswith("postgres"):
        from treadle.bench import postgres_ceiling

        seconds = statistics.median(postgres_ceiling.raw_commits(store, amount, group) for _ in range(ROUNDS))
        return amount / seconds, f"raw commits of the same rows by the same driver, {group} a commit"
    if store.startswith(("nats:", "tls:")):
        seconds = statistics.median(ceilings.raw_publishes(store, amount, group) for _ in range(ROUNDS))
        return amount / seconds, f"publishes of messages of that size by the same client, {group} in flight"
    sync = "normal" if "sync=normal" in store else "full"
    folder = Path(store.partition("?")[0].removeprefix("sqlite:///")).absolute().parent
    if not folder.is_dir():
        folder = Path(tempfile.gettempdir())
    rounds = [ceilings.raw_commits(folder, amount, group, sync) for _ in range(ROUNDS)]
    rate = statistics.median(len(taken) * group / sum(taken) for taken in rounds)
    middle = statistics.median(one for taken in rounds for one in taken) * 1000
    return rate, f"raw commits of the same rows, {group} a commit ({middle:.3f} ms at the median), sync={sync}"
