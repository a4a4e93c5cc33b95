"""Analysis of a run: the graph as it is now, added steps included, with the times that its steps took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec

from treadle.core.graph_analysis import Analysis, Schedule
from treadle.core.network import Network
from treadle.core.plan import Choose, Phases
from treadle.core.state import RunState, ScopeState, StepState
from treadle.core.tables import OUTCOMES
from treadle.runtime.replaying import replay
from treadle.store.base import Loaded


class Forecast(msgspec.Struct, frozen=True):
    """When a run will have finished, if nothing else holds it and there is room for all its steps.

    `critical_path` are the steps on which that depends, from now on. `unknown` are steps that nothing is known of:
    they are taken to need no time, so that the run will take longer.
    """

    now: float
    finish_at: float
    seconds_left: float
    critical_path: list[str]
    unknown: list[str]


class RunAnalysis(Analysis):
    """The analysis of a run: `seconds` says how long each step took, or takes so far, from ready to its outcome.

    That is attempts and the waiting between them, and waiting for a worker; not waiting for other steps, signals,
    approvals or breakpoints. An added step depends on the step that added it.
    """

    def __init__(self, run: RunState, now: float, finished_at: float | None) -> None:
        super().__init__(network_of_run(run))
        steps = [state for state in run.steps() if not state.removed]
        self._actions = {step.node.address: step.spec.action for step in steps}
        # When the run had its outcome, None while it is open; the moment of the analysis.
        self.finished_at = finished_at
        self.now = now
        self.seconds: dict[str, float] = {
            step.node.address: max((step.finished_at if step.status in OUTCOMES else now) - step.ready_at, 0.0)
            for step in steps
            if step.ready_at
        }
        # Steps without an outcome, in the order in which they came into the run.
        self.unsettled: list[str] = [step.node.address for step in steps if step.status not in OUTCOMES]

    def measured(self) -> Schedule:
        """The schedule by the measured times: the critical path is the chain that took longest."""
        return self.schedule(self.seconds)

    def forecast(self, estimates: Mapping[str, float] | None = None) -> Forecast:
        """When the run will have finished.

        Args:
            estimates: How long steps take, by address, such as the `seconds` of an earlier run. A step that is
                not named is taken to need the mean of those of its action that have settled in this run.
        """
        if self.finished_at is not None:
            return Forecast(self.now, self.finished_at, 0.0, [], [])
        expected = self._expected(estimates or {})
        left = {step: max(expected.get(step, 0.0) - self.seconds.get(step, 0.0), 0.0) for step in self.unsettled}
        plan = self.subgraph(self.unsettled).schedule(left)
        return Forecast(
            now=self.now,
            finish_at=self.now + plan.seconds,
            seconds_left=plan.seconds,
            critical_path=plan.critical_path,
            unknown=sorted(step for step in self.unsettled if step not in expected),
        )

    def _expected(self, estimates: Mapping[str, float]) -> dict[str, float]:
        """How long the unsettled steps take in all, those that something is known of."""
        settled = self.seconds.keys() - set(self.unsettled)
        samples: dict[str, list[float]] = {}
        for step in sorted(settled):
            samples.setdefault(self._actions[step], []).append(self.seconds[step])
        means = {action: sum(seconds) / len(seconds) for action, seconds in samples.items()}
        known = {step: means[self._actions[step]] for step in self.unsettled if self._actions[step] in means}
        return {**known, **{step: estimates[step] for step in self.unsettled if step in estimates}}


def analyse(loaded: Loaded, now: float) -> RunAnalysis:
    """The analysis of a run in one consistent read."""
    told = replay(loaded)
    return RunAnalysis(told.run, now, told.finished_at if told.run.status in OUTCOMES else None)


def network_of_run(run: RunState) -> Network:
    """The steps and scopes of a run, and who waits for whom. Steps that a rewind took back are left out."""
    states = [state for state in run.states if not state.removed and state is not run.root]
    names: list[str] = []
    before: list[list[int]] = []
    # Node number -> its vertices; a step has one.
    start: dict[int, int] = {}
    end: dict[int, int] = {}

    def vertex(address: str) -> int:
        names.append(address)
        before.append([])
        return len(names) - 1

    for state in states:
        start[state.node.number] = end[state.node.number] = vertex(state.node.address)
        if not state.node.is_step:
            end[state.node.number] = vertex(state.node.address)
    for state in states:
        node = state.node
        waits = before[start[node.number]]
        if node.scope is not None and node.scope.number in start:
            waits.append(start[node.scope.number])
        # A detached cell lies in its row, and nothing waits for it.
        if state.around is not state and state.around.node.number in end:
            before[end[state.around.node.number]].append(end[node.number])
        if node.owner is not None:
            # All that a step adds has settled no sooner than the step.
            before[end[node.number]].append(end[node.owner.number])
        waits += [end[number] for number, _ in node.needs if number in end]
        adder = run.adder.get(node.number)
        if adder in end:
            waits.append(end[adder])
    for earlier, later in _in_turn(states):
        before[start[later]].append(end[earlier])
    return Network(names, before, [start[state.node.number] for state in states if state.node.is_step])


def _in_turn(states: Sequence[StepState | ScopeState]) -> Iterator[tuple[int, int]]:
    """Rows, and the questions before a row or a branch, as numbers: each with the one that comes after it."""
    inside: dict[int, list[int]] = {}
    for state in states:
        scope = state.node.scope
        # Rows that were left behind included; detached cells lie in a scope of their own, which has no turn.
        if scope is not None and isinstance(scope.spec, Choose | Phases) and state.node.spec is not None:
            inside.setdefault(scope.number, []).append(state.node.number)
    for numbers in inside.values():
        yield from pairwise(numbers)
