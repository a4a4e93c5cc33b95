"""Starts that join a transaction of the caller: nothing of them is there unless that is committed.

The run is written with its first event and an input that asks to look at it. After the commit it belongs to nobody,
like a run whose process has died: this session looks for it when it is woken, and the sweep finds it in any case.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import msgspec

from treadle.authoring.builder import Planned
from treadle.authoring.conflicts import OnConflict
from treadle.core.decide import start as decide_start
from treadle.core.events import AnyEvent, NameTaken, encode_events
from treadle.core.inputs import Look, encode_input
from treadle.errors import QueueFullError, RunExistsError, UsageError
from treadle.runtime.folding import started_of, state_of
from treadle.runtime.run import Run
from treadle.runtime.starting import Start, is_same, made
from treadle.store.base import InboxInput
from treadle.store.joined import JOINED, JoinedStart, JoinsTransactions

if TYPE_CHECKING:
    from treadle.runtime.node import Node


async def start_joined(
    node: Node, planned: Planned, start: Start, on_conflict: OnConflict, transaction: Any
) -> Run[Any]:
    """Start a run in a transaction of the caller; see `App.start`.

    Raises:
        UsageError: the store cannot, or it is no connection to it, or a run would have to be removed first.
        RunExistsError: the id, or the singleton, is taken.
        QueueFullError: a queue that it begins in is full.
    """
    store = node.store
    if not isinstance(store, JoinsTransactions):
        raise UsageError("this store has no transactions that a start could join; SQLite and PostgreSQL have")
    start = msgspec.structs.replace(start, key=node.environment.ids.key())
    verb = "take"
    while True:
        joined = await _joined(node, planned, start, verb)
        found = store.join(transaction, joined)
        answer = await found if inspect.isawaitable(found) else found
        if answer == "made":
            node.expected.add(start.key)
            return Run[Any](node, joined.head.id, planned.result, start.key)
        if answer.startswith("full"):
            queue = answer.partition(" ")[2]
            raise QueueFullError(f"run {joined.head.id!r} was not made: queue {queue!r} is full; try again later")
        if answer.startswith("held") and verb == "take" and on_conflict in ("queue", "replace"):
            verb = "line" if on_conflict == "queue" else "replace"
            continue
        return await _existing(node, planned, start, on_conflict, answer)


async def _joined(node: Node, planned: Planned, start: Start, verb: str) -> JoinedStart:
    head, plan, encoded, rows = await made(node, planned, start)
    now = node.environment.clock.now()
    # Decided for its first tasks alone; whoever finds the run decides it anew.
    state = state_of(head, node.engine.graphs.of(head.plan, encoded, plan))
    tasks = decide_start(state, now=now, limits=node.engine.limits, started=started_of(head)).tasks
    events: list[AnyEvent] = [started_of(head)]
    if head.singleton and verb != "take":
        events.append(NameTaken(name=head.singleton, waits=True))
    return JoinedStart(
        head=head,
        plan=encoded,
        events=encode_events(events),
        time=now,
        commit_id=node.environment.ids.number() >> 2,
        payloads=rows,
        names=[(head.singleton, verb)] if head.singleton else [],
        queues=list(dict.fromkeys(task.queue for task in tasks if task.not_before <= now)),
        look=InboxInput(JOINED, head.key, encode_input(Look())),
        wake=node.environment.wakeups.address,
    )


async def _existing(node: Node, planned: Planned, start: Start, on_conflict: OnConflict, answer: str) -> Run[Any]:
    """The run that is in the way, if that is the one that was to be started."""
    run = Run[Any](node, start.id, planned.result)
    what = "exists"
    if answer.startswith("held"):
        key = answer.partition(" ")[2]
        row = await node.read(lambda: node.reader.run(key))
        if row is None:
            raise RunExistsError("a run that is not committed yet holds the singleton; try again", run_id="")
        run, what = Run[Any](node, row.id, planned.result, key), "holds the singleton"
    if on_conflict == "replace":
        raise UsageError(f"run {run.id!r} {what}, and to remove it is no part of a transaction; replace it outside")
    head = (await run.load()).head
    if on_conflict == "reject" or not await is_same(node, head, planned, start):
        raise RunExistsError(f"run {run.id!r} {what}; choose another id, or wait for it", run_id=run.id)
    return run
