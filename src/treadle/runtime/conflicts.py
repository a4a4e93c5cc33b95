"""Starts that find another run in their place: one of the same id, or one that holds the same singleton."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from treadle.authoring.builder import Planned
from treadle.authoring.conflicts import OnConflict
from treadle.core.inputs import TakeName
from treadle.core.singletons import Enters
from treadle.errors import QueueFullError, RunExistsError, RunNotFoundError, StoreUnavailableError
from treadle.runtime.joining import start_joined
from treadle.runtime.requests import request
from treadle.runtime.run import Run
from treadle.runtime.starting import Start, begin, is_same
from treadle.store.base import Answer, RunQuery

if TYPE_CHECKING:
    from treadle.runtime.node import Node


async def start_run(
    node: Node, planned: Planned, start: Start, on_conflict: OnConflict, transaction: Any = None
) -> Run[Any]:
    """Start a run, or do about the one that is there what `on_conflict` says; see `App.start`."""
    if transaction is not None:
        return await start_joined(node, planned, start, on_conflict, transaction)
    by_id = on_conflict == "queue" and bool(start.id) and not start.singleton
    if by_id:
        start = msgspec.structs.replace(start, singleton=f"id:{start.id}")
    wanted, number = start, 1
    enters: Enters = "take"
    while True:
        # Keys tell the order in which runs were made.
        key = node.environment.ids.key()
        answer = await begin(node, planned, msgspec.structs.replace(wanted, key=key), enters=enters)
        if answer.on_full == "wait":
            key, answer = await _begin_later(node, planned, wanted, enters, key, answer)
        if answer.status == "committed":
            return Run[Any](node, wanted.id or key, planned.result, key)
        if answer.status == "held" and on_conflict in ("queue", "replace"):
            enters = "line" if on_conflict == "queue" else "replace"
        elif answer.status == "exists" and by_id:
            number = number + 1 if number > 1 else await _place_behind(node, start)
            wanted = msgspec.structs.replace(start, id=f"{start.id}#{number}")
        elif answer.status in ("held", "exists"):
            if (found := await _existing(node, planned, start, answer, on_conflict)) is not None:
                return found
        else:
            raise _not_made(start.id or key, answer)


async def _begin_later(
    node: Node, planned: Planned, start: Start, enters: Enters, key: str, answer: Answer
) -> tuple[str, Answer]:
    """Make a run when there is a place for it; its key, and the store's answer."""

    async def attempt() -> Answer:
        nonlocal key
        key = node.environment.ids.key()
        return await begin(node, planned, msgspec.structs.replace(start, key=key), enters=enters)

    while answer.on_full == "wait":
        found = await node.places.wait(answer, attempt, start.deadline)
        if found is None:
            break
        answer = found
    return key, answer


def _not_made(run: str, answer: Answer) -> Exception:
    if answer.status == "full":
        return QueueFullError(f"run {run!r} was not made: queue {answer.queue!r} is full; try again later")
    return StoreUnavailableError(f"the run could not be made ({answer.status}); try again")


async def _existing(
    node: Node, planned: Planned, start: Start, answer: Answer, on_conflict: OnConflict
) -> Run[Any] | None:
    """Attach to the run that is in the way, or remove it; None if a start is to be tried again."""
    if answer.status == "held":
        return await _attach_to_holder(node, planned, start, answer.holder, on_conflict)
    existing = Run[Any](node, start.id, planned.result)
    if on_conflict == "replace":
        await _clear(node, existing)
        return None
    await _attach(node, existing, planned, start, reject=on_conflict == "reject")
    return existing


async def _attach_to_holder(
    node: Node, planned: Planned, start: Start, holder: str, on_conflict: OnConflict
) -> Run[Any] | None:
    """Attach to the run that holds the singleton; None if it is gone by now."""
    row = await node.read(lambda: node.reader.run(holder))
    if row is None:
        return None
    existing = Run[Any](node, row.id, planned.result, holder)
    try:
        await _attach(node, existing, planned, start, reject=on_conflict == "reject", what="holds the singleton")
    except RunNotFoundError:
        return None
    return existing


async def _attach(
    node: Node, run: Run[Any], planned: Planned, start: Start, *, reject: bool, what: str = "exists"
) -> None:
    """Make sure that an existing run is the one that was to be started, and that somebody decides it."""
    head = (await run.load()).head
    same = await is_same(node, head, planned, start)
    if reject or not same:
        text = what if same else f"{what} with another workflow or input"
        advice = "choose another id, or on_conflict='replace'"
        if what != "exists":
            advice = "wait for it, or choose on_conflict='queue' or 'replace'"
        raise RunExistsError(f"run {run.id!r} {text}; {advice}", run_id=run.id)
    await node.engine.acquire(head.key)


async def _place_behind(node: Node, start: Start) -> int:
    """Let the run of an id hold the name that others wait for in line; gives the number of the next one in it."""
    for key in await node.read(lambda: node.reader.find(start.id)):
        row = await node.read(partial(node.reader.run, key))
        if row is not None and row.id == start.id:
            # One that is closed refuses: nobody has to wait for it.
            await request(node, key, TakeName(name=start.singleton))
    prefix = f"{start.id}#"
    rows = await node.read(lambda: node.reader.runs(RunQuery(id_prefix=prefix, limit=1)))
    last = rows[0].id.removeprefix(prefix) if rows else ""
    return int(last) + 1 if last.isdecimal() else 2


async def _clear(node: Node, run: Run[Any]) -> None:
    """Cancel a run hard, wait until nothing of it or of the runs below it goes on, and delete it."""
    await run.cancel(hard=True)
    key = await run.key()
    async with aclosing(run.changes()) as changes:
        async for _ in changes:
            if await node.committer.call(lambda store: store.delete(key)) != "open":
                return
