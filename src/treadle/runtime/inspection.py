"""What a run looks like now: one read model, folded from one consistent read of the store.

`snapshot` makes of a replayed journal (`replaying`) a document that needs no further look at the store; text reports
render it. Nothing here reads a clock: `now` is an argument.

What is shown and never stored: a step is `running` while a session holds its task, and `retrying` while its
task waits after a failed attempt; a run is `pausing` or `cancelling` while sessions still execute its attempts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from treadle.core import events as ev
from treadle.core.events import Arg
from treadle.core.operators import blocked_before
from treadle.core.plan import Placement
from treadle.core.state import NodeState, RunState, StepState, settled
from treadle.core.tables import (
    CANCELLED,
    DISPATCHED,
    FAILED,
    NONE,
    OPEN,
    OUTCOMES,
    READY,
    RUNNING,
    SKIPPED,
    SUCCEEDED,
    UNWINDING,
    WAITING,
)
from treadle.runtime.failure_views import FailureView, failures_of
from treadle.runtime.replaying import Replay, replay
from treadle.runtime.scopes import (
    DecisionView,
    ScopeView,
    is_detached,
    is_evaluation,
    missing_signals,
    needs_of,
    place_of,
    scope_views,
    undo_reason,
)
from treadle.store.base import Loaded, SessionRow, TaskRow

RETRYING = "retrying"
PAUSING = "pausing"
PAUSED = "paused"
CANCELLING = "cancelling"
# How much of what a run did is undone, as it is shown beside its outcome.
UNWOUND: Final[dict[str, str]] = {"fully": "unwound", "partly": "partly unwound"}

# The order in which counts are shown: what is still to come, then the outcomes.
SHOWN: Final[tuple[str, ...]] = (WAITING, READY, DISPATCHED, RUNNING, RETRYING, SUCCEEDED, FAILED, SKIPPED, CANCELLED)


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """One step. Times are seconds since the epoch, None where nothing happened yet."""

    address: str
    id: str
    # Its place in the order in which steps and scopes came into the run.
    number: int
    # The address of the scope that it lies in, empty at the top; whether it is a cell that nobody waits for.
    scope: str
    detached: bool
    action: str
    # As journaled, and as people see it (`running` and `retrying` besides).
    status: str
    shown: str
    attempt: int
    generation: int
    lost: int
    optional: bool
    # What the last attempt waited for a worker since it could start; how long it executes or executed.
    queue_seconds: float | None
    exec_seconds: float | None
    added_at: float
    ready_at: float | None
    dispatched_at: float | None
    started_at: float | None
    finished_at: float | None
    # The earliest start of a task that waits for a delay or a back-off.
    not_before: float | None
    # Probes of a polled step's attempt that were not true yet; when the step gives up.
    probes: int
    deadline: float | None
    worker: str
    progress: str
    # The result's handle: `=` and JSON text, `@` or `#` and the digest of a larger one.
    result: str
    failure: ev.Failure | None
    # Why it was skipped: `condition`, `upstream`, `removed`, or empty; by which steps; whether no failure is behind it.
    skip_reason: str
    skip_causes: list[str]
    by_condition: bool
    # Upstreams in plan order; those not settled; those that hold it at a breakpoint after them.
    needs: list[str]
    waiting_on: list[str]
    held_by: list[str]
    missing_signals: list[str]
    # `before` or `after` while the run stands at this step's breakpoint.
    breakpoint: str
    placement: str
    annotations: dict[str, str]
    # The step that added it, if the plan does not hold it.
    added_by: str
    # The id of the run that it has called last, and whether that one still goes on.
    child: str
    child_open: bool
    queue: str
    # The status of its undo; why it failed, is skipped or parked; the undo state's handle.
    undo: str
    undo_reason: str
    undo_state: str


class Blocked(msgspec.Struct, frozen=True, kw_only=True):
    """A step that no worker can start yet, or a block that cannot open its content, and what it waits for."""

    address: str
    waiting_on: list[str]
    held_by: list[str]
    missing_signals: list[str]
    # Labels of the armed breakpoint that it stands at.
    breakpoint: list[str]


class BreakpointView(msgspec.Struct, frozen=True, kw_only=True):
    """A declared breakpoint. `state` is empty, blocked or released; `holding` are the steps that it holds."""

    address: str
    position: Literal["before", "after"]
    labels: list[str]
    armed: bool
    state: Literal["", "blocked", "released"]
    since: float | None
    holding: list[str]


class SignalView(msgspec.Struct, frozen=True, kw_only=True):
    """A signal that a step refers to, or that came. `payload` is a handle."""

    name: str
    delivered: bool
    delivered_at: float | None
    payload: str
    waiting: list[str]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A run at one moment (`now`), JSON-able as it is. `version` is the journal's."""

    id: str
    key: str
    workflow: str
    # The outcome, or running, pausing, paused, cancelling, unwinding.
    status: str
    # How much of what the run did is undone: fully, partly, or empty.
    unwound: str
    labels: dict[str, str]
    name: str
    metadata: dict[str, str]
    parent: str
    dry_run: bool
    plan: str
    version: int
    now: float
    created_at: float
    paused_at: float | None
    # When what has not begun fails; None without one, and once a retry or a rewind has lifted it.
    deadline: float | None
    finished_at: float | None
    # From creation to the end; None while the run is open.
    total_seconds: float | None
    # The session that decides the run, and its worker's name.
    owner: str
    owner_worker: str
    inbox: int
    # Of the workflow's own steps, by shown status.
    counts: dict[str, int]
    # Steps, and rows that can be compensated, by the status of their undo; those with `none` are left out. What is
    # `undone` does not stand.
    undos: dict[str, int]
    steps: list[StepView]
    # Groups, blocks that open their content, and their rows, iterations and branches; those around come first.
    scopes: list[ScopeView]
    # What followed each row of the Phases blocks, in journal order.
    decisions: list[DecisionView]
    # Steps by which blocks find out what the kernel cannot see: items, rules, branches; and pauses before a retry.
    evaluations: list[StepView]
    blocked: list[Blocked]
    breakpoints: list[BreakpointView]
    signals: list[SignalView]
    # Root causes first, in the order they happened; failures of optional steps last.
    failures: list[FailureView]
    # The result as handles; `missing` are steps it needs that did not succeed.
    result: Arg
    missing: list[str]

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from treadle.runtime.html import snapshot_html

        return snapshot_html(self)

    def step(self, address: str) -> StepView | None:
        """The view of one step, an evaluation included; None if there is none."""
        return next((step for step in (*self.steps, *self.evaluations) if step.address == address), None)

    def scope(self, address: str) -> ScopeView | None:
        """The view of one scope, None if there is none."""
        return next((scope for scope in self.scopes if scope.address == address), None)


def shown_status(status: str, *, hold: bool, cancelling: bool, leased: int) -> str:
    """The status of a run as people see it, from its stored one and the number of tasks that are executed."""
    if status == CANCELLED and leased:
        return CANCELLING
    if status in OUTCOMES:
        return status
    if cancelling and status != UNWINDING:
        return CANCELLING
    if hold:
        return PAUSING if leased else PAUSED
    return status or RUNNING


def shown_step(step: StepState, task: TaskRow | None, *, called: bool = False) -> str:
    """The status of a step as people see it; `called`: the run that it calls goes on."""
    if step.status == DISPATCHED and called:
        return RUNNING
    if step.status == DISPATCHED and task is not None:
        if task.session:
            return RUNNING
        if step.failures:
            return RETRYING
    return step.status


def snapshot(loaded: Loaded, sessions: Sequence[SessionRow], now: float) -> Snapshot:
    """The run of one consistent read, as a document."""
    return snapshot_of(loaded, replay(loaded), sessions, now)


def snapshot_of(loaded: Loaded, told: Replay, sessions: Sequence[SessionRow], now: float) -> Snapshot:
    """As `snapshot`, for a journal that is folded already."""
    run, head = told.run, loaded.head
    # Of a session that is gone the journal may tell it.
    workers = run.workers | {session.id: session.worker for session in sessions}
    tasks = {row.task.number: row for row in loaded.tasks}
    steps: list[StepView] = []
    evaluations: list[StepView] = []
    for state in run.steps():
        if not state.removed:
            view = _view(told, state, tasks.get(state.node.number), workers, now)
            (evaluations if is_evaluation(state) else steps).append(view)
    steps.sort(key=lambda step: step.added_at)
    scopes = scope_views(run, told.scopes)
    counts: dict[str, int] = dict.fromkeys(SHOWN, 0)
    for step in steps:
        counts[step.shown] = counts.get(step.shown, 0) + 1
    finished = told.finished_at if run.status in OUTCOMES else None
    return Snapshot(
        id=head.id,
        key=head.key,
        workflow=head.workflow,
        status=shown_status(
            run.status or loaded.status,
            hold=bool(run.hold),
            cancelling=bool(run.cancelling),
            leased=sum(1 for row in loaded.tasks if row.session),
        ),
        unwound=run.root.unwound if run.states else "",
        labels=head.labels,
        name=head.name,
        metadata=head.metadata,
        parent=head.parent,
        dry_run=head.dry_run,
        plan=head.plan,
        version=loaded.version,
        now=now,
        created_at=head.created_at,
        paused_at=told.paused_at if run.hold else None,
        deadline=head.deadline if run.deadline else None,
        finished_at=finished,
        total_seconds=max(finished - head.created_at, 0.0) if finished is not None else None,
        owner=loaded.owner,
        owner_worker=workers.get(loaded.owner, ""),
        inbox=len(loaded.inbox),
        counts=counts,
        undos=_undos(steps, scopes),
        steps=steps,
        scopes=scopes,
        decisions=told.scopes.decisions,
        evaluations=evaluations,
        blocked=[
            *(_blocked(run, step) for step in steps if _is_blocked(run, step)),
            *_blocked_scopes(run, scopes),
        ],
        breakpoints=breakpoints_of(told),
        signals=signals_of(told),
        failures=failures_of(run, told.roots, told.scopes.finished),
        result=_result(run),
        missing=list(run.missing),
    )


def _undos(steps: Sequence[StepView], scopes: Sequence[ScopeView]) -> dict[str, int]:
    statuses = Counter([step.undo for step in steps] + [scope.undo for scope in scopes])
    del statuses[NONE]
    return dict(statuses)


def _result(run: RunState) -> Arg:
    result = run.result
    assert isinstance(result, (str, ev.Pick, ev.ArgList, ev.ArgMap))
    return result


def _view(told: Replay, step: StepState, row: TaskRow | None, workers: dict[str, str], now: float) -> StepView:
    run, node, spec = told.run, step.node, step.spec
    shown = shown_step(step, row, called=node.number in run.calls)
    started = _started(step, row, called=node.number in run.calls)
    failure = step.failure if step.status == FAILED or shown == RETRYING else None
    adder = run.adder.get(node.number)
    open_ = run.status not in OUTCOMES and step.status == WAITING
    return StepView(
        address=node.address,
        id=spec.id,
        number=node.number,
        scope=place_of(node),
        detached=is_detached(step),
        action=spec.action,
        status=step.status,
        shown=shown,
        attempt=step.attempt,
        generation=step.generation,
        lost=step.lost,
        optional=spec.optional,
        queue_seconds=_queue_seconds(told, step, started),
        exec_seconds=_exec_seconds(step, shown, started, now),
        added_at=step.added_at,
        ready_at=step.ready_at or None,
        dispatched_at=step.dispatched_at or None,
        started_at=started,
        finished_at=(step.finished_at or None) if step.status in OUTCOMES else None,
        not_before=row.task.not_before if row is not None and not row.session and row.task.not_before > now else None,
        probes=row.task.call.poll.probes if row is not None and row.task.call.poll is not None else 0,
        deadline=run.deadlines.get(node.number),
        worker=row.worker if row is not None and row.session else workers.get(step.worker, step.worker),
        progress=row.progress if row is not None else "",
        result=step.result if step.status == SUCCEEDED else "",
        failure=failure,
        skip_reason=told.skips.get(node.address, "") if step.status == SKIPPED else "",
        skip_causes=list(step.causes),
        by_condition=step.by_condition,
        needs=[run.states[number].node.address for number, _ in node.needs],
        waiting_on=waiting_on(run, step) if open_ else [],
        held_by=held_by(run, step) if open_ else [],
        missing_signals=missing_signals(run, step) if open_ else [],
        breakpoint=_standing(run, step),
        placement=placement_text(spec.placement),
        annotations=spec.annotations,
        child=told.children.get(node.address, ""),
        child_open=node.number in run.calls,
        added_by=run.states[adder].node.address if adder is not None else "",
        queue=spec.queue,
        undo=step.undo.status if step.undo is not None else NONE,
        undo_reason=undo_reason(step.undo),
        undo_state=step.undo.state if step.undo is not None else "",
    )


def _started(step: StepState, row: TaskRow | None, *, called: bool) -> float | None:
    if step.status == DISPATCHED:
        # The state still has the last ended attempt's time; this attempt's is in its task.
        if row is None and called:
            return step.started_at or None
        return (row.started_at or None) if row is not None and row.session else None
    return step.started_at or None


def _queue_seconds(told: Replay, step: StepState, started: float | None) -> float | None:
    # Between its probes a polled step is in no queue.
    if started is None or not step.ready_at or step.spec.poll is not None:
        return None
    first = told.dispatches.get(step.node.address, 0) <= 1
    # A start delay, a back-off and earlier attempts are not time in a queue.
    since = max(step.ready_at if first else step.dispatched_at, step.not_before)
    return max(started - since, 0.0)


def _exec_seconds(step: StepState, shown: str, started: float | None, now: float) -> float | None:
    if started is None:
        return None
    if shown == RUNNING:
        return max(now - started, 0.0)
    return max(step.finished_at - started, 0.0) if step.status in OUTCOMES and step.finished_at else None


def placement_text(placement: Placement | None) -> str:
    """A placement as `mode` or `mode:what`."""
    if placement is None:
        return ""
    what = placement.target or placement.step
    return f"{placement.mode}:{what}" if what else placement.mode


def waiting_on(run: RunState, step: NodeState) -> list[str]:
    """Addresses of the upstreams that are not settled; those of waiting groups around the step included."""
    return [state.node.address for state in needs_of(run, step) if not settled(state)]


def held_by(run: RunState, step: NodeState) -> list[str]:
    """Addresses of settled upstreams that hold their dependents at a breakpoint after them."""
    return [
        state.node.address
        for state in needs_of(run, step)
        if isinstance(state, StepState) and settled(state) and state.holding
    ]


def _standing(run: RunState, step: StepState) -> str:
    if run.status in OUTCOMES:
        return ""
    if step.holding:
        return "after"
    return "before" if blocked_before(run, step) else ""


def _is_blocked(run: RunState, step: StepView) -> bool:
    if step.status != WAITING or run.status in OUTCOMES:
        return False
    return bool(step.waiting_on or step.held_by or step.missing_signals or step.breakpoint == "before")


def _blocked(run: RunState, step: StepView) -> Blocked:
    state = run.step_at(step.address)
    assert state is not None
    return Blocked(
        address=step.address,
        waiting_on=step.waiting_on,
        held_by=step.held_by,
        missing_signals=step.missing_signals,
        breakpoint=list(state.spec.break_before) if step.breakpoint == "before" else [],
    )


def _blocked_scopes(run: RunState, scopes: list[ScopeView]) -> list[Blocked]:
    """The blocks that have opened nothing yet; what a waiting group holds is there, and said by itself."""
    found: list[Blocked] = []
    for view in scopes if run.status not in OUTCOMES else ():
        if view.kind in ("gather", "choose", "phases") and (view.status == WAITING or view.missing_signals):
            state = run.at(view.address)
            found.append(
                Blocked(
                    address=view.address,
                    waiting_on=view.waiting_on,
                    held_by=held_by(run, state) if state is not None else [],
                    missing_signals=view.missing_signals,
                    breakpoint=[],
                )
            )
    return found


def breakpoints_of(told: Replay) -> list[BreakpointView]:
    """All declared breakpoints, by step id, `before` first. A final run stands at none."""
    run = told.run
    found: list[BreakpointView] = []
    for step in run.steps():
        if step.removed:
            continue
        if step.spec.break_before:
            found.append(_breakpoint(told, step, "before", step.spec.break_before))
        if step.spec.break_after:
            found.append(_breakpoint(told, step, "after", step.spec.break_after))
    found.sort(key=lambda view: (view.address, view.position != "before"))
    return found


def _breakpoint(
    told: Replay, step: StepState, position: Literal["before", "after"], labels: Sequence[str]
) -> BreakpointView:
    run, at = told.run, step.node.address
    blocked = _standing(run, step) == position
    released = position[0] in step.released
    since = told.reached.get((at, position)) if blocked else told.released.get((at, position)) if released else None
    holding: list[str] = []
    if blocked:
        holding = [at] if position == "before" else sorted(_held(run, step))
    return BreakpointView(
        address=at,
        position=position,
        labels=list(labels),
        armed=not run.labels.isdisjoint(labels),
        state="blocked" if blocked else "released" if released else "",
        since=since,
        holding=holding,
    )


def _held(run: RunState, step: StepState) -> list[str]:
    dependents = [run.states[number] for number, _ in run.dependents(step)]
    return [state.node.address for state in dependents if not settled(state)]


def signals_of(told: Replay) -> list[SignalView]:
    """All signals that steps and blocks refer to or that came, by name. Nobody waits in a final run."""
    run = told.run
    waiting: dict[str, list[str]] = {name: [] for name in run.signals}
    for state in run.states:
        for name in () if state.removed else state.node.signals:
            names = waiting.setdefault(name, [])
            if name not in run.signals and state.status in (WAITING, OPEN) and run.status not in OUTCOMES:
                names.append(state.node.address)
    return [
        SignalView(
            name=name,
            delivered=name in run.signals,
            delivered_at=told.signal_times.get(name),
            payload=run.signals.get(name, ""),
            waiting=waiting[name],
        )
        for name in sorted(waiting)
    ]
