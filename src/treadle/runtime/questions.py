"""What a running step asks of the store while it runs; each question waits while the store does not answer.

They read, but for `store_chunk`: what it writes means nothing until an outcome names it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec

from treadle.authoring import codec
from treadle.authoring.context import Dependency, RunRecord
from treadle.core.commands import Task
from treadle.core.events import NULL, Arg, ArgMap, Handle
from treadle.core.plan import Plan, decode_plan
from treadle.core.state import ScopeState
from treadle.core.tables import SUCCEEDED
from treadle.errors import RunNotFoundError, UsageError
from treadle.runtime.answers import BlockLook
from treadle.runtime.failures import account_of
from treadle.runtime.folding import CAUSE_SEPARATOR
from treadle.runtime.patience import patiently
from treadle.runtime.payloads import assemble, handles_of
from treadle.store.base import RunHead, StepRow

if TYPE_CHECKING:
    from treadle.runtime.node import Node

T = TypeVar("T")


class Questions:
    """The questions, each a coroutine for the node's event loop, by the name under which a step asks it."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def plan(self, task: Task) -> Plan:
        """The plan of a live attempt's run, as it was started."""
        return decode_plan((await self._head(task))[1])

    async def record(self, task: Task) -> RunRecord:
        """The record of a live attempt's run."""
        head = (await self._head(task))[0]
        return RunRecord(
            id=head.id,
            key=head.key,
            workflow=head.workflow,
            created_at=datetime.fromtimestamp(head.created_at, UTC),
            name=head.name,
            labels=head.labels,
            metadata=head.metadata,
            parent=head.parent,
            dry_run=head.dry_run,
        )

    async def raw_input(self, task: Task) -> str:
        """The arguments of an attempt, as the text of one JSON object."""
        handles: list[Handle] = []
        for arg in task.call.args.values():
            handles_of(arg, handles)
        return await self._text(task, ArgMap(task.call.args), handles)

    async def dependency(self, task: Task, step: str) -> tuple[Dependency, str]:
        """What became of a step or block, without its value, and the text of that.

        Raises:
            UsageError: nothing of that name has its outcome yet.
        """
        reader = self._node.reader
        names = _places(task.address, step)
        for address in names:
            answer = await self._read(partial(reader.step, task.run, address))
            if answer.step is not None:
                return await self._of_step(task, answer.step)
        for address in names:
            look = BlockLook(self._node, task.run, address)
            scope = await patiently(look.settled)
            if scope is not None:
                return await self._of_block(task, scope)
        raise UsageError(
            f"{step!r} has no outcome in run {task.run_id!r} yet; a step waits for what it takes from it: by a Ref, "
            "by after=, or by after_any= whatever comes of it"
        )

    async def store_chunk(self, task: Task, text: str) -> Handle:
        """Store some of the items that a step yields, under the name of their content."""
        return await patiently(lambda: self._node.payloads.place(text, None))

    async def texts(self, task: Task, *handles: Handle) -> list[str]:
        """The JSON texts of values, in one read."""
        found = await patiently(lambda: self._node.payloads.load(task.run, handles))
        return [found[handle] for handle in handles]

    async def _of_step(self, task: Task, row: StepRow) -> tuple[Dependency, str]:
        causes = [at for at in row.causes.split(CAUSE_SEPARATOR) if at]
        found = Dependency(address=row.address, outcome=row.status, causes=causes)
        if row.status == SUCCEEDED:
            return found, await self._text(task, row.result, [row.result])
        return await self._with_failure(task, found, row.code, row.message, row.detail), ""

    async def _of_block(self, task: Task, scope: ScopeState) -> tuple[Dependency, str]:
        found = Dependency(address=scope.node.address, outcome=scope.status, causes=list(scope.causes))
        if scope.status == SUCCEEDED:
            handles: list[Handle] = []
            handles_of(scope.result, handles)
            return found, await self._text(task, scope.result, handles)
        failure = scope.failure
        if failure is None:
            return found, ""
        return await self._with_failure(task, found, failure.code, failure.message, failure.detail), ""

    async def _with_failure(self, task: Task, found: Dependency, code: str, message: str, detail: Handle) -> Dependency:
        details = None
        if detail:
            texts = await patiently(lambda: self._node.payloads.load(task.run, [detail]))
            account = account_of(codec.plain(texts[detail]))
            details, message = account.details, account.message or message
        return msgspec.structs.replace(found, code=code, message=message, details=details)

    async def _text(self, task: Task, arg: Arg, handles: list[Handle]) -> str:
        """The JSON text of an argument or result."""
        payloads = self._node.payloads
        if isinstance(arg, str):
            return (await patiently(lambda: payloads.load(task.run, [arg])))[arg] if arg != NULL else "null"
        trees = await patiently(lambda: payloads.trees(task.run, handles))
        return msgspec.json.encode(assemble(arg, trees)).decode()

    async def _head(self, task: Task) -> tuple[RunHead, bytes]:
        found = await self._read(lambda: self._node.reader.head(task.run))
        if found is None:
            raise RunNotFoundError(f"run {task.run_id!r} was deleted", run_id=task.run_id)
        return found

    async def _read(self, function: Callable[[], T]) -> T:
        return await patiently(lambda: self._node.read(function))


def _places(address: str, name: str) -> list[str]:
    """Where a name may lie, as seen from a step: below it, in the scopes around it from the inside out, at the root."""
    places = [f"{address}/{name}"]
    while "/" in address:
        address = address.rpartition("/")[0]
        places.append(f"{address}/{name}")
    return [*places, name]
