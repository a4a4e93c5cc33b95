"""From a stored run to its state, and from a step's state to its stored row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from treadle.core.apply import fold, new_state
from treadle.core.events import RunStarted, decode_events
from treadle.core.forgetting import forget, takes_back
from treadle.core.graph import Graph
from treadle.core.plan import Plan, decode_plan
from treadle.core.state import RunState, StepState
from treadle.core.tables import FAILED, NONE
from treadle.errors import SchemaVersionError
from treadle.store.base import Loaded, RunHead, StepRow

# Between the addresses in `StepRow.causes`: an address holds no control character.
CAUSE_SEPARATOR: Final = "\n"


class Graphs:
    """The compiled graphs of stored plans, those that were used last."""

    def __init__(self) -> None:
        self._known: dict[str, Graph] = {}

    def of(self, plan_hash: str, encoded: bytes, plan: Plan | None = None) -> Graph:
        """The graph of a stored plan; `plan` is what the bytes hold, if the caller has it."""
        graph = self._known.get(plan_hash)
        if graph is None:
            if len(self._known) >= 256:
                self._known.pop(next(iter(self._known)))
            graph = self._known[plan_hash] = Graph(plan if plan is not None else decode_plan(encoded))
        return graph


def state_of(head: RunHead, graph: Graph) -> RunState:
    """The state of a run before its first event, from its head."""
    return new_state(
        head.key,
        head.id,
        graph,
        head.constants,
        head.breakpoints,
        data=head.data,
        data_names=head.data_names,
        dry_run=head.dry_run,
        deadline=head.deadline,
        trace=head.trace,
    )


def fold_run(loaded: Loaded, graph: Graph, *, forgets: bool = False) -> RunState:
    """The state of a stored run from its journal; with `forgets`, one that forgets closed iterations if it can.

    Raises:
        SchemaVersionError: the journal holds an event that this version does not know.
    """
    head = loaded.head
    state = state_of(head, graph)
    state.forgets = forgets
    for version, _commit_id, time, text in loaded.rows:
        try:
            events = decode_events(text)
        except ValueError as error:
            raise SchemaVersionError(
                f"run {head.id!r}: journal row {version} cannot be read ({error}); it was written by another version"
            ) from error
        if state.forgotten and any(map(takes_back, events)):
            # It may name what is forgotten.
            return fold_run(loaded, graph)
        fold(state, events, version, time)
        if state.closed:
            forget(state)
    return state


def undo_rows(steps: Sequence[StepState]) -> list[tuple[str, str]]:
    """What the stored rows of settled steps are to say of their undo."""
    return [(step.node.address, step.undo.status) for step in steps if step.undo is not None]


def step_row(step: StepState) -> StepRow:
    """The stored row of a settled step."""
    node = step.node
    code = message = detail = ""
    if step.status == FAILED and step.failure is not None:
        code, message, detail = step.failure.code, step.failure.message, step.failure.detail
    return StepRow(
        node.number,
        node.address,
        node.step.action,
        step.status,
        step.generation,
        step.attempt,
        step.result,
        code,
        message,
        detail,
        CAUSE_SEPARATOR.join(step.causes) if step.causes else "",
        step.added_at,
        step.ready_at,
        step.dispatched_at,
        step.started_at,
        step.finished_at,
        step.worker,
        step.undo.status if step.undo is not None else NONE,
    )


def started_of(head: RunHead) -> RunStarted:
    """The first event of a run."""
    return RunStarted(
        not_before=head.not_before,
        depth=head.depth,
        parent="" if head.detached else head.parent,
        on_failure=head.on_failure,
        singleton=head.singleton,
        window=head.window,
        trigger=head.trigger,
    )
