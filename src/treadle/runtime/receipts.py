"""Receipts: a run's plan with what happened, folded from one consistent read of its journal.

The state and the snapshot say what the steps are now; the events say which attempts led there. Everything else that
happened is kept as a `Fact`, in the section of its kind; a kind that has no section of its own is kept too, so that a
receipt never leaves out what its journal holds.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from treadle.authoring import codec
from treadle.authoring.documents import action_names, document_of, exact, value_of
from treadle.core import documents as doc
from treadle.core import events as ev
from treadle.core.canonical import canonical, digest
from treadle.core.documents import Document, Provenance, moment, moment_or_none
from treadle.core.events import AnyEvent, Arg, Handle, kind_of
from treadle.core.opened import compensation_address
from treadle.core.plan import Phase, decode_plan
from treadle.core.state import RunState
from treadle.core.tables import NONE, SUCCEEDED, UNDONE
from treadle.core.values import key_id_of
from treadle.errors import MissingPathError
from treadle.runtime.coding import hidden_constant
from treadle.runtime.documents import provenance
from treadle.runtime.inspection import Snapshot, StepView, snapshot_of
from treadle.runtime.payloads import assemble, handles_of
from treadle.runtime.replaying import Replay, replay
from treadle.store.base import INLINE_BYTES, Loaded

if TYPE_CHECKING:
    from treadle.runtime.node import Node

# What the outcomes of steps and their attempts tell already, or what only moves work along.
_TOLD: Final = frozenset(
    {
        "run_started",
        "run_settled",
        "steps_added",
        "steps_ready",
        "step_dispatched",
        "step_succeeded",
        "step_failed",
        "step_skipped",
        "step_cancelled",
        "attempt_failed",
        "attempt_lost",
        "attempt_ended",
        "evaluation_asked",
        "key_evaluated",
        "scope_asked",
        "input_accepted",
        "prepare_dispatched",
        "undo_dispatched",
        "undo_confirmed",
        "child_asked",
    }
)
_ENTRIES: Final = frozenset(
    {"scope_opened", "scope_settled", "scope_stopped", "row_opened", "iterations_opened", "iterations_settled"}
)
_DECISIONS: Final = frozenset({"condition_evaluated", "decision_made", "branch_chosen"})
_UNDO: Final = frozenset({"step_prepared", "step_undone", "unwound", "compensation_opened", "phase_compensated"})
_UNDO_PREFIXES: Final = ("undo_", "unwinding_")
# What an event makes of a step's undo status.
_UNDO_STATUS: Final[dict[str, str]] = {
    "undo_dispatched": "running",
    "undo_reopened": "pending",
    "step_undone": "undone",
    "undo_not_needed": "none",
    "undo_failed": "failed",
    "undo_not_compensable": "not_compensable",
    "undo_skipped": "skipped",
    "undo_parked": "parked",
}
# Members of events that are handles; those that say nothing to whoever reads a receipt.
_HANDLES: Final = ("state", "value", "result")
_LEFT_OUT: Final = frozenset({"kind", "cause", "token", "detail"})


async def receipt_of_run(node: Node, loaded: Loaded, context: Mapping[str, str] | None = None) -> Document:
    """The receipt of a loaded run, with its constants, its result and the provenance of here and now."""
    told = replay(loaded)
    needed: list[Handle] = list(loaded.head.constants)
    handles_of(told.run.result, needed)
    # A receipt leaves the program: what a payload codec hides stays hidden, keys or not.
    hidden = {handle: hidden_constant(key_id) for handle in needed if (key_id := key_id_of(handle))}
    texts = hidden | await node.payloads.load(loaded.head.key, [handle for handle in needed if handle not in hidden])
    names = [*action_names(decode_plan(loaded.plan)), *(step.spec.action for step in told.run.steps())]
    written = provenance(node.environment.clock, dict.fromkeys(names), node.registry, context)
    snapshot = snapshot_of(loaded, told, await node.read(node.reader.sessions), node.environment.clock.now())
    result: doc.Value | None = None
    if told.run.status == SUCCEEDED and not told.run.missing:
        # A result that cannot be put together is left out; what happened stays told.
        with contextlib.suppress(MissingPathError):
            result = _whole(told.run.result, {handle: codec.plain(text) for handle, text in texts.items()})
    return receipt_of(loaded, told, snapshot, [texts[handle] for handle in loaded.head.constants], written, result)


def receipt_of(
    loaded: Loaded,
    told: Replay,
    snapshot: Snapshot,
    constants: Sequence[str],
    written: Provenance,
    result: doc.Value | None = None,
) -> Document:
    """The sealed receipt of a run; `constants` are the JSON texts behind the head's handles."""
    head = loaded.head
    facts = [_fact(time, event) for time, event in told.events if kind_of(event) not in _TOLD]
    undo = _undo_statuses(told.events)
    steps = _outcomes(told, snapshot, undo)
    record = doc.RunRecord(
        id=head.id,
        key=head.key,
        status=snapshot.status,
        unwound=_unwound(told.events),
        plan=head.plan,
        version=loaded.version,
        created_at=moment(head.created_at),
        finished_at=moment_or_none(snapshot.finished_at),
        parent=head.parent,
        labels=head.labels,
        breakpoints=list(head.breakpoints),
        dry_run=head.dry_run,
        result=result,
        missing=snapshot.missing,
        failures=[failure.address for failure in snapshot.failures if not failure.optional],
        steps=steps,
        added=[_added(event) for _, event in told.events if isinstance(event, ev.StepsAdded)],
        entries=[fact for fact in facts if fact.kind in _ENTRIES],
        decisions=[fact for fact in facts if fact.kind in _DECISIONS],
        undo=[fact for fact in facts if _is_undo(fact.kind)],
        compensations=_compensations(told),
        facts=[fact for fact in facts if not (fact.kind in _ENTRIES | _DECISIONS or _is_undo(fact.kind))],
        summary=summary_of(steps),
    )
    return document_of(decode_plan(loaded.plan), constants, written, run=record)


# -- steps -------------------------------------------------------------------------------------------------------------


def _outcomes(told: Replay, snapshot: Snapshot, undo: Mapping[str, str]) -> list[doc.Outcome]:
    attempts = _attempts(told.events)
    return [
        _outcome(told.run, view, attempts.get(view.address, []), undo.get(view.address, "none"))
        for view in snapshot.steps
    ]


def _outcome(run: RunState, view: StepView, attempts: list[doc.Attempt], undo: str) -> doc.Outcome:
    compensated, compensates = _of_rows(run, view.address) if run.compensable else (False, "")
    return doc.Outcome(
        address=view.address,
        action=view.action,
        status=view.shown,
        generation=view.generation,
        undo=undo,
        compensated=compensated,
        compensates=compensates,
        optional=view.optional,
        ready_at=moment_or_none(view.ready_at),
        started_at=moment_or_none(view.started_at),
        finished_at=moment_or_none(view.finished_at),
        result=value_behind(view.result) if view.result else None,
        failure=_fault(view.failure),
        skip_reason=view.skip_reason,
        skip_causes=view.skip_causes,
        added_by=view.added_by,
        attempts=attempts,
    )


def _of_rows(run: RunState, address: str) -> tuple[bool, str]:
    """Whether a row around a step was compensated, and which row the step compensates, if it does."""
    step = run.step_at(address)
    if step is None:
        return False, ""
    own = step.around.compensates
    node = step.node.scope
    while node is not None:
        row = run.states[node.number]
        if row.undo is not None and row.undo.status == UNDONE:
            return True, ""
        node = node.scope
    return False, own.node.address if own is not None else ""


def _compensations(told: Replay) -> list[doc.Compensation]:
    """What became of the rows that something was asked about, in the order in which they had succeeded."""
    executed: dict[str, list[str]] = {}
    for _, event in told.events:
        if isinstance(event, ev.CompensationOpened):
            executed.setdefault(event.at, []).append(compensation_address(event.at, event.phase, event.entry))
    found: list[doc.Compensation] = []
    for row in told.run.compensable:
        undo, phase, at = row.undo, row.node.spec, row.node.address
        if undo is None or not isinstance(phase, Phase) or undo.status == NONE:
            continue
        found.append(
            doc.Compensation(
                row=at,
                by=phase.compensate,
                status=undo.status,
                executed=executed.get(at, []),
                failure=_fault(undo.failure),
                reason=undo.reason,
            )
        )
    return found


def _attempts(events: Iterable[tuple[float, AnyEvent]]) -> dict[str, list[doc.Attempt]]:
    """All attempts by the step's address, in the order they were dispatched. Evaluations have numbers below 1."""
    found: dict[str, dict[int, doc.Attempt]] = {}
    for time, event in events:
        match event:
            case ev.StepDispatched(at=at, attempt=number, generation=generation):
                found.setdefault(at, {})[number] = doc.Attempt(number=number, generation=generation)
            case ev.StepSucceeded(at=at, attempt=number):
                _end(found, at, number, "succeeded", time, event)
            case ev.AttemptFailed(at=at, attempt=number) | ev.StepFailed(at=at, attempt=number):
                _end(found, at, number, "failed", time, event)
            case ev.AttemptLost(at=at, attempt=number):
                _end(found, at, number, "lost", time, event)
            case ev.AttemptEnded(at=at, attempt=number, outcome=outcome):
                _end(found, at, number, outcome, time, event)
            case ev.StepCancelled(at=at, live=False) if at in found:
                _end(found, at, max(found[at]), "cancelled", time, event)
            case _:
                pass
    return {at: list(attempts.values()) for at, attempts in found.items()}


def _end(
    found: dict[str, dict[int, doc.Attempt]], at: str, number: int, outcome: str, time: float, event: AnyEvent
) -> None:
    attempt = found.get(at, {}).get(number)
    # A failure without an attempt, a lost evaluation, and the last failure of a step that a cancel then settles.
    if attempt is None or attempt.outcome:
        return
    found[at][number] = doc.Attempt(
        number=number,
        outcome=outcome,
        generation=attempt.generation,
        started_at=moment_or_none(getattr(event, "started_at", 0.0)),
        ended_at=moment(time),
        session=getattr(event, "session", ""),
        failure=_fault(getattr(event, "failure", None)),
    )


def _fault(failure: ev.Failure | None) -> doc.Fault | None:
    if failure is None:
        return None
    return doc.Fault(code=failure.code, message=failure.message, type=failure.type)


def summary_of(steps: Sequence[doc.Outcome]) -> doc.Summary:
    """The counts of a receipt. What was undone does not stand, whatever it had been."""
    outcomes: Counter[str] = Counter()
    actions: Counter[str] = Counter()
    for step in steps:
        undone = step.undo == UNDONE or step.compensated
        outcomes[UNDONE if undone else step.status] += 1
        if step.status == SUCCEEDED and not undone and not step.compensates:
            actions[step.action] += 1
    return doc.Summary(
        steps=len(steps),
        attempts=sum(len(step.attempts) for step in steps),
        standing=actions.total(),
        outcomes=dict(outcomes),
        actions=dict(actions),
    )


# -- values ------------------------------------------------------------------------------------------------------------


def value_behind(handle: Handle) -> doc.Value:
    """The value of a handle, if the handle holds it; else its digest."""
    if handle.startswith("="):
        return doc.Value(value=value_of(handle[1:]))
    if key_id := key_id_of(handle):
        return doc.Value(key_id=key_id)
    return doc.Value(digest=f"sha256:{handle[1:]}")


def _whole(arg: Arg, trees: dict[Handle, object]) -> doc.Value:
    """The run's result, put together; by its digest if it is large."""
    if isinstance(arg, str):
        return value_behind(arg)
    handles: list[Handle] = []
    handles_of(arg, handles)
    if hidden := [key_id for handle in handles if (key_id := key_id_of(handle))]:
        return doc.Value(key_id=hidden[0])
    tree = exact(assemble(arg, trees))
    return doc.Value(value=tree) if len(canonical(tree)) <= INLINE_BYTES else doc.Value(digest=digest(tree))


def _added(event: ev.StepsAdded) -> doc.Added:
    return doc.Added(
        by=event.by,
        into=event.into,
        blocks=event.blocks,
        constants=[value_behind(handle) for handle in event.constants],
    )


# -- facts -------------------------------------------------------------------------------------------------------------


def _is_undo(kind: str) -> bool:
    return kind in _UNDO or kind.startswith(_UNDO_PREFIXES)


def _fact(time: float, event: AnyEvent) -> doc.Fact:
    # As JSON has it, lists and no tuples: a receipt equals what is read of its file.
    about = readable(msgspec.json.decode(msgspec.json.encode(event)))
    at = about.get("at", "")
    # Some events are about several steps; their addresses stay with the rest.
    if isinstance(at, str):
        about.pop("at", None)
    return doc.Fact(kind=kind_of(event), time=moment(time), at=at if isinstance(at, str) else "", about=about)


def readable(members: dict[str, Any]) -> dict[str, Any]:
    """An event's members for readers: handles replaced by their values, what belongs to the machinery left out."""
    found: dict[str, Any] = {}
    for name, part in members.items():
        if name in _HANDLES and isinstance(part, str):
            found[name] = msgspec.to_builtins(value_behind(part))
        elif name == "patch":
            handles: dict[str, str] = part
            found[name] = {key: msgspec.to_builtins(value_behind(handle)) for key, handle in handles.items()}
        elif isinstance(part, dict):
            found[name] = readable(cast("dict[str, Any]", part))
        elif name not in _LEFT_OUT:
            found[name] = part
    return found


def _undo_statuses(events: Iterable[tuple[float, AnyEvent]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for _, event in events:
        if isinstance(event, ev.StepsReopened):
            for at in event.at:
                found.pop(at, None)
        elif (status := _UNDO_STATUS.get(kind_of(event))) is not None:
            found[str(getattr(event, "at", ""))] = status
    return found


def _unwound(events: Iterable[tuple[float, AnyEvent]]) -> str:
    """`fully` or `partly`, as the run's last settlement or unwinding says."""
    said = ""
    for _, event in events:
        match kind_of(event):
            case "run_settled":
                said = getattr(event, "unwound", "")
            case "unwound" if not getattr(event, "at", ""):
                said = "fully" if getattr(event, "fully", True) else "partly"
            case "steps_reopened":
                said = ""
            case _:
                pass
    return said
