"""Requests: an input of an operator, decided by whoever owns the run, or here when nobody does.

The order: the engine of this process if it owns the run; else take the run if nobody owns it; else the owner's
inbox, a wake-up, and the journal row that names the input as its cause. If that does not come within a second
the run is taken over: its owner hangs or is dead.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from treadle.core import events as ev
from treadle.core.commands import Refusal
from treadle.core.events import AnyEvent, decode_events
from treadle.core.inputs import AnyInput, encode_input
from treadle.errors import RunNotFoundError, StoreUnavailableError, UsageError
from treadle.runtime.owned import Pending, Waiter
from treadle.store.base import InboxInput, Store
from treadle.store.committer import resolve
from treadle.store.joined import JoinedInput, JoinsTransactions

if TYPE_CHECKING:
    from treadle.runtime.node import Node

Result = tuple["Refusal | None", list[AnyEvent]]
# How long an owner may take to decide an input before another session takes the run.
PATIENCE_SECONDS = 1.0
# How often the run is taken over before the caller is told that nobody decides it.
TAKE_OVERS = 20


async def request(node: Node, key: str, value: AnyInput) -> Result:
    """Decide an input and return its refusal, or the events of its decision.

    Raises:
        RunNotFoundError: there is no such run.
        StoreError: the store could not do it; nothing is known of the input.
    """
    while True:
        future, waiter = _answer()
        try:
            if not node.engine.give(key, value, waiter):
                owner = await node.engine.acquire(key, [Pending(value, "", [], waiter)])
                if owner is None:
                    raise RunNotFoundError("there is no such run")
                if owner:
                    return await _through_inbox(node, key, value)
            result = await future
        finally:
            # Whoever leaves early is told nothing any more; an error that came meanwhile is nobody's.
            if not future.cancel() and not future.cancelled():
                future.exception()
        if result[0] is None or result[0].code != "conflict":
            return result


async def request_joined(node: Node, key: str, value: AnyInput, transaction: Any) -> str:
    """Put an input into a run's inbox in a transaction of the caller; gives what `JoinsTransactions` says.

    What becomes of it is decided after the commit, and nobody is told.

    Raises:
        UsageError: the store cannot, or it is no connection to it.
    """
    store = node.store
    if not isinstance(store, JoinsTransactions):
        raise UsageError("this store has no transactions that an input could join; SQLite and PostgreSQL have")
    item = InboxInput(node.environment.ids.key(), key, encode_input(value))
    found = store.join_input(transaction, JoinedInput(item, node.environment.wakeups.address))
    said = await found if inspect.isawaitable(found) else found
    if said == "posted":
        node.expected.add(key)
    return said


def _answer() -> tuple[asyncio.Future[Result], Waiter]:
    """A future, and the waiter that resolves it."""
    future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

    def waiter(refusal: Refusal | None, error: BaseException | None, events: list[AnyEvent]) -> None:
        resolve(future, (refusal, events), error)

    return future, waiter


async def _through_inbox(node: Node, key: str, value: AnyInput) -> Result:
    """Post an input to the run's owner and wait for its decision. It is posted once, so it is decided once."""
    item = InboxInput(node.environment.ids.key(), key, encode_input(value))
    row = await node.read(lambda: node.reader.run(key))
    version = row.version if row is not None else 0
    committer = node.committer

    def post(store: Store) -> bool:
        done = store.post([item])[0]
        committer.notify(tasks=False, keys=[key])
        return done

    if not await committer.call(post):
        raise RunNotFoundError("there is no such run")
    for _ in range(TAKE_OVERS):
        found = await _decision_of(node, item, version)
        if found is not None:
            return found
        # The owner is silent: it hangs, or it is dead. Its inbox comes with the run.
        await node.engine.acquire(key, steal=True)
    raise StoreUnavailableError("nobody decides the run; see `treadle why` and the logs of its workers")


async def _decision_of(node: Node, item: InboxInput, version: int) -> Result | None:
    """What became of an input, read from the journal after `version`; None if nothing did in time."""
    deadline = node.environment.clock.monotonic() + PATIENCE_SECONDS
    while True:
        changed = node.hub.wait(item.key)
        try:
            rows = await node.read(partial(node.reader.rows, item.key, version))
            for number, _commit, _time, text in rows:
                version = number
                if item.id in text:
                    return _result_of(item, decode_events(text))
            if not rows and await node.read(lambda: node.reader.run(item.key)) is None:
                raise RunNotFoundError("the run was deleted")
            left = deadline - node.environment.clock.monotonic()
            if left <= 0:
                return None
            await asyncio.wait([changed], timeout=min(left, 0.25))
        finally:
            node.hub.drop(item.key, changed)


def _result_of(item: InboxInput, events: list[AnyEvent]) -> Result:
    own = [event for event in events if event.cause == item.id]
    for event in own:
        if isinstance(event, ev.InputRefused):
            return Refusal(event.code, event.message), []
    return None, own
