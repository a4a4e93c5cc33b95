"""Why a block does not go on, why something in it is not there yet, and why something in it was cancelled.

Part of `why`, which adds what is true of steps and of the whole run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from treadle.core.addresses import decode_id
from treadle.core.blocks import AnyBody, bodies_of
from treadle.core.opened import base_of
from treadle.core.plan import Branch, Gather, Phase
from treadle.core.progress import ChooseProgress, GatherProgress, PhasesProgress
from treadle.core.state import NodeState, RunState, ScopeState, StepState, pending_question, settled
from treadle.core.tables import CANCELLED, FAILED, SKIPPED
from treadle.runtime.reasons import NAMED, Reason, ended_as, listing
from treadle.runtime.scopes import SEGMENT, missing_signals, needs_of, planned_at

CODES: Final[dict[str, str]] = {
    "evaluation": "the block waits for a worker that evaluates its items, a rule or a branch's condition",
    "limit": "the gather has as many items under way as it may have",
    "content": "the block waits for what it has opened",
    "row": "its row is not reached, or was not",
    "iteration": "its iteration is not opened, or was not",
    "branch": "its branch is not chosen, or was not",
    "block": "the block that opens it does not go on yet, or has ended without it",
    "stopped": "a scope around did not need it any more, and cancelled it",
}


# -- what is not there -------------------------------------------------------------------------------------------------


class Missing(NamedTuple):
    """Something that the plan has and the run has not opened: where the way to it ends, and what is missing there."""

    block: ScopeState
    reason: Reason


def missing_reason(run: RunState, address: str) -> Missing | None:
    """Why there is no scope or step at an address yet (or never was); None if there can be none."""
    parts = address.split("/")
    for length in range(len(parts) - 1, 0, -1):
        above = run.at("/".join(parts[:length]))
        block = above if above is not None else _gather_of(run, parts[:length])
        if isinstance(block, ScopeState):
            return _in_block(run, block, address) if block.block is not None else None
    block = _gather_of(run, parts)
    return _in_block(run, block, address) if block is not None else None


def _gather_of(run: RunState, parts: list[str]) -> ScopeState | None:
    """The block that an address of an iteration, or of a later entry, begins with."""
    match = SEGMENT.fullmatch(parts[-1])
    if match is None or (match["entry"] is None and match["index"] is None):
        return None
    found = run.at("/".join([*parts[:-1], match["name"]]))
    return found if isinstance(found, ScopeState) and found.block is not None else None


def _in_block(run: RunState, block: ScopeState, address: str) -> Missing | None:
    """Why what lies at an address below a block is not there."""
    rest = address.removeprefix(base_of(block)).removeprefix(block.node.address)
    first, _, below = rest.removeprefix("/").partition("/")
    match = SEGMENT.fullmatch(first)
    if match is None:
        return None
    index = match["index"]
    body = _body_of(block, match["name"], index)
    if body is None or (below and planned_at(body.blocks, below) is None):
        return None
    reason: Reason | None
    if isinstance(body, Phase):
        reason = _of_row(block, address, body)
    elif isinstance(body, Branch):
        reason = _of_branch(block, address, body)
    else:
        reason = _of_iteration(block, address, int(index))
    return Missing(block, reason) if reason is not None else None


def _body_of(block: ScopeState, name: str, index: str | None) -> AnyBody | None:
    """The body that the first segment below a block names."""
    spec = block.node.spec
    if isinstance(spec, Gather):
        return spec.body if index is not None and not name else None
    return next((body for segment, body in bodies_of(spec) if segment == name), None) if index is None else None


def _of_row(block: ScopeState, address: str, phase: Phase) -> Reason:
    progress = block.block
    assert isinstance(progress, PhasesProgress)
    at = block.node.address
    stands = ""
    if progress.row is not None:
        row = progress.row.node
        stands = f"; it stands at {decode_id(getattr(row.spec, 'id', ''))} (step {progress.step})"
    text = f"{at} has not come to phase {phase.id!r}{stands}"
    if settled(block):
        text = f"{at} {ended_as(block.status)} and did not come to phase {phase.id!r} for this entry"
    return Reason(step=address, code="row", kind="fence", message=text, on=[at])


def _of_branch(block: ScopeState, address: str, branch: Branch) -> Reason:
    progress = block.block
    assert isinstance(progress, ChooseProgress)
    at = block.node.address
    if progress.branch:
        text = f"{at} has chosen branch {progress.branch!r}, not {branch.id!r}"
    elif settled(block):
        text = f"{at} {ended_as(block.status)} and did not choose branch {branch.id!r}"
    else:
        text = f"{at} has not chosen a branch yet"
    return Reason(step=address, code="branch", kind="fence", message=text, on=[at])


def _of_iteration(block: ScopeState, address: str, index: int) -> Reason | None:
    progress, spec = block.block, block.node.spec
    assert isinstance(progress, GatherProgress)
    assert isinstance(spec, Gather)
    at = block.node.address
    if progress.items is None:
        text = f"the items of {at} are not known yet"
        if settled(block):
            text = f"{at} {ended_as(block.status)} before its items were known"
    elif index >= progress.count:
        return None
    else:
        text = f"{at} has opened {progress.opened} of {progress.count} items, and item {index} is not one of them"
        if settled(block):
            text = f"{at} {ended_as(block.status)} before it came to item {index}"
    return Reason(step=address, code="iteration", kind="fence", message=text, on=[at])


# -- blocks ------------------------------------------------------------------------------------------------------------


def scope_reasons(run: RunState, scope: ScopeState) -> Iterator[Reason]:
    """Why a scope has no outcome yet; or the outcome that it has."""
    at = scope.node.address
    if settled(scope):
        yield _outcome(run, scope)
        return
    if scope.gated:
        open_ = [state for state in needs_of(run, scope) if not settled(state)]
        said = [f"{state.node.address} ({state.status})" for state in open_[:NAMED]]
        names = [state.node.address for state in open_]
        yield Reason(step=at, code="needs", kind="fence", message=f"needs {listing(said, len(open_))}", on=names)
    for name in missing_signals(run, scope):
        yield Reason(step=at, code="signal", kind="fence", message=f"waits for the signal {name!r}", on=[name])
    if not scope.gated:
        yield from _progress(run, scope)


def _progress(run: RunState, scope: ScopeState) -> Iterator[Reason]:
    at, progress = scope.node.address, scope.block
    if (asking := pending_question(run, scope)) is not None:
        yield _asked(scope, asking)
    if isinstance(progress, GatherProgress) and progress.opened < progress.count and progress.running:
        spec = scope.node.spec
        assert isinstance(spec, Gather)
        most = f"its limit is {spec.limit}" if spec.limit else "as many as the run may have tasks"
        text = (
            f"opened {progress.opened} of {progress.count} items; {progress.running} are under way ({most}), and the "
            "next follow as they end"
        )
        yield Reason(step=at, code="limit", kind="capacity", message=text)
    open_ = [state for state in run.content(scope) if not settled(state) and not _asks(scope, state)]
    if open_:
        names = [state.node.address for state in open_]
        word = "its content" if progress is None else "what it has opened"
        text = f"waits for {word}: {listing(names[:NAMED], len(names))}"
        yield Reason(step=at, code="content", kind="fact", message=text, on=names)
    elif isinstance(progress, PhasesProgress) and progress.question < 0 and progress.row is not None:
        row = progress.row.node.address
        if progress.row.status == FAILED:
            text = f"attempts of {row}, which failed, still run; then it is tried again"
            yield Reason(step=at, code="content", message=text, on=[row])


def _asks(scope: ScopeState, state: NodeState) -> bool:
    return scope.block is not None and scope.block.question == state.node.number


def _asked(scope: ScopeState, asking: StepState) -> Reason:
    """What a block has asked for and not been told."""
    at, step = scope.node.address, asking.node.address
    what = asking.spec.id
    progress = scope.block
    if what == "~wait" and isinstance(progress, PhasesProgress) and progress.row is not None:
        row = progress.row.node.address
        until = asking.not_before or None
        text = f"{row} failed and is tried again after a delay"
        return Reason(step=at, code="backoff", kind="capacity", message=text, until=until, on=[step])
    texts = {
        "~items": "its items are being looked at by a worker",
        "~rule": "a rule of its policy is being evaluated by a worker",
        "~when": "the condition of a branch is being evaluated by a worker",
    }
    text = f"{texts.get(what, 'it waits for a worker')}; ask why {step} is not done"
    return Reason(step=at, code="evaluation", message=text, on=[step])


def _outcome(run: RunState, scope: ScopeState) -> Reason:
    at = scope.node.address
    if scope.status == CANCELLED and (stopped := stopped_reason(run, scope)) is not None:
        return stopped
    text = f"it {ended_as(scope.status)}"
    if scope.failure is not None:
        text = f"it failed: {scope.failure.code}: {scope.failure.message}"
    elif scope.causes:
        text += f" because of {listing(list(scope.causes[:NAMED]), len(scope.causes))}"
    code = "skipped" if scope.status == SKIPPED else "settled"
    return Reason(step=at, code=code, message=text, on=list(scope.causes))


# -- what was cancelled ------------------------------------------------------------------------------------------------


def stopped_reason(run: RunState, state: NodeState) -> Reason | None:
    """Why a cancelled step or scope was, if a scope around stopped it; None if the whole run was cancelled."""
    scope = state.around
    while scope.stopping in ("", "cancelled"):
        if scope.around is scope:
            return None
        scope = scope.around
    finished = getattr(state, "finished_at", 0.0) or None
    return Reason(
        step=state.node.address,
        code="stopped",
        message=f"cancelled: {_stop_text(run, scope)}",
        at=finished,
        on=[scope.node.address],
    )


def _stop_text(run: RunState, scope: ScopeState) -> str:
    at = scope.node.address
    if scope.around is scope:
        return f"{at.removesuffix('/~detached')} has ended, and cancels its detached cells then"
    if scope.stopping == "met":
        progress = scope.block
        first = ""
        if isinstance(progress, GatherProgress) and progress.winner >= 0:
            first = f": {base_of(scope)}[{progress.winner}]"
        return f"the first success is enough for {at}{first}"
    if scope.compensates is not None and scope.stopping != "failed":
        return f"{at} was told to end ({scope.stopping})"
    causes = [run.states[number].node.address for number in scope.bad]
    what = "row" if isinstance(scope.node.spec, Phase) else "gather"
    return f"its {what} {at} failed because of {listing(causes[:NAMED], len(causes))}"
