"""Child runs as they see themselves: their keys and ids, and what they tell the run that waits for them.

The other side is `calls`.
"""

from __future__ import annotations

import hashlib

import msgspec

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.addresses import MAX_ID_BYTES
from treadle.core.decision import Decision
from treadle.core.events import Arg, ArgList, ArgMap, Failure, Handle
from treadle.core.state import RunState
from treadle.core.tables import CANCELLED, SUCCEEDED

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
    ended = inp.ChildEnded(at=at, child=run.key, outcome=settled.outcome, result=result, failure=failure)
    decision.posts.append((parent, ended))


def child_failure(run: RunState, settled: ev.RunSettled) -> Failure:
    """What the parent's step fails with: the first root cause, and whose it was."""
    if settled.missing:
        text = f"run {run.run_id!r} has no result: step {settled.missing[0]!r} was skipped"
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
    detail = "" if cause.detail.startswith("@") else cause.detail
    return Failure(code="child_failed", message=text, type=cause.type, detail=detail)


def _inline(arg: Arg) -> Handle:
    """The result as one handle that means the same in every run; empty if it has to be fetched."""
    if isinstance(arg, str):
        return "" if arg.startswith("@") else arg
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
