"""The transition tables of run, scope, step, attempt and undo: which event may come in which status, and what follows.

`apply` changes a status through these tables and in no other way; an event that a table does not allow is a
broken invariant. The diagrams of docs/architecture.md and the exhaustive tests are generated from them.

Rules of the file:
- `running` (of a step), `retrying`, `paused`, `pausing` and `cancelling` are not here: they are shown, not stored
  (a claim is a fact of the store, a pause is a fence).
- Nothing leaves an outcome except by `steps_reopened`, which an operator's retry or rewind writes, and by
  `steps_added`, when a step that a rewind took back is added again.
- An attempt's status is not stored either; `apply` knows the live one by the step's `tasked`. The attempt table
  covers evaluations of conditions too: they are attempts that workers make before the step is dispatched.
- The scope table writes the outcome behind a colon, since one event carries all of them.
- A step's undo has its own status beside the outcome, which it never changes. Attempts to prepare and to undo are not
  in the attempt table: they are live while the step is dispatched, and while its undo is `running`. A rewind forgets
  the undo with the generation it belongs to.
- The row of a phase that names a compensating one has the same statuses: its undo is that phase, executed.
"""

from __future__ import annotations

from typing import Final

# The status of what does not exist yet.
NOTHING: Final = ""
WAITING: Final = "waiting"
READY: Final = "ready"
DISPATCHED: Final = "dispatched"
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"
CANCELLED: Final = "cancelled"
OPEN: Final = "open"
RUNNING: Final = "running"
LOST: Final = "lost"
UNWINDING: Final = "unwinding"
# The statuses of a step's undo, besides `running`, `failed` and `skipped`.
NONE: Final = "none"
PENDING: Final = "pending"
UNDONE: Final = "undone"
NOT_COMPENSABLE: Final = "not_compensable"
PARKED: Final = "parked"

# A run that has no outcome, or will have it again.
LIVE: Final = frozenset({RUNNING, UNWINDING})
OUTCOMES: Final = frozenset({SUCCEEDED, FAILED, SKIPPED, CANCELLED})

Table = dict[tuple[str, str], str]

STEP: Final[Table] = {
    (WAITING, "evaluation_asked"): WAITING,
    (WAITING, "condition_evaluated"): WAITING,
    (WAITING, "key_evaluated"): WAITING,
    (WAITING, "attempt_lost"): WAITING,
    (WAITING, "steps_ready"): READY,
    (WAITING, "step_dispatched"): DISPATCHED,
    # The first half of a step that has something to prepare for its undo.
    (WAITING, "prepare_dispatched"): DISPATCHED,
    (WAITING, "step_skipped"): SKIPPED,
    (WAITING, "step_cancelled"): CANCELLED,
    # A condition that cannot be evaluated fails the step before it is dispatched.
    (WAITING, "step_failed"): FAILED,
    # A ready step waits for room among the run's tasks, which an evaluation needs too.
    (READY, "evaluation_asked"): READY,
    (READY, "condition_evaluated"): READY,
    (READY, "key_evaluated"): READY,
    (READY, "attempt_lost"): READY,
    (READY, "step_dispatched"): DISPATCHED,
    (READY, "prepare_dispatched"): DISPATCHED,
    (READY, "step_skipped"): SKIPPED,
    (READY, "step_cancelled"): CANCELLED,
    (READY, "step_failed"): FAILED,
    (DISPATCHED, "attempt_failed"): DISPATCHED,
    (DISPATCHED, "attempt_lost"): DISPATCHED,
    (DISPATCHED, "step_dispatched"): DISPATCHED,
    (DISPATCHED, "prepare_dispatched"): DISPATCHED,
    (DISPATCHED, "step_prepared"): DISPATCHED,
    # A step that calls a workflow: no task of it is in the store while the child runs.
    (DISPATCHED, "child_started"): DISPATCHED,
    # The timer of a run's window: each trigger may put it off.
    (DISPATCHED, "trigger_received"): DISPATCHED,
    (DISPATCHED, "step_succeeded"): SUCCEEDED,
    (DISPATCHED, "step_failed"): FAILED,
    (DISPATCHED, "step_cancelled"): CANCELLED,
    # The late report of an attempt that a cancel has left behind.
    (CANCELLED, "attempt_ended"): CANCELLED,
    # A rewind also starts over what had not begun yet below the rewound step.
    (WAITING, "steps_reopened"): WAITING,
    (READY, "steps_reopened"): WAITING,
    (SUCCEEDED, "steps_reopened"): WAITING,
    (FAILED, "steps_reopened"): WAITING,
    (SKIPPED, "steps_reopened"): WAITING,
    (CANCELLED, "steps_reopened"): WAITING,
    # Only for a step that a rewind of its adder took back.
    (WAITING, "steps_added"): WAITING,
    (SKIPPED, "steps_added"): WAITING,
    (CANCELLED, "steps_added"): WAITING,
}

ATTEMPT: Final[Table] = {
    (NOTHING, "step_dispatched"): RUNNING,
    (NOTHING, "evaluation_asked"): RUNNING,
    (RUNNING, "child_started"): RUNNING,
    (RUNNING, "step_succeeded"): SUCCEEDED,
    (RUNNING, "condition_evaluated"): SUCCEEDED,
    (RUNNING, "key_evaluated"): SUCCEEDED,
    (RUNNING, "step_failed"): FAILED,
    (RUNNING, "attempt_failed"): FAILED,
    (RUNNING, "attempt_lost"): LOST,
    (RUNNING, "step_cancelled"): CANCELLED,
    # The end of an attempt may be the end of its step: no retry under a cancel, too many losses.
    (FAILED, "step_cancelled"): FAILED,
    (LOST, "step_cancelled"): LOST,
    (FAILED, "step_failed"): FAILED,
    (LOST, "step_failed"): LOST,
    (CANCELLED, "attempt_ended"): CANCELLED,
}

SCOPE: Final[Table] = {
    (OPEN, "scope_opened"): OPEN,
    # How a block opens its content while the run goes on.
    (OPEN, "scope_asked"): OPEN,
    (OPEN, "row_opened"): OPEN,
    (OPEN, "decision_made"): OPEN,
    (OPEN, "iterations_opened"): OPEN,
    # Of the gather, when some of its iterations have succeeded.
    (OPEN, "iterations_settled"): OPEN,
    (OPEN, "branch_chosen"): OPEN,
    (OPEN, "scope_stopped"): OPEN,
    (OPEN, "scope_settled:succeeded"): SUCCEEDED,
    (OPEN, "scope_settled:failed"): FAILED,
    (OPEN, "scope_settled:skipped"): SKIPPED,
    (OPEN, "scope_settled:cancelled"): CANCELLED,
    (OPEN, "steps_reopened"): OPEN,
    (SUCCEEDED, "steps_reopened"): OPEN,
    (FAILED, "steps_reopened"): OPEN,
    (SKIPPED, "steps_reopened"): OPEN,
    (CANCELLED, "steps_reopened"): OPEN,
    (OPEN, "unwinding_started"): OPEN,
    (OPEN, "unwound"): OPEN,
    # One that has its outcome keeps it. (The root is open while its run unwinds, whatever the run's outcome was.)
    (SUCCEEDED, "unwinding_started"): SUCCEEDED,
    (SUCCEEDED, "unwound"): SUCCEEDED,
    (FAILED, "unwinding_started"): FAILED,
    (FAILED, "unwound"): FAILED,
    (CANCELLED, "unwinding_started"): CANCELLED,
    (CANCELLED, "unwound"): CANCELLED,
    # Only for a group that a rewind of its adder took back.
    (OPEN, "steps_added"): OPEN,
    (SKIPPED, "steps_added"): OPEN,
    (CANCELLED, "steps_added"): OPEN,
}

RUN: Final[Table] = {
    (NOTHING, "run_started"): RUNNING,
    (RUNNING, "steps_added"): RUNNING,
    (RUNNING, "cancel_requested"): RUNNING,
    (RUNNING, "paused"): RUNNING,
    (RUNNING, "resumed"): RUNNING,
    # Of a name that one run at a time may hold.
    (RUNNING, "name_taken"): RUNNING,
    (RUNNING, "turn_came"): RUNNING,
    (RUNNING, "deadline_passed"): RUNNING,
    # One that was cancelled while attempts of it go on.
    (SUCCEEDED, "name_taken"): SUCCEEDED,
    (FAILED, "name_taken"): FAILED,
    (CANCELLED, "name_taken"): CANCELLED,
    (RUNNING, "run_settled:succeeded"): SUCCEEDED,
    (RUNNING, "run_settled:failed"): FAILED,
    (RUNNING, "run_settled:cancelled"): CANCELLED,
    (RUNNING, "steps_reopened"): RUNNING,
    (SUCCEEDED, "steps_reopened"): RUNNING,
    (FAILED, "steps_reopened"): RUNNING,
    (CANCELLED, "steps_reopened"): RUNNING,
    # Of the root; the unwinding of a scope below it leaves the run's status alone.
    (RUNNING, "unwinding_started"): UNWINDING,
    (SUCCEEDED, "unwinding_started"): UNWINDING,
    (FAILED, "unwinding_started"): UNWINDING,
    (CANCELLED, "unwinding_started"): UNWINDING,
    (UNWINDING, "paused"): UNWINDING,
    (UNWINDING, "resumed"): UNWINDING,
    (UNWINDING, "name_taken"): UNWINDING,
    (UNWINDING, "turn_came"): UNWINDING,
    (UNWINDING, "unwinding_parked"): UNWINDING,
    (UNWINDING, "unwound"): UNWINDING,
    (UNWINDING, "steps_reopened"): RUNNING,
    (UNWINDING, "run_settled:succeeded"): SUCCEEDED,
    (UNWINDING, "run_settled:failed"): FAILED,
    (UNWINDING, "run_settled:cancelled"): CANCELLED,
}

UNDO: Final[Table] = {
    (NONE, "unwinding_started"): PENDING,
    (PENDING, "undo_dispatched"): RUNNING,
    # Of a row: its phase is compensated.
    (PENDING, "compensation_opened"): RUNNING,
    (PENDING, "undo_skipped"): SKIPPED,
    (PENDING, "undo_parked"): PARKED,
    (RUNNING, "undo_dispatched"): RUNNING,
    (RUNNING, "undo_confirmed"): RUNNING,
    (RUNNING, "undo_attempt_failed"): RUNNING,
    (RUNNING, "undo_attempt_lost"): RUNNING,
    # Of a call: the run that was called undoes what it did, or has done nothing of that kind.
    (RUNNING, "child_asked"): RUNNING,
    (NONE, "undo_not_needed"): NONE,
    (PENDING, "undo_not_needed"): NONE,
    (RUNNING, "undo_not_needed"): NONE,
    (RUNNING, "step_undone"): UNDONE,
    (RUNNING, "phase_compensated"): UNDONE,
    (RUNNING, "undo_failed"): FAILED,
    (RUNNING, "undo_not_compensable"): NOT_COMPENSABLE,
    (RUNNING, "undo_skipped"): SKIPPED,
    (RUNNING, "undo_parked"): PARKED,
    # An operator thinks again about one that did not undo.
    (FAILED, "undo_skipped"): SKIPPED,
    (FAILED, "undo_parked"): PARKED,
    (NOT_COMPENSABLE, "undo_skipped"): SKIPPED,
    (NOT_COMPENSABLE, "undo_parked"): PARKED,
    (SKIPPED, "undo_parked"): PARKED,
    (PARKED, "undo_skipped"): SKIPPED,
    (FAILED, "undo_reopened"): PENDING,
    (NOT_COMPENSABLE, "undo_reopened"): PENDING,
    (SKIPPED, "undo_reopened"): PENDING,
    (PARKED, "undo_reopened"): PENDING,
    # A later unwinding takes on what was parked and, if it is told to try again, what did not undo.
    (PARKED, "unwinding_started"): PENDING,
    (FAILED, "unwinding_started"): PENDING,
    (NOT_COMPENSABLE, "unwinding_started"): PENDING,
    (SKIPPED, "unwinding_started"): PENDING,
}

TABLES: Final[dict[str, Table]] = {"run": RUN, "scope": SCOPE, "step": STEP, "attempt": ATTEMPT, "undo": UNDO}


def diagram(name: str) -> str:
    """The table as the text of a Mermaid state diagram; events between the same two statuses share an arrow."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (source, event), target in TABLES[name].items():
        # A colon would end Mermaid's label.
        arrows.setdefault((source or "[*]", target), []).append(event.replace(":", " "))
    lines = ["stateDiagram-v2"]
    lines += [f"    {source} --> {target}: {', '.join(events)}" for (source, target), events in arrows.items()]
    return "\n".join(lines)


def written_into(page: str) -> str:
    """The text of a page with the diagram of each table between `<!-- table:NAME -->` and `<!-- end -->`."""
    for name in TABLES:
        start = f"<!-- table:{name} -->\n"
        before, _, rest = page.partition(start)
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"the page has no place for the diagram of the {name} table")
        page = f"{before}{start}\n```mermaid\n{diagram(name)}\n```\n\n{end}{after}"
    return page
