"""Simulation of the production engine and workers under one seed.

    from treadle.testing.simulation import simulate

    simulate(seeds=range(300))          # raises SimulationFailed at the first seed that breaks an invariant

    python -m treadle.testing.simulation --seed 17
    python -m treadle.testing.simulation --seed 1 --count 1000 --jobs 2

A seed makes a world: one to four nodes (`treadle.runtime.node.Node`, the production code) with their own skewed
clocks, on one loop with virtual time and one shared store; random runs, clients and operators; and faults at store
calls, on the network and at random instants. Equal seeds give equal histories, to the last trace line.
`treadle.testing.invariants` says what is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import gc
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from treadle.authoring.registry import Registry, default_registry
from treadle.testing.invariants import TRACE
from treadle.testing.sim_backups import LATER_LIVES, Copy
from treadle.testing.sim_blocks import BlockPlanner
from treadle.testing.sim_faults import Profile, profile_of
from treadle.testing.sim_shape import Shape
from treadle.testing.sim_steps import registry as own_registry
from treadle.testing.sim_workload import Workload, make_workload
from treadle.testing.sim_world import Program, World

# Reruns that the shrinking of a failure may take.
SHRINK_RUNS = 150


class Report(msgspec.Struct):
    """What one seed gave."""

    seed: int
    digest: str
    # (invariant, what broke it); empty for a sound history.
    failures: list[tuple[str, str]]
    counts: dict[str, int]
    # Names of the faults that struck, and of what was asked of the world: what may be dropped.
    parts: list[str]
    calls: int
    # Where faults are chosen: how often each operation of the store was called while they could strike.
    asked: dict[str, int]
    runs: int
    executions: int
    virtual_seconds: float
    trace: list[str]


class SimulationFailed(AssertionError):  # noqa: N818 - named like pytest's own failures
    """A seed broke an invariant; the text says which, and how to see it again."""


def run_seed(
    seed: int, drop: Iterable[str] = (), *, program: Program | None = None, registry: Registry | None = None
) -> Report:
    """Run one seed's world without the named faults, operators and runs; with a program, only that."""
    rng = random.Random(seed)
    profile = profile_of(rng)
    shape = Shape.drawn(rng, profile)
    workload = make_workload(rng, profile.seconds, shape.nodes, profile.instants, BlockPlanner)
    if program is not None:
        workload = Workload([], [act for act in workload.acts if act.name.startswith("at")])
    return play(lambda: World(seed, profile, shape, workload, registry or own_registry, drop, program))


def play(make: Callable[[], World]) -> Report:
    """Make a world, let all of it happen, and tell what came of it."""
    # Nothing may be collected while dead nodes lie about, and a collection costs more than it frees.
    collects = gc.isenabled()
    gc.disable()
    world = make()
    workload = world.workload
    asyncio.set_event_loop(world.loop)
    try:
        world.run()
        for copy in world.backups.whole() if not world.failures else ():
            _work_on(world, copy)
        parts = [name for name in world.faults.struck if "#" in name]
        parts += [act.name for act in workload.acts if act.name not in world.drop]
        parts += [spec.name for spec in workload.runs if spec.name not in world.drop]
        return Report(
            seed=world.seed,
            digest=world.digest(),
            failures=world.failures,
            counts=dict(world.faults.counts),
            parts=parts,
            calls=world.watch.calls,
            asked=dict(world.faults.calls),
            runs=len(world.watch.journals),
            executions=len(world.watch.executions),
            virtual_seconds=world.loop.time(),
            trace=world.trace,
        )
    finally:
        asyncio.set_event_loop(None)
        world.dissolve()
        if collects:
            gc.enable()


def _work_on(world: World, copy: Copy) -> None:
    """Let a world go on from a backup, without any trouble; what it breaks, the first one breaks."""
    if world.joins.joins or world.tables.kind:
        # What lies in other databases is not in a backup.
        return
    again = World(
        world.seed,
        Profile(),
        msgspec.structs.replace(world.shape, seconds=1.0),
        Workload([], []),
        world.registry,
        # A trigger without a name counts each time that it is sent.
        [send.name for send in world.windows.sends if not send.id],
        chosen={},
        sends=world.windows.sends,
        records="",
        joins=(),
        driven=(),
        apart=world.apart.on,
        backups=(),
        restored=copy,
    )
    asyncio.set_event_loop(again.loop)
    try:
        again.loop.pass_time(copy.at)
        tokens = world.watch.tokens
        again.watch.tokens.update({token: tokens[token] for token in tokens if token <= copy.data.token})
        for host in again.hosts:
            host.lives = LATER_LIVES
        again.watch.looks_back = True
        again.watch.check_store()
        again.watch.looks_back = False
        again.run()
        world.trace += [f"{copy.name}: {line}" for line in again.trace]
        world.failures += [(name, f"in what {copy.name} has copied: {text}") for name, text in again.failures]
    finally:
        asyncio.set_event_loop(world.loop)
        again.dissolve()


def shrink(report: Report, drop: Iterable[str] = (), runs: int = SHRINK_RUNS) -> tuple[Report, list[str]]:
    """Leave out faults, operators and runs while the same invariant breaks: the smaller report, what was left out."""
    name = report.failures[0][0]
    dropped = list(drop)
    size = max(1, len(report.parts) // 2)
    while runs > 0:
        parts = [part for part in report.parts if part not in dropped]
        smaller = None
        for start in range(0, len(parts), size):
            if runs <= 0:
                break
            runs -= 1
            attempt = dropped + parts[start : start + size]
            found = run_seed(report.seed, attempt)
            if found.failures and found.failures[0][0] == name:
                smaller = found
                dropped = attempt
                break
        if smaller is not None:
            report = smaller
        elif size == 1:
            break
        else:
            size = max(1, size // 2)
    return report, dropped


def explain(report: Report, dropped: Sequence[str] = (), lines: int = 60) -> str:
    """A failed seed as text: what broke, what is left of the trouble, the end of the trace, and how to see it again."""
    text = [f"seed {report.seed} breaks: {name}\n  {what}" for name, what in report.failures[:3]]
    left = [part for part in report.parts if part not in dropped]
    text.append(f"left of it: {', '.join(left) or 'nothing'}")
    text += ["the end of the trace:", *(f"  {line[:400]}" for line in report.trace[-lines:])]
    text.append(f"to see it again: make simulate SEED={report.seed}")
    if dropped:
        text.append(
            f"  or smaller: python -m treadle.testing.simulation --seed {report.seed} --drop {','.join(dropped)}"
        )
    return "\n".join(text)


def simulate(
    program: Program | None = None,
    *,
    seeds: Iterable[int],
    registry: Registry | None = None,
    twice_every: int = 20,
    shrinks: bool = True,
) -> Counter[str]:
    """Run seeds; every so manieth twice, which must give equal traces. Returns how often each fault struck.

    `program` is your own: a coroutine function that gets an `App`, starts runs, waits for them, and asserts what must
    hold. It runs in one of the nodes, and again from its start when that node dies or the store refuses, so give your
    runs ids; it must come to its end. Steps are found in `registry` (by default all decorated ones). They must read
    no clock and draw no random numbers, and sync ones are called on the loop's thread, at one virtual instant. So are
    those that have processes of their own, which die as nodes do: that may take more attempts than `lost_limit` allows.
    Without a program the world runs a random workload of its own, and more is checked.

    Raises:
        SimulationFailed: an invariant broke; the text explains, with the smallest history found.
    """
    if program is not None and registry is None:
        registry = default_registry
    counts: Counter[str] = Counter()
    for seed in seeds:
        report = run_seed(seed, program=program, registry=registry)
        if not report.failures and twice_every and seed % twice_every == 0:
            again = run_seed(seed, program=program, registry=registry)
            if again.digest != report.digest:
                report.failures.append((TRACE, _first_difference(report.trace, again.trace)))
                raise SimulationFailed(explain(report))
        if report.failures:
            dropped: list[str] = []
            if shrinks and program is None:
                report, dropped = shrink(report)
            raise SimulationFailed(explain(report, dropped))
        counts.update(report.counts)
    return counts


def _first_difference(one: list[str], two: list[str]) -> str:
    for index, (left, right) in enumerate(zip(one, two, strict=False)):
        if left != right:
            return f"line {index}: {left!r} and {right!r}"
    return f"{len(one)} and {len(two)} lines"


def _outcome(seed: int, drop: Sequence[str], *, shrinks: bool) -> tuple[int, dict[str, int], str]:
    """One seed in a process of its own: seed, counts, and the explanation if it failed."""
    report = run_seed(seed, drop)
    if not report.failures:
        return seed, report.counts, ""
    dropped = list(drop)
    if shrinks:
        report, dropped = shrink(report, drop)
    return seed, report.counts, explain(report, dropped)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m treadle.testing.simulation", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--seed", type=int, required=True, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--drop", default="", help="names of faults, operators and runs to leave out, with commas")
    parser.add_argument("--trace", action="store_true", help="print the whole trace")
    parser.add_argument("--no-shrink", action="store_true", help="report failures as they are")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    given = parser.parse_args(arguments)
    drop = [name for name in given.drop.split(",") if name]
    write = sys.stdout.write
    if given.trace:
        report = run_seed(given.seed, drop)
        write("\n".join(report.trace) + "\n")
        write(f"{explain(report, drop, 0) if report.failures else 'sound'}\n")
        return 1 if report.failures else 0
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    failed: list[int] = []
    seeds = range(given.seed, given.seed + given.count)
    with concurrent.futures.ProcessPoolExecutor(given.jobs, max_tasks_per_child=None) as pool:
        work = [pool.submit(_outcome, seed, drop, shrinks=not given.no_shrink) for seed in seeds]
        for done in work:
            seed, counted, text = done.result()
            counts.update(counted)
            if text:
                failed.append(seed)
                write(text + "\n\n")
                if not given.keep_going:
                    pool.shutdown(wait=False, cancel_futures=True)
                    break
    seconds = time.perf_counter() - began
    write(
        f"{given.count} seeds in {seconds:.1f} s, failed: {failed or 'none'}; faults: {dict(sorted(counts.items()))}\n"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
