"""Hooks in the simulation: what nodes tell of boundaries, against what the journals say.

What should be told is worked out here from the events alone, one by one, knowing nothing of `runtime.boundaries`.
"""

from __future__ import annotations

from collections import Counter
from typing import Final
from zlib import crc32

from treadle.core import events as ev
from treadle.core.events import AnyEvent
from treadle.core.tables import SUCCEEDED
from treadle.runtime.hooks import Boundary, Hooks
from treadle.runtime.middleware import Next, StepCall
from treadle.store import joined
from treadle.testing.invariants import DURABLE, HOOKS, Fail, Journal
from treadle.testing.sim_loop import LIFE, Life

# Run, hook, address, outcome.
Mark = tuple[str, str, str, str]
_OUTCOMES: Final[dict[type, str]] = {
    ev.StepSucceeded: "succeeded",
    ev.StepFailed: "failed",
    ev.StepSkipped: "skipped",
    ev.StepCancelled: "cancelled",
}


class Ledger:
    """What each life of a node has committed, and what its hooks were told."""

    def __init__(self, journals: dict[str, Journal], fail: Fail) -> None:
        self.journals = journals
        self.fail = fail
        self.committed: dict[Life, Counter[Mark]] = {}
        self.told: dict[Life, Counter[Mark]] = {}
        # Steps of a run of which an attempt has just ended that was not the last.
        self._between: set[tuple[str, str]] = set()

    def wrote(self, life: Life | None, key: str, event: AnyEvent) -> None:
        """A life has committed an event."""
        mark = self._mark(key, event)
        marks = [mark] if mark is not None else []
        if isinstance(event, ev.IterationsSettled):
            marks = [(key, "scope_ended", at, SUCCEEDED) for at in event.addresses()]
        if life is not None:
            self.committed.setdefault(life, Counter()).update(marks)

    def _mark(self, key: str, event: AnyEvent) -> Mark | None:
        match event:
            case ev.RunStarted() | ev.InputAccepted(cause=joined.JOINED):
                # In a transaction it is written by nobody's node; whoever decides the run first tells of it.
                return key, "run_started", "", ""
            case ev.RunSettled():
                return key, "run_ended", "", event.outcome
            case ev.ScopeOpened():
                return key, "scope_started", event.at, ""
            case ev.ScopeSettled():
                # All that a step adds is no block.
                return None if event.at.endswith("/") else (key, "scope_ended", event.at, event.outcome)
            case ev.AttemptFailed() | ev.AttemptLost():
                if event.attempt > 0:
                    self._between.add((key, event.at))
                return None
            case ev.StepDispatched():
                if (key, event.at) not in self._between:
                    return key, "step_started", event.at, ""
                self._between.discard((key, event.at))
                return None
            case ev.StepSucceeded() | ev.StepFailed() | ev.StepSkipped() | ev.StepCancelled():
                self._between.discard((key, event.at))
                return key, "step_ended", event.at, _OUTCOMES[type(event)]
            case _:
                return None

    def hear(self, name: str, boundary: Boundary) -> None:
        """A hook is told of a boundary: it must be durable, and of this very life."""
        life = LIFE.get()
        assert life is not None
        key, at = boundary.run_key, boundary.address
        if name.startswith("attempt"):
            if (at, boundary.generation, boundary.attempt) not in self.journals[key].dispatched:
                self.fail(DURABLE, f"{life.name} tells {name} of {boundary.run_id} {at}, which is not dispatched")
            return
        mark = (key, name, at, boundary.outcome)
        told = self.told.setdefault(life, Counter())
        told[mark] += 1
        # A scope that waits for nothing opens without an event of its own.
        if told[mark] > self.committed.get(life, Counter[Mark]())[mark] and name != "scope_started":
            self.fail(DURABLE, f"{life.name} tells {mark}, {told[mark]} times; it has not committed that so often")

    def check(self, life: Life) -> None:
        """A life that has lost nothing has told all that it has committed, but for runs that are deleted."""
        left = self.committed.get(life, Counter[Mark]()) - self.told.get(life, Counter[Mark]())
        missed = [mark for mark in left if not self.journals[mark[0]].deleted]
        if missed:
            self.fail(HOOKS, f"{life.name} never told {missed[:3]}, and {len(missed)} in all")


async def passing(call: StepCall, call_next: Next) -> object:
    """A middleware that changes nothing, and must not be seen in anything."""
    return await call_next()


class SimHooks(Hooks):
    """Notes what it is told, now and then slowly, and fails as hooks do."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def _hear(self, name: str, boundary: Boundary) -> None:
        self._ledger.hear(name, boundary)
        if crc32(f"{name} {boundary.run_id} {boundary.address}".encode()) % 7 == 0:
            raise ValueError("hooks fail")

    def run_started(self, run: Boundary) -> None:
        """Note it."""
        self._hear("run_started", run)

    async def run_ended(self, run: Boundary) -> None:
        """Note it."""
        self._hear("run_ended", run)

    async def scope_started(self, scope: Boundary) -> None:
        """Note it."""
        self._hear("scope_started", scope)

    def scope_ended(self, scope: Boundary) -> None:
        """Note it."""
        self._hear("scope_ended", scope)

    def step_started(self, step: Boundary) -> None:
        """Note it."""
        self._hear("step_started", step)

    async def step_ended(self, step: Boundary) -> None:
        """Note it."""
        self._hear("step_ended", step)

    def attempt_started(self, attempt: Boundary) -> None:
        """Note it."""
        self._hear("attempt_started", attempt)

    async def attempt_ended(self, attempt: Boundary) -> None:
        """Note it."""
        self._hear("attempt_ended", attempt)
