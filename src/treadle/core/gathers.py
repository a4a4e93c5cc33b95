"""What follows in a gather or a choose: items to open, a branch to take, a question, or the end."""

from __future__ import annotations

from treadle.core import events as ev
from treadle.core.conditions import answer_of, truth
from treadle.core.decision import Decision, Limits
from treadle.core.events import Failure
from treadle.core.opened import condition_at
from treadle.core.plan import Choose, Gather
from treadle.core.progress import ChooseProgress, GatherProgress
from treadle.core.resolve import UnresolvedError, known_items, resolve
from treadle.core.state import RunState, ScopeState, question_of, settled
from treadle.core.tables import FAILED, SUCCEEDED

# Iterations that one event opens: what they make is not counted by the bound of a decision.
BATCH = 250


def proceed_gather(run: RunState, decision: Decision, scope: ScopeState, limits: Limits) -> bool:
    """Let a gather go on; True when nothing is left but its outcome."""
    spec, progress = scope.node.spec, scope.block
    assert isinstance(spec, Gather)
    assert isinstance(progress, GatherProgress)
    if progress.items is None and not _find_items(run, decision, scope, spec, progress):
        # An evaluation that did not succeed leaves nothing to wait for.
        asking = question_of(run, scope)
        return asking is not None and settled(asking) and asking.status != SUCCEEDED
    if spec.mode == "first" and progress.count == 0:
        failure = Failure(code="no_items", message="there are no items, so none of them can succeed first")
        return _fail(run, decision, scope, failure)
    if (spec.mode == "first" and progress.winner >= 0) or (spec.mode == "any_error" and scope.bad):
        if scope.unsettled:
            reason = "met" if spec.mode == "first" else "failed"
            decision.record(run, ev.ScopeStopped(at=scope.node.address, reason=reason))
        return True
    width = spec.limit or limits.dispatched
    room = min(width - progress.running, progress.count - progress.opened)
    # Opened in batches, not one by one as each ends.
    if room > 0 and (room >= min(BATCH, width // 4 or 1) or not progress.running or spec.limit):
        count = min(room, BATCH)
        event = ev.IterationsOpened(at=scope.node.address, start=progress.opened, count=count)
        decision.record(run, event)
        if count < room:
            run.look(scope)
    return progress.opened == progress.count


def _find_items(run: RunState, decision: Decision, scope: ScopeState, spec: Gather, progress: GatherProgress) -> bool:
    """Whether the items can be opened now."""
    asking = question_of(run, scope)
    if asking is not None:
        if asking.status == SUCCEEDED:
            failure = Failure(code="items", message="the evaluation of the items did not give a list")
            _fail(run, decision, scope, failure)
        return False
    at = scope.node.address
    try:
        items = resolve(run, scope.node, spec.items)
    except UnresolvedError as error:
        return _fail(run, decision, scope, Failure(code="unresolved", message=str(error)))
    if known_items(items) is not None:
        decision.record(run, ev.IterationsOpened(at=at, start=0, count=0))
        return True
    decision.record(run, ev.ScopeAsked(at=at, what="items", number=progress.asked + 1))
    return False


def proceed_choose(run: RunState, decision: Decision, scope: ScopeState) -> bool:
    """Let a choose go on; True when nothing is left but its outcome."""
    spec, progress = scope.node.spec, scope.block
    assert isinstance(spec, Choose)
    assert isinstance(progress, ChooseProgress)
    if progress.branch is not None:
        return True
    asking = question_of(run, scope)
    if asking is not None and asking.status != SUCCEEDED:
        # A condition that raised fails the block.
        return settled(asking)
    at = scope.node.address
    first = progress.tried
    for index in range(first, len(spec.branches)):
        branch = spec.branches[index]
        if asking is not None and index == first:
            found: bool | Failure | None = answer_of(asking)
        else:
            condition = condition_at(scope, index)
            found = True if condition is None else truth(run, scope.node, condition)
        if found is None:
            decision.record(run, ev.ScopeAsked(at=at, what="when", number=progress.asked + 1, index=index))
            return False
        if isinstance(found, Failure):
            text = f"branch {branch.id!r}: {found.message}"
            return _fail(run, decision, scope, Failure(code=found.code, message=text, type=found.type))
        if found:
            decision.record(run, ev.BranchChosen(at=at, branch=branch.id))
            return False
    decision.record(run, ev.BranchChosen(at=at))
    return True


def _fail(run: RunState, decision: Decision, scope: ScopeState, failure: Failure) -> bool:
    """End the block by a failure of its own."""
    decision.record(run, ev.ScopeSettled(at=scope.node.address, outcome=FAILED, failure=failure))
    return False
