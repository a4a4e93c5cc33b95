"""Runs one workload and prints one line about it."""

from __future__ import annotations

import asyncio
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from treadle.bench import ceilings, graphs
from treadle.bench.artifact import artifact
from treadle.bench.delayed import delayed
from treadle.bench.grow import grow
from treadle.bench.in_turns import Found, in_turns
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
    return _line(workload, amount, store, *asyncio.run(_beside_ceiling(workload, store, amount)))


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


# Does a workload once: how many steps it had, and the delays of its unit, none if that is the time between starts.
Once = Callable[[App], Coroutine[Any, Any, tuple[int, list[float]]]]


async def _warm(app: App) -> None:
    """Run a little, so that code is compiled and memory is there."""
    planned = graphs.chain(5)
    runs = [await app.start(planned) for _ in range(100)]
    await asyncio.gather(*[run.result() for run in runs])


def _counters(app: App) -> tuple[int, int]:
    committer = app._node.committer  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # the engine's own counters
    return committer.commits, committer.appended


def _gaps() -> list[float]:
    return [after - before for before, after in zip(graphs.starts, graphs.starts[1:], strict=False)]


async def _beside_ceiling(workload: str, store: str, size: int) -> tuple[float, int, list[float], float, str]:
    """Measure a workload and its ceiling in turns; also gives the ceiling's steps a second, before the notes."""
    rate, told = _ceiling(workload, size, store)
    if workload == "phases":
        await graphs.phases(100).run()
        found, ceiling = await in_turns(partial(_phases, size), rate)
    elif workload == "delayed":
        found = await delayed(store, size)
        ceiling = await rate(found[1])
    else:
        once, unit = {"chain": _chain, "fan": _fan, "many": _many, "gather": _gather}[workload](size)
        async with connect(store) as app:
            await _warm(app)
            found, ceiling = await in_turns(partial(_measured, app, once, unit), rate)
    seconds, steps, delays, notes = found
    return seconds, steps, delays, ceiling, f"{notes}; ceiling: {told()}"


async def _measured(app: App, once: Once, unit: str) -> Found:
    graphs.starts.clear()
    commits, appended = _counters(app)
    began = time.perf_counter()
    steps, delays = await once(app)
    seconds = time.perf_counter() - began
    commits, appended = (now - before for now, before in zip(_counters(app), (commits, appended), strict=True))
    notes = f"{app.durability}; {commits} commits, {appended / steps:.2f} appends a step; {unit}"
    return seconds, steps, delays or _gaps(), notes


def _chain(size: int) -> tuple[Once, str]:
    planned = graphs.chain(size)

    async def once(app: App) -> tuple[int, list[float]]:
        run = await app.start(planned)
        assert await run.result() == size
        return size, []

    return once, "ms per hop"


def _fan(size: int) -> tuple[Once, str]:
    planned = graphs.fan(size)

    async def once(app: App) -> tuple[int, list[float]]:
        run = await app.start(planned)
        assert await run.result() == 2 * size
        return size + 2, []

    return once, "ms between starts"


def _many(size: int) -> tuple[Once, str]:
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

    return once, "ms from the common start to a run's end"


def _gather(size: int) -> tuple[Once, str]:
    async def once(app: App) -> tuple[int, list[float]]:
        run = await app.start(graphs.gathering, size)
        assert await run.result() == size * (size + 1) // 2
        return size + 2, []

    return once, "ms between starts"


async def _phases(size: int) -> Found:
    graphs.starts.clear()
    block = graphs.phases(size)
    began = time.perf_counter()
    result = await block.run()
    seconds = time.perf_counter() - began
    assert len(result.rows) == size
    return seconds, size * 4, _gaps(), "in process; ms per row"


def _ceiling(workload: str, size: int, store: str) -> tuple[Callable[[int], Awaitable[float]], Callable[[], str]]:
    """What measures so many steps without an engine, giving steps a second; and what that was."""
    if store.startswith("memory"):
        plain: dict[str, Callable[[], Awaitable[float]]] = {
            "chain": lambda: ceilings.plain_chain(size),
            "fan": lambda: ceilings.plain_fan(size),
            "gather": lambda: ceilings.plain_fan(size),
            "phases": lambda: ceilings.plain_phases(size),
            "many": lambda: ceilings.plain_many(size, 5),
            "delayed": lambda: ceilings.plain_many(size, 1),
        }

        async def rate(steps: int) -> float:
            return steps / await plain[workload]()

        return rate, lambda: "plain asyncio"
    group = 1 if workload == "chain" else RAW_GROUP
    seconds, told = _raw(store, group)

    async def raw_rate(steps: int) -> float:
        amount = min(steps, 2000) if group == 1 else max(steps, 4 * RAW_GROUP)
        return amount / await asyncio.to_thread(seconds, amount)

    return raw_rate, told


def _raw(store: str, group: int) -> tuple[Callable[[int], float], Callable[[], str]]:
    """What writes the rows of so many steps to a store without an engine, giving seconds; and what that was."""
    if store.startswith("postgres"):
        from treadle.bench.postgres_ceiling import raw_commits

        what = f"raw commits of the same rows by the same driver, {group} a commit"
        return lambda steps: raw_commits(store, steps, group), lambda: what
    if store.startswith(("nats:", "tls:")):
        what = f"publishes of messages of that size by the same client, {group} in flight"
        return lambda steps: ceilings.raw_publishes(store, steps, group), lambda: what
    sync = "normal" if "sync=normal" in store else "full"
    folder = Path(store.partition("?")[0].removeprefix("sqlite:///")).absolute().parent
    if not folder.is_dir():
        folder = Path(tempfile.gettempdir())
    taken: list[float] = []

    def seconds(steps: int) -> float:
        commits = ceilings.raw_commits(folder, steps, group, sync)
        taken.extend(commits)
        return sum(commits) * steps / (len(commits) * group)

    def told() -> str:
        middle = statistics.median(taken) * 1000
        return f"raw commits of the same rows, {group} a commit ({middle:.3f} ms at the median), sync={sync}"

    return seconds, told
