"""Chosen worlds: a small scenario, in which one fault strikes at one place after the other.

    from treadle.testing.scenarios import Scenario, everywhere

    for report in everywhere(Scenario([planned]), "crash_after", "commit"):
        assert not report.failures, explain(report)

A random seed may or may not come upon the place where a bug shows. A scenario is played once as it is, which counts its
store calls, and then once for each of them with the fault there: between any two events a crash has its turn.
The steps are those of `sim_workload` and `sim_blocks`, since the invariants know what these must give.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from treadle.authoring.builder import Planned
from treadle.authoring.conflicts import OnConflict
from treadle.core.decide import Limits
from treadle.store.queues import QueueChange
from treadle.testing.sim_faults import Profile
from treadle.testing.sim_joins import Join
from treadle.testing.sim_limits import Restrictions
from treadle.testing.sim_shape import Shape
from treadle.testing.sim_steps import registry
from treadle.testing.sim_windows import Send
from treadle.testing.sim_workload import INSTANTS, Act, RunSpec, Workload
from treadle.testing.sim_world import World
from treadle.testing.simulation import Report, play

# An odd seed: its nodes have hooks, so that those are checked too.
_SEED = 1
# When the runs start: the nodes are up by then.
STARTED_AT = 0.501


class Ask(msgspec.Struct, frozen=True):
    """What happens at an instant: a request of an operator, or a blow to a node.

    `what` is one of `sim_workload.OPERATIONS` or `INSTANTS`; `number`, from 0 to 1, picks a part of several.
    """

    seconds: float
    what: str
    node: int = 0
    # Of which run an operator asks it.
    run: int = 0
    # At numbers whose second digit is 0 or 5, operators mean a run below instead, if there is one.
    number: float = 0.51


class Scenario(msgspec.Struct):
    """What is asked of a world, and what its machines are like."""

    # One run each, started at node `starts_at`; their ids are r0, r1, ...
    plans: Sequence[Planned] = ()
    asks: Sequence[Ask] = ()
    starts_at: int = 0
    # When they start, which also tells whether they hold one singleton (`sim_shape.singleton_of`).
    at: float = STARTED_AT
    nodes: int = 2
    # Which of them execute steps: the first so many.
    workers: int = 2
    slots: int = 3
    threads: int = 2
    # How many steps are dispatched at a time, and how many events a decision has.
    dispatched: int = 20
    events: int = 50
    lease: float = 3.0
    # How long faults may strike, and how long a store call takes at most.
    seconds: float = 12.0
    pace: float = 0.005
    # When and where each is started again, and what its starts do about a run in their way.
    again: Sequence[tuple[float, int]] = ()
    conflict: OnConflict = "queue"
    # After how many seconds no attempt begins any more; None: whenever.
    deadline: float | None = None
    # Triggers; like runs, they need nodes that are up.
    sends: Sequence[Send] = ()
    # Starts that join transactions.
    joins: Sequence[Join] = ()
    # Which machines work only in the cycles that a loop of their own asks for.
    driven: Sequence[int] = ()
    # Whether steps (`sim:toil`, `sim:work`) may be executed in processes of their own.
    apart: bool = False
    # When backups are made; each is worked on with in a world of its own.
    backups: Sequence[float] = ()
    # Where the projection of records is: `hosted` by the store, or `beside` it; "" for none.
    records: str = ""
    # Limits of queues.
    queues: Sequence[QueueChange] = ()

    def play(self, strikes: Mapping[str, str] | None = None) -> Report:
        """Let it happen; `strikes` names faults by place, such as `{"commit#3": "crash_after"}`."""
        profile = Profile(pace=self.pace, seconds=self.seconds)
        shape = Shape(
            nodes=self.nodes,
            slots=[self.slots] * self.nodes,
            threads=[self.threads] * self.nodes,
            limits=Limits(dispatched=self.dispatched, events=self.events),
            lease=self.lease,
            skews=[0.0] * self.nodes,
            seconds=self.seconds,
            inline=[False] * self.nodes,
            workers=[index < self.workers for index in range(self.nodes)],
        )
        workload = Workload([self._run(index, planned) for index, planned in enumerate(self.plans)], self._acts())
        more: Any = {name: getattr(self, name) for name in ("sends", "records", "joins", "driven", "apart", "backups")}
        more["restrictions"] = Restrictions(_SEED, self.seconds, self.nodes, self.queues)
        return play(lambda: World(_SEED, profile, shape, workload, registry, (), None, strikes or {}, **more))

    def _run(self, index: int, planned: Planned) -> RunSpec:
        return RunSpec(
            name=f"run{index}",
            id=f"r{index}",
            at=self.at,
            node=self.starts_at,
            planned=planned,
            breakpoints=[],
            again=list(self.again),
            awaits=True,
            step="",
            delay=0.0,
            deadline=self.deadline,
            conflict=self.conflict,
        )

    def _acts(self) -> list[Act]:
        acts: list[Act] = []
        for number, ask in enumerate(self.asks):
            name = f"{'at' if ask.what in INSTANTS else 'op'}{number}"
            acts.append(Act(name, ask.seconds, ask.what, ask.node, ask.run, ask.number))
        return sorted(acts, key=lambda act: act.at)


def everywhere(scenario: Scenario, kind: str, *operations: str, every: int = 1) -> Iterator[Report]:
    """Play it with this fault at each call of these operations of the store (without any: of all), one at a time.

    With `every`, only at every so manieth call.
    """
    asked = scenario.play().asked
    places = [f"{name}#{number}" for name in operations or sorted(asked) for number in range(1, asked.get(name, 0) + 1)]
    for place in places[::every]:
        yield scenario.play({place: kind})
