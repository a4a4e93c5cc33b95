"""Appends: a decision as the store is asked to commit it, and outcomes that a projection did not take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from treadle.core import inputs as inp
from treadle.core.deadlines import is_awaited
from treadle.core.decide import Decision
from treadle.core.events import Failure
from treadle.core.inputs import AnyInput
from treadle.core.state import StepState
from treadle.runtime.folding import step_row, undo_rows
from treadle.runtime.owned import Owned, Pending
from treadle.runtime.posts import posts_of
from treadle.store.base import Append

_TOLD: list[StepState] = []


def append_of(owned: Owned, decision: Decision, items: Sequence[Pending], commit_id: int) -> Append:
    """The append of a decision; the run's state is at its version from now on."""
    state = owned.state
    expect = state.version
    state.version = expect + 1
    owned.more = decision.more
    release = not state.tasks and not decision.more and not owned.pending
    if release and state.deadline:
        # Who has a run passes its deadline (`alarms`).
        release = not is_awaited(state)
    owned.closing = release
    append = Append(
        key=state.key,
        expect=expect,
        commit_id=commit_id,
        time=state.now,
        events=decision.events,
        status=state.status,
        tasks=decision.tasks,
        ended=decision.ended,
        release=release,
        was=decision.was,
        steps=list(map(step_row, decision.settled)) if decision.settled else (),
        given=decision.given,
        posts=posts_of(state.key, expect + 1, decision) if decision.posts else (),
        names=decision.names,
    )
    if decision.settled:
        # They are told by their rows, and while those wait a list is one more thing for the collector to look at.
        decision.settled = _TOLD
    if decision.undone:
        append.undos = undo_rows(decision.undone)
    for item in items:
        if item.cause or item.rows:
            append.consumed = [item.cause for item in items if item.cause]
            append.payloads = [row for item in items for row in item.rows]
            break
    changed = decision.revoke or decision.hold is not None or decision.unwound is not None
    if changed or decision.unsettled or decision.interrupts:
        # More than steps and tasks, as an operator's input does.
        append.unsettled = decision.unsettled
        append.interrupts = decision.interrupts
        append.hold, append.unwound = decision.hold, decision.unwound
        append.revoke = decision.revoke
    return append


def refused(values: Iterable[tuple[AnyInput, str]], unfit: dict[int, str]) -> Iterator[tuple[AnyInput, str]]:
    """Inputs, with the failure of its attempt in the place of each outcome that a projection does not take."""
    return ((_refused(value, unfit), cause) for value, cause in values)


def _refused(value: AnyInput, unfit: dict[int, str]) -> AnyInput:
    if not isinstance(value, inp.Outcome) or value.lease not in unfit or value.status != "succeeded":
        return value
    failure = Failure(code="projection_refused", message=unfit[value.lease], type="ProjectionError")
    return inp.Outcome(
        number=value.number,
        generation=value.generation,
        attempt=value.attempt,
        lease=value.lease,
        session=value.session,
        worker=value.worker,
        started_at=value.started_at,
        status="failed",
        failure=failure,
    )
