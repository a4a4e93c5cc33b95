"""From a stored run to its state, and from a step's state to its stored row."""

from __future__ import annotations

from typing import Final

from treadle.core.apply import fold, new_state
from treadle.core.events import RunStarted, decode_events
from treadle.core.graph import Graph
from treadle.core.state import RunState, StepState
from treadle.core.tables import FAILED, NONE
from treadle.errors import SchemaVersionError
from treadle.store.base import Loaded, RunHead, StepRow

# Between the addresses in `StepRow.causes`: an address holds no control character.
CAUSE_SEPARATOR: Final = "\n"


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


def fold_run(loaded: Loaded, graph: Graph) -> RunState:
    """The state of a stored run from its journal.

    Raises:
        SchemaVersionError: the journal holds an event that this version does not know.
    """
    head = loaded.head
    state = state_of(head, graph)
    for version, _commit_id, time, text in loaded.rows:
        try:
            events = decode_events(text)
        except ValueError as error:
            raise SchemaVersionError(
                f"run {head.id!r}: journal row {version} cannot be read ({error}); it was written by another version"
            ) from error
        fold(state, events, version, time)
    return state


def undo_rows(steps: list[StepState]) -> list[tuple[str, str]]:
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
    )
