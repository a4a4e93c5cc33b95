"""Forgetting: closed iterations give up their memory.

What is forgotten is in the journal, so the state of a run with and without it decides alike, but for what an operator
may say of a closed iteration. `decide` is not asked that: whoever holds the run loads it whole first (`needs_all`).
Only who decides a run forgets; whoever shows it folds all of the journal.

An iteration is closed when it has succeeded and nothing below it lives. One that leaves something behind that the run
may come back to of itself is kept: a step that can be undone, has called a run, has a dedup key or has added steps,
a row that can be compensated, and one that a breakpoint holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.graph import Node
from treadle.core.moulds import is_plain
from treadle.core.plan import Step
from treadle.core.progress import GatherProgress, PhasesProgress
from treadle.core.state import NodeState, RunState, ScopeState, StepState, new_scope, settled
from treadle.core.tables import SUCCEEDED

_NOWHERE = new_scope(Node(-1, "", None, None), None)
# In the place of each node that is forgotten: settled, and of no interest to anybody.
FORGOTTEN = StepState(_NOWHERE.node, _NOWHERE, 0.0, 0, status=SUCCEEDED, generation=0)

# What may be about an iteration that is closed.
_ABOUT_ALL = frozenset({inp.Retry, inp.Rewind, inp.Release, inp.Undo, inp.UndoStep, inp.Unwind})


def needs_all(run: RunState, values: Iterable[inp.AnyInput]) -> bool:
    """Whether an input among these can only be decided by a state that has forgotten nothing."""
    return run.forgotten > 0 and not _ABOUT_ALL.isdisjoint(map(type, values))


def takes_back(event: ev.AnyEvent) -> bool:
    """Whether an event may name what is closed."""
    return isinstance(event, ev.StepsReopened | ev.UnwindingStarted)


def forget(run: RunState) -> None:
    """Forget the iterations that have closed since the last time."""
    states, index, children = run.states, run.index, run.children
    block: ScopeState | None = None
    scopes: dict[int, int] = {}
    plain = False
    count = 0
    for scope in run.closed:
        number = scope.node.number
        if scope.status != SUCCEEDED or states[number] is not scope:
            continue
        if scope.around is not block:
            block = scope.around
            assert isinstance(block.block, GatherProgress)
            scopes, plain = block.block.scopes, _is_plain(run, block)
        step = states[number + 1] if plain and number not in children else None
        if type(step) is StepState and step.around is scope and not step.tasked and not step.holding:
            # The plain case of what follows: nothing but the outcome of its step has come of it.
            states[number] = states[number + 1] = FORGOTTEN
            del index[scope.node.address], index[step.node.address]
            count += 2
        else:
            found: list[NodeState] = [scope]
            if not _collect(run, scope, found):
                continue
            _drop(run, found)
        del scopes[scope.index]
    run.forgotten += count
    run.closed = ()


def _is_plain(run: RunState, block: ScopeState) -> bool:
    """Whether the iterations that were cast for a gather are of one step each, of which nothing has to be kept."""
    mould = block.block.mould if isinstance(block.block, GatherProgress) else None
    if mould is None or not is_plain(mould) or not _leaves_nothing(mould.parts[0].spec):
        return False
    return not (run.adder or run.added_by or run.own or run.deadlines or run.keys or run.added_on)


def _leaves_nothing(spec: object) -> bool:
    """Whether a step is over with its outcome, whatever comes of its run."""
    return isinstance(spec, Step) and spec.undo is None and spec.child is None and spec.dedup is None


def _collect(run: RunState, scope: ScopeState, found: list[NodeState]) -> bool:
    """Find all that lies in a scope; False if something of it has to be kept."""
    for node in run.inside(scope.node).values():
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
        return _leaves_nothing(state.node.step) and not (state.tasked or state.holding)
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
