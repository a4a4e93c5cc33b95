"""From committed events to boundaries. A new kind of event becomes one by a line in `_READERS`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import msgspec

from treadle.core import events as ev
from treadle.core.addresses import child, encode_id
from treadle.core.blocks import Spec
from treadle.core.events import Arg, Event
from treadle.core.graph import Node
from treadle.core.opened import branch_address, compensation_address, iteration_address, row_address
from treadle.core.plan import Block, Body, Branch, Group, Phase
from treadle.core.state import RunState, ScopeState, StepState
from treadle.core.tables import CANCELLED, FAILED, SKIPPED, SUCCEEDED
from treadle.runtime.hooks import Boundary
from treadle.store.base import Append, RunHead
from treadle.store.joined import JOINED

# Shared by the boundaries without; never changed.
_NO_ARGS: dict[str, Arg] = {}
_NO_FACTS: dict[str, Any] = {}


class Notice(msgspec.Struct, frozen=True):
    """A boundary whose values are still handles, and the name of the hook that is told of it."""

    name: str
    boundary: Boundary
    arguments: dict[str, Arg] = _NO_ARGS
    result: Arg | None = None


def notices_of(run: RunState, head: RunHead, append: Append, wanted: Collection[str]) -> list[Notice]:
    """The boundaries in an append's events, in their order. `run` is the state after the append."""
    reading = _Reading(run, head, append, wanted)
    for event in append.events:
        reader = _READERS.get(type(event))
        if reader is not None:
            reader(reading, event)
    return reading.notices


class _Reading:
    """One append while its events are read."""

    def __init__(self, run: RunState, head: RunHead, append: Append, wanted: Collection[str]) -> None:
        self.run = run
        self.head = head
        self.time = append.time
        self.wanted = wanted
        self.notices: list[Notice] = []
        self.tasks = {task.address: task for task in append.tasks} if "step_started" in wanted else {}
        # Steps of which another attempt follows on one that ended in this very append.
        self.goes_on: set[str] = set()
        # How many rewinds of a step are still to come in this append.
        self.rewinds: dict[str, int] = {}
        for event in append.events:
            if type(event) is ev.StepsReopened and event.rewind:
                for at in event.at:
                    self.rewinds[at] = self.rewinds.get(at, 0) + 1

    def tell(
        self,
        name: str,
        at: str = "",
        facts: dict[str, Any] = _NO_FACTS,
        *,
        arguments: dict[str, Arg] = _NO_ARGS,
        result: Arg | None = None,
    ) -> None:
        """Note a boundary, if anyone wants to know."""
        if name not in self.wanted:
            return
        head = self.head
        boundary = Boundary(
            run_id=head.id,
            run_key=head.key,
            workflow=head.workflow,
            dry_run=head.dry_run,
            time=self.time,
            address=at,
            **facts,
        )
        self.notices.append(Notice(name, boundary, arguments, result))

    def settled(self, event: ev.RunSettled) -> None:
        """The run has its outcome."""
        self.tell("run_ended", "", {"outcome": event.outcome, "causes": event.failures}, result=event.result)

    # -- steps -----------------------------------------------------------------------------------------------------

    def step_ended(self, at: str, outcome: str, result: Arg | None = None, **facts: Any) -> None:
        """A step has its outcome."""
        self.goes_on.discard(at)
        step = self.run.step_at(at)
        if step is not None:
            self.tell("step_ended", at, {**self._facts(step), "outcome": outcome, **facts}, result=result)

    def dispatched(self, event: ev.StepDispatched) -> None:
        """An attempt may start; the first one starts the step."""
        if event.at in self.goes_on:
            self.goes_on.discard(event.at)
            return
        step = self.run.step_at(event.at)
        task = self.tasks.get(event.at)
        if step is not None:
            facts = self._facts(step) | {"generation": event.generation, "attempt": event.attempt}
            # A cancel in the same decision takes the task back before anyone sees it.
            self.tell("step_started", event.at, arguments=task.call.args if task is not None else _NO_ARGS, facts=facts)

    def reopened(self, event: ev.StepsReopened) -> None:
        """Steps begin anew."""
        self.goes_on.difference_update(event.at)
        if event.rewind:
            for at in event.at:
                self.rewinds[at] -= 1

    def _facts(self, step: StepState) -> dict[str, Any]:
        """What is said of a step at its start and at its end."""
        generation = step.generation - self.rewinds.get(step.node.address, 0)
        return {"block": "step", "action": step.spec.action, "generation": generation}

    # -- scopes ----------------------------------------------------------------------------------------------------

    def scope(self, name: str, at: str, **facts: Any) -> None:
        """A block with content opened or settled. All that a step adds is a scope, and no block."""
        state = self.run.at(at)
        if state is not None and state.node.spec is not None:
            self.tell(name, at, {"block": _kind_of(state.node.spec), **facts})

    def started(self) -> None:
        """The run began, and with it the scopes that wait for nothing; no event tells of these."""
        self.tell("run_started")
        if "scope_started" in self.wanted:
            for node in self.run.graph.nodes:
                if not node.is_step and node.spec is not None and _waits_for_nothing(node):
                    self.scope("scope_started", node.address)

    def added(self, event: ev.StepsAdded) -> None:
        """Steps were added, and groups among them that wait for nothing."""
        for address in _groups(event.blocks, event.into) if "scope_started" in self.wanted else ():
            state = self.run.at(address)
            if state is not None and _waits_for_nothing(state.node):
                self.scope("scope_started", address)

    # -- scopes that open while the run goes on --------------------------------------------------------------------

    def row(self, event: ev.RowOpened) -> None:
        """A phase was entered."""
        block = self.run.at(event.at)
        if isinstance(block, ScopeState):
            self.scope("scope_started", row_address(block, event.phase, event.entry))

    def compensation(self, event: ev.CompensationOpened) -> None:
        """A compensating phase was entered."""
        row = self.run.at(event.at)
        if row is not None:
            self.scope("scope_started", compensation_address(row.node.address, event.phase, event.entry))

    def iterations(self, event: ev.IterationsOpened) -> None:
        """The bodies of some items were opened."""
        block = self.run.at(event.at)
        if isinstance(block, ScopeState) and "scope_started" in self.wanted:
            for index in range(event.start, event.start + event.count):
                self.scope("scope_started", iteration_address(block, index))

    def succeeded(self, event: ev.IterationsSettled) -> None:
        """The bodies of some items have succeeded."""
        if "scope_ended" in self.wanted:
            for address in event.addresses():
                self.scope("scope_ended", address, outcome=SUCCEEDED, causes=[])

    def branch(self, event: ev.BranchChosen) -> None:
        """A branch was chosen."""
        block = self.run.at(event.at)
        if isinstance(block, ScopeState) and event.branch:
            self.scope("scope_started", branch_address(block, event.branch))


def _groups(blocks: list[Block], around: str) -> Iterator[str]:
    """The addresses of groups among blocks, outer ones first."""
    for block in blocks:
        if isinstance(block, Group):
            address = child(around, encode_id(block.id))
            yield address
            yield from _groups(block.blocks, address)


def _waits_for_nothing(node: Node) -> bool:
    """Whether a scope is open from the instant it exists."""
    here: Node | None = node
    while here is not None:
        if here.needs:
            return False
        here = here.scope
    return True


def _kind_of(spec: Spec) -> str:
    if isinstance(spec, Phase):
        return "phase"
    if isinstance(spec, Body | Branch):
        return "iteration" if isinstance(spec, Body) else "branch"
    tag = spec.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def _table() -> dict[type[Event], Callable[[_Reading, Any], None]]:
    def goes_on(reading: _Reading, event: ev.AttemptFailed | ev.AttemptLost) -> None:
        if event.attempt > 0:
            reading.goes_on.add(event.at)

    def accepted(reading: _Reading, event: ev.InputAccepted) -> None:
        # The run was written in a transaction of somebody else's, who tells nobody.
        if event.cause == JOINED:
            reading.started()

    return {
        ev.RunStarted: lambda r, _: r.started(),
        ev.InputAccepted: accepted,
        ev.RunSettled: _Reading.settled,
        ev.StepsAdded: _Reading.added,
        ev.RowOpened: _Reading.row,
        ev.CompensationOpened: _Reading.compensation,
        ev.IterationsOpened: _Reading.iterations,
        ev.IterationsSettled: _Reading.succeeded,
        ev.BranchChosen: _Reading.branch,
        ev.ScopeOpened: lambda r, e: r.scope("scope_started", e.at),
        ev.ScopeSettled: lambda r, e: r.scope("scope_ended", e.at, outcome=e.outcome, causes=e.causes),
        ev.StepDispatched: _Reading.dispatched,
        ev.StepsReopened: _Reading.reopened,
        ev.AttemptFailed: goes_on,
        ev.AttemptLost: goes_on,
        ev.StepSucceeded: lambda r, e: r.step_ended(e.at, SUCCEEDED, attempt=e.attempt, result=e.result),
        ev.StepFailed: lambda r, e: r.step_ended(e.at, FAILED, attempt=e.attempt, failure=e.failure),
        ev.StepSkipped: lambda r, e: r.step_ended(e.at, SKIPPED, causes=e.causes),
        ev.StepCancelled: lambda r, e: r.step_ended(e.at, CANCELLED),
    }


_READERS = _table()
