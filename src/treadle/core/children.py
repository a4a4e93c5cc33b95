"""Child runs as they see themselves: their keys and ids, and what they tell the run that waits for them.

The other side is `calls`.
"""

from __future__ import annotations

import hashlib

import msgspec

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.addresses import MAX_ID_BYTES
from treadle.core.compensation import rows_below
from treadle.core.decision import Decision
from treadle.core.events import Arg, ArgList, ArgMap, Failure, Handle
from treadle.core.state import NodeState, RunState, ScopeState
from treadle.core.tables import CANCELLED, FAILED, NOT_COMPENSABLE, SUCCEEDED, UNDONE
from treadle.core.undo import has_effect, undo_of
from treadle.core.undoing import how_far
from treadle.core.values import bare

# What fits into an event; `store.base.INLINE_BYTES` says the same to the runtime.
_INLINE_BYTES = 1024

_encode = msgspec.json.Encoder().encode


def child_key(parent: str, address: str, generation: int) -> str:
    """The key of the run that a step calls: of the parent's time, else of what makes it unique."""
    digest = hashlib.sha256(f"{parent}/{address}/{generation}".encode()).hexdigest()
    time = parent[:13] if len(parent) == 36 else "00000000-0000"
    return f"{time}-7{digest[:3]}-8{digest[3:6]}-{digest[6:18]}"


def child_id(parent_id: str, address: str, generation: int) -> str:
    """The id of the run that a step calls; empty if it would be too long."""
    text = f"{parent_id}/{address}" if generation == 1 else f"{parent_id}/{address}#{generation}"
    return text if len(text.encode()) <= MAX_ID_BYTES else ""


def tell_parent(run: RunState, decision: Decision, settled: ev.RunSettled) -> None:
    """Put the outcome into the inbox of the run that waits for it."""
    parent, _, at = run.parent.partition("/")
    failure: Failure | None = None
    result = ""
    if settled.outcome == SUCCEEDED and not settled.missing:
        result = _inline(settled.result)
    elif settled.outcome == CANCELLED:
        failure = Failure(code="child_cancelled", message=f"run {run.run_id!r} was cancelled")
    else:
        failure = child_failure(run, settled)
    ended = inp.ChildEnded(
        at=at, child=run.key, outcome=settled.outcome, result=result, failure=failure, undoes=run.undoes
    )
    decision.posts += ((parent, ended),)


def child_failure(run: RunState, settled: ev.RunSettled) -> Failure:
    """What the parent's step fails with: the first root cause, and whose it was."""
    if settled.missing:
        state = run.at(settled.missing[0])
        kind = "block" if isinstance(state, ScopeState) else "step"
        became = "failed" if state is not None and state.status == FAILED else "was skipped"
        text = f"run {run.run_id!r} has no result: {kind} {settled.missing[0]!r} {became}"
        return Failure(code="child_no_result", message=text)
    step = run.step_at(settled.failures[0]) if settled.failures else None
    if step is None or step.failure is None:
        return Failure(code="child_failed", message=f"run {run.run_id!r} failed")
    cause = step.failure
    if cause.code.startswith("child_"):
        # What ended is further down, and says so.
        return msgspec.structs.replace(cause, code="child_failed")
    text = f"run {run.run_id!r} failed: step {step.node.address!r}: {cause.code}: {cause.message}"
    # A payload row is the child's own; a blob, or what the handle holds itself, anyone can read.
    detail = "" if bare(cause.detail).startswith("@") else cause.detail
    return Failure(code="child_failed", message=text, type=cause.type, detail=detail)


def answer_caller(run: RunState, decision: Decision, number: int) -> None:
    """Tell the run that has called this one, and asked it to undo what it did, how much of that is undone."""
    parent, _, at = run.parent.partition("/")
    unwound = how_far(run)
    failure = _what_stands(run) if unwound == "partly" else None
    told = inp.ChildUnwound(at=at, child=run.key, number=number, unwound=unwound, failure=failure)
    decision.posts += ((parent, told),)


def _what_stands(run: RunState) -> Failure:
    """Why something of what the run did stands: the first such undo, or that there is no way back."""
    known: list[NodeState] = [*(step for step in run.steps() if has_effect(step)), *rows_below(run, run.root)]
    left = [state for state in known if undo_of(state).status != UNDONE]
    other = [state for state in left if undo_of(state).status != NOT_COMPENSABLE]
    first = (other or left)[0]
    undo = undo_of(first)
    said = f" ({undo.failure.message})" if undo.failure is not None else ""
    text = f"run {run.run_id!r} is unwound in part: the undo of {first.node.address!r} is {undo.status}{said}"
    return Failure(code="child_partly_unwound" if other else NOT_COMPENSABLE, message=text)


def _inline(arg: Arg) -> Handle:
    """The result as one handle that means the same in every run; empty if it has to be fetched."""
    if isinstance(arg, str):
        return "" if bare(arg).startswith("@") else arg
    text = _text(arg)
    return f"={text}" if text is not None and len(text) <= _INLINE_BYTES else ""


def _text(arg: Arg) -> str | None:
    """The JSON text of an argument whose values are all at hand, unless a part has to be picked out of one."""
    if isinstance(arg, str):
        return arg[1:] if arg.startswith("=") else None
    if isinstance(arg, ArgList):
        items = [_text(item) for item in arg.items]
        return None if None in items else "[" + ",".join(text for text in items if text) + "]"
    if isinstance(arg, ArgMap):
        fields = [(_encode(name).decode(), _text(item)) for name, item in arg.items.items()]
        return None if any(text is None for _, text in fields) else "{" + ",".join(f"{n}:{t}" for n, t in fields) + "}"
    return None
