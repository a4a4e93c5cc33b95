"""Workloads of the simulation: random plans of its steps, and what operators do to the runs."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from treadle.authoring.bound import Bound, or_default, scope, signal_value
from treadle.authoring.builder import PlanBuilder, Planned
from treadle.authoring.conflicts import OnConflict
from treadle.authoring.options import CallOptions, Poll, Retry
from treadle.authoring.sleep import sleep
from treadle.errors import DefinitionError
from treadle.testing.sim_conduct import Conduct
from treadle.testing.sim_steps import build, called, heavy_truth, make, probe, registry, toil, truth, work

# -- plans ------------------------------------------------------------------------------------------------------------

SIGNALS = ("go", "paid", "näher")
LABELS = ("one", "two")
IDS = ("a b", "x/y", "ü", "100%", "p#1", "q~2", "[r]", "plain")


class RunSpec(msgspec.Struct):
    """A run to start: when, where, under which id, and with which plan."""

    name: str
    id: str
    at: float
    node: int
    planned: Planned
    breakpoints: list[str]
    # How often and where the same id is started again.
    again: list[tuple[float, int]]
    awaits: bool
    # The address of a step to wait for.
    step: str
    # How much later its first steps start.
    delay: float
    # After how many seconds no attempt begins any more; None: whenever.
    deadline: float | None = None
    # What its starts do about a run in their way; None: by their time and machine.
    conflict: OnConflict | None = None


class Planner:
    """Makes one random plan."""

    def __init__(self, rng: random.Random, name: str) -> None:
        self.rng = rng
        self.name = name
        self.count = 0
        self.placed: list[Any] = []
        self.addresses: list[str] = []

    def fresh(self) -> None:
        """Forget all that was placed."""
        self.placed, self.addresses, self.count = [], [], 0

    def conduct(self, name: str, *, depth: int = 0) -> Conduct:
        """How a step behaves."""
        rng = self.rng
        made: Conduct = {"name": name, "sleep": rng.choice((0.0, 0.1, 1.0, 1.0, 5.0))}
        if rng.random() < 0.3:
            made["fails"] = rng.choice((0.1, 0.3, 0.7))
        if rng.random() < 0.1:
            made["size"] = rng.choice((2_000, 2_000, 2_000, 20_000, 300_000) if rng.random() < 0.5 else (2_000,))
        if rng.random() < 0.15:
            made["stubborn"] = True
        if rng.random() < 0.1:
            made["progress"] = True
        if rng.random() < 0.03:
            made["sleep"] = 120.0
        if depth < 2 and rng.random() < (0.18 if depth == 0 else 0.3):
            made["adds"] = [self.child(depth + 1, index) for index in range(rng.randint(1, 3))]
        return made

    def child(self, depth: int, index: int) -> Conduct:
        """How an added step behaves, and where it goes."""
        rng = self.rng
        into = rng.choice((None, None, "root"))
        # Ids from a small set: two adders may add the same step, or different ones of one id.
        key = rng.choice(("c1", "c2", "c3", "c/4")) if into or rng.random() < 0.1 else f"k{index}"
        shape = rng.randrange(2) if rng.random() < 0.2 else 0
        name = f"{self.name}:{key}:{shape}" if into else f"{self.name}:{key}:{depth}"
        if into:
            # One definition an id and shape: what is added into the root by two steps is one step.
            rng = random.Random(name)
            made: Conduct = {"name": name, "sleep": rng.random(), "fails": rng.choice((0.0, 0.3))}
        else:
            made = self.conduct(name, depth=depth)
        made.update(id=key, into=into, sync=rng.random() < 0.3, retry=rng.random() < 0.5)
        if self.rng.random() < 0.3:
            made["now"] = True
        if into is None and self.rng.random() < 0.3:
            made["undo"] = True
        if into is None and self.rng.random() < 0.1:
            made["dedup"] = self.rng.choice(("d1", "d2"))
        return made

    def arguments(self) -> list[Any]:
        """Refs to steps placed before, whole or in part, with and without defaults; constants; signals."""
        rng = self.rng
        values: list[Any] = []
        for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3))):
            if not self.placed:
                break
            # Near ones make chains, far ones diamonds.
            bound = self.placed[-1] if rng.random() < 0.5 else rng.choice(self.placed)
            if rng.random() < 0.3:
                bound = bound[rng.choice(("sum", "odd", "of"))]
            values.append(or_default(bound, None) if rng.random() < 0.25 else bound)
        if rng.random() < 0.3:
            values.append(rng.randrange(100))
        if rng.random() < 0.04:
            values.append(signal_value(rng.choice(SIGNALS)))
        return values

    def options(self) -> dict[str, Any]:
        """What else a step may have."""
        rng = self.rng
        options: dict[str, Any] = {}
        if rng.random() < 0.35:
            options["retry"] = Retry(
                attempts=rng.randint(1, 4),
                initial=rng.choice((0, 0.2, 1.0)),
                backoff=rng.choice(("fixed", "linear", "exponential")),
                cap=5,
                jitter=rng.choice((0.0, 0.5)),
            )
        if rng.random() < 0.15:
            options["optional"] = True
        if rng.random() < 0.15:
            options["timeout"] = rng.choice((0.5, 2.0, 8.0))
        if rng.random() < 0.05:
            options["progress_timeout"] = rng.choice((0.5, 2.0))
        if rng.random() < 0.1:
            options["delay"] = rng.choice((0.5, 3.0))
        if rng.random() < 0.3:
            options["priority"] = rng.randint(-2, 5)
        self._fences(options)
        return options

    def _fences(self, options: dict[str, Any]) -> None:
        rng = self.rng
        if rng.random() < 0.15:
            options["queue"] = rng.choice(("q1", "q2"))
        if rng.random() < 0.06:
            options["signals"] = [rng.choice(SIGNALS)]
        if rng.random() < 0.1:
            options[rng.choice(("break_before", "break_after"))] = [rng.choice(LABELS)]
        if rng.random() < 0.05:
            options["dedup"] = f"{self.name}{self.count}"
        if self.placed:
            self._edges(options)

    def _edges(self, options: dict[str, Any]) -> None:
        rng = self.rng
        if rng.random() < 0.2:
            chosen = rng.choice(self.placed)
            options["after"] = [scope(chosen) if rng.random() < 0.3 else chosen]
        if rng.random() < 0.2:
            options["after_any"] = [rng.choice(self.placed)]
        if rng.random() < 0.2:
            bound = rng.choice(self.placed)
            asked = truth if rng.random() < 0.7 else heavy_truth
            way = rng.random()
            if way < 0.4:
                options["when"] = bound["odd"]
            else:
                options["when"] = asked.bind(or_default(bound, None) if way < 0.6 else bound, rng.randrange(1000))

    def step(self, builder: PlanBuilder, address: str) -> None:
        """Place one step."""
        self.count += 1
        own = f"s{self.count}" if self.rng.random() < 0.85 else f"{self.rng.choice(IDS)}{self.count}"
        ways = (work, toil) if self.rng.random() < 0.6 else (make, build)
        function: Any = ways[0 if self.rng.random() < 0.65 else 1]
        conduct, options = self.conduct(f"{self.name}:{own}"), self.options()
        if self.rng.random() < 0.06:
            with builder:
                options["after"] = [sleep.options(id=f"{own}-sleep").bind(self.rng.choice((0.5, 10.0)))]
        if self.rng.random() < 0.12:
            self.call(builder, own, address)
            return
        if self.rng.random() < 0.12:
            function = probe
            conduct["probes"] = self.rng.choice((0, 1, 3, 8))
            options["poll"] = Poll(self.rng.choice((0.3, 2.0)), self.rng.choice((None, 3.0, 30.0)))
        bound = builder.step(own, function, conduct, self.arguments(), **options)
        self.placed.append(bound)
        node = bound.__treadle_node__
        self.addresses.append(f"{address}/{node.segment}" if address else node.segment)

    def call(self, builder: PlanBuilder, own: str, address: str) -> None:
        """Place a step that calls a workflow."""
        allowed = CallOptions.__annotations__
        options: Any = {key: part for key, part in self.options().items() if key in allowed}
        with builder:
            conduct = self.called(f"{self.name}:{own}", 0)
            if self.rng.random() < 0.15:
                bound: Any = called.detached.options(id=own, **options).bind(conduct, self.arguments())
            else:
                bound = called.options(id=own, **options).bind(conduct, self.arguments())
        node = bound.__treadle_node__
        self.addresses.append(f"{address}/{node.segment}" if address else node.segment)

    def called(self, name: str, depth: int) -> Conduct:
        """How a called workflow behaves."""
        rng = self.rng
        inner = self.called(f"{name}/inner", depth + 1) if depth < 2 and rng.random() < 0.4 else None
        return {
            "first": self.conduct(f"{name}/first", depth=2),
            "undo": rng.random() < 0.5,
            "retry": rng.random() < 0.5,
            "inner": inner,
            "detached": rng.random() < 0.2,
        }

    def fill(self, builder: PlanBuilder, count: int, address: str, depth: int) -> None:
        """Place steps and groups."""
        rng = self.rng
        while count > 0:
            if depth < 2 and count >= 2 and rng.random() < 0.12:
                inner = rng.randint(1, count)
                options: dict[str, Any] = {"optional": rng.random() < 0.2}
                if self.placed and rng.random() < 0.5:
                    options["after" if rng.random() < 0.6 else "after_any"] = rng.choice(self.placed)
                self.count += 1
                name = f"g{self.count}"
                with builder.group(name, **options) as group:
                    self.fill(builder, inner, f"{address}/{name}" if address else name, depth + 1)
                if rng.random() < 0.4:
                    # What follows waits for the whole group.
                    self.count += 1
                    builder.step(f"s{self.count}", work, self.conduct(f"{self.name}:s{self.count}"), [], after=group)
                count -= inner
            elif depth < 3 and rng.random() < 0.12 and self.block(builder, address, depth):
                count -= 1
            else:
                self.step(builder, address)
                count -= 1

    def block(self, builder: PlanBuilder, address: str, depth: int) -> bool:
        """Place a block that opens its content while the run goes on; False if these plans have none."""
        return False

    def plan(self) -> Planned:
        """A whole plan; drawn again if chance made one that contradicts itself."""
        rng = self.rng
        while True:
            self.fresh()
            builder = PlanBuilder(
                self.name,
                registry=registry,
                on_failure=rng.choice(("unwind", "unwind", "unwind", "stop", None, None)),
                undo_limit=rng.choice((None, None, 1, 3)),
            )
            try:
                self.fill(builder, rng.choice((1, 3, 5, 8, 12, 20)), "", 0)
                if self.placed and rng.random() < 0.8:
                    builder.output([_tolerant(rng, bound) for bound in self.placed[-3:]])
                return builder.build()
            except DefinitionError:
                continue


def _tolerant(rng: random.Random, bound: Bound) -> Any:
    return or_default(bound, None) if rng.random() < 0.6 else bound


# -- operators ---------------------------------------------------------------------------------------------------------


class Act(msgspec.Struct):
    """Something that an operator, or the world, does at an instant."""

    name: str
    at: float
    what: str
    node: int
    run: int
    number: float


OPERATIONS = (
    "pause", "pause", "resume", "resume", "cancel", "cancel_hard", "signal", "signal", "signal", "release", "release",
    "retry", "retry_one", "rewind", "rewind", "delete", "replace", "await", "await_step", "inspect",
    "undo", "undo", "undo_to", "cancel_unwind", "cancel_unwind", "rewind_keep", "retry_undo", "skip_undo", "park_undo",
)  # fmt: skip
# What operators also ask of runs that were called.
AT_CHILDREN = frozenset({"pause", "resume", "cancel", "cancel_hard", "retry", "inspect", "undo", "cancel_unwind"})
INSTANTS = ("crash", "crash", "condemn", "steal", "steal", "steal", "jump", "restart")


class Workload(msgspec.Struct):
    """All that is asked of the world in one simulation."""

    runs: list[RunSpec]
    acts: list[Act]


def make_workload(
    rng: random.Random, seconds: float, nodes: int, instants: int, kind: type[Planner] = Planner
) -> Workload:
    """A random workload for so many seconds of trouble."""
    runs: list[RunSpec] = []
    for index in range(rng.choice((1, 2, 3, 4, 6))):
        planner = kind(rng, f"w{index}")
        planned = planner.plan()
        again = [(rng.random() * seconds, rng.randrange(nodes)) for _ in range(rng.choice((0, 0, 1, 2)))]
        at = rng.random() * seconds * 0.5
        if again and rng.random() < 0.5:
            # At the same instant from another node.
            again[0] = (at, rng.randrange(nodes))
        runs.append(
            RunSpec(
                name=f"run{index}",
                id=f"r{index}",
                at=at,
                node=rng.randrange(nodes),
                planned=planned,
                breakpoints=[label for label in LABELS if rng.random() < 0.5],
                again=again,
                awaits=rng.random() < 0.7,
                step=rng.choice(planner.addresses) if planner.addresses else "",
                delay=rng.choice((0.0, 0.0, 0.0, 0.0, 2.0, 20.0)),
                deadline=at % 20 + 2 if int(at * 1000) % 8 == 0 else None,
            )
        )
    acts: list[Act] = []
    for index in range(rng.choice((0, 5, 15, 40))):
        what, run = rng.choice(OPERATIONS), rng.randrange(len(runs))
        # Most of them while the run is young; some when it has long ended.
        at = min(seconds, runs[run].at + rng.choice((1.0, 5.0, 15.0, seconds)) * rng.random())
        acts.append(Act(f"op{index}", at, what, rng.randrange(nodes), run, rng.random()))
        if rng.random() < 0.25:
            # Two operators at once.
            other = rng.choice((what, rng.choice(OPERATIONS)))
            # Often from one place, and about the same thing.
            node = rng.choice((acts[-1].node, rng.randrange(nodes)))
            number = rng.choice((acts[-1].number, rng.random()))
            acts.append(Act(f"op{index}b", at, other, node, run, number))
    for index in range(instants):
        what = rng.choice(INSTANTS)
        acts.append(Act(f"at{index}", rng.random() * seconds, what, rng.randrange(nodes), 0, rng.random()))
    return Workload(runs, sorted(acts, key=lambda act: act.at))
