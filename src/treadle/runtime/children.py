"""Child runs: the attempts of steps that call a workflow.

An attempt makes the run, or finds that an earlier one did: the run's key is derived, so it is made once. It ends when
the run is there, by the very transaction that makes it; from then on the step waits for what the child tells it
(`core.calls`). An attempt that finds its child settled reports its result, or reopens it if it did not succeed: then an
operator has retried the step.

To undo such a step an attempt puts the question into the child's inbox, and ends; the child answers the run itself.
"""

from __future__ import annotations

import contextvars
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from treadle.authoring import codec
from treadle.authoring.builder import Planned
from treadle.authoring.decorators import plan_from
from treadle.authoring.packages import planning_settings
from treadle.authoring.registry import WorkflowDefinition
from treadle.core import inputs as inp
from treadle.core.children import child_id
from treadle.core.commands import ChildRun, Task
from treadle.core.events import Handle, RunSettled, decode_events
from treadle.core.singletons import Enters
from treadle.core.tables import RUNNING, SUCCEEDED
from treadle.errors import (
    MissingPathError,
    NotCompensable,
    Permanent,
    RetryLater,
    RunNotFoundError,
    StoreUnavailableError,
    UnregisteredStepError,
)
from treadle.runtime.answers import no_result
from treadle.runtime.payloads import assemble, handles_of
from treadle.runtime.posts import tell
from treadle.runtime.requests import request
from treadle.runtime.starting import Start, begin
from treadle.store.base import InboxInput, Report, RunRow

if TYPE_CHECKING:
    from treadle.runtime.node import Node

# How long a step waits before it looks again at a child that cannot be reopened just now.
_BUSY_SECONDS = 1.0


async def call_child(node: Node, task: Task, values: dict[str, Any], started_at: float) -> str | None:
    """Make the run that a task calls, or find it: the JSON text of its result, or None while it goes on.

    None also where nothing is to be reported: the task is no longer this session's, or its run is being cancelled.

    Raises:
        Permanent: the run was deleted, or ended without a result.
        RetryLater: it is being cancelled, or reopened by somebody else; look again.
        StoreUnavailableError: try again; nothing is done twice.
        DefinitionError: the workflow cannot be planned with these arguments.
    """
    child = task.call.child
    assert child is not None
    if task.attempt > 1 and (row := await _row(node, child)) is not None:
        return await _found(node, task, child, row, started_at)
    definition = node.registry.workflow(task.action)
    if definition is None:
        raise UnregisteredStepError(f"no workflow {task.action!r} is registered here; import its module")
    # What never changes: a start that is made twice has the same labels and breakpoints.
    caller = await node.read(partial(node.reader.head, task.run))
    wanted = Start(
        key=child.key,
        inherited=caller[0].labels if caller is not None else {},
        breakpoints=caller[0].breakpoints if caller is not None and child.breakpoints else [],
        id=child_id(task.run_id, task.address, task.generation),
        parent=f"{task.run}/{task.address}",
        detached=child.detached,
        depth=child.depth,
        deadline=task.call.deadline,
        trace=task.call.trace,
    )
    return await _make(node, task, definition, values, wanted, started_at)


async def ask_child(node: Node, task: Task, child: ChildRun) -> str | None:
    """Ask the run that a step has called to undo what it did: None, or a text if there never was such a run.

    Asked twice, it answers the last one.

    Raises:
        NotCompensable: the run is known to have been made, and somebody has deleted it.
        StoreUnavailableError: try again; nothing is done twice.
    """
    question = inp.Unwind(number=child.unwind, again=child.again)
    item = InboxInput(f"unwind:{task.lease}", child.key, inp.encode_input(question))
    session = node.session
    if not (await node.committer.call(lambda store: store.post([item])))[0]:
        if child.made:
            raise NotCompensable(f"run {child.key}, which step {task.address!r} had called, was deleted")
        return "null"
    tell(node.engine, [child.key])
    asked = inp.ChildAsked(at=task.address, child=child.key, attempt=task.attempt, session=session)
    report = Report(task.number, task.lease, InboxInput(f"asked:{task.lease}", task.run, inp.encode_input(asked)))
    await node.committer.call(lambda store: store.report(session, [report]))
    tell(node.engine, [task.run])
    return None


async def _make(
    node: Node,
    task: Task,
    definition: WorkflowDefinition,
    values: dict[str, Any],
    wanted: Start,
    started_at: float,
) -> str | None:
    child = task.call.child
    assert child is not None
    scope = contextvars.copy_context()
    scope.run(planning_settings.set, node.settings.package_settings)
    planned = scope.run(plan_from, definition, values)
    wanted = msgspec.structs.replace(wanted, singleton=planned.singleton)
    enters: Enters = "take"
    while True:
        report = _started(node, task, wanted.id or wanted.key, started_at)
        answer = await begin(node, planned, wanted, report, enters)
        match answer.status:
            case "held":
                enters = await _waiting(node, task, planned, wanted)
            case "committed":
                tell(node.engine, [task.run])
                return None
            case "fenced":
                node.postponer.give_up(task)
                return None
            case "refused":
                text = f"run {wanted.id!r} was deleted; rewind the step to start another one"
                raise Permanent(text, code="child_deleted")
            case "exists":
                row = await _row(node, child)
                if row is not None:
                    return await _found(node, task, child, row, started_at)
                if not wanted.id:
                    raise StoreUnavailableError(f"run {child.key} is said to exist and is not there; try again")
                # Somebody has given this id to another run; the key is its own id then.
                wanted = msgspec.structs.replace(wanted, id="")
            case _:
                raise StoreUnavailableError(f"the run could not be made ({answer.status}); try again")


async def _waiting(node: Node, task: Task, planned: Planned, wanted: Start) -> Enters:
    """How a called run waits for the one that holds its singleton.

    Raises:
        Permanent: it is not to wait, or would wait for a run that waits for it.
    """
    if planned.on_conflict == "reject":
        raise Permanent(f"another run holds the singleton {wanted.singleton!r}", code="singleton_held")
    holders = await node.read(partial(node.reader.line, wanted.singleton))
    caller = task.run
    while caller:
        if caller in holders:
            text = f"the called run would wait for its caller, which holds the singleton {wanted.singleton!r}"
            raise Permanent(text, code="singleton_held")
        found = await node.read(partial(node.reader.head, caller))
        # Nobody waits for a detached run.
        caller = "" if found is None or found[0].detached else found[0].parent.partition("/")[0]
    return "replace" if planned.on_conflict == "replace" else "line"


def _started(node: Node, task: Task, id_: str, started_at: float) -> Report:
    """The end of the attempt: the child is there."""
    child = task.call.child
    assert child is not None
    value = inp.ChildStarted(
        at=task.address,
        child=child.key,
        id=id_,
        attempt=task.attempt,
        detached=child.detached,
        lease=task.lease,
        session=node.session,
        worker=node.name,
        started_at=started_at,
    )
    return Report(task.number, task.lease, InboxInput(f"child:{task.lease}", task.run, inp.encode_input(value)))


async def _row(node: Node, child: ChildRun) -> RunRow | None:
    return await node.read(lambda: node.reader.run(child.key))


async def _found(node: Node, task: Task, child: ChildRun, row: RunRow, started_at: float) -> str | None:
    """Go on with a child that is there."""
    if not child.detached and row.status == SUCCEEDED:
        return await _result(node, row)
    if not child.detached and row.status != RUNNING:
        await _reopen(node, row)
    report = _started(node, task, row.id, started_at)
    session = node.session
    await node.committer.call(lambda store: store.report(session, [report]))
    tell(node.engine, [task.run])
    return None


async def _reopen(node: Node, row: RunRow) -> None:
    try:
        refusal, _events = await request(node, row.key, inp.Retry())
    except RunNotFoundError:
        raise Permanent(f"run {row.id!r} was deleted", code="child_deleted") from None
    if refusal is not None:
        # It is being cancelled, or somebody else has just reopened it.
        raise RetryLater(_BUSY_SECONDS, refusal.message, code="child_busy")


async def _result(node: Node, row: RunRow) -> str:
    """The JSON text of a settled run's result."""
    settled = await last_settlement(node, row.key, row.version)
    if settled is None:
        raise Permanent(f"run {row.id!r} was deleted", code="child_deleted")
    if settled.missing:
        raise Permanent(str(await no_result(node, row.key, row.id, settled.missing[0])), code="child_no_result")
    handles: list[Handle] = []
    handles_of(settled.result, handles)
    texts = await node.payloads.load(row.key, handles)
    if isinstance(settled.result, str):
        return texts[settled.result]
    trees: dict[str, object] = {handle: codec.plain(text) for handle, text in texts.items()}
    try:
        return msgspec.json.encode(assemble(settled.result, trees)).decode()
    except MissingPathError as error:
        raise Permanent(f"run {row.id!r} has no result: {error}", code="child_no_result") from None


async def last_settlement(node: Node, key: str, version: int) -> RunSettled | None:
    """A run's last settlement up to a version, searched from the end of the journal."""
    after = version
    while after > 0:
        upto, after = after, max(0, after - 16)
        rows = await node.read(partial(node.reader.rows, key, after, upto - after))
        for _version, _commit, _time, text in reversed(rows):
            if '"run_settled"' in text:
                found = [event for event in decode_events(text) if isinstance(event, RunSettled)]
                if found:
                    return found[-1]
    return None
