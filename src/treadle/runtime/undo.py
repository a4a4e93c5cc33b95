"""What a client asks about undo: what would be undone, and that it is done, tried again, skipped or parked."""

from __future__ import annotations

from typing import Literal

import msgspec

from treadle.core import events as ev
from treadle.core import inputs as inp
from treadle.core.events import AnyEvent
from treadle.core.plan import Phase
from treadle.core.state import NodeState, ScopeState
from treadle.core.undo import undo_of
from treadle.core.unwinding import undo_stack
from treadle.errors import StepNotFoundError
from treadle.runtime.replaying import Replay, replay
from treadle.store.base import Loaded


class UndoEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A step whose effect stands and can be undone, or a row whose phase can be compensated.

    Of a row, `action` is its phase and `undo` the compensating one. A step that calls a workflow has no `undo`: what
    the run that it has called did is undone, and `state` is the handle of that run's key.
    """

    address: str
    kind: Literal["step", "call", "row"] = "step"
    action: str
    undo: str
    resource: str
    # The handle of the undo state, if the step prepared one.
    state: str
    # The step's outcome: one that acted in part is undone too.
    outcome: str
    finished_at: float


def stack_of(loaded: Loaded, to: str = "") -> list[UndoEntry]:
    """The undo stack of a stored run, what is undone first at its head; with `to`, what ended after that step.

    Raises:
        StepNotFoundError: there is no such step.
    """
    told = replay(loaded)
    run = told.run
    if to and run.step_at(to) is None:
        raise StepNotFoundError(f"run {run.run_id!r} has no step {to!r}", run_id=run.run_id)
    return [_entry(told, state) for state in undo_stack(run, to)]


def _entry(told: Replay, state: NodeState) -> UndoEntry:
    at = state.node.address
    if isinstance(state, ScopeState):
        phase = state.node.spec
        assert isinstance(phase, Phase)
        return UndoEntry(
            address=at,
            kind="row",
            action=phase.id,
            undo=phase.compensate,
            resource="",
            state="",
            outcome=state.status,
            finished_at=told.scopes.finished.get(at, 0.0),
        )
    declared = state.spec.undo
    return UndoEntry(
        address=at,
        kind="step" if declared is not None else "call",
        action=state.spec.action,
        undo=declared.action if declared is not None else "",
        resource=declared.resource if declared is not None else "",
        state=undo_of(state).state,
        outcome=state.status,
        finished_at=state.finished_at,
    )


def reopened(events: list[AnyEvent]) -> list[str]:
    """The addresses of what an answer's events have reopened."""
    return [at for event in events if isinstance(event, ev.StepsReopened) for at in event.at]


class UndoOperations:
    """The part of a run's handle that is about undo."""

    async def load(self) -> Loaded:
        """The run as stored, in one consistent read."""
        raise NotImplementedError

    async def _request(self, value: inp.AnyInput) -> list[AnyEvent]:
        raise NotImplementedError

    async def undo_stack(self, *, to: str = "") -> list[UndoEntry]:
        """What `undo` would undo now, in that order: the last that ended first. Nothing is changed.

        Raises:
            StepNotFoundError: `to` names no step.
        """
        return stack_of(await self.load(), to)

    async def undo(self, *, to: str = "") -> bool:
        """Undo what the settled run has done, or only what ended after the step `to`. False if nothing is left to undo.

        Durable when this returns; `wait` for its end. The run keeps its outcome.

        Raises:
            RunNotSettledError: the run goes on; cancel it with `unwind`.
        """
        events = await self._request(inp.Undo(to=to))
        return any(isinstance(event, ev.UnwindingStarted) for event in events)

    async def retry_undo(self, step: str = "") -> None:
        """Try the undo of a step again that did not undo; without `step`, all such."""
        await self._request(inp.UndoStep(verb="retry", at=step))

    async def skip_undo(self, step: str) -> None:
        """Give up the undo of a step: what the step did stands, and the unwinding goes on."""
        await self._request(inp.UndoStep(verb="skip", at=step))

    async def park_undo(self, step: str) -> None:
        """Put the undo of a step aside; the unwinding goes on, and the next `undo` takes it on again."""
        await self._request(inp.UndoStep(verb="park", at=step))

    async def rewind(self, step: str, *, keep: bool = False) -> list[str]:
        """Reopen a settled step and all that depends on it, as the next generation; returns the addresses.

        If they have an undo, what they did is undone first (then nothing is returned), unless `keep` is set.
        """
        return reopened(await self._request(inp.Rewind(at=step, keep=keep)))
