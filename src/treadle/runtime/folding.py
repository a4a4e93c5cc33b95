"""From a stored run to its state, and from a step's state to its stored row."""

from __future__ import annotations

from typing import Final

from treadle.core.apply import fold, new_state
from treadle.core.events import RunStarted, decode_events
from treadle.core.graph import Graph
from treadle.core.state import RunState, StepState
from treadle.errors import SchemaVersionError
from treadle.store.base import Loaded, RunHead, StepRow

# Between the addresses in `StepRow.causes`: an address holds no control character.
CAUSE_SEPARATOR: Final = "\n"


def fold_run(loaded: Loaded, graph: Graph) -> RunState:
    """The state of a stored run from its journal.

    Raises:
        SchemaVersionError: the journal holds an event that this version does not know.
    """
    head = loaded.head
    state = new_state(head.key, head.id, graph, head.constants, head.breakpoints)
    for version, _commit_id, time, text in loaded.rows:
        try:
            events = decode_events(text)
        except ValueError as error:
            raise SchemaVersionError(
                f"run {head.id!r}: journal row {version} cannot be read ({error}); it was written by another version"
            ) from error
        fold(state, events, version, time)
    return state


def step_row(step: StepState) -> StepRow:
    """The stored row of a settled step."""
    node = step.node
    failure = step.failure if step.status == "failed" else None
    return StepRow(
        node.number,
        node.address,
        step.spec.action,
        step.status,
        step.generation,
        step.attempt,
        step.result,
        failure.code if failure is not None else "",
        failure.message if failure is not None else "",
        failure.detail if failure is not None else "",
        CAUSE_SEPARATOR.join(step.causes),
        step.added_at,
        step.ready_at,
        step.dispatched_at,
        step.started_at,
        step.finished_at,
        step.worker,
    )


def started_of(head: RunHead) -> RunStarted:
    """The first event of a run."""
    return RunStarted(not_before=head.not_before, depth=head.depth, parent="" if head.detached else head.parent)
