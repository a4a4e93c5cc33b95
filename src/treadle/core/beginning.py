"""The states of a run's nodes, as they are when it begins. Part of `apply`."""

from __future__ import annotations

from heapq import heappush
from itertools import repeat

from treadle.core.graph import Node
from treadle.core.state import RunState, ScopeState, StepState, new_scope


def make_states(run: RunState) -> None:
    """Make the states of all nodes of the run's graph; the frontier has those that wait for nothing."""
    if (flat := run.graph.flat) is not None:
        root, *steps = run.graph.nodes
        scope = new_scope(root, None)
        scope.unsettled = len(steps)
        run.states += (scope, *map(StepState, steps, repeat(scope), repeat(run.now), flat.waits))
        run.frontier += flat.first
    else:
        _make_one_by_one(run)
    if run.root.unsettled == 0:
        heappush(run.frontier, 0)


def _make_one_by_one(run: RunState) -> None:
    states, now = run.states, run.now
    # Numbers only grow here, so that appending them keeps the heap.
    frontier = run.frontier
    # The scope of the nodes at hand; the root lies in itself, and groups come before their content.
    within: Node | None = None
    around: ScopeState | None = None
    for node in run.graph.nodes:
        if node.scope is not within:
            within = node.scope
            around = _scope_of(run, within)
        if node.is_step and around is not None:
            waiting = len(node.needs) + around.gated
            states.append(StepState(node, around, now, waiting))
        else:
            scope = new_scope(node, around)
            states.append(scope)
            if node.owner is not None:
                run.open_own(scope, node.owner)
                continue
            if around is None:
                continue
            scope.gated = around.gated or bool(node.needs)
            waiting = scope.waiting = scope.waiting + around.gated
        around.unsettled += 1
        if not waiting:
            frontier.append(node.number)


def _scope_of(run: RunState, node: Node | None) -> ScopeState | None:
    if node is None:
        return None
    scope = run.states[node.number]
    assert isinstance(scope, ScopeState)
    return scope
