"""What a run says of its failures, and of the blocks whose values are in no row of their own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from treadle.authoring import codec
from treadle.core import events as ev
from treadle.core.graph import Graph
from treadle.core.phases import asked_rule
from treadle.core.plan import Block, Phase, Step, decode_plan
from treadle.core.state import ScopeState, settled
from treadle.core.tables import CANCELLED, FAILED, SKIPPED
from treadle.core.values import key_id_of
from treadle.errors import (
    MissingKeyError,
    RunError,
    RunFailedError,
    StepCancelledError,
    StepFailedError,
    StepSkippedError,
    StoreError,
)
from treadle.runtime.coding import HIDDEN, is_encoded_text, shown_report
from treadle.runtime.failures import account_of
from treadle.runtime.folding import CAUSE_SEPARATOR, fold_run
from treadle.runtime.inspection import Snapshot, StepView
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
            failures[address] = _first_line(await shown_failure(node, key, fault))
            continue
        answer = await node.read(partial(node.reader.step, key, address))
        if answer.step is not None:
            failures[address] = await _why_failed(node, key, answer.step)
    text = f"run {run_id!r} failed"
    if failures:
        address, why = next(iter(failures.items()))
        block = address in settled_as.faults
        asked = "" if block else await _asked_rule(node, key, address)
        text += f": {asked}{'block' if block else 'step'} {address!r}: {why}"
    if len(settled_as.failures) > 1:
        text += f" (and {len(settled_as.failures) - 1} more)"
    if settled_as.unwound:
        text += f"; what the run did was undone {settled_as.unwound}"
    return RunFailedError(text, run_id=run_id, failures=failures, unwound=settled_as.unwound)


async def _asked_rule(node: Node, key: str, address: str) -> str:
    """For a step that a block asks about a rule, which rule it was; the journal is read for it."""
    if not address.rpartition("/")[2].startswith("~rule"):
        return ""
    loaded = await node.read(partial(node.reader.load, key))
    state = fold_run(loaded, Graph(decode_plan(loaded.plan))).at(address) if loaded is not None else None
    return f"{asked_rule(state.around)} " if state is not None else ""


def _first_line(fault: ev.Failure) -> str:
    """What failed a block; some messages go on with a picture of the place."""
    return f"{fault.code}: {fault.message.partition(chr(10))[0]}"


async def _why_failed(node: Node, key: str, step: StepRow) -> str:
    """What a step did to fail its run: its failure, or that it was skipped because of others."""
    if step.status == SKIPPED:
        return f"skipped because of {', '.join(step.causes.split(CAUSE_SEPARATOR))}"
    return f"{step.code}: {await shown_message(node, key, step.message, step.detail)}"


async def shown_message(node: Node, key: str, message: str, detail: ev.Handle) -> str:
    """The message of a failure: of one that a payload codec hides, from its account, if the key is here."""
    if message != HIDDEN or not key_id_of(detail):
        return message
    try:
        texts = await node.payloads.load(key, [detail])
    except (MissingKeyError, StoreError):
        return message
    return account_of(codec.plain(texts[detail])).message or message


async def shown_failure(node: Node, key: str, failure: ev.Failure) -> ev.Failure:
    """A failure with its message, as far as this process can read it."""
    return msgspec.structs.replace(failure, message=await shown_message(node, key, failure.message, failure.detail))


async def shown_snapshot(node: Node, key: str, snapshot: Snapshot) -> Snapshot:
    """A snapshot with reports and messages that a payload codec hides, as far as this process can read them."""
    codec_ = node.payloads.codec
    messages: dict[str, str] = {}
    for view in snapshot.failures[:NAMED]:
        if view.message == HIDDEN:
            messages[view.address] = await shown_message(node, key, view.message, view.detail)
    if not messages and not any(is_encoded_text(step.progress) for step in snapshot.steps):
        return snapshot
    steps: list[StepView] = []
    for step in snapshot.steps:
        failure = step.failure
        if failure is not None and step.address in messages:
            failure = msgspec.structs.replace(failure, message=messages[step.address])
        steps.append(msgspec.structs.replace(step, progress=shown_report(codec_, step.progress), failure=failure))
    failures = [
        msgspec.structs.replace(view, message=messages.get(view.address, view.message)) for view in snapshot.failures
    ]
    return msgspec.structs.replace(snapshot, steps=steps, failures=failures)


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


async def no_result(node: Node, key: str, run_id: str, at: str) -> RunError:
    """The error of a result that needs a step or block which has no value, though its run succeeded."""
    said = f"run {run_id!r} has no result:"
    row = (await node.read(partial(node.reader.step, key, at))).step
    if row is not None and row.status != FAILED:
        return StepSkippedError(f"{said} step {at!r} was {row.status}", run_id=run_id, step=at, upstream=[at])
    if row is not None:
        text = f"{said} step {at!r} failed: {await _why_failed(node, key, row)}"
        return StepFailedError(text, run_id=run_id, step=at, kind=row.code)
    scope = await BlockLook(node, key, at).settled()
    if scope is None or scope.status != FAILED:
        return StepSkippedError(f"{said} block {at!r} was skipped", run_id=run_id, step=at, upstream=[at])
    failure = scope.failure
    text = f"{said} block {at!r} failed" + (f": {_first_line(failure)}" if failure is not None else "")
    return StepFailedError(text, run_id=run_id, step=at, kind=failure.code if failure is not None else FAILED)


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
