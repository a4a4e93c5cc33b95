"""Forgetting: closed iterations give up their memory.

What is forgotten is in the journal, so the state of a run with and without it decides alike, but for what an operator
may say of a closed iteration. `decide` is not asked that: whoever holds the run loads it whole first (`needs_all`).
Only who decides a run forgets; whoever shows it folds all of the journal.

An iteration is closed when it has succeeded and nothing below it lives. One that leaves something behind that the run
may come back to of itself is kept: a step that can be undone, has called a run, has a dedup key or has added steps,
a row that can be compensated, and one that a breakpoint holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.graph import Node
from treadle.core.progress import PhasesProgress
from treadle.core.state import NodeState, RunState, ScopeState, StepState, settled
from treadle.core.tables import SUCCEEDED

_NOWHERE = ScopeState(Node(-1, "", None, None), None)
# In the place of each node that is forgotten: settled, and of no interest to anybody.
FORGOTTEN = StepState(_NOWHERE.node, _NOWHERE, 0.0, 0, status=SUCCEEDED, generation=0)

# What may be about an iteration that is closed.
_ABOUT_ALL = (inp.Retry, inp.Rewind, inp.Release, inp.Undo, inp.UndoStep, inp.Unwind)


def needs_all(run: RunState, value: Any) -> bool:
    """Whether an input can only be decided by a state that has forgotten nothing."""
    return run.forgotten > 0 and isinstance(value, _ABOUT_ALL)


def takes_back(event: ev.AnyEvent) -> bool:
    """Whether an event may name what is closed."""
    return isinstance(event, ev.StepsReopened | ev.UnwindingStarted)


def forget(run: RunState) -> None:
    """Forget the iterations that have closed since the last time."""
    for scope in run.closed:
        found: list[NodeState] = [scope]
        if scope.status == SUCCEEDED and run.states[scope.node.number] is scope and _collect(run, scope, found):
            _drop(run, found)
            run.children[scope.around.node.number].pop(f"[{scope.index}]", None)
    run.closed = ()


def _collect(run: RunState, scope: ScopeState, found: list[NodeState]) -> bool:
    """Find all that lies in a scope; False if something of it has to be kept."""
    inside = run.children.get(scope.node.number)
    if inside is None:
        return True
    for node in inside.values():
        state = run.states[node.number]
        if state is FORGOTTEN:
            continue
        if not settled(state) or not _is_over(run, state):
            return False
        found.append(state)
        if isinstance(state, ScopeState) and not _collect(run, state, found):
            return False
    return True


def _is_over(run: RunState, state: NodeState) -> bool:
    """Whether nothing comes of a settled node any more."""
    number = state.node.number
    if (run.adder or run.own) and (number in run.adder or number in run.added_by or number in run.own):
        return False
    if isinstance(state, StepState):
        spec = state.node.step
        kept = spec.undo is not None or spec.child is not None or spec.dedup is not None
        return not (kept or state.tasked or state.holding)
    detached = isinstance(state.block, PhasesProgress) and state.block.detached is not None
    return not (detached or state.holding or state.unwinding is not None or state.undo is not None)


def _drop(run: RunState, found: Sequence[NodeState]) -> None:
    states, index, children = run.states, run.index, run.children
    for state in found:
        node = state.node
        states[node.number] = FORGOTTEN
        index.pop(node.address, None)
        if isinstance(state, ScopeState):
            children.pop(node.number, None)
        else:
            for facts in (run.deadlines, run.keys, run.added_on):
                if facts:
                    facts.pop(node.number, None)
    run.forgotten += len(found)
