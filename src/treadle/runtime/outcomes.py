"""What a step gave: its value, artifacts, the steps that it added, or its failure. Read from the journal."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from treadle.authoring import codec
from treadle.core import events as ev
from treadle.core.addresses import child as child_address
from treadle.core.addresses import encode_id
from treadle.core.effects import Artifact, Effects
from treadle.core.events import AnyEvent, Arg, Failure, decode_events
from treadle.core.tables import LIVE, SUCCEEDED
from treadle.errors import ArtifactNotFoundError, StepNotFoundError, UsageError
from treadle.runtime.answers import shown_message
from treadle.runtime.artifacts import ArtifactStream

if TYPE_CHECKING:
    from treadle.runtime.node import Node
    from treadle.store.base import RunRow

# What a row's text holds if it may change which effects a run has.
_MARKS = ('"effects"', '"steps_reopened"', '"steps_added"')
_PAGE = 1000


class StepOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a step gave, as of its present generation. `status` is empty while it has no outcome."""

    step: str
    status: str
    # None as well for a step that returned None, or did not succeed.
    value: Any = None
    artifacts: tuple[Artifact, ...] = ()
    # Collection, key and data of each.
    records: tuple[tuple[str, str, Any], ...] = ()
    # Addresses of the steps that it added.
    added: tuple[str, ...] = ()
    failure: Failure | None = None


class Standing:
    """What of a run's effects counts, folded from its events."""

    def __init__(self) -> None:
        self.effects: dict[str, Effects] = {}
        self.added: dict[str, list[str]] = {}

    def take(self, events: Iterable[AnyEvent]) -> None:
        """Be as after these events."""
        for event in events:
            if isinstance(event, ev.StepSucceeded):
                if event.effects is not None:
                    self.effects[event.at] = event.effects
            elif isinstance(event, ev.StepsReopened):
                for at in (*event.at, *event.removed):
                    self.effects.pop(at, None)
                    self.added.pop(at, None)
            elif isinstance(event, ev.StepsAdded):
                found = self.added.setdefault(event.by, [])
                found += [child_address(event.into, encode_id(block.id)) for block in event.blocks]


async def standing(node: Node, key: str) -> Standing:
    """The effects of a run that count now."""
    found = Standing()
    after = 0
    while rows := await node.read(partial(node.reader.rows, key, after, _PAGE)):
        after = rows[-1][0]
        for _version, _commit, _time, text in rows:
            if any(mark in text for mark in _MARKS):
                found.take(decode_events(text))
    return found


class EffectOperations:
    """The part of a run's handle that is about what its steps gave."""

    _node: Node
    id: str

    async def key(self) -> str:
        """The run's key."""
        raise NotImplementedError

    async def row(self) -> RunRow:
        """The run's row as it is now."""
        raise NotImplementedError

    async def _value(self, arg: Arg, adapter: codec.Adapter) -> Any:
        raise NotImplementedError

    async def outcome(self, step: str, *, type: Any = Any) -> StepOutcome:
        """What a step gave: value, artifacts, added steps, or its failure. Does not wait.

        Raises:
            StepNotFoundError: the run has its outcome, and no step of this address.
        """
        key = await self.key()
        node = self._node
        answer = await node.read(lambda: node.reader.step(key, step))
        row = answer.step
        if row is None:
            if answer.status not in LIVE:
                raise StepNotFoundError(f"run {self.id!r} has no settled step {step!r}", run_id=self.id)
            return StepOutcome(step=step, status="")
        found = await standing(node, key)
        effects = found.effects.get(step, Effects())
        failed = row.status == "failed"
        message = await shown_message(node, key, row.message, row.detail) if failed else ""
        return StepOutcome(
            step=step,
            status=row.status,
            value=await self._value(row.result, codec.adapter(type)) if row.status == SUCCEEDED else None,
            artifacts=tuple(self._placed(artifact) for artifact in effects.artifacts),
            records=await self._records(effects),
            added=tuple(found.added.get(step, ())),
            failure=Failure(code=row.code, message=message, detail=row.detail) if failed else None,
        )

    async def _records(self, effects: Effects) -> tuple[tuple[str, str, Any], ...]:
        texts = await self._node.payloads.load(await self.key(), effects.records)
        lists = [msgspec.json.decode(texts[handle], type=list[tuple[str, str, Any]]) for handle in effects.records]
        return tuple(record for one in lists for record in one)

    async def artifacts(self, step: str = "") -> list[Artifact]:
        """The artifacts of the run, or of one step, in the order of their steps' success."""
        found = await standing(self._node, await self.key())
        wanted = [effects for at, effects in found.effects.items() if not step or at == step]
        return [self._placed(artifact) for effects in wanted for artifact in effects.artifacts]

    async def open(self, id: str, *, step: str = "") -> ArtifactStream:
        """The bytes of one of the run's artifacts, with its reference in `artifact`.

        Raises:
            ArtifactNotFoundError: no step that counts has made one of this id.
            UsageError: several steps have; name one with `step`.
        """
        found = [artifact for artifact in await self.artifacts(step) if artifact.id == id]
        if not found:
            raise ArtifactNotFoundError(f"run {self.id!r} has no artifact {id!r}", run_id=self.id)
        if len(found) > 1:
            steps = ", ".join(artifact.step for artifact in found)
            raise UsageError(f"several steps have made an artifact {id!r}: {steps}; name one of them")
        return ArtifactStream(found[0], self._node.payloads)

    def _placed(self, artifact: Artifact) -> Artifact:
        """The reference with the place where the bytes are for this process."""
        return msgspec.structs.replace(artifact, uri=self._node.payloads.blobs.uri(artifact.digest))
