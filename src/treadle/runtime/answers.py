"""What a run says of its failures, and of the blocks whose values are in no row of their own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from treadle.core import events as ev
from treadle.core.graph import Graph
from treadle.core.plan import Block, Phase, Step, decode_plan
from treadle.core.state import ScopeState, settled
from treadle.core.tables import CANCELLED, SKIPPED
from treadle.errors import RunError, RunFailedError, StepCancelledError, StepFailedError, StepSkippedError
from treadle.runtime.folding import CAUSE_SEPARATOR, fold_run
from treadle.runtime.scopes import planned_at
from treadle.store.base import StepRow

if TYPE_CHECKING:
    from treadle.runtime.node import Node

# An error names so many of a run's failures.
NAMED = 20


async def failed_run(node: Node, key: str, run_id: str, settled_as: ev.RunSettled) -> RunFailedError:
    """The error of a run that failed, with what failed it."""
    failures: dict[str, str] = {}
    for address in settled_as.failures[:NAMED]:
        if (fault := settled_as.faults.get(address)) is not None:
            failures[address] = _first_line(fault)
            continue
        answer = await node.read(partial(node.reader.step, key, address))
        if answer.step is not None:
            failures[address] = _why_failed(answer.step)
    text = f"run {run_id!r} failed"
    if failures:
        address, why = next(iter(failures.items()))
        text += f": {'block' if address in settled_as.faults else 'step'} {address!r}: {why}"
    if len(settled_as.failures) > 1:
        text += f" (and {len(settled_as.failures) - 1} more)"
    if settled_as.unwound:
        text += f"; what the run did was undone {settled_as.unwound}"
    return RunFailedError(text, run_id=run_id, failures=failures)


def _first_line(fault: ev.Failure) -> str:
    """What failed a block; some messages go on with a picture of the place."""
    return f"{fault.code}: {fault.message.partition(chr(10))[0]}"


def _why_failed(step: StepRow) -> str:
    """What a step did to fail its run: its failure, or that it was skipped because of others."""
    if step.status == SKIPPED:
        return f"skipped because of {', '.join(step.causes.split(CAUSE_SEPARATOR))}"
    return f"{step.code}: {step.message}"


class BlockLook:
    """Looks for the outcome of a block at one address, if the plan has a block there.

    A block's end is an event of the journal and no row, so the journal is read, each row once.
    """

    def __init__(self, node: Node, key: str, address: str) -> None:
        self._node = node
        self._key = key
        self._address = address
        self._after = 0
        self._marks = [("scope_settled", address)]
        if address.endswith("]"):
            # Many iterations may end in one event of their gather.
            around, _, segment = address.rpartition("/")
            gather = segment.rpartition("[")[0].partition("#")[0]
            self._marks.append(("iterations_settled", f"{around}/{gather}" if around else gather))

    async def plan(self) -> list[Block]:
        """The blocks of the run's plan."""
        loaded = await self._node.read(lambda: self._node.reader.load(self._key))
        return decode_plan(loaded.plan).blocks if loaded is not None else []

    def is_block(self, blocks: list[Block]) -> bool:
        """Whether these blocks of a plan have one with a value at the address."""
        found = planned_at(blocks, self._address)
        return found is not None and not isinstance(found, (Step, Phase))

    async def news(self) -> bool:
        """Whether something at the address has settled since the last look."""
        found = False
        while rows := await self._node.read(partial(self._node.reader.rows, self._key, self._after)):
            self._after = rows[-1][0]
            found = found or any(self._may_tell(text) for _, _, _, text in rows)
        return found

    def _may_tell(self, text: str) -> bool:
        """Whether a row of the journal may hold the end of what is looked for."""
        marks = ((kind, f'"at":{msgspec.json.encode(at).decode()}') for kind, at in self._marks)
        return any(f'"{kind}"' in text and at in text for kind, at in marks)

    async def settled(self) -> ScopeState | None:
        """The scope at the address, None if there is none that has its outcome."""
        loaded = await self._node.read(lambda: self._node.reader.load(self._key))
        if loaded is None:
            return None
        state = fold_run(loaded, Graph(decode_plan(loaded.plan))).at(self._address)
        return state if isinstance(state, ScopeState) and settled(state) else None


def no_value(scope: ScopeState, run_id: str) -> RunError:
    """The error of a block that did not succeed."""
    at, causes = scope.node.address, list(scope.causes)
    where = f"block {at!r} of run {run_id!r}"
    because = f" because of {', '.join(causes)}" if causes else ""
    if scope.status == SKIPPED:
        return StepSkippedError(f"{where} was skipped{because}", run_id=run_id, step=at, upstream=causes)
    if scope.status == CANCELLED:
        return StepCancelledError(f"{where} was cancelled", run_id=run_id, step=at)
    if scope.failure is None:
        return StepFailedError(f"{where} failed{because}", run_id=run_id, step=at, kind=scope.status)
    text = f"{where} failed: {_first_line(scope.failure)}"
    return StepFailedError(text, run_id=run_id, step=at, kind=scope.failure.code)
